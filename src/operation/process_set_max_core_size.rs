// SPDX-License-Identifier: LGPL-2.1-or-later
//! How large a core file a process may leave.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, c_ulonglong};

use super::limit;
use crate::capi::process_set_max_core_size::{VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION, virInternalSetMaxCoreSizeHandler};
use crate::capi::types::virInternalOperation;
#[cfg(feature = "delegate")]
use crate::delegate::policy::Size;
use crate::delegate::wire::Request;
use crate::dispatch::{Kind, Operation, cannot};
use crate::error::Result;
use crate::kernel::process::{Held, Pid};
use crate::kernel::rlimit::{self, CORE};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE as u32,
    "virInternalProcessSetMaxCoreSize",
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION,
);

pub(crate) struct ProcessSetMaxCoreSize {
    pub(crate) pid: Pid,
    pub(crate) bytes: c_ulonglong,
}

impl Operation for ProcessSetMaxCoreSize {
    #[inline(always)]
    fn hold(&self) -> Result<Held> {
        Held::process(self.pid)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler = unsafe { core::mem::transmute::<Code, virInternalSetMaxCoreSizeHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe { handler(self.pid.get(), self.bytes, opaque) })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        limit::read_back(self, &CORE, self.pid, |limit| {
            limit.soft == self.bytes && limit.hard == self.bytes
        })
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.process(held);
        request.fixed.u64(self.bytes);
        Ok(())
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        rlimit::set(&CORE, self.pid, self.bytes).map_err(|errnum| cannot(self, errnum))
    }
}

impl fmt::Display for ProcessSetMaxCoreSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        limit::describe(f, &CORE, self.pid, self.bytes)
    }
}

/// What a policy's rule allows of it.
#[cfg(feature = "delegate")]
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bounds {
    /// The most that may be asked for.
    pub max: Size,
}

#[cfg(feature = "delegate")]
impl crate::delegate::policy::Bounds for Bounds {}

#[cfg(feature = "delegate")]
impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {}", self.max)
    }
}
