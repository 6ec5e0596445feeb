// SPDX-License-Identifier: LGPL-2.1-or-later
//! Calling code of the application's, which may do what C and C++ can do.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs foreign code and returns what it returned.
///
/// `None`: it was Rust of this very program and panicked. Every other way to
/// unwind out of it (a C++ exception, pthread_exit(), the panic of another
/// Rust runtime) cannot be stopped in a way that is defined, and ends the
/// process with a message that names the operation.
pub(crate) fn call<R>(
    operation: &'static str,
    role: &'static str,
    code: impl FnOnce() -> R,
) -> Option<R> {
    // The catch is needed for the guard to run at all: an exception that
    // nobody catches ends in std::terminate() without unwinding.
    catch_unwind(AssertUnwindSafe(|| {
        let guard = Guard { operation, role };
        let answer = code();
        std::mem::forget(guard);
        answer
    }))
    .ok()
}

struct Guard {
    operation: &'static str,
    role: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            abort(&[
                "the ",
                self.role,
                " of ",
                self.operation,
                " did not return but threw an exception or ended its thread; \
                 handlers must return",
            ]);
        }
    }
}

/// Ends the process with a message: something happened after which no
/// promise of this library can be kept.
#[cold]
pub(crate) fn abort(message: &[&str]) -> ! {
    let parts = ["libvirt-internal: "].iter().chain(message).chain(&["\n"]);
    for part in parts {
        // SAFETY: write() reads as many bytes as the str has.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    std::process::abort()
}
