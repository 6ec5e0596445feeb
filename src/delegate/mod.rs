// SPDX-License-Identifier: LGPL-2.1-or-later
//! The delegate: another, privileged process that performs operations.
//!
//! | module | what it does |
//! |---|---|
//! | `address` | where a delegate is |
//! | `client` | connecting to a delegate, asking it |
//! | `wire` | the messages |
//! | `socket` | packets and descriptors over a socket |
//! | `server` | listening, and doing what is asked |
//! | `policy` | who may have what done, read from a TOML file |

pub(crate) mod address;
pub(crate) mod client;
#[cfg(feature = "delegate")]
pub mod policy;
#[cfg(feature = "delegate")]
pub mod server;
pub(crate) mod socket;
#[cfg(all(test, feature = "delegate"))]
mod vectors;
pub(crate) mod wire;

/// Reads bytes as each part of a message, for fuzzing.
#[cfg(feature = "delegate")]
#[doc(hidden)]
pub fn read_anything(bytes: &[u8]) {
    wire::read_anything(bytes);
}
