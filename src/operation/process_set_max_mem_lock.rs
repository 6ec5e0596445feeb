// SPDX-License-Identifier: LGPL-2.1-or-later
//! How much memory a process may lock.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, c_ulonglong};

use super::limit;
use crate::capi::process_set_max_mem_lock::{VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, virInternalSetMaxMemLockHandler};
use crate::capi::types::virInternalOperation;
#[cfg(feature = "delegate")]
use crate::delegate::policy::{Contradiction, Size};
use crate::delegate::wire::Request;
use crate::dispatch::{Kind, Operation, cannot};
use crate::error::Result;
use crate::kernel::process::{Held, Pid};
use crate::kernel::rlimit::{self, MEMLOCK};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_MEM_LOCK as u32,
    "virInternalProcessSetMaxMemLock",
    VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
);

/// libvirt's figure for unlimited (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED), and
/// whatever is more.
const UNLIMITED: c_ulonglong = 9_007_199_254_740_991;

pub(crate) struct ProcessSetMaxMemLock {
    pub(crate) pid: Pid,
    pub(crate) bytes: c_ulonglong,
}

impl ProcessSetMaxMemLock {
    /// What the kernel is told.
    fn limit(&self) -> u64 {
        match self.bytes {
            UNLIMITED.. => libc::RLIM_INFINITY,
            bytes => bytes,
        }
    }
}

impl Operation for ProcessSetMaxMemLock {
    #[inline(always)]
    fn hold(&self) -> Result<Held> {
        Held::process(self.pid)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler = unsafe { core::mem::transmute::<Code, virInternalSetMaxMemLockHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe { handler(self.pid.get(), self.bytes, opaque) })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        limit::read_back(self, &MEMLOCK, self.pid, |limit| {
            limit.soft.min(limit.hard) >= self.bytes.min(UNLIMITED)
        })
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.process(held);
        request.fixed.u64(self.bytes);
        Ok(())
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        rlimit::set(&MEMLOCK, self.pid, self.limit()).map_err(|errnum| cannot(self, errnum))
    }
}

impl fmt::Display for ProcessSetMaxMemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        limit::describe(f, &MEMLOCK, self.pid, self.bytes)
    }
}

/// What a policy's rule allows of it.
#[cfg(feature = "delegate")]
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bounds {
    /// The most that may be asked for.
    pub max: Size,
    /// Set at least this much, for callers whose own figure is too low.
    pub grant: Option<Size>,
}

#[cfg(feature = "delegate")]
impl crate::delegate::policy::Bounds for Bounds {
    fn check(&self) -> core::result::Result<(), Contradiction> {
        match self.grant {
            Some(grant) if grant > self.max => Err(Contradiction::new(
                "grant",
                std::format!("it must be at most max, which is {}", self.max),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "delegate")]
impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {}", self.max)?;
        match self.grant {
            Some(grant) => write!(f, "; at least {grant} is set"),
            None => Ok(()),
        }
    }
}
