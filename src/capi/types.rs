// SPDX-License-Identifier: LGPL-2.1-or-later
//! Types and constants that all operations share.

use core::ffi::c_void;

use libc::{c_int, c_uint};

/// A libvirt connection: an opaque key, never dereferenced.
#[allow(non_camel_case_types)]
#[repr(C)]
pub struct _virConnect {
    _opaque: [u8; 0],
}

/**
 * virInternalFreeCallback:
 * @opaque: what the handler was set with
 *
 * Called exactly once when a handler is gone: it was replaced, unset, or its
 * connection was closed, and nobody is inside it any more. Never called when
 * setting the handler failed. It runs on the thread that removes the handler
 * or on the one that leaves it last, with no lock held, and counts as part of
 * the handler: it must return, and a set function called in it does not wait.
 *
 * Since: 0.1.0
 */
pub type virInternalFreeCallback = Option<unsafe extern "C-unwind" fn(opaque: *mut c_void)>;

/**
 * virInternalOperation:
 *
 * The operations, as they are named in virInternalError.
 *
 * Since: 0.1.0
 */
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum virInternalOperation {
    VIR_INTERNAL_OP_PROCESS_SET_MAX_MEM_LOCK = 1,
    VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES = 2,
    VIR_INTERNAL_OP_PROCESS_SET_MAX_FILES = 3,
    VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE = 4,
    VIR_INTERNAL_OP_PROCESS_SET_SCHEDULER = 5,
    VIR_INTERNAL_OP_PROCESS_SET_AFFINITY = 6,
    VIR_INTERNAL_OP_CGROUP_ADD_THREADS = 7,
}

/**
 * VIR_INTERNAL_HANDLED:
 *
 * A handler's answer: it is done. The library then reads the kernel's state
 * back.
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_HANDLED: c_int = 0;

/**
 * VIR_INTERNAL_NOT_HANDLED:
 *
 * A handler's answer: go on down the chain, to the handler set for every
 * connection, to the delegates, and then to the kernel. Also what an operation
 * returns that nobody handled and that was called with VIR_INTERNAL_NO_DIRECT;
 * then nothing was done.
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_NOT_HANDLED: c_int = 1;

/**
 * VIR_INTERNAL_NO_DIRECT:
 *
 * A flag of every operation: do not act on the kernel directly. When nobody
 * handles the operation it returns VIR_INTERNAL_NOT_HANDLED, having done
 * nothing, and the caller goes its own way.
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_NO_DIRECT: c_uint = 1 << 30;

/**
 * VIR_INTERNAL_HANDLER_FORK_SAFE:
 *
 * A flag of every set function: the handler may be called in a forked child
 * of a process with several threads. There it must not allocate, lock, or use
 * anything that another thread may have held when the child was forked; only
 * what is async-signal-safe is safe.
 *
 * A child of vfork(), or of clone() with CLONE_VM, shares the memory, and
 * nobody waits for a handler that runs in it: its code and @opaque must stay
 * valid as long as such children can be inside.
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_HANDLER_FORK_SAFE: c_uint = 1 << 0;
