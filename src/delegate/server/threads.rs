// SPDX-License-Identifier: LGPL-2.1-or-later
//! Threads of a process, moved between cgroups.
//!
//! cgroupfs takes numbers, and a thread may exit before its number is written:
//! then whoever got it is moved. So it is asked right before each write, and
//! after it, whose the number is, and who was moved in error is moved back.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use libc::{c_int, pid_t};

use super::cgroupfs;
use super::pidfd::{no_more, read_lines, utf8_lines};
use crate::delegate::policy::path_in;
use crate::errno::Errno;
use crate::kernel::cgroup::{Group, Threads, Version};
use crate::kernel::check;
use crate::kernel::file::{self, Fd};
use crate::kernel::process::{self, Owner, Pid, Task, has_exited, pidfd_open};

/// A process, held by descriptors.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) pidfd: Fd,
    /// Its directory of threads: it has nobody else's, whoever has the number.
    tasks: Fd,
    strays: Cell<usize>,
}

/// What became of a thread that was written to a cgroup's file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    There,
    /// It has exited, or is about to.
    Gone,
    /// Somebody else has moved it again.
    Elsewhere,
}

/// A thread's result: 0 or -errno.
pub(crate) fn result_of(moved: Result<Moved, Errno>) -> c_int {
    match moved {
        Ok(Moved::There) => 0,
        Ok(Moved::Gone) => -libc::ESRCH,
        Ok(Moved::Elsewhere) => -Errno::EREMOTEIO.0,
        Err(errnum) => -errnum.0,
    }
}

/// A cgroup that threads are moved to.
pub(crate) struct Place<'a> {
    threads: Threads,
    version: Version,
    path: &'a str,
    /// The hierarchy, as a line of /proc/PID/cgroup has it.
    controllers: &'a str,
}

impl<'a> Place<'a> {
    pub(crate) fn new(
        group: &Group,
        path: &'a str,
        controllers: &'a str,
    ) -> Result<Place<'a>, Errno> {
        Ok(Place {
            threads: group.threads()?,
            version: group.version(),
            path,
            controllers,
        })
    }
}

impl Process {
    /// The process that was sent as `received`.
    pub(crate) fn hold(pid: Pid, received: c_int) -> Result<Process, Errno> {
        // A descriptor of our own: that of the peer's is shared with it.
        let pidfd = pidfd_open(pid.get(), 0)?;
        let tasks = CString::new(format!("/proc/{pid}/task")).map_err(|_| Errno::EINVAL)?;
        let tasks = file::open(&tasks, libc::O_PATH | libc::O_DIRECTORY).map_err(no_more)?;
        let mut poll = libc::pollfd {
            fd: received,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        match check(i64::from(unsafe { libc::poll(&mut poll, 1, 0) }))? {
            0 => Ok(Process {
                pid,
                pidfd,
                tasks,
                strays: Cell::new(0),
            }),
            _ => Err(Errno::ESRCH),
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        is_gone(&self.pidfd)
    }

    /// A thread's directory: it is of nobody who gets the number later.
    pub(crate) fn thread(&self, tid: pid_t) -> Option<Thread> {
        let name = CString::new(tid.to_string()).ok()?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        file::open_at(&self.tasks, &name, flags).ok().map(Thread)
    }

    pub(crate) fn all(&self) -> Result<Vec<pid_t>, Errno> {
        let mut all = Vec::new();
        process::for_each_thread(self.pid, |tid| all.push(tid)).map_err(no_more)?;
        Ok(all)
    }

    /// How many of others' threads were moved, and moved back.
    pub(crate) fn strays(&self) -> usize {
        self.strays.get()
    }

    /// Whether the number is a thread's of the process.
    fn has(&self, tid: pid_t) -> bool {
        let task = Task::new(self.pid, tid);
        // In this order: then the process's number was its own.
        task.is_ok_and(|task| task.owner() == Owner::Process) && !self.is_gone()
    }

    /// Moves a thread of the process.
    pub(crate) fn move_thread(&self, tid: pid_t, to: &Place<'_>) -> Result<Moved, Errno> {
        if !self.has(tid) {
            return Ok(Moved::Gone);
        }
        match to.threads.add(tid) {
            Err(Errno::ESRCH) => return Ok(Moved::Gone),
            Err(errnum) => return Err(errnum),
            Ok(()) => {}
        }
        // If it is the process's now, nobody is left who had it meanwhile.
        match self.has(tid) {
            true => Ok(Moved::There),
            false => self.return_stray(tid, to).map(|()| Moved::Gone),
        }
    }

    /// Reads where a thread is that was moved.
    pub(crate) fn find(&self, tid: pid_t, to: &Place<'_>) -> Result<Moved, Errno> {
        let Some(thread) = self.thread(tid) else {
            return Ok(Moved::Gone);
        };
        match thread.cgroup(to.controllers) {
            Err(Errno::ESRCH) => Ok(Moved::Gone),
            Err(errnum) => Err(errnum),
            Ok(path) if path == to.path => Ok(Moved::There),
            Ok(_) if thread.is_exiting() => Ok(Moved::Gone),
            Ok(_) => Ok(Moved::Elsewhere),
        }
    }

    /// Takes who got the number of a thread, or of the process, out of the
    /// cgroup again: to where the one is that made it, from which it had its
    /// own.
    pub(crate) fn return_stray(&self, tid: pid_t, from: &Place<'_>) -> Result<(), Errno> {
        let path = |id: pid_t| {
            let text = read_lines(&format!("/proc/{id}/cgroup")).ok()?;
            path_in(&text, from.controllers).map(str::to_owned)
        };
        let Ok(status) = read_lines(&format!("/proc/{tid}/status")) else {
            return Ok(());
        };
        let number = |name: &str| -> Option<pid_t> {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().parse().ok()
        };
        let (Some(process), Some(parent)) = (number("Tgid:"), number("PPid:")) else {
            return Ok(());
        };
        let is_own = process == self.pid.get() && !self.is_gone();
        if is_own || path(tid).as_deref() != Some(from.path) {
            return Ok(());
        }
        let maker = if process == tid { parent } else { process };
        let Some(origin) = path(maker).filter(|origin| origin != from.path) else {
            return Ok(());
        };
        let put = || -> Result<(), Errno> {
            let origin = Group::of(cgroupfs::open(from.controllers, &origin)?, from.version);
            match origin.threads()?.add(tid) {
                // A domain takes whole processes from others.
                Err(Errno::EOPNOTSUPP) => origin.processes()?.add(process),
                put => put,
            }
        };
        match put() {
            Ok(()) => self.strays.set(self.strays.get() + 1),
            Err(Errno::ESRCH) => {}
            Err(_) => return Err(Errno::EREMOTEIO),
        }
        Ok(())
    }
}

pub(crate) fn is_gone(pidfd: &Fd) -> bool {
    has_exited(pidfd).unwrap_or(true)
}

pub(crate) struct Thread(Fd);

impl Thread {
    /// The path of its cgroup, empty if that is not UTF-8; ESRCH when it is no
    /// more.
    pub(crate) fn cgroup(&self, controllers: &str) -> Result<String, Errno> {
        let text = utf8_lines(read_at(&self.0, c"cgroup").map_err(no_more)?);
        Ok(path_in(&text, controllers).unwrap_or_default().to_owned())
    }

    /// The fields of its stat behind its name, which can have any character.
    fn stat(&self) -> Option<Vec<String>> {
        let text = read_at(&self.0, c"stat").ok()?;
        let name = text.iter().rposition(|byte| *byte == b')')?;
        let fields = str::from_utf8(&text[name + 1..]).ok()?;
        Some(fields.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether it has exited or is about to: then the kernel moves it no more,
    /// it makes no threads, and in version 1 it is in the root.
    fn is_exiting(&self) -> bool {
        const PF_EXITING: u32 = 0x4;
        let Some(fields) = self.stat() else {
            return true;
        };
        let is_over = fields
            .first()
            .is_none_or(|state| state == "Z" || state == "X");
        let flags: Option<u32> = fields.get(6).and_then(|flags| flags.parse().ok());
        is_over || flags.is_some_and(|flags| flags & PF_EXITING != 0)
    }

    /// When it started: two threads that have a number one after the other
    /// differ in it.
    pub(crate) fn start(&self) -> Option<u64> {
        self.stat()?.get(19)?.parse().ok()
    }
}

pub(crate) fn read_at(directory: &Fd, name: &CStr) -> Result<Vec<u8>, Errno> {
    let file = file::open_at(directory, name, libc::O_RDONLY)?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match file::read(&file, &mut buffer)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_known_whatever_its_name_is() {
        let start = |name: &CStr| {
            // SAFETY: a C string, which the kernel reads; and no memory.
            let tid = unsafe {
                libc::prctl(libc::PR_SET_NAME, name.as_ptr());
                libc::gettid()
            };
            let path = CString::new(format!("/proc/self/task/{tid}")).expect("no NUL");
            let thread = Thread(file::open(&path, libc::O_PATH).expect("own directory"));
            assert!(!thread.is_exiting(), "{name:?} is there");
            thread.start().expect("when it started")
        };
        let test = std::thread::spawn(move || [c"x", c"x) Z 1 (", c"\xff"].map(start));
        let starts = test.join().expect("no panic");
        assert!(starts.iter().all(|start| *start == starts[0]), "{starts:?}");
    }
}
