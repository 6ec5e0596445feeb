// SPDX-License-Identifier: LGPL-2.1-or-later
//! How large a core file a process may leave.

use core::ffi::c_void;

use libc::{c_int, c_ulonglong, pid_t};

use super::limit::{SetLimit, Settable};
use crate::capi::process_set_max_core_size::{
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION, virInternalSetMaxCoreSizeHandler,
};
use crate::capi::types::virInternalOperation;
use crate::dispatch::Kind;
use crate::kernel::rlimit::{CORE, Limit, Resource};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE as u32,
    "virInternalProcessSetMaxCoreSize",
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION,
);

pub(crate) type ProcessSetMaxCoreSize = SetLimit<CoreSize>;

pub(crate) enum CoreSize {}

impl Settable for CoreSize {
    type Value = c_ulonglong;

    const RESOURCE: &'static Resource = &CORE;

    /// Exactly: a larger core file is not what was asked for.
    fn is_enough(found: Limit, bytes: c_ulonglong) -> bool {
        found.soft == bytes && found.hard == bytes
    }

    unsafe fn invoke(handler: Code, pid: pid_t, bytes: c_ulonglong, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxCoreSizeHandler>(handler) };
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
    use core::fmt;

    use super::*;
    use crate::delegate::policy::{self, Size};
    use crate::delegate::server::connection::{Done, Job};
    use crate::operation::Allowed;
    use crate::operation::limit::{self, Served};

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

    impl Served for CoreSize {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-core-size";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_core_size.as_ref()
        }

        fn permit(bytes: c_ulonglong, bounds: &Bounds) -> Result<c_ulonglong, String> {
            limit::at_most(bounds.max, Size(bytes))?;
            Ok(bytes)
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxCoreSize>()
    }
}
