// SPDX-License-Identifier: LGPL-2.1-or-later
//! cgroups: where they are mounted, and small ones of our own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libc::pid_t;

use crate::complain;
use crate::privilege::{Kind, Missing};
use crate::proc;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

impl Version {
    /// The file that takes and lists single threads.
    pub fn threads_file(self) -> &'static str {
        match self {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        }
    }
}

/// A mounted hierarchy.
pub struct Hierarchy {
    pub version: Version,
    /// Of version 1: "cpu,cpuacct".
    pub controllers: String,
    pub mount: PathBuf,
    /// The directory of the cgroup that the process is in.
    pub group: PathBuf,
}

impl Hierarchy {
    fn has_controller(&self, name: &str) -> bool {
        self.controllers
            .split(',')
            .any(|controller| controller == name)
    }
}

/// The hierarchies that are mounted here, with a process's cgroups.
pub fn hierarchies(pid: pid_t) -> io::Result<Vec<Hierarchy>> {
    let mounts = proc::read("/proc/self/mountinfo")?;
    let groups = proc::read(&format!("/proc/{pid}/cgroup"))?;
    let hierarchy = |line: &str| {
        // "4:memory:/path"; of version 2 "0::/path"
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (version, kind) = match controllers {
            "" => (Version::V2, "cgroup2"),
            _ => (Version::V1, "cgroup"),
        };
        let (root, mount) = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let before: Vec<&str> = before.split(' ').collect();
            let after: Vec<&str> = after.split(' ').collect();
            let options: Vec<&str> = after.last()?.split(',').collect();
            let is_it = after[0] == kind
                && (version == Version::V2
                    || controllers.split(',').all(|name| options.contains(&name)));
            is_it.then(|| Some((*before.get(3)?, PathBuf::from(before.get(4)?))))?
        })?;
        // What lies above the mount's root cannot be seen here.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        Some(Hierarchy {
            version,
            controllers: controllers.to_owned(),
            group: mount.join(below).components().collect(),
            mount,
        })
    };
    Ok(groups.lines().filter_map(hierarchy).collect())
}

/// The cgroup that has the real-time budget of a process's threads, if
/// real-time scheduling goes by cgroups here.
pub fn realtime_budget(pid: pid_t) -> Option<PathBuf> {
    let hierarchies = hierarchies(pid).ok()?;
    let cpu = hierarchies
        .iter()
        .find(|hierarchy| hierarchy.has_controller("cpu"))?;
    Some(cpu.group.join("cpu.rt_runtime_us")).filter(|file| file.exists())
}

/// A cgroup with two below it, for the threads of a VM. Removed when dropped;
/// the process must have ended by then.
pub struct Groups {
    base: PathBuf,
}

/// The cgroups below the VM's.
const NAMES: [&str; 2] = ["vcpu0", "emulator"];

impl Groups {
    /// Makes them below the cgroup that this process is in, as libvirt does for
    /// the process of a VM.
    pub fn create(version: Version, pid: pid_t) -> Result<Groups, Missing> {
        let hierarchy = hierarchies(pid)
            .unwrap_or_default()
            .into_iter()
            // A new cgroup of cpuset takes nobody before it has CPUs.
            .filter(|hierarchy| hierarchy.version == version && !hierarchy.has_controller("cpuset"))
            .max_by_key(|hierarchy| hierarchy.has_controller("cpu"))
            .ok_or_else(|| not_mounted(version))?;
        let base = hierarchy.group.join(format!("virt-internal-{pid}"));
        let create = |directory: &Path| {
            fs::create_dir(directory).map_err(|error| not_writable(&hierarchy.group, &error))
        };
        let write = |file: PathBuf, text: &str| {
            fs::write(&file, text).map_err(|error| not_writable(&file, &error))
        };
        create(&base)?;
        let groups = Groups { base };
        for name in NAMES {
            create(&groups.path(name))?;
            if version == Version::V2 {
                write(groups.path(name).join("cgroup.type"), "threaded")?;
            }
        }
        if version == Version::V2 {
            // Threads move only within the domain that their process is in.
            write(groups.base.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(groups)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }
}

fn not_mounted(version: Version) -> Missing {
    match version {
        Version::V1 => Missing::new(Kind::Absent, "cgroup v1 is not mounted"),
        Version::V2 => Missing::new(Kind::Absent, "cgroup v2 is not mounted"),
    }
}

/// What it takes to write to a cgroup's file or directory.
pub fn not_writable(path: &Path, error: &io::Error) -> Missing {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            Missing::new(Kind::Cgroup, format!("write access to {path}"))
                .hint("systemd: Delegate=yes in the daemon's unit")
                .hint("podman: run --security-opt unmask=/sys/fs/cgroup; docker: run --privileged")
                .hint("containers, KubeVirt: let a delegate outside do it")
        }
        _ => Missing::new(Kind::Cgroup, format!("{path}, which says: {error}")),
    }
}

/// Removes a cgroup, if it is there. The kernel takes a moment to forget who was
/// in it; on a busy machine that is not a short one.
fn remove(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for directory in NAMES.map(|name| self.path(name)).iter().chain([&self.base]) {
            if let Err(error) = remove(directory) {
                let directory = directory.display();
                complain(&format!(
                    "virt-internal: cannot remove {directory}: {error}\n"
                ));
            }
        }
    }
}
