// SPDX-License-Identifier: LGPL-2.1-or-later
//! The virt-internal command, on real processes.
#![cfg(feature = "command")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use libc::pid_t;
use serde_json::{Value, json};
use virt_internal::operation::OPERATIONS;

const COMMAND: &str = env!("CARGO_BIN_EXE_virt-internal");

/// No process or thread has it: none has a number above 4194304. One that has
/// exited may be somebody's again by the next call.
const NOBODY: &str = "2147483647";

/// It, which knows of no delegate, whoever runs the tests does.
fn command() -> Command {
    command_at(Path::new(COMMAND))
}

fn command_at(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_remove("LIBVIRT_INTERNAL_DELEGATE");
    command
}

fn run(arguments: &[&str]) -> Output {
    command()
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn stdout(output: &Output) -> &str {
    str_of(&output.stdout)
}

fn str_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the command prints UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}): {output:?}"))
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "exit code of {output:?}");
}

/// A process that waits, and goes when this does.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Sleeper {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn();
        Sleeper(child.expect("cat starts"))
    }

    /// With more than one thread.
    fn with_threads() -> Sleeper {
        let mut child = command()
            .arg("target")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a target starts");
        let mut tids = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        let read = BufReader::new(stdout).read_line(&mut tids);
        read.expect("a target names its threads");
        Sleeper(child)
    }

    fn pid(&self) -> pid_t {
        self.0.id() as pid_t
    }

    /// "call OPERATION --pid ... --json" on it.
    fn call(&self, operation: &str, arguments: &[&str]) -> Output {
        let pid = format!("--pid={}", self.pid());
        let call = ["call", operation, &pid, "--json"];
        run(&[&call, arguments].concat())
    }

    fn limit(&self, resource: libc::__rlimit_resource_t) -> (u64, u64) {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the kernel writes one rlimit.
        let got = unsafe { libc::prlimit(self.pid(), resource, std::ptr::null(), &mut limit) };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        (limit.rlim_cur, limit.rlim_max)
    }

    fn set_limit(&self, resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
        let limit = libc::rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        // SAFETY: the kernel reads one rlimit.
        match unsafe { libc::prlimit(self.pid(), resource, &limit, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this process can raise a hard limit, found out by doing it.
fn can_raise_limits() -> bool {
    let sleeper = Sleeper::start();
    sleeper
        .set_limit(libc::RLIMIT_MEMLOCK, 4096)
        .expect("anybody may lower a limit");
    sleeper.set_limit(libc::RLIMIT_MEMLOCK, 8192).is_ok()
}

fn rows(demo: &Value) -> &[Value] {
    demo["rows"].as_array().expect("the demo has rows")
}

#[track_caller]
fn assert_text(value: &Value, key: &str, expected: &str) {
    assert_eq!(value[key], *expected, "{key} of {value:#}");
}

#[test]
fn the_demo_is_as_promised_and_shows_every_operation_in_every_way() {
    let output = run(&["demo", "--all", "--json"]);
    assert_exit(&output, 0);
    let demo = json(&output);
    assert_eq!(demo["as_promised"], true, "{demo:#}");
    for kind in OPERATIONS {
        let of_kind = |row: &&Value| row["operation"] == kind.name;
        let shown: Vec<&Value> = rows(&demo).iter().filter(of_kind).collect();
        let not_shown = |row: &&Value| row["outcome"] == "not-shown";
        assert!(!shown.is_empty(), "the demo leaves out {}", kind.name);
        if shown.iter().all(not_shown) {
            assert!(shown[0]["missing"]["what"].is_string(), "{:#}", shown[0]);
            continue;
        }
        for (way, outcome, code) in [
            ("direct", "done", Value::Null),
            ("handler", "done", Value::Null),
            ("handler, then direct", "done", Value::Null),
            ("handler fails", "failed", "VIR_INTERNAL_ERR_FAILED".into()),
            (
                "handler lies",
                "failed",
                "VIR_INTERNAL_ERR_READ_BACK".into(),
            ),
            ("nobody (NO_DIRECT)", "not-handled", Value::Null),
        ] {
            let row = shown.iter().find(|row| row["way"] == way);
            let row = row.unwrap_or_else(|| panic!("{} has no row '{way}'", kind.name));
            assert_text(row, "outcome", outcome);
            let found = row["error"].get("code").unwrap_or(&Value::Null);
            assert_eq!(*found, code, "{row:#}");
            if outcome != "done" {
                assert_eq!(
                    row["before"], row["kernel"],
                    "it changed something: {row:#}"
                );
            }
        }
    }
}

#[test]
fn the_demo_raises_limits_where_the_kernel_allows_it_and_says_what_is_missing_where_not() {
    let output = run(&["demo", "--json"]);
    let demo = json(&output);
    let raised = rows(&demo)
        .iter()
        .filter(|row| row["operation"] == "virInternalProcessSetMaxMemLock")
        .rfind(|row| row["way"] == "direct")
        .expect("the demo tries to raise a limit");
    if can_raise_limits() {
        assert_text(raised, "outcome", "done");
        assert_eq!(raised["kernel"], raised["asked"], "{raised:#}");
    } else {
        assert_text(&raised["error"], "errno", "EPERM");
        let what = raised["missing"]["what"].as_str().unwrap_or("");
        assert!(what.starts_with("CAP_SYS_RESOURCE"), "{raised:#}");
        assert_eq!(raised["before"], raised["kernel"], "{raised:#}");
    }
}

/// The rows of the delegate's part that were shown.
fn delegate_rows(demo: &Value) -> Vec<&Value> {
    let rows = demo["delegate"]["rows"].as_array().expect("rows");
    let shown = |row: &&Value| row["outcome"] != "not-shown";
    rows.iter().filter(shown).collect()
}

/// Makes a directory that nobody else has, also not a process with the same pid
/// that was killed and has left it.
fn create_directory(parent: &Path, name: &str) -> io::Result<PathBuf> {
    let mut number = 0;
    loop {
        let path = parent.join(format!("{name}-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            made => return made.map(|()| path),
        }
    }
}

/// A directory that everybody may enter, for what the demo puts into files.
struct TemporaryFiles(PathBuf);

impl TemporaryFiles {
    fn create(name: &str) -> TemporaryFiles {
        let made = create_directory(Path::new("/tmp"), &format!("vi-{name}"));
        TemporaryFiles(made.expect("a directory can be made"))
    }

    fn names(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("it is there");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.collect()
    }

    /// The processes that were told of it on their command line.
    fn processes(&self) -> Vec<String> {
        let path = self.0.to_str().expect("UTF-8");
        let command = |entry: fs::DirEntry| {
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(path).then_some(command)
        };
        let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
        entries.filter_map(command).collect()
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new(), "still running");
        assert_eq!(self.names(), Vec::<PathBuf>::new(), "files are left");
    }
}

impl Drop for TemporaryFiles {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_demo_leaves_no_process_no_cgroup_and_no_file_behind() {
    let files = TemporaryFiles::create("left");
    let output = command()
        .args(["demo", "--all", "--json"])
        .env("TMPDIR", &files.0)
        .output()
        .expect("the command starts");
    files.assert_nothing_left();
    let demo = json(&output);
    let shown = delegate_rows(&demo);
    assert!(!shown.is_empty(), "{demo:#}");
    let (mut groups, mut expected) = (0, 0);
    for row in rows(&demo).iter().chain(shown) {
        let Some(request) = row["request"].as_str() else {
            continue;
        };
        let mut words = request.split(' ').skip_while(|word| *word != "process");
        let pid = words.nth(1).expect("a request names its process");
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Its number may be that of another test's command by now.
        let own = format!("TMPDIR={}", files.0.display());
        let is_own = fs::read(format!("/proc/{pid}/environ")).map_or(true, |environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == own.as_bytes())
        });
        let is_target = str_of(&command).contains("virt-internal") && is_own;
        assert!(!is_target, "process {pid} is still there");
        expected += usize::from(row["operation"] == "virInternalCgroupAddThreads");
        if let Some((_, group)) = request.split_once(" to /") {
            let base = Path::new("/").join(group);
            let base = base.parent().expect("a group has a parent");
            assert!(!base.exists(), "{} is still there", base.display());
            groups += 1;
        }
    }
    assert_eq!(groups, expected, "each such request names its cgroup");
}

/// How a demo ends that is interrupted as soon as its delegate has a socket, and
/// was started with that disposition of SIGINT: whoever runs the tests, a shell
/// in the background for one, may ignore it.
fn interrupt_the_demo(files: &TemporaryFiles, disposition: libc::sighandler_t) -> ExitStatus {
    let mut demo = command();
    demo.args(["demo", "--all", "--json"])
        .env("TMPDIR", &files.0)
        .stdout(Stdio::null());
    // SAFETY: a system call on numbers.
    unsafe {
        demo.pre_exec(move || {
            libc::signal(libc::SIGINT, disposition);
            Ok(())
        });
    }
    let mut demo = demo.spawn().expect("the command starts");
    let has_socket = || {
        let names = files.names();
        names.iter().any(|path| path.join("socket").exists())
    };
    let mut ended = None;
    while !has_socket() && ended.is_none() {
        thread::sleep(Duration::from_millis(1));
        ended = demo.try_wait().expect("a child");
    }
    if ended.is_none() {
        // SAFETY: numbers only; the child was not waited for.
        unsafe { libc::kill(demo.id() as pid_t, libc::SIGINT) };
    }
    let status = demo.wait().expect("a child");
    files.assert_nothing_left();
    status
}

#[test]
fn the_demo_goes_on_when_it_is_interrupted_by_what_is_ignored() {
    let files = TemporaryFiles::create("ignored");
    let status = interrupt_the_demo(&files, libc::SIG_IGN);
    assert_eq!(status.code(), Some(0), "it was interrupted: {status}");
}

#[test]
fn the_demo_tidies_up_when_it_is_interrupted() {
    let files = TemporaryFiles::create("interrupted");
    // A signal that comes too late, when it is all over, says nothing.
    for _ in 0..1000 {
        let status = interrupt_the_demo(&files, libc::SIG_DFL);
        if status.signal() == Some(libc::SIGINT) {
            return;
        }
        assert_eq!(status.code(), Some(0), "it was not interrupted: {status}");
    }
    panic!("SIGINT never came in time");
}

#[test]
fn the_demo_shows_what_an_unprivileged_caller_gets_without_and_with_a_delegate() {
    let demo = json(&run(&["demo", "--all", "--json"]));
    assert_eq!(demo["as_promised"], true, "{demo:#}");
    let delegate = &demo["delegate"];
    let cast = &delegate["cast"];
    let shown = delegate_rows(&demo);
    for kind in OPERATIONS {
        let all = delegate["rows"].as_array().expect("rows");
        let is_there = all.iter().any(|row| row["operation"] == kind.name);
        assert!(is_there, "the delegate's part leaves out {}", kind.name);
    }
    let mut refused = 0;
    for row in &shown {
        let (without, with) = (&row["without"], &row["with"]);
        let lines = row["audit"].as_array().expect("lines");
        let line = lines.last().unwrap_or_else(|| panic!("no audit: {row:#}"));
        assert_eq!(line["peer"]["uid"], cast["caller_uid"], "{row:#}");
        assert_eq!(line["target"]["uid"], cast["target_uid"], "{row:#}");
        assert_eq!(row["before"], row["between"], "changed without: {row:#}");
        if cast["caller_uid"] != cast["delegate_uid"] {
            let errno = without["error"]["errno"].as_str().unwrap_or("");
            assert!(["EPERM", "EACCES"].contains(&errno), "{row:#}");
        }
        // What the caller lacks is not what is missing.
        assert_eq!(with["missing"], Value::Null, "{row:#}");
        if row["beyond_policy"] == true {
            refused += 1;
            assert_text(&with["error"], "code", "VIR_INTERNAL_ERR_REFUSED");
            assert_text(line, "outcome", "refused");
            let reason = line["reason"].as_str().unwrap_or("");
            assert!(reason.starts_with("rule \"demo\": "), "{line:#}");
            assert_eq!(row["before"], row["kernel"], "{row:#}");
        } else if with["outcome"] == "done" {
            assert_eq!(with["as_asked"], true, "{row:#}");
            assert_text(line, "outcome", "handled");
            assert_text(line, "rule", "demo");
        } else {
            let what = row["delegate_missing"]["what"].as_str().unwrap_or("");
            assert!(!what.is_empty(), "no reason: {row:#}");
            assert_text(line, "outcome", "failed");
        }
    }
    assert!(refused >= 6, "what is refused is shown: {delegate:#}");
    let audit: usize = shown
        .iter()
        .map(|row| row["audit"].as_array().map_or(0, Vec::len))
        .sum();
    assert_eq!(delegate["audit_lines"], audit);
}

/// Runs the short demo as root, after what `prepare` does to the process. None
/// where it may not do that.
fn demo_as_root_after(prepare: fn() -> io::Result<()>) -> Option<Value> {
    let mut command = command();
    command.args(["demo", "--json"]);
    // SAFETY: system calls only.
    unsafe { command.pre_exec(prepare) };
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let output = command.output().ok()?;
    assert_exit(&output, 0);
    let demo = json(&output);
    assert_eq!(demo["as_promised"], true, "{demo:#}");
    Some(demo)
}

fn check(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first row of an operation in the delegate's part.
fn first<'d>(demo: &'d Value, operation: &str) -> &'d Value {
    let rows = demo["delegate"]["rows"].as_array().expect("rows");
    let found = rows.iter().find(|row| row["operation"] == operation);
    found.unwrap_or_else(|| panic!("no {operation}: {demo:#}"))
}

#[test]
fn the_demo_s_delegate_lowers_limits_of_another_user_without_cap_sys_resource() {
    const SYS_RESOURCE: libc::c_ulong = 24;
    // SAFETY: numbers only.
    let drop = || check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_RESOURCE) });
    let Some(demo) = demo_as_root_after(drop) else {
        return skip("the_demo_s_delegate_lowers", "not root");
    };
    if demo["delegate"]["cast"]["note"] != Value::Null {
        return skip("the_demo_s_delegate_lowers", "no other users or namespaces");
    }
    let rows = delegate_rows(&demo);
    let of_limit = |row: &&&Value| row["operation"] == "virInternalProcessSetMaxMemLock";
    let [lower, raise] = rows.iter().filter(of_limit).collect::<Vec<_>>()[..] else {
        panic!("not two rows: {demo:#}");
    };
    assert_text(&lower["without"]["error"], "errno", "EPERM");
    assert_text(&lower["with"], "outcome", "done");
    assert_eq!(lower["kernel"], lower["asked"], "{lower:#}");
    assert_text(&raise["with"]["error"], "errno", "EPERM");
    assert_text(&raise["delegate_missing"], "what", "CAP_SYS_RESOURCE");
}

#[test]
fn the_demo_says_that_its_delegate_lacks_cap_sys_nice() {
    const SYS_NICE: libc::c_ulong = 23;
    // SAFETY: numbers only.
    let drop = || check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_NICE) });
    let Some(demo) = demo_as_root_after(drop) else {
        return skip("the_demo_says_that_its_delegate_lacks", "not root");
    };
    let row = first(&demo, "virInternalProcessSetScheduler");
    assert_text(&row["with"]["error"], "errno", "EPERM");
    assert_text(&row["delegate_missing"], "what", "CAP_SYS_NICE");
}

#[test]
fn the_demo_works_without_mounted_cgroups() {
    let unmount = || {
        // SAFETY: C strings and numbers; it has its own mounts first.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let root = c"/".as_ptr();
            check(libc::mount(root, root, root, private, std::ptr::null()))?;
            check(libc::umount2(c"/sys/fs/cgroup".as_ptr(), libc::MNT_DETACH))
        }
    };
    let Some(demo) = demo_as_root_after(unmount) else {
        return skip("the_demo_works_without_mounted", "mounts cannot be changed");
    };
    let row = first(&demo, "virInternalCgroupAddThreads");
    assert_text(row, "outcome", "not-shown");
    assert_text(&row["missing"], "what", "cgroup v2 is not mounted");
    let row = first(&demo, "virInternalProcessSetMaxFiles");
    assert_text(&row["with"], "outcome", "done");
}

#[test]
fn a_delegate_of_the_environment_is_not_the_demo_s_and_no_part_of_capabilities() {
    let with_delegate = |arguments: &[&str]| {
        let output = command()
            .args(arguments)
            .env("LIBVIRT_INTERNAL_DELEGATE", "unix:/nobody/is/here")
            .output()
            .expect("the command starts");
        assert_exit(&output, 0);
        json(&output)
    };
    assert_eq!(with_delegate(&["demo", "--json"])["as_promised"], true);
    let report = with_delegate(&["capabilities", "--json"]);
    let lower = &report["operations"][0]["tried"][0];
    assert_text(lower, "name", "lower");
    assert_text(lower, "supported", "yes");
}

#[test]
fn call_gives_no_advice_on_its_own_privileges_when_a_delegate_cannot_be_reached() {
    let sleeper = Sleeper::start();
    let pid = sleeper.pid().to_string();
    // What is not there is the socket, not the cgroup.
    let host = json(&run(&["capabilities", "--json"]));
    let Some(group) = host["kernel"]["cgroups"][0]["group"].as_str() else {
        return skip("call_gives_no_advice", "no cgroup is mounted");
    };
    let output = command()
        .args(["call", "cgroup-add-threads", "--all-threads", "--pid", &pid])
        .arg(format!("--group={group}"))
        .env("LIBVIRT_INTERNAL_DELEGATE", "unix:/nobody/is/here")
        .output()
        .expect("the command starts");
    assert_exit(&output, 1);
    let text = str_of(&output.stderr);
    assert!(text.contains("VIR_INTERNAL_ERR_UNREACHABLE"), "{text}");
    assert!(!text.contains("needs:"), "{text}");
}

#[test]
fn the_demo_s_tables_fit_in_120_columns_and_on_a_screen_without_colours() {
    for (arguments, most) in [(&["demo", "--all"][..], usize::MAX), (&["demo"], 42)] {
        let output = run(arguments);
        assert_exit(&output, 0);
        let text = stdout(&output);
        assert!(text.lines().count() <= most, "{arguments:?}: {text}");
        assert!(text.contains("REFUSED by rule \"demo\": "), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 120, "too long: {line}");
            assert!(!line.contains('\x1b'), "colours in a pipe: {line:?}");
        }
    }
}

#[test]
fn the_demo_works_for_an_ordinary_user() {
    // SAFETY: asks for a number.
    let is_root = unsafe { libc::geteuid() } == 0;
    // Another user may not be able to reach where cargo builds.
    let files = TemporaryFiles::create("copy");
    let copy = files.0.join("virt-internal");
    fs::copy(COMMAND, &copy).expect("the command can be copied");
    let mut command = command_at(&copy);
    command.args(["demo", "--all", "--json"]);
    if is_root {
        command.uid(65534).gid(65534);
    }
    let output = loop {
        match command.current_dir("/").output() {
            // Other tests fork; until they exec, they hold the copy open too.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
            output => break output,
        }
    };
    let output = output.expect("the copy starts");
    assert_exit(&output, 0);
    let demo = json(&output);
    let refused = rows(&demo)
        .iter()
        .filter(|row| row["error"]["errno"] == "EPERM");
    assert!(
        refused.count() >= 4,
        "an ordinary user raised limits: {demo:#}"
    );
    let cast = &demo["delegate"]["cast"];
    assert_eq!(cast["caller_uid"], cast["delegate_uid"], "{cast:#}");
    let note = cast["note"].as_str().unwrap_or("");
    assert!(note.contains("needs CAP_SETUID"), "{cast:#}");
    let raise = delegate_rows(&demo)[1];
    assert_text(&raise["with"]["error"], "errno", "EPERM");
    let missing = &raise["delegate_missing"];
    assert_text(missing, "what", "CAP_SYS_RESOURCE");
}

#[test]
fn call_sets_limits() {
    let sleeper = Sleeper::start();
    let call = |operation, argument| {
        let output = sleeper.call(operation, &[argument]);
        assert_exit(&output, 0);
        assert_text(&json(&output), "outcome", "done");
    };
    call("process-set-max-mem-lock", "--bytes=16K");
    assert_eq!(sleeper.limit(libc::RLIMIT_MEMLOCK), (16384, 16384));
    call("process-set-max-processes", "--processes=17");
    assert_eq!(sleeper.limit(libc::RLIMIT_NPROC), (17, 17));
    call("process-set-max-files", "--files=18");
    assert_eq!(sleeper.limit(libc::RLIMIT_NOFILE), (19, 19));
    call("process-set-max-core-size", "--bytes=0");
    assert_eq!(sleeper.limit(libc::RLIMIT_CORE), (0, 0));
}

#[test]
fn call_sets_scheduler_and_affinity() {
    let sleeper = Sleeper::start();
    assert_exit(
        &sleeper.call("process-set-scheduler", &["--policy=batch"]),
        0,
    );
    // SAFETY: numbers only.
    let policy = unsafe { libc::sched_getscheduler(sleeper.pid()) };
    assert_eq!(policy, libc::SCHED_BATCH);

    // SAFETY: a set is numbers only, and the kernel writes at most one.
    let affinity = || unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(sleeper.pid(), size_of_val(&set), &mut set);
        (0..1024)
            .filter(|cpu| libc::CPU_ISSET(*cpu, &set))
            .collect::<Vec<_>>()
    };
    let last = *affinity().last().expect("a thread may run somewhere");
    let cpus = format!("--cpus={last}");
    let output = sleeper.call("process-set-affinity", &[&cpus]);
    assert_exit(&output, 0);
    assert_eq!(affinity(), [last]);
    assert_text(&json(&output), "kernel", &format!("CPUs {last}"));
}

#[test]
fn call_moves_threads_into_a_cgroup_or_says_which_file_is_missing() {
    let sleeper = Sleeper::start();
    let host = json(&run(&["capabilities", "--json"]));
    let groups = host["kernel"]["cgroups"].as_array().expect("a list");
    let groups: Vec<&Path> = groups
        .iter()
        .filter(|group| group["controllers"] != "cpuset")
        .map(|group| Path::new(group["group"].as_str().expect("a path")))
        .collect();
    if groups.is_empty() {
        return skip("call_moves_threads_into_a_cgroup", "no cgroup is mounted");
    }
    let move_to = |group: &Path| {
        let group = format!("--group={}", group.display());
        sleeper.call("cgroup-add-threads", &["--all-threads", &group])
    };
    let made = groups
        .iter()
        .find_map(|group| create_directory(group, "virt-internal-test").ok());
    if let Some(made) = made {
        let output = move_to(&made);
        let members = fs::read_to_string(made.join("cgroup.procs"));
        drop(sleeper);
        remove_group(&made).expect("the cgroup can be removed");
        assert_exit(&output, 0);
        let report = json(&output);
        assert_text(&report, "outcome", "done");
        assert_text(&report, "kernel", "1 of 1 inside");
        let members = members.expect("a cgroup has cgroup.procs");
        assert_ne!(members, "", "nobody is in {}", made.display());
    } else {
        for group in groups {
            let output = move_to(group);
            assert_exit(&output, 1);
            let what = json(&output)["missing"]["what"].to_string();
            assert!(what.contains("write access to"), "{output:?}");
        }
    }
}

/// Some kernels take a moment to forget who was in it.
fn remove_group(group: &Path) -> io::Result<()> {
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

/// A cgroup without processes, removed when dropped.
struct Group(PathBuf);

impl Group {
    /// Below this process's own, where that is possible.
    fn create(versions: &[u64], name: &str) -> Option<Group> {
        let host = json(&run(&["capabilities", "--json"]));
        let groups = host["kernel"]["cgroups"].as_array().expect("a list");
        let name = format!("virt-internal-{name}");
        groups
            .iter()
            .filter(|group| versions.iter().any(|version| group["version"] == *version))
            .filter(|group| group["controllers"] != "cpuset")
            .map(|group| Path::new(group["group"].as_str().expect("a path")))
            .find_map(|group| create_directory(group, &name).ok().map(Group))
    }

    fn below(&self, name: &str) -> Group {
        let path = self.0.join(name);
        fs::create_dir(&path).expect("a cgroup of one's own takes others");
        Group(path)
    }

    fn option(&self) -> String {
        format!("--group={}", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = remove_group(&self.0);
        if !std::thread::panicking() {
            removed.expect("the cgroup can be removed");
        }
    }
}

/// Not by eprintln!(), which the harness keeps for itself. The name is not the
/// function's, of which the harness says that it passed.
fn skip(test: &str, why: &str) {
    let _ = io::stderr().write_all(format!("SKIP {test}: {why}\n").as_bytes());
}

#[test]
fn call_names_each_thread_that_was_not_moved() {
    let Some(group) = Group::create(&[1, 2], "partly") else {
        return skip("call_names_each_thread", "no cgroup can be made");
    };
    let gone = NOBODY.to_owned();
    let sleeper = Sleeper::start();
    let pid = sleeper.pid().to_string();
    let expected = format!("virt-internal: thread {gone}: has exited (ESRCH)\n");
    for (tids, outcome, done) in [
        (&[&gone[..]][..], "failed", ""),
        (&[&pid, &gone], "partly", "Partly done: "),
    ] {
        let call = [
            "call",
            "cgroup-add-threads",
            "--pid",
            &pid,
            &group.option(),
            "--tid",
        ];
        let call = [&call, tids].concat();
        let output = run(&call);
        assert_exit(&output, 1);
        assert_eq!(str_of(&output.stderr), expected, "of {call:?}");
        let text = stdout(&output);
        assert!(
            text.starts_with(done) && !text.starts_with("Done"),
            "{text}"
        );

        let output = run(&[&call[..], &["--json"]].concat());
        assert_exit(&output, 1);
        let report = json(&output);
        assert_text(&report, "outcome", outcome);
        let threads = report["threads"].as_array().expect("a result per thread");
        assert_eq!(threads.len(), tids.len(), "{report:#}");
        for (thread, tid) in threads.iter().zip(tids) {
            assert_eq!(thread["tid"].to_string(), **tid);
            let errno = if *tid == gone {
                "ESRCH".into()
            } else {
                Value::Null
            };
            assert_eq!(thread["errno"], errno, "{report:#}");
        }
    }
    drop(sleeper);
}

#[test]
fn call_says_how_a_cgroup_would_take_threads_of_another_domain() {
    let Some(domain) = Group::create(&[2], "hints") else {
        return skip("call_says_how_a_cgroup", "no cgroup v2 can be made");
    };
    let sleeper = Sleeper::with_threads();
    let one = format!("--tid={}", sleeper.pid());
    let hints = |group: &Group, which: &str| {
        let output = sleeper.call("cgroup-add-threads", &[&group.option(), which]);
        assert_exit(&output, 1);
        let report = json(&output);
        assert_text(&report["error"], "errno", "EOPNOTSUPP");
        let threads = report["threads"].as_array().expect("a result per thread");
        assert!(!threads.is_empty(), "{report:#}");
        for thread in threads {
            assert_eq!(thread["errno"], "EOPNOTSUPP", "{report:#}");
        }
        report["missing"]["hints"].clone()
    };
    let make_threaded =
        |group: &Group| format!("echo threaded > {}/cgroup.type", group.0.display());
    let move_all = |group: &Group| {
        format!(
            "virt-internal call cgroup-add-threads --pid={} {} --role=vcpu --all-threads",
            sleeper.pid(),
            group.option()
        )
    };

    let below = make_threaded(&domain) + ", if that is below the cgroup of the process";
    assert_eq!(hints(&domain, &one), json!([below, move_all(&domain)]));

    let (threaded, invalid) = (domain.below("threaded"), domain.below("invalid"));
    fs::write(threaded.0.join("cgroup.type"), "threaded").expect("an empty group can be threaded");
    assert_eq!(hints(&threaded, &one), json!([move_all(&threaded)]));
    for which in [&one, "--all-threads"] {
        assert_eq!(hints(&invalid, which), json!([make_threaded(&invalid)]));
    }

    // What it says works.
    let command = move_all(&threaded);
    assert_exit(&run(&command.split(' ').skip(1).collect::<Vec<_>>()), 0);
    fs::write(invalid.0.join("cgroup.type"), "threaded").expect("the hint is right");
    let output = sleeper.call("cgroup-add-threads", &[&invalid.option(), &one]);
    assert_exit(&output, 0);
    drop((sleeper, threaded, invalid));
}

#[test]
fn call_notes_what_was_narrowed_or_ignored() {
    let sleeper = Sleeper::start();
    for (operation, arguments, expected) in [
        (
            "process-set-affinity",
            &["--cpus=0-262143"][..],
            "the kernel narrowed 0-262143 to ",
        ),
        (
            "process-set-scheduler",
            &["--policy=batch", "--priority=5"],
            "the priority 5 is ignored",
        ),
    ] {
        let output = sleeper.call(operation, arguments);
        assert_exit(&output, 0);
        let report = json(&output);
        let note = report["note"].as_str().unwrap_or("");
        assert!(note.starts_with(expected), "{report:#}");
    }
    let output = sleeper.call("process-set-scheduler", &["--policy=batch"]);
    assert_eq!(json(&output)["note"], Value::Null);
}

#[test]
fn numbers_that_cannot_be_are_refused_with_the_option_and_the_range() {
    for (operation, option, value, range) in [
        (
            "process-set-max-files",
            "--pid",
            "foo",
            "from 1 to 2147483647",
        ),
        (
            "process-set-max-files",
            "--pid",
            "9999999999",
            "from 1 to 2147483647",
        ),
        (
            "process-set-max-files",
            "--files",
            "-1",
            "from 0 to 4294967295",
        ),
        (
            "process-set-max-processes",
            "--processes",
            "4294967296",
            "from 0 to 4294967295",
        ),
        (
            "process-set-scheduler",
            "--priority",
            "high",
            "from 1 to 99",
        ),
        ("process-set-affinity", "--tid", "x", "from 1 to 2147483647"),
        ("cgroup-add-threads", "--tid", "x", "from 1 to 2147483647"),
    ] {
        let output = run(&["call", operation, option, value]);
        assert_exit(&output, 2);
        let text = str_of(&output.stderr);
        for expected in [option, value, range] {
            assert!(text.contains(expected), "no '{expected}': {text}");
        }
    }
}

#[test]
fn the_version_has_the_command_s_name() {
    let expected = concat!("virt-internal ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(stdout(&run(&["--version"])), expected);
}

#[test]
fn call_has_numbers_for_programs() {
    let sleeper = Sleeper::start();
    for (operation, argument, values) in [
        (
            "process-set-max-core-size",
            "--bytes=4K",
            json!({ "soft": 4096, "hard": 4096 }),
        ),
        (
            "process-set-scheduler",
            "--policy=batch",
            json!({ "policy": libc::SCHED_BATCH, "priority": 0 }),
        ),
    ] {
        let report = json(&sleeper.call(operation, &[argument]));
        assert_eq!(report["asked_values"], values, "{report:#}");
        assert_eq!(report["kernel_values"], values, "{report:#}");
    }
    let output = sleeper.call("process-set-affinity", &["--cpus=0-262143"]);
    let cpus = json(&output)["kernel_values"]["cpus"].clone();
    assert_ne!(cpus.as_array().map_or(0, Vec::len), 0, "{output:?}");
}

#[test]
fn help_has_the_exit_codes() {
    for arguments in [
        &["--help"][..],
        &["call", "--help"],
        &["call", "cgroup-add-threads", "--help"],
    ] {
        let output = run(arguments);
        assert!(stdout(&output).contains("Exit codes: 0 done"), "{output:?}");
    }
}

#[test]
fn call_with_no_direct_does_nothing_and_says_so() {
    let sleeper = Sleeper::start();
    let before = sleeper.limit(libc::RLIMIT_MEMLOCK);
    let output = sleeper.call("process-set-max-mem-lock", &["--bytes=4K", "--no-direct"]);
    assert_exit(&output, 0);
    assert_text(&json(&output), "outcome", "not-handled");
    assert_eq!(sleeper.limit(libc::RLIMIT_MEMLOCK), before);
}

#[test]
fn call_says_what_is_missing_to_raise_a_limit() {
    let sleeper = Sleeper::start();
    sleeper
        .set_limit(libc::RLIMIT_MEMLOCK, 4096)
        .expect("anybody may lower a limit");
    let output = sleeper.call("process-set-max-mem-lock", &["--bytes=8K"]);
    if can_raise_limits() {
        assert_exit(&output, 0);
        assert_eq!(sleeper.limit(libc::RLIMIT_MEMLOCK), (8192, 8192));
        return;
    }
    assert_exit(&output, 1);
    let report = json(&output);
    assert_text(&report["error"], "code", "VIR_INTERNAL_ERR_FAILED");
    assert_text(&report["error"], "errno", "EPERM");
    assert_text(&report["missing"], "kind", "capability");
    assert_text(&report, "kernel", "4 KiB");
    let hints = report["missing"]["hints"].to_string();
    for hint in [
        "setcap cap_sys_resource+ep",
        "--cap-add SYS_RESOURCE",
        "LimitMEMLOCK=",
    ] {
        assert!(hints.contains(hint), "no '{hint}' among {hints}");
    }
}

#[test]
fn call_reports_errors_by_name() {
    for (pid, code, errno) in [
        ("0", "VIR_INTERNAL_ERR_INVALID_ARG", "EINVAL"),
        ("-1", "VIR_INTERNAL_ERR_INVALID_ARG", "EINVAL"),
        (NOBODY, "VIR_INTERNAL_ERR_NO_PROCESS", "ESRCH"),
    ] {
        let call = ["call", "process-set-max-files", "--files=5", "--pid", pid];
        let output = run(&call);
        assert_exit(&output, 1);
        let text = str_of(&output.stderr);
        assert!(
            text.contains(&format!("{code}, {errno}")),
            "pid {pid}: {text}"
        );
        let output = run(&[&call[..], &["--json"]].concat());
        assert_exit(&output, 1);
        assert_text(&json(&output)["error"], "code", code);
        assert_eq!(json(&output)["kernel"], Value::Null);
    }
}

#[test]
fn a_full_disk_is_reported_and_no_panic() {
    let sleeper = Sleeper::start();
    let pid = sleeper.pid().to_string();
    let call = ["call", "process-set-max-core-size", "--bytes=0", "--pid"];
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["demo"],
        &["demo", "--json"],
        &["capabilities"],
        &["capabilities", "--json"],
        &["capabilities", "--xml"],
        &[&call[..], &[&pid]].concat(),
        &[&call[..], &[&pid, "--json"]].concat(),
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let output = command()
            .args(arguments)
            .stdout(full.expect("there is a /dev/full"))
            .output()
            .expect("the command starts");
        assert_exit(&output, 1);
        assert_eq!(
            str_of(&output.stderr),
            "virt-internal: cannot write: No space left on device\n",
            "of {arguments:?}"
        );
    }
}

#[test]
fn a_closed_pipe_ends_the_command_quietly() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    // Other tests fork; until they exec, they hold the other end open too.
    let mut end = libc::pollfd {
        fd: writer.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one pollfd, which the kernel may write.
    while unsafe { libc::poll(&mut end, 1, -1) } != 1 {}
    assert_eq!(end.revents, libc::POLLERR, "nobody reads");
    let output = command()
        .args(["capabilities", "--json"])
        .stdout(writer)
        .output()
        .expect("the command starts");
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{output:?}");
    assert_eq!(str_of(&output.stderr), "");
}

#[test]
fn bad_usage_is_exit_code_2() {
    for arguments in [
        &["call", "process-set-max-mem-lock", "--pid=1"][..],
        &[
            "call",
            "process-set-max-mem-lock",
            "--pid=1",
            "--bytes=lots",
        ],
        &["call", "process-set-scheduler", "--pid=1", "--policy=fair"],
        &["call", "process-set-affinity", "--pid=1", "--cpus=3-1"],
        &["call", "cgroup-add-threads", "--pid=1", "--group=/"],
        &["call", "process-set-nothing", "--pid=1"],
        &["capabilities", "--json", "--xml"],
    ] {
        assert_exit(&run(arguments), 2);
    }
}

#[test]
fn capabilities_list_every_operation_with_its_version_and_what_was_tried() {
    let output = run(&["capabilities", "--json"]);
    assert_exit(&output, 0);
    let report = json(&output);
    let operations = report["operations"].as_array().expect("a list");
    assert_eq!(operations.len(), OPERATIONS.len());
    assert_text(&report["library"], "version", env!("CARGO_PKG_VERSION"));
    for (operation, kind) in operations.iter().zip(OPERATIONS) {
        assert_text(operation, "name", kind.name);
        assert_eq!(operation["id"], kind.id);
        assert_eq!(operation["version"], kind.version);
        let tried = operation["tried"].as_array().expect("a list");
        assert!(!tried.is_empty(), "nothing was tried: {operation:#}");
        for tried in tried.iter().filter(|tried| tried["supported"] != "yes") {
            assert!(tried["missing"]["what"].is_string(), "no reason: {tried:#}");
        }
    }
    let raise = match can_raise_limits() {
        true => "yes",
        false => "no",
    };
    let tried = operations[0]["tried"].as_array().expect("a list");
    let tried = tried.iter().find(|tried| tried["name"] == "raise");
    assert_text(tried.expect("raising was tried"), "supported", raise);
}

#[test]
fn capabilities_are_well_formed_xml_in_libvirt_s_manner() {
    let output = run(&["capabilities", "--xml"]);
    assert_exit(&output, 0);
    let xml = stdout(&output);
    let names = elements(xml);
    assert_eq!(names[0], "capabilities");
    let count = |wanted: &str| names.iter().filter(|name| **name == wanted).count();
    assert_eq!(count("operation"), OPERATIONS.len(), "{xml}");
    for kind in OPERATIONS {
        let (name, id, version) = (kind.name, kind.id, kind.version);
        let expected = format!("<operation name='{name}' id='{id}' version='{version}'");
        assert!(xml.contains(&expected), "no {expected} in {xml}");
    }
}

/// The names of the elements, in order. Panics unless the text is well-formed,
/// with small letters and single quotes.
fn elements(xml: &str) -> Vec<&str> {
    let (mut names, mut open) = (Vec::new(), Vec::new());
    let mut rest = xml.trim_end();
    while let Some(tag) = rest.strip_prefix('<') {
        let (tag, after) = tag.split_once('>').expect("a tag ends");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "this end is not of the last start");
        } else {
            let (tag, is_empty) = match tag.strip_suffix('/') {
                Some(tag) => (tag, true),
                None => (tag, false),
            };
            let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            assert!(name.chars().all(|c| c.is_ascii_lowercase()), "<{name}>");
            assert_attributes(attributes);
            names.push(name);
            if !is_empty {
                open.push(name);
            }
        }
        let (text, _) = after.split_at(after.find('<').unwrap_or(after.len()));
        assert_escaped(text);
        rest = &after[text.len()..];
    }
    assert_eq!((rest, open), ("", vec![]), "something is left");
    names
}

fn assert_attributes(attributes: &str) {
    let mut rest = attributes;
    while !rest.is_empty() {
        let (name, value) = rest.split_once("='").expect("an attribute has a value");
        assert!(name.chars().all(|c| c.is_ascii_lowercase()), "{name}=");
        let (value, after) = value.split_once('\'').expect("a value ends");
        assert_escaped(value);
        rest = after.trim_start();
    }
}

fn assert_escaped(text: &str) {
    assert!(!text.contains(['<', '>', '\'', '"']), "not escaped: {text}");
    for entity in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "apos;", "quot;"];
        let is_known = known.iter().any(|known| entity.starts_with(known));
        assert!(is_known, "not escaped: {text}");
    }
}
