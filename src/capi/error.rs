// SPDX-License-Identifier: LGPL-2.1-or-later
//! The thread's last error.

use core::ffi::c_char;

use libc::{c_int, c_uint};

use super::symver;
use crate::{fork, thread};

/**
 * virInternalError:
 *
 * What went wrong in a thread's last call.
 *
 * Since: 0.1.0
 */
#[repr(C)]
pub struct virInternalError {
    /// what kind of error: a virInternalErrorCode
    pub code: c_int,
    /// the errno that the call left
    pub errnum: c_int,
    /// which operation: a virInternalOperation, 0 when it was none
    pub operation: c_uint,
    /// what happened, in words; never NULL
    pub message: *const c_char,
}

/**
 * virInternalErrorPtr:
 *
 * Points to memory of the library's, which is good until the thread's next
 * call of a function of this library, and must not be freed.
 *
 * Since: 0.1.0
 */
pub type virInternalErrorPtr = *mut virInternalError;

/**
 * virInternalGetLastError:
 *
 * Tells what went wrong in this thread's last call of a function of this
 * library.
 *
 * In a forked child it works without allocation for up to 64 threads at a
 * time; beyond that it returns NULL and errno is all there is.
 *
 * Thread-safe, fork-safe.
 *
 * Returns the error, or NULL when that call succeeded. It is good until the
 * thread's next call and must not be freed.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub extern "C" fn virInternalGetLastError() -> virInternalErrorPtr {
    let error = fork::page_if_made().and_then(thread::last_error);
    error.unwrap_or(core::ptr::null_mut())
}
symver!(virInternalGetLastError);

/**
 * virInternalResetLastError:
 *
 * Makes virInternalGetLastError() return NULL, until this thread's next call
 * that fails.
 *
 * Thread-safe, fork-safe.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub extern "C" fn virInternalResetLastError() {
    if let Some(page) = fork::page_if_made() {
        thread::reset_error(page);
    }
}
symver!(virInternalResetLastError);
