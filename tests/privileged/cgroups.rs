// SPDX-License-Identifier: LGPL-2.1-or-later
//! Another user's threads, moved in cgroup v2.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use libc::{c_int, pid_t};
use nix::errno::Errno;

use crate::Skip;
use crate::child::Child;
use crate::library::*;

/// A cgroup of v2, and those that a test makes in it. They are removed with
/// this; whoever was in them must have ended.
pub struct Tree(PathBuf);

impl Tree {
    pub fn new() -> Result<Tree, Skip> {
        let parent = own_cgroup().ok_or_else(|| Skip("cgroup v2".to_owned()))?;
        let mut number = 0;
        loop {
            let name = format!("libvirt-internal-{}-{number}", std::process::id());
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Tree(path)),
                // One that was killed, and had the same pid, has left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => {
                    return Err(Skip(format!(
                        "a cgroup v2 to write to: {}: {error}",
                        path.display()
                    )));
                }
            }
        }
    }

    /// Makes a domain in it.
    pub fn domain(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Makes a threaded cgroup in it.
    pub fn threaded(&self, name: &str) -> PathBuf {
        let path = self.domain(name);
        fs::write(path.join("cgroup.type"), "threaded").expect("a cgroup can be threaded");
        path
    }

    /// Gives a controller to the cgroups in it.
    pub fn enable(&self, controller: &str) -> Result<(), Skip> {
        fs::write(
            self.0.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )
        .map_err(|_| Skip(format!("the {controller} controller in cgroup v2")))
    }

    pub fn add_process(&self, pid: pid_t) {
        add(&self.0.join("cgroup.procs"), pid).expect("a process can be moved");
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let groups = entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir());
        for group in groups.chain([self.0.clone()]) {
            if let Err(error) = remove(&group) {
                eprintln!("{} is left behind: {error}", group.display());
            }
        }
    }
}

/// Removes a cgroup. Some kernels take a moment to forget who was in it.
fn remove(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match fs::remove_dir(group) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Where our own cgroup of v2 is mounted.
fn own_cgroup() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mount = Path::new(mount.split(' ').nth(4)?);
    let path = cgroup_of(&fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted"))?;
    Some(mount.join(path.trim_start_matches('/')))
}

/// The line of v2 in a /proc/.../cgroup.
fn cgroup_of(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.to_owned())
}

/// Moves a process or a thread by writing to the file itself, as handlers do.
fn add(file: &Path, id: pid_t) -> Result<(), Errno> {
    fs::write(file, id.to_string())
        .map_err(|error| Errno::from_raw(error.raw_os_error().expect("an errno")))
}

#[track_caller]
fn assert_cgroup(child: &Child, tid: pid_t, expected: &Path) {
    let found = cgroup_of(&child.read_proc(tid, "cgroup")).expect("a cgroup of v2");
    // The mount need not show the whole path.
    assert!(
        expected.ends_with(found.trim_start_matches('/')),
        "thread {tid} is in {found}, expected it in {}",
        expected.display()
    );
}

/// A child with four threads in the tree.
fn child_in(tree: &Tree) -> Result<Child, Skip> {
    let child = Child::start(4)?;
    tree.add_process(child.pid());
    Ok(child)
}

/// A handler's work: moves `tids` one by one.
fn move_by_handler(group: &Path, tids: &[pid_t]) -> c_int {
    tids.iter()
        .try_for_each(|&tid| add(&group.join("cgroup.threads"), tid))
        .map_or_else(|errnum| -(errnum as c_int), |()| VIR_INTERNAL_HANDLED)
}

const GONE: c_int = -libc::ESRCH;

pub fn threads_move_among_threaded_cgroups() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let groups = [tree.threaded("vcpu0"), tree.threaded("vcpu1")];
    let child = child_in(&tree)?;
    let (moved, left) = child.tids.split_at(2);
    for group in &groups {
        let (answer, results) = cgroup_add_threads(child.pid(), group, moved);
        answer.unwrap();
        assert_eq!(results, [0, 0]);
        moved
            .iter()
            .for_each(|&tid| assert_cgroup(&child, tid, group));
        left.iter()
            .for_each(|&tid| assert_cgroup(&child, tid, &tree.0));
        assert_cgroup(&child, child.pid(), &tree.0);
    }
    // And back, as libvirt does with housekeeping threads.
    cgroup_add_threads(child.pid(), &tree.0, moved).0.unwrap();
    moved
        .iter()
        .for_each(|&tid| assert_cgroup(&child, tid, &tree.0));
    Ok(())
}

pub fn a_handler_moves_threads_among_threaded_cgroups() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let group = tree.threaded("vcpu0");
    let child = child_in(&tree)?;
    let (moved, left) = child.tids.split_at(2);
    let _handled =
        handle_cgroup_add_threads(|_, _, _, _, _, _, _, _, _| move_by_handler(&group, moved));
    let (answer, results) = cgroup_add_threads(child.pid(), &group, moved);
    answer.unwrap();
    assert_eq!(results, [0, 0]);
    moved
        .iter()
        .for_each(|&tid| assert_cgroup(&child, tid, &group));
    left.iter()
        .for_each(|&tid| assert_cgroup(&child, tid, &tree.0));
    Ok(())
}

pub fn a_handler_that_leaves_a_thread_behind_is_found_out() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let group = tree.threaded("vcpu0");
    let child = child_in(&tree)?;
    let _handled = handle_cgroup_add_threads(|_, _, _, _, _, _, _, _, _| {
        move_by_handler(&group, &child.tids[1..])
    });
    cgroup_add_threads(child.pid(), &group, &child.tids)
        .0
        .expect_err("one thread was left behind")
        .expect(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO);
    Ok(())
}

pub fn a_whole_process_moves_between_domains() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let group = tree.domain("vm");
    let child = child_in(&tree)?;
    let tids = child.all_tids();
    let (answer, results) = cgroup_add_threads(child.pid(), &group, &tids);
    answer.unwrap();
    assert_eq!(results, [0; 5]);
    tids.iter()
        .for_each(|&tid| assert_cgroup(&child, tid, &group));
    Ok(())
}

pub fn a_part_of_a_process_does_not_move_between_domains() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let group = tree.domain("vm");
    let child = child_in(&tree)?;
    cgroup_add_threads(child.pid(), &group, &child.tids[..2])
        .0
        .expect_err("only whole processes move")
        .expect(VIR_INTERNAL_ERR_FAILED, Errno::EOPNOTSUPP);
    child
        .all_tids()
        .iter()
        .for_each(|&tid| assert_cgroup(&child, tid, &tree.0));
    Ok(())
}

pub fn a_thread_that_has_exited_has_its_own_result() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let group = tree.threaded("vcpu0");
    let child = child_in(&tree)?;
    child.end_thread(child.tids[1]);
    let (answer, results) = cgroup_add_threads(child.pid(), &group, &child.tids[..3]);
    answer.unwrap();
    assert_eq!(results, [0, GONE, 0]);
    assert_cgroup(&child, child.tids[0], &group);
    assert_cgroup(&child, child.tids[2], &group);
    assert_cgroup(&child, child.tids[3], &tree.0);
    Ok(())
}

pub fn a_thread_that_exits_in_a_handler_has_its_own_result() -> Result<(), Skip> {
    let tree = Tree::new()?;
    let group = tree.threaded("vcpu0");
    let child = child_in(&tree)?;
    let _handled = handle_cgroup_add_threads(|_, _, _, _, _, _, _, _, _| {
        child.end_thread(child.tids[1]);
        move_by_handler(&group, &[child.tids[0], child.tids[2]])
    });
    let (answer, results) = cgroup_add_threads(child.pid(), &group, &child.tids[..3]);
    answer.unwrap();
    assert_eq!(results, [0, GONE, 0]);
    assert_cgroup(&child, child.tids[2], &group);
    Ok(())
}
