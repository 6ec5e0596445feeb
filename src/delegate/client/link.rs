// SPDX-License-Identifier: LGPL-2.1-or-later
//! A thread's sockets to delegates: made when first needed, used by it alone.

use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use super::dialogue::Connection;
use super::{Asked, Delegate};
use crate::kernel::file::Fd;
use crate::kernel::process::Known;
use crate::sync::{Mutex, lock};

/// Where a thread keeps its sockets. All zeros are none.
pub(crate) struct Links([Link; LINKS_MAX]);

/// How many delegates one thread can have a socket to at a time.
pub(super) const LINKS_MAX: usize = 4;

/// A thread's socket to a delegate. Used by its thread, while it is inside the
/// delegate; closed by who removes the delegate when nobody is inside.
pub(super) struct Link {
    /// The delegate's id; 0 when this is free.
    pub(super) id: AtomicU64,
    pub(super) delegate: AtomicPtr<Delegate>,
    pub(super) fd: AtomicI32,
    /// The process that the delegate knows from the last request, and our
    /// descriptor of it; 0 when there is none.
    known: AtomicI32,
    known_fd: AtomicI32,
    pub(super) speaks: AtomicU64,
    pub(super) previous: AtomicPtr<Link>,
    pub(super) next: AtomicPtr<Link>,
}

/// The first of all links of all threads, in a list. Its lock is held to add
/// and to remove, never while anything waits.
pub(super) static LINKED: Mutex<First> = Mutex::new(First(ptr::null_mut()));

pub(super) struct First(*mut Link);

// SAFETY: what it points to is only reached with the lock held.
unsafe impl Send for First {}

impl Link {
    pub(super) const fn new() -> Self {
        Link {
            id: AtomicU64::new(0),
            delegate: AtomicPtr::new(ptr::null_mut()),
            fd: AtomicI32::new(0),
            known: AtomicI32::new(0),
            known_fd: AtomicI32::new(0),
            speaks: AtomicU64::new(0),
            previous: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    pub(super) fn open(&self, asked: &Asked<'_>, connection: Connection) {
        let mut first = lock(&LINKED);
        let own = ptr::from_ref(self).cast_mut();
        self.previous.store(ptr::null_mut(), Ordering::Relaxed);
        self.next.store(first.0, Ordering::Relaxed);
        // SAFETY: links in the list are alive: a thread takes its own out.
        if let Some(next) = unsafe { first.0.as_ref() } {
            next.previous.store(own, Ordering::Relaxed);
        }
        first.0 = own;
        let delegate = asked.delegate.map_or(ptr::null(), ptr::from_ref);
        self.delegate.store(delegate.cast_mut(), Ordering::Relaxed);
        self.speaks.store(connection.speaks, Ordering::Relaxed);
        self.fd.store(connection.fd.into_raw(), Ordering::Relaxed);
        self.id.store(asked.id, Ordering::Relaxed);
    }

    /// Takes it out of the list and closes it. The lock is held.
    pub(super) fn close(&self, first: &mut First) {
        let previous = self.previous.load(Ordering::Relaxed);
        let next = self.next.load(Ordering::Relaxed);
        // SAFETY: links in the list are alive.
        unsafe {
            match previous.as_ref() {
                Some(previous) => previous.next.store(next, Ordering::Relaxed),
                None => first.0 = next,
            }
            if let Some(next) = next.as_ref() {
                next.previous.store(previous, Ordering::Relaxed);
            }
            drop(Fd::new(self.fd.load(Ordering::Relaxed).into()));
        }
        drop(self.take_known());
        self.id.store(0, Ordering::Relaxed);
    }

    /// The process that the delegate knows from the last request. It will not,
    /// once another is asked about.
    pub(super) fn take_known(&self) -> Option<Known> {
        let pid = self.known.swap(0, Ordering::Relaxed);
        (pid != 0).then(|| Known {
            pid,
            // SAFETY: `keep_known` left it here, and it is taken once.
            fd: unsafe { Fd::new(self.known_fd.load(Ordering::Relaxed).into()) },
        })
    }

    /// The delegate has answered a request about that process.
    pub(super) fn keep_known(&self, known: Known) {
        drop(self.take_known());
        let fd = known.fd.into_raw();
        self.known_fd.store(fd, Ordering::Relaxed);
        self.known.store(known.pid, Ordering::Relaxed);
    }

    /// Its descriptor is not its own any more.
    pub(super) fn lose(&self) {
        self.fd.store(-1, Ordering::Relaxed);
        self.close_if_open();
    }

    pub(super) fn close_if_open(&self) {
        let mut first = lock(&LINKED);
        if self.id.load(Ordering::Relaxed) != 0 {
            self.close(&mut first);
        }
    }
}

/// Closes what any thread has to that delegate. Nobody is using it.
pub(super) fn close_links(delegate: *mut Delegate) {
    let mut first = lock(&LINKED);
    let mut link = first.0;
    // SAFETY: links in the list are alive.
    while let Some(open) = unsafe { link.as_ref() } {
        link = open.next.load(Ordering::Relaxed);
        if open.delegate.load(Ordering::Relaxed) == delegate {
            open.close(&mut first);
        }
    }
}

impl Links {
    pub(crate) const fn new() -> Self {
        Links([const { Link::new() }; LINKS_MAX])
    }

    pub(super) fn find(&self, id: u64) -> Option<&Link> {
        let is_its = |link: &&Link| link.id.load(Ordering::Relaxed) == id;
        self.0.iter().find(is_its)
    }

    /// A free one; if there is none, the one that `id` makes free.
    pub(super) fn free(&self, id: u64) -> &Link {
        self.find(0).unwrap_or_else(|| {
            let link = &self.0[id as usize % LINKS_MAX];
            link.close_if_open();
            link
        })
    }

    /// The thread ends.
    pub(crate) fn close(&self) {
        self.0.iter().for_each(Link::close_if_open);
    }
}
