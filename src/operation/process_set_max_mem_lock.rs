// SPDX-License-Identifier: LGPL-2.1-or-later
//! How much memory a process may lock.

use core::ffi::c_void;

use libc::{c_int, c_ulonglong, pid_t};

use super::limit::{SetLimit, Settable};
use crate::capi::process_set_max_mem_lock::{
    VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, virInternalSetMaxMemLockHandler,
};
use crate::capi::types::virInternalOperation;
use crate::dispatch::Kind;
use crate::kernel::rlimit::{Limit, MEMLOCK, Resource};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_MEM_LOCK as u32,
    "virInternalProcessSetMaxMemLock",
    VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
);

/// libvirt's figure for unlimited (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED), and
/// whatever is more.
const UNLIMITED: c_ulonglong = 9_007_199_254_740_991;

pub(crate) type ProcessSetMaxMemLock = SetLimit<MemLock>;

pub(crate) enum MemLock {}

impl Settable for MemLock {
    type Value = c_ulonglong;

    const RESOURCE: &'static Resource = &MEMLOCK;

    fn limit(bytes: c_ulonglong) -> u64 {
        match bytes {
            UNLIMITED.. => libc::RLIM_INFINITY,
            bytes => bytes,
        }
    }

    fn is_enough(found: Limit, bytes: c_ulonglong) -> bool {
        found.soft.min(found.hard) >= bytes.min(UNLIMITED)
    }

    unsafe fn invoke(handler: Code, pid: pid_t, bytes: c_ulonglong, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxMemLockHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe { handler(pid, bytes, opaque) })
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
    use crate::delegate::policy::Size;
    use crate::delegate::server::connection::{Done, Job};
    use crate::operation::Allowed;
    use crate::operation::limit::{self, Amount, Served};

    /// What a policy's rule allows of it.
    pub type Bounds = limit::Bounds<Size>;

    /// What is beyond libvirt's unlimited is unlimited.
    impl Amount for Size {
        fn as_told(self) -> Size {
            Size(MemLock::limit(self.0))
        }
    }

    impl Served for MemLock {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-mem-lock";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_mem_lock.as_ref()
        }

        fn permit(bytes: c_ulonglong, bounds: &Bounds) -> Result<c_ulonglong, String> {
            let asked = Size(bytes).as_told();
            match bounds.permit(asked)? {
                granted if granted > asked => Ok(granted.0),
                _ => Ok(bytes),
            }
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxMemLock>()
    }
}
