// SPDX-License-Identifier: LGPL-2.1-or-later
//! What this process may do, and what will fail: said when it starts, not when
//! the first VM does.

use virt_internal::delegate::policy::Policy;

use super::say;
use crate::privilege::{
    Capability, DAC_READ_SEARCH, SYS_NICE, SYS_PTRACE, SYS_RESOURCE, is_in_initial_user_namespace,
};
use crate::proc;

/// Each connection takes a descriptor, and each request some more.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit, and reads one.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if !raised {
        say(format_args!(
            "cannot raise the number of files: {}",
            std::io::Error::last_os_error()
        ));
    }
}

/// A capability, the operations that need it, and what happens without.
struct Need {
    capability: Capability,
    operations: &'static [&'static str],
    without: &'static str,
}

const NEEDS: [Need; 4] = [
    Need {
        capability: SYS_RESOURCE,
        operations: &[
            "process-set-max-mem-lock",
            "process-set-max-processes",
            "process-set-max-files",
            "process-set-max-core-size",
        ],
        without: "fail for processes of other users, and where a hard limit is to be raised",
    },
    Need {
        capability: SYS_NICE,
        operations: &["process-set-scheduler", "process-set-affinity"],
        without: "fail for processes of other users, and where real-time scheduling is asked for",
    },
    Need {
        capability: DAC_READ_SEARCH,
        operations: &["cgroup-add-threads"],
        without: "fails: a peer's cgroup cannot be reached on this mount",
    },
    Need {
        capability: SYS_PTRACE,
        operations: &[
            "process-set-scheduler",
            "process-set-affinity",
            "cgroup-add-threads",
        ],
        without: "fail where a peer of another user names a thread by its number: what the number \
                  means in its PID namespace cannot be told",
    },
];

/// What the policy permits and this process cannot do, one line each.
pub fn problems(policy: &Policy) -> Vec<String> {
    let permits = |operation: &str| {
        policy.rules.iter().any(|rule| {
            let mut allowed = rule.allowed.iter();
            allowed.any(|(name, bounds)| name == operation && bounds.is_some())
        })
    };
    let mut problems = Vec::new();
    let mut missing = Vec::new();
    for need in NEEDS {
        let operations: Vec<&str> = need
            .operations
            .iter()
            .copied()
            .filter(|operation| permits(operation))
            .collect();
        if operations.is_empty() || need.capability.is_effective() {
            continue;
        }
        missing.push(need.capability.to_string());
        problems.push(format!(
            "without {}: {} {}",
            need.capability,
            operations.join(", "),
            need.without
        ));
    }
    if !missing.is_empty() {
        problems.push(format!(
            "to have {0}: run it as root, with CapabilityBoundingSet= (and, as another user, \
             AmbientCapabilities=) {0} in a systemd unit, or as capabilities.add in a container",
            missing.join(" ")
        ));
    } else if !is_in_initial_user_namespace() {
        problems.push(
            "in a user namespace: the kernel refuses what capabilities are for, run it outside"
                .to_owned(),
        );
    }
    if permits("cgroup-add-threads") {
        problems.extend(read_only_cgroups());
    }
    problems
}

/// Mounts of cgroups that cannot be written.
fn read_only_cgroups() -> Vec<String> {
    let mounts = proc::read("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let is_cgroup = kind.starts_with("cgroup ") || kind.starts_with("cgroup2 ");
        let mut place = place.split(' ').skip(4);
        let (point, options) = (place.next()?, place.next()?);
        (is_cgroup && options.split(',').any(|option| option == "ro")).then(|| {
            format!(
                "{point} is mounted read-only: cgroup-add-threads fails there (in a systemd unit \
                 write ProtectControlGroups=no, in a container mount the host's /sys/fs/cgroup)"
            )
        })
    };
    let found: Vec<String> = mounts.lines().filter_map(mount).collect();
    match mounts.contains(" - cgroup") {
        true => found,
        false => vec!["no cgroups are mounted: cgroup-add-threads fails".to_owned()],
    }
}
