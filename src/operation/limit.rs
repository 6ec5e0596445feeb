// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the operations on resource limits have in common.

#[cfg(feature = "delegate")]
use alloc::string::String;
use core::fmt;
#[cfg(feature = "delegate")]
use core::fmt::Write;

use crate::errno::Errno;

use crate::dispatch::{Operation, not_done, not_readable};
use crate::error::{Error, Result};
use crate::kernel::process::Pid;
use crate::kernel::rlimit::{self, Limit, Resource};

/// "limit ... of process ... to ...", as libvirt says it.
pub(super) fn describe(
    f: &mut fmt::Formatter<'_>,
    resource: &Resource,
    pid: Pid,
    asked: impl fmt::Display,
) -> fmt::Result {
    write!(f, "limit {} of process {pid} to {asked}", resource.words)
}

/// Fails unless the process's limit is what `enough` takes for it.
#[inline(always)]
pub(super) fn read_back(
    operation: &dyn Operation,
    resource: &'static Resource,
    pid: Pid,
    enough: impl FnOnce(Limit) -> bool,
) -> Result<()> {
    match rlimit::get(resource, pid) {
        Ok(limit) if enough(limit) => Ok(()),
        Ok(limit) => Err(not_done(operation, format_args!("the kernel says {limit}"))),
        Err(Errno::ESRCH) => Err(Error::no_process(format_args!(
            "process {pid} went away meanwhile"
        ))),
        Err(errnum) => Err(not_readable(operation, errnum)),
    }
}

/// The process's limit as JSON, for an audit line.
#[cfg(feature = "delegate")]
pub(super) fn write_state(json: &mut String, resource: &'static Resource, pid: Pid) -> fmt::Result {
    write_limit(json, rlimit::get(resource, pid).ok())
}

/// A limit as JSON.
#[cfg(feature = "delegate")]
pub(super) fn write_limit(json: &mut String, limit: Option<Limit>) -> fmt::Result {
    let Some(limit) = limit else {
        return json.write_str("null");
    };
    let mut comma = '{';
    for (name, value) in [("soft", limit.soft), ("hard", limit.hard)] {
        match value {
            libc::RLIM_INFINITY => write!(json, "{comma}\"{name}\":\"unlimited\"")?,
            value => write!(json, "{comma}\"{name}\":{value}")?,
        }
        comma = ',';
    }
    json.write_char('}')
}

/// Gives a process back what it had, which was hit in the place of another
/// that had its number before: if it still has what was set.
#[cfg(feature = "delegate")]
pub(super) fn undo(resource: &'static Resource, pid: Pid, value: u64, replaced: Option<Limit>) {
    let Some(replaced) = replaced else {
        return;
    };
    let Ok(held) = crate::kernel::process::Held::process(pid) else {
        return;
    };
    let set = Limit {
        soft: value,
        hard: value,
    };
    if rlimit::get(resource, pid) == Ok(set) && held.require_still().is_ok() {
        let _ = rlimit::exchange(resource, pid, replaced);
    }
}
