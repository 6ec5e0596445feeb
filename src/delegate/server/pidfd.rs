// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a pidfd says of its process or thread.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use libc::c_int;

use crate::errno::Errno;
use crate::kernel::check;
use crate::kernel::file::Fd;
use crate::kernel::process::{Pid, for_each_thread, pidfd_open};

/// What the kernel tells of a process or thread, by the delegate's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info {
    pub(crate) pid: libc::pid_t,
    /// The process, of which `pid` is a thread.
    pub(crate) process: libc::pid_t,
    /// Its real user id.
    pub(crate) uid: u32,
    /// Its cgroup of version 2, by the number that is never given twice.
    pub(crate) cgroup: Option<u64>,
}

/// The kernel's struct pidfd_info as it first was (Linux 6.13).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

const PIDFD_INFO_PID: u64 = 1 << 0;
const PIDFD_INFO_CREDS: u64 = 1 << 1;
const PIDFD_INFO_CGROUPID: u64 = 1 << 2;

/// _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
const PIDFD_GET_INFO: libc::Ioctl =
    (3 << 30 | size_of::<PidfdInfo>() << 16 | 0xff << 8 | 11) as libc::Ioctl;

/// Whether a descriptor is a pidfd, found out without a call into the
/// filesystem of whatever it may be: a peer sends what it likes, and a FUSE
/// file answers when it likes.
pub(crate) fn is_pidfd(fd: c_int) -> bool {
    // Since Linux 6.9 pidfds have a filesystem of their own; before that they
    // share one with other descriptors without a file, and only the name tells.
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let own = DEVICE.get_or_init(|| {
        let own = pidfd_open(std::process::id() as libc::pid_t, 0).ok()?;
        let event = Fd::event().ok()?;
        let device = Device::of(own.get())?;
        (Device::of(event.get())? != device).then_some(device)
    });
    match own {
        Some(own) => Device::of(fd) == Some(*own),
        None => fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|name| name.as_os_str() == "anon_inode:[pidfd]"),
    }
}

/// A filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    pub(crate) fn of(fd: c_int) -> Option<Device> {
        // SAFETY: integers, of which all zeros are valid.
        let mut status: libc::statx = unsafe { std::mem::zeroed() };
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        // SAFETY: a C string, and a statx to write.
        check(unsafe { libc::statx(fd, c"".as_ptr(), flags, 0, &mut status) }).ok()?;
        Some(Device {
            major: status.stx_dev_major,
            minor: status.stx_dev_minor,
        })
    }
}

/// Asks the kernel about the process or thread that a pidfd is of. ESRCH when
/// it is no more.
pub(crate) fn info(pidfd: c_int) -> Result<Info, Errno> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_PID | PIDFD_INFO_CREDS | PIDFD_INFO_CGROUPID,
        ..PidfdInfo::default()
    };
    // SAFETY: the kernel writes as much as the number of the ioctl says.
    match check(unsafe { libc::ioctl(pidfd, PIDFD_GET_INFO, &mut info) }) {
        Ok(_) if info.mask & PIDFD_INFO_CREDS != 0 => Ok(Info {
            pid: info.pid as libc::pid_t,
            process: info.tgid as libc::pid_t,
            uid: info.ruid,
            cgroup: (info.mask & PIDFD_INFO_CGROUPID != 0).then_some(info.cgroupid),
        }),
        Ok(_) | Err(Errno::ESRCH) => Err(Errno::ESRCH),
        Err(_) => info_from_proc(pidfd),
    }
}

/// The same before Linux 6.13. The process may go away between two files: the
/// caller asks the pidfd afterwards.
fn info_from_proc(pidfd: c_int) -> Result<Info, Errno> {
    let line = |text: &str, name: &str| -> Option<i64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    };
    let text = read_lines(&format!("/proc/self/fdinfo/{pidfd}"))?;
    let pid = line(&text, "Pid:")
        .filter(|pid| *pid > 0)
        .ok_or(Errno::ESRCH)?;
    let text = read_lines(&format!("/proc/{pid}/status"))?;
    let read = |name| line(&text, name).ok_or(Errno::EPROTO);
    Ok(Info {
        pid: pid as libc::pid_t,
        process: read("Tgid:")? as libc::pid_t,
        uid: read("Uid:")? as u32,
        cgroup: None,
    })
}

/// Reads a file of /proc: the lines that can be understood.
pub(crate) fn read_lines(path: &str) -> Result<String, Errno> {
    fs::read(path).map(utf8_lines).map_err(errno)
}

/// The lines that are UTF-8. Names of processes, cgroups and mount points need
/// not be, and whoever gives one must not take the other lines away.
pub(crate) fn utf8_lines(text: Vec<u8>) -> String {
    String::from_utf8(text).unwrap_or_else(|error| {
        let lines = error.as_bytes().split_inclusive(|byte| *byte == b'\n');
        lines.filter_map(|line| str::from_utf8(line).ok()).collect()
    })
}

/// The errno of a file of /proc; one of a process that is no more is not there.
pub(crate) fn errno(error: std::io::Error) -> Errno {
    let errnum = error.raw_os_error().map_or(Errno::EIO, Errno);
    no_more(errnum)
}

/// The same of an errno that is known.
pub(crate) fn no_more(errnum: Errno) -> Errno {
    match errnum.0 {
        libc::ENOENT => Errno::ESRCH,
        _ => errnum,
    }
}

/// The number that the delegate's own PID namespace has for what is `id` in
/// another, given by a descriptor of it. Linux 6.11.
pub(crate) fn translate(namespace: &impl AsRawFd, id: libc::pid_t) -> Result<libc::pid_t, Errno> {
    /// _IOR(NSIO, 0x6, int)
    const NS_GET_PID_FROM_PIDNS: libc::Ioctl =
        (2 << 30 | size_of::<c_int>() << 16 | 0xb7 << 8 | 6) as libc::Ioctl;
    // SAFETY: numbers only.
    check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PID_FROM_PIDNS, id) })
        .map(|id| id as libc::pid_t)
}

/// The same before Linux 6.11: the threads of `process`, by the numbers that
/// they have in the namespace `depth` levels below ours.
pub(crate) fn threads_by_number(
    process: Pid,
    depth: usize,
) -> Result<HashMap<libc::pid_t, libc::pid_t>, Errno> {
    let mut threads = Vec::new();
    for_each_thread(process, |tid| threads.push(tid)).map_err(no_more)?;
    let mut by_number = HashMap::new();
    for tid in threads {
        match numbers(&format!("/proc/{process}/task/{tid}/status")) {
            Ok(numbers) => by_number.extend(numbers.get(depth).map(|&number| (number, tid))),
            // It has exited meanwhile.
            Err(Errno::ESRCH) => {}
            Err(errnum) => return Err(errnum),
        }
    }
    Ok(by_number)
}

/// The numbers of a process or thread in its PID namespace and those above, the
/// delegate's first.
pub(crate) fn numbers(status: &str) -> Result<Vec<libc::pid_t>, Errno> {
    let text = read_lines(status)?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers = line.map(|line| line.split_whitespace().map(str::parse).collect());
    numbers.and_then(Result::ok).ok_or(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_utf_8_takes_no_other_away() {
        for (text, lines) in [
            (&b"Name:\tx\nPid:\t1\n"[..], "Name:\tx\nPid:\t1\n"),
            (b"Name:\t\xff\nPid:\t1\n", "Pid:\t1\n"),
            (b"1:pids:/a\n0::/\xc3", "1:pids:/a\n"),
        ] {
            assert_eq!(utf8_lines(text.to_vec()), lines, "{}", text.escape_ascii());
        }
    }
}
