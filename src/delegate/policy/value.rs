// SPDX-License-Identifier: LGPL-2.1-or-later
//! The values of a policy's fields, checked when they are read.

use serde::Deserialize;

/// A number of bytes: `4096`, `"16 GiB"`, or `"unlimited"`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A set of user or group ids: `107`, `[0, 107]`, or `"100-199,1000"`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Ids(Vec<(u32, u32)>);

/// A set of CPUs, as taskset says it: `"0-3,8"`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Cpus(Vec<(u32, u32)>);

/// The absolute path of a cgroup, with all that is below it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Subtree(String);
