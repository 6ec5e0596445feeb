// SPDX-License-Identifier: LGPL-2.1-or-later
//! Scheduling policies and priorities of threads.

use core::fmt;

use crate::errno::Errno;
use libc::c_int;

use super::syscall::syscall;
use crate::error::{Error, Result};

/**
 * virInternalSchedPolicy:
 *
 * Scheduling policies by libvirt's numbers (virProcessSchedPolicy), not the
 * kernel's. OTHER is not among libvirt's.
 *
 * Since: 0.1.0
 */
#[repr(C)]
#[cfg_attr(feature = "delegate", derive(serde::Deserialize))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
pub enum virInternalSchedPolicy {
    /// leave as it is: a success with nothing done
    #[cfg_attr(feature = "delegate", serde(skip))]
    VIR_INTERNAL_SCHED_NONE = 0,
    /// SCHED_BATCH
    #[cfg_attr(feature = "delegate", serde(rename = "batch"))]
    VIR_INTERNAL_SCHED_BATCH = 1,
    /// SCHED_IDLE
    #[cfg_attr(feature = "delegate", serde(rename = "idle"))]
    VIR_INTERNAL_SCHED_IDLE = 2,
    /// SCHED_FIFO, with a priority from 1 to 99
    #[cfg_attr(feature = "delegate", serde(rename = "fifo"))]
    VIR_INTERNAL_SCHED_FIFO = 3,
    /// SCHED_RR, with a priority from 1 to 99
    #[cfg_attr(feature = "delegate", serde(rename = "rr"))]
    VIR_INTERNAL_SCHED_RR = 4,
    /// SCHED_OTHER
    #[cfg_attr(feature = "delegate", serde(rename = "other"))]
    VIR_INTERNAL_SCHED_OTHER = 0x100,
}

/// A policy, with a priority where it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    policy: virInternalSchedPolicy,
    priority: c_int,
}

impl Schedule {
    /// Of libvirt's numbers. `None`: to be left as it is.
    #[inline(always)]
    pub(crate) fn new(policy: c_int, priority: c_int) -> Result<Option<Schedule>> {
        use virInternalSchedPolicy::*;
        const NONE: c_int = VIR_INTERNAL_SCHED_NONE as c_int;
        const BATCH: c_int = VIR_INTERNAL_SCHED_BATCH as c_int;
        const IDLE: c_int = VIR_INTERNAL_SCHED_IDLE as c_int;
        const FIFO: c_int = VIR_INTERNAL_SCHED_FIFO as c_int;
        const RR: c_int = VIR_INTERNAL_SCHED_RR as c_int;
        const OTHER: c_int = VIR_INTERNAL_SCHED_OTHER as c_int;
        let policy = match policy {
            NONE => return Ok(None),
            BATCH => VIR_INTERNAL_SCHED_BATCH,
            IDLE => VIR_INTERNAL_SCHED_IDLE,
            FIFO => VIR_INTERNAL_SCHED_FIFO,
            RR => VIR_INTERNAL_SCHED_RR,
            OTHER => VIR_INTERNAL_SCHED_OTHER,
            _ => {
                return Err(Error::invalid(format_args!(
                    "{policy} is not a scheduling policy: they are NONE {NONE}, BATCH {BATCH}, \
                     IDLE {IDLE}, FIFO {FIFO}, RR {RR} and OTHER {OTHER:#x}"
                )));
            }
        };
        let priority = match policy {
            VIR_INTERNAL_SCHED_FIFO | VIR_INTERNAL_SCHED_RR => {
                if !(1..=99).contains(&priority) {
                    return Err(Error::invalid(format_args!(
                        "scheduler priority {priority} is out of range [1, 99]"
                    )));
                }
                priority
            }
            _ => 0,
        };
        Ok(Some(Schedule { policy, priority }))
    }

    #[cfg(feature = "delegate")]
    pub(crate) fn kind(self) -> virInternalSchedPolicy {
        self.policy
    }

    /// libvirt's number of the policy.
    pub(crate) fn policy(self) -> c_int {
        self.policy as c_int
    }

    pub(crate) fn priority(self) -> c_int {
        self.priority
    }

    fn kernel_policy(self) -> c_int {
        use virInternalSchedPolicy::*;
        match self.policy {
            VIR_INTERNAL_SCHED_BATCH => libc::SCHED_BATCH,
            VIR_INTERNAL_SCHED_IDLE => libc::SCHED_IDLE,
            VIR_INTERNAL_SCHED_FIFO => libc::SCHED_FIFO,
            VIR_INTERNAL_SCHED_RR => libc::SCHED_RR,
            VIR_INTERNAL_SCHED_NONE | VIR_INTERNAL_SCHED_OTHER => libc::SCHED_OTHER,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.kernel_policy(), self.priority)
    }
}

/// What the kernel has for a thread, by its own numbers.
#[derive(Clone, Copy)]
pub(crate) struct InKernel {
    policy: c_int,
    priority: c_int,
}

impl PartialEq<Schedule> for InKernel {
    fn eq(&self, asked: &Schedule) -> bool {
        self.policy == asked.kernel_policy() && self.priority == asked.priority
    }
}

impl fmt::Display for InKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.policy, self.priority)
    }
}

fn show(f: &mut fmt::Formatter<'_>, policy: c_int, priority: c_int) -> fmt::Result {
    let name = match policy {
        libc::SCHED_OTHER => "SCHED_OTHER",
        libc::SCHED_BATCH => "SCHED_BATCH",
        libc::SCHED_IDLE => "SCHED_IDLE",
        libc::SCHED_FIFO => "SCHED_FIFO",
        libc::SCHED_RR => "SCHED_RR",
        libc::SCHED_DEADLINE => "SCHED_DEADLINE",
        _ => return write!(f, "policy {policy}, priority {priority}"),
    };
    write!(f, "{name} with priority {priority}")
}

/// Sets policy and priority of a thread.
#[inline(always)]
pub(crate) fn set(tid: libc::pid_t, schedule: Schedule) -> core::result::Result<(), Errno> {
    let parameters = libc::sched_param {
        sched_priority: schedule.priority,
    };
    // SAFETY: the kernel reads one sched_param.
    unsafe {
        syscall(
            libc::SYS_sched_setscheduler,
            [
                tid as usize,
                schedule.kernel_policy() as usize,
                &raw const parameters as usize,
                0,
            ],
        )
    }
    .map(|_| ())
}

/// Policy and priority of a thread, in one system call.
#[inline(always)]
pub(crate) fn get(tid: libc::pid_t) -> core::result::Result<InKernel, Errno> {
    // SAFETY: numbers only, so all zeros are valid.
    let mut attributes: libc::sched_attr = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel writes at most as many bytes as the size says.
    unsafe {
        syscall(
            libc::SYS_sched_getattr,
            [
                tid as usize,
                &raw mut attributes as usize,
                size_of::<libc::sched_attr>(),
                0,
            ],
        )
    }?;
    Ok(InKernel {
        policy: attributes.sched_policy as c_int,
        priority: attributes.sched_priority as c_int,
    })
}
