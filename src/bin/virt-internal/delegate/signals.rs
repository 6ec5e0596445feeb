// SPDX-License-Identifier: LGPL-2.1-or-later
//! Signals as things to read: nothing runs inside a handler.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use libc::c_int;

/// What a signal asks for.
pub enum Signal {
    Reload,
    Stop(c_int),
}

/// The signals that the delegate obeys, kept from ending the process.
pub struct Signals(File);

const OBEYED: [c_int; 3] = [libc::SIGHUP, libc::SIGTERM, libc::SIGINT];

fn set(signals: &[c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills it, sigaddset changes what is filled.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

impl Signals {
    /// For this thread, and those that it starts.
    pub fn take_over() -> io::Result<Signals> {
        // A reader of audit lines that went away, and a file that may not grow
        // any more, are errors like others.
        for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
            // SAFETY: no handler is set.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let set = set(&OBEYED);
        // SAFETY: a set; the old one is not wanted.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => {}
            errnum => return Err(io::Error::from_raw_os_error(errnum)),
        }
        // SAFETY: a set; the kernel returns a new descriptor.
        match unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: just made.
            fd => Ok(Signals(unsafe { File::from_raw_fd(fd) })),
        }
    }

    /// The next signal, or `None` when there was none for that long.
    pub fn wait(&self, time: Option<Duration>) -> io::Result<Option<Signal>> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let milliseconds = match time {
            // Rounded up, or the end of it would be waited for in a loop.
            Some(time) => c_int::try_from(time.as_millis() + 1).unwrap_or(c_int::MAX),
            None => -1,
        };
        // SAFETY: one pollfd.
        unsafe { libc::poll(&mut poll, 1, milliseconds) };
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match (&self.0).read(&mut info) {
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return Ok(None),
                _ => return Err(error),
            },
        }
        // The number comes first.
        let number = [info[0], info[1], info[2], info[3]];
        Ok(Some(match u32::from_ne_bytes(number) as c_int {
            libc::SIGHUP => Signal::Reload,
            signal => Signal::Stop(signal),
        }))
    }
}

/// Ends this process by that signal, as if it had not been taken over.
pub fn die_of(signal: c_int) -> ! {
    let set = set(&[signal]);
    // SAFETY: a default is restored, and the signal let through to this thread.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
    }
    std::process::abort()
}
