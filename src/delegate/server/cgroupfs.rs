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
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libc::c_int;

use super::pidfd::Device;
use crate::errno::Errno;
use crate::kernel::cgroup::{Group, Version};
use crate::kernel::check;
use crate::kernel::file::Fd;

/// A hierarchy as it is mounted for the delegate.
#[derive(Debug)]
struct Mount {
    device: Device,
    version: Version,
    /// Of version 1: its controllers or name, as /proc/PID/cgroup has them.
    controllers: String,
    /// The cgroup that is mounted, "/" unless it is a part of the hierarchy.
    root: String,
    point: PathBuf,
    directory: File,
}

/// All of them; read again when a descriptor is on none.
static MOUNTS: Mutex<Vec<Mount>> = Mutex::new(Vec::new());

/// A cgroup that a peer named, on the delegate's own mount.
pub(crate) struct Reached {
    pub(crate) group: Group,
    /// Its path in its hierarchy.
    pub(crate) path: String,
    /// Its directory.
    pub(crate) directory: CString,
    /// The hierarchy, as a line of /proc/PID/cgroup has it.
    controllers: String,
}

impl Reached {
    /// The path that a process has in the same hierarchy, from the text of its
    /// /proc/PID/cgroup.
    pub(crate) fn path_of<'t>(&self, cgroups: &'t str) -> Option<&'t str> {
        cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            (parts.next()? == self.controllers).then(|| parts.next())?
        })
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
    let mut mounts = MOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |mounts: &[Mount]| mounts.iter().position(|mount| mount.device == device);
    let index = match find(&mounts) {
        Some(index) => index,
        None => {
            *mounts = read_mounts().map_err(Unreachable::Failed)?;
            find(&mounts).ok_or(Unreachable::NoCgroup)?
        }
    };
    mounts[index].open(descriptor).map_err(Unreachable::Failed)
}

/// Opens a cgroup by its path in a hierarchy, as a line of /proc/PID/cgroup has
/// both.
pub(crate) fn open(controllers: &str, path: &str) -> Result<Fd, Errno> {
    let mut mounts = MOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |mounts: &[Mount]| {
        let below = |mount: &Mount| {
            let below = Path::new(path).strip_prefix(&mount.root).ok()?;
            Some(below.to_owned())
        };
        let mut mounts = mounts
            .iter()
            .filter(|mount| mount.controllers == controllers);
        mounts.find_map(|mount| Some((mount.directory.try_clone().ok()?, below(mount)?)))
    };
    let found = match find(&mounts) {
        Some(found) => Some(found),
        None => {
            *mounts = read_mounts()?;
            find(&mounts)
        }
    };
    drop(mounts);
    let (directory, below) = found.ok_or(Errno::ENOENT)?;
    let name = Path::new(".").join(below);
    let name = CString::new(name.into_os_string().into_encoded_bytes());
    let name = name.map_err(|_| Errno::EINVAL)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a C string and numbers; it returns a new descriptor.
    unsafe {
        let opened = libc::openat(directory.as_raw_fd(), name.as_ptr(), flags);
        Ok(Fd::new(check(opened)?))
    }
}

/// Where hierarchies are mounted: each one's controllers, the cgroup that is
/// mounted, and the place. No descriptor is kept for it.
static PLACES: Mutex<Vec<(String, String, PathBuf)>> = Mutex::new(Vec::new());

/// The directory of a cgroup by its path in a hierarchy, as a line of
/// /proc/PID/cgroup has both.
pub(crate) fn directory(controllers: &str, path: &str) -> Result<PathBuf, Errno> {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |places: &[(String, String, PathBuf)]| {
        let of = places.iter().filter(|(own, ..)| own == controllers);
        let mut found = of.filter_map(|(_, root, point)| {
            let below = Path::new(path).strip_prefix(root).ok()?;
            Some(point.join(below))
        });
        found.next()
    };
    if let Some(found) = find(&places) {
        return Ok(found);
    }
    let mounts = read_mounts()?;
    *places = (mounts.into_iter())
        .map(|mount| (mount.controllers, mount.root, mount.point))
        .collect();
    find(&places).ok_or(Errno::ENOENT)
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
            let opened = open_by_handle_at(self.directory.as_raw_fd(), &mut handle, flags);
            Fd::new(check(opened)?)
        };
        let link = format!("/proc/self/fd/{}", directory.get());
        let place = fs::read_link(link).map_err(super::pidfd::errno)?;
        let path = self.path_of(&place)?;
        Ok(Reached {
            directory: CString::new(place.into_os_string().into_encoded_bytes())
                .map_err(|_| Errno::EINVAL)?,
            group: Group::of(directory, self.version),
            path,
            controllers: self.controllers.clone(),
        })
    }

    /// The path of a directory on this mount in its hierarchy.
    fn path_of(&self, path: &Path) -> Result<String, Errno> {
        // What was removed ends in "(deleted)", what lies outside of the mount
        // is not below it.
        let below = path.strip_prefix(&self.point).map_err(|_| Errno::ENOENT)?;
        let path = Path::new(&self.root).join(below);
        let path = path.to_str().ok_or(Errno::EINVAL)?;
        match path.strip_suffix('/') {
            Some(parent) if !parent.is_empty() => Ok(parent.to_owned()),
            _ => Ok(path.to_owned()),
        }
    }
}

fn read_mounts() -> Result<Vec<Mount>, Errno> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(super::pidfd::errno)?;
    let mut mounts: Vec<Mount> = text.lines().filter_map(read_mount).collect();
    // On a mount of a part, what lies outside cannot be named.
    mounts.sort_by_key(|mount| mount.root.len());
    Ok(mounts)
}

/// One line of mountinfo, if it is a hierarchy of cgroups that can be opened:
/// "36 35 98:0 /root /point rw,noatime shared:1 - cgroup2 cgroup2 rw,options"
fn read_mount(line: &str) -> Option<Mount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup2" => Version::V2,
        "cgroup" => Version::V1,
        _ => return None,
    };
    let options = kind.nth(1)?;
    let controllers = match version {
        Version::V2 => String::new(),
        Version::V1 => options
            .split(',')
            .filter(|option| {
                let is_mount_option = matches!(
                    *option,
                    "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "cpuset_v2_mode"
                );
                !is_mount_option && !option.starts_with("release_agent=")
            })
            .collect::<Vec<_>>()
            .join(","),
    };
    let point = PathBuf::from(OsStr::from_bytes(&unescaped(point)));
    let directory = File::open(&point).ok()?;
    let device = Device::of(directory.as_raw_fd())?;
    Some(Mount {
        device,
        version,
        controllers,
        root: String::from_utf8(unescaped(root)).ok()?,
        point,
        directory,
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
