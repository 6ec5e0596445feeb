// SPDX-License-Identifier: LGPL-2.1-or-later
//! Whether this is the process that first used the library, or a child of it.
//!
//! A forked child has one thread, and whatever lock another thread held when
//! it was forked stays locked for ever. pthread_atfork() is not run by a raw
//! clone(). So the first use of the library makes a mapping that the kernel
//! wipes in children (MADV_WIPEONFORK, Linux 4.14), and every entry reads it.
//!
//! A child of vfork(), or of clone() with CLONE_VM, shares the memory and
//! finds nothing wiped: only getpid() tells it from its parent. That is a
//! system call, so [`is_child`] is asked where handlers, locks or errors are
//! touched, and the way that ends in one system call does not ask.

use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use crate::errno::Errno;

use crate::delegate::client;
use crate::error::{Error, Result};
use crate::kernel::memory;
use crate::kernel::syscall::syscall;
use crate::thread::{self, ChildThreads};

/// What is in the mapping. All zeros are valid: that is how the kernel makes
/// it, and how a forked child finds it.
pub(crate) struct Page {
    /// The process that made it.
    owner: AtomicI32,
    /// The states of the threads of vforked children.
    pub(crate) threads: ChildThreads,
    /// How many threads of the process itself have a last error: while it is
    /// 0, a call that succeeds need not look for the thread's state.
    pub(crate) failed_threads: AtomicUsize,
}

static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// The mapping. Made by the first call, without a lock.
#[inline(always)]
pub(crate) fn page() -> Result<&'static Page> {
    match page_if_made() {
        Some(page) => Ok(page),
        None => make(),
    }
}

/// The mapping, if there was a call yet.
#[inline(always)]
pub(crate) fn page_if_made() -> Option<&'static Page> {
    // SAFETY: null, or a mapping that `make` published and nobody unmaps.
    unsafe { PAGE.load(Ordering::Acquire).as_ref() }
}

impl Page {
    /// Whether the kernel wiped the mapping: a child that has memory of its
    /// own. Costs one read.
    #[inline(always)]
    pub(crate) fn is_wiped(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == 0
    }

    /// The process that made the mapping; 0 in a child with own memory.
    #[inline(always)]
    pub(crate) fn owner(&self) -> libc::pid_t {
        self.owner.load(Ordering::Relaxed)
    }

    /// Whether this is a child of any kind. Costs a system call.
    #[inline(always)]
    pub(crate) fn is_child(&self) -> bool {
        self.is_wiped() || self.owner() != getpid()
    }
}

/// The caller's pid, asked afresh: what was stored before a vfork() is wrong.
#[inline(always)]
pub(crate) fn getpid() -> libc::pid_t {
    // SAFETY: getpid() has no arguments and cannot fail.
    unsafe { syscall(libc::SYS_getpid, [0; 4]) }.map_or(0, |pid| pid as libc::pid_t)
}

#[cold]
fn make() -> Result<&'static Page> {
    thread::make_key().map_err(|errnum| {
        Error::failed(errnum, format_args!("cannot have thread-specific data"))
    })?;
    let size = size_of::<Page>();
    let mapping = memory::map(size).map_err(|errnum| {
        Error::failed(
            errnum,
            format_args!("cannot map {size} bytes for the library's own use"),
        )
    })?;
    // SAFETY: the mapping made above.
    if unsafe { libc::madvise(mapping, size, libc::MADV_WIPEONFORK) } != 0 {
        let errnum = Errno::last();
        // SAFETY: the mapping made above, which nobody else knows of.
        unsafe { memory::unmap(mapping, size) };
        return Err(Error::failed(
            errnum,
            format_args!("cannot have memory wiped on fork"),
        ));
    }
    let page = mapping.cast::<Page>();
    // SAFETY: large enough, aligned to a page, and all zeros are valid.
    unsafe { &*page }
        .owner
        .store(owner_of_memory(), Ordering::Relaxed);
    if let Err(error) = client::read_environment() {
        // SAFETY: the mapping made above, which nobody else knows of.
        unsafe { memory::unmap(mapping, size) };
        return Err(error);
    }
    let published =
        PAGE.compare_exchange(ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire);
    match published {
        // SAFETY: published, and never unmapped.
        Ok(_) => Ok(unsafe { &*page }),
        Err(other) => {
            // SAFETY: another thread was first; nobody knows of this mapping,
            // and nobody unmaps the other one.
            unsafe {
                memory::unmap(mapping, size);
                Ok(&*other)
            }
        }
    }
}

/// The process whose memory this is. When a child of vfork() is the first to
/// call the library, that is its parent: the child will be gone, the mapping
/// will not.
fn owner_of_memory() -> libc::pid_t {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: getppid() has no arguments and cannot fail.
    let (own, parent) = (getpid(), unsafe { libc::getppid() });
    // SAFETY: numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, own, parent, KCMP_VM, 0, 0) } {
        0 => parent,
        // Container runtimes refuse kcmp() to those who may not trace.
        -1 if has_borrowed_thread() => parent,
        _ => own,
    }
}

/// Whether this thread runs on what the C library made for another one, as a
/// child of vfork() or of a raw clone() does. The C library knows the other
/// one's id, and says it in the id of the thread's CPU clock (whose form is the
/// kernel's: the inverted thread id, shifted left by 3).
fn has_borrowed_thread() -> bool {
    unsafe extern "C" {
        fn pthread_getcpuclockid(
            thread: libc::pthread_t,
            clock: *mut libc::clockid_t,
        ) -> libc::c_int;
    }
    let mut clock = 0;
    // SAFETY: this thread, which is alive, and a clock id to write.
    unsafe {
        pthread_getcpuclockid(libc::pthread_self(), &mut clock) == 0
            && !(clock >> 3) != libc::gettid()
    }
}
