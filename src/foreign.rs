// SPDX-License-Identifier: LGPL-2.1-or-later
//! Code of the application's, which may do what C and C++ can do.

/// Lives while foreign code runs. Unwinding out of it (a C++ exception,
/// pthread_exit(), a panic of another Rust runtime) cannot be stopped in a way
/// that is defined, and ends the process with a message.
///
/// Where this library has no unwinder of its own (it is built without std),
/// nothing is dropped; then `runtime` learns of the unwinding.
pub(crate) struct Guard;

impl Guard {
    /// The foreign code returned.
    pub(crate) fn returned(self) {
        core::mem::forget(self);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        unwound();
    }
}

/// Ends the process: foreign code was left by unwinding.
#[cold]
pub(crate) fn unwound() -> ! {
    abort(
        &innermost(),
        &[" did not return but threw an exception or ended its thread; handlers must return"],
    )
}

/// The handler that this thread is inside of.
#[cfg(not(loom))]
fn innermost() -> [&'static str; 3] {
    let frame = crate::thread::innermost_frame();
    frame.map_or(["", "", "an operation"], describe)
}

#[cfg(loom)]
fn innermost() -> [&'static str; 3] {
    [""; 3]
}

/// The words for a frame: "a handler of ...".
#[cfg(not(loom))]
pub(crate) fn describe(frame: crate::inside::Frame) -> [&'static str; 3] {
    let role = match frame.handler {
        crate::inside::HANDLER_NONE => "the free callback",
        _ => "the handler",
    };
    [role, " of ", crate::operation::name(frame.operation)]
}

/// Ends the process with a message: something happened after which no promise
/// of this library can be kept.
#[cold]
pub(crate) fn abort(subject: &[&str], rest: &[&str]) -> ! {
    let parts = ["libvirt-internal: "]
        .iter()
        .chain(subject)
        .chain(rest)
        .chain(&["\n"]);
    for part in parts {
        // SAFETY: write() reads as many bytes as the str has.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: abort() may be called at any time.
    unsafe { libc::abort() }
}
