// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the operations on resource limits have in common.

use core::fmt;

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
