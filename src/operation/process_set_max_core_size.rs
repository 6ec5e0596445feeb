// SPDX-License-Identifier: LGPL-2.1-or-later
//! How large a core file a process may leave.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, c_ulonglong};

use super::limit::{self, Seen};
use crate::capi::process_set_max_core_size::{
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION, virInternalSetMaxCoreSizeHandler,
};
use crate::capi::types::virInternalOperation;
use crate::delegate::wire::Request;
#[cfg(feature = "delegate")]
use crate::dispatch::Outcome;
use crate::dispatch::{Kind, Operation, cannot};
use crate::error::Result;
use crate::kernel::process::{Held, Known, Pid};
use crate::kernel::rlimit::{self, CORE};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE as u32,
    "virInternalProcessSetMaxCoreSize",
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION,
);

pub(crate) struct ProcessSetMaxCoreSize {
    pid: Pid,
    bytes: c_ulonglong,
    seen: Seen,
}

impl ProcessSetMaxCoreSize {
    pub(crate) fn new(pid: Pid, bytes: c_ulonglong) -> Self {
        ProcessSetMaxCoreSize {
            pid,
            bytes,
            seen: Seen::nothing(),
        }
    }
}

impl Operation for ProcessSetMaxCoreSize {
    #[inline(always)]
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        Held::process(self.pid, known)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxCoreSizeHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe {
            handler(self.pid.get(), self.bytes, opaque)
        })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        limit::read_back(self, &CORE, self.pid, &self.seen, |limit| {
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

    #[cfg(feature = "delegate")]
    fn act(&self) -> Result<Outcome> {
        let replaced = self.seen.replace(&CORE, self.pid, self.bytes);
        replaced.map_err(|errnum| cannot(self, errnum))?;
        Ok(Outcome::Done)
    }

    #[cfg(feature = "delegate")]
    fn undo(&self) {
        self.seen.undo(&CORE, self.pid, self.bytes);
    }
}

impl fmt::Display for ProcessSetMaxCoreSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        limit::describe(f, &CORE, self.pid, self.bytes)
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
    use crate::delegate::policy::{self, Denied, Size};
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
        pub max: Size,
    }

    impl policy::Bounds for Bounds {}

    impl fmt::Display for Bounds {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "up to {}", self.max)
        }
    }

    impl<'m> Serve<'m> for ProcessSetMaxCoreSize {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-core-size";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_core_size.as_ref()
        }

        fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self> {
            let pid = subject.process()?;
            Ok(Self::new(pid, body.u64()?))
        }

        fn permit(
            &mut self,
            bounds: &Bounds,
            asked: &Asked<'_>,
        ) -> core::result::Result<(), Denied> {
            match self.bytes > bounds.max.0 {
                true => asked.beyond(std::format!(
                    "{} is more than {}",
                    Size(self.bytes),
                    bounds.max
                )),
                false => Ok(()),
            }
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write!(json, "{}", self.bytes)
        }

        const REPLACES: bool = true;

        fn before(&self, json: &mut String) -> fmt::Result {
            self.seen.write_before(json, &CORE, self.pid)
        }

        fn after(&self, json: &mut String) -> fmt::Result {
            self.seen.write_after(json, &CORE, self.pid)
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxCoreSize>()
    }
}
