// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many files a process may have open.

use core::ffi::c_void;

use libc::{c_int, c_uint, pid_t};

use super::limit::{SetLimit, Settable};
use crate::capi::process_set_max_files::{
    VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION, virInternalSetMaxFilesHandler,
};
use crate::capi::types::virInternalOperation;
use crate::dispatch::Kind;
use crate::kernel::rlimit::{NOFILE, Resource};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_FILES as u32,
    "virInternalProcessSetMaxFiles",
    VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION,
);

pub(crate) type ProcessSetMaxFiles = SetLimit<Files>;

pub(crate) enum Files {}

impl Settable for Files {
    type Value = c_uint;

    const RESOURCE: &'static Resource = &NOFILE;

    /// One more than asked, as libvirt does; in 64 bits, where libvirt's own
    /// sum wraps to 0.
    fn limit(files: c_uint) -> u64 {
        u64::from(files) + 1
    }

    unsafe fn invoke(handler: Code, pid: pid_t, files: c_uint, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalSetMaxFilesHandler>(handler) };
        // SAFETY: as above.
        handler.map_or(1, |handler| unsafe { handler(pid, files, opaque) })
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

    impl Served for Files {
        type Bounds = Bounds;

        const NAME: &'static str = "process-set-max-files";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.process_set_max_files.as_ref()
        }

        fn permit(files: c_uint, bounds: &Bounds) -> Result<c_uint, String> {
            bounds.permit(files)
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<ProcessSetMaxFiles>()
    }
}
