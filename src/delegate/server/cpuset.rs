// SPDX-License-Identifier: LGPL-2.1-or-later
//! The cpuset controller of cgroups: which CPUs a thread can be given at all.

use super::cgroupfs;
use super::pidfd::read_lines;
use super::threads::read_at;
use crate::delegate::policy::hierarchies;
use crate::errno::Errno;
use crate::kernel::cgroup::{Group, Version};
use crate::kernel::process::Task;

/// The map of a list as the kernel writes it.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u8>> {
    let mut map = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        let length = map.len().max(last / 8 + 1);
        map.resize(length, 0);
        (first..=last).for_each(|cpu| map[cpu / 8] |= 1 << (cpu % 8));
    }
    Some(map)
}

/// The hierarchy that has cpuset, as a line of /proc/PID/cgroup names it, and
/// the path in it. A controller is in one hierarchy only.
pub(crate) fn hierarchy_of(cgroups: &str) -> Option<(&str, &str)> {
    let has_cpuset = |controllers: &str| controllers.split(',').any(|one| one == "cpuset");
    hierarchies(cgroups)
        .find(|(controllers, _)| has_cpuset(controllers))
        .or_else(|| hierarchies(cgroups).find(|(controllers, _)| controllers.is_empty()))
}

/// The version of a hierarchy, as a line of /proc/PID/cgroup names it.
pub(crate) fn version_of(controllers: &str) -> Version {
    match controllers {
        "" => Version::V2,
        _ => Version::V1,
    }
}

pub(crate) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

/// The CPUs that threads in a cgroup can be given. ENOENT where the controller
/// is not enabled in it.
pub(crate) fn effective_cpus(group: &Group) -> Result<Vec<u8>, Errno> {
    let name = match group.version() {
        Version::V1 => c"cpuset.effective_cpus",
        Version::V2 => c"cpuset.cpus.effective",
    };
    let text = String::from_utf8(read_at(group.directory(), name)?);
    let list = text.ok().as_deref().and_then(parse_list);
    list.ok_or(Errno::EPROTO)
}

/// The CPUs that a thread can be given, and all that it makes, as long as
/// nobody moves them. EOPNOTSUPP where there is no such controller.
pub(crate) fn of_task(task: Task) -> Result<Vec<u8>, Errno> {
    let path = format!("/proc/{}/task/{}/cgroup", task.pid, task.tid());
    let text = read_lines(&path)?;
    let (controllers, mut path) = hierarchy_of(&text).ok_or(Errno::EOPNOTSUPP)?;
    loop {
        let directory = cgroupfs::open(controllers, path)?;
        match effective_cpus(&Group::of(directory, version_of(controllers))) {
            Err(Errno(libc::ENOENT)) if path == "/" => return Err(Errno::EOPNOTSUPP),
            // Those of the cgroup above are its own.
            Err(Errno(libc::ENOENT)) => path = parent(path),
            cpus => return cpus,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::serve::write_cpus;
    use super::*;
    use crate::delegate::policy::path_in;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        for (text, expected) in [
            ("\n", &[][..]),
            ("0\n", &[1]),
            ("0-1,9\n", &[0b11, 0b10]),
            ("7-8", &[0x80, 1]),
        ] {
            let map = parse_list(text).expect("a list");
            assert_eq!(map, expected, "{text:?}");
            let mut back = String::new();
            write_cpus(&mut back, &map).expect("a String takes everything");
            assert_eq!(back.trim_matches('"'), text.trim(), "and back");
        }
        for text in ["x", "1-", "-1", "1;2"] {
            assert_eq!(parse_list(text), None, "{text:?} is no list");
        }
    }

    #[test]
    fn the_hierarchy_is_the_one_that_has_cpuset() {
        let hybrid = "3:cpu,cpuacct:/a\n2:cpuset,misc:/b:c\n1:name=systemd:/d\n0::/e\n";
        assert_eq!(hierarchy_of(hybrid), Some(("cpuset,misc", "/b:c")));
        assert_eq!(path_in(hybrid, "cpuset,misc"), Some("/b:c"));
        assert_eq!(path_in(hybrid, ""), Some("/e"));
        assert_eq!(hierarchy_of("1:cpu:/a\n0::/e\n"), Some(("", "/e")));
        assert_eq!(hierarchy_of("1:cpu:/a\n"), None);
    }

    #[test]
    fn a_cgroup_below_the_root_has_the_root_as_parent() {
        assert_eq!(parent("/a/b"), "/a");
        assert_eq!(parent("/a"), "/");
        assert_eq!(parent("/"), "/");
    }
}
