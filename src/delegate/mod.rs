// SPDX-License-Identifier: LGPL-2.1-or-later
//! The delegate: another, privileged process that performs operations.
//!
//! | module | what it does |
//! |---|---|
//! | `policy` | who may have what done, read from a TOML file |

#[cfg(feature = "delegate")]
pub mod policy;
