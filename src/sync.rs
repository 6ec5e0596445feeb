// SPDX-License-Identifier: LGPL-2.1-or-later
//! The synchronisation primitives of the registry, and their twins of the
//! model checker, so that `--cfg loom` checks the very code that ships.

pub(crate) use imp::*;

/// The C library's, since there is no std in the shared library.
#[cfg(not(loom))]
mod imp {
    use core::cell::UnsafeCell;
    use core::ffi::c_int;
    use core::ops::{Deref, DerefMut};

    pub(crate) use alloc::sync::Arc;
    pub(crate) use core::hint::spin_loop as relax;
    pub(crate) use core::sync::atomic;

    /// A mutex that is not moved once it was locked: in a static, or boxed.
    pub(crate) struct Mutex<T> {
        raw: UnsafeCell<libc::pthread_mutex_t>,
        data: UnsafeCell<T>,
    }

    // SAFETY: the data is only reached through a guard, of which there is one
    // at a time; a thread that has it may hand the data on to another.
    unsafe impl<T: Send> Sync for Mutex<T> {}

    /// Has the mutex locked as long as it lives.
    pub(crate) struct MutexGuard<'a, T>(&'a Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(data: T) -> Self {
            Mutex {
                raw: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
                data: UnsafeCell::new(data),
            }
        }
    }

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        // SAFETY: initialised, and not moved. It cannot fail: no thread locks
        // it twice, and the default kind does not check.
        unsafe { libc::pthread_mutex_lock(mutex.raw.get()) };
        MutexGuard(mutex)
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            // SAFETY: this guard's thread locked it.
            unsafe { libc::pthread_mutex_unlock(self.0.raw.get()) };
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: locked, so that nobody else has a reference.
            unsafe { &*self.0.data.get() }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: as above.
            unsafe { &mut *self.0.data.get() }
        }
    }

    /// A condition variable, used with one mutex.
    pub(crate) struct Condvar(UnsafeCell<libc::pthread_cond_t>);

    // SAFETY: any thread may call the functions of a pthread_cond_t.
    unsafe impl Sync for Condvar {}

    impl Condvar {
        pub(crate) const fn new() -> Self {
            Condvar(UnsafeCell::new(libc::PTHREAD_COND_INITIALIZER))
        }

        pub(crate) fn notify_all(&self) {
            // SAFETY: initialised, and not moved.
            unsafe { libc::pthread_cond_broadcast(self.0.get()) };
        }
    }

    /// Waits to be notified, unlocked meanwhile. The thread is not cancelled
    /// there: it would end with the mutex locked.
    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        unsafe extern "C" {
            fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
        }
        const PTHREAD_CANCEL_DISABLE: c_int = 1;
        let mut state = 0;
        // SAFETY: the condition variable and the mutex are initialised and not
        // moved, and the guard's thread has the mutex locked.
        unsafe {
            pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut state);
            libc::pthread_cond_wait(condvar.0.get(), guard.0.raw.get());
            pthread_setcancelstate(state, &mut state);
        }
        guard
    }
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};
    pub(crate) use loom::thread::yield_now as relax;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap()
    }
}
