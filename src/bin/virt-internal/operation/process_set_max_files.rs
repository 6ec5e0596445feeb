// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many files a process may have open.

use std::ffi::{OsString, c_void};
use std::{fmt, io, ptr};

use clap::Args;
use libc::{c_int, c_uint, pid_t};
use nix::errno::Errno;
use serde_json::Value;
use virt_internal::capi::process_set_max_files::{
    VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION, virInternalProcessSetMaxFiles,
    virInternalSetMaxFilesHandler, virInternalSetProcessSetMaxFilesHandler,
};
use virt_internal::capi::types::virInternalOperation;

use super::limit::{self, Resource};
use super::{Delegation, Operation, Request, Scene, State, Trial};
use crate::library::Script;
use crate::privilege::Missing;
use crate::size;
use crate::target::User;

/// The operation's name for `call` and in policies.
const NAME: &str = "process-set-max-files";

static RESOURCE: Resource = Resource {
    number: libc::RLIMIT_NOFILE,
    line: "Max open files",
    name: "NOFILE",
    most: 1024,
    show: size::number,
};

/// Limit the files that a process may have open
#[derive(Args)]
pub struct ProcessSetMaxFiles {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// How many; one more is set, as libvirt does
    #[arg(long, allow_negative_numbers = true, value_parser = super::count)]
    files: c_uint,
}

fn make(pid: pid_t, files: u64) -> Box<dyn Request> {
    // What is tried is far below what a c_uint takes.
    let files = c_uint::try_from(files).unwrap_or(c_uint::MAX);
    Box::new(ProcessSetMaxFiles { pid, files })
}

unsafe extern "C-unwind" fn handler(pid: pid_t, files: c_uint, opaque: *mut c_void) -> c_int {
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&ProcessSetMaxFiles { pid, files })
}

impl Request for ProcessSetMaxFiles {
    fn asked(&self) -> String {
        self.files.to_string()
    }

    fn asked_values(&self) -> Value {
        limit::asked(u64::from(self.files) + 1)
    }

    fn arguments(&self) -> Vec<OsString> {
        vec![
            NAME.into(),
            format!("--pid={}", self.pid).into(),
            format!("--files={}", self.files).into(),
        ]
    }

    fn call(&self, flags: c_uint) -> c_int {
        // SAFETY: numbers only; conn is never dereferenced.
        unsafe { virInternalProcessSetMaxFiles(ptr::null_mut(), self.pid, self.files, flags) }
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalSetMaxFilesHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetProcessSetMaxFilesHandler(
                ptr::null_mut(),
                VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        // One more than asked, as libvirt does.
        RESOURCE.set(self.pid, u64::from(self.files) + 1)
    }

    fn state(&self) -> io::Result<State> {
        RESOURCE.state(self.pid, |limit| limit.soft >= u64::from(self.files))
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        RESOURCE.missing(self.pid, u64::from(self.files) + 1, errnum)
    }
}

impl Operation for ProcessSetMaxFiles {
    const ID: virInternalOperation = virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_MAX_FILES;

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

impl fmt::Display for ProcessSetMaxFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "limit number of open files of process {} to {}",
            self.pid,
            self.asked()
        )
    }
}
