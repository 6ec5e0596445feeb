// SPDX-License-Identifier: LGPL-2.1-or-later
//! Moves threads of a process into a cgroup.

use core::cell::{Cell, OnceCell};
use core::ffi::c_void;
use core::fmt;
use core::ptr;

use crate::errno::Errno;
use libc::{c_int, c_uint, pid_t};

use crate::capi::cgroup_add_threads::{
    VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION, VIR_INTERNAL_CGROUP_THREADS_MAX,
    virInternalCgroupAddThreadsHandler, virInternalThreadRole,
};
use crate::capi::types::virInternalOperation;
#[cfg(feature = "delegate")]
use crate::delegate::server::cgroupfs::Reached;
use crate::delegate::wire::{Request, bytes_of};
#[cfg(feature = "delegate")]
use crate::dispatch::Outcome;
use crate::dispatch::{Kind, NEGATED_ERRNOS, Operation, cannot, not_done, not_readable};
use crate::error::{Error, Result};
use crate::kernel::affinity::CpuMap;
use crate::kernel::cgroup::{Group, GroupPath};
use crate::kernel::process::{self, Held, Known, Owner, Pid, Task};
use crate::registry::Code;

pub(crate) static KIND: Kind = Kind::new(
    virInternalOperation::VIR_INTERNAL_OP_CGROUP_ADD_THREADS as u32,
    "virInternalCgroupAddThreads",
    VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION,
);

const THREADS_MAX: usize = VIR_INTERNAL_CGROUP_THREADS_MAX;

const GONE: c_int = -libc::ESRCH;

pub(crate) struct CgroupAddThreads<'a> {
    pid: Pid,
    /// `None`: this VM has no cgroup that its daemon manages.
    path: Option<GroupPath<'a>>,
    role: virInternalThreadRole,
    tids: &'a [pid_t],
    ids: Option<&'a [c_uint]>,
    cpumap: Option<CpuMap<'a>>,
    /// Where the caller wants 0 or -errno for each thread.
    wanted: Option<&'a [Cell<c_int>]>,
    /// The same where the caller wants none.
    unwanted: [Cell<c_int>; THREADS_MAX],
    /// Whether the results tell threads that were moved from others.
    partly: Cell<bool>,
    group: OnceCell<Group>,
    /// In a delegate: the cgroup that a peer sent.
    #[cfg(feature = "delegate")]
    reached: Option<Reached>,
    /// In a delegate: the pidfd that a peer sent, which is open at least until
    /// the request is permitted.
    #[cfg(feature = "delegate")]
    received: Option<c_int>,
    /// In a delegate: what is done where the peer sent no cgroup.
    #[cfg(feature = "delegate")]
    housekeeping: Option<served::Kept>,
    /// In a delegate: how many of others' threads were moved, and moved back.
    #[cfg(feature = "delegate")]
    strays: Cell<usize>,
}

impl<'a> CgroupAddThreads<'a> {
    pub(crate) fn new(
        pid: Pid,
        path: Option<GroupPath<'a>>,
        role: virInternalThreadRole,
        tids: &'a [pid_t],
        ids: Option<&'a [c_uint]>,
        cpumap: Option<CpuMap<'a>>,
        results: Option<&'a [Cell<c_int>]>,
    ) -> Result<Self> {
        for (index, &tid) in tids.iter().enumerate() {
            if tid <= 0 {
                return Err(Error::invalid(format_args!(
                    "tids[{index}] is {tid}: the id of a thread is 1 or more"
                )));
            }
        }
        Ok(CgroupAddThreads {
            pid,
            path,
            role,
            tids,
            ids,
            cpumap,
            wanted: results,
            unwanted: [const { Cell::new(0) }; THREADS_MAX],
            partly: Cell::new(false),
            group: OnceCell::new(),
            #[cfg(feature = "delegate")]
            reached: None,
            #[cfg(feature = "delegate")]
            received: None,
            #[cfg(feature = "delegate")]
            housekeeping: None,
            #[cfg(feature = "delegate")]
            strays: Cell::new(0),
        })
    }

    fn threads(&self) -> impl Iterator<Item = (pid_t, &Cell<c_int>)> {
        self.tids.iter().copied().zip(self.results())
    }

    /// Whose a thread is; nobody's when it has exited but is not reaped.
    fn owner(&self, tid: pid_t) -> Result<Owner> {
        let task = Task::new(self.pid, tid)?;
        match task.owner() {
            // Others vanish as they exit, unless they are traced.
            Owner::Process if tid == self.pid.get() && task.is_zombie() => Ok(Owner::Nobody),
            owner => Ok(owner),
        }
    }

    /// Nothing has been done yet: each result is 0, or -ESRCH for a thread
    /// that has exited. Another process's thread is an error.
    fn check_threads(&self) -> Result<()> {
        self.results().iter().for_each(|result| result.set(0));
        for (tid, result) in self.threads() {
            result.set(match self.owner(tid)? {
                Owner::Process => 0,
                Owner::Nobody => GONE,
                Owner::Other => {
                    self.pid.require()?;
                    return Err(Error::invalid(format_args!(
                        "thread {tid} does not belong to process {}",
                        self.pid
                    )));
                }
            });
        }
        self.pid.require()
    }

    /// The group, if there is one to act on.
    fn group(&self) -> Result<Option<&Group>> {
        #[cfg(feature = "delegate")]
        if let Some(reached) = &self.reached {
            return Ok(Some(&reached.group));
        }
        let Some(path) = self.path else {
            return Ok(None);
        };
        if self.group.get().is_none() {
            let _ = self.group.set(Group::open(path)?);
        }
        Ok(self.group.get())
    }

    /// Moves one thread after the other. A domain of v2 takes no thread from
    /// another domain, but it takes a process, if that is what was asked for.
    fn move_threads(&self, group: &Group) -> Result<()> {
        let threads = group.threads().map_err(|errnum| cannot(self, errnum))?;
        for (tid, result) in self.threads().filter(|(_, result)| result.get() == 0) {
            match threads.add(tid) {
                Err(Errno::EOPNOTSUPP) => {
                    self.move_process(group)?;
                    break;
                }
                Err(Errno::ESRCH) => result.set(GONE),
                Err(errnum) => result.set(-errnum.0),
                Ok(()) => {}
            }
        }
        // A thread may have exited, and its id may be another's by now.
        for (tid, result) in self.threads().filter(|(_, result)| result.get() == 0) {
            if self.owner(tid)? != Owner::Process {
                result.set(GONE);
            }
        }
        self.pid.require()
    }

    fn move_process(&self, group: &Group) -> Result<()> {
        let mut all = true;
        process::for_each_thread(self.pid, |tid| all &= self.tids.contains(&tid))
            .map_err(|errnum| cannot(self, errnum))?;
        if !all {
            return Err(Error::failed(
                Errno::EOPNOTSUPP,
                format_args!(
                    "cannot {self}: that cgroup takes whole processes only, and these are not \
                     all of the process's threads"
                ),
            ));
        }
        group
            .processes()
            .and_then(|processes| processes.add(self.pid.get()))
            .map_err(|errnum| cannot(self, errnum))
    }

    /// Fails if a thread could not be moved, for another reason than that it
    /// has exited.
    fn require_results(&self) -> Result<()> {
        let is_failure = |result: c_int| result != 0 && result != GONE;
        let Some((tid, result)) = self.threads().find(|(_, result)| is_failure(result.get()))
        else {
            return Ok(());
        };
        self.partly.set(true);
        let results = self.results().iter();
        let moved = results.filter(|result| result.get() == 0).count();
        Err(Error::failed(
            Errno(-result.get()),
            format_args!("cannot {self}: {moved} of them were moved, thread {tid} was not"),
        ))
    }

    /// Whether the threads that were moved, to wherever it was, are still the
    /// process's.
    fn read_owners(&self) -> Result<()> {
        for (tid, result) in self.threads().filter(|(_, result)| result.get() == 0) {
            if Task::new(self.pid, tid)?.owner() != Owner::Process {
                result.set(GONE);
            }
        }
        Ok(())
    }

    /// Which of the process's threads the kernel has in the group; those that
    /// are not there must have exited.
    fn read_group(&self, group: &Group) -> Result<()> {
        let mut found = [false; THREADS_MAX];
        let mut find = |member| {
            for (found, tid) in found.iter_mut().zip(self.tids) {
                *found |= *tid == member;
            }
        };
        group
            .for_each_thread(&mut find)
            .map_err(|errnum| not_readable(self, errnum))?;
        let mut elsewhere = None;
        for ((tid, result), found) in self.threads().zip(found) {
            if ![0, GONE].contains(&result.get()) {
                continue;
            }
            let task = Task::new(self.pid, tid)?;
            result.set(match (task.owner(), found) {
                // Whoever is there with that number is another.
                (Owner::Other | Owner::Nobody, _) => GONE,
                (Owner::Process, true) => 0,
                (Owner::Process, false) if task.is_zombie() => GONE,
                (Owner::Process, false) => {
                    elsewhere = Some(tid);
                    -Errno::EREMOTEIO.0
                }
            });
        }
        match elsewhere {
            None => Ok(()),
            Some(tid) => {
                self.partly.set(true);
                Err(not_done(
                    self,
                    format_args!("the kernel has thread {tid} elsewhere"),
                ))
            }
        }
    }
}

impl Operation for CgroupAddThreads<'_> {
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        self.group()?;
        let held = Held::process(self.pid, known)?;
        self.check_threads()?;
        Ok(held)
    }

    #[cfg(feature = "delegate")]
    fn require_subject(&self) -> Result<()> {
        self.check_threads()
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word that it is a handler of this operation.
        let handler =
            unsafe { core::mem::transmute::<Code, virInternalCgroupAddThreadsHandler>(handler) };
        let cpumap = self.cpumap.map_or(&[][..], |map| map.bytes());
        handler.map_or(1, |handler| {
            // SAFETY: as above; pointers and lengths come from slices, and
            // the results are cells, which a handler may write.
            unsafe {
                handler(
                    self.pid.get(),
                    self.path
                        .map_or(ptr::null(), |path| path.as_c_str().as_ptr()),
                    self.role as c_int,
                    self.tids.as_ptr(),
                    self.ids.map_or(ptr::null(), <[c_uint]>::as_ptr),
                    self.tids.len(),
                    self.cpumap.map_or(ptr::null(), |_| cpumap.as_ptr()),
                    cpumap.len() as c_int,
                    self.results().as_ptr().cast_mut().cast(),
                    opaque,
                )
            }
        })
    }

    fn results(&self) -> &[Cell<c_int>] {
        self.wanted.unwrap_or(&self.unwanted[..self.tids.len()])
    }

    fn read_back(&self) -> Result<()> {
        for (tid, result) in self.threads() {
            if result.get() != 0 && !NEGATED_ERRNOS.contains(&result.get()) {
                return Err(Error::failed(
                    Errno::EPROTO,
                    format_args!(
                        "the handler that was to {self} left the result {} for thread {tid}, \
                         which is neither 0 nor -errno",
                        result.get()
                    ),
                ));
            }
        }
        match self.group()? {
            Some(group) => self.read_group(group)?,
            None => self.read_owners()?,
        }
        self.require_results()
    }

    fn request<'r>(&'r self, held: &Held, request: &mut Request<'r>) -> Result<()> {
        request.process(held);
        let group = self.group()?;
        if let Some(group) = group {
            request.descriptor(group.fd());
        }
        request.fixed.u32(self.role as u32);
        request.fixed.u32(self.tids.len() as u32);
        request.fixed.u32(self.ids.is_some().into());
        request.fixed.u32(group.is_some().into());
        request.part(bytes_of(self.tids));
        request.part(self.ids.map_or(&[], bytes_of));
        request.cpus(self.cpumap)
    }

    fn direct(&self) -> Result<()> {
        let Some(group) = self.group()? else {
            self.results().iter().for_each(|result| result.set(0));
            return Ok(());
        };
        self.check_threads()?;
        self.move_threads(group)?;
        self.require_results()
    }

    #[cfg(feature = "delegate")]
    fn act(&self) -> Result<Outcome> {
        match (&self.reached, &self.housekeeping) {
            (Some(reached), _) => self.move_held(reached).map(|()| Outcome::Done),
            (None, Some(kept)) => self.keep_house(kept).map(|()| Outcome::Done),
            (None, None) => Ok(Outcome::NotHandled),
        }
    }

    fn failed_in_part(&self) {
        self.partly.set(true);
    }

    fn failed(&self, errnum: Errno) {
        if !self.partly.get() {
            let results = self.results().iter();
            results
                .filter(|result| result.get() == 0)
                .for_each(|result| result.set(-errnum.0));
        }
    }
}

impl fmt::Display for CgroupAddThreads<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, role) = (self.tids.len(), self.role.words());
        write!(f, "move {count} {role} threads of process {} to ", self.pid)?;
        match self.path {
            Some(path) => path.fmt(f),
            None => f.write_str("their cgroup"),
        }
    }
}

#[cfg(feature = "delegate")]
pub use served::Bounds;
#[cfg(feature = "delegate")]
pub(crate) use served::serve;

/// What a delegate does with a request for it.
#[cfg(feature = "delegate")]
mod served {
    use super::*;
    use crate::delegate::policy::covers;
    use crate::delegate::policy::{
        self, Contradiction, Cpus, Denied, Subtree, child_name, not_empty,
    };
    use crate::delegate::server::audit::write_string;
    use crate::delegate::server::connection::{Done, Job};
    use crate::delegate::server::housekeeping::{self, Failure, Plan, ScopeKey, Which};
    use crate::delegate::server::serve::{Asked, Read, Serve, Subject, read_cpus, write_cpus};
    use crate::delegate::server::threads::{self, Place, Process};
    use crate::delegate::wire::{Malformed, Reader};
    use crate::operation::Allowed;
    use core::fmt::{self, Write};

    /// What a policy's rule allows of it.
    #[derive(Clone, Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    pub struct Bounds {
        /// The roles whose threads may be moved.
        #[serde(deserialize_with = "not_empty")]
        pub roles: Vec<virInternalThreadRole>,
        /// The cgroups that they may be moved to: the peer's own and those below
        /// it, unless this names another.
        pub cgroup: Option<Subtree>,
        /// Where threads of role EMULATOR, IOTHREAD and HELPER go in the end.
        pub housekeeping: Option<Housekeeping>,
    }

    /// A child cgroup of the VM's for all that is not a vCPU.
    #[derive(Clone, Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    pub struct Housekeeping {
        /// Its name.
        #[serde(deserialize_with = "child_name")]
        pub name: String,
        /// Its CPUs; without this they are those that the request asks for.
        pub cpus: Option<Cpus>,
        /// The CPUs that a request may ask for; needed without `cpus`.
        pub allowed_cpus: Option<Cpus>,
    }

    impl policy::Bounds for Bounds {
        fn check(&self) -> core::result::Result<(), Contradiction> {
            let Some(housekeeping) = &self.housekeeping else {
                return Ok(());
            };
            let is_vcpu = |role: &_| *role == virInternalThreadRole::VIR_INTERNAL_THREAD_VCPU;
            let text = match (&housekeeping.cpus, &housekeeping.allowed_cpus) {
                (None, None) => "it must have cpus or allowed-cpus",
                (Some(_), Some(_)) => "it must have cpus or allowed-cpus, not both",
                _ if self.roles.iter().all(is_vcpu) => {
                    "it means nothing without emulator, iothread or helper among the roles"
                }
                _ => return Ok(()),
            };
            Err(Contradiction::new("housekeeping", text))
        }

        fn cgroup(&self) -> Option<&Subtree> {
            self.cgroup.as_ref()
        }
    }

    impl fmt::Display for Bounds {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("threads of roles ")?;
            let mut comma = "";
            for role in &self.roles {
                write!(f, "{comma}{}", role.words())?;
                comma = ", ";
            }
            match &self.cgroup {
                Some(top) => write!(f, " to {top} and below")?,
                None => f.write_str(" to the peer's own cgroup and below")?,
            }
            match &self.housekeeping {
                Some(housekeeping) => write!(f, "; {housekeeping}"),
                None => Ok(()),
            }
        }
    }

    impl fmt::Display for Housekeeping {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "all but vCPU to its child {}", self.name)?;
            match (&self.cpus, &self.allowed_cpus) {
                (Some(cpus), _) => write!(f, ", which has CPUs {cpus}"),
                (None, Some(cpus)) => write!(f, ", with CPUs as asked for, of {cpus}"),
                (None, None) => Ok(()),
            }
        }
    }

    /// Housekeeping as a rule has it for one request.
    pub(crate) struct Kept {
        /// That, or why there is none: it is told by who acts.
        plan: core::result::Result<Plan, Failure>,
        scope: ScopeKey,
        /// The policy's CPUs; `None`: the request's.
        cpus: Option<Vec<u8>>,
    }

    impl CgroupAddThreads<'_> {
        /// What a rule has done where the peer sent no cgroup.
        fn kept(
            &self,
            housekeeping: &Housekeeping,
            asked: &Asked<'_>,
        ) -> core::result::Result<Kept, Denied> {
            let asked_for = self.cpumap.filter(|_| self.which() != Which::Vcpus);
            if let Some(allowed) = &housekeeping.allowed_cpus {
                let outside = asked_for.and_then(|map| allowed.first_outside(map.bytes()));
                if let Some(cpu) = outside {
                    return asked.beyond(std::format!(
                        "CPU {cpu} is not one of {allowed}, which housekeeping may have"
                    ));
                }
                if self.which() == Which::All && asked_for.is_none() {
                    return asked.beyond(std::format!(
                        "the request names no CPUs for housekeeping: it must name some of {allowed}"
                    ));
                }
            }
            let plan = Plan::new(self.pid, self.received.unwrap_or(-1), &housekeeping.name);
            if let Ok(plan) = &plan {
                // In another hierarchy the peer may have another path.
                let facts = policy::Peer {
                    cgroup: plan.path_of(&asked.peer.cgroups).unwrap_or_default(),
                    ..asked.facts
                };
                let (top, base) = (asked.rule.target_subtree(&facts)?, plan.base());
                if !covers(top, base) {
                    return asked.beyond(std::format!(
                        "the VM's cgroup in the hierarchy {} is {base}, which is not {top} or \
                         below",
                        plan.hierarchy()
                    ));
                }
            }
            Ok(Kept {
                plan,
                scope: asked.peer.scope(),
                cpus: housekeeping.cpus.as_ref().map(|cpus| cpus.to_map()),
            })
        }

        fn which(&self) -> Which {
            match self.role {
                virInternalThreadRole::VIR_INTERNAL_THREAD_VCPU => Which::Vcpus,
                virInternalThreadRole::VIR_INTERNAL_THREAD_EMULATOR => Which::All,
                _ => Which::Named,
            }
        }

        /// Moves one thread after the other, so that nobody stays moved who got
        /// the number of one of them.
        pub(super) fn move_held(&self, reached: &Reached) -> Result<()> {
            let failed = |errnum| match errnum {
                Errno::ESRCH => Error::no_process(format_args!(
                    "cannot {self}: the process went away meanwhile"
                )),
                _ => cannot(self, errnum),
            };
            let place = Place::new(&reached.group, &reached.path, &reached.controllers);
            let place = place.map_err(failed)?;
            let process = Process::hold(self.pid, self.received.unwrap_or(-1)).map_err(failed)?;
            let done = self.move_each(&process, &place, &reached.group);
            self.strays.set(process.strays());
            done?;
            self.require_results()
        }

        fn move_each(&self, process: &Process, place: &Place<'_>, group: &Group) -> Result<()> {
            for (tid, result) in self.threads().filter(|(_, result)| result.get() == 0) {
                let moved = process.move_thread(tid, place);
                if moved == Err(Errno::EOPNOTSUPP) {
                    self.move_process(group)?;
                    if process.is_gone() {
                        let returned = process.return_stray(self.pid.get(), place);
                        return returned.map_err(|errnum| cannot(self, errnum));
                    }
                    return Ok(());
                }
                result.set(threads::result_of(moved));
            }
            Ok(())
        }

        pub(super) fn keep_house(&self, kept: &Kept) -> Result<()> {
            let asked_for = self.cpumap.as_ref().map(CpuMap::bytes);
            let cpus = match (&kept.cpus, asked_for) {
                (Some(cpus), _) => housekeeping::Cpus::Fixed(cpus),
                (None, Some(cpus)) if self.which() == Which::All => housekeeping::Cpus::Asked(cpus),
                (None, cpus) => housekeeping::Cpus::First(cpus),
            };
            let named: Vec<_> = self.threads().collect();
            let failed = |Failure { errnum, text }: &Failure| match *errnum {
                Errno::ESRCH => Error::no_process(format_args!("cannot {self}: {text}")),
                errnum => Error::failed(errnum, format_args!("cannot {self}: {text}")),
            };
            let plan = kept.plan.as_ref().map_err(failed)?;
            let kept = plan.carry_out(&kept.scope, self.which(), &cpus, &named);
            self.strays.set(plan.strays());
            kept.map_err(|failure| failed(&failure))?;
            self.require_results()
        }
    }

    impl<'m> Serve<'m> for CgroupAddThreads<'m> {
        type Bounds = Bounds;

        const NAME: &'static str = "cgroup-add-threads";

        fn bounds(allowed: &Allowed) -> Option<&Bounds> {
            allowed.cgroup_add_threads.as_ref()
        }

        fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self> {
            let pid = subject.process()?;
            let role = virInternalThreadRole::new(body.i32()?)?;
            let count = body.u32()? as usize;
            if !(1..=THREADS_MAX).contains(&count) {
                return Err(Malformed("the number of threads is not 1 to 3000").into());
            }
            let (has_ids, has_group) = (body.bool()?, body.bool()?);
            let map_length = body.u32()?;
            let tids = subject.tids(pid, body, count)?;
            let ids = match has_ids {
                true => Some(subject.ids(body, count)?),
                false => None,
            };
            let cpumap = read_cpus(body, map_length)?;
            let path = match has_group {
                true => Some(subject.group()?),
                false => None,
            };
            let mut operation = CgroupAddThreads::new(pid, path, role, tids, ids, cpumap, None)?;
            operation.reached = subject.reached.take();
            operation.received = subject.descriptor();
            Ok(operation)
        }

        fn permit(
            &mut self,
            bounds: &Bounds,
            asked: &Asked<'_>,
        ) -> core::result::Result<(), Denied> {
            if !bounds.roles.contains(&self.role) {
                return asked.beyond(std::format!(
                    "{} threads are not among those it allows to be moved",
                    self.role.words()
                ));
            }
            let Some(reached) = &self.reached else {
                if let Some(housekeeping) = &bounds.housekeeping {
                    self.housekeeping = Some(self.kept(housekeeping, asked)?);
                }
                return Ok(());
            };
            // In another hierarchy the peer may have another path.
            let facts = policy::Peer {
                cgroup: reached.path_of(&asked.peer.cgroups).unwrap_or_default(),
                ..asked.facts
            };
            let top = asked.rule.destination_subtree(&facts, bounds)?;
            match covers(top, &reached.path) {
                true => Ok(()),
                false => asked.beyond(std::format!(
                    "the cgroup {} is not {top} or below",
                    reached.path
                )),
            }
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write!(
                json,
                "{{\"role\":\"{}\",\"threads\":{}",
                self.role.words(),
                self.tids.len()
            )?;
            if let Some(reached) = &self.reached {
                json.push_str(",\"cgroup\":");
                write_string(json, &reached.path)?;
            }
            if let Some(map) = self.cpumap {
                json.push_str(",\"cpus\":");
                write_cpus(json, map.bytes())?;
            }
            json.push('}');
            Ok(())
        }

        /// How many of the threads are in the cgroup; of housekeeping which
        /// that is, and its CPUs.
        fn before(&self, json: &mut String) -> fmt::Result {
            self.write_state(json, 0)
        }

        /// Besides that how many others were moved in error.
        fn after(&self, json: &mut String) -> fmt::Result {
            self.write_state(json, self.strays.get())
        }
    }

    impl CgroupAddThreads<'_> {
        fn write_state(&self, json: &mut String, strays: usize) -> fmt::Result {
            match (&self.housekeeping, &self.reached) {
                (Some(Kept { plan: Ok(plan), .. }), _) => {
                    let (path, found) = plan.state(self.tids);
                    json.push_str("{\"cgroup\":");
                    write_string(json, &path)?;
                    if let Some((cpus, there)) = found {
                        json.push_str(",\"cpus\":");
                        write_cpus(json, &cpus)?;
                        write!(json, ",\"there\":{there}")?;
                    }
                }
                (_, Some(reached)) => {
                    let mut sorted = self.tids.to_vec();
                    sorted.sort_unstable();
                    let mut there = 0;
                    let counted = reached.group.for_each_thread(|tid| {
                        there += usize::from(sorted.binary_search(&tid).is_ok());
                    });
                    if counted.is_err() {
                        return json.write_str("null");
                    }
                    write!(json, "{{\"there\":{there}")?;
                }
                _ => return json.write_str("null"),
            }
            if strays > 0 {
                write!(json, ",\"strays\":{strays}")?;
            }
            json.write_char('}')
        }
    }

    /// Serves a request of it.
    pub(crate) fn serve(job: Job<'_>) -> Done {
        job.serve::<CgroupAddThreads<'_>>()
    }
}
