// SPDX-License-Identifier: LGPL-2.1-or-later
//! Processes and threads that go away while a handler runs, and whose ids are
//! then another's.

use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};
use nix::errno::Errno;

use crate::Skip;
use crate::child::Child;
use crate::library::*;
use crate::scheduling::{self, FIFO, set_by_handler};

/// A process of ours that has the id of one that has ended. It ends with this.
struct Successor(pid_t);

impl Successor {
    /// The kernel may say of a thread that it is gone a moment before its id
    /// is free.
    fn new(id: pid_t) -> Result<Successor, Errno> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match Successor::try_new(id) {
                Err(Errno::EEXIST) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    fn try_new(id: pid_t) -> Result<Successor, Errno> {
        let ids = [id];
        // SAFETY: all zeros are a clone_args: a fork, without a signal.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.set_tid = ids.as_ptr() as u64;
        arguments.set_tid_size = 1;
        arguments.exit_signal = libc::SIGCHLD as u64;
        let size = size_of::<libc::clone_args>();
        // SAFETY: the ids live until it returns. The child has memory of its
        // own, and only waits to be killed, by us or by our end.
        unsafe {
            match Errno::result(libc::syscall(libc::SYS_clone3, &arguments, size))? {
                0 => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    loop {
                        libc::pause();
                    }
                }
                pid => assert_eq!(pid, i64::from(id), "the id that clone3() was asked for"),
            }
        }
        Ok(Successor(id))
    }

    /// Skips the test unless ids can be chosen here.
    fn probe() -> Result<(), Skip> {
        let child = Child::start(0)?;
        child.kill();
        child.reap();
        match Successor::new(child.pid()) {
            Ok(_) => Ok(()),
            Err(errnum) => Err(Skip(format!(
                "CAP_CHECKPOINT_RESTORE: clone3() with a chosen id says {errnum:?}"
            ))),
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // SAFETY: a child of ours; nothing is written.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A handler's work on a process of our own: without a privilege a limit can
/// be lowered.
fn lower_memlock(pid: pid_t, bytes: u64) -> c_int {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: the kernel reads one rlimit; there is no old one to write.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_MEMLOCK, &limit, std::ptr::null_mut()) };
    Errno::result(set).map_or_else(|errnum| -(errnum as c_int), |_| VIR_INTERNAL_HANDLED)
}

pub fn a_process_that_exits_in_a_handler_is_found_out() -> Result<(), Skip> {
    let child = Child::start(0)?;
    let _handled = handle_max_mem_lock(|_, _| {
        child.kill();
        VIR_INTERNAL_HANDLED
    });
    // Nobody has reaped it: it still has its id, and the limit asked for.
    set_max_mem_lock(child.pid(), 4096)
        .expect_err("the process has exited")
        .expect(VIR_INTERNAL_ERR_NO_PROCESS, Errno::ESRCH);
    Ok(())
}

pub fn a_process_id_that_becomes_anothers_is_found_out() -> Result<(), Skip> {
    Successor::probe()?;
    let child = Child::start(0)?;
    let successor = std::cell::OnceCell::new();
    let _handled = handle_max_mem_lock(|pid, bytes| {
        child.kill();
        child.reap();
        let _ = successor.set(Successor::new(pid).expect("the id is free"));
        lower_memlock(pid, bytes)
    });
    // The kernel would say of that id what was asked for.
    set_max_mem_lock(child.pid(), 2048)
        .expect_err("the id is another process's")
        .expect(VIR_INTERNAL_ERR_NO_PROCESS, Errno::ESRCH);
    Ok(())
}

pub fn a_thread_that_exits_in_a_handler_is_found_out() -> Result<(), Skip> {
    let child = scheduling::child()?;
    let _handled = handle_scheduler(|_, tid, policy, priority| {
        let answer = set_by_handler(tid, policy, priority);
        child.end_thread(tid);
        answer
    });
    set_scheduler(child.pid(), child.tids[0], FIFO, 1)
        .expect_err("the thread has exited")
        .expect(VIR_INTERNAL_ERR_NO_PROCESS, Errno::ESRCH);
    Ok(())
}

pub fn a_thread_id_that_becomes_anothers_is_found_out() -> Result<(), Skip> {
    Successor::probe()?;
    let child = scheduling::child()?;
    let successor = std::cell::OnceCell::new();
    let _handled = handle_scheduler(|_, tid, policy, priority| {
        child.end_thread(tid);
        let _ = successor.set(Successor::new(tid).expect("the id is free"));
        set_by_handler(tid, policy, priority)
    });
    set_scheduler(child.pid(), child.tids[0], FIFO, 1)
        .expect_err("the id is another process's")
        .expect(VIR_INTERNAL_ERR_NO_PROCESS, Errno::ESRCH);
    Ok(())
}

/// Before Linux 6.9 a thread has no pidfd of its own.
pub fn threads_are_held_without_pidfd_thread() -> Result<(), Skip> {
    let child = scheduling::child()?;
    // SAFETY: numbers only.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.tids[0], libc::PIDFD_THREAD) };
    if let Ok(pidfd) = Errno::result(pidfd) {
        // SAFETY: just opened, and nobody else's.
        unsafe { libc::close(pidfd as c_int) };
        return Err(Skip(
            "a kernel before 6.9, which lacks PIDFD_THREAD".to_owned(),
        ));
    }
    assert_eq!(
        Errno::last(),
        Errno::EINVAL,
        "pidfd_open() with PIDFD_THREAD"
    );
    let _handled =
        handle_scheduler(|_, tid, policy, priority| set_by_handler(tid, policy, priority));
    set_scheduler(child.pid(), child.tids[0], FIFO, 1).unwrap();
    drop(child);
    a_thread_that_exits_in_a_handler_is_found_out()?;
    a_thread_id_that_becomes_anothers_is_found_out()
}

pub fn a_thread_id_in_the_place_of_a_process_id_is_an_error() -> Result<(), Skip> {
    let child = Child::start(1)?;
    let _handled = handle_max_mem_lock(|_, _| panic!("the handler must not be asked"));
    set_max_mem_lock(child.tids[0], 4096)
        .expect_err("it is the id of a thread")
        .expect(VIR_INTERNAL_ERR_INVALID_ARG, Errno::EINVAL);
    Ok(())
}
