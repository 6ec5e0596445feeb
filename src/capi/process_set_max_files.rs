// SPDX-License-Identifier: LGPL-2.1-or-later
//! How many files a process may have open.

use core::ffi::c_void;

use libc::{c_int, c_uint, pid_t};

use super::types::{_virConnect, virInternalFreeCallback};
use super::{perform, set_handler, symver};
use crate::kernel::process::Pid;
use crate::operation::process_set_max_files::{KIND, ProcessSetMaxFiles};
use crate::registry::Code;

/**
 * VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION:
 *
 * The version of virInternalProcessSetMaxFiles() that this header is
 * for: give it to virInternalSetProcessSetMaxFilesHandler().
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION: c_uint = 1;

/**
 * virInternalSetMaxFilesHandler:
 * @pid: the process
 * @files: how many it may have open
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetMaxFiles(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetMaxFiles() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
pub type virInternalSetMaxFilesHandler =
    Option<unsafe extern "C-unwind" fn(pid: pid_t, files: c_uint, opaque: *mut c_void) -> c_int>;

/**
 * virInternalProcessSetMaxFiles:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @files: how many it may have open
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Limits the files that @pid may have open (RLIMIT_NOFILE, soft and hard). As
 * libvirt's virProcessSetMaxFiles() does, it sets one more than asked; other
 * than there, the sum does not wrap: UINT_MAX sets 4294967296 (where the
 * kernel allows that many). A handler sees @files as it was given, and need
 * not add one.
 *
 * A handler may grant more than was asked for, never less.
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
pub unsafe extern "C" fn virInternalProcessSetMaxFiles(
    conn: *mut _virConnect,
    pid: pid_t,
    files: c_uint,
    flags: c_uint,
) -> c_int {
    perform(&KIND, conn, flags, || {
        let pid = Pid::new(pid)?;
        Ok(ProcessSetMaxFiles::new(pid, files))
    })
}
symver!(virInternalProcessSetMaxFiles);

/**
 * virInternalSetProcessSetMaxFilesHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetMaxFiles(), in the place of the
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
pub unsafe extern "C" fn virInternalSetProcessSetMaxFilesHandler(
    conn: *mut _virConnect,
    version: c_uint,
    handler: virInternalSetMaxFilesHandler,
    opaque: *mut c_void,
    freecb: virInternalFreeCallback,
    flags: c_uint,
) -> c_int {
    let code = handler.map(|handler| handler as Code);
    set_handler(&KIND, conn, version, code, opaque, freecb, flags)
}
symver!(virInternalSetProcessSetMaxFilesHandler);
