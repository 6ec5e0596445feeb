// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who is at the other end of a connection, as the kernel says.

use std::fs::File;

use libc::{c_int, pid_t};

use super::pidfd::{self, errno};
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
        let cgroups = pidfd::read_lines(&format!("/proc/{pid}/cgroup"));
        let namespace = Namespace::of(pid).map_err(errno);
        if has_exited(pidfd).unwrap_or(true) {
            return Err(Unknown::Gone);
        }
        let cgroups = cgroups.map_err(|errnum| Unknown::Failed("cgroup", errnum))?;
        let cgroup = hierarchy
            .path_in(&cgroups)
            .ok_or_else(|| Unknown::NoCgroup(hierarchy.clone()))?
            .to_owned();
        Ok(Peer {
            pid,
            uid: u32::MAX,
            gid: u32::MAX,
            cgroup,
            cgroups,
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
