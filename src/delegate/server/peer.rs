// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who is at the other end of a connection, as the kernel says.

use std::fs::{self, File};

use libc::{c_int, pid_t};

use super::pidfd::{self, errno};
use super::{cgroupfs, scope};
use crate::delegate::policy::{self, Hierarchy};
use crate::errno::Errno;
use crate::kernel::check;
use crate::kernel::file::Fd;
use crate::kernel::process::{Pid, has_exited, pidfd_open};

/// Who made a connection: a process, which may have exited since.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) pid: pid_t,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its path in the policy's hierarchy.
    pub(crate) cgroup: String,
    /// All its paths, as in /proc/PID/cgroup.
    pub(crate) cgroups: String,
    /// The cgroup that it shares its quota with others in.
    shared: String,
    /// What the listener is called.
    pub(crate) label: Option<String>,
    /// Whether the kernel itself named the process by a descriptor (Linux 6.5),
    /// not only by its number.
    pub(crate) by_pidfd: bool,
    /// What its numbers of threads mean; `None`: the same as the delegate's.
    namespace: Result<Option<Namespace>, Errno>,
}

/// A PID namespace other than the delegate's own.
#[derive(Debug)]
struct Namespace {
    file: File,
    /// How many levels it is below the delegate's.
    depth: usize,
}

/// Why a peer is not known.
#[derive(Debug)]
pub(crate) enum Unknown {
    Gone,
    Failed(&'static str, Errno),
    NoCgroup(Hierarchy),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unknown::Gone => f.write_str("the process that connected is no more"),
            Unknown::Failed(what, errnum) => write!(f, "{what} of the peer: {errnum}"),
            Unknown::NoCgroup(hierarchy) => write!(
                f,
                "the peer has no cgroup in the hierarchy {hierarchy} of the policy: see \
                 host.cgroup-hierarchy"
            ),
        }
    }
}

pub(crate) fn socket_option<T>(socket: c_int, option: c_int, mut value: T) -> Result<T, Errno> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes as the value has, all of
    // which are integers.
    check(unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    })
    .map(|_| value)
}

/// The ids of whoever made a connection, as they were then.
pub(crate) fn credentials(socket: c_int) -> Result<libc::ucred, Errno> {
    let nobody = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    socket_option(socket, libc::SO_PEERCRED, nobody)
}

impl Peer {
    /// Whoever made the connection (or, of a socketpair, the pair).
    pub(crate) fn of(
        socket: c_int,
        hierarchy: &Hierarchy,
        label: Option<String>,
    ) -> Result<Peer, Unknown> {
        const SO_PEERPIDFD: c_int = 77;
        let credentials =
            credentials(socket).map_err(|errnum| Unknown::Failed("credentials", errnum))?;
        let Ok(pid) = Pid::new(credentials.pid) else {
            // In no PID namespace that this one can see.
            return Err(Unknown::Gone);
        };
        // Asked before anything is read of the number.
        let (pidfd, by_pidfd) = match socket_option(socket, SO_PEERPIDFD, -1) {
            // SAFETY: the kernel has just made it.
            Ok(fd) => (unsafe { Fd::new(i64::from(fd)) }, true),
            Err(Errno::ESRCH | Errno::EINVAL) => return Err(Unknown::Gone),
            Err(_) => (pidfd_open(pid.get(), 0).map_err(|_| Unknown::Gone)?, false),
        };
        let peer = Peer {
            uid: credentials.uid,
            gid: credentials.gid,
            label,
            by_pidfd,
            ..Peer::process(pid.get(), &pidfd, hierarchy)?
        };
        Ok(peer)
    }

    /// Whoever is said to use a connection: a process held by a pidfd.
    pub(crate) fn given(
        pidfd: &Fd,
        uid: u32,
        gid: u32,
        hierarchy: &Hierarchy,
        label: Option<String>,
    ) -> Result<Peer, Unknown> {
        let info = pidfd::info(pidfd.get()).map_err(|errnum| match errnum {
            Errno::ESRCH => Unknown::Gone,
            errnum => Unknown::Failed("process", errnum),
        })?;
        Ok(Peer {
            uid,
            gid,
            label,
            ..Peer::process(info.process, pidfd, hierarchy)?
        })
    }

    /// What is read of a process by its number, while the pidfd says that it is
    /// that process's.
    fn process(pid: pid_t, pidfd: &Fd, hierarchy: &Hierarchy) -> Result<Peer, Unknown> {
        let cgroups = Cgroups::of(pid, hierarchy);
        let namespace = Namespace::of(pid).map_err(errno);
        if has_exited(pidfd).unwrap_or(true) {
            return Err(Unknown::Gone);
        }
        let Cgroups {
            all: cgroups,
            own: cgroup,
            shared,
        } = cgroups?;
        Ok(Peer {
            pid,
            uid: u32::MAX,
            gid: u32::MAX,
            cgroup,
            cgroups,
            shared,
            label: None,
            by_pidfd: true,
            namespace,
        })
    }

    /// What the policy's rules go by.
    pub(crate) fn facts(&self) -> policy::Peer<'_> {
        policy::Peer {
            uid: self.uid,
            gid: self.gid,
            cgroup: &self.cgroup,
            label: self.label.as_deref(),
        }
    }

    /// Whose quota it takes from.
    pub(crate) fn scope(&self) -> scope::Key {
        let shared = policy::Peer {
            cgroup: &self.shared,
            ..self.facts()
        };
        (self.label.clone(), shared.scope())
    }

    /// Tells the delegate's numbers for what are numbers to the peer, of
    /// threads of `process`. For a request that is refused, the first thread
    /// stands for one that would have to be looked for.
    pub(crate) fn translator(
        &self,
        process: Pid,
        is_refused: bool,
    ) -> impl FnMut(pid_t) -> Result<pid_t, Errno> {
        // Read at once: a file for each thread, for each number, is more than
        // a request has time for.
        let mut by_proc = None;
        move |id| {
            let Some(namespace) = self.namespace.as_ref().map_err(|errnum| *errnum)? else {
                return Ok(id);
            };
            if by_proc.is_none() {
                match pidfd::translate(&namespace.file, id) {
                    Err(Errno(libc::ENOTTY | libc::EINVAL)) if is_refused => {
                        return Ok(process.get());
                    }
                    Err(Errno(libc::ENOTTY | libc::EINVAL)) => {}
                    translated => return translated,
                }
                by_proc = Some(pidfd::threads_by_number(process, namespace.depth)?);
            }
            let own = by_proc.as_ref().and_then(|threads| threads.get(&id));
            own.copied().ok_or(Errno::ESRCH)
        }
    }
}

/// What cgroups a process is in.
struct Cgroups {
    all: String,
    own: String,
    shared: String,
}

impl Cgroups {
    fn of(pid: pid_t, hierarchy: &Hierarchy) -> Result<Cgroups, Unknown> {
        let failed = |errnum| Unknown::Failed("cgroup", errnum);
        let read = || pidfd::read_lines(&format!("/proc/{pid}/cgroup")).map_err(failed);
        let mut all = read()?;
        // It may go from one to the next, and remove what it leaves.
        for _ in 0..8 {
            let (controllers, own) = hierarchy
                .line_in(&all)
                .ok_or_else(|| Unknown::NoCgroup(hierarchy.clone()))?;
            let shared = match shared(controllers, own) {
                Ok(shared) => shared,
                Err(Errno::ENOENT) => {
                    let again = read()?;
                    if again != all {
                        all = again;
                        continue;
                    }
                    // It is not mounted here.
                    own
                }
                Err(errnum) => return Err(failed(errnum)),
            };
            let (own, shared) = (own.to_owned(), shared.to_owned());
            return Ok(Cgroups { all, own, shared });
        }
        Err(failed(Errno::EAGAIN))
    }
}

/// The topmost cgroup from here up that somebody else than root has: who can
/// make any number of cgroups in it. Else the cgroup itself.
fn shared<'p>(controllers: &str, path: &'p str) -> Result<&'p str, Errno> {
    use std::os::unix::fs::MetadataExt;
    let mut directory = cgroupfs::directory(controllers, path)?;
    let (mut shared, mut above) = (path, path);
    while !above.is_empty() {
        if fs::metadata(&directory).map_err(errno)?.uid() != 0 {
            shared = above;
        }
        above = above.rsplit_once('/').map_or("", |(above, _)| above);
        directory.pop();
    }
    Ok(shared)
}

impl Namespace {
    /// The one that a process is in; `None`: the delegate's own.
    fn of(pid: pid_t) -> std::io::Result<Option<Namespace>> {
        let file = File::open(format!("/proc/{pid}/ns/pid"))?;
        if is_same(&file, &File::open("/proc/self/ns/pid")?)? {
            return Ok(None);
        }
        let numbers = pidfd::numbers(&format!("/proc/{pid}/status"))
            .map_err(|errnum| std::io::Error::from_raw_os_error(errnum.0))?;
        Ok(Some(Namespace {
            file,
            depth: numbers.len() - 1,
        }))
    }
}

fn is_same(one: &File, other: &File) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}
