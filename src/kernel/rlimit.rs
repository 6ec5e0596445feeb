// SPDX-License-Identifier: LGPL-2.1-or-later
//! Resource limits of processes.

use core::fmt;

use crate::errno::Errno;

use super::file::{self, Text};
use super::process::Pid;
use super::syscall::syscall;
use crate::fork::getpid;

/// A limit that operations set.
pub(crate) struct Resource {
    number: libc::__rlimit_resource_t,
    /// libvirt's words for it, as in "cannot limit ... of process".
    pub(crate) words: &'static str,
    /// Its line in /proc/PID/limits.
    line: &'static str,
}

pub(crate) static MEMLOCK: Resource = Resource {
    number: libc::RLIMIT_MEMLOCK,
    words: "locked memory",
    line: "Max locked memory",
};

pub(crate) static NPROC: Resource = Resource {
    number: libc::RLIMIT_NPROC,
    words: "number of subprocesses",
    line: "Max processes",
};

pub(crate) static NOFILE: Resource = Resource {
    number: libc::RLIMIT_NOFILE,
    words: "number of open files",
    line: "Max open files",
};

pub(crate) static CORE: Resource = Resource {
    number: libc::RLIMIT_CORE,
    words: "core file size",
    line: "Max core file size",
};

/// A limit as the kernel has it; `RLIM_INFINITY` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (hard {})", Shown(self.soft), Shown(self.hard))
    }
}

/// A limit's number in words.
struct Shown(u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            libc::RLIM_INFINITY => f.write_str("unlimited"),
            number => number.fmt(f),
        }
    }
}

#[inline(always)]
unsafe fn prlimit(
    resource: &'static Resource,
    pid: Pid,
    new: *const libc::rlimit,
    old: *mut libc::rlimit,
) -> Result<(), Errno> {
    // An rlimit is the kernel's rlimit64 where longs have 64 bits.
    // SAFETY: the caller's word.
    unsafe {
        syscall(
            libc::SYS_prlimit64,
            [
                pid.get() as usize,
                resource.number as usize,
                new as usize,
                old as usize,
            ],
        )
    }
    .map(|_| ())
}

/// Sets soft and hard limit to `value`.
#[inline(always)]
pub(crate) fn set(resource: &'static Resource, pid: Pid, value: u64) -> Result<(), Errno> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the kernel reads one rlimit; there is no old one to write.
    let set = unsafe { prlimit(resource, pid, &limit, core::ptr::null_mut()) };
    set.or_else(|refused| set_own(resource, pid, &limit, refused))
}

/// As [`set`]; returns what was there before, taken in the same moment.
#[cfg(feature = "delegate")]
pub(crate) fn replace(resource: &'static Resource, pid: Pid, value: u64) -> Result<Limit, Errno> {
    let new = Limit {
        soft: value,
        hard: value,
    };
    exchange(resource, pid, new)
}

/// Sets both limits; returns what was there before.
#[cfg(feature = "delegate")]
pub(crate) fn exchange(resource: &'static Resource, pid: Pid, new: Limit) -> Result<Limit, Errno> {
    let new = libc::rlimit {
        rlim_cur: new.soft,
        rlim_max: new.hard,
    };
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel reads one rlimit and writes another.
    unsafe { prlimit(resource, pid, &new, &mut old) }?;
    Ok(Limit {
        soft: old.rlim_cur,
        hard: old.rlim_max,
    })
}

/// What is left where prlimit() failed: a process may be allowed to set its
/// own limits by setrlimit() only (libvirt's virProcessSetLimit).
#[cold]
fn set_own(
    resource: &'static Resource,
    pid: Pid,
    limit: &libc::rlimit,
    refused: Errno,
) -> Result<(), Errno> {
    // SAFETY: the kernel reads one rlimit.
    match pid.get() == getpid() && unsafe { libc::setrlimit(resource.number, limit) } == 0 {
        true => Ok(()),
        false => Err(refused),
    }
}

/// The limit as the kernel has it.
#[inline(always)]
pub(crate) fn get(resource: &'static Resource, pid: Pid) -> Result<Limit, Errno> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit; nothing is set.
    let got = unsafe { prlimit(resource, pid, core::ptr::null(), &mut limit) };
    match got {
        Ok(_) => Ok(Limit {
            soft: limit.rlim_cur,
            hard: limit.rlim_max,
        }),
        // Another user's process: CAP_SYS_RESOURCE is needed even to read,
        // but not for this file.
        Err(Errno::EPERM) => get_from_proc(resource, pid),
        Err(errnum) => Err(errnum),
    }
}

fn get_from_proc(resource: &'static Resource, pid: Pid) -> Result<Limit, Errno> {
    let path = Text::<64>::new(format_args!("/proc/{pid}/limits"));
    let file = file::open(path.as_c_str(), libc::O_RDONLY)?;
    let mut buffer = [0; 4096];
    let mut length = 0;
    loop {
        match file::read(&file, &mut buffer[length..])? {
            0 => break,
            read => length += read,
        }
    }
    parse_limits(&buffer[..length], resource.line).ok_or(Errno::EPROTO)
}

/// Finds one limit in the text of /proc/PID/limits.
fn parse_limits(limits: &[u8], line: &str) -> Option<Limit> {
    let mut words = limits
        .split(|&byte| byte == b'\n')
        .find_map(|text| text.strip_prefix(line.as_bytes()))?
        .split(|&byte| byte == b' ')
        .filter(|word| !word.is_empty());
    let mut next = || match words.next()? {
        b"unlimited" => Some(libc::RLIM_INFINITY),
        number => str::from_utf8(number).ok()?.parse().ok(),
    };
    Some(Limit {
        soft: next()?,
        hard: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_proc_and_the_system_call_say_the_same() {
        let pid = Pid::new(std::process::id() as i32).unwrap();
        for resource in [&MEMLOCK, &NPROC, &NOFILE, &CORE] {
            let by_call = get(resource, pid).unwrap();
            let by_file = get_from_proc(resource, pid).unwrap();
            assert!(
                by_call == by_file,
                "{}: {by_call} != {by_file}",
                resource.words
            );
        }
    }

    #[test]
    fn unlimited_is_infinity_and_a_line_that_is_missing_is_an_error() {
        let text = "Limit          Soft Limit  Hard Limit  Units\n\
                    Max open files 1024        unlimited   files\n";
        let limit = parse_limits(text.as_bytes(), NOFILE.line).unwrap();
        assert!(limit.soft == 1024 && limit.hard == libc::RLIM_INFINITY);
        assert!(parse_limits(text.as_bytes(), CORE.line).is_none());
    }
}
