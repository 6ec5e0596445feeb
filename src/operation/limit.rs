// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the operations on resource limits have in common.

#[cfg(feature = "delegate")]
use alloc::string::String;
#[cfg(feature = "delegate")]
use core::cell::Cell;
use core::fmt;
#[cfg(feature = "delegate")]
use core::fmt::Write;

use crate::errno::Errno;

use crate::dispatch::{Operation, not_done, not_readable};
use crate::error::{Error, Result};
#[cfg(feature = "delegate")]
use crate::kernel::process::Held;
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

/// What a delegate has seen of a limit, for its audit line.
pub(super) struct Seen {
    /// What was there, taken in the same moment in which it was set.
    #[cfg(feature = "delegate")]
    replaced: Cell<Option<Limit>>,
    /// What was read back.
    #[cfg(feature = "delegate")]
    found: Cell<Option<Limit>>,
}

impl Seen {
    pub(super) const fn nothing() -> Seen {
        Seen {
            #[cfg(feature = "delegate")]
            replaced: Cell::new(None),
            #[cfg(feature = "delegate")]
            found: Cell::new(None),
        }
    }
}

/// Fails unless the process's limit is what `enough` takes for it.
#[inline(always)]
pub(super) fn read_back(
    operation: &dyn Operation,
    resource: &'static Resource,
    pid: Pid,
    seen: &Seen,
    enough: impl FnOnce(Limit) -> bool,
) -> Result<()> {
    let found = rlimit::get(resource, pid);
    #[cfg(feature = "delegate")]
    seen.found.set(found.ok());
    #[cfg(not(feature = "delegate"))]
    let Seen {} = seen;
    match found {
        Ok(limit) if enough(limit) => Ok(()),
        Ok(limit) => Err(not_done(operation, format_args!("the kernel says {limit}"))),
        Err(Errno::ESRCH) => Err(Error::no_process(format_args!(
            "process {pid} went away meanwhile"
        ))),
        Err(errnum) => Err(not_readable(operation, errnum)),
    }
}

/// What a delegate needs besides.
#[cfg(feature = "delegate")]
impl Seen {
    /// Sets a limit, and keeps what it replaced.
    pub(super) fn replace(
        &self,
        resource: &'static Resource,
        pid: Pid,
        value: u64,
    ) -> core::result::Result<(), Errno> {
        let replaced = rlimit::replace(resource, pid, value)?;
        self.replaced.set(Some(replaced));
        Ok(())
    }

    /// Gives a process back what it had, which was hit in the place of another
    /// that had its number before: if it still has what was set.
    pub(super) fn undo(&self, resource: &'static Resource, pid: Pid, value: u64) {
        let set = Limit {
            soft: value,
            hard: value,
        };
        if let Some(replaced) = self.replaced.get()
            && let Ok(held) = Held::process(pid, None)
            && rlimit::get(resource, pid) == Ok(set)
            && held.require_still().is_ok()
        {
            let _ = rlimit::exchange(resource, pid, replaced);
        }
    }

    /// What was there before, as JSON: what was replaced, else what is there
    /// now.
    pub(super) fn write_before(
        &self,
        json: &mut String,
        resource: &'static Resource,
        pid: Pid,
    ) -> fmt::Result {
        write(
            json,
            self.replaced
                .get()
                .or_else(|| rlimit::get(resource, pid).ok()),
        )
    }

    /// What is there now, as JSON: what was read back, if it came to that.
    pub(super) fn write_after(
        &self,
        json: &mut String,
        resource: &'static Resource,
        pid: Pid,
    ) -> fmt::Result {
        write(
            json,
            self.found.get().or_else(|| rlimit::get(resource, pid).ok()),
        )
    }
}

#[cfg(feature = "delegate")]
fn write(json: &mut String, limit: Option<Limit>) -> fmt::Result {
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
