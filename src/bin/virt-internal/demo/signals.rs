// SPDX-License-Identifier: LGPL-2.1-or-later
//! Ctrl-C and the like: held back until everything is tidied up.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

const SIGNALS: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Signals that end this process do so when this is dropped.
pub struct Signals {
    before: libc::sigset_t,
    /// Those that do: one that is ignored, as nohup has it, is none of them.
    held_back: Vec<libc::c_int>,
}

impl Signals {
    pub fn hold_back() -> Signals {
        let mut before = MaybeUninit::uninit();
        let held_back: Vec<_> = SIGNALS
            .into_iter()
            .filter(|signal| !is_ignored(*signal))
            .collect();
        // SAFETY: there are such signals; the kernel writes the set before.
        unsafe {
            let mut set = empty();
            for signal in &held_back {
                libc::sigaddset(&mut set, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, before.as_mut_ptr());
            Signals {
                before: before.assume_init(),
                held_back,
            }
        }
    }

    /// Fails where there is one, so that no more is begun.
    pub fn require_none(&self) -> io::Result<()> {
        let mut pending = empty();
        // SAFETY: the kernel writes one set, of which members are asked for.
        let is_one = unsafe {
            libc::sigpending(&mut pending);
            self.held_back
                .iter()
                .any(|signal| libc::sigismember(&pending, *signal) == 1)
        };
        match is_one {
            true => Err(io::Error::from(io::ErrorKind::Interrupted)),
            false => Ok(()),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the set that was in force.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// For a child between fork() and exec: it gets every signal.
pub fn hold_none_back() {
    // SAFETY: an empty set; async-signal-safe.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &empty(), ptr::null_mut()) };
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the kernel writes what is in force, unless it fails.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn empty() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: it initializes the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
