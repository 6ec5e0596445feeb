// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many processes and threads the user of a process may have.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, c_uint};

use super::limit::{self, Seen};
use crate::capi::process_set_max_processes::{
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION, virInternalSetMaxProcessesHandler,
};
use crate::capi::types::virInternalOperation;
use crate::delegate::wire::Request;
#[cfg(feature = "delegate")]
use crate::dispatch::Outcome;
use crate::dispatch::{Kind, Operation, cannot};
use crate::error::Result;
use crate::kernel::process::{Held, Known, Pid};
use crate::kernel::rlimit::{self, NPROC};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES as u32,
    "virInternalProcessSetMaxProcesses",
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION,
);

pub(crate) struct ProcessSetMaxProcesses {
    pid: Pid,
    processes: c_uint,
    seen: Seen,
}

impl ProcessSetMaxProcesses {
    pub(crate) fn new(pid: Pid, processes: c_uint) -> Self {
        ProcessSetMaxProcesses {
            pid,
            processes,
            seen: Seen::nothing(),
        }
    }
}

impl Operation for ProcessSetMaxProcesses {
    #[inline(always)]
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        Held::process(self.pid, known)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxProcessesHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe {
            handler(self.pid.get(), self.processes, opaque)
        })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        limit::read_back(self, &NPROC, self.pid, &self.seen, |limit| {
            limit.soft.min(limit.hard) >= self.processes.into()
        })
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.process(held);
        request.fixed.u32(self.processes);
        Ok(())
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        rlimit::set(&NPROC, self.pid, self.processes.into()).map_err(|errnum| cannot(self, errnum))
    }

    #[cfg(feature = "delegate")]
    fn act(&self) -> Result<Outcome> {
        let replaced = self.seen.replace(&NPROC, self.pid, self.processes.into());
        replaced.map_err(|errnum| cannot(self, errnum))?;
        Ok(Outcome::Done)
    }

    #[cfg(feature = "delegate")]
    fn undo(&self) {
        self.seen.undo(&NPROC, self.pid, self.processes.into());
    }
}

impl fmt::Display for ProcessSetMaxProcesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        limit::describe(f, &NPROC, self.pid, self.processes)
    }
}

#[cfg(feature = "delegate")]
pub use served::Bounds;
#[cfg(feature = "delegate")]
pub(crate) use served::serve;

/// What a delegate does with a request for it.
#[cfg(feature = "delegate")]
mod served {
    use super::*;
    use crate::delegate::policy::{self, Contradiction, Denied};
    use crate::delegate::server::connection::{Done, Job};
    use crate::delegate::server::serve::{Asked, Read, Serve, Subject};
    use crate::delegate::wire::Reader;
    use crate::operation::Allowed;
    use core::fmt::{self, Write};

    /// What a policy's rule allows of it.
    #[derive(Clone, Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    pub struct Bounds {
        /// The most that may be asked for.
        pub max: u32,
        /// Set at least this much, for callers whose own figure is too low.
        pub grant: Option<u32>,
    }

    impl policy::Bounds for Bounds {
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

    impl fmt::Display for Bounds {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "up to {}", self.max)?;
            match self.grant {
                Some(grant) => write!(f, "; at least {grant} is set"),
                None => Ok(()),
            }
        }
    }

    impl<'m> Serve<'m> for ProcessSetMaxProcesses {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-processes";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_processes.as_ref()
        }

        fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self> {
            let pid = subject.process()?;
            Ok(Self::new(pid, body.u32()?))
        }

        fn permit(
            &mut self,
            bounds: &Bounds,
            asked: &Asked<'_>,
        ) -> core::result::Result<(), Denied> {
            if self.processes > bounds.max {
                return asked.beyond(std::format!(
                    "{} is more than {}",
                    self.processes,
                    bounds.max
                ));
            }
            self.processes = self.processes.max(bounds.grant.unwrap_or(0));
            Ok(())
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write!(json, "{}", self.processes)
        }

        const REPLACES: bool = true;

        fn before(&self, json: &mut String) -> fmt::Result {
            self.seen.write_before(json, &NPROC, self.pid)
        }

        fn after(&self, json: &mut String) -> fmt::Result {
            self.seen.write_after(json, &NPROC, self.pid)
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxProcesses>()
    }
}
