// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the library keeps for each thread: its last error, and which handlers
//! it is inside of.

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicI32, Ordering};

use libc::c_int;
use nix::errno::Errno;

use crate::capi::error::virInternalError;
use crate::error::{Code, Error, Message};
use crate::fork::{self, Page};
use crate::inside::Inside;

/// All zeros is a thread that has not called anything yet.
pub(crate) struct Thread {
    pub(crate) inside: Inside,
    /// The thread's id, 0 until it was needed.
    tid: Cell<libc::pid_t>,
    failed: Cell<bool>,
    error: UnsafeCell<LastError>,
}

struct LastError {
    public: virInternalError,
    message: Message,
}

impl Thread {
    const fn new() -> Self {
        Thread {
            inside: Inside::new(),
            tid: Cell::new(0),
            failed: Cell::new(false),
            error: UnsafeCell::new(LastError {
                public: virInternalError {
                    code: 0,
                    errnum: 0,
                    operation: 0,
                    message: std::ptr::null(),
                },
                message: Message::EMPTY,
            }),
        }
    }

    fn set_error(&self, operation: u32, error: &Error) {
        // SAFETY: only this thread comes here, and it holds no reference into
        // the cell: C has a raw pointer, good until the next call.
        unsafe {
            let last = self.error.get();
            (*last).message = error.message;
            (*last).public = virInternalError {
                code: error.code as c_int,
                errnum: error.errnum,
                operation,
                message: (*last).message.as_ptr(),
            };
        }
        self.failed.set(true);
    }

    fn last_error(&self) -> *mut virInternalError {
        match self.failed.get() {
            // SAFETY: a pointer to a field; nothing is read through it.
            true => unsafe { &raw mut (*self.error.get()).public },
            false => std::ptr::null_mut(),
        }
    }
}

thread_local! {
    // Neither lazily made nor dropped: nothing to run when a thread ends.
    static OWN: Thread = const { Thread::new() };
}

/// How many threads of one forked child (or how many vforked children at a
/// time) can have a last error and be inside fork-safe handlers.
const CHILD_THREADS_MAX: usize = 16;

/// The threads of children.
pub(crate) struct ChildThreads([ChildThread; CHILD_THREADS_MAX]);

struct ChildThread {
    /// Whose it is; 0 when nobody's.
    tid: AtomicI32,
    thread: Thread,
}

// SAFETY: a thread's state is only touched by the thread whose id is in `tid`,
// which `claim` writes with a compare-and-swap.
unsafe impl Sync for ChildThread {}

impl ChildThreads {
    fn find(&self, tid: libc::pid_t) -> Option<&ChildThread> {
        self.0
            .iter()
            .find(|child| child.tid.load(Ordering::Acquire) == tid)
    }

    fn claim(&self, tid: libc::pid_t) -> Option<&ChildThread> {
        self.find(tid)
            .or_else(|| self.0.iter().find(|child| child.take(0, tid)))
            .or_else(|| {
                self.0.iter().find(|child| {
                    let owner = child.tid.load(Ordering::Acquire);
                    let taken = !exists(owner) && child.take(owner, tid);
                    if taken {
                        child.thread.failed.set(false);
                        child.thread.inside.clear();
                    }
                    taken
                })
            })
    }
}

impl ChildThread {
    fn take(&self, from: libc::pid_t, to: libc::pid_t) -> bool {
        self.tid
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

fn exists(tid: libc::pid_t) -> bool {
    // SAFETY: signal 0 is not sent, it only asks.
    unsafe { libc::kill(tid, 0) == 0 || Errno::last() != Errno::ESRCH }
}

fn gettid() -> libc::pid_t {
    // SAFETY: gettid() has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

/// Runs `f` with the state of this thread, which is not a child's.
pub(crate) fn own<R>(f: impl FnOnce(&Thread) -> R) -> R {
    OWN.with(f)
}

/// Runs `f` with the state of this thread of a child. `None`: the child has
/// more threads than there is room for.
pub(crate) fn in_child<R>(page: &Page, f: impl FnOnce(&Thread) -> R) -> Option<R> {
    page.threads.claim(gettid()).map(|child| f(&child.thread))
}

/// Whether `tid` is this very thread and `pid` the process that it belongs
/// to, as far as that is known without a system call.
#[inline(always)]
pub(crate) fn is_own(pid: libc::pid_t, tid: libc::pid_t) -> bool {
    // A vforked child uses its parent's thread-local storage: what it finds
    // there is its parent's, as the page's owner is, and still true.
    match fork::page() {
        Ok(page) if page.owner() == pid => own(|thread| {
            if thread.tid.get() == 0 && !page.is_child() {
                thread.tid.set(gettid());
            }
            thread.tid.get() == tid
        }),
        _ => false,
    }
}

/// The last call succeeded.
#[inline(always)]
pub(crate) fn succeeded(page: &Page) {
    if page.is_wiped() {
        forget_error_in_child(page);
    } else if own(|thread| thread.failed.get()) {
        reset_error(Some(page));
    }
}

#[cold]
fn forget_error_in_child(page: &Page) {
    if let Some(child) = page.threads.find(gettid()) {
        child.thread.failed.set(false);
        // Room for another one, unless this is a call from a handler.
        if child.thread.inside.is_empty() {
            child.tid.store(0, Ordering::Release);
        }
    }
}

/// The last call failed, and what it leaves in errno.
#[cold]
pub(crate) fn failed(page: Option<&Page>, operation: u32, error: &Error) {
    match page.filter(|page| page.is_child()) {
        None => own(|thread| thread.set_error(operation, error)),
        // No room: errno is all that is left.
        Some(page) => in_child(page, |thread| thread.set_error(operation, error)).unwrap_or(()),
    }
    Errno::set_raw(error.errnum);
}

/// As `virInternalResetLastError()`.
#[cold]
pub(crate) fn reset_error(page: Option<&Page>) {
    match page.filter(|page| page.is_child()) {
        None => own(|thread| thread.failed.set(false)),
        Some(page) => forget_error_in_child(page),
    }
}

/// As `virInternalGetLastError()`.
pub(crate) fn last_error(page: Option<&Page>) -> *mut virInternalError {
    match page.filter(|page| page.is_child()) {
        None => own(Thread::last_error),
        Some(page) => page
            .threads
            .find(gettid())
            .map_or(std::ptr::null_mut(), |child| child.thread.last_error()),
    }
}

const _: () = assert!(
    Code::VIR_INTERNAL_ERR_INVALID_ARG as c_int != 0,
    "a code of 0 would look like no error"
);
