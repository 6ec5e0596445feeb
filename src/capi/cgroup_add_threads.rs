// SPDX-License-Identifier: LGPL-2.1-or-later
//! Moves threads of a process into a cgroup.

use core::ffi::c_void;

use core::cell::Cell;
use core::ffi::c_char;

use libc::{c_int, c_uchar, c_uint, pid_t, size_t};

use super::types::{_virConnect, virInternalFreeCallback};
use super::{perform, set_handler, symver};
use crate::error::{Error, Result};
use crate::kernel::affinity::CpuMap;
use crate::kernel::cgroup::GroupPath;
use crate::kernel::process::Pid;
use crate::operation::cgroup_add_threads::{CgroupAddThreads, KIND};
use crate::registry::Code;

/**
 * VIR_INTERNAL_CGROUP_THREADS_MAX:
 *
 * How many threads one call of virInternalCgroupAddThreads() can name.
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_CGROUP_THREADS_MAX: size_t = 3000;

/**
 * virInternalThreadRole:
 *
 * What the threads of a VM do.
 *
 * Since: 0.1.0
 */
#[repr(C)]
#[cfg_attr(feature = "delegate", derive(serde::Deserialize))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum virInternalThreadRole {
    #[cfg_attr(feature = "delegate", serde(rename = "vcpu"))]
    VIR_INTERNAL_THREAD_VCPU = 0,
    #[cfg_attr(feature = "delegate", serde(rename = "emulator"))]
    VIR_INTERNAL_THREAD_EMULATOR = 1,
    #[cfg_attr(feature = "delegate", serde(rename = "iothread"))]
    VIR_INTERNAL_THREAD_IOTHREAD = 2,
    #[cfg_attr(feature = "delegate", serde(rename = "helper"))]
    VIR_INTERNAL_THREAD_HELPER = 3,
}

impl virInternalThreadRole {
    pub(crate) fn new(role: c_int) -> Result<Self> {
        use virInternalThreadRole::*;
        [
            VIR_INTERNAL_THREAD_VCPU,
            VIR_INTERNAL_THREAD_EMULATOR,
            VIR_INTERNAL_THREAD_IOTHREAD,
            VIR_INTERNAL_THREAD_HELPER,
        ]
        .into_iter()
        .find(|known| *known as c_int == role)
        .ok_or_else(|| {
            Error::invalid(format_args!(
                "{role} is not a role: they are VCPU 0, EMULATOR 1, IOTHREAD 2 and HELPER 3"
            ))
        })
    }

    pub(crate) fn words(self) -> &'static str {
        use virInternalThreadRole::*;
        match self {
            VIR_INTERNAL_THREAD_VCPU => "vCPU",
            VIR_INTERNAL_THREAD_EMULATOR => "emulator",
            VIR_INTERNAL_THREAD_IOTHREAD => "IOThread",
            VIR_INTERNAL_THREAD_HELPER => "helper",
        }
    }
}

/**
 * VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION:
 *
 * The version of virInternalCgroupAddThreads() that this header is
 * for: give it to virInternalSetCgroupAddThreadsHandler().
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION: c_uint = 1;

/**
 * virInternalCgroupAddThreadsHandler:
 * @pid: the process
 * @group: the cgroup's directory, or NULL when libvirt manages none for the VM
 * @role: what the threads do: a virInternalThreadRole
 * @tids: the ids of the threads
 * @ids: the numbers of the vCPUs or IOThreads, or NULL
 * @ntids: how many threads
 * @cpumap: the CPUs that they should run on, or NULL
 * @maplen: its length in bytes
 * @results: one for each thread, never NULL: 0, or -ESRCH for those that have
 * exited already; to be overwritten with -errno for those that fail
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalCgroupAddThreads(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalCgroupAddThreads() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
pub type virInternalCgroupAddThreadsHandler = Option<
    unsafe extern "C-unwind" fn(
        pid: pid_t,
        group: *const c_char,
        role: c_int,
        tids: *const pid_t,
        ids: *const c_uint,
        ntids: size_t,
        cpumap: *const c_uchar,
        maplen: c_int,
        results: *mut c_int,
        opaque: *mut c_void,
    ) -> c_int,
>;

/**
 * virInternalCgroupAddThreads:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @group: absolute path of the cgroup's directory, or NULL
 * @role: what the threads do: a virInternalThreadRole
 * @tids: the ids of the threads, each one of @pid's
 * @ids: the numbers of the vCPUs or IOThreads in the order of @tids, or NULL
 * @ntids: how many threads, 1 to VIR_INTERNAL_CGROUP_THREADS_MAX
 * @cpumap: the CPUs that the threads should run on, or NULL
 * @maplen: its length in bytes, 1 to VIR_INTERNAL_CPUMAP_MAX, 0 without @cpumap
 * @results: receives 0 or -errno for each thread, or NULL
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Moves threads of one process into a cgroup, v2 or v1. In v2 it writes to
 * cgroup.threads; where only whole processes can be moved (from one domain to
 * another) it writes to cgroup.procs if @tids are all of the process's threads,
 * and fails with EOPNOTSUPP if not. In v1 it writes to tasks.
 *
 * @group NULL means that libvirt manages no cgroup for this VM: a handler is
 * still asked and does its own read-back, directly it is a success with nothing
 * done. @role, @ids and @cpumap are for handlers, the direct way does not look
 * at them.
 *
 * A thread that has exited has -ESRCH in @results, the others are still moved
 * and the call succeeds. Where a thread cannot be moved for another reason, the
 * others are moved as well, @results says which is which, and the call fails
 * with the first such errno. A thread of another process is an error before
 * anything is moved.
 *
 * When the call fails as a whole, each of @results is -errno; a thread that a
 * handler left elsewhere has -EREMOTEIO. They are not looked at nor written
 * when an argument is out of range, and mean nothing when it was not handled.
 *
 * The caller must be able to see the cgroup, for it is opened before a handler
 * is asked. A caller that cannot has @group NULL.
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
pub unsafe extern "C" fn virInternalCgroupAddThreads(
    conn: *mut _virConnect,
    pid: pid_t,
    group: *const c_char,
    role: c_int,
    tids: *const pid_t,
    ids: *const c_uint,
    ntids: size_t,
    cpumap: *const c_uchar,
    maplen: c_int,
    results: *mut c_int,
    flags: c_uint,
) -> c_int {
    perform(&KIND, conn, flags, || {
        let pid = Pid::new(pid)?;
        let role = virInternalThreadRole::new(role)?;
        if !(1..=VIR_INTERNAL_CGROUP_THREADS_MAX).contains(&ntids) {
            return Err(Error::invalid(format_args!(
                "ntids {ntids} is out of range [1, {VIR_INTERNAL_CGROUP_THREADS_MAX}]"
            )));
        }
        if tids.is_null() {
            return Err(Error::invalid(format_args!("tids is NULL")));
        }
        // SAFETY: each is NULL or, by the caller's word, as long as it says and
        // written by nobody else during the call.
        unsafe {
            let group = match group.is_null() {
                true => None,
                false => Some(GroupPath::new(group)?),
            };
            let cpumap = match cpumap.is_null() && maplen == 0 {
                true => None,
                false => Some(CpuMap::new(cpumap, maplen)?),
            };
            let tids = core::slice::from_raw_parts(tids, ntids);
            let ids = (!ids.is_null()).then(|| core::slice::from_raw_parts(ids, ntids));
            let results = match results.is_null() {
                true => None,
                false => Some(core::slice::from_raw_parts(
                    results.cast::<Cell<c_int>>(),
                    ntids,
                )),
            };
            CgroupAddThreads::new(pid, group, role, tids, ids, cpumap, results)
        }
    })
}
symver!(virInternalCgroupAddThreads);

/**
 * virInternalSetCgroupAddThreadsHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalCgroupAddThreads(), in the place of the
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
pub unsafe extern "C" fn virInternalSetCgroupAddThreadsHandler(
    conn: *mut _virConnect,
    version: c_uint,
    handler: virInternalCgroupAddThreadsHandler,
    opaque: *mut c_void,
    freecb: virInternalFreeCallback,
    flags: c_uint,
) -> c_int {
    let code = handler.map(|handler| handler as Code);
    set_handler(&KIND, conn, version, code, opaque, freecb, flags)
}
symver!(virInternalSetCgroupAddThreadsHandler);
