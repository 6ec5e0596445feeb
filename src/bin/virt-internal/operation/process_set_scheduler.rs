// SPDX-License-Identifier: LGPL-2.1-or-later
//! The scheduling policy and priority of a thread.

use std::ffi::{OsString, c_void};
use std::{fmt, io, ptr};

use clap::{Args, ValueEnum};
use libc::{c_int, c_uint, pid_t};
use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::capi::process_set_scheduler::{
    VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION, virInternalProcessSetScheduler,
    virInternalSchedPolicy, virInternalSetProcessSetSchedulerHandler,
    virInternalSetSchedulerHandler,
};
use virt_internal::capi::types::virInternalOperation;

use super::{Delegation, Errand, Operation, Request, Requests, Scene, Stage, State, Trial};
use crate::cgroup;
use crate::library::Script;
use crate::privilege::{Kind, Missing, SYS_NICE, is_in_initial_user_namespace};
use crate::proc;
use crate::target::User;

/// The operation's name for `call` and in policies.
const NAME: &str = "process-set-scheduler";

/// The highest priority that the demonstration's policy allows.
const MAX_PRIORITY: c_int = 10;

/// Set the scheduling policy and priority of a thread
#[derive(Args)]
pub struct ProcessSetScheduler {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// One of its threads [default: its first]
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    tid: Option<pid_t>,
    /// By libvirt's names; none leaves it as it is
    #[arg(long)]
    policy: Policy,
    /// 1 to 99 for fifo and rr
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = priority)]
    priority: c_int,
}

/// The range is for the library to check.
fn priority(text: &str) -> Result<c_int, String> {
    text.parse()
        .map_err(|_| "expected a number, from 1 to 99 for fifo and rr".into())
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    None,
    Batch,
    Idle,
    Fifo,
    Rr,
    Other,
}

impl Policy {
    /// libvirt's number.
    fn number(self) -> c_int {
        use virInternalSchedPolicy::*;
        let policy = match self {
            Policy::None => VIR_INTERNAL_SCHED_NONE,
            Policy::Batch => VIR_INTERNAL_SCHED_BATCH,
            Policy::Idle => VIR_INTERNAL_SCHED_IDLE,
            Policy::Fifo => VIR_INTERNAL_SCHED_FIFO,
            Policy::Rr => VIR_INTERNAL_SCHED_RR,
            Policy::Other => VIR_INTERNAL_SCHED_OTHER,
        };
        policy as c_int
    }

    fn of_number(number: c_int) -> Option<Policy> {
        let mut policies = Policy::value_variants().iter().copied();
        policies.find(|policy| policy.number() == number)
    }

    /// The kernel's number; it has none for leaving it as it is.
    fn in_kernel(self) -> Option<c_int> {
        match self {
            Policy::None => None,
            Policy::Batch => Some(libc::SCHED_BATCH),
            Policy::Idle => Some(libc::SCHED_IDLE),
            Policy::Fifo => Some(libc::SCHED_FIFO),
            Policy::Rr => Some(libc::SCHED_RR),
            Policy::Other => Some(libc::SCHED_OTHER),
        }
    }

    fn is_realtime(self) -> bool {
        matches!(self, Policy::Fifo | Policy::Rr)
    }
}

impl ProcessSetScheduler {
    fn new(pid: pid_t, tid: pid_t, policy: Policy, priority: c_int) -> Self {
        ProcessSetScheduler {
            pid,
            tid: Some(tid),
            policy,
            priority,
        }
    }

    fn tid(&self) -> pid_t {
        self.tid.unwrap_or(self.pid)
    }

    /// What the kernel is told: only real-time policies have a priority.
    fn priority(&self) -> c_int {
        match self.policy.is_realtime() {
            true => self.priority,
            false => 0,
        }
    }
}

fn show(policy: c_int, priority: c_int) -> String {
    match policy {
        libc::SCHED_OTHER => "SCHED_OTHER".into(),
        libc::SCHED_BATCH => "SCHED_BATCH".into(),
        libc::SCHED_IDLE => "SCHED_IDLE".into(),
        libc::SCHED_FIFO => format!("SCHED_FIFO {priority}"),
        libc::SCHED_RR => format!("SCHED_RR {priority}"),
        _ => format!("policy {policy}"),
    }
}

fn values(policy: c_int, priority: c_int) -> Value {
    json!({ "policy": policy, "priority": priority })
}

unsafe extern "C-unwind" fn handler(
    pid: pid_t,
    tid: pid_t,
    policy: c_int,
    priority: c_int,
    opaque: *mut c_void,
) -> c_int {
    let Some(policy) = Policy::of_number(policy) else {
        return -libc::EINVAL;
    };
    let request = ProcessSetScheduler::new(pid, tid, policy, priority);
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&request)
}

impl Request for ProcessSetScheduler {
    fn asked(&self) -> String {
        let policy = self.policy.in_kernel();
        policy.map_or("as it is".into(), |policy| show(policy, self.priority))
    }

    fn asked_values(&self) -> Value {
        match self.policy.in_kernel() {
            Some(policy) => values(policy, self.priority()),
            None => json!({}),
        }
    }

    fn arguments(&self) -> Vec<OsString> {
        let policy = self.policy.to_possible_value();
        let policy = policy.map_or(String::new(), |policy| policy.get_name().to_owned());
        vec![
            NAME.into(),
            format!("--pid={}", self.pid).into(),
            format!("--tid={}", self.tid()).into(),
            format!("--policy={policy}").into(),
            format!("--priority={}", self.priority).into(),
        ]
    }

    fn call(&self, flags: c_uint) -> c_int {
        // SAFETY: numbers only; conn is never dereferenced.
        unsafe {
            virInternalProcessSetScheduler(
                ptr::null_mut(),
                self.pid,
                self.tid(),
                self.policy.number(),
                self.priority,
                flags,
            )
        }
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalSetSchedulerHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetProcessSetSchedulerHandler(
                ptr::null_mut(),
                VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        let Some(policy) = self.policy.in_kernel() else {
            return Ok(());
        };
        let parameters = libc::sched_param {
            sched_priority: self.priority(),
        };
        // SAFETY: the kernel reads one sched_param.
        let set = unsafe { libc::sched_setscheduler(self.tid(), policy, &parameters) };
        Errno::result(set).map(drop)
    }

    fn state(&self) -> io::Result<State> {
        let (policy, priority) = proc::scheduler(self.pid, self.tid())?;
        let asked = self.policy.in_kernel();
        Ok(State {
            text: show(policy, priority),
            values: values(policy, priority),
            as_asked: asked.is_none_or(|asked| asked == policy && self.priority() == priority),
        })
    }

    fn note(&self) -> Option<String> {
        let is_ignored = self.priority != 0 && !self.policy.is_realtime();
        is_ignored.then(|| {
            format!(
                "the priority {} is ignored: only fifo and rr take one",
                self.priority
            )
        })
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        if errnum != Errno::EPERM {
            return None;
        }
        if !self.policy.is_realtime() {
            return Some(SYS_NICE.missing());
        }
        let is_own_user = proc::is_own_user(self.pid).unwrap_or(true);
        let most = proc::limit(self.pid, "Max realtime priority").map_or(0, |limit| limit.soft);
        let is_within_limit = u64::try_from(self.priority).is_ok_and(|asked| asked <= most);
        let is_privileged = SYS_NICE.is_effective() && is_in_initial_user_namespace();
        if is_privileged || is_own_user && is_within_limit {
            let file = cgroup::realtime_budget(self.pid).unwrap_or_default();
            let file = file.to_string_lossy();
            if proc::read(&file).is_ok_and(|budget| budget.trim() == "0") {
                return Some(
                    Missing::new(Kind::Cgroup, "cpu.rt_runtime_us > 0").hint(format!(
                        "echo 950000 > {file}, first in the cgroups above it"
                    )),
                );
            }
        }
        let missing = SYS_NICE.missing();
        Some(match is_own_user {
            true => missing.hint(
                "or RLIMIT_RTPRIO, own uid: systemd LimitRTPRIO=99, docker run --ulimit rtprio=99",
            ),
            false => missing,
        })
    }
}

impl Operation for ProcessSetScheduler {
    const ID: virInternalOperation = virInternalOperation::VIR_INTERNAL_OP_PROCESS_SET_SCHEDULER;

    fn scenes() -> Vec<Scene> {
        let stage = Stage::new(User::Own, |target| {
            let request = |tid: usize, policy, priority| -> Box<dyn Request> {
                let tid = target.tids[tid];
                Box::new(ProcessSetScheduler::new(
                    target.pid(),
                    tid,
                    policy,
                    priority,
                ))
            };
            Ok(Requests {
                // Another thread is made idle: not everybody may end that.
                allowed: [
                    request(0, Policy::Batch, 0),
                    request(1, Policy::Idle, 0),
                    request(0, Policy::Other, 0),
                ],
                beyond: request(2, Policy::Fifo, 1),
            })
        });
        vec![Scene { label: "", stage }]
    }

    fn trials() -> Vec<Trial> {
        let trial = |name, user, policy, priority| {
            let stage = Stage::new(user, |target| {
                let (pid, tid) = (target.pid(), target.tids[1]);
                let request = ProcessSetScheduler::new(pid, tid, policy, priority);
                Ok(Box::new(request) as Box<dyn Request>)
            });
            Trial { name, user, stage }
        };
        vec![
            trial("batch", User::Own, Policy::Batch, 0),
            trial("real-time", User::Own, Policy::Fifo, 1),
            trial("batch", User::Other, Policy::Batch, 0),
        ]
    }

    fn delegations(user: User) -> Vec<Delegation> {
        let stage = Stage::new(user, |target| {
            let errand = |tid: usize, policy, priority| {
                let tid = target.tids[tid];
                let request = ProcessSetScheduler::new(target.pid(), tid, policy, priority);
                Errand::new(Box::new(request))
            };
            Ok(vec![
                errand(1, Policy::Fifo, 1).main(),
                errand(0, Policy::Batch, 0),
                errand(2, Policy::Fifo, MAX_PRIORITY * 2).refused().main(),
            ])
        });
        vec![Delegation { label: "", stage }]
    }

    fn policy() -> io::Result<String> {
        let cpus = proc::own_cpus()?;
        Ok(format!(
            "{NAME} = {{ policies = [\"batch\", \"fifo\"], max-priority = {MAX_PRIORITY}, cpus = \"{cpus}\", cpus-by = \"affinity\" }}"
        ))
    }
}

impl fmt::Display for ProcessSetScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pid, tid, asked) = (self.pid, self.tid(), self.asked());
        match self.policy {
            Policy::None => write!(
                f,
                "leave the scheduler of thread {tid} of process {pid} as it is"
            ),
            _ => write!(
                f,
                "set the scheduler of thread {tid} of process {pid} to {asked}"
            ),
        }
    }
}
