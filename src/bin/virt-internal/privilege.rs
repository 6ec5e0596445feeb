// SPDX-License-Identifier: LGPL-2.1-or-later
//! What this process may not do, and how it would be allowed.

use std::fmt;

use serde_json::{Value, json};

use crate::proc;

/// What kind of thing is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Capability,
    Cgroup,
    Kernel,
    Argument,
    /// A thing that other machines have, and that is not needed.
    Absent,
    /// Nothing that the operation needs, only what trying it out here does.
    Trial,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Capability => "capability",
            Kind::Cgroup => "cgroup",
            Kind::Kernel => "kernel",
            Kind::Argument => "argument",
            Kind::Absent => "absent",
            Kind::Trial => "trial",
        })
    }
}

/// Why something cannot be done here.
#[derive(Clone)]
pub struct Missing {
    pub kind: Kind,
    /// It goes behind "needs", but for the last two kinds, where it is a
    /// sentence.
    pub what: String,
    /// Ways to get it.
    pub hints: Vec<String>,
}

impl Missing {
    pub fn new(kind: Kind, what: impl Into<String>) -> Missing {
        Missing {
            kind,
            what: what.into(),
            hints: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Missing {
        self.hints.push(hint.into());
        self
    }

    pub fn needs(&self) -> String {
        match self.kind {
            Kind::Absent | Kind::Trial => self.what.clone(),
            _ => format!("needs {}", self.what),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({ "kind": self.kind.to_string(), "what": self.what, "hints": self.hints })
    }
}

impl From<std::io::Error> for Missing {
    fn from(error: std::io::Error) -> Missing {
        Missing::new(Kind::Trial, error.to_string())
    }
}

/// The capabilities that matter here.
#[derive(Clone, Copy)]
pub struct Capability {
    /// Without "CAP_".
    name: &'static str,
    bit: u32,
}

pub const SYS_RESOURCE: Capability = Capability {
    name: "SYS_RESOURCE",
    bit: 24,
};
pub const SYS_NICE: Capability = Capability {
    name: "SYS_NICE",
    bit: 23,
};
pub const SETUID: Capability = Capability {
    name: "SETUID",
    bit: 7,
};
pub const SETGID: Capability = Capability {
    name: "SETGID",
    bit: 6,
};
pub const DAC_READ_SEARCH: Capability = Capability {
    name: "DAC_READ_SEARCH",
    bit: 2,
};
pub const SYS_PTRACE: Capability = Capability {
    name: "SYS_PTRACE",
    bit: 19,
};

/// All that operations need themselves, for a report.
pub const CAPABILITIES: [Capability; 4] = [SYS_RESOURCE, SYS_NICE, SETUID, SETGID];

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.name)
    }
}

impl Capability {
    /// Whether it is in force in this process.
    pub fn is_effective(self) -> bool {
        proc::effective_capabilities().is_ok_and(|bits| bits & (1 << self.bit) != 0)
    }

    /// What to do where the kernel refused what this capability allows. A
    /// process that has it may still be refused.
    pub fn missing(self) -> Missing {
        if !self.is_effective() {
            let name = self.name;
            return Missing::new(Kind::Capability, self.to_string())
                .hint(format!(
                    "file: setcap cap_{}+ep DAEMON",
                    name.to_lowercase()
                ))
                .hint(format!(
                    "systemd: AmbientCapabilities={self} in the daemon's unit"
                ))
                .hint(format!("docker, podman: run --cap-add {name}"))
                .hint(format!(
                    "Kubernetes: securityContext.capabilities.add: [\"{name}\"]"
                ))
                .hint("containers, KubeVirt: let a delegate outside do it");
        }
        if !is_in_initial_user_namespace() {
            return Missing::new(Kind::Capability, format!("{self}, initial userns"))
                .hint("run outside the user namespace, or have a handler do it there");
        }
        Missing::new(Kind::Kernel, "a security policy that allows it").hint(format!(
            "{self} is in force: look at seccomp and the LSM (SELinux, AppArmor)"
        ))
    }
}

/// The initial one maps every id to itself; so may others, but hardly any does.
pub fn is_in_initial_user_namespace() -> bool {
    proc::read("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}
