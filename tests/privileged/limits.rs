// SPDX-License-Identifier: LGPL-2.1-or-later
//! Limits of another user's process, raised above its hard limit.

use libc::{c_int, pid_t, rlimit};
use nix::errno::Errno;

use crate::Skip;
use crate::child::{Child, LOW};
use crate::library::*;

/// Soft and hard limit.
type Limit = (u64, u64);

const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// libvirt's figure for unlimited (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED).
const LIBVIRTS_UNLIMITED: u64 = 9_007_199_254_740_991;

const MIB: u64 = 1 << 20;

/// Sets a limit by prlimit() itself, as handlers do.
fn prlimit(pid: pid_t, resource: u32, (soft, hard): Limit) -> Result<(), Errno> {
    let limit = rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the kernel reads one rlimit; there is no old one to write.
    let set = unsafe { libc::prlimit(pid, resource, &limit, std::ptr::null_mut()) };
    Errno::result(set).map(drop)
}

/// A handler's work: sets what `limit` makes of the value that was asked for.
fn grant<V: Into<u64>>(resource: u32, limit: impl Fn(u64) -> Limit) -> impl Fn(pid_t, V) -> c_int {
    move |pid, asked| match prlimit(pid, resource, limit(asked.into())) {
        Ok(()) => VIR_INTERNAL_HANDLED,
        Err(errnum) => -(errnum as c_int),
    }
}

/// Soft and hard limit alike.
fn both(value: u64) -> Limit {
    (value, value)
}

/// A child whose limits this machine lets us raise.
fn child() -> Result<Child, Skip> {
    let child = Child::start(0)?;
    for (resource, low) in LOW {
        match prlimit(child.pid(), resource, (low, low + 1)) {
            Ok(()) => prlimit(child.pid(), resource, (low, low)).expect("a limit can be lowered"),
            Err(errnum) => {
                return Err(Skip(format!(
                    "CAP_SYS_RESOURCE: prlimit() of another user's process says {errnum:?}"
                )));
            }
        }
    }
    Ok(child)
}

/// What /proc/PID/limits says in the line that begins like this.
fn limit(child: &Child, line: &str) -> Limit {
    let limits = child.read_proc(child.pid(), "limits");
    let mut numbers = limits
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .unwrap_or_else(|| panic!("no line '{line}' in {limits}"))
        .split_whitespace()
        .map(|word| match word {
            "unlimited" => UNLIMITED,
            number => number.parse().expect("a number"),
        });
    let mut next = || numbers.next().expect("soft and hard limit");
    (next(), next())
}

#[track_caller]
fn assert_limit(child: &Child, line: &str, expected: Limit) {
    let found = limit(child, line);
    assert_eq!(found, expected, "{line} in /proc/PID/limits, soft and hard");
}

const MEMLOCK: &str = "Max locked memory";
const NPROC: &str = "Max processes";
const NOFILE: &str = "Max open files";
const CORE: &str = "Max core file size";

pub fn locked_memory_is_raised() -> Result<(), Skip> {
    let child = child()?;
    assert_limit(&child, MEMLOCK, both(4096));
    set_max_mem_lock(child.pid(), 8 * MIB).unwrap();
    assert_limit(&child, MEMLOCK, both(8 * MIB));
    Ok(())
}

pub fn locked_memory_is_raised_by_a_handler() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_mem_lock(grant(libc::RLIMIT_MEMLOCK, both));
    set_max_mem_lock(child.pid(), 8 * MIB).unwrap();
    assert_limit(&child, MEMLOCK, both(8 * MIB));
    Ok(())
}

pub fn processes_are_raised() -> Result<(), Skip> {
    let child = child()?;
    assert_limit(&child, NPROC, both(200));
    set_max_processes(child.pid(), 5000).unwrap();
    assert_limit(&child, NPROC, both(5000));
    Ok(())
}

pub fn processes_are_raised_by_a_handler() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_processes(grant(libc::RLIMIT_NPROC, both));
    set_max_processes(child.pid(), 5000).unwrap();
    assert_limit(&child, NPROC, both(5000));
    Ok(())
}

pub fn files_are_raised_to_one_more() -> Result<(), Skip> {
    let child = child()?;
    assert_limit(&child, NOFILE, both(64));
    set_max_files(child.pid(), 2000).unwrap();
    assert_limit(&child, NOFILE, both(2001));
    Ok(())
}

pub fn files_are_raised_by_a_handler() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_files(grant(libc::RLIMIT_NOFILE, both));
    set_max_files(child.pid(), 2000).unwrap();
    assert_limit(&child, NOFILE, both(2000));
    Ok(())
}

pub fn core_size_is_raised() -> Result<(), Skip> {
    let child = child()?;
    assert_limit(&child, CORE, both(0));
    set_max_core_size(child.pid(), MIB).unwrap();
    assert_limit(&child, CORE, both(MIB));
    set_max_core_size(child.pid(), u64::MAX).unwrap();
    assert_limit(&child, CORE, both(UNLIMITED));
    Ok(())
}

pub fn core_size_is_raised_by_a_handler() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_core_size(grant(libc::RLIMIT_CORE, both));
    set_max_core_size(child.pid(), MIB).unwrap();
    assert_limit(&child, CORE, both(MIB));
    Ok(())
}

pub fn libvirts_figure_for_unlimited_is_unlimited() -> Result<(), Skip> {
    let child = child()?;
    set_max_mem_lock(child.pid(), LIBVIRTS_UNLIMITED - 1).unwrap();
    assert_limit(&child, MEMLOCK, both(LIBVIRTS_UNLIMITED - 1));
    set_max_mem_lock(child.pid(), LIBVIRTS_UNLIMITED).unwrap();
    assert_limit(&child, MEMLOCK, both(UNLIMITED));
    Ok(())
}

pub fn a_handler_may_grant_more_locked_memory() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_mem_lock(grant(libc::RLIMIT_MEMLOCK, |_| both(UNLIMITED)));
    set_max_mem_lock(child.pid(), 8 * MIB).unwrap();
    assert_limit(&child, MEMLOCK, both(UNLIMITED));
    Ok(())
}

pub fn a_handler_that_raises_too_little_is_found_out() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_mem_lock(grant(libc::RLIMIT_MEMLOCK, |asked| both(asked - 1)));
    set_max_mem_lock(child.pid(), 8 * MIB)
        .expect_err("less was granted")
        .expect(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO);
    Ok(())
}

pub fn a_handler_that_raises_the_hard_limit_only_is_found_out() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_processes(grant(libc::RLIMIT_NPROC, |asked| (200, asked)));
    set_max_processes(child.pid(), 5000)
        .expect_err("the soft limit is lower")
        .expect(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO);
    Ok(())
}

pub fn a_handler_that_grants_a_larger_core_is_found_out() -> Result<(), Skip> {
    let child = child()?;
    let _handled = handle_max_core_size(grant(libc::RLIMIT_CORE, |asked| both(asked + 1)));
    set_max_core_size(child.pid(), MIB)
        .expect_err("more was granted")
        .expect(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO);
    Ok(())
}

/// The message that brought this library about.
pub fn without_the_privilege_the_kernels_refusal_is_the_error() -> Result<(), Skip> {
    let child = Child::start(0)?;
    let _without = Without::cap_sys_resource();
    let failure = set_max_mem_lock(child.pid(), LIBVIRTS_UNLIMITED).expect_err("no privilege");
    failure.expect(VIR_INTERNAL_ERR_FAILED, Errno::EPERM);
    let expected = format!(
        "cannot limit locked memory of process {} to {LIBVIRTS_UNLIMITED}: \
         Operation not permitted",
        child.pid()
    );
    assert_eq!(failure.message, expected);
    assert_limit(&child, MEMLOCK, both(4096));
    Ok(())
}

/// As in a container whose daemon has no privilege, beside an application
/// that has it: the read-back has none either.
pub fn a_handler_with_the_privilege_serves_a_caller_without() -> Result<(), Skip> {
    let child = child()?;
    let without = Without::cap_sys_resource();
    let grant = grant(libc::RLIMIT_MEMLOCK, both);
    let _handled = handle_max_mem_lock(|pid, bytes: u64| without.in_spite(|| grant(pid, bytes)));
    set_max_mem_lock(child.pid(), 8 * MIB).unwrap();
    assert_limit(&child, MEMLOCK, both(8 * MIB));
    Ok(())
}

/// This thread acts without CAP_SYS_RESOURCE as long as this lives.
struct Without {
    before: Capabilities,
}

impl Without {
    fn cap_sys_resource() -> Without {
        const CAP_SYS_RESOURCE: u32 = 24;
        let before = Capabilities::get();
        let mut fewer = before;
        fewer.low.effective &= !(1 << CAP_SYS_RESOURCE);
        fewer.set();
        Without { before }
    }

    fn in_spite<R>(&self, work: impl FnOnce() -> R) -> R {
        let without = Capabilities::get();
        self.before.set();
        let result = work();
        without.set();
        result
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        self.before.set();
    }
}

/// A thread's capabilities, as capget() and capset() have them.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    low: CapabilitySets,
    high: CapabilitySets,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Capabilities {
    /// _LINUX_CAPABILITY_VERSION_3, and this thread.
    const HEADER: [u32; 2] = [0x2008_0522, 0];

    fn get() -> Capabilities {
        let (mut header, mut sets) = (Self::HEADER, Self::default());
        // SAFETY: a header and both sets, all of which the kernel may write.
        let got = unsafe { libc::syscall(libc::SYS_capget, &mut header, &mut sets) };
        assert_eq!(got, 0, "capget: {}", Errno::last());
        sets
    }

    fn set(&self) {
        let mut header = Self::HEADER;
        // SAFETY: a header, which the kernel may write, and both sets.
        let set = unsafe { libc::syscall(libc::SYS_capset, &mut header, self) };
        assert_eq!(set, 0, "capset: {}", Errno::last());
    }
}
