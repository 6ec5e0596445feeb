// SPDX-License-Identifier: LGPL-2.1-or-later
//! Scheduling policies of another user's threads.

use libc::{c_int, pid_t};
use nix::errno::Errno;

use crate::Skip;
use crate::child::Child;
use crate::library::*;

/// virInternalSchedPolicy has libvirt's numbers.
const BATCH: c_int = 1;
const IDLE: c_int = 2;
pub const FIFO: c_int = 3;
const RR: c_int = 4;
const OTHER: c_int = 0x100;

/// libvirt's number, the kernel's, and a priority.
const POLICIES: [(c_int, c_int, c_int); 5] = [
    (FIFO, libc::SCHED_FIFO, 1),
    (RR, libc::SCHED_RR, 99),
    (BATCH, libc::SCHED_BATCH, 0),
    (IDLE, libc::SCHED_IDLE, 0),
    (OTHER, libc::SCHED_OTHER, 0),
];

/// Sets a policy by the system call itself, as handlers do.
fn sched_setscheduler(tid: pid_t, policy: c_int, priority: c_int) -> Result<(), Errno> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the kernel reads one sched_param.
    Errno::result(unsafe { libc::sched_setscheduler(tid, policy, &parameters) }).map(drop)
}

/// A handler's work, of one of libvirt's policies.
pub fn set_by_handler(tid: pid_t, policy: c_int, priority: c_int) -> c_int {
    let known = POLICIES.iter().find(|known| known.0 == policy);
    let (_, kernels, _) = known.expect("one of libvirt's policies");
    sched_setscheduler(tid, *kernels, priority)
        .map_or_else(|errnum| -(errnum as c_int), |()| VIR_INTERNAL_HANDLED)
}

/// The kernel's policy and priority of a thread.
fn schedule(tid: pid_t) -> (c_int, c_int) {
    let mut parameters = libc::sched_param { sched_priority: -1 };
    // SAFETY: the kernel writes one sched_param.
    let (policy, got) = unsafe {
        (
            libc::sched_getscheduler(tid),
            libc::sched_getparam(tid, &mut parameters),
        )
    };
    assert_eq!(got, 0, "sched_getparam: {}", Errno::last());
    (policy, parameters.sched_priority)
}

/// A child with two threads, which this machine lets us schedule in real time.
pub fn child() -> Result<Child, Skip> {
    let child = Child::start(2)?;
    sched_setscheduler(child.pid(), libc::SCHED_FIFO, 1).map_err(|errnum| {
        Skip(format!(
            "CAP_SYS_NICE, or real-time bandwidth in the cpu cgroup: sched_setscheduler() of \
             another user's process says {errnum:?}"
        ))
    })?;
    sched_setscheduler(child.pid(), libc::SCHED_OTHER, 0).expect("SCHED_OTHER can be set again");
    Ok(child)
}

pub fn every_policy_is_set_on_one_thread() -> Result<(), Skip> {
    let child = child()?;
    let untouched = (libc::SCHED_OTHER, 0);
    for (policy, expected, priority) in POLICIES {
        set_scheduler(child.pid(), child.tids[0], policy, priority).unwrap();
        assert_eq!(
            schedule(child.tids[0]),
            (expected, priority),
            "policy {policy}"
        );
        assert_eq!(schedule(child.tids[1]), untouched, "another thread");
        assert_eq!(schedule(child.pid()), untouched, "the first thread");
    }
    Ok(())
}

pub fn a_handler_sets_every_policy() -> Result<(), Skip> {
    let child = child()?;
    let _handled =
        handle_scheduler(|_, tid, policy, priority| set_by_handler(tid, policy, priority));
    for (policy, expected, priority) in POLICIES {
        set_scheduler(child.pid(), child.tids[0], policy, priority).unwrap();
        assert_eq!(
            schedule(child.tids[0]),
            (expected, priority),
            "policy {policy}"
        );
    }
    Ok(())
}

pub fn a_handler_that_sets_another_priority_is_found_out() -> Result<(), Skip> {
    let child = child()?;
    let _handled =
        handle_scheduler(|_, tid, policy, priority| set_by_handler(tid, policy, priority + 1));
    set_scheduler(child.pid(), child.tids[0], FIFO, 5)
        .expect_err("another priority was set")
        .expect(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO);
    Ok(())
}
