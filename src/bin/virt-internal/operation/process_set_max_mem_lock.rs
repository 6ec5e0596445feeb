// SPDX-License-Identifier: LGPL-2.1-or-later
//! How much memory a process may lock.

use std::ffi::{OsString, c_void};
use std::{fmt, io, ptr};

use clap::Args;
use libc::{c_int, c_uint, c_ulonglong, pid_t};
use nix::errno::Errno;
use serde_json::Value;
use virt_internal::capi::process_set_max_mem_lock::{
    VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, virInternalProcessSetMaxMemLock,
    virInternalSetMaxMemLockHandler, virInternalSetProcessSetMaxMemLockHandler,
};
use virt_internal::capi::types::virInternalOperation;

use super::limit::{self, Resource, memory};
use super::{Delegation, Operation, Request, Scene, State, Trial};
use crate::library::Script;
use crate::privilege::Missing;
use crate::size;
use crate::target::User;

/// The operation's name for `call` and in policies.
const NAME: &str = "process-set-max-mem-lock";

static RESOURCE: Resource = Resource {
    number: libc::RLIMIT_MEMLOCK,
    line: "Max locked memory",
    name: "MEMLOCK",
    most: 64 << 20,
    show: size::bytes,
};

/// Limit the memory that a process may lock
#[derive(Args)]
pub struct ProcessSetMaxMemLock {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// How much: 4096, 64K, 64M, 1G, unlimited
    #[arg(long, value_parser = size::parse)]
    bytes: u64,
}

unsafe extern "C-unwind" fn handler(pid: pid_t, bytes: c_ulonglong, opaque: *mut c_void) -> c_int {
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&ProcessSetMaxMemLock { pid, bytes })
}

impl Request for ProcessSetMaxMemLock {
    fn asked(&self) -> String {
        size::bytes(memory(self.bytes))
    }

    fn asked_values(&self) -> Value {
        limit::asked(memory(self.bytes))
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
        unsafe { virInternalProcessSetMaxMemLock(ptr::null_mut(), self.pid, self.bytes, flags) }
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalSetMaxMemLockHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetProcessSetMaxMemLockHandler(
                ptr::null_mut(),
                VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        RESOURCE.set(self.pid, memory(self.bytes))
    }

    fn state(&self) -> io::Result<State> {
        RESOURCE.state(self.pid, |limit| limit.soft >= memory(self.bytes))
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        RESOURCE.missing(self.pid, memory(self.bytes), errnum)
    }
}

impl Operation for ProcessSetMaxMemLock {
    const ID: virInternalOperation = virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_MEM_LOCK;

    fn scenes() -> Vec<Scene> {
        RESOURCE.scenes(|pid, bytes| Box::new(ProcessSetMaxMemLock { pid, bytes }))
    }

    fn trials() -> Vec<Trial> {
        RESOURCE.trials(|pid, bytes| Box::new(ProcessSetMaxMemLock { pid, bytes }))
    }

    fn delegations(user: User) -> Vec<Delegation> {
        RESOURCE.delegations(user, |pid, bytes| {
            Box::new(ProcessSetMaxMemLock { pid, bytes })
        })
    }

    fn policy() -> io::Result<String> {
        Ok(RESOURCE.policy(NAME))
    }
}

impl fmt::Display for ProcessSetMaxMemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "limit locked memory of process {} to {}",
            self.pid,
            self.asked()
        )
    }
}
