// SPDX-License-Identifier: LGPL-2.1-or-later
//! The one socket to a delegate that this process was given by a descriptor.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use libc::c_int;

use super::dialogue::{Deadline, Text, Trouble, greet, now};
use crate::delegate::socket;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::kernel::file::Fd;

/// The one socket of a delegate that was given by a descriptor: threads take
/// turns.
pub(super) struct Only {
    pub(super) turn: UnsafeCell<libc::pthread_mutex_t>,
    pub(super) fd: AtomicI32,
    /// Whether this is a copy, to be closed.
    pub(super) is_own: bool,
    pub(super) speaks: AtomicU64,
    pub(super) greeted: AtomicBool,
}

// SAFETY: the mutex may be locked by any thread, the rest are atomics.
unsafe impl Sync for Only {}

impl Only {
    pub(super) const fn none() -> Only {
        Only::of(-1)
    }

    pub(super) const fn of(fd: c_int) -> Only {
        Only {
            turn: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
            fd: AtomicI32::new(fd),
            is_own: false,
            speaks: AtomicU64::new(0),
            greeted: AtomicBool::new(false),
        }
    }

    pub(super) fn duplicate_of(fd: c_int) -> Result<Only> {
        let invalid = |what: fmt::Arguments<'_>| Error::invalid(format_args!("fd:{fd} {what}"));
        let mut kind: c_int = 0;
        let mut length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes one int.
        let got = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_TYPE,
                (&raw mut kind).cast(),
                &mut length,
            )
        };
        if got != 0 {
            return Err(invalid(format_args!("is not a socket: {}", Errno::last())));
        }
        if kind != libc::SOCK_SEQPACKET {
            return Err(invalid(format_args!("is not a SOCK_SEQPACKET socket")));
        }
        // SAFETY: numbers only; the kernel returns a new descriptor.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        match copy {
            -1 => Err(Error::failed(
                Errno::last(),
                format_args!("cannot copy descriptor {fd}"),
            )),
            copy => {
                let mut only = Only::of(copy);
                only.is_own = true;
                Ok(only)
            }
        }
    }

    /// Waits for its turn.
    pub(super) fn lock(&self, deadline: &Deadline) -> core::result::Result<Turn<'_>, Trouble> {
        // SAFETY: initialised, and not moved since it was first locked.
        if unsafe { libc::pthread_mutex_trylock(self.turn.get()) } == 0 {
            return Ok(Turn(self));
        }
        deadline.waited.set(true);
        // pthread_mutex_clocklock() is younger than what we want to run with.
        let mut time = now(libc::CLOCK_REALTIME);
        let nanoseconds = time.tv_nsec + i64::from(deadline.left_ms()) * 1_000_000;
        time.tv_sec += nanoseconds / 1_000_000_000;
        time.tv_nsec = nanoseconds % 1_000_000_000;
        // SAFETY: as above.
        match unsafe { libc::pthread_mutex_timedlock(self.turn.get(), &time) } {
            0 => Ok(Turn(self)),
            _ => Err(Trouble::TooLate),
        }
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        let fd = *self.fd.get_mut();
        if self.is_own && fd >= 0 {
            // SAFETY: `duplicate_of` made it.
            drop(unsafe { Fd::new(fd.into()) });
        }
    }
}

pub(super) struct Turn<'a>(&'a Only);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.turn.get()) };
    }
}

impl Only {
    pub(super) fn ask<T>(
        &self,
        deadline: &Deadline,
        text: &Text,
        speak: impl FnOnce(c_int, u64) -> core::result::Result<T, Trouble>,
    ) -> core::result::Result<T, Trouble> {
        let _turn = self.lock(deadline)?;
        let socket = self.fd.load(Ordering::Relaxed);
        if socket < 0 {
            return Err(Trouble::Away(Errno::ECONNRESET));
        }
        let greeted = self.greeted.load(Ordering::Relaxed);
        let said = match greeted {
            true => Ok(()),
            false => self.greet(socket, deadline, text),
        }
        .and_then(|()| speak(socket, self.speaks.load(Ordering::Relaxed)));
        if said.is_err() {
            // There is no other connection, and what comes over this one is
            // not to be trusted any more.
            self.end();
        }
        said
    }

    pub(super) fn greet(
        &self,
        socket: c_int,
        deadline: &Deadline,
        text: &Text,
    ) -> core::result::Result<(), Trouble> {
        // SAFETY: numbers only.
        let flags = unsafe { libc::fcntl(socket, libc::F_GETFL) };
        if flags & libc::O_NONBLOCK != 0 {
            // SAFETY: as above.
            unsafe { libc::fcntl(socket, libc::F_SETFL, flags & !libc::O_NONBLOCK) };
        }
        let time = libc::timeval {
            tv_sec: (deadline.timeout_ms / 1000).into(),
            tv_usec: (deadline.timeout_ms % 1000 * 1000).into(),
        };
        socket::set_option(socket, libc::SO_RCVTIMEO, &time).map_err(Trouble::Away)?;
        let speaks = greet(socket, deadline, text)?;
        self.speaks.store(speaks, Ordering::Relaxed);
        self.greeted.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn end(&self) {
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        if self.is_own && fd >= 0 {
            // SAFETY: `duplicate_of` made it.
            drop(unsafe { Fd::new(fd.into()) });
        }
    }
}
