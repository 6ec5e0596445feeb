// SPDX-License-Identifier: LGPL-2.1-or-later
//! How much memory a process may lock.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, c_ulonglong};

use super::limit::{self, Seen};
use crate::capi::process_set_max_mem_lock::{
    VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, virInternalSetMaxMemLockHandler,
};
use crate::capi::types::virInternalOperation;
use crate::delegate::wire::Request;
#[cfg(feature = "delegate")]
use crate::dispatch::Outcome;
use crate::dispatch::{Kind, Operation, cannot};
use crate::error::Result;
use crate::kernel::process::{Held, Known, Pid};
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
    pid: Pid,
    bytes: c_ulonglong,
    seen: Seen,
}

impl ProcessSetMaxMemLock {
    pub(crate) fn new(pid: Pid, bytes: c_ulonglong) -> Self {
        ProcessSetMaxMemLock {
            pid,
            bytes,
            seen: Seen::nothing(),
        }
    }

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
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        Held::process(self.pid, known)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxMemLockHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe {
            handler(self.pid.get(), self.bytes, opaque)
        })
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        limit::read_back(self, &MEMLOCK, self.pid, &self.seen, |limit| {
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

    #[cfg(feature = "delegate")]
    fn act(&self) -> Result<Outcome> {
        let replaced = self.seen.replace(&MEMLOCK, self.pid, self.limit());
        replaced.map_err(|errnum| cannot(self, errnum))?;
        Ok(Outcome::Done)
    }

    #[cfg(feature = "delegate")]
    fn undo(&self) {
        self.seen.undo(&MEMLOCK, self.pid, self.limit());
    }
}

impl fmt::Display for ProcessSetMaxMemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        limit::describe(f, &MEMLOCK, self.pid, self.bytes)
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
    use crate::delegate::policy::{self, Contradiction, Denied, Size};
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
        /// Set at least this much, for callers whose own figure is too low.
        pub grant: Option<Size>,
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

    impl<'m> Serve<'m> for ProcessSetMaxMemLock {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-mem-lock";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_mem_lock.as_ref()
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
            // What is beyond libvirt's unlimited is unlimited.
            if self.limit() > bounds.max.0 {
                return asked.beyond(std::format!(
                    "{} is more than {}",
                    Size(self.limit()),
                    bounds.max
                ));
            }
            self.bytes = self.bytes.max(bounds.grant.map_or(0, |grant| grant.0));
            Ok(())
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write!(json, "{}", self.bytes)
        }

        const REPLACES: bool = true;

        fn before(&self, json: &mut String) -> fmt::Result {
            self.seen.write_before(json, &MEMLOCK, self.pid)
        }

        fn after(&self, json: &mut String) -> fmt::Result {
            self.seen.write_after(json, &MEMLOCK, self.pid)
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxMemLock>()
    }
}
