// SPDX-License-Identifier: LGPL-2.1-or-later
//! The CPUs of another user's threads.

use libc::{c_int, pid_t};
use nix::errno::Errno;

use crate::Skip;
use crate::cgroups::Tree;
use crate::child::Child;
use crate::library::*;

/// The CPUs of a thread in libvirt's map, which is the kernel's on this
/// processor.
type Map = [u8; 128];

fn get(tid: pid_t) -> Map {
    let mut map = [0; 128];
    // SAFETY: the kernel writes at most the map's length.
    let got = unsafe { libc::sched_getaffinity(tid, map.len(), map.as_mut_ptr().cast()) };
    assert_eq!(got, 0, "sched_getaffinity: {}", Errno::last());
    map
}

/// Sets them by the system call itself, as handlers do.
fn set(tid: pid_t, map: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the map has.
    let set = unsafe { libc::sched_setaffinity(tid, map.len(), map.as_ptr().cast()) };
    Errno::result(set).map(drop)
}

/// A handler's work.
fn set_by_handler(tid: pid_t, map: &[u8]) -> c_int {
    set(tid, map).map_or_else(|errnum| -(errnum as c_int), |()| VIR_INTERNAL_HANDLED)
}

fn cpus(map: &Map) -> impl Iterator<Item = usize> {
    (0..map.len() * 8).filter(|cpu| map[cpu / 8] >> (cpu % 8) & 1 != 0)
}

fn map_of(cpu: usize) -> Map {
    let mut map = [0; 128];
    map[cpu / 8] = 1 << (cpu % 8);
    map
}

/// A child with two threads, which this machine lets us pin; the map that it
/// has, and those of its first and last CPU.
fn child() -> Result<(Child, Map, Map, Map), Skip> {
    let child = Child::start(2)?;
    let all = get(child.pid());
    set(child.pid(), &all).map_err(|errnum| {
        Skip(format!(
            "CAP_SYS_NICE: sched_setaffinity() of another user's process says {errnum:?}"
        ))
    })?;
    if cpus(&all).count() < 2 {
        return Err(Skip("a second CPU".to_owned()));
    }
    let first = map_of(cpus(&all).next().expect("a CPU"));
    let last = map_of(cpus(&all).last().expect("a CPU"));
    Ok((child, all, first, last))
}

pub fn one_thread_is_pinned() -> Result<(), Skip> {
    let (child, all, first, last) = child()?;
    for map in [last, first, all] {
        set_affinity(child.pid(), child.tids[0], &map).unwrap();
        assert_eq!(get(child.tids[0]), map, "the pinned thread");
        assert_eq!(get(child.tids[1]), all, "another thread");
        assert_eq!(get(child.pid()), all, "the first thread");
    }
    Ok(())
}

pub fn a_handler_pins_one_thread() -> Result<(), Skip> {
    let (child, all, _, last) = child()?;
    let _handled = handle_affinity(|_, tid, cpumap, maplen| {
        // SAFETY: a map of that length, by the library's word.
        set_by_handler(tid, unsafe {
            std::slice::from_raw_parts(cpumap, maplen as usize)
        })
    });
    set_affinity(child.pid(), child.tids[0], &last).unwrap();
    assert_eq!(get(child.tids[0]), last, "the pinned thread");
    assert_eq!(get(child.tids[1]), all, "another thread");
    Ok(())
}

pub fn a_handler_that_pins_to_more_cpus_is_found_out() -> Result<(), Skip> {
    let (child, all, _, last) = child()?;
    let _handled = handle_affinity(|_, tid, _, _| set_by_handler(tid, &all));
    set_affinity(child.pid(), child.tids[0], &last)
        .expect_err("more CPUs than asked for")
        .expect(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO);
    Ok(())
}

/// A child of which one thread has only its last CPU, by a cpuset.
fn child_in_cpuset(tree: &Tree) -> Result<(Child, Map, Map, Map), Skip> {
    let (child, all, first, last) = child()?;
    let cpu = cpus(&last).next().expect("a CPU");
    tree.enable("cpuset")?;
    let group = tree.threaded("vcpu0");
    std::fs::write(group.join("cpuset.cpus"), cpu.to_string()).expect("a CPU for the cpuset");
    tree.add_process(child.pid());
    cgroup_add_threads(child.pid(), &group, &child.tids[..1])
        .0
        .unwrap();
    assert_eq!(
        get(child.tids[0]),
        last,
        "the cpuset narrows the moved thread"
    );
    assert_eq!(get(child.tids[1]), all, "and no other");
    Ok((child, all, first, last))
}

pub fn a_cpuset_may_narrow_what_was_asked_for() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let (child, all, _, last) = child_in_cpuset(&tree)?;
    set_affinity(child.pid(), child.tids[0], &all).unwrap();
    let _handled = handle_affinity(|_, tid, _, _| set_by_handler(tid, &all));
    set_affinity(child.pid(), child.tids[0], &all).unwrap();
    assert_eq!(get(child.tids[0]), last, "what the cpuset leaves");
    Ok(())
}

pub fn cpus_outside_the_cpuset_are_an_error() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let (child, _, first, last) = child_in_cpuset(&tree)?;
    set_affinity(child.pid(), child.tids[0], &first)
        .expect_err("the cpuset does not have that CPU")
        .expect(VIR_INTERNAL_ERR_FAILED, Errno::EINVAL);
    assert_eq!(get(child.tids[0]), last, "as it was");
    Ok(())
}
