// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many processes a process's user may have.

use std::ffi::{OsString, c_void};
use std::{fmt, io, ptr};

use clap::Args;
use libc::{c_int, c_uint, pid_t};
use nix::errno::Errno;
use serde_json::Value;
use virt_internal::capi::process_set_max_processes::{
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION, virInternalProcessSetMaxProcesses,
    virInternalSetMaxProcessesHandler, virInternalSetProcessSetMaxProcessesHandler,
};
use virt_internal::capi::types::virInternalOperation;

use super::limit::{self, Resource};
use super::{Delegation, Operation, Request, Scene, State, Trial};
use crate::library::Script;
use crate::privilege::Missing;
use crate::size;
use crate::target::User;

/// The operation's name for `call` and in policies.
const NAME: &str = "process-set-max-processes";

static RESOURCE: Resource = Resource {
    number: libc::RLIMIT_NPROC,
    line: "Max processes",
    name: "NPROC",
    most: 4096,
    show: size::number,
};

/// Limit the processes and threads of a process's user
#[derive(Args)]
pub struct ProcessSetMaxProcesses {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// How many
    #[arg(long, allow_negative_numbers = true, value_parser = super::count)]
    processes: c_uint,
}

fn make(pid: pid_t, processes: u64) -> Box<dyn Request> {
    // What is tried is far below what a c_uint takes.
    let processes = c_uint::try_from(processes).unwrap_or(c_uint::MAX);
    Box::new(ProcessSetMaxProcesses { pid, processes })
}

unsafe extern "C-unwind" fn handler(pid: pid_t, processes: c_uint, opaque: *mut c_void) -> c_int {
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&ProcessSetMaxProcesses { pid, processes })
}

impl Request for ProcessSetMaxProcesses {
    fn asked(&self) -> String {
        self.processes.to_string()
    }

    fn asked_values(&self) -> Value {
        limit::asked(u64::from(self.processes))
    }

    fn arguments(&self) -> Vec<OsString> {
        vec![
            NAME.into(),
            format!("--pid={}", self.pid).into(),
            format!("--processes={}", self.processes).into(),
        ]
    }

    fn call(&self, flags: c_uint) -> c_int {
        // SAFETY: numbers only; conn is never dereferenced.
        unsafe {
            virInternalProcessSetMaxProcesses(ptr::null_mut(), self.pid, self.processes, flags)
        }
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalSetMaxProcessesHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetProcessSetMaxProcessesHandler(
                ptr::null_mut(),
                VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        RESOURCE.set(self.pid, u64::from(self.processes))
    }

    fn state(&self) -> io::Result<State> {
        RESOURCE.state(self.pid, |limit| limit.soft >= u64::from(self.processes))
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        RESOURCE.missing(self.pid, u64::from(self.processes), errnum)
    }
}

impl Operation for ProcessSetMaxProcesses {
    const ID: virInternalOperation =
        virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES;

    fn scenes() -> Vec<Scene> {
        RESOURCE.scenes(make)
    }

    fn trials() -> Vec<Trial> {
        RESOURCE.trials(make)
    }

    fn delegations(user: User) -> Vec<Delegation> {
        RESOURCE.delegations(user, make)
    }

    fn policy() -> io::Result<String> {
        Ok(RESOURCE.policy(NAME))
    }
}

impl fmt::Display for ProcessSetMaxProcesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "limit number of subprocesses of process {} to {}",
            self.pid,
            self.asked()
        )
    }
}
