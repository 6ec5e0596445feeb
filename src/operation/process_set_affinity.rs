// SPDX-License-Identifier: LGPL-2.1-or-later
//! The CPUs that a thread may run on.

use core::ffi::c_void;
use core::fmt;

use crate::errno::Errno;
use libc::c_int;

use crate::capi::process_set_affinity::{
    VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION, virInternalSetAffinityHandler,
};
use crate::capi::types::virInternalOperation;
use crate::delegate::wire::Request;
use crate::dispatch::{Kind, Operation, cannot, not_done, not_readable};
use crate::error::Result;
use crate::kernel::affinity::{self, CpuMap};
use crate::kernel::process::{Held, Known, Task};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_AFFINITY as u32,
    "virInternalProcessSetAffinity",
    VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION,
);

pub(crate) struct ProcessSetAffinity<'a> {
    pub(crate) task: Task,
    pub(crate) cpumap: CpuMap<'a>,
}

impl Operation for ProcessSetAffinity<'_> {
    #[inline(always)]
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        Held::task(self.task, known)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetAffinityHandler>(handler) };
        let map = self.cpumap.bytes();
        handler.map_or(1, |handler| {
            // SAFETY: as above; the map's length fits, it came as a c_int.
            unsafe {
                handler(
                    self.task.pid.get(),
                    self.task.tid(),
                    map.as_ptr(),
                    map.len() as c_int,
                    opaque,
                )
            }
        })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        match affinity::is_within(self.task.tid(), self.cpumap) {
            Ok(true) => Ok(()),
            Ok(false) => Err(not_done(
                self,
                format_args!("the kernel lets it run on other CPUs as well"),
            )),
            Err(Errno::ESRCH) => Err(self.task.gone()),
            Err(errnum) => Err(not_readable(self, errnum)),
        }
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.task(self.task, held);
        request.cpus(Some(self.cpumap))
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        self.task.required_around(|| {
            affinity::set(self.task.tid(), self.cpumap).map_err(|errnum| cannot(self, errnum))
        })
    }
}

impl fmt::Display for ProcessSetAffinity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set CPU affinity of {} to {}", self.task, self.cpumap)
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
    use crate::delegate::policy::{self, Cpus, Denied};
    use crate::delegate::server::connection::{Done, Job};
    use crate::delegate::server::serve::{Asked, Read, Serve, Subject, read_cpus, write_cpus};
    use crate::delegate::wire::{Malformed, Reader};
    use crate::operation::Allowed;
    use core::fmt::{self, Write};

    /// What a policy's rule allows of it.
    #[derive(Clone, Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    pub struct Bounds {
        /// The CPUs that may be asked for.
        pub cpus: Cpus,
    }

    impl policy::Bounds for Bounds {}

    impl fmt::Display for Bounds {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "CPUs {}", self.cpus)
        }
    }

    impl<'m> Serve<'m> for ProcessSetAffinity<'m> {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-affinity";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_affinity.as_ref()
        }

        fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self> {
            let task = subject.task(body)?;
            let length = body.u32()?;
            let cpumap = read_cpus(body, length)?.ok_or(Malformed("there is no map of CPUs"))?;
            Ok(ProcessSetAffinity { task, cpumap })
        }

        fn permit(
            &mut self,
            bounds: &Bounds,
            asked: &Asked<'_>,
        ) -> core::result::Result<(), Denied> {
            match bounds.cpus.first_outside(self.cpumap.bytes()) {
                None => Ok(()),
                Some(cpu) => asked.beyond(std::format!("CPU {cpu} is not among {}", bounds.cpus)),
            }
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write_cpus(json, self.cpumap.bytes())
        }

        fn before(&self, json: &mut String) -> fmt::Result {
            match affinity::get(self.task.tid()) {
                Ok(map) => write_cpus(json, &map),
                Err(_) => json.write_str("null"),
            }
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetAffinity<'_>>()
    }
}
