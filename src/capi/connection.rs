// SPDX-License-Identifier: LGPL-2.1-or-later
//! The end of a connection.

use libc::c_int;

use super::types::_virConnect;
use super::{boundary, require_no_child, symver};
use crate::delegate::client;
use crate::dispatch::{self, Outcome};
use crate::error::Error;
use crate::operation::OPERATIONS;
use crate::registry::Key;
use crate::thread;

/**
 * virInternalConnectionClosed:
 * @conn: the connection that was closed, or is about to be
 *
 * Drops everything that was set for @conn: every handler is unset as by its
 * set function, and its delegate disconnected. To be called by whoever closes a connection, since the library
 * only knows its address, which may become that of another one.
 *
 * Called outside any handler, it returns when nobody is inside a handler that
 * was set for @conn and every free callback has returned; do not hold a lock
 * that a handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, also when nothing was set; -1 on error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) when @conn is NULL,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub extern "C" fn virInternalConnectionClosed(conn: *mut _virConnect) -> c_int {
    boundary(0, |page| {
        if conn.is_null() {
            return Err(Error::invalid(format_args!("conn is NULL")));
        }
        require_no_child(page, "handlers cannot be unset")?;
        let inside = &thread::own().inside;
        dispatch::require_no_longjmp(inside);
        for kind in OPERATIONS {
            kind.registry.set(conn as Key, None, inside);
        }
        client::disconnect(conn as Key, inside);
        Ok(Outcome::Done)
    })
}
symver!(virInternalConnectionClosed);
