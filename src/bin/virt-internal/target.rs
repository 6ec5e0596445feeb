// SPDX-License-Identifier: LGPL-2.1-or-later
//! Processes of this command's own, on which operations are tried.
//!
//! A target is this program once more, with the hidden subcommand `target`. It
//! waits until its standard input ends, which is when its parent does.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;

use clap::Args;
use libc::pid_t;
use nix::errno::Errno;

/// The user of a target that is not ours.
const OTHER_UID: libc::uid_t = 65534;

/// The user of a target that is in a user namespace of its own. It is one that
/// hardly anybody has, and that containers have, too.
pub const GUEST_UID: libc::uid_t = 65533;

/// Threads beside the first.
const THREADS: usize = 2;

/// Whose process a target is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum User {
    Own,
    Other,
    /// Another one than `Other`, in a user namespace that is ours: what takes a
    /// capability there we may do. Without it where there can be none.
    Guest,
}

pub struct Target {
    child: Child,
    /// The ids of its threads, of which the first is the process's.
    pub tids: Vec<pid_t>,
}

impl Target {
    pub fn start(user: User) -> io::Result<Target> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("virt-internal").arg("target");
        match user {
            User::Own => {}
            User::Other => {
                command.arg(format!("--uid={OTHER_UID}"));
            }
            User::Guest => {
                command.arg(format!("--uid={GUEST_UID}"));
                command.arg("--user-namespace");
            }
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut target = Target {
            child: child.map_err(|error| cannot_start(&error.to_string()))?,
            tids: Vec::new(),
        };
        let mut line = String::new();
        if let Some(stdout) = &mut target.child.stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        target.tids = line
            .split_whitespace()
            .map(|tid| tid.parse().map_err(|_| cannot_start(line.trim())))
            .collect::<io::Result<_>>()?;
        match target.tids.len() {
            0 => Err(cannot_start("it ended at once")),
            _ => Ok(target),
        }
    }

    pub fn pid(&self) -> pid_t {
        self.tids[0]
    }

    /// Whether it is in another user namespace than this process.
    pub fn is_in_user_namespace(&self) -> io::Result<bool> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user"));
        Ok(namespace(&self.pid().to_string())? != namespace("self")?)
    }
}

fn cannot_start(why: &str) -> io::Error {
    io::Error::other(format!("no process to try it on: {why}"))
}

impl Drop for Target {
    fn drop(&mut self) {
        // The end of its input ends a process of another user too, which we
        // may not be allowed to kill.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Be a target
#[derive(Args)]
pub struct Arguments {
    /// Become that user
    #[arg(long)]
    uid: Option<libc::uid_t>,
    /// In a user namespace with nobody else, where there can be one
    #[arg(long, requires = "uid")]
    user_namespace: bool,
}

impl Arguments {
    pub fn run(&self) -> crate::Result {
        if let (Some(uid), true) = (self.uid, self.user_namespace)
            && let Err(error) = enter_user_namespace(uid)
        {
            return Ok((format!("no user namespace: {error}\n"), ExitCode::FAILURE));
        }
        if let Some(Err(error)) = self.uid.map(become_user) {
            let why = format!("cannot become another user: {}\n", error.desc());
            return Ok((why, ExitCode::FAILURE));
        }
        let (send, receive) = mpsc::channel();
        for _ in 0..THREADS {
            let send = send.clone();
            thread::Builder::new().spawn(move || {
                let _ = send.send(gettid());
                loop {
                    thread::park();
                }
            })?;
        }
        let mut tids = vec![gettid()];
        tids.extend(receive.iter().take(THREADS));
        let tids: Vec<String> = tids.iter().map(pid_t::to_string).collect();
        writeln!(io::stdout(), "{}", tids.join(" "))?;
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok((String::new(), ExitCode::SUCCESS))
    }
}

fn gettid() -> pid_t {
    // SAFETY: asks for a number.
    unsafe { libc::gettid() }
}

fn become_user(id: libc::uid_t) -> Result<(), Errno> {
    let check = |returned| Errno::result(returned).map(drop);
    // SAFETY: numbers only; no list of groups is read where there are none.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id))
    }
}

/// Enters a new user namespace that has one user, by the same number as outside.
/// Where the kernel makes none, everything stays as it is.
fn enter_user_namespace(id: libc::uid_t) -> io::Result<()> {
    let (mut is_there, mut entered) = io::pipe()?;
    // Only a process outside may give it a user that is not its maker.
    // SAFETY: there is no other thread, so that the child may do anything.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child == 0 {
        drop(entered);
        let written = match is_there.read(&mut [0]) {
            Ok(1) => write_maps(id),
            _ => Ok(()),
        };
        // SAFETY: ends the child; nothing of the parent's is flushed.
        unsafe {
            libc::_exit(written.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0))
        };
    }
    drop(is_there);
    // SAFETY: numbers only.
    let made = Errno::result(unsafe { libc::unshare(libc::CLONE_NEWUSER) });
    if made.is_ok() {
        entered.write_all(&[0])?;
    }
    drop(entered);
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    Errno::result(unsafe { libc::waitpid(child, &mut status, 0) })?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        errnum => Err(io::Error::from_raw_os_error(errnum)),
    }
}

/// Writes the maps of the parent's user namespace.
fn write_maps(id: libc::uid_t) -> io::Result<()> {
    let parent = std::os::unix::process::parent_id();
    ["uid_map", "gid_map"]
        .iter()
        .try_for_each(|map| fs::write(format!("/proc/{parent}/{map}"), format!("{id} {id} 1\n")))
}
