// SPDX-License-Identifier: LGPL-2.1-or-later
//! Processes and threads: their ids, to whom a thread belongs, and holding a
//! process so that its number cannot become another's unnoticed.

use core::fmt;

use crate::errno::Errno;

use super::check;
use super::file::{self, Fd, Text};
use super::syscall::syscall;
use crate::error::{Error, Result};
use crate::thread;

/// The id of a process, greater than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pid(libc::pid_t);

impl Pid {
    #[inline(always)]
    pub(crate) fn new(pid: libc::pid_t) -> Result<Pid> {
        if pid <= 0 {
            return Err(Error::invalid(format_args!(
                "pid {pid} is not the id of a process: it must be 1 or more"
            )));
        }
        Ok(Pid(pid))
    }

    pub(crate) fn get(self) -> libc::pid_t {
        self.0
    }

    /// Fails unless there is such a process.
    pub(crate) fn require(self) -> Result<()> {
        match exists(self.0) {
            true => Ok(()),
            false => Err(Error::no_process(format_args!(
                "there is no process {self}"
            ))),
        }
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A thread of a process, by its numbers.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) pid: Pid,
    tid: libc::pid_t,
}

/// Whose a thread id is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The process's in question.
    Process,
    /// Another process's.
    Other,
    /// Nobody's: the thread has exited, or never was.
    Nobody,
}

impl Task {
    #[inline(always)]
    pub(crate) fn new(pid: Pid, tid: libc::pid_t) -> Result<Task> {
        if tid <= 0 {
            return Err(Error::invalid(format_args!(
                "tid {tid} is not the id of a thread: it must be 1 or more"
            )));
        }
        Ok(Task { pid, tid })
    }

    pub(crate) fn tid(self) -> libc::pid_t {
        self.tid
    }

    /// Whose the thread is. A process that does not exist has no threads.
    pub(crate) fn owner(self) -> Owner {
        // SAFETY: signal 0 is not sent, it only asks.
        let asked = unsafe { libc::syscall(libc::SYS_tgkill, self.pid.0, self.tid, 0) };
        // Whatever else it says, it says of a thread that the process has.
        match check(asked) {
            Err(Errno::ESRCH) if exists(self.tid) => Owner::Other,
            Err(Errno::ESRCH) => Owner::Nobody,
            _ => Owner::Process,
        }
    }

    /// Whether the thread has exited, but is still there to be waited for: a
    /// process's first thread while others run, or one that is traced.
    pub(crate) fn is_zombie(self) -> bool {
        let Task { pid, tid } = self;
        let path = Text::<64>::new(format_args!("/proc/{pid}/task/{tid}/stat"));
        let mut buffer = [0; 512];
        let status = file::open(path.as_c_str(), libc::O_RDONLY)
            .and_then(|file| file::read(&file, &mut buffer))
            .map_or(&[][..], |length| &buffer[..length]);
        // The name before it can have any character, also parentheses.
        let mut fields = status.rsplitn(2, |&byte| byte == b')');
        fields
            .next()
            .is_some_and(|fields| matches!(fields, [b' ', b'Z' | b'X', ..]))
    }

    /// Fails unless the thread is one of the process's, before and after
    /// `act`.
    ///
    /// A process's first thread has the process's id, and a thread that asks
    /// for itself is there: neither is asked of the kernel.
    #[inline(always)]
    pub(crate) fn required_around(self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.tid == self.pid.0 || thread::is_own(self.pid.0, self.tid) {
            return act();
        }
        self.require()?;
        act()?;
        self.require_still()
    }

    /// Fails unless the thread is one of the process's.
    pub(crate) fn require(self) -> Result<()> {
        let Task { pid, tid } = self;
        let owner = self.owner();
        if owner != Owner::Process {
            pid.require()?;
        }
        match owner {
            Owner::Process => Ok(()),
            Owner::Nobody => Err(Error::no_process(format_args!(
                "process {pid} has no thread {tid}"
            ))),
            Owner::Other => Err(Error::invalid(format_args!(
                "thread {tid} does not belong to process {pid}"
            ))),
        }
    }

    /// Fails unless the thread is still one of the process's.
    pub(crate) fn require_still(self) -> Result<()> {
        self.require().map_err(|_| self.gone())
    }

    /// The error when it is not there any more.
    #[cold]
    pub(crate) fn gone(self) -> Error {
        Error::no_process(format_args!("{self} went away meanwhile"))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tid == self.pid.0 {
            true => write!(f, "process {}", self.pid),
            false => write!(f, "thread {} of process {}", self.tid, self.pid),
        }
    }
}

/// Whether there is a process or thread with that id.
pub(crate) fn exists(id: libc::pid_t) -> bool {
    // SAFETY: signal 0 is not sent, it only asks.
    unsafe { libc::kill(id, 0) == 0 || Errno::last() != Errno::ESRCH }
}

/// A process, and maybe one of its threads, whose ids cannot be given to
/// another without being noticed as long as this lives.
pub(crate) struct Held {
    pid: Pid,
    process: Fd,
    was_known: bool,
    thread: Option<(Task, Option<Fd>)>,
}

/// A process's descriptor that is kept from one operation to the next.
pub(crate) struct Known {
    pub(crate) pid: libc::pid_t,
    pub(crate) fd: Fd,
}

impl Held {
    /// Holds a process: by the descriptor that is known, if it is that
    /// process's, for then the number is still its own.
    #[inline(always)]
    pub(crate) fn process(pid: Pid, known: Option<Known>) -> Result<Held> {
        let known = known.and_then(|known| match known.pid == pid.0 {
            true => match has_exited(&known.fd) {
                Ok(exited) => (!exited).then_some(known.fd),
                // Somebody closed it: what has its number next is not ours to
                // close.
                Err(_) => {
                    known.fd.into_raw();
                    None
                }
            },
            false => None,
        });
        let was_known = known.is_some();
        Ok(Held {
            pid,
            process: match known {
                Some(fd) => fd,
                None => open_pidfd(pid)?,
            },
            was_known,
            thread: None,
        })
    }

    /// Whether the descriptor was known before.
    pub(crate) fn was_known(&self) -> bool {
        self.was_known
    }

    /// What is known from now on.
    pub(crate) fn into_known(self) -> Known {
        Known {
            pid: self.pid.0,
            fd: self.process,
        }
    }

    /// Holds a process, and maybe a thread, by descriptors that a client sent.
    #[cfg(feature = "delegate")]
    pub(crate) fn received(pid: Pid, process: Fd, thread: Option<(Task, Option<Fd>)>) -> Held {
        Held {
            pid,
            process,
            was_known: false,
            thread,
        }
    }

    /// Holds a process and a thread that must be one of its own.
    pub(crate) fn task(task: Task, known: Option<Known>) -> Result<Held> {
        let mut held = Held::process(task.pid, known)?;
        if task.tid != task.pid.0 {
            // Linux 6.9; before that the id alone has to do.
            let thread = pidfd_open(task.tid, libc::PIDFD_THREAD).ok();
            task.require()?;
            held.thread = Some((task, thread));
        }
        Ok(held)
    }

    /// The process.
    pub(crate) fn process_fd(&self) -> libc::c_int {
        self.process.get()
    }

    /// The thread, if it is not the process's first. `None` inside: the kernel
    /// has no descriptors of threads.
    pub(crate) fn thread_fd(&self) -> Option<Option<libc::c_int>> {
        let (_, fd) = self.thread.as_ref()?;
        Some(fd.as_ref().map(Fd::get))
    }

    /// Fails unless all is still there: then the ids have meant the same
    /// process and thread all the time since they were held.
    #[inline(always)]
    pub(crate) fn require_still(&self) -> Result<()> {
        if has_exited(&self.process)? {
            return Err(Error::no_process(format_args!(
                "process {} went away meanwhile",
                self.pid
            )));
        }
        let Some((task, pidfd)) = &self.thread else {
            return Ok(());
        };
        match pidfd {
            Some(pidfd) if has_exited(pidfd)? => Err(task.gone()),
            // Threads do not change their process.
            Some(_) => Ok(()),
            None => task.require_still(),
        }
    }
}

#[inline(always)]
pub(crate) fn pidfd_open(id: libc::pid_t, flags: libc::c_uint) -> core::result::Result<Fd, Errno> {
    // SAFETY: numbers only; the kernel returns a new descriptor, close-on-exec.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })?;
    // SAFETY: just opened.
    Ok(unsafe { Fd::new(fd) })
}

#[inline(always)]
fn open_pidfd(pid: Pid) -> Result<Fd> {
    pidfd_open(pid.0, 0).map_err(|errnum| match errnum {
        Errno::ESRCH => Error::no_process(format_args!("there is no process {pid}")),
        // EINVAL until Linux 6.9, ENOENT since.
        Errno::EINVAL | Errno::ENOENT => Error::invalid(format_args!(
            "pid {pid} is the id of a thread, not of a process"
        )),
        Errno::ENOSYS => Error::unsupported(format_args!(
            "cannot hold process {pid} while a handler runs: the kernel has no pidfd_open() \
             (Linux 5.3), or a seccomp filter or valgrind (before 3.21) hides it"
        )),
        _ => Error::failed(
            errnum,
            format_args!("cannot hold process {pid} by pidfd_open() while a handler runs"),
        ),
    })
}

/// Whether the process or thread has exited, be it reaped or not.
#[inline(always)]
pub(crate) fn has_exited(pidfd: &Fd) -> Result<bool> {
    let mut poll = libc::pollfd {
        fd: pidfd.get(),
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        match poll_now(&mut poll) {
            Err(Errno::EINTR) => {}
            Err(errnum) => {
                return Err(Error::failed(
                    errnum,
                    format_args!("cannot tell whether the process is still there"),
                ));
            }
            Ok(_) if poll.revents & libc::POLLNVAL != 0 => {
                return Err(Error::read_back(format_args!(
                    "the descriptor that held the process was closed meanwhile"
                )));
            }
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

/// poll() without waiting. libc's is a point where threads are cancelled.
#[inline(always)]
fn poll_now(poll: &mut libc::pollfd) -> core::result::Result<usize, Errno> {
    let poll = core::ptr::from_mut(poll) as usize;
    // SAFETY: one pollfd.
    #[cfg(target_arch = "x86_64")]
    return unsafe { syscall(libc::SYS_poll, [poll, 1, 0, 0]) };
    // What newer processors have in its place takes 90 ns longer.
    #[cfg(not(target_arch = "x86_64"))]
    {
        let no_time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: one pollfd, no waiting, and no signal mask.
        unsafe { syscall(libc::SYS_ppoll, [poll, 1, &raw const no_time as usize, 0]) }
    }
}

/// Calls `each` with the id of every thread of a process.
pub(crate) fn for_each_thread(
    pid: Pid,
    mut each: impl FnMut(libc::pid_t),
) -> core::result::Result<(), Errno> {
    let path = Text::<64>::new(format_args!("/proc/{pid}/task"));
    let directory = file::open(path.as_c_str(), libc::O_RDONLY | libc::O_DIRECTORY)?;
    // readdir() allocates; getdents64() fills a buffer of ours.
    #[repr(C, align(8))]
    struct Entries([u8; 4096]);
    const NAME: usize = core::mem::offset_of!(libc::dirent64, d_name);
    const LENGTH: usize = core::mem::offset_of!(libc::dirent64, d_reclen);
    let mut entries = Entries([0; 4096]);
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let length = check(unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                directory.get(),
                entries.0.as_mut_ptr(),
                entries.0.len(),
            )
        })? as usize;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &entries.0[..length];
        while let Some(&[low, high]) = rest.get(LENGTH..LENGTH + 2) {
            let (entry, next) = rest.split_at(usize::from(u16::from_ne_bytes([low, high])));
            let name = core::ffi::CStr::from_bytes_until_nul(&entry[NAME..]);
            let tid = name.ok().and_then(|name| name.to_str().ok()?.parse().ok());
            tid.into_iter().for_each(&mut each);
            rest = next;
        }
    }
}
