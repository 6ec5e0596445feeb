// SPDX-License-Identifier: LGPL-2.1-or-later
//! The CPUs that a thread may run on.

use std::ffi::{OsString, c_void};
use std::{fmt, io, ptr, slice};

use clap::Args;
use libc::{c_int, c_uchar, c_uint, pid_t};
use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::capi::process_set_affinity::{
    VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION, virInternalProcessSetAffinity,
    virInternalSetAffinityHandler, virInternalSetProcessSetAffinityHandler,
};
use virt_internal::capi::types::virInternalOperation;

use super::{Delegation, Errand, Operation, Request, Requests, Scene, Stage, State, Trial};
use crate::cpus::Cpus;
use crate::library::Script;
use crate::privilege::{Kind, Missing, SYS_NICE};
use crate::proc;
use crate::target::{Target, User};

/// The operation's name for `call` and in policies.
const NAME: &str = "process-set-affinity";

/// Set the CPUs that a thread may run on
#[derive(Args)]
pub struct ProcessSetAffinity {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// One of its threads [default: its first]
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    tid: Option<pid_t>,
    /// Which: 0-3,5
    #[arg(long)]
    cpus: Cpus,
}

impl ProcessSetAffinity {
    fn new(pid: pid_t, tid: pid_t, cpus: Cpus) -> Self {
        ProcessSetAffinity {
            pid,
            tid: Some(tid),
            cpus,
        }
    }

    fn tid(&self) -> pid_t {
        self.tid.unwrap_or(self.pid)
    }
}

fn values(cpus: &Cpus) -> Value {
    json!({ "cpus": cpus.iter().collect::<Vec<_>>() })
}

unsafe extern "C-unwind" fn handler(
    pid: pid_t,
    tid: pid_t,
    cpumap: *const c_uchar,
    maplen: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the library gives a map of that length.
    let map = unsafe { slice::from_raw_parts(cpumap, maplen as usize) };
    let request = ProcessSetAffinity::new(pid, tid, Cpus::from_map(map));
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&request)
}

impl Request for ProcessSetAffinity {
    fn asked(&self) -> String {
        format!("CPUs {}", self.cpus)
    }

    fn asked_values(&self) -> Value {
        values(&self.cpus)
    }

    fn arguments(&self) -> Vec<OsString> {
        vec![
            NAME.into(),
            format!("--pid={}", self.pid).into(),
            format!("--tid={}", self.tid()).into(),
            format!("--cpus={}", self.cpus).into(),
        ]
    }

    fn call(&self, flags: c_uint) -> c_int {
        let map = self.cpus.to_map();
        // SAFETY: the map is as long as it says; conn is never dereferenced.
        unsafe {
            virInternalProcessSetAffinity(
                ptr::null_mut(),
                self.pid,
                self.tid(),
                map.as_ptr(),
                map.len() as c_int,
                flags,
            )
        }
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalSetAffinityHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetProcessSetAffinityHandler(
                ptr::null_mut(),
                VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        // The kernel takes whole longs, in which its bits lie as a map's do
        // on a machine that is little-endian.
        const LONG: usize = size_of::<usize>();
        let map = self.cpus.to_map();
        let mut longs = vec![0_usize; map.len().div_ceil(LONG)];
        for (index, byte) in map.into_iter().enumerate() {
            longs[index / LONG] |= usize::from(byte) << (index % LONG * 8);
        }
        // SAFETY: the kernel reads as many bytes as there are.
        let set = unsafe {
            let bytes = size_of_val(longs.as_slice());
            libc::sched_setaffinity(self.tid(), bytes, longs.as_ptr().cast())
        };
        Errno::result(set).map(drop)
    }

    fn state(&self) -> io::Result<State> {
        let cpus = proc::cpus(self.pid, self.tid())?;
        Ok(State {
            text: format!("CPUs {cpus}"),
            values: values(&cpus),
            // A cpuset may narrow it.
            as_asked: cpus.is_subset(&self.cpus),
        })
    }

    fn note(&self) -> Option<String> {
        let cpus = proc::cpus(self.pid, self.tid()).ok()?;
        let is_narrowed = cpus != self.cpus && cpus.is_subset(&self.cpus);
        is_narrowed.then(|| {
            format!(
                "the kernel narrowed {} to {cpus}: the other CPUs are not there, or not in the cpuset",
                self.cpus
            )
        })
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        match errnum {
            Errno::EPERM => Some(SYS_NICE.missing()),
            Errno::EINVAL => Some(
                Missing::new(Kind::Argument, "an existing CPU").hint(format!(
                    "this machine has the CPUs {}, and a cpuset may allow fewer",
                    proc::read("/sys/devices/system/cpu/online")
                        .unwrap_or_default()
                        .trim()
                )),
            ),
            _ => None,
        }
    }
}

impl Operation for ProcessSetAffinity {
    const ID: virInternalOperation = virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_AFFINITY;

    fn scenes() -> Vec<Scene> {
        let stage = Stage::new(User::Own, |target| {
            let (first, last) = first_and_last_cpu(target)?;
            let request = |tid: usize, cpu| -> Box<dyn Request> {
                let tid = target.tids[tid];
                Box::new(ProcessSetAffinity::new(target.pid(), tid, Cpus::one(cpu)))
            };
            Ok(Requests {
                allowed: [request(0, first), request(1, last), request(2, first)],
                beyond: request(2, last + 1),
            })
        });
        vec![Scene { label: "", stage }]
    }

    fn trials() -> Vec<Trial> {
        [User::Own, User::Other]
            .map(|user| {
                let stage = Stage::new(user, |target| {
                    let (first, _) = first_and_last_cpu(target)?;
                    let (pid, tid) = (target.pid(), target.tids[1]);
                    let request = ProcessSetAffinity::new(pid, tid, Cpus::one(first));
                    Ok(Box::new(request) as Box<dyn Request>)
                });
                Trial {
                    name: "pin",
                    user,
                    stage,
                }
            })
            .into()
    }

    fn delegations(user: User) -> Vec<Delegation> {
        let stage = Stage::new(user, |target| {
            let (first, last) = first_and_last_cpu(target)?;
            let errand = |tid: usize, cpu| {
                let tid = target.tids[tid];
                let request = ProcessSetAffinity::new(target.pid(), tid, Cpus::one(cpu));
                Errand::new(Box::new(request))
            };
            Ok(vec![
                errand(1, last).main(),
                errand(0, first),
                errand(2, last + 1).refused(),
            ])
        });
        vec![Delegation { label: "", stage }]
    }

    fn policy() -> io::Result<String> {
        Ok(format!("{NAME} = {{ cpus = \"{}\" }}", proc::own_cpus()?))
    }
}

fn first_and_last_cpu(target: &Target) -> io::Result<(u32, u32)> {
    let cpus = proc::cpus(target.pid(), target.pid())?;
    let mut cpus = cpus.iter();
    // A thread may run somewhere.
    let first = cpus.next().unwrap_or(0);
    Ok((first, cpus.next_back().unwrap_or(first)))
}

impl fmt::Display for ProcessSetAffinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pid, tid, cpus) = (self.pid, self.tid(), &self.cpus);
        write!(f, "pin thread {tid} of process {pid} to CPUs {cpus}")
    }
}
