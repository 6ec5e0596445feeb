// SPDX-License-Identifier: LGPL-2.1-or-later
//! Erasing secrets.

use core::ffi::{c_char, c_void};

use libc::size_t;

use super::symver;

/**
 * virInternalSecureErase:
 * @buf: the memory, or NULL
 * @len: its length in bytes
 *
 * Overwrites @len bytes at @buf with zeros, in a way that the compiler does
 * not leave out (explicit_bzero()). Does nothing when @buf is NULL.
 *
 * Thread-safe, fork-safe. errno and the last error are left alone.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalSecureErase(buf: *mut c_void, len: size_t) {
    if !buf.is_null() {
        // SAFETY: the caller's word that `len` bytes may be written there.
        unsafe { libc::explicit_bzero(buf, len) };
    }
}
symver!(virInternalSecureErase);

/**
 * virInternalSecureEraseString:
 * @str: the string, or NULL
 *
 * Overwrites the bytes of @str up to its NUL with zeros, as
 * virInternalSecureErase() does. Does nothing when @str is NULL.
 *
 * Thread-safe, fork-safe. errno and the last error are left alone.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalSecureEraseString(str: *mut c_char) {
    if !str.is_null() {
        // SAFETY: the caller's word that it is a C string and may be written.
        unsafe { libc::explicit_bzero(str.cast(), libc::strlen(str)) };
    }
}
symver!(virInternalSecureEraseString);
