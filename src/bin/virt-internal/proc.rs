// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the kernel says of processes and threads, read from /proc.

use std::fs;
use std::io;

use libc::pid_t;

use crate::cpus::Cpus;
use crate::size::UNLIMITED;

/// A resource limit.
#[derive(Clone, Copy)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

fn invalid(path: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("cannot make sense of {path}"),
    )
}

/// Reads a file; an error names it. Names of processes, cgroups and mount points
/// need not be UTF-8, and are not what is looked for.
pub fn read(path: &str) -> io::Result<String> {
    fs::read(path)
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))
}

/// The limit that has `line` in /proc/PID/limits.
pub fn limit(pid: pid_t, line: &str) -> io::Result<Limit> {
    let path = format!("/proc/{pid}/limits");
    let number = |text: Option<&str>| match text? {
        "unlimited" => Some(UNLIMITED),
        number => number.parse().ok(),
    };
    let limit = |text: &str| {
        let mut numbers = text.split_whitespace();
        Some(Limit {
            soft: number(numbers.next())?,
            hard: number(numbers.next())?,
        })
    };
    read(&path)?
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .and_then(limit)
        .ok_or_else(|| invalid(&path))
}

/// The kernel's numbers of policy and real-time priority.
pub fn scheduler(pid: pid_t, tid: pid_t) -> io::Result<(i32, i32)> {
    // In proc(5) these are fields 41 and 40; the name, field 2, ends in the
    // last parenthesis.
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let stat = read(&path)?;
    let fields = stat
        .rsplit_once(')')
        .map(|(_, fields)| fields.split_whitespace());
    let parse = |mut fields: std::str::SplitWhitespace<'_>| {
        let priority = fields.nth(40 - 3)?.parse().ok()?;
        let policy = fields.next()?.parse().ok()?;
        Some((policy, priority))
    };
    fields.and_then(parse).ok_or_else(|| invalid(&path))
}

/// The CPUs that a thread may run on.
pub fn cpus(pid: pid_t, tid: pid_t) -> io::Result<Cpus> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    status(&path, "Cpus_allowed_list:")?
        .parse()
        .map_err(|_| invalid(&path))
}

/// The CPUs that this process may run on.
pub fn own_cpus() -> io::Result<Cpus> {
    let own = std::process::id() as pid_t;
    cpus(own, own)
}

/// All threads of a process.
pub fn threads(pid: pid_t) -> io::Result<Vec<pid_t>> {
    let path = format!("/proc/{pid}/task");
    fs::read_dir(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))?
        .map(|entry| {
            let name = entry?.file_name();
            name.to_str()
                .and_then(|name| name.parse().ok())
                .ok_or_else(|| invalid(&path))
        })
        .collect()
}

/// Whether all the user ids of a process are those of this one.
pub fn is_own_user(pid: pid_t) -> io::Result<bool> {
    let own = status("/proc/self/status", "Uid:")?;
    Ok(status(&format!("/proc/{pid}/status"), "Uid:")? == own)
}

/// The bits of this process's effective capabilities.
pub fn effective_capabilities() -> io::Result<u64> {
    let bits = status("/proc/self/status", "CapEff:")?;
    u64::from_str_radix(&bits, 16).map_err(|_| invalid("/proc/self/status"))
}

fn status(path: &str, line: &str) -> io::Result<String> {
    read(path)?
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .map(|text| text.trim().to_owned())
        .ok_or_else(|| invalid(path))
}
