// SPDX-License-Identifier: LGPL-2.1-or-later
//! How large a core file a process may leave.

use std::ffi::{OsString, c_void};
use std::{fmt, io, ptr};

use clap::Args;
use libc::{c_int, c_uint, c_ulonglong, pid_t};
use nix::errno::Errno;
use serde_json::Value;
use virt_internal::capi::process_set_max_core_size::{
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION, virInternalProcessSetMaxCoreSize,
    virInternalSetMaxCoreSizeHandler, virInternalSetProcessSetMaxCoreSizeHandler,
};
use virt_internal::capi::types::virInternalOperation;

use super::limit::{self, Resource};
use super::{Delegation, Operation, Request, Scene, State, Trial};
use crate::library::Script;
use crate::privilege::Missing;
use crate::size;
use crate::target::User;

/// The operation's name for `call` and in policies.
const NAME: &str = "process-set-max-core-size";

static RESOURCE: Resource = Resource {
    number: libc::RLIMIT_CORE,
    line: "Max core file size",
    name: "CORE",
    most: 64 << 20,
    show: size::bytes,
};

/// Limit the size of the core file that a process may leave
#[derive(Args)]
pub struct ProcessSetMaxCoreSize {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// How large: 4096, 64K, 64M, 1G, unlimited
    #[arg(long, value_parser = size::parse)]
    bytes: u64,
}

unsafe extern "C-unwind" fn handler(pid: pid_t, bytes: c_ulonglong, opaque: *mut c_void) -> c_int {
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&ProcessSetMaxCoreSize { pid, bytes })
}

impl Request for ProcessSetMaxCoreSize {
    fn asked(&self) -> String {
        size::bytes(self.bytes)
    }

    fn asked_values(&self) -> Value {
        limit::asked(self.bytes)
    }

    fn arguments(&self) -> Vec<OsString> {
        vec![
            NAME.into(),
            format!("--pid={}", self.pid).into(),
            format!("--bytes={}", size::number(self.bytes)).into(),
        ]
    }

    fn call(&self, flags: c_uint) -> c_int {
        // SAFETY: numbers only; conn is never dereferenced.
        unsafe { virInternalProcessSetMaxCoreSize(ptr::null_mut(), self.pid, self.bytes, flags) }
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalSetMaxCoreSizeHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetProcessSetMaxCoreSizeHandler(
                ptr::null_mut(),
                VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        RESOURCE.set(self.pid, self.bytes)
    }

    fn state(&self) -> io::Result<State> {
        RESOURCE.state(self.pid, |limit| {
            limit.soft == self.bytes && limit.hard == self.bytes
        })
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        RESOURCE.missing(self.pid, self.bytes, errnum)
    }
}

impl Operation for ProcessSetMaxCoreSize {
    const ID: virInternalOperation =
        virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE;

    fn scenes() -> Vec<Scene> {
        RESOURCE.scenes(|pid, bytes| Box::new(ProcessSetMaxCoreSize { pid, bytes }))
    }

    fn trials() -> Vec<Trial> {
        RESOURCE.trials(|pid, bytes| Box::new(ProcessSetMaxCoreSize { pid, bytes }))
    }

    fn delegations(user: User) -> Vec<Delegation> {
        RESOURCE.delegations(user, |pid, bytes| {
            Box::new(ProcessSetMaxCoreSize { pid, bytes })
        })
    }

    fn policy() -> io::Result<String> {
        Ok(RESOURCE.policy(NAME))
    }
}

impl fmt::Display for ProcessSetMaxCoreSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "limit core file size of process {} to {}",
            self.pid,
            self.asked()
        )
    }
}
