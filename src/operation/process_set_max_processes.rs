// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many processes and threads the user of a process may have.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, c_uint};

use super::limit;
use crate::capi::process_set_max_processes::{VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION, virInternalSetMaxProcessesHandler};
use crate::capi::types::virInternalOperation;
#[cfg(feature = "delegate")]
use crate::delegate::policy::Contradiction;
use crate::delegate::wire::Request;
use crate::dispatch::{Kind, Operation, cannot};
use crate::error::Result;
use crate::kernel::process::{Held, Pid};
use crate::kernel::rlimit::{self, NPROC};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES as u32,
    "virInternalProcessSetMaxProcesses",
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION,
);

pub(crate) struct ProcessSetMaxProcesses {
    pub(crate) pid: Pid,
    pub(crate) processes: c_uint,
}

impl Operation for ProcessSetMaxProcesses {
    #[inline(always)]
    fn hold(&self) -> Result<Held> {
        Held::process(self.pid)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler = unsafe { core::mem::transmute::<Code, virInternalSetMaxProcessesHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe { handler(self.pid.get(), self.processes, opaque) })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        limit::read_back(self, &NPROC, self.pid, |limit| {
            limit.soft.min(limit.hard) >= self.processes.into()
        })
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.process(held);
        request.fixed.u64(self.processes.into());
        Ok(())
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        rlimit::set(&NPROC, self.pid, self.processes.into()).map_err(|errnum| cannot(self, errnum))
    }
}

impl fmt::Display for ProcessSetMaxProcesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        limit::describe(f, &NPROC, self.pid, self.processes)
    }
}

/// What a policy's rule allows of it.
#[cfg(feature = "delegate")]
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bounds {
    /// The most that may be asked for.
    pub max: u32,
    /// Set at least this much, for callers whose own figure is too low.
    pub grant: Option<u32>,
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
