// SPDX-License-Identifier: LGPL-2.1-or-later
//! Memory straight from the kernel, for where malloc() must not be called.

use core::ffi::c_void;
use core::ptr;

use crate::errno::Errno;

/// New memory of the process's own, all zeros.
pub(crate) fn map(size: usize) -> Result<*mut c_void, Errno> {
    // SAFETY: a new private mapping touches nobody's memory.
    let mapping = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    match mapping {
        libc::MAP_FAILED => Err(Errno::last()),
        mapping => Ok(mapping),
    }
}

/// Gives it back.
///
/// # Safety
/// [`map`] gave it, with that size, and nobody has a reference into it.
pub(crate) unsafe fn unmap(mapping: *mut c_void, size: usize) {
    // SAFETY: the caller's word.
    unsafe { libc::munmap(mapping, size) };
}
