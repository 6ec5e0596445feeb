// SPDX-License-Identifier: LGPL-2.1-or-later
//! A process of another user, with threads that wait.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libc::{pid_t, rlimit};
use nix::errno::Errno;

use crate::Skip;

/// The first argument of this very program when it is to be such a process;
/// the second is the number of threads.
pub const ROLE: &str = "--child";

const NOBODY: u32 = 65534;

/// The limits that a child starts with, soft and hard.
pub const LOW: [(u32, u64); 4] = [
    (libc::RLIMIT_MEMLOCK, 4096),
    (libc::RLIMIT_NPROC, 200),
    (libc::RLIMIT_NOFILE, 64),
    (libc::RLIMIT_CORE, 0),
];

/// Such a process. It ends with this.
pub struct Child {
    pid: pid_t,
    process: RefCell<std::process::Child>,
    input: ChildStdin,
    /// Its threads but the first.
    pub tids: Vec<pid_t>,
}

impl Child {
    pub fn start(threads: usize) -> Result<Child, Skip> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args([ROLE, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .uid(NOBODY)
            .gid(NOBODY);
        // SAFETY: setrlimit() is async-signal-safe.
        unsafe { command.pre_exec(lower_limits) };
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(Skip(format!(
                    "CAP_SETUID, to start a process of user {NOBODY}"
                )));
            }
            Err(error) => panic!("a child of user {NOBODY} could not be started: {error}"),
        };
        let input = process.stdin.take().expect("a piped stdin");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a piped stdout"))
            .read_line(&mut line)
            .expect("the child tells its threads' ids");
        let tids: Vec<pid_t> = line
            .split_whitespace()
            .map(|tid| tid.parse().expect("a thread's id"))
            .collect();
        assert_eq!(tids.len(), threads, "the child's threads: {line:?}");
        Ok(Child {
            pid: process.id() as pid_t,
            process: RefCell::new(process),
            input,
            tids,
        })
    }

    pub fn pid(&self) -> pid_t {
        self.pid
    }

    /// The first thread, whose id is the process's, and the others.
    pub fn all_tids(&self) -> Vec<pid_t> {
        [&[self.pid()], &self.tids[..]].concat()
    }

    /// Lets one of `tids` exit, and waits until its id is free.
    pub fn end_thread(&self, tid: pid_t) {
        writeln!(&self.input, "{tid}").expect("the child reads");
        // SAFETY: signal 0 is not sent, it only asks.
        while unsafe { libc::syscall(libc::SYS_tgkill, self.pid(), tid, 0) } == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills the process and waits for its end, but does not reap it: until
    /// then it keeps its id.
    pub fn kill(&self) {
        self.process
            .borrow_mut()
            .kill()
            .expect("SIGKILL can be sent");
        // SAFETY: all zeros are a siginfo_t, and the kernel writes one.
        let waited = unsafe {
            let mut info = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, flags)
        };
        assert_eq!(waited, 0, "waitid: {}", Errno::last());
    }

    /// Reaps the killed process: its id is free.
    pub fn reap(&self) {
        self.process.borrow_mut().wait().expect("a child of ours");
    }

    /// What a file in /proc says about one of the threads.
    pub fn read_proc(&self, tid: pid_t, file: &str) -> String {
        let path = format!("/proc/{}/task/{tid}/{file}", self.pid());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Does nothing to one that was reaped, whose id may be another's.
        let process = self.process.get_mut();
        let _ = process.kill();
        let _ = process.wait();
    }
}

fn lower_limits() -> std::io::Result<()> {
    for (resource, value) in LOW {
        let limit = rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        // SAFETY: the kernel reads one rlimit.
        Errno::result(unsafe { libc::setrlimit(resource, &limit) })?;
    }
    Ok(())
}

/// What the child does: it tells its threads' ids, lets those exit that it
/// is told to, and ends with its input.
pub fn run(threads: usize) {
    let (exits, tids): (Vec<mpsc::Sender<()>>, Vec<pid_t>) =
        (0..threads).map(|_| start_thread()).unzip();
    let words: Vec<String> = tids.iter().map(pid_t::to_string).collect();
    println!("{}", words.join(" "));
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let thread = tids.iter().position(|tid| tid.to_string() == line);
        exits[thread.expect("the id of a thread")]
            .send(())
            .expect("a thread that waits");
    }
    std::process::exit(0);
}

fn start_thread() -> (mpsc::Sender<()>, pid_t) {
    let (exit, wait) = mpsc::channel();
    let (tell, tid) = mpsc::channel();
    thread::spawn(move || {
        // SAFETY: it only asks.
        tell.send(unsafe { libc::gettid() })
            .expect("who started it listens");
        wait.recv()
    });
    (exit, tid.recv().expect("the thread tells its id"))
}
