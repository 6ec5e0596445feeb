// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the operations on resource limits have in common.

use std::io;
use std::ptr;

use libc::pid_t;
use nix::errno::Errno;
use serde_json::{Value, json};

use super::{Delegation, Errand, Request, Requests, Scene, Stage, State, Trial};
use crate::privilege::{Kind, Missing, SYS_RESOURCE};
use crate::proc::{self, Limit};
use crate::size::{self, UNLIMITED};
use crate::target::User;

/// A limit that an operation sets.
pub struct Resource {
    pub number: libc::__rlimit_resource_t,
    /// Its line in /proc/PID/limits.
    pub line: &'static str,
    /// Its name for systemd's Limit...=, in small letters docker's --ulimit.
    pub name: &'static str,
    /// The most that is tried.
    pub most: u64,
    pub show: fn(u64) -> String,
}

type Make = fn(pid: pid_t, value: u64) -> Box<dyn Request>;

impl Resource {
    /// Sets the soft and the hard limit.
    pub fn set(&self, pid: pid_t, value: u64) -> Result<(), Errno> {
        let limit = libc::rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        // SAFETY: the kernel reads one rlimit; there is no old one to write.
        let set = unsafe { libc::prlimit(pid, self.number, &limit, ptr::null_mut()) };
        Errno::result(set).map(drop)
    }

    pub fn state(&self, pid: pid_t, as_asked: impl Fn(Limit) -> bool) -> io::Result<State> {
        let limit = proc::limit(pid, self.line)?;
        let text = match limit.soft == limit.hard {
            true => (self.show)(limit.hard),
            false => format!(
                "{}, hard {}",
                (self.show)(limit.soft),
                (self.show)(limit.hard)
            ),
        };
        Ok(State {
            text,
            values: json!({ "soft": size::value(limit.soft), "hard": size::value(limit.hard) }),
            as_asked: as_asked(limit),
        })
    }

    /// What it takes to set `value`.
    pub fn missing(&self, pid: pid_t, value: u64, errnum: Errno) -> Option<Missing> {
        if errnum != Errno::EPERM {
            return None;
        }
        if self.number == libc::RLIMIT_NOFILE {
            let most = proc::read("/proc/sys/fs/nr_open").unwrap_or_default();
            if most.trim().parse().is_ok_and(|most: u64| value > most) {
                let what = format!("a higher fs.nr_open than {}", most.trim());
                let hint = format!("sysctl fs.nr_open={value}");
                return Some(Missing::new(Kind::Kernel, what).hint(hint));
            }
        }
        let missing = SYS_RESOURCE.missing();
        // A limit that is high from the start need not be raised.
        Some(match proc::is_own_user(pid).unwrap_or(true) {
            true => missing.hint(format!(
                "or a high limit from the start: systemd Limit{}=N, docker run --ulimit {}=N",
                self.name,
                self.name.to_lowercase()
            )),
            false => missing,
        })
    }

    /// Where a process's limit is first brought to.
    fn start(&self, pid: pid_t) -> io::Result<u64> {
        Ok(proc::limit(pid, self.line)?.hard.min(self.most))
    }

    pub fn scenes(&'static self, make: Make) -> Vec<Scene> {
        let stage = Stage::new(User::Own, |target| {
            let pid = target.pid();
            let start = self.start(pid)?;
            Ok(Requests {
                allowed: [2, 4, 8].map(|part| make(pid, start / part)),
                beyond: make(pid, start.max(1)),
            })
        });
        vec![Scene { label: "", stage }]
    }

    /// Lower the limit of another user's process, raise it, and go beyond what
    /// the policy allows.
    pub fn delegations(&'static self, user: User, make: Make) -> Vec<Delegation> {
        let stage = Stage::new(user, |target| {
            let pid = target.pid();
            let start = self.start(pid)?;
            let raise = Errand::new(make(pid, start));
            Ok(vec![
                Errand::new(make(pid, start / 2)).main(),
                match self.number {
                    // The one that is raised most.
                    libc::RLIMIT_MEMLOCK => raise.main(),
                    _ => raise,
                },
                Errand::new(make(pid, self.most * 2)).refused(),
            ])
        });
        vec![Delegation { label: "", stage }]
    }

    /// What a policy allows as the most.
    pub fn policy(&self, operation: &str) -> String {
        format!("{operation} = {{ max = {} }}", self.most)
    }

    pub fn trials(&'static self, make: Make) -> Vec<Trial> {
        let lower = |user| {
            Stage::new(user, |target| {
                let pid = target.pid();
                Ok(make(pid, self.start(pid)? / 2))
            })
        };
        let raise = Stage::new(User::Own, |target| {
            let pid = target.pid();
            let low = self.start(pid)? / 2;
            self.set(pid, low)?;
            Ok(make(pid, low + 1))
        });
        let trial = |name, user, stage| Trial { name, user, stage };
        vec![
            trial("lower", User::Own, lower(User::Own)),
            trial("raise", User::Own, raise),
            trial("lower", User::Other, lower(User::Other)),
        ]
    }
}

/// A limit that is asked for, soft and hard.
pub fn asked(value: u64) -> Value {
    json!({ "soft": size::value(value), "hard": size::value(value) })
}

/// libvirt's figure for unlimited memory, and whatever is more.
pub const UNLIMITED_MEMORY: u64 = 9_007_199_254_740_991;

/// The kernel's figure for an amount of memory.
pub fn memory(bytes: u64) -> u64 {
    match bytes {
        UNLIMITED_MEMORY.. => UNLIMITED,
        bytes => bytes,
    }
}
