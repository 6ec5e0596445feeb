// SPDX-License-Identifier: LGPL-2.1-or-later
//! What this machine and this process have.

use std::io;

use crate::cgroup::{self, Hierarchy};
use crate::privilege::{CAPABILITIES, Capability, is_in_initial_user_namespace};
use crate::proc;

pub struct Host {
    pub library: &'static str,
    pub kernel: String,
    /// What the library makes use of, and whether the kernel has it.
    pub features: [(&'static str, bool); 3],
    pub hierarchies: Vec<Hierarchy>,
    pub uid: libc::uid_t,
    pub initial_user_namespace: bool,
    pub capabilities: [(Capability, bool); CAPABILITIES.len()],
}

impl Host {
    pub fn probe() -> io::Result<Host> {
        let own = std::process::id() as libc::pid_t;
        Ok(Host {
            library: env!("CARGO_PKG_VERSION"),
            kernel: proc::read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            features: [
                ("pidfd", has_pidfd(own, 0)),
                ("pidfd-thread", has_pidfd(own, libc::PIDFD_THREAD)),
                (
                    "rt-group-scheduling",
                    cgroup::realtime_budget(own).is_some(),
                ),
            ],
            hierarchies: cgroup::hierarchies(own)?,
            // SAFETY: asks for a number.
            uid: unsafe { libc::geteuid() },
            initial_user_namespace: is_in_initial_user_namespace(),
            capabilities: CAPABILITIES.map(|capability| (capability, capability.is_effective())),
        })
    }

    /// One line on what is being run, where, and by whom.
    pub fn summary(&self) -> String {
        let Host {
            library,
            kernel,
            uid,
            ..
        } = self;
        let names = |wanted| -> Vec<String> {
            let capabilities = self.capabilities.iter();
            capabilities
                .filter(|(_, is_effective)| *is_effective == wanted)
                .map(|(capability, _)| capability.to_string())
                .collect()
        };
        let namespace = match self.initial_user_namespace {
            true => "",
            false => " in a user namespace",
        };
        let without = names(false).join(", ");
        let without = match without.is_empty() {
            true => String::new(),
            false => format!(", without {without}"),
        };
        format!("libvirt-internal {library}, kernel {kernel}, uid {uid}{namespace}{without}")
    }
}

fn has_pidfd(pid: libc::pid_t, flags: libc::c_uint) -> bool {
    // SAFETY: numbers only; the descriptor that it makes is closed right away.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, pid, flags);
        descriptor >= 0 && libc::close(descriptor as libc::c_int) == 0
    }
}
