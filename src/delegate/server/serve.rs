// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a delegate needs to know of an operation, and what a request is about.

use std::cell::OnceCell;
use std::ffi::CString;
use std::fmt::{self, Write};

use libc::{c_uint, pid_t};

use super::cgroupfs::{self, Reached, Unreachable};
use super::peer::Peer;
use super::pidfd::{self, Info};
use crate::delegate::policy::{self, Closeness, Denied, Rule};
use crate::delegate::wire::{CPUMAP_MAX, Malformed, Reader};
use crate::dispatch::Operation;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::kernel::affinity::CpuMap;
use crate::kernel::cgroup::GroupPath;
use crate::kernel::file::Fd;
use crate::kernel::process::{Held, Pid, Task, pidfd_open};
use crate::operation::Allowed;

/// An operation that a delegate can do.
pub(crate) trait Serve<'m>: Operation + Sized {
    /// What a rule allows of it.
    type Bounds: policy::Bounds;

    /// Its name in a policy.
    const NAME: &'static str;

    /// What a rule allows of it, if anything.
    fn bounds(allowed: &Allowed) -> Option<&Self::Bounds>;

    /// Reads a request: the opposite of `Operation::request`.
    fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self>;

    /// Whether a rule permits it on a target that it permits; it may have more
    /// granted than was asked.
    fn permit(
        &mut self,
        bounds: &Self::Bounds,
        asked: &Asked<'_>,
    ) -> std::result::Result<(), Denied>;

    /// What is asked, as JSON.
    fn asked(&self, json: &mut String) -> fmt::Result;

    /// Whether `act` learns what it replaces, in the same moment.
    const REPLACES: bool = false;

    /// What the kernel has before it is done, as JSON. Asked before, or, where
    /// `act` learns it, after.
    fn before(&self, json: &mut String) -> fmt::Result;

    /// What the kernel has after it was done, as JSON.
    fn after(&self, json: &mut String) -> fmt::Result {
        self.before(json)
    }
}

/// Who asks, and by which rule.
pub(crate) struct Asked<'a> {
    pub(crate) peer: &'a Peer,
    pub(crate) facts: policy::Peer<'a>,
    pub(crate) rule: &'a Rule,
}

impl Asked<'_> {
    /// That the rule's bounds deny it.
    pub(crate) fn beyond<T>(&self, why: impl Into<String>) -> std::result::Result<T, Denied> {
        Err(self.rule.denied(Closeness::Bounds, why))
    }
}

/// The result of reading a request.
pub(crate) type Read<T> = std::result::Result<T, Unfit>;

/// A request that is not carried out.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// It cannot be understood: the connection ends.
    Malformed(Malformed),
    /// It is about something that is not there, or not as it should be.
    Error(Error),
}

impl From<Malformed> for Unfit {
    fn from(malformed: Malformed) -> Unfit {
        Unfit::Malformed(malformed)
    }
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Unfit {
        Unfit::Error(error)
    }
}

/// Lists that requests are made of, which live as long as the message.
#[derive(Default)]
pub(crate) struct Lists {
    tids: OnceCell<Vec<pid_t>>,
    ids: OnceCell<Vec<c_uint>>,
    path: OnceCell<CString>,
}

/// What a request is about: descriptors that a peer sent.
pub(crate) struct Subject<'m> {
    peer: &'m Peer,
    /// The process of the request before, if it is that one's again.
    known: Option<Fd>,
    descriptors: std::vec::IntoIter<Fd>,
    lists: &'m Lists,
    /// Whether it is refused, whatever it turns out to be about: then nothing is
    /// looked for that can take long.
    is_refused: bool,
    process: Option<(Fd, Info)>,
    thread: Option<(Task, Option<Fd>)>,
    /// Whether there are threads of which no descriptor came.
    has_numbers: bool,
    pub(crate) reached: Option<Reached>,
}

impl<'m> Subject<'m> {
    pub(crate) fn new(
        peer: &'m Peer,
        known: Option<Fd>,
        descriptors: Vec<Fd>,
        lists: &'m Lists,
        is_refused: bool,
    ) -> Self {
        Subject {
            peer,
            known,
            descriptors: descriptors.into_iter(),
            lists,
            is_refused,
            process: None,
            thread: None,
            has_numbers: false,
            reached: None,
        }
    }

    fn next_descriptor(&mut self, what: &'static str) -> Read<Fd> {
        let next = self.descriptors.next();
        next.ok_or(Unfit::Malformed(Malformed(what)))
    }

    fn next_pidfd(&mut self, missing: &'static str) -> Read<Fd> {
        let fd = self.next_descriptor(missing)?;
        if !pidfd::is_pidfd(fd.get()) {
            return Err(Malformed("what was sent as a process is not a pidfd").into());
        }
        Ok(fd)
    }

    /// The process that comes first.
    pub(crate) fn process(&mut self) -> Read<Pid> {
        let fd = match self.known.take() {
            Some(fd) => fd,
            None => self.next_pidfd("a process is missing")?,
        };
        let info = info_of(&fd, gone)?;
        if info.pid != info.process {
            return Err(Malformed("what was sent as a process is a thread").into());
        }
        // In no PID namespace that this one can see.
        let pid = Pid::new(info.pid).map_err(|_| gone())?;
        self.process = Some((fd, info));
        Ok(pid)
    }

    /// The process that comes first, and the thread of it that the body names.
    pub(crate) fn task(&mut self, body: &mut Reader<'_>) -> Read<Task> {
        let pid = self.process()?;
        let tid = body.i32()?;
        if tid == 0 {
            return Ok(Task::new(pid, pid.get())?);
        }
        let (tid, fd) = match self.descriptors.len() {
            0 => (self.translate(pid, tid)?, None),
            _ => {
                let fd = self.next_pidfd("a thread is missing")?;
                let info = info_of(&fd, || thread_gone(tid))?;
                if info.process != pid.get() {
                    return Err(not_its_thread(tid).into());
                }
                (info.pid, Some(fd))
            }
        };
        let task = Task::new(pid, tid)?;
        // Linux 6.9; before that the number alone has to do.
        let fd = fd.or_else(|| pidfd_open(tid, libc::PIDFD_THREAD).ok());
        task.require()?;
        self.thread = Some((task, fd));
        Ok(task)
    }

    /// The threads of a process that the body lists, by the delegate's numbers.
    pub(crate) fn tids(
        &mut self,
        pid: Pid,
        body: &mut Reader<'_>,
        count: usize,
    ) -> Read<&'m [pid_t]> {
        let mut tids = Vec::with_capacity(count);
        let mut translate = self.peer.translator(pid, self.is_refused);
        for _ in 0..count {
            let tid = body.i32()?;
            if tid <= 0 {
                return Err(Malformed("the number of a thread is below 1").into());
            }
            tids.push(match translate(tid) {
                // One that has exited stays what it is: nobody's.
                Err(Errno::ESRCH) => NOBODY,
                translated => translated.map_err(|errnum| untranslated(tid, errnum))?,
            });
        }
        drop(translate);
        self.has_numbers = tids.iter().any(|tid| *tid != pid.get());
        Ok(self.lists.tids.get_or_init(|| tids))
    }

    /// Their numbers as vCPUs or IOThreads.
    pub(crate) fn ids(&self, body: &mut Reader<'_>, count: usize) -> Read<&'m [c_uint]> {
        let ids: std::result::Result<Vec<_>, _> = (0..count).map(|_| body.u32()).collect();
        let ids = ids?;
        Ok(self.lists.ids.get_or_init(|| ids))
    }

    /// The cgroup that comes next, and its path here.
    pub(crate) fn group(&mut self) -> Read<GroupPath<'m>> {
        let fd = self.next_descriptor("a cgroup is missing")?;
        let reached = match cgroupfs::reach(fd.get()) {
            Ok(reached) => reached,
            Err(Unreachable::NoCgroup) => {
                return Err(Malformed(
                    "what was sent as a cgroup is not an O_PATH descriptor of one",
                )
                .into());
            }
            Err(Unreachable::Failed(errnum)) => {
                let text = format_args!("cannot reach that cgroup from here");
                return Err(Error::failed(errnum, text).into());
            }
        };
        let path = self.lists.path.get_or_init(|| reached.directory.clone());
        self.reached = Some(reached);
        // SAFETY: a C string, which lives as long as the lists do.
        Ok(unsafe { GroupPath::new(path.as_ptr()) }?)
    }

    fn translate(&self, pid: Pid, tid: pid_t) -> Result<pid_t> {
        let mut translate = self.peer.translator(pid, self.is_refused);
        translate(tid).map_err(|errnum| match errnum {
            Errno::ESRCH => not_its_thread(tid),
            _ => untranslated(tid, errnum),
        })
    }

    /// No descriptor may be left.
    pub(crate) fn end(&self) -> Read<()> {
        match self.descriptors.len() {
            0 => Ok(()),
            _ => Err(Malformed("there are too many descriptors").into()),
        }
    }

    pub(crate) fn info(&self) -> Option<Info> {
        self.process.as_ref().map(|(_, info)| *info)
    }

    pub(crate) fn descriptor(&self) -> Option<libc::c_int> {
        self.process.as_ref().map(|(fd, _)| fd.get())
    }

    /// The thread, if it is about one that is not the process's first.
    pub(crate) fn tid(&self) -> Option<pid_t> {
        self.thread.as_ref().map(|(task, _)| task.tid())
    }

    /// Whether a thread is known by its number alone.
    pub(crate) fn is_by_number(&self) -> bool {
        self.has_numbers || matches!(self.thread, Some((_, None)))
    }

    /// Holds the process, and the thread, until after it was done.
    pub(crate) fn hold(self) -> std::result::Result<Held, Malformed> {
        let missing = Malformed("a process is missing");
        let (fd, info) = self.process.ok_or(missing)?;
        let pid = Pid::new(info.pid).map_err(|_| missing)?;
        Ok(Held::received(pid, fd, self.thread))
    }
}

fn info_of(pidfd: &Fd, gone: impl FnOnce() -> Error) -> Result<Info> {
    pidfd::info(pidfd.get()).map_err(|errnum| match errnum {
        Errno::ESRCH => gone(),
        _ => Error::failed(errnum, format_args!("cannot tell which process was sent")),
    })
}

/// The number of no thread: it is above all that the kernel gives.
const NOBODY: pid_t = pid_t::MAX;

fn gone() -> Error {
    Error::no_process(format_args!("the process is no more"))
}

fn thread_gone(tid: pid_t) -> Error {
    Error::no_process(format_args!("thread {tid} is no more"))
}

fn untranslated(tid: pid_t, errnum: Errno) -> Error {
    Error::failed(
        errnum,
        format_args!("cannot tell which thread {tid} is in the caller's PID namespace"),
    )
}

fn not_its_thread(tid: pid_t) -> Error {
    Error::invalid(format_args!(
        "thread {tid} does not belong to the process, or is no more"
    ))
}

/// Reads a map of CPUs; empty when there is none.
pub(crate) fn read_cpus<'m>(body: &mut Reader<'m>, length: u32) -> Read<Option<CpuMap<'m>>> {
    if length as usize > CPUMAP_MAX {
        return Err(Malformed("the map of CPUs is longer than 2048 bytes").into());
    }
    let map = body.bytes(length as usize)?;
    match map {
        [] => Ok(None),
        // SAFETY: a slice.
        _ => Ok(Some(unsafe {
            CpuMap::new(map.as_ptr(), map.len() as libc::c_int)
        }?)),
    }
}

/// A list of CPUs as JSON, as taskset says it: "0-3,8".
pub(crate) fn write_cpus(json: &mut String, map: &[u8]) -> fmt::Result {
    let has = |cpu: usize| map[cpu / 8] >> (cpu % 8) & 1 != 0;
    let (mut cpu, end, mut comma) = (0, map.len() * 8, "");
    json.push('"');
    while let Some(first) = (cpu..end).find(|&cpu| has(cpu)) {
        cpu = (first..end).find(|&cpu| !has(cpu)).unwrap_or(end);
        write!(json, "{comma}{first}")?;
        if cpu - first > 1 {
            write!(json, "-{}", cpu - 1)?;
        }
        comma = ",";
    }
    json.push('"');
    Ok(())
}
