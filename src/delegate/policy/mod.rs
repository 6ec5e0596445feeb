// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who may have what done: rules, read from a TOML file.

mod value;

pub use value::{Cpus, Ids, Size, Subtree};
