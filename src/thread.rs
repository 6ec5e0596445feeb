// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the library keeps for each thread: its last error, and which handlers
//! it is inside of.

use alloc::boxed::Box;
use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use crate::errno::Errno;
use libc::c_int;

use crate::capi::error::virInternalError;
use crate::delegate::client::Links;
use crate::error::{Code, Error, Message};
use crate::fork::{self, Page};
use crate::inside::{Frame, Inside};
use crate::kernel::process;

/// What is kept for a thread. All zeros is one that has not called anything.
pub(crate) struct Thread {
    pub(crate) inside: Inside,
    /// The thread's id, 0 until it was needed.
    tid: Cell<libc::pid_t>,
    failed: Cell<bool>,
    error: UnsafeCell<LastError>,
    /// Its sockets to delegates.
    pub(crate) links: Links,
    /// The last request to a delegate that was never answered.
    pub(crate) request: Cell<u64>,
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
            links: Links::new(),
            request: Cell::new(0),
        }
    }

    /// Runs foreign code between the making of an error and its return, which
    /// may make errors of its own.
    #[cold]
    pub(crate) fn keep_message(&self, foreign: impl FnOnce()) {
        // SAFETY: only this thread comes here.
        let message = unsafe { (*self.error.get()).message };
        foreign();
        // SAFETY: as above.
        unsafe { (*self.error.get()).message = message };
    }

    fn set_message(&self, text: fmt::Arguments<'_>) {
        let message = Message::new(text);
        // SAFETY: only this thread comes here, and it holds no reference into
        // the cell: C has a raw pointer, good until the next call.
        unsafe { (*self.error.get()).message = message };
    }

    /// Writes down all but that there is one.
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
    }

    /// Of a thread of the process itself: counts those that failed.
    fn set_failed(&self, page: &Page, failed: bool) {
        match (self.failed.replace(failed), failed) {
            (false, true) => page.failed_threads.fetch_add(1, Ordering::Relaxed),
            (true, false) => page.failed_threads.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    fn last_error(&self) -> *mut virInternalError {
        match self.failed.get() {
            // SAFETY: a pointer to a field; nothing is read through it.
            true => unsafe { &raw mut (*self.error.get()).public },
            false => core::ptr::null_mut(),
        }
    }
}

/// Where a thread finds its state: the C library's thread-specific data, which
/// needs no storage in the threads of a program that loads this library.
static KEY: AtomicU32 = AtomicU32::new(KEY_NONE);

const KEY_NONE: libc::pthread_key_t = libc::pthread_key_t::MAX;

/// Makes the key, once. Comes before everything else in this file.
pub(crate) fn make_key() -> core::result::Result<(), Errno> {
    unsafe extern "C" fn drop_thread(thread: *mut c_void) {
        let own = thread.cast::<Thread>();
        // SAFETY: `make_own` made it for this thread, which has not freed it.
        let thread = unsafe { &*own };
        if let Some(page) = fork::page_if_made() {
            thread.set_failed(page, false);
            // What a child has is its parent's.
            if !page.is_child() {
                thread.links.close();
            }
        }
        // SAFETY: `make_own` made it with a Box; the links are out of the list
        // by which other threads reach them.
        drop(unsafe { Box::from_raw(own) });
    }
    let mut key = KEY_NONE;
    // SAFETY: a new key, whose destructor fits what `make_own` puts there.
    match unsafe { libc::pthread_key_create(&mut key, Some(drop_thread)) } {
        0 => {}
        errnum => return Err(Errno(errnum)),
    }
    let first = KEY.compare_exchange(KEY_NONE, key, Ordering::AcqRel, Ordering::Relaxed);
    if first.is_err() {
        // SAFETY: another thread was first; nobody knows of this key.
        unsafe { libc::pthread_key_delete(key) };
    }
    Ok(())
}

/// The state of this thread, if it has needed one yet. In a child it is that
/// of the thread that forked it, at the time when it did.
#[inline(always)]
fn get_own<'a>() -> Option<&'a Thread> {
    let key = KEY.load(Ordering::Relaxed);
    // SAFETY: NULL or what `make_own` made for this thread, which is not freed
    // before the thread ends.
    unsafe { libc::pthread_getspecific(key).cast::<Thread>().as_ref() }
}

#[cold]
#[inline(never)]
fn make_own<'a>() -> &'a Thread {
    let thread = Box::into_raw(Box::new(Thread::new()));
    // SAFETY: the key's destructor frees it when the thread ends. If the C
    // library has no room for the pointer it is lost, and made anew.
    unsafe {
        libc::pthread_setspecific(KEY.load(Ordering::Relaxed), thread.cast());
        &*thread
    }
}

/// The state of this thread, which is not a child's.
#[inline(always)]
pub(crate) fn own<'a>() -> &'a Thread {
    get_own().unwrap_or_else(make_own)
}

/// How many threads of one forked child (or how many vforked children at a
/// time) can have a last error and be inside fork-safe handlers.
const CHILD_THREADS_MAX: usize = 64;

/// The states of children's threads, which cannot allocate one.
pub(crate) struct ChildThreads {
    /// How many are somebody's.
    claimed: AtomicUsize,
    states: [ChildThread; CHILD_THREADS_MAX],
}

struct ChildThread {
    /// Whose it is; 0 when nobody's.
    tid: AtomicI32,
    /// What pthread_self() says in it. A child of vfork() says the same as the
    /// thread that forked it, which waits meanwhile.
    pthread: AtomicUsize,
    thread: Thread,
}

// SAFETY: a thread's state is only touched by the thread whose id is in `tid`,
// which `claim` writes with a compare-and-swap. It is taken away when that
// thread is no more: by one that finds its id unused, or by the thread that
// vforked it, which runs again.
unsafe impl Sync for ChildThread {}

/// Those of children with memory of their own. It is not wiped on fork, so
/// that a child of a child knows which handlers it was forked in.
static FORKED: ChildThreads = ChildThreads {
    claimed: AtomicUsize::new(0),
    states: [const {
        ChildThread {
            tid: AtomicI32::new(0),
            pthread: AtomicUsize::new(0),
            thread: Thread::new(),
        }
    }; CHILD_THREADS_MAX],
};

/// Where the threads of this child have their state. Those of vforked children
/// lie in the page: other children of the same parent must not see them.
fn children(page: &Page) -> &ChildThreads {
    match page.is_wiped() {
        true => &FORKED,
        false => &page.threads,
    }
}

impl ChildThreads {
    /// Whether any is somebody's.
    #[inline(always)]
    fn is_any_claimed(&self) -> bool {
        self.claimed.load(Ordering::Relaxed) != 0
    }

    fn find(&self, tid: libc::pid_t) -> Option<&ChildThread> {
        let pthread = pthread_self();
        self.states.iter().find(|child| {
            child.tid.load(Ordering::Acquire) == tid
                && child.pthread.load(Ordering::Relaxed) == pthread
        })
    }

    fn claim(&self, tid: libc::pid_t) -> Option<&ChildThread> {
        let free = || {
            let child = self.states.iter().find(|child| child.take(0, tid))?;
            self.claimed.fetch_add(1, Ordering::Relaxed);
            Some(child)
        };
        // Of one that had this thread's id before.
        let of_the_same_id = || self.states.iter().find(|child| child.take(tid, tid));
        let of_the_dead = || {
            self.states.iter().find(|child| {
                let owner = child.tid.load(Ordering::Acquire);
                owner > 0 && !process::exists(owner) && child.take(owner, tid)
            })
        };
        self.find(tid)
            .or_else(of_the_same_id)
            .or_else(free)
            .or_else(of_the_dead)
    }

    /// The states of threads that are this one or that it was forked from.
    fn of(&self, pthread: usize) -> impl Iterator<Item = &ChildThread> {
        self.states.iter().filter(move |child| {
            child.tid.load(Ordering::Acquire) > 0
                && child.pthread.load(Ordering::Relaxed) == pthread
        })
    }

    fn release(&self, child: &ChildThread) {
        // Unless another thread is just claiming what a dead one had.
        let released = child
            .tid
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |tid| {
                (tid > 0).then_some(0)
            });
        if released.is_ok() {
            self.claimed.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// In the place of a thread's id while its state is being claimed.
const BEING_CLAIMED: libc::pid_t = -1;

impl ChildThread {
    fn take(&self, from: libc::pid_t, to: libc::pid_t) -> bool {
        let taken = self
            .tid
            .compare_exchange(from, BEING_CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if taken {
            self.pthread.store(pthread_self(), Ordering::Relaxed);
            self.thread.failed.set(false);
            self.thread.request.set(0);
            self.thread.inside.clear();
            // Release: whoever sees whose it is sees all of this.
            self.tid.store(to, Ordering::Release);
        }
        taken
    }
}

fn gettid() -> libc::pid_t {
    // SAFETY: gettid() has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

fn pthread_self() -> usize {
    // SAFETY: pthread_self() has no arguments and cannot fail.
    unsafe { libc::pthread_self() as usize }
}

/// The state of this thread of a child. `None`: the child has more threads
/// than there is room for.
#[cold]
#[inline(never)]
pub(crate) fn own_in_child(page: &Page) -> Option<&Thread> {
    forget_gone_children(page);
    let child = children(page).claim(gettid())?;
    Some(&child.thread)
}

/// The thread that vforked this child had run again before: whatever it
/// vforked earlier has exited, or become another program, maybe in the midst
/// of a handler.
fn forget_gone_children(page: &Page) {
    // SAFETY: getppid() has no arguments and cannot fail.
    if !page.is_wiped() && unsafe { libc::getppid() } == page.owner() {
        let own = gettid();
        page.threads
            .of(pthread_self())
            .filter(|child| child.tid.load(Ordering::Relaxed) != own)
            .for_each(|child| page.threads.release(child));
    }
}

/// Whether this thread of a child was forked, itself or whatever it was forked
/// from, inside that handler.
pub(crate) fn was_forked_inside(page: &Page, operation: u32, handler: u64) -> bool {
    let is_inside = |thread: &Thread| thread.inside.contains(operation, handler);
    // Only the first thread of a child with memory of its own was forked;
    // others may have got the address of a thread that was not.
    let was_forked = !page.is_wiped() || gettid() == fork::getpid();
    get_own().is_some_and(is_inside)
        || was_forked
            && children(page)
                .of(pthread_self())
                .any(|child| is_inside(&child.thread))
}

/// Whether `tid` is this very thread and `pid` the process that it belongs
/// to, as far as that is known without a system call.
#[inline(always)]
pub(crate) fn is_own(pid: libc::pid_t, tid: libc::pid_t) -> bool {
    // A vforked child finds its parent's state: what it says of the parent
    // is still true.
    match fork::page_if_made() {
        Some(page) if page.owner() == pid => match get_own() {
            Some(thread) if thread.tid.get() != 0 => thread.tid.get() == tid,
            _ => !page.is_child() && learn_tid() == tid,
        },
        _ => false,
    }
}

#[cold]
fn learn_tid() -> libc::pid_t {
    let tid = gettid();
    own().tid.set(tid);
    tid
}

/// The last call succeeded.
#[inline(always)]
pub(crate) fn succeeded(page: &Page) {
    // What a vforked child leaves is found by the thread that forked it, too.
    if page.is_wiped()
        || page.failed_threads.load(Ordering::Relaxed) != 0
        || page.threads.is_any_claimed()
    {
        forget_error(page);
    }
}

#[cold]
#[inline(never)]
fn forget_error(page: &Page) {
    if page.is_wiped()
        || get_own().is_some_and(|thread| thread.failed.get())
        || page.threads.of(pthread_self()).next().is_some()
    {
        reset_error(page);
    }
}

/// Whether this is a child, and the state of this thread. `None`: the child has
/// more threads than there is room for.
pub(crate) fn own_of_any(page: &Page) -> (bool, Option<&Thread>) {
    match page.is_child() {
        false => (false, Some(own())),
        true => (true, own_in_child(page)),
    }
}

/// The state of this thread, whether of a child or not. `None` in a child that
/// has more threads than there is room for, and when the library could not have
/// its page.
fn any(page: Option<&Page>) -> Option<&Thread> {
    own_of_any(page?).1
}

/// Writes the message of an error that is about to be returned.
#[cold]
pub(crate) fn set_message(text: fmt::Arguments<'_>) {
    if let Some(thread) = any(fork::page_if_made()) {
        thread.set_message(text);
    }
}

/// The last call failed, and what it leaves in errno.
#[cold]
pub(crate) fn failed(page: Option<&Page>, operation: u32, error: Error) {
    // Without room for it, errno is all that is left.
    if let (Some(page), Some(thread)) = (page, any(page)) {
        thread.set_error(operation, error);
        match page.is_child() {
            false => thread.set_failed(page, true),
            true => thread.failed.set(true),
        }
    }
    error.errnum.set();
}

/// As `virInternalResetLastError()`.
#[cold]
pub(crate) fn reset_error(page: &Page) {
    if !page.is_child() {
        if let Some(thread) = get_own() {
            thread.set_failed(page, false);
        }
        // This thread runs: children that it vforked are no more.
        page.threads
            .of(pthread_self())
            .for_each(|child| page.threads.release(child));
    } else if let Some(child) = children(page).find(gettid()) {
        child.thread.failed.set(false);
        // Room for another one, unless this is a call from a handler, or there
        // is a request to be asked about.
        if child.thread.inside.is_empty() && child.thread.request.get() == 0 {
            children(page).release(child);
        }
    }
}

/// As `virInternalGetLastError()`.
pub(crate) fn last_error(page: &Page) -> Option<*mut virInternalError> {
    match page.is_child() {
        false => get_own().map(Thread::last_error),
        true => {
            let child = children(page).find(gettid())?;
            Some(child.thread.last_error())
        }
    }
}

/// The message of this thread's last error.
#[cfg(feature = "delegate")]
pub(crate) fn own_message() -> alloc::string::String {
    // SAFETY: only this thread comes here; copied before it is written again.
    unsafe { (*own().error.get()).message.text() }
}

/// As `virInternalGetLastRequest()`.
pub(crate) fn last_request() -> u64 {
    any(fork::page_if_made()).map_or(0, |thread| thread.request.get())
}

/// The handler that this thread went into last.
pub(crate) fn innermost_frame() -> Option<Frame> {
    any(fork::page_if_made())?.inside.innermost()
}

const _: () = assert!(
    Code::VIR_INTERNAL_ERR_INVALID_ARG as c_int != 0,
    "a code of 0 would look like no error"
);
