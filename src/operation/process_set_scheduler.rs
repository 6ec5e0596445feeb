// SPDX-License-Identifier: LGPL-2.1-or-later
//! The scheduling policy and priority of a thread.

use core::ffi::c_void;
use core::fmt;

use libc::c_int;
use crate::errno::Errno;

use crate::capi::process_set_scheduler::{
    VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION, virInternalSetSchedulerHandler,
};
use crate::capi::types::virInternalOperation;
#[cfg(feature = "delegate")]
use crate::delegate::policy::Cpus;
use crate::delegate::wire::Request;
use crate::dispatch::{Kind, Operation, cannot, not_done, not_readable};
use crate::error::Result;
use crate::kernel::process::{Held, Task};
use crate::kernel::scheduler::{self, Schedule};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_SCHEDULER as u32,
    "virInternalProcessSetScheduler",
    VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION,
);

pub(crate) struct ProcessSetScheduler {
    pub(crate) task: Task,
    pub(crate) schedule: Schedule,
}

impl Operation for ProcessSetScheduler {
    #[inline(always)]
    fn hold(&self) -> Result<Held> {
        Held::task(self.task)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler = unsafe { core::mem::transmute::<Code, virInternalSetSchedulerHandler>(handler) };
        let Self { task, schedule } = self;
        handler.map_or(1, |handler| {
            // SAFETY: as above.
            unsafe {
                handler(
                    task.pid.get(),
                    task.tid(),
                    schedule.policy(),
                    schedule.priority(),
                    opaque,
                )
            }
        })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        match scheduler::get(self.task.tid()) {
            Ok(found) if found == self.schedule => Ok(()),
            Ok(found) => Err(not_done(self, format_args!("the kernel says {found}"))),
            Err(Errno::ESRCH) => Err(self.task.gone()),
            Err(errnum) => Err(not_readable(self, errnum)),
        }
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.task(self.task, held);
        request.fixed.i32(self.schedule.policy());
        request.fixed.i32(self.schedule.priority());
        Ok(())
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        self.task.required_around(|| {
            scheduler::set(self.task.tid(), self.schedule).map_err(|errnum| cannot(self, errnum))
        })
    }
}

impl fmt::Display for ProcessSetScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, schedule } = self;
        write!(f, "set scheduler parameters of {task} to {schedule}")
    }
}

/// What a policy's rule allows of it.
#[cfg(feature = "delegate")]
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bounds {
    /// The policies that may be asked for.
    pub policies: Vec<crate::kernel::scheduler::virInternalSchedPolicy>,
    /// The highest priority of FIFO and RR; needed when one of them is allowed.
    pub max_priority: Option<u8>,
    /// FIFO and RR only for threads that run on none but these CPUs; needed
    /// when one of them is allowed.
    pub cpus: Option<Cpus>,
}
