// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal delegate` as a process: its sockets, signals, files and what
//! it says.
#![cfg(feature = "command")]

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};
use serde_json::Value;
use virt_internal::capi::delegate::virInternalConnectDelegate;
use virt_internal::capi::process_set_max_mem_lock::virInternalProcessSetMaxMemLock;
use virt_internal::capi::types::_virConnect;

const COMMAND: &str = env!("CARGO_BIN_EXE_virt-internal");

/// How long anything may take. It decides about no test that passes.
const DEADLINE: Duration = Duration::from_secs(300);

/// A directory of a test's own, with a path that is short enough for sockets.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("vi-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                // One that was killed, and had the same pid, has left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made.expect("a directory");
                    return Directory(path);
                }
            }
        }
    }

    fn name(&self) -> &str {
        let name = self.0.file_name().and_then(|name| name.to_str());
        name.expect("a name in UTF-8")
    }

    fn path(&self, name: &str) -> String {
        let path = self.0.join(name);
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("a file can be written");
        path
    }

    /// A policy that lets this user's processes have so many bytes, and more.
    fn policy(&self, bytes: u64) -> String {
        self.write("policy.toml", &policy(bytes, ""))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn uid() -> u32 {
    // SAFETY: asks for a number.
    unsafe { libc::getuid() }
}

/// `peer` is more of what a peer must be.
fn policy(bytes: u64, peer: &str) -> String {
    let own = fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
    let hierarchy = match own.lines().find(|line| line.starts_with("0::")) {
        Some(_) => "v2".to_owned(),
        None => {
            let line = own.lines().next().expect("a cgroup");
            let controllers = line.split(':').nth(1).expect("a controller");
            controllers
                .split(',')
                .next()
                .expect("a controller")
                .to_owned()
        }
    };
    let uid = uid();
    format!(
        "version = 1\n\
         host.cgroup-hierarchy = \"{hierarchy}\"\n\
         [quota]\n\
         connections = 64\n\
         [[rule]]\n\
         name = \"all\"\n\
         peer = {{ uid = {uid}{peer} }}\n\
         target = {{ cgroup = \"/\", uid = {uid} }}\n\
         process-set-max-mem-lock = {{ max = {bytes} }}\n\
         process-set-max-processes = {{ max = 65536 }}\n\
         process-set-max-files = {{ max = 65536 }}\n\
         process-set-max-core-size = {{ max = \"unlimited\" }}\n\
         process-set-scheduler = {{ policies = [\"other\", \"batch\"] }}\n\
         process-set-affinity = {{ cpus = \"0-1023\" }}\n"
    )
}

/// Waits until there is something.
#[track_caller]
fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A delegate that runs, and what it says.
struct Delegate {
    child: Child,
    manager: UnixDatagram,
    stderr: Arc<Mutex<String>>,
}

impl Delegate {
    #[track_caller]
    fn start(directory: &Directory, arguments: &[&str]) -> Delegate {
        let mut command = Command::new(COMMAND);
        command.arg("delegate").args(arguments);
        Delegate::start_as(directory, &mut command)
    }

    /// Returns when it says that it is ready.
    #[track_caller]
    fn start_as(directory: &Directory, command: &mut Command) -> Delegate {
        let notify = directory.path("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).expect("a socket");
        command.env("NOTIFY_SOCKET", notify);
        Delegate::start_with(manager, command)
    }

    #[track_caller]
    fn start_with(manager: UnixDatagram, command: &mut Command) -> Delegate {
        let mut delegate = Delegate::spawn(manager, command);
        delegate.expect_said("READY=1");
        delegate
    }

    fn spawn(manager: UnixDatagram, command: &mut Command) -> Delegate {
        let time = Some(Duration::from_millis(100));
        manager.set_read_timeout(time).expect("a time can be set");
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the delegate starts");
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut pipe, text) = (child.stderr.take().expect("a pipe"), Arc::clone(&stderr));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                let read = String::from_utf8_lossy(&buffer[..length]);
                text.lock().expect("nobody panicked").push_str(&read);
            }
        });
        Delegate {
            child,
            manager,
            stderr,
        }
    }

    fn stderr(&self) -> String {
        self.stderr.lock().expect("nobody panicked").clone()
    }

    /// Waits for a text on standard error.
    #[track_caller]
    fn expect_stderr(&self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.stderr().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in\n{}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The next message to systemd that has that line.
    #[track_caller]
    fn expect_said(&mut self, line: &str) -> String {
        let end = Instant::now() + DEADLINE;
        let mut buffer = [0; 4096];
        loop {
            if let Ok(length) = self.manager.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.lines().any(|own| own == line) {
                    return text;
                }
            }
            let ended = self.child.try_wait().expect("it is a child");
            assert!(
                ended.is_none() && Instant::now() < end,
                "{ended:?} without {line:?}:\n{}",
                self.stderr()
            );
        }
    }

    fn signal(&self, signal: c_int) {
        // SAFETY: numbers only; the child was not waited for.
        let sent = unsafe { libc::kill(self.child.id() as pid_t, signal) };
        assert_eq!(sent, 0, "{}", io::Error::last_os_error());
    }

    #[track_caller]
    fn reload(&mut self) -> String {
        self.signal(libc::SIGHUP);
        let text = self.expect_said("RELOADING=1");
        assert!(text.contains("\nMONOTONIC_USEC="), "{text}");
        self.expect_said("READY=1")
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the delegate ends", || {
            child.try_wait().expect("it is a child")
        })
    }

    #[track_caller]
    fn stop(mut self) {
        self.signal(libc::SIGTERM);
        self.expect_said("STOPPING=1");
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{status}: {}", self.stderr());
    }
}

impl Drop for Delegate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that waits, and goes when this does.
struct Target(Child);

impl Target {
    fn start() -> Target {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn();
        Target(child.expect("cat starts"))
    }

    fn pid(&self) -> pid_t {
        self.0.id() as pid_t
    }

    /// An operation on it, by a process that knows of a delegate.
    fn call(&self, address: &str, operation: &str, arguments: &[&str]) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let output = Command::new(COMMAND)
                .env("LIBVIRT_INTERNAL_DELEGATE", address)
                .args(["call", operation, "--json", "--pid"])
                .arg(self.pid().to_string())
                .args(arguments)
                .output()
                .expect("the command starts");
            let report: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| panic!("no JSON ({error}): {output:?}"));
            // It waits for 2 s, in which a busy machine may not have come to
            // the delegate. Then nothing was sent.
            let is_late = report["error"]["code"] == "VIR_INTERNAL_ERR_TIMEOUT";
            if !is_late || Instant::now() > end {
                return report;
            }
        }
    }

    fn lock(&self, address: &str, bytes: &str) -> Value {
        self.call(address, "process-set-max-mem-lock", &["--bytes", bytes])
    }

    #[track_caller]
    fn expect_done(&self, address: &str, bytes: &str) {
        let report = self.lock(address, bytes);
        assert_eq!(report["outcome"], "done", "{report:#}");
        assert_eq!(report["as_asked"], true, "{report:#}");
    }

    #[track_caller]
    fn expect_error(&self, address: &str, bytes: &str, text: &str) {
        let report = self.lock(address, bytes);
        assert_eq!(report["outcome"], "failed", "{report:#}");
        let message = report["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(text), "no {text:?} in {report:#}");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(path: &str) -> Vec<Value> {
    fs::read_to_string(path)
        .expect("the audit file")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Whole output of a command that must end.
fn run(arguments: &[&str]) -> Output {
    Command::new(COMMAND)
        .arg("delegate")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the command starts")
}

#[track_caller]
fn expect_exit(arguments: &[&str], code: i32, text: &str) {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(
        stderr.contains(text),
        "{arguments:?}: no {text:?} in {stderr}"
    );
}

// --- audit

#[test]
fn each_operation_has_a_line_before_it_is_answered() {
    let directory = Directory::new();
    let (policy, audit) = (directory.policy(1 << 20), directory.path("audit"));
    let address = format!("unix:{}", directory.path("s"));
    let listen = format!("{address}=vm-1");
    let delegate = Delegate::start(
        &directory,
        &["--policy", &policy, "--audit", &audit, "--listen", &listen],
    );
    let target = Target::start();
    let mut expected = 0;
    for (operation, arguments, asked) in [
        (
            "process-set-max-mem-lock",
            &["--bytes", "65536"][..],
            "65536",
        ),
        ("process-set-max-processes", &["--processes", "100"], "100"),
        ("process-set-max-files", &["--files", "100"], "100"),
        ("process-set-max-core-size", &["--bytes", "0"], "0"),
        ("process-set-scheduler", &["--policy", "batch"], "BATCH"),
        ("process-set-affinity", &["--cpus", "0"], "0"),
    ] {
        let report = target.call(&address, operation, arguments);
        assert_eq!(report["outcome"], "done", "{report:#}");
        // Answered: its line is there.
        let lines = lines(&audit);
        expected += 1;
        assert_eq!(lines.len(), expected, "{lines:#?}");
        let line = &lines[expected - 1];
        let text = line.to_string();
        assert_eq!(line["event"], "operation", "{text}");
        assert_eq!(line["operation"], operation, "{text}");
        assert_eq!(line["outcome"], "handled", "{text}");
        assert_eq!(line["rule"], "all", "{text}");
        assert_eq!(line["proof"], "pidfd", "{text}");
        assert_eq!(line["peer"]["uid"], uid(), "{text}");
        assert_eq!(line["peer"]["label"], "vm-1", "{text}");
        assert!(line["peer"]["pid"].is_u64(), "{text}");
        assert!(line["peer"]["gid"].is_u64(), "{text}");
        assert!(line["peer"]["cgroup"].is_string(), "{text}");
        assert_eq!(line["target"]["pid"], target.pid(), "{text}");
        assert_eq!(line["target"]["uid"], uid(), "{text}");
        assert!(line["target"]["cgroup"].is_string(), "{text}");
        assert!(line["asked"].to_string().contains(asked), "{text}");
        assert!(!line["before"].is_null(), "{text}");
        assert!(!line["after"].is_null(), "{text}");
        assert!(line["microseconds"].is_u64(), "{text}");
        assert!(
            line["errno"].is_null() && line["reason"].is_null(),
            "{text}"
        );
        let request = line["request"].as_str().expect("a request id");
        assert!(request.starts_with("0x"), "{text}");
        let time = line["time"].as_str().expect("a time");
        assert!(time.len() == 27 && time.ends_with('Z'), "{text}");
    }
    target.expect_error(&address, "1048577", "the delegate refused to limit");
    let lines = lines(&audit);
    let refused = lines.last().expect("a line");
    assert_eq!(refused["outcome"], "refused", "{refused}");
    assert_eq!(refused["errno"], libc::EPERM, "{refused}");
    assert!(refused["rule"].is_null(), "{refused}");
    let reason = refused["reason"].as_str().expect("a reason");
    assert!(reason.contains("rule \"all\""), "{refused}");
    delegate.stop();
}

fn connect(path: &str) -> OwnedFd {
    // SAFETY: all zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as _;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: a new descriptor, an address of that length.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        let socket = std::os::fd::FromRawFd::from_raw_fd(socket);
        let connected = libc::connect(
            AsRawFd::as_raw_fd(&socket),
            (&raw const address).cast(),
            length,
        );
        assert_eq!(connected, 0, "{path}: {}", io::Error::last_os_error());
        socket
    }
}

#[test]
fn connections_that_are_malformed_or_refused_have_lines() {
    let directory = Directory::new();
    let audit = directory.path("audit");
    let policy = policy(4096, "").replace("connections = 64", "connections = 1");
    let policy = directory.write("policy.toml", &policy);
    let socket = directory.path("s");
    let listen = format!("unix:{socket}=vm \"1\"");
    let delegate = Delegate::start(
        &directory,
        &["--policy", &policy, "--audit", &audit, "--listen", &listen],
    );
    let malformed = connect(&socket);
    // SAFETY: bytes.
    let sent = unsafe { libc::send(malformed.as_raw_fd(), b"hello?".as_ptr().cast(), 6, 0) };
    assert_eq!(sent, 6, "{}", io::Error::last_os_error());
    let line = until("a line of a malformed message", || lines(&audit).pop());
    assert_eq!(line["event"], "connection", "{line}");
    assert_eq!(line["outcome"], "malformed", "{line}");
    assert_eq!(line["peer"]["pid"], std::process::id(), "{line}");
    assert_eq!(line["peer"]["label"], "vm \"1\"", "{line}");
    assert!(line["reason"].is_string(), "{line}");
    drop(malformed);
    // The first one of these fills the quota, when it is no longer filled by
    // the one before.
    let mut open = Vec::new();
    let line = until("a line of a refused connection", || {
        open.push(connect(&socket));
        let lines = lines(&audit);
        lines.into_iter().find(|line| line["outcome"] == "refused")
    });
    assert_eq!(line["event"], "connection", "{line}");
    assert_eq!(line["peer"]["uid"], uid(), "{line}");
    let reason = "the quota of 1 connections at a time is used up";
    assert_eq!(line["reason"], reason, "{line}");
    delegate.stop();
}

#[test]
fn whoever_connects_in_a_loop_does_not_fill_the_disk() {
    let directory = Directory::new();
    let audit = directory.path("audit");
    let policy = policy(4096, "").replace("connections = 64", "connections = 1");
    let policy = directory.write("policy.toml", &policy);
    let (socket, metrics) = (directory.path("s"), directory.path("m"));
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--audit",
            &audit,
            "--listen",
            &format!("unix:{socket}"),
            "--metrics",
            &format!("unix:{metrics}"),
        ],
    );
    let start = Instant::now();
    let open: Vec<OwnedFd> = (0..300).map(|_| connect(&socket)).collect();
    until("all are served or refused", || {
        let served = metric(&metrics, "virt_internal_connections_total");
        let refused = metric(&metrics, "virt_internal_connections_refused_total");
        (served + refused == 300.0).then_some(())
    });
    // Ten in each second that has begun.
    let most = 10 * (start.elapsed().as_secs() as usize + 2);
    let written = lines(&audit).len();
    assert!(
        (1..=most).contains(&written),
        "{written} lines, and some 299 connections were refused"
    );
    drop(open);
    delegate.stop();
}

/// A message of the protocol.
fn message(operation: u32, version: u32, request: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"VIRd".to_vec();
    for word in [1, operation, version, body.len() as u32, 0] {
        bytes.extend_from_slice(&u32::to_ne_bytes(word));
    }
    bytes.extend_from_slice(&request.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Sends a message; what is answered.
fn exchange(socket: &OwnedFd, message: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 33_000];
    // SAFETY: buffers of those lengths.
    let length = unsafe {
        let socket = socket.as_raw_fd();
        let sent = libc::send(socket, message.as_ptr().cast(), message.len(), 0);
        assert_eq!(
            sent,
            message.len() as isize,
            "{}",
            io::Error::last_os_error()
        );
        libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    assert!(length > 0, "no answer: {}", io::Error::last_os_error());
    answer.truncate(length as usize);
    answer
}

#[test]
fn requests_that_the_delegate_does_not_have_are_counted_and_have_lines() {
    let directory = Directory::new();
    let (policy, audit) = (directory.policy(4096), directory.path("audit"));
    let (socket, metrics) = (directory.path("s"), directory.path("m"));
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--audit",
            &audit,
            "--listen",
            &format!("unix:{socket}=vm-1"),
            "--metrics",
            &format!("unix:{metrics}"),
        ],
    );
    let unsupported = || metric(&metrics, "virt_internal_unsupported_total");
    assert_eq!(unsupported(), 0.0, "before any");
    let peer = connect(&socket);
    exchange(&peer, &message(0, 0, 0, &[0; 8]));
    let version = "the request is of version 9 of virInternalProcessSetScheduler, \
                   this delegate has version 1";
    let cases = [
        ((8, 1), 1, "this delegate does not have operation 8"),
        ((5, 9), 3, version),
    ];
    for (number, ((operation, version), verdict, reason)) in (1..).zip(cases) {
        let answer = exchange(&peer, &message(operation, version, number, b"whatever"));
        assert_eq!(answer[32], verdict, "the verdict on {operation}");
        // Answered: its line is there.
        let lines = lines(&audit);
        assert_eq!(lines.len() as u64, number, "{lines:#?}");
        let line = lines.last().expect("a line");
        assert_eq!(line["event"], "connection", "{line}");
        assert_eq!(line["outcome"], "unsupported", "{line}");
        assert_eq!(line["reason"], reason, "{line}");
        assert_eq!(line["peer"]["pid"], std::process::id(), "{line}");
        assert_eq!(line["peer"]["label"], "vm-1", "{line}");
        assert_eq!(unsupported(), number as f64, "after {operation}");
    }
    let start = Instant::now();
    for number in 3..=300 {
        exchange(&peer, &message(8, 1, number, &[]));
    }
    assert_eq!(unsupported(), 300.0, "all are counted");
    // Ten in each second that has begun.
    let most = 10 * (start.elapsed().as_secs() as usize + 2);
    let lines = lines(&audit);
    assert!((3..=most).contains(&lines.len()), "{} lines", lines.len());
    let malformed = metric(&metrics, "virt_internal_malformed_total");
    assert_eq!(malformed, 0.0, "they end no connection");
    delegate.stop();
}

/// A child that shares the memory and descriptors' numbers of this process, as
/// that of vfork() does: it asks for a limit, and this thread waits.
fn ask_in_vforked_child(key: usize, pid: pid_t, bytes: u64) -> c_int {
    type Arguments = (usize, pid_t, u64);
    extern "C" fn child(arguments: *mut libc::c_void) -> c_int {
        // SAFETY: the parent's, which waits; a connection is never followed.
        unsafe {
            let (key, pid, bytes) = *arguments.cast::<Arguments>();
            virInternalProcessSetMaxMemLock(key as *mut _virConnect, pid, bytes, 1 << 30)
        }
    }
    let mut stack = vec![0_u128; 16 * 1024];
    let mut arguments: Arguments = (key, pid, bytes);
    let mut status = 0;
    // SAFETY: a stack and arguments that live until the child has ended.
    unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr().add(stack.len());
        let child = libc::clone(child, top.cast(), flags, (&raw mut arguments).cast());
        assert!(child > 0, "{}", io::Error::last_os_error());
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
    }
    assert!(libc::WIFEXITED(status), "status {status:#x}");
    libc::WEXITSTATUS(status)
}

#[test]
fn a_vforked_child_leaves_its_parent_the_process_of_its_own_last_request() {
    let directory = Directory::new();
    let policy = directory.policy(1 << 20);
    let address = format!("unix:{}", directory.path("s"));
    let delegate = Delegate::start(&directory, &["--policy", &policy, "--listen", &address]);
    const KEY: usize = 7;
    let text = CString::new(address).expect("no NUL");
    // SAFETY: a C string; a connection is never followed.
    let connected =
        unsafe { virInternalConnectDelegate(KEY as *mut _virConnect, 1, text.as_ptr(), 60_000, 0) };
    assert_eq!(connected, 0, "a delegate can be connected");
    let (one, two) = (Target::start(), Target::start());
    let ask = |target: &Target, bytes| {
        // SAFETY: a connection is never followed.
        unsafe {
            let conn = KEY as *mut _virConnect;
            virInternalProcessSetMaxMemLock(conn, target.pid(), bytes, 1 << 30)
        }
    };
    let limit = |target: &Target| {
        // SAFETY: a limit to write.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            let none = std::ptr::null();
            let got = libc::prlimit(target.pid(), libc::RLIMIT_MEMLOCK, none, &mut limit);
            assert_eq!(got, 0, "{}", io::Error::last_os_error());
            limit.rlim_max
        }
    };
    // Hard limits that only go down, which anybody may do.
    for bytes in (1..=8).rev().map(|step| step * 4096) {
        assert_eq!(ask(&one, bytes + 2), 0, "the first");
        assert_eq!(limit(&one), bytes + 2);
        let asked = ask_in_vforked_child(KEY, two.pid(), bytes + 1);
        assert_eq!(asked, 0, "the child's");
        assert_eq!((limit(&one), limit(&two)), (bytes + 2, bytes + 1));
        assert_eq!(ask(&one, bytes), 0, "the same one again");
        assert_eq!((limit(&one), limit(&two)), (bytes, bytes + 1));
    }
    delegate.stop();
}

#[test]
fn hup_opens_the_audit_file_anew() {
    let directory = Directory::new();
    let (policy, audit) = (directory.policy(1 << 20), directory.path("audit"));
    let address = format!("unix:{}", directory.path("s"));
    let mut delegate = Delegate::start(
        &directory,
        &["--policy", &policy, "--audit", &audit, "--listen", &address],
    );
    let target = Target::start();
    target.expect_done(&address, "65536");
    let rotated = directory.path("audit.1");
    fs::rename(&audit, &rotated).expect("the file can be renamed");
    target.expect_done(&address, "32768");
    assert_eq!(lines(&rotated).len(), 2, "before SIGHUP it is the old file");
    delegate.reload();
    target.expect_done(&address, "16384");
    assert_eq!(lines(&rotated).len(), 2, "after SIGHUP it is the new file");
    assert_eq!(lines(&audit).len(), 1, "after SIGHUP it is the new file");
    // Where it cannot be opened, lines go on to where they went.
    fs::rename(&audit, directory.path("audit.2")).expect("the file can be renamed");
    fs::create_dir(&audit).expect("a directory");
    let said = delegate.reload();
    assert!(said.contains("cannot open the audit file"), "{said}");
    target.expect_done(&address, "8192");
    assert_eq!(lines(&directory.path("audit.2")).len(), 2);
    delegate.stop();
}

#[test]
fn a_line_that_cannot_be_written_is_reported_and_stops_nothing() {
    let directory = Directory::new();
    let (policy, metrics) = (directory.policy(1 << 20), directory.path("m"));
    let address = format!("unix:{}", directory.path("s"));
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--audit",
            "/dev/full",
            "--listen",
            &address,
            "--metrics",
            &format!("unix:{metrics}"),
        ],
    );
    let target = Target::start();
    for bytes in ["65536", "32768", "16384"] {
        target.expect_done(&address, bytes);
    }
    delegate.expect_stderr("audit: 1 lines could not be written since it was opened: No space");
    assert_eq!(metric(&metrics, "virt_internal_audit_lost_total"), 3.0);
    delegate.stop();
}

#[test]
fn standard_output_can_have_the_lines() {
    let directory = Directory::new();
    let policy = directory.policy(1 << 20);
    let address = format!("unix:{}", directory.path("s"));
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let mut command = Command::new(COMMAND);
    command.args([
        "delegate", "--audit", "-", "--policy", &policy, "--listen", &address,
    ]);
    let delegate = Delegate::start_as(&directory, command.stdout(writer));
    drop(command);
    Target::start().expect_done(&address, "65536");
    delegate.stop();
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the lines");
    let line: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(line["outcome"], "handled", "{text}");
}

#[test]
fn the_journal_gets_fields() {
    let directory = Directory::new();
    let policy = directory.policy(4096);
    let address = format!("unix:{}", directory.path("s"));
    let socket = directory.path("journal");
    let journal = UnixDatagram::bind(&socket).expect("a socket");
    journal
        .set_read_timeout(Some(DEADLINE))
        .expect("a time can be set");
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--audit",
            "journald",
            "--journal-socket",
            &socket,
            "--listen",
            &format!("{address}=vm-1"),
        ],
    );
    let target = Target::start();
    target.expect_error(&address, "4097", "refused");
    let mut buffer = [0; 65536];
    let length = journal.recv(&mut buffer).expect("an entry");
    let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let field = |name: &str| {
        let line = entry
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name} in {entry}"))
    };
    let message = field("MESSAGE");
    let start = "process-set-max-mem-lock for process ";
    assert!(message.starts_with(start), "{message}");
    let middle = format!(
        "of user {} at vm-1 on process {}: refused: ",
        uid(),
        target.pid()
    );
    assert!(message.contains(&middle), "{message}");
    assert_eq!(field("PRIORITY"), "4");
    assert_eq!(field("SYSLOG_IDENTIFIER"), "virt-internal-delegate");
    assert_eq!(field("VIRT_INTERNAL_OPERATION"), "process-set-max-mem-lock");
    assert_eq!(field("VIRT_INTERNAL_OUTCOME"), "refused");
    assert_eq!(field("VIRT_INTERNAL_LABEL"), "vm-1");
    assert_eq!(field("VIRT_INTERNAL_PEER_UID"), uid().to_string());
    assert_eq!(field("VIRT_INTERNAL_TARGET_PID"), target.pid().to_string());
    assert_eq!(field("ERRNO"), libc::EPERM.to_string());
    let json: Value = serde_json::from_str(field("VIRT_INTERNAL_JSON")).expect("JSON");
    assert_eq!(json["outcome"], "refused", "{json}");
    delegate.stop();
}

// --- metrics

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn ask(mut stream: impl Stream, request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn scrape(path: &str) -> String {
    let stream = UnixStream::connect(path).expect("the metrics' socket");
    ask(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[track_caller]
fn metric(path: &str, name: &str) -> f64 {
    let text = scrape(path);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    value.parse().expect("a number")
}

#[test]
fn counters_can_be_had_over_a_unix_socket() {
    let directory = Directory::new();
    let (policy, metrics) = (directory.policy(65536), directory.path("m"));
    let address = format!("unix:{}", directory.path("s"));
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--listen",
            &address,
            "--metrics",
            &format!("unix:{metrics}"),
        ],
    );
    let target = Target::start();
    target.expect_done(&address, "65536");
    target.expect_error(&address, "65537", "refused");
    target.expect_error(&address, "65538", "refused");
    let operation = "operation=\"process-set-max-mem-lock\"";
    for (name, value) in [
        (
            format!("virt_internal_operations_total{{{operation},outcome=\"handled\"}}"),
            1.0,
        ),
        (
            format!("virt_internal_operations_total{{{operation},outcome=\"refused\"}}"),
            2.0,
        ),
        (
            format!("virt_internal_operation_duration_seconds_count{{{operation}}}"),
            3.0,
        ),
        ("virt_internal_connections_total".into(), 3.0),
        ("virt_internal_listeners".into(), 1.0),
        ("virt_internal_reloads_total{result=\"bad\"}".into(), 0.0),
    ] {
        assert_eq!(metric(&metrics, &name), value, "{name}");
    }
    let text = scrape(&metrics);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}\r\n", body.len())),
        "{head}"
    );
    for line in body.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("virt_internal_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
        ("GET /metrics?x=y HTTP/1.0\r\n\r\n", "200"),
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405",
        ),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "405"),
        ("rubbish\r\n\r\n", "400"),
    ] {
        let stream = UnixStream::connect(&metrics).expect("the metrics' socket");
        let answer = ask(stream, request);
        let start = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&start), "{request:?}: {answer}");
    }
    let stream = UnixStream::connect(&metrics).expect("the metrics' socket");
    let answer = ask(stream, &"x".repeat(8193));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    delegate.stop();
    assert!(!Path::new(&metrics).exists(), "the socket is removed");
}

#[test]
fn counters_can_be_had_over_tcp_while_others_are_silent() {
    let directory = Directory::new();
    let policy = directory.policy(65536);
    let address = format!("unix:{}", directory.path("s"));
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--listen",
            &address,
            "--metrics",
            "127.0.0.1:0",
        ],
    );
    delegate.expect_stderr("/metrics\n");
    let text = delegate.stderr();
    let port = text
        .split("http://")
        .nth(1)
        .and_then(|text| text.split('/').next());
    let port = port.expect("it says where the metrics are");
    let connect = || TcpStream::connect(port).expect("the metrics' port");
    // More than it serves at a time; one has said half of what it wants, one
    // does not read its answer.
    let mut silent: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
    let _ = silent[99].write_all(b"GET /met");
    let _ = silent[98].write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
    let answer = ask(connect(), "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // They are not kept for ever.
    let mut rest = Vec::new();
    let _ = silent[99].set_read_timeout(Some(DEADLINE));
    let ended = silent[99].read_to_end(&mut rest);
    let is_late = ended.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    assert!(!is_late, "a silent connection is still open");
    delegate.stop();
}

#[test]
fn counters_can_be_had_in_a_file() {
    let directory = Directory::new();
    let (policy, file) = (directory.policy(65536), directory.path("x.prom"));
    let address = format!("unix:{}", directory.path("s"));
    let delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &policy,
            "--listen",
            &address,
            "--metrics",
            &format!("file:{file}"),
        ],
    );
    let handled = "virt_internal_operations_total{operation=\"process-set-max-mem-lock\",\
                   outcome=\"handled\"} ";
    let has = |count: &str| {
        let text = fs::read_to_string(&file).expect("the file is there");
        text.contains(&format!("{handled}{count}\n"))
    };
    assert!(has("0"), "it is written at the start");
    Target::start().expect_done(&address, "65536");
    delegate.stop();
    assert!(has("1"), "it is written at the end");
    let left = fs::read_dir(&directory.0).expect("the directory");
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    let new = left
        .iter()
        .any(|name| name.to_string_lossy().starts_with("x.prom."));
    assert!(!new, "only the file itself is left: {left:?}");
}

// --- reload

#[test]
fn hup_takes_no_policy_that_means_another_hierarchy_of_cgroups() {
    let directory = Directory::new();
    let path = directory.policy(65536);
    let address = format!("unix:{}", directory.path("s"));
    let mut delegate = Delegate::start(&directory, &["--policy", &path, "--listen", &address]);
    let other = policy(4096, "").replace("cgroup-hierarchy = \"", "cgroup-hierarchy = \"name=");
    directory.write("policy.toml", &other.replace("name=name=", ""));
    let said = delegate.reload();
    assert!(said.contains("takes a restart"), "{said:?}");
    let target = Target::start();
    target.expect_done(&address, "65536");
    delegate.stop();
}

#[test]
fn hup_reads_the_policy_again_and_a_broken_one_changes_nothing() {
    let directory = Directory::new();
    let (path, metrics) = (directory.policy(65536), directory.path("m"));
    let address = format!("unix:{}", directory.path("s"));
    let mut delegate = Delegate::start(
        &directory,
        &[
            "--policy",
            &path,
            "--listen",
            &address,
            "--metrics",
            &format!("unix:{metrics}"),
        ],
    );
    let target = Target::start();
    target.expect_done(&address, "65536");
    directory.write("policy.toml", &policy(4096, ""));
    delegate.reload();
    target.expect_error(&address, "65536", "the delegate refused");
    target.expect_done(&address, "4096");
    let broken = format!("{}colour = 3\n", policy(65536, ""));
    let line = broken.lines().count();
    directory.write("policy.toml", &broken);
    let said = delegate.reload();
    let place = format!("{path}:{line}:1: ");
    assert!(said.contains(&place), "no {place:?} in {said:?}");
    delegate.expect_stderr(&place);
    delegate.expect_stderr(": the old policy stays");
    target.expect_error(&address, "65536", "the delegate refused");
    fs::remove_file(&path).expect("the policy can be removed");
    delegate.reload();
    target.expect_done(&address, "4096");
    assert_eq!(
        metric(&metrics, "virt_internal_reloads_total{result=\"good\"}"),
        1.0
    );
    assert_eq!(
        metric(&metrics, "virt_internal_reloads_total{result=\"bad\"}"),
        2.0
    );
    delegate.stop();
}

#[test]
fn listeners_come_and_go_and_labels_tell_them_apart() {
    let directory = Directory::new();
    let only = ", label = \"vm-1\"";
    let path = directory.write("policy.toml", &policy(65536, only));
    let (one, two) = (directory.path("1"), directory.path("2"));
    let file = |text: String| directory.write("listeners.toml", &text);
    let listener = |path: &str, label: &str| {
        format!("[[listener]]\naddress = \"unix:{path}\"\nlabel = \"{label}\"\n")
    };
    let listeners = file(String::new());
    let mut delegate = Delegate::start(&directory, &["--policy", &path, "--listeners", &listeners]);
    let target = Target::start();
    let (first, second) = (format!("unix:{one}"), format!("unix:{two}"));
    assert!(!Path::new(&one).exists(), "a file of none is right");
    file(listener(&one, "vm-1") + &listener(&two, "vm-2"));
    delegate.reload();
    target.expect_done(&first, "65536");
    target.expect_error(&second, "65536", "no rule names uid");
    // Another label at the same address: that ends its connections. The other
    // one ends.
    let held = connect(&one);
    file(listener(&one, "vm-3"));
    delegate.reload();
    target.expect_error(&first, "65536", "no rule names uid");
    assert!(!Path::new(&two).exists(), "its socket is removed");
    target.expect_error(&second, "65536", "cannot be reached");
    // SAFETY: a byte to write.
    let read = unsafe { libc::recv(held.as_raw_fd(), [0_u8; 512].as_mut_ptr().cast(), 512, 0) };
    assert!(read <= 0, "its connections end");
    // A broken file changes nothing.
    file(listener(&one, "vm-1") + "[[listener]]\nadress = \"unix:/x\"\n");
    let said = delegate.reload();
    let place = format!("{listeners}:5: ");
    assert!(said.contains(&place), "no {place:?} in {said:?}");
    delegate.expect_stderr(": the old listeners stay");
    target.expect_error(&first, "65536", "no rule names uid");
    // One that cannot be had leaves the others alone, and is tried again.
    let far = directory.path("none/s");
    file(listener(&one, "vm-1") + &listener(&far, "vm-1"));
    let said = delegate.reload();
    assert!(said.contains("make "), "{said}");
    target.expect_done(&first, "65536");
    fs::create_dir(directory.path("none")).expect("a directory");
    delegate.reload();
    target.expect_done(&format!("unix:{far}"), "65536");
    delegate.stop();
    assert!(!Path::new(&one).exists(), "sockets are removed at the end");
}

// --- systemd

/// Runs a delegate with these as its descriptors from 3 on.
fn with_sockets(sockets: &[OwnedFd], names: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "export LISTEN_PID=$$; exec \"$0\" delegate \"$@\"",
            COMMAND,
        ])
        .args(arguments)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names);
    let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: only system calls on numbers.
    unsafe {
        command.pre_exec(move || {
            // First out of the way of each other.
            let mut above = [0; 8];
            for (above, fd) in above.iter_mut().zip(&numbers) {
                *above = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 100);
            }
            for (to, above) in (3..).zip(&above[..numbers.len()]) {
                if libc::dup2(*above, to) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command
}

fn listening(path: &str, kind: c_int) -> OwnedFd {
    // SAFETY: all zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as _;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: a new descriptor, an address of that length.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        let bound = libc::bind(socket, (&raw const address).cast(), length);
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        assert_eq!(
            libc::listen(socket, 16),
            0,
            "{}",
            io::Error::last_os_error()
        );
        std::os::fd::FromRawFd::from_raw_fd(socket)
    }
}

#[test]
fn sockets_that_systemd_passes_are_taken_over() {
    let directory = Directory::new();
    let path = directory.write("policy.toml", &policy(65536, ", label = \"vm-1\""));
    let names = ["1", "2", "3"].map(|name| directory.path(name));
    let sockets = names
        .each_ref()
        .map(|path| listening(path, libc::SOCK_SEQPACKET));
    let fdnames = "vm-1:virt-internal-delegate.socket:unknown";
    let delegate = Delegate::start_as(
        &directory,
        &mut with_sockets(&sockets, fdnames, &["--policy", &path]),
    );
    let target = Target::start();
    let addresses = names.each_ref().map(|path| format!("unix:{path}"));
    target.expect_done(&addresses[0], "65536");
    target.expect_error(&addresses[1], "65536", "no rule names uid");
    target.expect_error(&addresses[2], "65536", "no rule names uid");
    for line in [
        format!(
            "listening on unix:{} (label vm-1), from systemd\n",
            names[0]
        ),
        format!("listening on unix:{} (no label), from systemd\n", names[1]),
    ] {
        delegate.expect_stderr(&line);
    }
    delegate.stop();
    // They are systemd's: the next one takes them over.
    assert!(Path::new(&names[0]).exists(), "they are not removed");
    let delegate = Delegate::start_as(
        &directory,
        &mut with_sockets(&sockets, fdnames, &["--policy", &path]),
    );
    target.expect_done(&addresses[0], "32768");
    delegate.stop();
}

/// As systemd does with `PassCredentials=`.
#[test]
fn a_socket_that_passes_credentials_is_served_as_any_other() {
    let directory = Directory::new();
    let policy = directory.policy(65536);
    let path = directory.path("s");
    let socket = listening(&path, libc::SOCK_SEQPACKET);
    let yes: c_int = 1;
    let length = size_of::<c_int>() as libc::socklen_t;
    for option in [libc::SO_PASSCRED, libc::SO_TIMESTAMP] {
        // SAFETY: an int of that length.
        let set = unsafe {
            let fd = socket.as_raw_fd();
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                option,
                (&raw const yes).cast(),
                length,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
    let sockets = [socket];
    let mut command = with_sockets(&sockets, "", &["--policy", &policy]);
    let delegate = Delegate::start_as(&directory, &mut command);
    let target = Target::start();
    target.expect_done(&format!("unix:{path}"), "65536");
    delegate.stop();
}

#[test]
fn a_socket_of_another_kind_is_an_error_that_says_what_to_write() {
    let directory = Directory::new();
    let path = directory.policy(4096);
    let sockets = [listening(&directory.path("s"), libc::SOCK_STREAM)];
    let mut command = with_sockets(&sockets, "", &["--policy", &path]);
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("write ListenSequentialPacket="), "{stderr}");
}

#[test]
fn sockets_that_are_meant_for_another_process_are_left_alone() {
    let directory = Directory::new();
    let path = directory.policy(4096);
    let mut command = Command::new(COMMAND);
    command.args(["delegate", "--policy", &path]);
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn an_abstract_notify_socket_will_do() {
    let directory = Directory::new();
    let path = directory.policy(4096);
    let name = format!("virt-internal-{}", directory.name());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let manager = UnixDatagram::bind_addr(&address).expect("a socket");
    let mut command = Command::new(COMMAND);
    command
        .args(["delegate", "--policy", &path, "--listen"])
        .arg(format!("unix:{}", directory.path("s")))
        .env("NOTIFY_SOCKET", format!("@{name}"));
    Delegate::start_with(manager, &mut command).stop();
}

#[test]
fn the_watchdog_hears_of_it_as_often_as_it_wants() {
    let directory = Directory::new();
    let path = directory.policy(4096);
    let mut command = Command::new(COMMAND);
    command
        .args(["delegate", "--policy", &path, "--listen"])
        .arg(format!("unix:{}", directory.path("s")))
        .env("WATCHDOG_USEC", "20000");
    let mut delegate = Delegate::start_as(&directory, &mut command);
    for _ in 0..10 {
        delegate.expect_said("WATCHDOG=1");
    }
    delegate.stop();
    // It was meant for another process.
    command.env("WATCHDOG_PID", "1");
    let delegate = Delegate::start_as(&directory, &mut command);
    let mut buffer = [0; 512];
    let heard = delegate.manager.recv(&mut buffer);
    assert!(heard.is_err(), "{}", String::from_utf8_lossy(&buffer));
    delegate.stop();
}

// --- the end

/// A delegate whose audit lines nobody reads, with so many requests that are
/// done, and wait for their lines before they are answered.
struct InFlight {
    delegate: Delegate,
    callers: Vec<thread::JoinHandle<c_int>>,
    _full: (io::PipeReader, Vec<Target>),
}

impl InFlight {
    /// Each line is waited for 200 ms, one after the other.
    fn start(directory: &Directory, requests: usize) -> InFlight {
        let (policy, metrics) = (directory.policy(1 << 20), directory.path("m"));
        let address = format!("unix:{}", directory.path("s"));
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let mut command = Command::new(COMMAND);
        command
            .args([
                "delegate", "--audit", "-", "--policy", &policy, "--listen", &address,
            ])
            .args(["--metrics", &format!("unix:{metrics}")])
            .stdout(writer.try_clone().expect("a descriptor"));
        let delegate = Delegate::start_as(directory, &mut command);
        // The delegate's end is the same, and it waits with poll().
        // SAFETY: numbers only.
        let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) };
        let filler = vec![b'\n'; usize::try_from(size).expect("a pipe has a size")];
        writer.write_all(&filler).expect("there is room");
        // Two test functions, and threads of each.
        static CONNECTIONS: AtomicUsize = AtomicUsize::new(1);
        let key = CONNECTIONS.fetch_add(1, Ordering::Relaxed) * 64;
        let text = CString::new(address).expect("no NUL");
        // SAFETY: a C string; a connection is never followed.
        let connected = unsafe {
            virInternalConnectDelegate(key as *mut _virConnect, 1, text.as_ptr(), 60_000, 0)
        };
        assert_eq!(connected, 0, "a delegate can be connected");
        let targets: Vec<Target> = (0..requests).map(|_| Target::start()).collect();
        let callers = targets.iter().map(Target::pid).map(|pid| {
            thread::spawn(move || {
                // SAFETY: a connection is never followed.
                unsafe { virInternalProcessSetMaxMemLock(key as *mut _virConnect, pid, 65536, 0) }
            })
        });
        let callers = callers.collect();
        let name = "virt_internal_operation_duration_seconds_count\
                    {operation=\"process-set-max-mem-lock\"}";
        until("all requests are done", || {
            (metric(&metrics, name) == requests as f64).then_some(())
        });
        InFlight {
            delegate,
            callers,
            _full: (reader, targets),
        }
    }
}

#[test]
fn term_lets_what_is_running_be_answered() {
    let directory = Directory::new();
    let InFlight {
        delegate,
        callers,
        _full,
    } = InFlight::start(&directory, 4);
    // Far less than the 5 s that it gives them to end.
    delegate.stop();
    for caller in callers {
        let result = caller.join().expect("it returns");
        assert_eq!(result, 0, "a request that was being worked on is answered");
    }
    assert!(
        !Path::new(&directory.path("s")).exists(),
        "its socket is removed"
    );
}

#[test]
fn a_second_signal_ends_it_at_once() {
    // On a machine that is slow, it may have answered everything before the
    // second signal comes.
    let died = (0..5).any(|_| {
        let directory = Directory::new();
        let InFlight {
            mut delegate,
            callers,
            _full,
        } = InFlight::start(&directory, 16);
        // It finds both.
        delegate.signal(libc::SIGSTOP);
        delegate.signal(libc::SIGINT);
        delegate.signal(libc::SIGTERM);
        delegate.signal(libc::SIGCONT);
        let status = delegate.wait();
        for caller in callers {
            // Answered or not, it returns.
            caller.join().expect("it returns");
        }
        // What it left does not hinder the next one.
        let path = directory.policy(4096);
        let address = format!("unix:{}", directory.path("s"));
        Delegate::start(&directory, &["--policy", &path, "--listen", &address]).stop();
        status.signal() == Some(libc::SIGTERM)
    });
    assert!(
        died,
        "a second signal must end it, whatever it is working on"
    );
}

// --- how it starts

#[test]
fn wrong_usage_says_what_is_right() {
    let directory = Directory::new();
    let policy = directory.policy(4096);
    let file = directory.write("listeners.toml", "");
    let policy = ["--policy", &policy];
    let with = |more: &[&'static str]| [&policy[..], more].concat();
    expect_exit(
        &policy,
        2,
        "it has nowhere to listen: give --listen unix:/path",
    );
    expect_exit(&["--listen", "unix:/x"], 2, "--policy <FILE>");
    expect_exit(
        &with(&["--listen", "/x"]),
        2,
        "neither unix:/path nor fd:NUMBER",
    );
    expect_exit(
        &with(&["--metrics", "0.0.0.0:1"]),
        2,
        "only this machine may ask",
    );
    expect_exit(
        &with(&["--check", "--listen", "unix:/x"]),
        2,
        "cannot be used with",
    );
    expect_exit(
        &with(&["--check", "--explain", "a", "b"]),
        2,
        "cannot be used with",
    );
    expect_exit(
        &with(&["--explain", "a", "b", "--audit", "-"]),
        2,
        "cannot be used with",
    );
    expect_exit(
        &with(&["--json", "--listen", "unix:/x"]),
        2,
        "required arguments",
    );
    expect_exit(&with(&["--target", "x"]), 2, "--explain");
    let explain = |peer, operation| [&policy[..], &["--explain", peer, operation]].concat();
    expect_exit(&explain("uid=x", "process-set-affinity"), 2, "no id");
    expect_exit(&explain("uid=0,gid=0,cgroup=/a", "cut-hair"), 2, "cut-hair");
    let check = run(&[&policy[..], &["--check", "--listeners", &file]].concat());
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(
        said.starts_with(&format!("{file}: right\nlisteners: ")),
        "it says that the file of listeners was checked: {said}"
    );
    directory.write("listeners.toml", "x = 1\n");
    let check = [&policy[..], &["--check", "--listeners", &file]].concat();
    expect_exit(&check, 1, &format!("{file}:1: unknown field `x`"));
}

#[test]
fn an_address_that_cannot_be_had_says_what_to_do() {
    let directory = Directory::new();
    let policy = directory.policy(4096);
    let listen = |path: &str, text: &str| {
        let address = format!("unix:{path}");
        expect_exit(&["--policy", &policy, "--listen", &address], 1, text);
    };
    let used = directory.path("used");
    let first = Delegate::start(
        &directory,
        &["--policy", &policy, "--listen", &format!("unix:{used}")],
    );
    listen(&used, "stop that delegate first, or choose another path");
    first.stop();
    let missing = directory.path("missing");
    listen(&format!("{missing}/s"), &format!("make {missing} first"));
    let file = directory.write("file", "");
    listen(
        &file,
        "exists and is not a socket: remove it, or choose another path",
    );
    listen(&format!("{file}/s"), &format!("{file} is no directory"));
    listen(
        &format!("/{}", "x".repeat(107)),
        "a socket's can have 107: choose a shorter one",
    );
    listen("/proc/s", "/proc");
    let policy = ["--policy", &policy, "--listen", &format!("unix:{used}")];
    let with = |more: &[&'static str]| [&policy[..], more].concat();
    let nowhere = "/nowhere/at/all";
    let audit = format!("cannot open the audit file {nowhere}: ");
    expect_exit(&with(&["--audit", nowhere]), 1, &audit);
    expect_exit(&with(&["--audit", nowhere]), 1, "make /nowhere/at first");
    let journal = with(&["--audit", "journald", "--journal-socket", nowhere]);
    expect_exit(&journal, 1, "it takes a systemd-journald that runs");
    expect_exit(
        &with(&["--metrics", "unix:/nowhere/s"]),
        1,
        "cannot serve metrics at /nowhere/s",
    );
    assert!(
        !Path::new(&used).exists(),
        "one that fails to start leaves no socket"
    );
}

#[test]
fn it_says_what_it_will_not_be_able_to_do() {
    let directory = Directory::new();
    let policy = directory.policy(4096);
    let mut command = Command::new(COMMAND);
    command.args(["delegate", "--policy", &policy, "--listen"]);
    command.arg(format!("unix:{}", directory.path("s")));
    // SAFETY: system calls on numbers.
    unsafe {
        command.pre_exec(|| {
            const CAP_SYS_NICE: libc::c_ulong = 23;
            // Who has no capability cannot, and need not, drop one.
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0);
            Ok(())
        });
    }
    let delegate = Delegate::start_as(&directory, &mut command);
    let operations = "process-set-scheduler, process-set-affinity";
    delegate.expect_stderr(&format!("without CAP_SYS_NICE: {operations} fail for"));
    delegate.expect_stderr("to have CAP_");
    let stderr = delegate.stderr();
    // The policy does not permit it, so it does not matter.
    assert!(!stderr.contains("cgroup-add-threads"), "{stderr}");
    delegate.stop();
}

#[test]
fn it_takes_all_the_descriptors_that_it_may_have() {
    let directory = Directory::new();
    let policy = directory.policy(4096);
    let mut command = Command::new(COMMAND);
    command.args(["delegate", "--policy", &policy, "--listen"]);
    command.arg(format!("unix:{}", directory.path("s")));
    // SAFETY: a system call on numbers.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 64,
                rlim_max: 512,
            };
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            Ok(())
        });
    }
    let delegate = Delegate::start_as(&directory, &mut command);
    let limits = fs::read_to_string(format!("/proc/{}/limits", delegate.child.id()));
    let limits = limits.expect("its limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.expect("a line").split_whitespace().collect();
    assert_eq!(words[3..5], ["512", "512"], "{limits}");
    delegate.stop();
}
