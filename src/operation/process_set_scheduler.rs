// SPDX-License-Identifier: LGPL-2.1-or-later
//! The scheduling policy and priority of a thread.

use core::ffi::c_void;
use core::fmt;

use crate::errno::Errno;
use libc::c_int;

use crate::capi::process_set_scheduler::{
    VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION, virInternalSetSchedulerHandler,
};
use crate::capi::types::virInternalOperation;
use crate::delegate::wire::Request;
use crate::dispatch::{Kind, Operation, cannot, not_done, not_readable};
use crate::error::Result;
use crate::kernel::process::{Held, Known, Task};
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
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        Held::task(self.task, known)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetSchedulerHandler>(handler) };
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

#[cfg(feature = "delegate")]
pub use served::Bounds;
#[cfg(feature = "delegate")]
pub(crate) use served::serve;

/// What a delegate does with a request for it.
#[cfg(feature = "delegate")]
mod served {
    use super::*;
    use crate::delegate::policy::{self, Contradiction, Cpus, Denied, not_empty, priority};
    use crate::delegate::server::connection::{Done, Job};
    use crate::delegate::server::cpuset;
    use crate::delegate::server::serve::{Asked, Read, Serve, Subject};
    use crate::delegate::wire::{Malformed, Reader};
    use crate::kernel::affinity;
    use crate::kernel::scheduler::virInternalSchedPolicy;
    use crate::operation::Allowed;
    use core::fmt::{self, Write};

    /// What a policy's rule allows of it.
    #[derive(Clone, Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    pub struct Bounds {
        /// The policies that may be asked for.
        #[serde(deserialize_with = "not_empty")]
        pub policies: Vec<virInternalSchedPolicy>,
        /// The highest priority of FIFO and RR; needed when one of them is allowed.
        #[serde(default, deserialize_with = "priority")]
        pub max_priority: Option<u8>,
        /// FIFO and RR only for threads that run on none but these CPUs; needed
        /// when one of them is allowed.
        pub cpus: Option<Cpus>,
        /// What is to keep them there.
        pub cpus_by: Option<CpusBy>,
    }

    /// What keeps a thread on CPUs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum CpusBy {
        /// Its cpuset: it cannot leave it, and what it makes is in it, too.
        #[default]
        Cpuset,
        /// Its affinity, which it can change itself afterwards.
        Affinity,
    }

    impl policy::Bounds for Bounds {
        fn check(&self) -> core::result::Result<(), Contradiction> {
            use virInternalSchedPolicy::{VIR_INTERNAL_SCHED_FIFO, VIR_INTERNAL_SCHED_RR};
            let is_realtime =
                |policy| matches!(policy, VIR_INTERNAL_SCHED_FIFO | VIR_INTERNAL_SCHED_RR);
            let realtime = self.policies.iter().copied().any(is_realtime);
            let fields = [
                ("max-priority", self.max_priority.is_some(), "1 to 99"),
                ("cpus", self.cpus.is_some(), "where such threads may run"),
            ];
            for (field, is_there, what) in fields {
                let text = match (realtime, is_there) {
                    (true, false) => std::format!("fifo and rr need it: {what}"),
                    (false, true) => {
                        "it means nothing without fifo or rr among the policies".into()
                    }
                    _ => continue,
                };
                return Err(Contradiction::new(field, text));
            }
            match (realtime, self.cpus_by) {
                (false, Some(_)) => Err(Contradiction::new(
                    "cpus-by",
                    "it means nothing without fifo or rr among the policies",
                )),
                _ => Ok(()),
            }
        }
    }

    impl fmt::Display for Bounds {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("policies ")?;
            let mut comma = "";
            for policy in &self.policies {
                write!(f, "{comma}{}", name(*policy))?;
                comma = ", ";
            }
            if let Some(priority) = self.max_priority {
                write!(f, "; fifo and rr with priority 1 to {priority}")?;
            }
            let Some(cpus) = &self.cpus else {
                return Ok(());
            };
            let by = match self.cpus_by.unwrap_or_default() {
                CpusBy::Cpuset => "whose cpuset is",
                CpusBy::Affinity => "whose affinity is",
            };
            write!(f, " and only for threads {by} within CPUs {cpus}")
        }
    }

    /// A scheduling policy's name, as a policy of a delegate has it.
    fn name(policy: virInternalSchedPolicy) -> &'static str {
        use virInternalSchedPolicy::*;
        match policy {
            VIR_INTERNAL_SCHED_NONE => "none",
            VIR_INTERNAL_SCHED_BATCH => "batch",
            VIR_INTERNAL_SCHED_IDLE => "idle",
            VIR_INTERNAL_SCHED_FIFO => "fifo",
            VIR_INTERNAL_SCHED_RR => "rr",
            VIR_INTERNAL_SCHED_OTHER => "other",
        }
    }

    impl<'m> Serve<'m> for ProcessSetScheduler {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-scheduler";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_scheduler.as_ref()
        }

        fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self> {
            let task = subject.task(body)?;
            let schedule = Schedule::new(body.i32()?, body.i32()?)?;
            // A caller that has nothing to change asks nobody.
            let schedule = schedule.ok_or(Malformed("the scheduling policy is NONE"))?;
            Ok(ProcessSetScheduler { task, schedule })
        }

        fn permit(
            &mut self,
            bounds: &Bounds,
            asked: &Asked<'_>,
        ) -> core::result::Result<(), Denied> {
            let policy = self.schedule.kind();
            if !bounds.policies.contains(&policy) {
                return asked.beyond(std::format!("{} is not among its policies", name(policy)));
            }
            let (Some(most), Some(cpus)) = (bounds.max_priority, &bounds.cpus) else {
                return Ok(());
            };
            let priority = self.schedule.priority();
            if priority == 0 {
                return Ok(());
            }
            if priority > i32::from(most) {
                return asked.beyond(std::format!("priority {priority} is above {most}"));
            }
            let (what, found) = match bounds.cpus_by.unwrap_or_default() {
                CpusBy::Cpuset => ("cpuset", cpuset::of_task(self.task)),
                CpusBy::Affinity => ("affinity", affinity::get(self.task.tid())),
            };
            let outside = match &found {
                Ok(map) => cpus.first_outside(map),
                Err(Errno::EOPNOTSUPP) => {
                    return asked.beyond("there is no cpuset controller that keeps the thread");
                }
                Err(errnum) => {
                    return asked.beyond(std::format!(
                        "it cannot be told which CPUs the thread's {what} has: {errnum}"
                    ));
                }
            };
            match outside {
                None => Ok(()),
                Some(cpu) => asked.beyond(std::format!(
                    "the thread's {what} has CPU {cpu}, and with {} it may have {cpus} only",
                    name(policy)
                )),
            }
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write!(json, "\"{}\"", self.schedule)
        }

        fn before(&self, json: &mut String) -> fmt::Result {
            match scheduler::get(self.task.tid()) {
                Ok(found) => write!(json, "\"{found}\""),
                Err(_) => json.write_str("null"),
            }
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetScheduler>()
    }
}
