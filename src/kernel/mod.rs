// SPDX-License-Identifier: LGPL-2.1-or-later
//! The kernel interfaces that operations act on: one file a subsystem.
//!
//! Nothing here allocates or locks: all of it runs in forked children too.

pub(crate) mod affinity;
pub(crate) mod cgroup;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod rlimit;
pub(crate) mod scheduler;
pub(crate) mod syscall;

use crate::errno::Errno;

/// The result of a system call: what it returned, or errno.
#[inline(always)]
pub(crate) fn check(returned: impl Into<i64>) -> Result<i64, Errno> {
    match returned.into() {
        -1 => Err(Errno::last()),
        value => Ok(value),
    }
}
