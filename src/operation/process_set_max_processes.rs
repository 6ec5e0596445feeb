// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many processes and threads the user of a process may have.

use core::ffi::c_void;

use libc::{c_int, c_uint, pid_t};

use super::limit::{SetLimit, Settable};
use crate::capi::process_set_max_processes::{
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION, virInternalSetMaxProcessesHandler,
};
use crate::capi::types::virInternalOperation;
use crate::dispatch::Kind;
use crate::kernel::rlimit::{NPROC, Resource};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES as u32,
    "virInternalProcessSetMaxProcesses",
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION,
);

pub(crate) type ProcessSetMaxProcesses = SetLimit<Processes>;

pub(crate) enum Processes {}

impl Settable for Processes {
    type Value = c_uint;

    const RESOURCE: &'static Resource = &NPROC;

    unsafe fn invoke(handler: Code, pid: pid_t, processes: c_uint, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxProcessesHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe { handler(pid, processes, opaque) })
    }
}

#[cfg(feature = "delegate")]
pub use served::Bounds;
#[cfg(feature = "delegate")]
pub(crate) use served::serve;

/// What a delegate does with a request for it.
#[cfg(feature = "delegate")]
mod served {
    use alloc::string::String;

    use super::*;
    use crate::delegate::server::connection::{Done, Job};
    use crate::operation::Allowed;
    use crate::operation::limit::{self, Served};

    /// What a policy's rule allows of it.
    pub type Bounds = limit::Bounds<u32>;

    impl Served for Processes {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-processes";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_processes.as_ref()
        }

        fn permit(processes: c_uint, bounds: &Bounds) -> Result<c_uint, String> {
            bounds.permit(processes)
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxProcesses>()
    }
}
