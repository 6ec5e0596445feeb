// SPDX-License-Identifier: LGPL-2.1-or-later
//! The delegate's own mounts of cgroup hierarchies, and a peer's cgroup found
//! on them.
//!
//! A container's mount may be read-only, and its paths mean something else
//! here. So a peer sends a descriptor of the directory, and the same directory
//! is opened anew on the delegate's own mount, by the handle that the kernel
//! gives for it. No path of the peer's is ever followed.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libc::c_int;

use super::pidfd::{Device, errno, read_lines, utf8_lines};
use crate::delegate::policy::{hierarchies, path_in};
use crate::errno::Errno;
use crate::kernel::cgroup::{Group, Version};
use crate::kernel::check;
use crate::kernel::file::{self, Fd};

/// A hierarchy as mountinfo has it.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    version: Version,
    /// Of version 1: its controllers or name, as /proc/PID/cgroup has them.
    controllers: String,
    /// The cgroup that is mounted, "/" unless it is a part of the hierarchy.
    root: String,
    point: PathBuf,
}

/// A hierarchy as it is mounted for the delegate.
struct Mount {
    entry: Entry,
    device: Device,
    directory: Fd,
}

/// All of them, as mountinfo had them.
struct Mounts {
    /// It was opened before it was read: the kernel tells of changes since.
    /// `None`: it was not read.
    mountinfo: Option<File>,
    all: Vec<Mount>,
}

static MOUNTS: Mutex<Mounts> = Mutex::new(Mounts {
    mountinfo: None,
    all: Vec::new(),
});

impl Mounts {
    /// What `of` says of the first mount of which it says something. If there is
    /// none it may have come since mountinfo was read: anybody can have that
    /// looked for, so it is read again only if it changed.
    fn find<T>(mut of: impl FnMut(&Mount) -> Option<T>) -> Result<Option<T>, Errno> {
        let mut mounts = MOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        let found = mounts.all.iter().find_map(&mut of);
        if found.is_some() || mounts.is_current() {
            return Ok(found);
        }
        mounts.read()?;
        Ok(mounts.all.iter().find_map(of))
    }

    fn is_current(&mut self) -> bool {
        // A change is told once.
        self.mountinfo = self.mountinfo.take().filter(|file| {
            let mut poll = libc::pollfd {
                fd: file.as_raw_fd(),
                events: libc::POLLPRI,
                revents: 0,
            };
            // SAFETY: one pollfd.
            check(i64::from(unsafe { libc::poll(&mut poll, 1, 0) })) == Ok(0)
        });
        self.mountinfo.is_some()
    }

    fn read(&mut self) -> Result<(), Errno> {
        let (file, entries) = read_mountinfo()?;
        let mounts = entries.into_iter();
        let mounts = mounts.filter_map(|entry| Mount::new(entry).transpose());
        self.all = mounts.collect::<Result<_, _>>()?;
        self.mountinfo = Some(file);
        Ok(())
    }
}

/// The hierarchies that are mounted here, and the file that says so.
fn read_mountinfo() -> Result<(File, Vec<Entry>), Errno> {
    let mut file = File::open("/proc/self/mountinfo").map_err(errno)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(errno)?;
    let text = utf8_lines(text);
    // After the mounts: it has all of them that are there.
    let cgroups = read_lines("/proc/self/cgroup")?;
    let entries = text.lines().filter_map(|line| parse(line, &cgroups));
    let mut entries: Vec<Entry> = entries.collect();
    // On a mount of a part, what lies outside cannot be named.
    entries.sort_by_key(|entry| entry.root.len());
    Ok((file, entries))
}

/// A cgroup that a peer named, on the delegate's own mount.
pub(crate) struct Reached {
    pub(crate) group: Group,
    /// Its path in its hierarchy.
    pub(crate) path: String,
    /// Its directory.
    pub(crate) directory: CString,
    /// The hierarchy, as a line of /proc/PID/cgroup has it.
    pub(crate) controllers: String,
}

impl Reached {
    /// The path that a process has in the same hierarchy, from the text of its
    /// /proc/PID/cgroup.
    pub(crate) fn path_of<'t>(&self, cgroups: &'t str) -> Option<&'t str> {
        path_in(cgroups, &self.controllers)
    }
}

/// Why a descriptor is no cgroup that can be reached.
#[derive(Debug)]
pub(crate) enum Unreachable {
    /// It is something else.
    NoCgroup,
    Failed(Errno),
}

/// The directory on the delegate's own mount that a peer's descriptor is of.
pub(crate) fn reach(descriptor: c_int) -> Result<Reached, Unreachable> {
    // Only such a descriptor can be examined without its filesystem having a
    // say.
    // SAFETY: numbers only.
    let flags = check(unsafe { libc::fcntl(descriptor, libc::F_GETFL) });
    if flags.map_err(Unreachable::Failed)? & i64::from(libc::O_PATH) == 0 {
        return Err(Unreachable::NoCgroup);
    }
    let device = Device::of(descriptor).ok_or(Unreachable::NoCgroup)?;
    let on = |mount: &Mount| (mount.device == device).then(|| mount.open(descriptor));
    let found = Mounts::find(on).map_err(Unreachable::Failed)?;
    let reached = found.ok_or(Unreachable::NoCgroup)?;
    reached.map_err(Unreachable::Failed)
}

/// Opens a cgroup by its path in a hierarchy, as a line of /proc/PID/cgroup has
/// both.
pub(crate) fn open(controllers: &str, path: &str) -> Result<Fd, Errno> {
    let below = |mount: &Mount| -> Option<Result<Fd, Errno>> {
        if mount.entry.controllers != controllers {
            return None;
        }
        let below = Path::new(path).strip_prefix(&mount.entry.root).ok()?;
        Some(mount.open_below(below))
    };
    Mounts::find(below)?.ok_or(Errno::ENOENT)?
}

/// Where hierarchies are mounted. No descriptor is kept for it: every delegate
/// needs it, also one in another program.
static PLACES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// The directory of a cgroup by its path in a hierarchy, as a line of
/// /proc/PID/cgroup has both.
pub(crate) fn directory(controllers: &str, path: &str) -> Result<PathBuf, Errno> {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |places: &[Entry]| {
        let own = places
            .iter()
            .filter(|entry| entry.controllers == controllers);
        { own }.find_map(|entry| entry.place_of(path))
    };
    if let Some(found) = find(&places) {
        return Ok(found);
    }
    *places = read_mountinfo()?.1;
    find(&places).ok_or(Errno::ENOENT)
}

impl Entry {
    fn place_of(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below))
    }
}

/// The kernel's struct file_handle, with as much room as it can need.
#[repr(C, align(4))]
struct FileHandle {
    bytes: u32,
    kind: c_int,
    handle: [u8; 128],
}

unsafe extern "C" {
    fn name_to_handle_at(
        directory: c_int,
        name: *const libc::c_char,
        handle: *mut FileHandle,
        mount: *mut c_int,
        flags: c_int,
    ) -> c_int;
    fn open_by_handle_at(mount: c_int, handle: *mut FileHandle, flags: c_int) -> c_int;
}

impl Mount {
    /// `None` if it cannot be opened, and will not be before something is
    /// mounted or unmounted.
    fn new(entry: Entry) -> Result<Option<Mount>, Errno> {
        let Ok(point) = CString::new(entry.point.as_os_str().as_bytes()) else {
            return Ok(None);
        };
        let directory = match file::open(&point, libc::O_RDONLY | libc::O_DIRECTORY) {
            Ok(directory) => directory,
            Err(errnum @ Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => return Err(errnum),
            Err(_) => return Ok(None),
        };
        Ok(Device::of(directory.get()).map(|device| Mount {
            entry,
            device,
            directory,
        }))
    }

    /// Opens a directory by its path.
    fn open_below(&self, path: &Path) -> Result<Fd, Errno> {
        let name = Path::new(".").join(path);
        let name = CString::new(name.into_os_string().into_encoded_bytes());
        let name = name.map_err(|_| Errno::EINVAL)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        file::open_at(&self.directory, &name, flags)
    }

    /// Opens what a descriptor is of, here.
    fn open(&self, descriptor: c_int) -> Result<Reached, Errno> {
        let mut handle = FileHandle {
            bytes: 128,
            kind: 0,
            handle: [0; 128],
        };
        let mut id = 0;
        let name = c"".as_ptr();
        // SAFETY: a C string, a handle with as much room as it says, an int.
        check(unsafe {
            name_to_handle_at(descriptor, name, &mut handle, &mut id, libc::AT_EMPTY_PATH)
        })?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: a handle that the kernel has filled; it returns a new
        // descriptor.
        let directory = unsafe {
            let opened = open_by_handle_at(self.directory.get(), &mut handle, flags);
            Fd::new(check(opened)?)
        };
        let link = format!("/proc/self/fd/{}", directory.get());
        let place = fs::read_link(link).map_err(errno)?;
        let path = self.path_of(&place)?;
        Ok(Reached {
            directory: CString::new(place.into_os_string().into_encoded_bytes())
                .map_err(|_| Errno::EINVAL)?,
            group: Group::of(directory, self.entry.version),
            path,
            controllers: self.entry.controllers.clone(),
        })
    }

    /// The path of a directory on this mount in its hierarchy.
    fn path_of(&self, path: &Path) -> Result<String, Errno> {
        // What was removed ends in "(deleted)", what lies outside of the mount
        // is not below it.
        let below = path
            .strip_prefix(&self.entry.point)
            .map_err(|_| Errno::ENOENT)?;
        let path = Path::new(&self.entry.root).join(below);
        let path = path.to_str().ok_or(Errno::EINVAL)?;
        match path.strip_suffix('/') {
            Some(parent) if !parent.is_empty() => Ok(parent.to_owned()),
            _ => Ok(path.to_owned()),
        }
    }
}

/// One line of mountinfo, if it is a hierarchy of cgroups:
/// "36 35 98:0 /root /point rw,noatime shared:1 - cgroup2 cgroup2 rw,options"
///
/// Of version 1 its controllers are among the options, with others of the kernel,
/// and of security modules. So they are those that a hierarchy has in `cgroups`,
/// the text of any process's /proc/PID/cgroup.
fn parse(line: &str, cgroups: &str) -> Option<Entry> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (version, controllers) = match (kind.next()?, kind.nth(1)?) {
        ("cgroup2", _) => (Version::V2, ""),
        ("cgroup", options) => {
            let is_option = |one| options.split(',').any(|option| option == one);
            let mut all = hierarchies(cgroups).map(|(controllers, _)| controllers);
            let own = all.find(|all| all.split(',').all(is_option))?;
            (Version::V1, own)
        }
        _ => return None,
    };
    Some(Entry {
        version,
        controllers: controllers.to_owned(),
        root: String::from_utf8(unescaped(root)).ok()?,
        point: PathBuf::from(OsStr::from_bytes(&unescaped(point))),
    })
}

/// mountinfo has spaces and the like as "\040".
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let number =
            octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match number {
            Some(number) => {
                bytes.push(number);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(Version, String)> {
        let cgroups = "13:misc:/\n5:cpu,cpuacct:/a\n2:name=systemd:/b\n1:cpuset:/\n0::/c\n";
        parse(line, cgroups).map(|entry| (entry.version, entry.controllers))
    }

    #[test]
    fn options_that_are_no_controllers_belong_to_no_hierarchys_name() {
        for options in [
            "rw,cpu,cpuacct",
            "rw,seclabel,cpu,cpuacct",
            "rw,cpu,cpuacct,xattr,favordynmods,release_agent=/misc,clone_children",
            "rw,context=\"system_u:object_r:cgroup_t:s0:c1,c2\",cpu,cpuacct",
        ] {
            let line = format!("32 31 0:29 / /cpu rw,relatime shared:4 - cgroup cgroup {options}");
            let expected = (Version::V1, "cpu,cpuacct".to_owned());
            assert_eq!(parsed(&line), Some(expected), "{options}");
        }
        let line = "40 31 0:37 / /systemd rw - cgroup none rw,noprefix,xattr,name=systemd";
        let expected = (Version::V1, "name=systemd".to_owned());
        assert_eq!(parsed(line), Some(expected));
    }

    #[test]
    fn a_line_of_mountinfo_says_where_which_hierarchy_is() {
        let line = "41 31 0:38 /a\\040b /sys/x\\134y rw - cgroup2 cgroup2 rw,nsdelegate";
        let expected = Entry {
            version: Version::V2,
            controllers: String::new(),
            root: "/a b".to_owned(),
            point: PathBuf::from("/sys/x\\y"),
        };
        assert_eq!(parse(line, "0::/\n"), Some(expected));
        for line in [
            "",
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,cpuset",
            "31 23 0:28 / /x rw - fuse.cgroup2 cgroup2 rw",
            "32 31 0:29 / /memory rw - cgroup cgroup rw,memory",
            "32 31 0:29 / /cpu rw - cgroup cgroup",
        ] {
            assert_eq!(parsed(line), None, "{line:?}");
        }
    }
}
