// SPDX-License-Identifier: LGPL-2.1-or-later
//! The library as a C caller sees it: what a function returns, the last error,
//! and a handler's opaque.

use std::cell::RefCell;
use std::ffi::{CStr, c_void};

use libc::{c_int, c_uint};
use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::capi::error::virInternalGetLastError;
use virt_internal::capi::types::{
    VIR_INTERNAL_HANDLED, VIR_INTERNAL_NO_DIRECT, VIR_INTERNAL_NOT_HANDLED,
};
use virt_internal::error::virInternalErrorCode as Code;

use crate::operation::Request;

/// The flags of an operation.
pub const DIRECT: c_uint = 0;
pub const NO_DIRECT: c_uint = VIR_INTERNAL_NO_DIRECT;

/// The variable that names a delegate.
pub const DELEGATE: &str = "LIBVIRT_INTERNAL_DELEGATE";

/// Has the library ask no delegate in this process.
///
/// # Safety
/// There is no other thread, and the library was not used yet.
pub unsafe fn forget_delegate() {
    // SAFETY: the caller's word.
    unsafe { std::env::remove_var(DELEGATE) };
}

/// A copy of the library's last error.
pub struct Failure {
    pub code: c_int,
    pub errnum: Errno,
    pub message: String,
}

impl Failure {
    fn last() -> Failure {
        // SAFETY: NULL, or an error that is good until this thread's next call.
        match unsafe { virInternalGetLastError().as_ref() } {
            Some(error) => Failure {
                code: error.code,
                errnum: Errno::from_raw(error.errnum),
                // SAFETY: never NULL, and as long-lived as the error.
                message: unsafe { CStr::from_ptr(error.message) }
                    .to_string_lossy()
                    .into_owned(),
            },
            None => Failure {
                code: 0,
                errnum: Errno::last(),
                message: "the library left no error".into(),
            },
        }
    }

    pub fn is(&self, code: Code, errnum: Errno) -> bool {
        self.code == code as c_int && self.errnum == errnum
    }

    /// Whether a delegate failed, or none could be asked: then it does not
    /// matter what this process lacks.
    pub fn is_of_delegate(&self) -> bool {
        use Code::*;
        let codes = [
            VIR_INTERNAL_ERR_REFUSED,
            VIR_INTERNAL_ERR_UNREACHABLE,
            VIR_INTERNAL_ERR_TIMEOUT,
            VIR_INTERNAL_ERR_UNKNOWN_OUTCOME,
        ];
        // A failure has the code that it would have here.
        codes.into_iter().any(|code| code as c_int == self.code)
            || self.message.starts_with("the delegate could not ")
    }

    /// The name of the code, as in the header.
    pub fn code_name(&self) -> String {
        use Code::*;
        [
            VIR_INTERNAL_ERR_INVALID_ARG,
            VIR_INTERNAL_ERR_VERSION,
            VIR_INTERNAL_ERR_NO_PROCESS,
            VIR_INTERNAL_ERR_REFUSED,
            VIR_INTERNAL_ERR_FAILED,
            VIR_INTERNAL_ERR_READ_BACK,
            VIR_INTERNAL_ERR_UNREACHABLE,
            VIR_INTERNAL_ERR_TIMEOUT,
            VIR_INTERNAL_ERR_UNKNOWN_OUTCOME,
            VIR_INTERNAL_ERR_FORKED,
            VIR_INTERNAL_ERR_UNSUPPORTED,
        ]
        .into_iter()
        .find(|code| *code as c_int == self.code)
        .map_or(format!("error {}", self.code), |code| format!("{code:?}"))
    }

    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code_name(),
            "errno": format!("{:?}", self.errnum),
            "message": self.message,
        })
    }
}

/// What became of an operation.
pub enum Outcome {
    Done,
    NotHandled,
    Failed(Failure),
}

impl Outcome {
    /// Of what the operation's function returned, right after it did.
    pub fn of(returned: c_int) -> Outcome {
        match returned {
            VIR_INTERNAL_HANDLED => Outcome::Done,
            VIR_INTERNAL_NOT_HANDLED => Outcome::NotHandled,
            _ => Outcome::Failed(Failure::last()),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::NotHandled => "not-handled",
            Outcome::Failed(_) => "failed",
        }
    }

    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

/// How a handler behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Does,
    Declines,
    Fails(Errno),
    Lies,
}

/// A handler's opaque: how it is to behave, and what it was called with.
pub struct Script {
    behaviour: Behaviour,
    called_with: RefCell<Vec<String>>,
}

impl Script {
    pub fn new(behaviour: Behaviour) -> Script {
        Script {
            behaviour,
            called_with: RefCell::default(),
        }
    }

    pub fn as_opaque(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// # Safety
    /// `opaque` comes from `as_opaque`, its script is alive, and no other
    /// thread uses it.
    pub unsafe fn of<'a>(opaque: *mut c_void) -> &'a Script {
        // SAFETY: the caller's word.
        unsafe { &*opaque.cast() }
    }

    /// The body of a handler that is asked for `request`.
    pub fn answer(&self, request: &dyn Request) -> c_int {
        self.called_with.borrow_mut().push(request.to_string());
        match self.behaviour {
            Behaviour::Does => match request.act() {
                Ok(()) => VIR_INTERNAL_HANDLED,
                Err(errnum) => -(errnum as c_int),
            },
            Behaviour::Declines => VIR_INTERNAL_NOT_HANDLED,
            Behaviour::Fails(errnum) => -(errnum as c_int),
            Behaviour::Lies => VIR_INTERNAL_HANDLED,
        }
    }

    pub fn called_with(&self) -> Vec<String> {
        self.called_with.borrow().clone()
    }
}
