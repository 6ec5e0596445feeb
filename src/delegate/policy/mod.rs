// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who may have what done: rules, read from a TOML file.
//!
//! What no rule allows is denied. A rule says which peers it is for, which
//! processes they may have changed, and operation by operation what they may
//! ask for; the first rule that permits an operation decides. docs/policy.md is
//! the reference of the file.
//!
//! | module | what it does |
//! |---|---|
//! | `value` | the values of fields, checked when they are read |
//! | `reader` | from TOML to types, with errors that say where and what |
//! | `file` | a whole policy from its file |
//! | `decision` | a peer, the rules that are for it, and why something is denied |
//! | `explain` | the same in words, for people |

mod decision;
mod explain;
/// cbindgen:ignore
mod file;
mod reader;
#[cfg(test)]
mod tests;
/// cbindgen:ignore
mod value;

use std::fmt;

pub use decision::{Closeness, Denied, Peer, Scope};
pub use explain::{Explanation, Target};
pub use file::{FILE_MAX, PolicyError};
pub use value::{CPUS_MAX, Cpus, Ids, Labels, NAME_MAX, PATH_MAX, Size, Subtree, check_label};
pub(crate) use value::{Name, child_name, covers, not_empty, priority};

use crate::operation::Allowed;

/// What a file says.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The hierarchy whose paths the file means.
    pub hierarchy: Hierarchy,
    /// What each peer scope may take of the delegate, unless its rule says
    /// otherwise.
    pub quota: Quota,
    /// In the file's order.
    pub rules: Vec<Rule>,
}

/// A hierarchy of cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hierarchy {
    /// The one of cgroup v2.
    #[default]
    V2,
    /// The one of cgroup v1 with that controller, or named hierarchy, such as
    /// `cpu` or `name=systemd`.
    V1(String),
}

impl Hierarchy {
    /// The path of a process in it, from the text of its `/proc/PID/cgroup`.
    pub fn path_in<'t>(&self, proc_cgroup: &'t str) -> Option<&'t str> {
        self.line_in(proc_cgroup).map(|(_, path)| path)
    }

    /// Likewise, its controllers and the path.
    pub(crate) fn line_in<'t>(&self, proc_cgroup: &'t str) -> Option<(&'t str, &'t str)> {
        let mut hierarchies = hierarchies(proc_cgroup);
        hierarchies.find(|(controllers, _)| match self {
            Hierarchy::V2 => controllers.is_empty(),
            Hierarchy::V1(name) => controllers.split(',').any(|own| own == name),
        })
    }
}

/// The hierarchies in the text of a `/proc/PID/cgroup`: the controllers or name
/// of each, which version 2 has none of, and the process's path in it.
///
/// "4:cpu,cpuacct:/path"; of version 2 "0::/path"
pub(crate) fn hierarchies(proc_cgroup: &str) -> impl Iterator<Item = (&str, &str)> {
    // Not lines(): a path may end in a carriage return.
    proc_cgroup.split('\n').filter_map(|line| {
        let (_, hierarchy) = line.split_once(':')?;
        hierarchy.split_once(':')
    })
}

/// The path in the hierarchy of these controllers.
pub(crate) fn path_in<'t>(proc_cgroup: &'t str, controllers: &str) -> Option<&'t str> {
    let mut hierarchies = hierarchies(proc_cgroup);
    let found = hierarchies.find(|(own, _)| *own == controllers);
    found.map(|(_, path)| path)
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hierarchy::V2 => f.write_str("v2"),
            Hierarchy::V1(name) => f.write_str(name),
        }
    }
}

/// What one peer scope may take of the delegate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Connections at a time.
    pub connections: u32,
    /// Operations at a time.
    pub concurrent: u32,
    /// Operations in a second; `None`: any number.
    pub per_second: Option<u32>,
}

impl Default for Quota {
    fn default() -> Quota {
        Quota {
            connections: 256,
            concurrent: 16,
            // Far more than a libvirtd asks for, and few enough to write down.
            per_second: Some(10_000),
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quota {
            connections,
            concurrent,
            per_second,
        } = self;
        write!(
            f,
            "{connections} connections and {concurrent} operations at a time, "
        )?;
        match per_second {
            Some(operations) => write!(f, "{operations} operations in a second"),
            None => f.write_str("any number in a second"),
        }
    }
}

/// The fields of a quota that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuotaFields {
    /// Connections at a time.
    #[serde(default, deserialize_with = "file::quota_number")]
    pub connections: Option<u32>,
    /// Operations at a time.
    #[serde(default, deserialize_with = "file::quota_number")]
    pub concurrent: Option<u32>,
    /// Operations in a second; `Some(None)`: any number.
    #[serde(default, deserialize_with = "file::quota_rate")]
    pub per_second: Option<Option<u32>>,
}

impl QuotaFields {
    /// That quota, with what is given here in its place.
    fn over(self, quota: Quota) -> Quota {
        Quota {
            connections: self.connections.unwrap_or(quota.connections),
            concurrent: self.concurrent.unwrap_or(quota.concurrent),
            per_second: self.per_second.unwrap_or(quota.per_second),
        }
    }
}

/// What some peers may have done.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique in the policy.
    pub name: String,
    /// Whom it is for.
    pub peers: Peers,
    /// The processes that they may have changed.
    pub targets: Targets,
    /// What replaces the policy's quota for them.
    pub quota: QuotaFields,
    /// What they may have done.
    pub allowed: Allowed,
}

/// Peers: those that everything fits that is given. At least one is.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// Their user id.
    pub uid: Option<Ids>,
    /// Their group id.
    pub gid: Option<Ids>,
    /// Their cgroup is this or below.
    pub cgroup: Option<Subtree>,
    /// The label of the listener that they connected to.
    pub label: Option<Labels>,
}

/// Processes.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    /// Their cgroup is this or below; the default is the peer's own.
    pub cgroup: Option<Subtree>,
    /// Their real user id.
    pub uid: Option<Ids>,
}

/// What a rule allows of an operation. It displays as that, in words.
pub trait Bounds: fmt::Display {
    /// Checks what concerns more than one field.
    fn check(&self) -> Result<(), Contradiction> {
        Ok(())
    }

    /// The cgroup whose subtree it opens besides those of processes.
    fn cgroup(&self) -> Option<&Subtree> {
        None
    }
}

/// A field that does not go with the others.
pub struct Contradiction {
    /// Its name in the file.
    pub field: &'static str,
    /// What is wrong, behind "is 3: " or "is missing: ".
    pub text: String,
}

impl Contradiction {
    /// Says that about that field.
    pub fn new(field: &'static str, text: impl Into<String>) -> Contradiction {
        Contradiction {
            field,
            text: text.into(),
        }
    }
}
