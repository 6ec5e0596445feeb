// SPDX-License-Identifier: LGPL-2.1-or-later
//! Error numbers of the C library and the kernel.

use core::ffi::{CStr, c_char};
use core::fmt;

use libc::c_int;

/// A number as errno has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) c_int);

macro_rules! named {
    ($($name:ident)+) => {
        $(pub(crate) const $name: Errno = Errno(libc::$name);)+
    };
}

impl Errno {
    named! {
        EAGAIN ECHILD ECONNREFUSED ECONNRESET EINPROGRESS EINTR EINVAL EIO ELOOP ENOENT ENOSYS ENOTDIR ENOTSOCK EOPNOTSUPP EPERM EPROTO EPROTONOSUPPORT
        EREMOTEIO ESRCH ETIMEDOUT
    }

    /// What the last system call left in errno. Cold, so that the way of a
    /// call that succeeds is laid out straight.
    #[cold]
    #[inline(never)]
    pub(crate) fn last() -> Errno {
        // SAFETY: errno of this thread.
        Errno(unsafe { *libc::__errno_location() })
    }

    /// Leaves it in errno.
    pub(crate) fn set(self) {
        // SAFETY: errno of this thread.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

/// In words, as strerror() says it without a locale.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // strerror() itself may allocate and take locks to translate.
        #[cfg(target_env = "gnu")]
        unsafe extern "C" {
            #[link_name = "strerrordesc_np"]
            fn describe(number: c_int) -> *const c_char;
        }
        #[cfg(not(target_env = "gnu"))]
        unsafe fn describe(number: c_int) -> *const c_char {
            // SAFETY: any number will do; other C libraries have a table.
            unsafe { libc::strerror(number) }
        }
        // SAFETY: NULL or a constant string.
        let text = unsafe { describe(self.0).as_ref().map(|text| CStr::from_ptr(text)) };
        match text.and_then(|text| text.to_str().ok()) {
            Some(text) => f.write_str(text),
            None => write!(f, "errno {}", self.0),
        }
    }
}
