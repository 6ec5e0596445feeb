// SPDX-License-Identifier: LGPL-2.1-or-later
//! The one socket to a delegate that this process was given by a descriptor.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use libc::c_int;

use super::dialogue::{Deadline, Text, Trouble, greet, is_silent};
use crate::delegate::socket;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::kernel::file::{Fd, Identity};
use crate::sync::{Mutex, lock};

/// The one socket of a delegate that was given by a descriptor: threads take
/// turns, and both sides have said hello once. Its file is the caller's as
/// well, so nothing is set of it.
pub(super) struct Only {
    turn: UnsafeCell<libc::pthread_mutex_t>,
    /// -1 when it has ended.
    fd: AtomicI32,
    /// Of the socket. `None` where the environment names what is no socket.
    identity: Option<Identity>,
    /// Whether this is a copy, to be closed, which nobody else closes.
    is_own: bool,
    speaks: AtomicU64,
    greeted: AtomicBool,
}

// SAFETY: the mutex may be locked by any thread, the rest are atomics.
unsafe impl Send for Only {}
// SAFETY: as above.
unsafe impl Sync for Only {}

/// Those of all connected delegates.
static ONLYS: Mutex<Vec<Weak<Only>>> = Mutex::new(Vec::new());

/// What is wrong with a descriptor; with the errno of a system call.
struct Unfit(&'static str, Option<Errno>);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        match self.1 {
            Some(errnum) => write!(f, ": {errnum}"),
            None => Ok(()),
        }
    }
}

/// Which socket a descriptor is of, if it can be one to a delegate.
fn examine(fd: c_int) -> core::result::Result<Identity, Unfit> {
    let option = |option| {
        socket::option::<c_int>(fd, option).map_err(|errnum| Unfit("is not a socket", Some(errnum)))
    };
    if option(libc::SO_DOMAIN)? != libc::AF_UNIX {
        return Err(Unfit("is not a Unix socket", None));
    }
    if option(libc::SO_TYPE)? != libc::SOCK_SEQPACKET {
        return Err(Unfit("is not a SOCK_SEQPACKET socket", None));
    }
    Identity::of(fd).map_err(|errnum| Unfit("cannot be examined", Some(errnum)))
}

impl Only {
    fn new(fd: c_int, identity: Option<Identity>, is_own: bool) -> Only {
        Only {
            turn: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
            fd: AtomicI32::new(fd),
            identity,
            is_own,
            speaks: AtomicU64::new(0),
            greeted: AtomicBool::new(false),
        }
    }

    /// By the number that the environment has. Nothing is copied: a child of
    /// vfork() may be the first to look.
    pub(super) fn of_environment(fd: c_int) -> Only {
        Only::new(fd, examine(fd).ok(), false)
    }

    /// A copy, or what is connected by that socket already.
    pub(super) fn of(fd: c_int) -> Result<Arc<Only>> {
        let identity =
            examine(fd).map_err(|unfit| Error::invalid(format_args!("fd:{fd} {unfit}")))?;
        let mut onlys = lock(&ONLYS);
        onlys.retain(|only| only.strong_count() > 0);
        let known = onlys.iter().filter_map(Weak::upgrade);
        if let Some(known) = { known }.find(|only| only.identity == Some(identity)) {
            return Ok(known);
        }
        // SAFETY: numbers only; the kernel returns a new descriptor.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(Error::failed(
                Errno::last(),
                format_args!("cannot copy descriptor {fd}"),
            ));
        }
        let only = Arc::new(Only::new(copy, Some(identity), true));
        onlys.push(Arc::downgrade(&only));
        Ok(only)
    }

    pub(super) fn is_of(&self, fd: c_int) -> bool {
        self.identity.is_some() && self.identity == Identity::of(fd).ok()
    }

    /// Waits for its turn.
    fn lock(&self, deadline: &Deadline) -> core::result::Result<Turn<'_>, Trouble> {
        // SAFETY: initialised, and not moved since it was first locked.
        let locked = unsafe {
            libc::pthread_mutex_trylock(self.turn.get()) == 0
                || lock_until(self.turn.get(), deadline) == 0
        };
        match locked {
            true => Ok(Turn(self)),
            false => Err(Trouble::TooLate),
        }
    }

    pub(super) fn ask<T>(
        &self,
        deadline: &Deadline,
        text: &Text,
        speak: impl FnOnce(c_int, u64) -> core::result::Result<Option<T>, Trouble>,
    ) -> core::result::Result<Option<T>, Trouble> {
        let _turn = self.lock(deadline)?;
        // It may be set not to wait; and how long it waits is not ours to set.
        deadline.waited.set(true);
        let socket = self.fd.load(Ordering::Relaxed);
        if socket < 0 {
            return Err(Trouble::Away(Errno::ECONNRESET));
        }
        // The environment's may have been closed since.
        if !self.is_own && !self.is_of(socket) {
            return Err(Trouble::Away(Errno::ENOTSOCK));
        }
        let said = self
            .greet(socket, deadline, text)
            .and_then(|speaks| speak(socket, speaks));
        match said {
            // A delegate that is no more does not say that it lacks something.
            Ok(None) if !is_silent(socket) => {
                self.end();
                Err(Trouble::Away(Errno::ECONNRESET))
            }
            Ok(said) => Ok(said),
            Err(trouble) => {
                // There is no other connection, and what comes over this one
                // is not to be trusted any more.
                self.end();
                Err(trouble)
            }
        }
    }

    /// Says hello, once.
    fn greet(
        &self,
        socket: c_int,
        deadline: &Deadline,
        text: &Text,
    ) -> core::result::Result<u64, Trouble> {
        if !self.greeted.load(Ordering::Relaxed) {
            self.speaks
                .store(greet(socket, deadline, text)?, Ordering::Relaxed);
            self.greeted.store(true, Ordering::Relaxed);
        }
        Ok(self.speaks.load(Ordering::Relaxed))
    }

    /// Ends the connection, also for whoever else has it: there cannot be
    /// another hello over it, nor an answer that nobody waits for.
    fn end(&self) {
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        if fd < 0 {
            return;
        }
        // SAFETY: numbers only.
        unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
        if self.is_own {
            // SAFETY: `of` made it.
            drop(unsafe { Fd::new(fd.into()) });
        }
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        self.end();
    }
}

/// Has the turn as long as it lives.
struct Turn<'a>(&'a Only);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.turn.get()) };
    }
}

/// As pthread_mutex_lock(), but not for ever. Setting the clock does not
/// matter where the C library has a function for that.
///
/// # Safety
/// The mutex is initialised and not moved.
unsafe fn lock_until(mutex: *mut libc::pthread_mutex_t, deadline: &Deadline) -> c_int {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn pthread_mutex_clocklock(
                mutex: *mut libc::pthread_mutex_t,
                clock: libc::clockid_t,
                time: *const libc::timespec,
            ) -> c_int;
        }
        let time = deadline.end_on(libc::CLOCK_MONOTONIC);
        // SAFETY: the caller's word; a time to read.
        unsafe { pthread_mutex_clocklock(mutex, libc::CLOCK_MONOTONIC, &time) }
    }
    #[cfg(not(target_env = "gnu"))]
    {
        let time = deadline.end_on(libc::CLOCK_REALTIME);
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_timedlock(mutex, &time) }
    }
}
