// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the library keeps for each thread: its last error, and which handlers
//! it is inside of.

use alloc::boxed::Box;
use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::fmt;
use core::sync::atomic::{AtomicI32, Ordering};

use crate::errno::Errno;
use libc::c_int;

use crate::capi::error::virInternalError;
use crate::error::{Code, Error, Message};
use crate::fork::{self, Page};
use crate::inside::{Frame, Inside};

/// What is kept for a thread. All zeros is one that has not called anything.
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
                    message: core::ptr::null(),
                },
                message: Message::EMPTY,
            }),
        }
    }

    fn set_message(&self, text: fmt::Arguments<'_>) {
        let message = Message::new(text);
        // SAFETY: only this thread comes here, and it holds no reference into
        // the cell: C has a raw pointer, good until the next call.
        unsafe { (*self.error.get()).message = message };
    }

    fn set_error(&self, operation: u32, error: Error) {
        // SAFETY: as in `set_message`.
        unsafe {
            let last = self.error.get();
            (*last).public = virInternalError {
                code: error.code as c_int,
                errnum: error.errnum.0,
                operation,
                message: (*last).message.as_ptr(),
            };
        }
        self.failed.set(true);
    }

    /// Runs foreign code between the making of an error and its return.
    #[cold]
    pub(crate) fn keep_message(&self, f: impl FnOnce()) {
        // SAFETY: as in `set_message`.
        let message = unsafe { (*self.error.get()).message };
        f();
        // SAFETY: as in `set_message`.
        unsafe { (*self.error.get()).message = message };
    }

    fn last_error(&self) -> *mut virInternalError {
        match self.failed.get() {
            // SAFETY: a pointer to a field; nothing is read through it.
            true => unsafe { &raw mut (*self.error.get()).public },
            false => core::ptr::null_mut(),
        }
    }
}

/// Where a thread finds its state: the C library's thread-specific data,
/// which needs no storage in the threads of a program that loads this library.
pub(crate) struct Own(libc::pthread_key_t);

impl Own {
    pub(crate) fn new() -> core::result::Result<Own, Errno> {
        unsafe extern "C" fn drop_thread(thread: *mut c_void) {
            // SAFETY: `get_or_make` made it with a Box, for this thread alone.
            drop(unsafe { Box::from_raw(thread.cast::<Thread>()) });
        }
        let mut key = 0;
        // SAFETY: a new key, which `drop_thread` fits.
        match unsafe { libc::pthread_key_create(&mut key, Some(drop_thread)) } {
            0 => Ok(Own(key)),
            errnum => Err(Errno(errnum)),
        }
    }

    /// # Safety
    /// Nobody has used it, nor will.
    pub(crate) unsafe fn delete(&self) {
        // SAFETY: the caller's word.
        unsafe { libc::pthread_key_delete(self.0) };
    }

    /// The state of this thread, if it has needed one yet.
    #[inline(always)]
    fn get(&self) -> Option<&Thread> {
        // SAFETY: NULL or what `get_or_make` made for this thread; it is not
        // freed before the thread ends.
        unsafe { libc::pthread_getspecific(self.0).cast::<Thread>().as_ref() }
    }

    #[inline(always)]
    fn get_or_make(&self) -> &Thread {
        self.get().unwrap_or_else(|| self.make())
    }

    #[cold]
    #[inline(never)]
    fn make(&self) -> &Thread {
        let thread = Box::into_raw(Box::new(Thread::new()));
        // SAFETY: the key's destructor frees it when the thread ends. If the
        // C library has no room for the pointer it is lost, and made anew.
        unsafe {
            libc::pthread_setspecific(self.0, thread.cast());
            &*thread
        }
    }
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
pub(crate) fn own<R>(page: &Page, f: impl FnOnce(&Thread) -> R) -> R {
    f(page.own.get_or_make())
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
    // A vforked child finds its parent's state: what it says of the parent
    // is still true.
    match fork::page_if_made() {
        Some(page) if page.owner() == pid => match page.own.get() {
            Some(thread) if thread.tid.get() != 0 => thread.tid.get() == tid,
            _ => !page.is_child() && learn_tid(page) == tid,
        },
        _ => false,
    }
}

#[cold]
fn learn_tid(page: &Page) -> libc::pid_t {
    let tid = gettid();
    own(page, |thread| thread.tid.set(tid));
    tid
}

/// The last call succeeded.
#[inline(always)]
pub(crate) fn succeeded(page: &Page) {
    if page.is_wiped() {
        forget_error_in_child(page);
    } else if page.own.get().is_some_and(|thread| thread.failed.get()) {
        reset_error(page);
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

/// Runs `f` with the state of this thread, whether of a child or not. Nothing
/// is run in a child that has more threads than there is room for, nor when
/// the library could not have its page.
fn any<R>(page: Option<&Page>, f: impl FnOnce(&Thread) -> R) -> Option<R> {
    let page = page?;
    match page.is_child() {
        false => Some(own(page, f)),
        true => in_child(page, f),
    }
}

/// Writes the message of an error that is about to be returned.
#[cold]
pub(crate) fn set_message(text: fmt::Arguments<'_>) {
    any(fork::page_if_made(), |thread| thread.set_message(text));
}

/// The last call failed, and what it leaves in errno.
#[cold]
pub(crate) fn failed(page: Option<&Page>, operation: u32, error: Error) {
    any(page, |thread| thread.set_error(operation, error));
    error.errnum.set();
}

/// As `virInternalResetLastError()`.
#[cold]
pub(crate) fn reset_error(page: &Page) {
    match page.is_child() {
        false => own(page, |thread| thread.failed.set(false)),
        true => forget_error_in_child(page),
    }
}

/// As `virInternalGetLastError()`.
pub(crate) fn last_error(page: &Page) -> Option<*mut virInternalError> {
    match page.is_child() {
        false => page.own.get().map(Thread::last_error),
        true => {
            let child = page.threads.find(gettid())?;
            Some(child.thread.last_error())
        }
    }
}

/// The handler that this thread went into last.
pub(crate) fn innermost_frame() -> Option<Frame> {
    any(fork::page_if_made(), |thread| thread.inside.innermost())?
}

const _: () = assert!(
    Code::VIR_INTERNAL_ERR_INVALID_ARG as c_int != 0,
    "a code of 0 would look like no error"
);
