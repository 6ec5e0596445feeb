// SPDX-License-Identifier: LGPL-2.1-or-later
//! A child of a VM's cgroup for all of its threads but vCPUs, with CPUs of its
//! own.
//!
//! It is for VMs whose daemon manages no cgroup. The VM's *base* is the cgroup
//! that the process is in: in the hierarchy of version 1 that has cpuset, else
//! in version 2. All is done by descriptors below the delegate's own mount; no
//! path of the peer's is followed.
//!
//! Threads inherit the cgroup of the thread that makes them. So the process is
//! scanned until nothing is left to move, and vCPUs, which the emulator makes,
//! are moved back when they are told.
//!
//! What is known here is the process's, not one server's: two servers that
//! serve the same VM have one cgroup for it.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};

use super::cgroupfs;
use super::pidfd::{errno, no_more, read_lines, utf8_lines};
use super::serve::write_cpus;
use crate::delegate::policy::{Scope, hierarchies, path_in};
use crate::errno::Errno;
use crate::kernel::cgroup::Version;
use crate::kernel::check;
use crate::kernel::file::{self, Fd};
use crate::kernel::process::{self, Pid, has_exited, pidfd_open};

/// How many VMs a peer scope can have in housekeeping.
const VMS_MAX: usize = 1024;

/// How often a process is scanned that goes on making threads elsewhere.
const PASSES_MAX: usize = 64;

/// How long a cgroup may take to get empty after its VM's end.
const REMOVAL: Duration = Duration::from_secs(60);

/// Why it was not done.
pub(crate) struct Failure {
    pub(crate) errnum: Errno,
    pub(crate) text: String,
}

type Done<T = ()> = Result<T, Failure>;

fn failure<T>(errnum: Errno, text: impl Into<String>) -> Done<T> {
    Err(Failure {
        errnum,
        text: text.into(),
    })
}

fn gone<T>() -> Done<T> {
    failure(Errno::ESRCH, "the process is no more")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// --- CPUs ----------------------------------------------------------------------

/// A map of CPUs as a list: "0-3,8".
fn list(map: &[u8]) -> String {
    let mut text = String::new();
    // A String takes everything.
    let _ = write_cpus(&mut text, map);
    text.trim_matches('"').to_owned()
}

/// The map of a list as the kernel writes it.
fn parse_list(text: &str) -> Option<Vec<u8>> {
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

/// The CPUs that are in both.
fn common(one: &[u8], other: &[u8]) -> Vec<u8> {
    one.iter()
        .zip(other)
        .map(|(one, other)| one & other)
        .collect()
}

fn is_empty(map: &[u8]) -> bool {
    map.iter().all(|byte| *byte == 0)
}

/// Whether the first has no CPU that the second has not.
fn is_within(map: &[u8], other: &[u8]) -> bool {
    let others = other.iter().copied().chain(std::iter::repeat(0));
    map.iter()
        .zip(others)
        .all(|(byte, other)| byte & !other == 0)
}

// --- cgroups -------------------------------------------------------------------

/// A cgroup, by its directory.
struct Directory {
    fd: Fd,
    version: Version,
    path: String,
}

impl Directory {
    fn read(&self, name: &CStr) -> Result<String, Errno> {
        String::from_utf8(read_at(&self.fd, name)?).map_err(|_| Errno::EPROTO)
    }

    fn write(&self, name: &CStr, text: &str) -> Result<(), Errno> {
        let file = file::open_at(&self.fd, name, libc::O_WRONLY)?;
        file::write(&file, text.as_bytes())
    }

    /// The file that takes and lists threads.
    fn threads_file(&self) -> &'static CStr {
        match self.version {
            Version::V1 => c"tasks",
            Version::V2 => c"cgroup.threads",
        }
    }

    fn add(&self, tid: pid_t) -> Result<(), Errno> {
        self.write(self.threads_file(), &tid.to_string())
    }

    fn threads(&self) -> Result<HashSet<pid_t>, Errno> {
        let file = file::open_at(&self.fd, self.threads_file(), libc::O_RDONLY)?;
        let mut threads = HashSet::new();
        file::for_each_number(&file, |number| {
            threads.insert(number as pid_t);
        })?;
        Ok(threads)
    }

    /// The CPUs that its threads can run on.
    fn effective_cpus(&self) -> Result<Vec<u8>, Errno> {
        let name = match self.version {
            Version::V1 => c"cpuset.effective_cpus",
            Version::V2 => c"cpuset.cpus.effective",
        };
        parse_list(&self.read(name)?).ok_or(Errno::EPROTO)
    }

    /// Whether one of the controllers that `name` lists is cpuset.
    fn has_cpuset(&self, name: &CStr) -> Result<bool, Errno> {
        Ok(self
            .read(name)?
            .split_whitespace()
            .any(|one| one == "cpuset"))
    }

    fn child(&self, name: &CStr) -> Result<Directory, Errno> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        Ok(Directory {
            fd: file::open_at(&self.fd, name, flags)?,
            version: self.version,
            path: self.path_of_child(name),
        })
    }

    fn path_of_child(&self, name: &CStr) -> String {
        let name = name.to_string_lossy();
        match self.path.as_str() {
            "/" => format!("/{name}"),
            path => format!("{path}/{name}"),
        }
    }

    fn make(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: a C string, and numbers.
        check(unsafe { libc::mkdirat(self.fd.get(), name.as_ptr(), 0o755) }).map(|_| ())
    }

    fn remove(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: a C string, and numbers.
        check(unsafe { libc::unlinkat(self.fd.get(), name.as_ptr(), libc::AT_REMOVEDIR) })
            .map(|_| ())
    }

    /// What is never given to another cgroup while this is open.
    fn identity(&self) -> Result<Identity, Errno> {
        // SAFETY: integers, of which all zeros are valid.
        let mut status: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: a stat to write.
        check(unsafe { libc::fstat(self.fd.get(), &mut status) })?;
        Ok((status.st_dev as u64, status.st_ino as u64))
    }
}

/// A filesystem and a number in it.
type Identity = (u64, u64);

fn read_at(directory: &Fd, name: &CStr) -> Result<Vec<u8>, Errno> {
    let file = file::open_at(directory, name, libc::O_RDONLY)?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match file::read(&file, &mut buffer)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
}

/// The hierarchy that has cpuset, as a line of /proc/PID/cgroup names it, and
/// the path in it. A controller is in one hierarchy only.
fn hierarchy_of(cgroups: &str) -> Option<(&str, &str)> {
    let has_cpuset = |controllers: &str| controllers.split(',').any(|one| one == "cpuset");
    hierarchies(cgroups)
        .find(|(controllers, _)| has_cpuset(controllers))
        .or_else(|| hierarchies(cgroups).find(|(controllers, _)| controllers.is_empty()))
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

// --- A request -----------------------------------------------------------------

/// What is to be done for one request, as the rule has it that permits it.
pub(crate) struct Plan {
    process: Process,
    base: Directory,
    /// The hierarchy, as /proc/PID/cgroup has it.
    controllers: String,
    name: CString,
    /// Whether the process's first thread is in the child.
    is_adopted: bool,
}

/// Which threads are to be moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those named, which are vCPUs: to the base.
    Vcpus,
    /// Those named: to the child.
    Named,
    /// All of the process's but vCPUs, whichever are named: to the child.
    All,
}

/// The CPUs that the child is to have.
pub(crate) enum Cpus<'a> {
    /// The policy's.
    Fixed(&'a [u8]),
    /// A request's for this purpose.
    Asked(&'a [u8]),
    /// A request's for other threads, if any: they are for a child that has
    /// none yet.
    First(Option<&'a [u8]>),
}

/// A process, held by descriptors.
struct Process {
    pid: Pid,
    pidfd: Fd,
    /// Its directory of threads: it has nobody else's, whoever has the number.
    tasks: Fd,
}

/// What became of a thread that was written to a cgroup's file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    There,
    /// It has exited, or is about to.
    Gone,
    /// Somebody else has moved it again.
    Elsewhere,
}

/// What a scan found that may have made more threads since.
#[derive(Default)]
struct Seen {
    /// Threads of the process.
    own: bool,
    /// Threads in the base that had exited before it was known whose they were.
    unknown: bool,
}

impl Seen {
    fn any(&self) -> bool {
        self.own || self.unknown
    }
}

impl Process {
    fn hold(pid: Pid, received: c_int) -> Result<Process, Errno> {
        // A descriptor of our own: that of the peer's is shared with it.
        let pidfd = pidfd_open(pid.get(), 0)?;
        let tasks = CString::new(format!("/proc/{pid}/task")).map_err(|_| Errno::EINVAL)?;
        let tasks = file::open(&tasks, libc::O_PATH | libc::O_DIRECTORY).map_err(no_more)?;
        let mut poll = libc::pollfd {
            fd: received,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        match check(i64::from(unsafe { libc::poll(&mut poll, 1, 0) }))? {
            0 => Ok(Process { pid, pidfd, tasks }),
            _ => Err(Errno::ESRCH),
        }
    }

    fn is_gone(&self) -> bool {
        is_gone(&self.pidfd)
    }

    /// A thread's directory: it is of nobody who gets the number later.
    fn thread(&self, tid: pid_t) -> Option<Thread> {
        let name = CString::new(tid.to_string()).ok()?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        file::open_at(&self.tasks, &name, flags).ok().map(Thread)
    }

    fn all(&self) -> Result<Vec<pid_t>, Errno> {
        let mut all = Vec::new();
        process::for_each_thread(self.pid, |tid| all.push(tid)).map_err(no_more)?;
        Ok(all)
    }
}

fn is_gone(pidfd: &Fd) -> bool {
    has_exited(pidfd).unwrap_or(true)
}

struct Thread(Fd);

impl Thread {
    /// The path of its cgroup, empty if that is not UTF-8; `None` when it is no
    /// more.
    fn cgroup(&self, controllers: &str) -> Option<String> {
        let text = utf8_lines(read_at(&self.0, c"cgroup").ok()?);
        Some(path_in(&text, controllers).unwrap_or_default().to_owned())
    }

    /// The fields of its stat behind its name, which can have any character.
    fn stat(&self) -> Option<Vec<String>> {
        let text = read_at(&self.0, c"stat").ok()?;
        let name = text.iter().rposition(|byte| *byte == b')')?;
        let fields = str::from_utf8(&text[name + 1..]).ok()?;
        Some(fields.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether it has exited or is about to: then the kernel moves it no more,
    /// it makes no threads, and in version 1 it is in the root.
    fn is_exiting(&self) -> bool {
        const PF_EXITING: u32 = 0x4;
        let Some(fields) = self.stat() else {
            return true;
        };
        let is_over = fields
            .first()
            .is_none_or(|state| state == "Z" || state == "X");
        let flags: Option<u32> = fields.get(6).and_then(|flags| flags.parse().ok());
        is_over || flags.is_some_and(|flags| flags & PF_EXITING != 0)
    }

    /// When it started: two threads that have a number one after the other
    /// differ in it.
    fn start(&self) -> Option<u64> {
        self.stat()?.get(19)?.parse().ok()
    }
}

impl Plan {
    /// Finds the base cgroup of the process that was sent as `received`.
    pub(crate) fn new(pid: Pid, received: c_int, name: &str) -> Done<Plan> {
        let cannot = |errnum: Errno| match errnum {
            Errno::ESRCH => Failure {
                errnum,
                text: "the process is no more".to_owned(),
            },
            _ => Failure {
                errnum,
                text: format!("cannot find the cgroup of process {pid}"),
            },
        };
        let process = Process::hold(pid, received).map_err(cannot)?;
        let read = || read_lines(&format!("/proc/{pid}/cgroup"));
        let text = read().map_err(cannot)?;
        let Some((controllers, path)) = hierarchy_of(&text) else {
            return failure(
                Errno::EOPNOTSUPP,
                "housekeeping needs the cpuset controller of cgroups, and there is none here",
            );
        };
        let version = match controllers {
            "" => Version::V2,
            _ => Version::V1,
        };
        let open = |path: &str| -> Result<Directory, Errno> {
            Ok(Directory {
                fd: cgroupfs::open(controllers, path)?,
                version,
                path: path.to_owned(),
            })
        };
        let cannot_open = |path: &str, errnum| Failure {
            errnum,
            text: format!("cannot open the cgroup {path} of process {pid}"),
        };
        let mut base = open(path).map_err(|errnum| cannot_open(path, errnum))?;
        loop {
            let is_child = match version {
                Version::V1 => base.path.len() == path.len() && path.ends_with(&format!("/{name}")),
                // The root has no type.
                Version::V2 => base
                    .read(c"cgroup.type")
                    .is_ok_and(|kind| kind == "threaded\n"),
            };
            if !is_child {
                break;
            }
            let above = parent(&base.path).to_owned();
            base = open(&above).map_err(|errnum| cannot_open(&above, errnum))?;
        }
        let name = CString::new(name).map_err(|_| cannot(Errno::EINVAL))?;
        let is_adopted = path == base.path_of_child(&name);
        // It was that very process's, and it was not moved meanwhile.
        let after = read().map_err(cannot)?;
        if process.is_gone() {
            return gone();
        }
        if path_in(&after, controllers) != Some(path) {
            return failure(Errno::EAGAIN, "the process was moved meanwhile");
        }
        Ok(Plan {
            process,
            base,
            controllers: controllers.to_owned(),
            name,
            is_adopted,
        })
    }

    /// The path of the VM's base cgroup.
    pub(crate) fn base(&self) -> &str {
        &self.base.path
    }

    /// Whose path it is: "v2", or the controllers of a hierarchy of version 1.
    pub(crate) fn hierarchy(&self) -> &str {
        match self.controllers.as_str() {
            "" => "v2",
            controllers => controllers,
        }
    }

    /// The path of another process in the same hierarchy, from the text of its
    /// /proc/PID/cgroup.
    pub(crate) fn path_of<'t>(&self, cgroups: &'t str) -> Option<&'t str> {
        path_in(cgroups, &self.controllers)
    }

    /// What is there at this moment: the path of the child, and if it is there
    /// its CPUs and how many of the threads.
    pub(crate) fn state(&self, tids: &[pid_t]) -> (String, Option<(Vec<u8>, usize)>) {
        let there = self.base.child(&self.name).and_then(|child| {
            let threads = child.threads()?;
            let there = tids.iter().filter(|tid| threads.contains(tid)).count();
            Ok((child.effective_cpus()?, there))
        });
        (self.base.path_of_child(&self.name), there.ok())
    }

    /// Does it, and leaves 0 or -errno for each of the threads named, whose
    /// result is 0 before unless it has exited.
    pub(crate) fn carry_out(
        &self,
        scope: &ScopeKey,
        which: Which,
        cpus: &Cpus<'_>,
        named: &[(pid_t, &Cell<c_int>)],
    ) -> Done {
        let vm = self.vm(scope)?;
        self.with_child(&vm, |state| {
            if which == Which::Vcpus {
                self.remember_vcpus(&vm, named);
                return match &state.directory {
                    Some(child) => self.move_back(child, named),
                    None => Ok(()),
                };
            }
            let child = self.prepare(&vm, state, cpus)?;
            self.move_named(&vm, child, named)?;
            match which {
                Which::All => self.move_all(&vm, child),
                _ => Ok(()),
            }
        })?;
        match self.process.is_gone() {
            true => gone(),
            false => Ok(()),
        }
    }

    /// The child, which is there and has its CPUs after this.
    fn prepare<'s>(
        &self,
        vm: &Vm,
        state: &'s mut ChildState,
        cpus: &Cpus<'_>,
    ) -> Done<&'s Directory> {
        let (child, is_new) = match state.directory.take() {
            Some(child) if child.threads().is_ok() => (child, false),
            // Somebody else removed it.
            _ => self.make()?,
        };
        match self.set_up(vm, &child, state, cpus) {
            Ok(()) => Ok(state.directory.insert(child)),
            Err(failure) if is_new => {
                let _ = self.base.remove(&self.name);
                Err(failure)
            }
            Err(failure) => {
                state.directory = Some(child);
                Err(failure)
            }
        }
    }

    /// Makes the child, or takes the one that is there. Whether it is new.
    fn make(&self) -> Done<(Directory, bool)> {
        let path = self.base.path_of_child(&self.name);
        let cannot = |errnum| Failure {
            errnum,
            text: format!("cannot make the cgroup {path}"),
        };
        let is_new = match self.base.make(&self.name) {
            Ok(()) => true,
            Err(Errno(libc::EEXIST)) => false,
            Err(errnum) => return Err(cannot(errnum)),
        };
        Ok((self.base.child(&self.name).map_err(cannot)?, is_new))
    }

    fn set_up(&self, vm: &Vm, child: &Directory, state: &ChildState, cpus: &Cpus<'_>) -> Done {
        match child.version {
            Version::V1 => self.require_own(child)?,
            Version::V2 => self.make_threaded(child)?,
        }
        let failed = |errnum, what: &str| Failure {
            errnum,
            text: format!("cannot {what} of the cgroup {}", child.path),
        };
        let read = |errnum| failed(errnum, "read the CPUs or threads");
        let has_threads = !child.threads().map_err(read)?.is_empty();
        let is_asked = matches!(cpus, Cpus::Asked(_));
        let cpus = match *cpus {
            Cpus::Fixed(cpus) | Cpus::Asked(cpus) => cpus,
            // They stay what an emulator's request made them.
            Cpus::First(_) if has_threads => return Ok(()),
            Cpus::First(Some(cpus)) => cpus,
            Cpus::First(None) => {
                return failure(
                    Errno::EINVAL,
                    format!(
                        "the cgroup {} has no CPUs yet, and the request names none: the \
                         emulator's comes first",
                        child.path
                    ),
                );
            }
        };
        let base = self.base.effective_cpus().map_err(read)?;
        let usable = common(cpus, &base);
        if is_empty(&usable) {
            return failure(
                Errno::EINVAL,
                format!(
                    "none of the CPUs {} is one of the cgroup {}, which has {}",
                    list(cpus),
                    self.base.path,
                    list(&base)
                ),
            );
        }
        let before = child.read(c"cpuset.cpus").map_err(read)?;
        // Version 1 takes none that the parent has not.
        let wanted = match child.version {
            Version::V1 => &usable[..],
            Version::V2 => cpus,
        };
        let is_set = parse_list(&before)
            .is_some_and(|before| is_within(&before, wanted) && is_within(wanted, &before));
        if !is_set {
            let other = state.users.iter().find(|user| user.serial != vm.serial);
            if let Some(other) = other.filter(|_| is_asked && has_threads) {
                return failure(
                    Errno(libc::EBUSY),
                    format!(
                        "the cgroup {} is process {}'s, too, and has the CPUs {} for it",
                        child.path,
                        other.pid,
                        before.trim()
                    ),
                );
            }
            let set = |errnum| failed(errnum, &format!("set the CPUs {}", list(wanted)));
            if child.version == Version::V1 {
                let mems = |errnum| failed(errnum, "set the memory nodes");
                if child.read(c"cpuset.mems").map_err(mems)?.trim().is_empty() {
                    let nodes = self.base.read(c"cpuset.mems").map_err(mems)?;
                    child.write(c"cpuset.mems", &nodes).map_err(mems)?;
                }
            }
            child.write(c"cpuset.cpus", &list(wanted)).map_err(set)?;
        }
        let after = child.effective_cpus().map_err(read)?;
        match !is_empty(&after) && is_within(&after, cpus) {
            true => Ok(()),
            false => failure(
                Errno::EREMOTEIO,
                format!(
                    "the cgroup {} was given the CPUs {}, and has {}",
                    child.path,
                    list(cpus),
                    list(&after)
                ),
            ),
        }
    }

    /// Of version 1: a cgroup that was there before must not be another
    /// user's. (A threaded one of version 2 has nobody who is not in the base.)
    fn require_own(&self, child: &Directory) -> Done {
        let uid = |tid: pid_t| {
            fs::metadata(format!("/proc/{tid}/task")).map(|data| {
                use std::os::unix::fs::MetadataExt;
                data.uid()
            })
        };
        let cannot = |errnum| Failure {
            errnum,
            text: format!("cannot read the threads of the cgroup {}", child.path),
        };
        let threads = child.threads().map_err(cannot)?;
        let Ok(own) = uid(self.process.pid.get()) else {
            return gone();
        };
        let other = threads
            .iter()
            .find(|tid| uid(**tid).is_ok_and(|uid| uid != own));
        match other {
            None => Ok(()),
            Some(tid) => failure(
                Errno(libc::EBUSY),
                format!(
                    "the cgroup {} is there already, and has thread {tid} of another user: \
                     housekeeping needs another name",
                    child.path
                ),
            ),
        }
    }

    fn make_threaded(&self, child: &Directory) -> Done {
        let base = &self.base;
        let failed = |errnum, what: &str| Failure {
            errnum,
            text: format!("cannot {what}"),
        };
        let kind = child
            .read(c"cgroup.type")
            .map_err(|errnum| failed(errnum, &format!("read the type of {}", child.path)))?;
        if kind != "threaded\n" {
            child.write(c"cgroup.type", "threaded").map_err(|errnum| {
                let why = match errnum.0 {
                    libc::EOPNOTSUPP | libc::EBUSY => {
                        ": its cgroup must be a leaf without domain controllers, and it have no \
                         processes yet"
                    }
                    _ => "",
                };
                failed(
                    errnum,
                    &format!("make the cgroup {} threaded{why}", child.path),
                )
            })?;
        }
        let read = |errnum| failed(errnum, &format!("read the controllers of {}", base.path));
        if child.has_cpuset(c"cgroup.controllers").map_err(read)? {
            return Ok(());
        }
        if !base.has_cpuset(c"cgroup.controllers").map_err(read)? {
            return failure(
                Errno::EOPNOTSUPP,
                format!(
                    "the cgroup {} has no cpuset controller: the cgroup.subtree_control of its \
                     parents must have it",
                    base.path
                ),
            );
        }
        base.write(c"cgroup.subtree_control", "+cpuset")
            .map_err(|errnum| failed(errnum, &format!("enable cpuset in {}", base.path)))
    }

    fn remember_vcpus(&self, vm: &Vm, named: &[(pid_t, &Cell<c_int>)]) {
        let start = |tid: pid_t| self.process.thread(tid).and_then(|thread| thread.start());
        let mut state = lock(&vm.state);
        state.vcpus.retain(|tid, known| start(*tid) == Some(*known));
        for (tid, _) in named {
            if let Some(start) = start(*tid) {
                state.vcpus.insert(*tid, start);
            }
        }
    }

    /// Moves vCPUs that are in the child to the base.
    fn move_back(&self, child: &Directory, named: &[(pid_t, &Cell<c_int>)]) -> Done {
        for (tid, result) in named.iter().filter(|(_, result)| result.get() == 0) {
            let Some(thread) = self.process.thread(*tid) else {
                result.set(-libc::ESRCH);
                continue;
            };
            match thread.cgroup(&self.controllers) {
                Some(path) if path != child.path => {}
                _ => result.set(self.result_of(*tid, &self.base)),
            }
        }
        Ok(())
    }

    /// Moves the threads named, which are no vCPUs by that.
    fn move_named(&self, vm: &Vm, child: &Directory, named: &[(pid_t, &Cell<c_int>)]) -> Done {
        let mut state = lock(&vm.state);
        named.iter().for_each(|(tid, _)| {
            state.vcpus.remove(tid);
        });
        drop(state);
        for (tid, result) in named.iter().filter(|(_, result)| result.get() == 0) {
            result.set(self.result_of(*tid, child));
        }
        Ok(())
    }

    /// Moves all threads that are no vCPUs, until there are no more: a thread
    /// that is not moved yet makes others that are not, either.
    fn move_all(&self, vm: &Vm, child: &Directory) -> Done {
        let vcpus = lock(&vm.state).vcpus.clone();
        // The kernel's own workers, which it lets nobody move.
        let mut fixed = HashSet::new();
        let (mut quiet, mut silent) = (0, 0);
        for _ in 0..PASSES_MAX {
            let seen = self.scan(child, &vcpus, &mut fixed)?;
            if self.process.is_gone() {
                return gone();
            }
            quiet = if seen.own { 0 } else { quiet + 1 };
            silent = if seen.any() { 0 } else { silent + 1 };
            if silent == 2 {
                return Ok(());
            }
        }
        // What others do in the base is no reason to fail.
        if quiet >= 2 {
            return Ok(());
        }
        failure(
            Errno::EAGAIN,
            format!(
                "process {} goes on making threads outside of the cgroup {}: there were more \
                 after each of {PASSES_MAX} scans",
                self.process.pid, child.path
            ),
        )
    }

    /// Moves the threads that are no vCPUs, once.
    fn scan(
        &self,
        child: &Directory,
        vcpus: &HashMap<pid_t, u64>,
        fixed: &mut HashSet<pid_t>,
    ) -> Done<Seen> {
        let failed = |errnum| Failure {
            errnum,
            text: format!("cannot read the threads of process {}", self.process.pid),
        };
        let is_vcpu = |tid: pid_t, thread: &Thread| match vcpus.get(&tid) {
            Some(start) => thread.start() == Some(*start),
            None => false,
        };
        let is_there = |path: Option<String>| path.is_none_or(|path| path == child.path);
        let mut seen = Seen::default();
        let own = self.process.all().map_err(failed)?;
        // Threads that each make the next one and exit cannot hide in a
        // cgroup's list, where the new one comes last, as they can in /proc's.
        let in_base = self.base.threads().map_err(failed)?;
        let there = child.threads().map_err(failed)?;
        let own: HashSet<pid_t> = own.into_iter().collect();
        for &tid in own.union(&in_base) {
            if there.contains(&tid) || fixed.contains(&tid) {
                continue;
            }
            let was_in_base = in_base.contains(&tid);
            let Some(thread) = self.process.thread(tid) else {
                // It may have made another before it exited.
                if was_in_base && own.contains(&tid) {
                    seen.own = true;
                } else if was_in_base && !process::exists(tid) {
                    seen.unknown = true;
                }
                continue;
            };
            if is_vcpu(tid, &thread) {
                continue;
            }
            if !was_in_base && is_there(thread.cgroup(&self.controllers)) {
                continue;
            }
            match self.move_thread(tid, child) {
                Ok(Moved::There | Moved::Elsewhere) => seen.own = true,
                Ok(Moved::Gone) => seen.own |= was_in_base,
                Err(Errno::EINVAL) => {
                    fixed.insert(tid);
                }
                Err(errnum) => {
                    return failure(
                        errnum,
                        format!("cannot move thread {tid} to the cgroup {}", child.path),
                    );
                }
            }
        }
        Ok(seen)
    }

    /// Moves a thread: its result.
    fn result_of(&self, tid: pid_t, to: &Directory) -> c_int {
        match self.move_thread(tid, to) {
            Ok(Moved::There) => 0,
            Ok(Moved::Gone) => -libc::ESRCH,
            Ok(Moved::Elsewhere) => -Errno::EREMOTEIO.0,
            Err(errnum) => -errnum.0,
        }
    }

    /// Moves a thread of the process, and reads where it is.
    fn move_thread(&self, tid: pid_t, to: &Directory) -> Result<Moved, Errno> {
        let Some(thread) = self.process.thread(tid) else {
            return Ok(Moved::Gone);
        };
        match to.add(tid) {
            Err(Errno::ESRCH) => return Ok(Moved::Gone),
            Err(errnum) => return Err(errnum),
            Ok(()) => {}
        }
        match thread.cgroup(&self.controllers) {
            // It may have exited before, and the number be another's.
            None => {
                self.return_stray(tid, to);
                Ok(Moved::Gone)
            }
            Some(path) if path == to.path => Ok(Moved::There),
            Some(_) if thread.is_exiting() => Ok(Moved::Gone),
            Some(_) => Ok(Moved::Elsewhere),
        }
    }

    /// Takes who got a thread's number out of the cgroup again: to where the
    /// one is that made it, from which it had its own.
    fn return_stray(&self, tid: pid_t, from: &Directory) {
        let path = |id: pid_t| {
            let text = read_lines(&format!("/proc/{id}/cgroup")).ok()?;
            path_in(&text, &self.controllers).map(str::to_owned)
        };
        let Ok(status) = read_lines(&format!("/proc/{tid}/status")) else {
            return;
        };
        let number = |name: &str| -> Option<pid_t> {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().parse().ok()
        };
        let (Some(process), Some(parent)) = (number("Tgid:"), number("PPid:")) else {
            return;
        };
        if process == self.process.pid.get() || path(tid).as_deref() != Some(&from.path) {
            return;
        }
        let maker = if process == tid { parent } else { process };
        let Some(origin) = path(maker).filter(|origin| *origin != from.path) else {
            return;
        };
        if let Ok(fd) = cgroupfs::open(&self.controllers, &origin) {
            let origin = Directory {
                fd,
                version: from.version,
                path: origin,
            };
            let _ = origin.add(tid);
        }
    }
}

// --- What is known of VMs --------------------------------------------------------

/// A listener's label, and whose quota it is.
pub(crate) type ScopeKey = (Option<String>, Scope);

/// A VM's process, until it exits.
struct Vm {
    serial: u64,
    pid: Pid,
    pidfd: Fd,
    scope: ScopeKey,
    state: Mutex<VmState>,
}

#[derive(Default)]
struct VmState {
    has_exited: bool,
    children: Vec<Arc<Child>>,
    /// The threads that are vCPUs, and when they started.
    vcpus: HashMap<pid_t, u64>,
}

/// A housekeeping cgroup. Several VMs have the same one if their base is the
/// same.
struct Child {
    key: ChildKey,
    /// The base's directory.
    base: Fd,
    name: CString,
    state: Mutex<ChildState>,
}

/// The base, and the child's name.
type ChildKey = (Identity, CString);

#[derive(Default)]
struct ChildState {
    /// `None`: it is not there.
    directory: Option<Directory>,
    users: Vec<Arc<Vm>>,
    /// Another has taken the place of this.
    is_over: bool,
}

#[derive(Default)]
struct Known {
    last_serial: u64,
    /// By their serial numbers.
    vms: HashMap<u64, Arc<Vm>>,
    children: HashMap<ChildKey, Arc<Child>>,
    /// Who waits for VMs' ends; made with the first.
    watch: Option<Arc<Fd>>,
}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn with_known<T>(act: impl FnOnce(&mut Known) -> T) -> T {
    act(lock(&KNOWN).get_or_insert_default())
}

impl Plan {
    /// What is known of the VM, from now on if nothing was.
    fn vm(&self, scope: &ScopeKey) -> Done<Arc<Vm>> {
        let pid = self.process.pid;
        let cannot = |errnum| Failure {
            errnum,
            text: format!("cannot watch for the end of process {pid}"),
        };
        let find = |known: &Known| {
            let is_it = |vm: &&Arc<Vm>| vm.pid == pid && !is_gone(&vm.pidfd);
            known.vms.values().find(is_it).map(Arc::clone)
        };
        if let Some(vm) = with_known(|known| find(known)) {
            return Ok(vm);
        }
        let Process { pidfd, .. } = Process::hold(pid, self.process.pidfd.get()).map_err(cannot)?;
        let vcpus = self.likely_vcpus();
        with_known(|known| {
            if let Some(vm) = find(known) {
                return Ok(vm);
            }
            if known.vms.values().filter(|vm| vm.scope == *scope).count() >= VMS_MAX {
                return failure(
                    Errno(libc::EUSERS),
                    format!("housekeeping is for {VMS_MAX} VMs of one container or user at most"),
                );
            }
            let watch = match &known.watch {
                Some(watch) => Arc::clone(watch),
                None => Arc::clone(known.watch.insert(start_watch().map_err(cannot)?)),
            };
            known.last_serial += 1;
            let serial = known.last_serial;
            let mut event = libc::epoll_event {
                events: libc::EPOLLIN as u32,
                u64: serial,
            };
            // SAFETY: an epoll_event to read, and descriptors.
            check(unsafe {
                let add = libc::EPOLL_CTL_ADD;
                libc::epoll_ctl(watch.get(), add, pidfd.get(), &mut event)
            })
            .map_err(cannot)?;
            let vm = Arc::new(Vm {
                serial,
                pid,
                pidfd,
                scope: scope.clone(),
                state: Mutex::new(VmState {
                    vcpus,
                    ..VmState::default()
                }),
            });
            known.vms.insert(serial, Arc::clone(&vm));
            Ok(vm)
        })
    }

    /// The vCPUs of a VM for which a delegate before this one kept house: the
    /// threads that are not in the child although the first one is.
    fn likely_vcpus(&self) -> HashMap<pid_t, u64> {
        let mut vcpus = HashMap::new();
        if self.is_adopted {
            for tid in self.process.all().unwrap_or_default() {
                let thread = self.process.thread(tid);
                let Some(thread) = thread.filter(|thread| {
                    thread.cgroup(&self.controllers).as_deref() == Some(&self.base.path)
                }) else {
                    continue;
                };
                vcpus.extend(thread.start().map(|start| (tid, start)));
            }
        }
        vcpus
    }

    /// Calls `act` with the VM's child, which nobody else changes meanwhile.
    fn with_child(&self, vm: &Arc<Vm>, act: impl FnOnce(&mut ChildState) -> Done) -> Done {
        let cannot = |errnum| Failure {
            errnum,
            text: format!("cannot hold the cgroup {}", self.base.path),
        };
        let key = (self.base.identity().map_err(cannot)?, self.name.clone());
        loop {
            let child = with_known(|known| match known.children.get(&key) {
                Some(child) => Ok(Arc::clone(child)),
                None => {
                    let base = file::open_at(&self.base.fd, c".", libc::O_PATH)?;
                    let child = Arc::new(Child {
                        key: key.clone(),
                        base,
                        name: self.name.clone(),
                        state: Mutex::default(),
                    });
                    known.children.insert(key.clone(), Arc::clone(&child));
                    Ok(child)
                }
            })
            .map_err(cannot)?;
            let mut state = lock(&child.state);
            if state.is_over {
                drop(state);
                forget(&child);
                continue;
            }
            if state.users.iter().all(|user| user.serial != vm.serial) {
                let mut of_vm = lock(&vm.state);
                if of_vm.has_exited {
                    return gone();
                }
                of_vm.children.push(Arc::clone(&child));
                state.users.push(Arc::clone(vm));
            }
            if state.directory.is_none() {
                // What a delegate left that was here before.
                state.directory = self.base.child(&self.name).ok();
            }
            return act(&mut state);
        }
    }
}

/// Nobody finds it any more.
fn forget(child: &Arc<Child>) {
    with_known(|known| {
        let current = known.children.get(&child.key);
        if current.is_some_and(|current| Arc::ptr_eq(current, child)) {
            known.children.remove(&child.key);
        }
    });
}

fn start_watch() -> Result<Arc<Fd>, Errno> {
    // SAFETY: numbers only; the kernel returns a new descriptor.
    let watch = unsafe { Fd::new(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
    let watch = Arc::new(watch);
    let builder = std::thread::Builder::new().name("housekeeping".to_owned());
    let watched = Arc::clone(&watch);
    builder
        .stack_size(64 * 1024)
        .spawn(move || run_watch(&watched))
        .map_err(errno)?;
    Ok(watch)
}

/// Waits for VMs' ends, and removes their cgroups then.
fn run_watch(watch: &Fd) {
    const FIRST_PAUSE: c_int = 5;
    const LAST_PAUSE: c_int = 1000;
    let mut leaving: Vec<Leaving> = Vec::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        let time = if leaving.is_empty() { -1 } else { pause };
        // SAFETY: as many events to write as it says.
        let count = check(i64::from(unsafe {
            libc::epoll_wait(
                watch.get(),
                events.as_mut_ptr(),
                events.len() as c_int,
                time,
            )
        }))
        .unwrap_or(0);
        pause = match count {
            0 => (pause * 2).min(LAST_PAUSE),
            _ => FIRST_PAUSE,
        };
        for event in &events[..count as usize] {
            leaving.extend(part_with(watch, event.u64));
        }
        leaving.retain(|leaving| !leaving.is_done());
    }
}

/// Forgets a VM that has exited. Its children are to be left.
fn part_with(watch: &Fd, serial: u64) -> Vec<Leaving> {
    let Some(vm) = with_known(|known| known.vms.remove(&serial)) else {
        return Vec::new();
    };
    // SAFETY: descriptors; nothing is read for a removal.
    unsafe {
        let remove = libc::EPOLL_CTL_DEL;
        let fd = vm.pidfd.get();
        libc::epoll_ctl(watch.get(), remove, fd, std::ptr::null_mut());
    }
    let mut state = lock(&vm.state);
    state.has_exited = true;
    let children = std::mem::take(&mut state.children);
    drop(state);
    let since = Instant::now();
    let leaving = children.into_iter().map(|child| Leaving {
        child,
        serial,
        since,
    });
    leaving.collect()
}

/// A child that a VM had until it exited.
struct Leaving {
    child: Arc<Child>,
    /// The VM's.
    serial: u64,
    since: Instant,
}

impl Leaving {
    /// Removes the child, unless another VM has it or that takes longer. Whether
    /// there is no more to be done.
    fn is_done(&self) -> bool {
        let child = &self.child;
        let mut state = match child.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A request works on it, and other VMs' children do not wait for
            // that.
            Err(TryLockError::WouldBlock) => return false,
        };
        state.users.retain(|user| user.serial != self.serial);
        if !state.users.is_empty() || state.is_over {
            return true;
        }
        if state.directory.is_some() {
            // SAFETY: a C string, and numbers.
            let removed = check(unsafe {
                let name = child.name.as_ptr();
                libc::unlinkat(child.base.get(), name, libc::AT_REMOVEDIR)
            });
            // The last threads leave it a little after the process's end; and
            // others may be in it for ever.
            if removed == Err(Errno(libc::EBUSY)) && self.since.elapsed() < REMOVAL {
                return false;
            }
        }
        state.is_over = true;
        state.directory = None;
        drop(state);
        forget(child);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(list(&map), text.trim(), "and back");
        }
        for text in ["x", "1-", "-1", "1;2"] {
            assert_eq!(parse_list(text), None, "{text:?} is no list");
        }
    }

    #[test]
    fn maps_of_different_lengths_are_compared_as_if_they_had_zeros() {
        assert!(is_within(&[0b01], &[0b11, 1]));
        assert!(is_within(&[0b01, 0, 0], &[0b11]));
        assert!(!is_within(&[0b01, 1], &[0b11]));
        assert!(!is_within(&[0b100], &[0b11]));
        assert_eq!(common(&[0b110, 1], &[0b011]), [0b010]);
        assert!(is_empty(&common(&[0, 1], &[1])));
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
    fn a_thread_is_known_whatever_its_name_is() {
        let start = |name: &CStr| {
            // SAFETY: a C string, which the kernel reads; and no memory.
            let tid = unsafe {
                libc::prctl(libc::PR_SET_NAME, name.as_ptr());
                libc::gettid()
            };
            let path = CString::new(format!("/proc/self/task/{tid}")).expect("no NUL");
            let thread = Thread(file::open(&path, libc::O_PATH).expect("own directory"));
            assert!(!thread.is_exiting(), "{name:?} is there");
            thread.start().expect("when it started")
        };
        let test = std::thread::spawn(move || [c"x", c"x) Z 1 (", c"\xff"].map(start));
        let starts = test.join().expect("no panic");
        assert!(starts.iter().all(|start| *start == starts[0]), "{starts:?}");
    }

    #[test]
    fn a_child_that_a_request_works_on_is_left_later() {
        let child = Arc::new(Child {
            key: ((0, 0), CString::default()),
            base: file::open(c"/", libc::O_PATH).expect("the root"),
            name: CString::default(),
            state: Mutex::default(),
        });
        let leaving = Arc::new(Leaving {
            child: Arc::clone(&child),
            serial: 1,
            since: Instant::now(),
        });
        let request = lock(&child.state);
        let (sender, receiver) = std::sync::mpsc::channel();
        let watch = Arc::clone(&leaving);
        std::thread::spawn(move || sender.send(watch.is_done()));
        let is_done = receiver.recv_timeout(Duration::from_secs(60));
        assert_eq!(is_done, Ok(false), "the watch goes on at once");
        drop(request);
        assert!(leaving.is_done(), "it is nobody's any more");
    }

    #[test]
    fn a_cgroup_below_the_root_has_the_root_as_parent() {
        assert_eq!(parent("/a/b"), "/a");
        assert_eq!(parent("/a"), "/");
        assert_eq!(parent("/"), "/");
    }
}
