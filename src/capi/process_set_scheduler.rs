// SPDX-License-Identifier: LGPL-2.1-or-later
//! The scheduling policy and priority of a thread.

use core::ffi::c_void;

use libc::{c_int, c_uint, pid_t};

use super::types::{_virConnect, virInternalFreeCallback};
use super::{boundary, operation_flags, set_handler, symver};
use crate::dispatch::{Outcome, dispatch};
use crate::kernel::process::{Pid, Task};
use crate::kernel::scheduler::Schedule;
pub use crate::kernel::scheduler::virInternalSchedPolicy;
use crate::operation::process_set_scheduler::{KIND, ProcessSetScheduler};
use crate::registry::{Code, Key};

/**
 * VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION:
 *
 * The version of virInternalProcessSetScheduler() that this header is
 * for: give it to virInternalSetProcessSetSchedulerHandler().
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION: c_uint = 1;

/**
 * virInternalSetSchedulerHandler:
 * @pid: the process
 * @tid: one of its threads; the same as @pid for its first
 * @policy: a virInternalSchedPolicy, but not VIR_INTERNAL_SCHED_NONE
 * @priority: 1 to 99 for FIFO and RR, otherwise 0
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetScheduler(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetScheduler() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
pub type virInternalSetSchedulerHandler = Option<
    unsafe extern "C-unwind" fn(
        pid: pid_t,
        tid: pid_t,
        policy: c_int,
        priority: c_int,
        opaque: *mut c_void,
    ) -> c_int,
>;

/**
 * virInternalProcessSetScheduler:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @tid: one of its threads; the same as @pid for its first
 * @policy: a virInternalSchedPolicy (libvirt's numbers, not the kernel's)
 * @priority: 1 to 99 for FIFO and RR, otherwise not looked at
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Sets the scheduling policy and priority of one thread, as libvirt's
 * virProcessSetScheduler() does. VIR_INTERNAL_SCHED_NONE is a success with
 * nothing done and nobody asked. @tid must be a thread of @pid, before and
 * after.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalProcessSetScheduler(
    conn: *mut _virConnect,
    pid: pid_t,
    tid: pid_t,
    policy: c_int,
    priority: c_int,
    flags: c_uint,
) -> c_int {
    boundary(KIND.id, |page| {
        let direct = operation_flags(flags)?;
        let task = Task::new(Pid::new(pid)?, tid)?;
        match Schedule::new(policy, priority)? {
            None => Ok(Outcome::Done),
            Some(schedule) => {
                let request = ProcessSetScheduler { task, schedule };
                dispatch(page, &KIND, conn as Key, &request, direct)
            }
        }
    })
}
symver!(virInternalProcessSetScheduler);

/**
 * virInternalSetProcessSetSchedulerHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetScheduler(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalSetProcessSetSchedulerHandler(
    conn: *mut _virConnect,
    version: c_uint,
    handler: virInternalSetSchedulerHandler,
    opaque: *mut c_void,
    freecb: virInternalFreeCallback,
    flags: c_uint,
) -> c_int {
    let code = handler.map(|handler| handler as Code);
    set_handler(&KIND, conn, version, code, opaque, freecb, flags)
}
symver!(virInternalSetProcessSetSchedulerHandler);
