// SPDX-License-Identifier: LGPL-2.1-or-later
//! Connecting to a delegate: another process that does the work.

use core::ffi::{CStr, c_char};

use libc::{c_int, c_uint, c_ulonglong};

use super::types::_virConnect;
use super::{boundary, require_no_child, symver, unknown_flags};
use crate::delegate::address::Address;
use crate::delegate::client::{self, TIMEOUT_MAX_MS, TIMEOUT_MS, Target};
use crate::dispatch::{self, Outcome};
use crate::error::Error;
use crate::registry::Key;
use crate::thread;

/**
 * VIR_INTERNAL_DELEGATE_VERSION:
 *
 * The version of the interface to delegates that this header is for: give it
 * to virInternalConnectDelegate().
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_DELEGATE_VERSION: c_uint = 1;

/**
 * VIR_INTERNAL_DELEGATE_OPTIONAL:
 *
 * A flag of virInternalConnectDelegate(): a delegate that is away (nobody
 * listens at its address, or the connection ended before a request was sent)
 * counts as one that does not handle anything, and the call goes on down the
 * chain. Without it, that is an error; and so it is in any case when this
 * process has no descriptor left to ask with, or may not connect.
 *
 * Since: 0.1.0
 */
pub const VIR_INTERNAL_DELEGATE_OPTIONAL: c_uint = 1 << 0;

/**
 * virInternalConnectDelegate:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_DELEGATE_VERSION
 * @address: "unix:/path" of a delegate's socket, or "fd:NUMBER", a connected
 * SOCK_SEQPACKET socket that this process was given
 * @timeoutMs: how long a call waits for the delegate, in milliseconds, 0 for
 * 2000; at most 86400000, a day
 * @flags: 0, or VIR_INTERNAL_DELEGATE_OPTIONAL
 *
 * From now on the operations are done by a delegate, when no handler does
 * them: by the one connected for the operation's connection, then by the one
 * connected for every connection. It takes the place of the one that was
 * connected for @conn before. Of a delegate's answers only that it does not
 * handle the operation goes on down the chain; what it refuses is an error.
 *
 * Nothing is sent yet: each thread makes a connection of its own when it first
 * asks, and a new one when the delegate was restarted. It keeps that and a
 * descriptor of the process it asked about last, which are the library's:
 * whoever closes descriptors must not close those of the process it runs in.
 *
 * Over a descriptor there is one connection for all threads, which take turns,
 * and no new one: what does not answer, or not in time, is unreachable from
 * then on. The descriptor is copied, and stays the caller's; nothing of its
 * socket is set. The same one can be connected for several connections; the
 * last disconnect shuts the socket down.
 *
 * When nothing is connected for every connection, the environment variable
 * LIBVIRT_INTERNAL_DELEGATE is the address of that delegate, as it was when the
 * library was first used, with 2000 milliseconds and without a flag. Empty, it
 * names none; what is no address makes each call fail with
 * VIR_INTERNAL_ERR_UNREACHABLE. It is ignored in a process whose credentials
 * were raised when it was started (setuid, file capabilities). A descriptor is
 * not copied, and must stay open; one that is of another socket by the time of
 * a call is not touched.
 *
 * In a forked child, requests go over a new connection each time. Over a
 * descriptor there are none: it is away.
 *
 * Called outside any handler, it returns when nobody waits for the delegate
 * that was connected before. Thread-safe. Not possible in a forked child:
 * daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed:
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's; VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for an @address that is
 * none, a path of more than 107 bytes, a descriptor that is no Unix
 * SOCK_SEQPACKET socket or that the environment names, a @timeoutMs that is out
 * of range, and unknown @flags; VIR_INTERNAL_ERR_FAILED
 * when the descriptor cannot be copied; VIR_INTERNAL_ERR_FORKED (ECHILD) in a
 * forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalConnectDelegate(
    conn: *mut _virConnect,
    version: c_uint,
    address: *const c_char,
    timeoutMs: c_uint,
    flags: c_uint,
) -> c_int {
    boundary(0, |page| {
        if version != VIR_INTERNAL_DELEGATE_VERSION {
            return Err(Error::version(format_args!(
                "the program was made for version {version} of the interface to delegates, but \
                 this library has version {VIR_INTERNAL_DELEGATE_VERSION}: build it with this \
                 library's header"
            )));
        }
        if flags & !VIR_INTERNAL_DELEGATE_OPTIONAL != 0 {
            return Err(unknown_flags(flags & !VIR_INTERNAL_DELEGATE_OPTIONAL));
        }
        if timeoutMs > TIMEOUT_MAX_MS {
            return Err(Error::invalid(format_args!(
                "timeoutMs {timeoutMs} is out of range [0, {TIMEOUT_MAX_MS}]"
            )));
        }
        if address.is_null() {
            return Err(Error::invalid(format_args!("address is NULL")));
        }
        require_no_child(page, "delegates cannot be connected")?;
        let target = Target {
            // SAFETY: the caller's word that it is a C string.
            address: Address::parse(unsafe { CStr::from_ptr(address) })?,
            timeout_ms: match timeoutMs {
                0 => TIMEOUT_MS,
                timeout => timeout,
            },
            optional: flags & VIR_INTERNAL_DELEGATE_OPTIONAL != 0,
        };
        let inside = &thread::own().inside;
        dispatch::require_no_longjmp(inside);
        client::connect(conn as Key, target, inside)?;
        Ok(Outcome::Done)
    })
}
symver!(virInternalConnectDelegate);

/**
 * virInternalDisconnectDelegate:
 * @conn: the connection, or NULL for every connection
 *
 * Disconnects the delegate that was connected for @conn, and closes every
 * thread's connection to it. What the environment names stays.
 *
 * Called outside any handler, it returns when nobody waits for the delegate
 * any more. Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, also when none was connected; -1 on error:
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub extern "C" fn virInternalDisconnectDelegate(conn: *mut _virConnect) -> c_int {
    boundary(0, |page| {
        require_no_child(page, "delegates cannot be disconnected")?;
        let inside = &thread::own().inside;
        dispatch::require_no_longjmp(inside);
        client::disconnect(conn as Key, inside);
        Ok(Outcome::Done)
    })
}
symver!(virInternalDisconnectDelegate);

/**
 * virInternalGetLastRequest:
 *
 * The calling thread's last request to a delegate that failed with
 * VIR_INTERNAL_ERR_UNKNOWN_OUTCOME: sent, and never answered.
 *
 * Thread-safe, fork-safe.
 *
 * Returns the id of the request, for virInternalAskDelegate(), or 0 when
 * there is none.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub extern "C" fn virInternalGetLastRequest() -> c_ulonglong {
    thread::last_request()
}
symver!(virInternalGetLastRequest);

/**
 * virInternalAskDelegate:
 * @conn: the connection that the request was made for, or NULL
 * @request: its id, from virInternalGetLastRequest()
 * @flags: 0
 *
 * Asks the delegate what became of a request that it did not answer in time:
 * the one connected for @conn and, when that did not handle it or does not
 * know, the one connected for every connection. A delegate remembers the last
 * 256 requests from the container (or the user) that asks, until it is
 * restarted.
 *
 * The operations set a state and can as well be called again.
 *
 * Thread-safe, fork-safe.
 *
 * Returns 0 when it was done, VIR_INTERNAL_NOT_HANDLED when nothing was done,
 * -1 on error: what the operation itself would have returned, such as
 * VIR_INTERNAL_ERR_REFUSED (EPERM) or VIR_INTERNAL_ERR_FAILED;
 * VIR_INTERNAL_ERR_UNKNOWN_OUTCOME (EINPROGRESS) when it is still being worked
 * on or the delegate does not know; VIR_INTERNAL_ERR_UNREACHABLE
 * (ECONNREFUSED) and VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it cannot be
 * asked, and when no delegate is connected; VIR_INTERNAL_ERR_INVALID_ARG
 * (EINVAL) for a @request of 0 and unknown @flags.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub extern "C" fn virInternalAskDelegate(
    conn: *mut _virConnect,
    request: c_ulonglong,
    flags: c_uint,
) -> c_int {
    boundary(0, |page| {
        if flags != 0 {
            return Err(unknown_flags(flags));
        }
        if request == 0 {
            return Err(Error::invalid(format_args!("request is 0")));
        }
        client::ask_outcome(page, conn as Key, request)
    })
}
symver!(virInternalAskDelegate);
