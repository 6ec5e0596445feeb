// SPDX-License-Identifier: LGPL-2.1-or-later
//! The C interface: the only place with exported functions and raw pointers.
//!
//! A function checks its arguments, makes a request of them and hands it on;
//! `boundary` turns what comes back into the C return. Prose above a function
//! is libvirt's kind, because it becomes the header's. Two C types are defined
//! where the library itself speaks of them: the error code and the policy.

pub mod cgroup_add_threads;
pub mod connection;
pub mod delegate;
pub mod error;
pub mod process_set_affinity;
pub mod process_set_max_core_size;
pub mod process_set_max_files;
pub mod process_set_max_mem_lock;
pub mod process_set_max_processes;
pub mod process_set_scheduler;
pub mod secure_erase;
/// cbindgen:ignore
#[cfg(feature = "delegate")]
pub mod server;
pub mod types;

use core::ffi::c_void;

use libc::{c_int, c_uint};

use crate::dispatch::{self, Direct, Kind, Operation, Outcome};
use crate::error::{Error, Result};
use crate::fork::{self, Page};
use crate::registry::{Code, Handler, Key};
use crate::thread;
use types::{
    _virConnect, VIR_INTERNAL_HANDLER_FORK_SAFE, VIR_INTERNAL_NO_DIRECT, virInternalFreeCallback,
};

/// Gives an exported function the library's version node.
///
/// Without it the version script is ignored for the function (rustc has a
/// script of its own). `remove` takes the unversioned twin away, which a
/// program that links the static library would define a second time.
macro_rules! symver {
    ($function:ident) => {
        core::arch::global_asm!(concat!(
            ".symver ",
            stringify!($function),
            ", ",
            stringify!($function),
            "@@LIBVIRT_INTERNAL_UNSTABLE_1, remove"
        ));
    };
}
pub(crate) use symver;

/// Runs the body of an exported function: what it returns becomes 0, 1 or
/// -1, errno, and the thread's last error.
#[inline(always)]
pub(crate) fn boundary(
    operation: u32,
    body: impl FnOnce(&'static Page) -> Result<Outcome>,
) -> c_int {
    let page = match fork::page() {
        Ok(page) => page,
        Err(error) => return fail(None, operation, error),
    };
    match body(page) {
        Ok(outcome) => {
            thread::succeeded(page);
            outcome as c_int
        }
        Err(error) => fail(Some(page), operation, error),
    }
}

#[cold]
#[inline(never)]
fn fail(page: Option<&Page>, operation: u32, error: Error) -> c_int {
    thread::failed(page, operation, error);
    -1
}

/// An operation's function: `request` checks the arguments.
#[inline(always)]
pub(crate) fn perform<O: Operation>(
    kind: &'static Kind,
    conn: *mut _virConnect,
    flags: c_uint,
    request: impl FnOnce() -> Result<O>,
) -> c_int {
    boundary(kind.id, |page| {
        let direct = operation_flags(flags)?;
        let request = request()?;
        dispatch::dispatch(page, kind, conn as Key, &request, direct)
    })
}

/// The flags of an operation.
#[inline(always)]
pub(crate) fn operation_flags(flags: c_uint) -> Result<Direct> {
    match flags {
        0 => Ok(Direct::Allowed),
        VIR_INTERNAL_NO_DIRECT => Ok(Direct::Forbidden),
        _ => Err(unknown_flags(flags & !VIR_INTERNAL_NO_DIRECT)),
    }
}

#[cold]
#[inline(never)]
fn unknown_flags(flags: c_uint) -> Error {
    Error::invalid(format_args!("unknown flags {flags:#x}"))
}

/// An operation's set function.
pub(crate) fn set_handler(
    kind: &'static Kind,
    conn: *mut _virConnect,
    version: c_uint,
    code: Option<Code>,
    opaque: *mut c_void,
    free: virInternalFreeCallback,
    flags: c_uint,
) -> c_int {
    boundary(kind.id, |page| {
        if version != kind.version {
            return Err(Error::version(format_args!(
                "the handler was made for version {version} of {}, but this library has \
                 version {}: build it with this library's header",
                kind.name, kind.version
            )));
        }
        if flags & !VIR_INTERNAL_HANDLER_FORK_SAFE != 0 {
            return Err(unknown_flags(flags & !VIR_INTERNAL_HANDLER_FORK_SAFE));
        }
        require_no_child(page, "handlers cannot be set")?;
        let handler = code.map(|code| Handler {
            code,
            opaque,
            free,
            fork_safe: flags & VIR_INTERNAL_HANDLER_FORK_SAFE != 0,
        });
        let inside = &thread::own().inside;
        dispatch::require_no_longjmp(inside);
        kind.registry.set(conn as Key, handler, inside);
        Ok(Outcome::Done)
    })
}

pub(crate) fn require_no_child(page: &Page, what: &str) -> Result<()> {
    match page.is_child() {
        false => Ok(()),
        true => Err(Error::forked(format_args!(
            "{what} in a child of the process that first used the library: \
             daemonize before the first use"
        ))),
    }
}
