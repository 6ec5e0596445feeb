// SPDX-License-Identifier: LGPL-2.1-or-later
//! cgroups, v2 and v1: moving threads, and which threads are in one.

use core::ffi::CStr;
use core::mem::MaybeUninit;

use crate::errno::Errno;

use super::check;
use super::file::{self, Fd, Text};
use crate::error::{Error, Result};

/// The path of a cgroup's directory: absolute, and short enough for the
/// kernel.
#[derive(Clone, Copy)]
pub(crate) struct GroupPath<'a>(&'a CStr);

impl<'a> GroupPath<'a> {
    /// # Safety
    /// `path` is a C string that nobody writes for 'a.
    pub(crate) unsafe fn new(path: *const libc::c_char) -> Result<GroupPath<'a>> {
        let max = libc::PATH_MAX as usize;
        // SAFETY: the caller's word that it is a C string.
        let length = unsafe { libc::strnlen(path, max) };
        if length == max {
            return Err(Error::invalid(format_args!(
                "the cgroup's path is too long: it must be shorter than {max} bytes"
            )));
        }
        // SAFETY: shorter than `max`, so there is a NUL.
        let path = unsafe { CStr::from_ptr(path) };
        match path.to_bytes().first() {
            None => Err(Error::invalid(format_args!("the cgroup's path is empty"))),
            Some(b'/') => Ok(GroupPath(path)),
            Some(_) => Err(Error::invalid(format_args!(
                "the cgroup's path must be absolute: {}",
                Shown(path)
            ))),
        }
    }

    pub(crate) fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

impl core::fmt::Display for GroupPath<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Shown(self.0).fmt(f)
    }
}

/// A path in a message: what is too long for one ends in dots.
struct Shown<'a>(&'a CStr);

impl core::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        const MAX: usize = 200;
        let bytes = self.0.to_bytes();
        let shown = &bytes[..bytes.len().min(MAX)];
        write!(f, "'{}'", shown.escape_ascii())?;
        match bytes.len() > MAX {
            true => write!(f, "... ({} bytes)", bytes.len()),
            false => Ok(()),
        }
    }
}

/// A version of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A cgroup, by a descriptor of its directory.
pub(crate) struct Group {
    directory: Fd,
    version: Version,
}

impl Group {
    /// The one that `directory` is open for.
    #[cfg(feature = "delegate")]
    pub(crate) fn of(directory: Fd, version: Version) -> Group {
        Group { directory, version }
    }

    /// Opens the directory of a cgroup, and nothing else.
    pub(crate) fn open(path: GroupPath<'_>) -> Result<Group> {
        let failed = |errnum| Error::failed(errnum, format_args!("cannot open the cgroup {path}"));
        let not_a_group = || Error::invalid(format_args!("{path} is not a cgroup"));
        let directory =
            file::open(path.0, libc::O_PATH | libc::O_DIRECTORY).map_err(
                |errnum| match errnum {
                    Errno::ENOTDIR => not_a_group(),
                    _ => failed(errnum),
                },
            )?;
        let mut status = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the kernel fills the statfs when it returns 0.
        let status = unsafe {
            check(libc::fstatfs(directory.get(), status.as_mut_ptr())).map_err(failed)?;
            status.assume_init()
        };
        let version = match status.f_type {
            libc::CGROUP2_SUPER_MAGIC => Version::V2,
            libc::CGROUP_SUPER_MAGIC => Version::V1,
            _ => return Err(not_a_group()),
        };
        Ok(Group { directory, version })
    }

    pub(crate) fn fd(&self) -> libc::c_int {
        self.directory.get()
    }

    #[cfg(feature = "delegate")]
    pub(crate) fn directory(&self) -> &Fd {
        &self.directory
    }

    #[cfg(feature = "delegate")]
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The file that takes, and lists, single threads.
    fn threads_file(&self) -> &'static CStr {
        match self.version {
            Version::V1 => c"tasks",
            Version::V2 => c"cgroup.threads",
        }
    }

    /// Opens the file that takes single threads.
    pub(crate) fn threads(&self) -> core::result::Result<Threads, Errno> {
        let name = self.threads_file();
        file::open_at(&self.directory, name, libc::O_WRONLY).map(Threads)
    }

    /// Opens the file that takes whole processes, where they are what can be
    /// moved: a domain of v2.
    pub(crate) fn processes(&self) -> core::result::Result<Threads, Errno> {
        file::open_at(&self.directory, c"cgroup.procs", libc::O_WRONLY).map(Threads)
    }

    /// Calls `each` with the id of every thread in the group.
    pub(crate) fn for_each_thread(
        &self,
        mut each: impl FnMut(libc::pid_t),
    ) -> core::result::Result<(), Errno> {
        let name = self.threads_file();
        let file = file::open_at(&self.directory, name, libc::O_RDONLY)?;
        file::for_each_number(&file, |number| each(number as libc::pid_t))
    }
}

/// A control file that moves who is written to it.
pub(crate) struct Threads(Fd);

impl Threads {
    pub(crate) fn add(&self, id: libc::pid_t) -> core::result::Result<(), Errno> {
        file::write(&self.0, Text::<16>::new(format_args!("{id}")).as_bytes())
    }
}
