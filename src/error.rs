// SPDX-License-Identifier: LGPL-2.1-or-later
//! What went wrong, as a code, an errno and a sentence.
//!
use core::fmt::{self, Write};

use crate::errno::Errno;
use crate::thread;

/**
 * virInternalErrorCode:
 *
 * What kind of error it is: the code of a virInternalError.
 *
 * Since: 0.1.0
 */
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
pub enum virInternalErrorCode {
    /// An argument is not what the operation takes (EINVAL)
    VIR_INTERNAL_ERR_INVALID_ARG = 1,
    /// The handler was made for another version, or the delegate has another
    /// one (EPROTONOSUPPORT)
    VIR_INTERNAL_ERR_VERSION = 2,
    /// The process or thread is not there, or went away (ESRCH)
    VIR_INTERNAL_ERR_NO_PROCESS = 3,
    /// The delegate's policy does not allow it (EPERM)
    VIR_INTERNAL_ERR_REFUSED = 4,
    /// The handler, the delegate or the kernel failed (its errno)
    VIR_INTERNAL_ERR_FAILED = 5,
    /// It was said to be done, the kernel says otherwise (EREMOTEIO)
    VIR_INTERNAL_ERR_READ_BACK = 6,
    /// The delegate cannot be reached (ECONNREFUSED)
    VIR_INTERNAL_ERR_UNREACHABLE = 7,
    /// The delegate was not ready in time, and nothing was sent (ETIMEDOUT)
    VIR_INTERNAL_ERR_TIMEOUT = 8,
    /// Sent to the delegate, never answered (EINPROGRESS)
    VIR_INTERNAL_ERR_UNKNOWN_OUTCOME = 9,
    /// Not possible in a forked child (ECHILD)
    VIR_INTERNAL_ERR_FORKED = 10,
    /// Not supported here (ENOSYS)
    VIR_INTERNAL_ERR_UNSUPPORTED = 11,
}

pub(crate) use virInternalErrorCode as Code;

/// The longest message in bytes, its end not counted.
const MESSAGE_MAX: usize = 503;

/// A C string of limited length, written without allocation.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Message {
    length: u16,
    text: [u8; MESSAGE_MAX + 1],
}

impl Message {
    pub(crate) const EMPTY: Message = Message {
        length: 0,
        text: [0; MESSAGE_MAX + 1],
    };

    pub(crate) fn new(text: fmt::Arguments<'_>) -> Self {
        let mut message = Message::EMPTY;
        // It always fits: what is too long ends in "...".
        let _ = message.write_fmt(text);
        message
    }

    #[cfg(feature = "delegate")]
    pub(crate) fn text(&self) -> alloc::string::String {
        let text = &self.text[..usize::from(self.length)];
        alloc::string::String::from_utf8_lossy(text).into_owned()
    }

    /// The message as a C string, which lives as long as the message does.
    pub(crate) fn as_ptr(&self) -> *const libc::c_char {
        self.text.as_ptr().cast()
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const CUT: &[u8] = b"...";
        let start = usize::from(self.length);
        if text.len() <= MESSAGE_MAX - start {
            self.text[start..start + text.len()].copy_from_slice(text.as_bytes());
            self.length += text.len() as u16;
            return Ok(());
        }
        let mut end = (MESSAGE_MAX - CUT.len()).saturating_sub(start);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.text[start..start + end].copy_from_slice(&text.as_bytes()[..end]);
        let end = (start + end).min(MESSAGE_MAX - CUT.len());
        self.text[end..end + CUT.len()].copy_from_slice(CUT);
        self.length = (end + CUT.len()) as u16;
        Err(fmt::Error)
    }
}

/// Why a call failed. The sentence that goes with it was written to the
/// thread's last error when this was made, where C will read it: an error is
/// small, and nothing is allocated in a forked child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Error {
    pub(crate) code: Code,
    pub(crate) errnum: Errno,
}

/// What every part of the library returns.
pub(crate) type Result<T> = core::result::Result<T, Error>;

impl Error {
    #[cold]
    #[inline(never)]
    fn new(code: Code, errnum: Errno, text: fmt::Arguments<'_>) -> Self {
        thread::set_message(text);
        Error { code, errnum }
    }

    /// An argument that the operation does not take.
    #[cold]
    pub(crate) fn invalid(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_INVALID_ARG, Errno::EINVAL, text)
    }

    /// A handler made for another version of the operation.
    #[cold]
    pub(crate) fn version(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_VERSION, Errno::EPROTONOSUPPORT, text)
    }

    /// A process or thread that is not there (any more).
    #[cold]
    pub(crate) fn no_process(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_NO_PROCESS, Errno::ESRCH, text)
    }

    /// The kernel, or who acted in its stead, failed with `errnum`, which is
    /// put behind the text in words.
    #[cold]
    pub(crate) fn failed(errnum: Errno, text: fmt::Arguments<'_>) -> Self {
        let code = Code::VIR_INTERNAL_ERR_FAILED;
        Self::new(code, errnum, format_args!("{text}: {errnum}"))
    }

    /// As [`failed`](Self::failed), but for ESRCH, which says that the
    /// process is not there.
    #[cold]
    pub(crate) fn from_kernel(errnum: Errno, text: fmt::Arguments<'_>) -> Self {
        let mut error = Self::failed(errnum, text);
        if errnum == Errno::ESRCH {
            error.code = Code::VIR_INTERNAL_ERR_NO_PROCESS;
        }
        error
    }

    /// The kernel's state is not what it was said to be.
    #[cold]
    pub(crate) fn read_back(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO, text)
    }

    /// Something that this machine does not have.
    #[cold]
    pub(crate) fn unsupported(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_UNSUPPORTED, Errno::ENOSYS, text)
    }

    /// The delegate's policy does not allow it.
    #[cold]
    pub(crate) fn refused(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_REFUSED, Errno::EPERM, text)
    }

    /// What a delegate says of its own failure, which has the errno in words.
    #[cold]
    pub(crate) fn of_delegate(code: Code, errnum: Errno, text: fmt::Arguments<'_>) -> Self {
        Self::new(code, errnum, text)
    }

    /// The delegate is not there.
    #[cold]
    pub(crate) fn unreachable(text: fmt::Arguments<'_>) -> Self {
        Self::new(
            Code::VIR_INTERNAL_ERR_UNREACHABLE,
            Errno::ECONNREFUSED,
            text,
        )
    }

    /// The delegate was not ready in time, and nothing was sent.
    #[cold]
    pub(crate) fn timeout(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_TIMEOUT, Errno::ETIMEDOUT, text)
    }

    /// Sent to the delegate, never answered.
    #[cold]
    pub(crate) fn unknown_outcome(text: fmt::Arguments<'_>) -> Self {
        Self::new(
            Code::VIR_INTERNAL_ERR_UNKNOWN_OUTCOME,
            Errno::EINPROGRESS,
            text,
        )
    }

    /// Something that a forked child cannot do.
    #[cold]
    pub(crate) fn forked(text: fmt::Arguments<'_>) -> Self {
        Self::new(Code::VIR_INTERNAL_ERR_FORKED, Errno::ECHILD, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &Message) -> &str {
        str::from_utf8(&message.text[..usize::from(message.length)]).expect("UTF-8")
    }

    #[test]
    fn a_message_that_is_too_long_ends_in_dots_and_fits() {
        for length in MESSAGE_MAX - 5..MESSAGE_MAX + 5 {
            let long = "x".repeat(length);
            let message = Message::new(format_args!("{long}"));
            if length <= MESSAGE_MAX {
                assert_eq!(text(&message), long);
            } else {
                assert_eq!(text(&message).len(), MESSAGE_MAX);
                assert!(text(&message).ends_with("x..."));
            }
        }
    }

    #[test]
    fn a_message_is_cut_between_pieces_and_between_characters() {
        let first = "x".repeat(MESSAGE_MAX - 1);
        let message = Message::new(format_args!("{first}{}", "yz"));
        assert!(text(&message).ends_with("x..."), "{}", text(&message));
        let umlauts = "ü".repeat(MESSAGE_MAX);
        let message = Message::new(format_args!("{umlauts}"));
        assert!(text(&message).ends_with("ü..."), "{}", text(&message));
    }
}
