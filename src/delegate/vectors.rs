// SPDX-License-Identifier: LGPL-2.1-or-later
//! Every message of tests/protocol/vectors.json, which is written from
//! docs/protocol.md: the client's code must make it, the server's must take it.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::string::{String, ToString};
use std::sync::mpsc;
use std::vec::Vec;

use serde_json::Value;

use super::policy::Policy;
use super::server::{Audit, Server};
use super::socket;
use super::wire::{
    Answer, DESCRIPTORS_MAX, HELLO, Header, OUTCOME, Reader, Request, Spoken, TEXT_MAX, hello,
    read_hello,
};
use crate::capi::cgroup_add_threads::virInternalThreadRole;
use crate::dispatch::Operation;
use crate::errno::Errno;
use crate::kernel::affinity::CpuMap;
use crate::kernel::cgroup::GroupPath;
use crate::kernel::process::{Held, Pid, Task, pidfd_open};
use crate::kernel::scheduler::Schedule;
use crate::operation::OPERATIONS;
use crate::operation::cgroup_add_threads::CgroupAddThreads;
use crate::operation::process_set_affinity::ProcessSetAffinity;
use crate::operation::process_set_max_core_size::ProcessSetMaxCoreSize;
use crate::operation::process_set_max_files::ProcessSetMaxFiles;
use crate::operation::process_set_max_mem_lock::ProcessSetMaxMemLock;
use crate::operation::process_set_max_processes::ProcessSetMaxProcesses;
use crate::operation::process_set_scheduler::ProcessSetScheduler;

/// The number that the vectors have for the process.
const PID: i32 = 1000;

fn vectors(kind: &str) -> Vec<Value> {
    let text = include_str!("../../tests/protocol/vectors.json");
    let all: Value = serde_json::from_str(text).expect("vectors.json is JSON");
    let vectors = all[kind].as_array().expect("a list of vectors").clone();
    assert!(!vectors.is_empty(), "no vectors of {kind}");
    vectors
}

fn bytes(vector: &Value) -> Vec<u8> {
    let hex = vector["hex"].as_str().expect("hex").as_bytes();
    hex.chunks(2)
        .map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn integer(value: &Value) -> i32 {
    value
        .as_i64()
        .unwrap_or_else(|| panic!("{value} is no number")) as i32
}

fn list<T>(value: &Value, each: impl Fn(&Value) -> T) -> Vec<T> {
    let items = value.as_array().map_or(&[][..], |items| items);
    items.iter().map(each).collect()
}

fn texts(value: &Value) -> Vec<String> {
    list(value, |text| text.as_str().unwrap().to_string())
}

fn spoken_of(vector: &Value) -> Vec<Spoken> {
    list(&vector["operations"], |entry| Spoken {
        operation: number(&entry[0]) as u32,
        lowest: number(&entry[1]) as u32,
        highest: number(&entry[2]) as u32,
    })
}

#[test]
fn hellos_are_written_and_read_as_the_vectors_have_them() {
    for vector in vectors("hellos") {
        let (message, spoken) = (bytes(&vector), spoken_of(&vector));
        let body = hello(spoken.iter().copied());
        let header = Header::new(HELLO, 0, body.as_bytes().len(), number(&vector["request"]));
        let made = [header.as_bytes(), body.as_bytes()].concat();
        assert_eq!(made, message, "{}", vector["name"]);

        let (header, body) = Header::split(&message).expect("a header");
        let mut read = Vec::new();
        read_hello(body, |entry| read.push(entry)).expect("a hello");
        assert_eq!(
            (header.operation, read),
            (HELLO, spoken),
            "{}",
            vector["name"]
        );
    }
    let ours = OPERATIONS.iter().map(|kind| Spoken {
        operation: kind.id,
        lowest: kind.version,
        highest: kind.version,
    });
    assert_eq!(ours.collect::<Vec<_>>(), spoken_of(&vectors("hellos")[0]));
}

/// A cgroup that is there wherever tests run.
fn cgroup() -> CString {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
    let mount = mount.expect("cgroup v2 is mounted somewhere");
    CString::new(mount.split(' ').nth(1).unwrap()).unwrap()
}

/// The message that the client's code makes, and how many descriptors: of a
/// process that the delegate knows, or not.
fn made(vector: &Value, same_process: bool) -> (Vec<u8>, usize) {
    let arguments = &vector["arguments"];
    let pid = Pid::new(PID).unwrap();
    let tid = arguments["tid"].as_i64().unwrap_or(0) as i32;
    let task = Task::new(pid, if tid == 0 { PID } else { tid }).unwrap();
    let own = std::process::id() as i32;
    let thread = (tid != 0).then(|| (task, pidfd_open(own, libc::PIDFD_THREAD).ok()));
    let held = Held::received(pid, pidfd_open(own, 0).expect("pidfd_open"), thread);
    let cpus = list(&arguments["cpumap"], |byte| number(byte) as u8);
    // SAFETY: a slice that lives longer.
    let map = (!cpus.is_empty())
        .then(|| unsafe { CpuMap::new(cpus.as_ptr(), cpus.len() as i32) }.expect("a map"));
    let tids = list(&arguments["tids"], integer);
    let ids = arguments["ids"].is_array();
    let ids = ids.then(|| list(&arguments["ids"], |id| number(id) as u32));
    let path = cgroup();

    let id = number(&vector["operation"]) as u32;
    let mem_lock;
    let processes;
    let files;
    let core_size;
    let scheduler;
    let affinity;
    let add_threads;
    let mut request = Request::new();
    let written = match id {
        1 => {
            mem_lock = ProcessSetMaxMemLock::new(pid, number(&arguments["bytes"]));
            mem_lock.request(&held, &mut request)
        }
        2 => {
            processes = ProcessSetMaxProcesses::new(pid, number(&arguments["most"]) as u32);
            processes.request(&held, &mut request)
        }
        3 => {
            files = ProcessSetMaxFiles::new(pid, number(&arguments["most"]) as u32);
            files.request(&held, &mut request)
        }
        4 => {
            core_size = ProcessSetMaxCoreSize::new(pid, number(&arguments["bytes"]));
            core_size.request(&held, &mut request)
        }
        5 => {
            let policy = integer(&arguments["policy"]);
            let schedule = Schedule::new(policy, integer(&arguments["priority"]));
            let schedule = schedule.expect("a schedule").expect("one to set");
            scheduler = ProcessSetScheduler { task, schedule };
            scheduler.request(&held, &mut request)
        }
        6 => {
            let cpumap = map.expect("a map");
            affinity = ProcessSetAffinity { task, cpumap };
            affinity.request(&held, &mut request)
        }
        7 => {
            // SAFETY: a C string that lives longer.
            let path = unsafe { GroupPath::new(path.as_ptr()) }.expect("a path");
            let path = (arguments["cgroup"] == true).then_some(path);
            let role = virInternalThreadRole::new(integer(&arguments["role"])).expect("a role");
            let ids = ids.as_deref();
            add_threads = CgroupAddThreads::new(pid, path, role, &tids, ids, map, None);
            let add_threads = add_threads.as_ref().expect("an operation");
            add_threads.request(&held, &mut request)
        }
        id => panic!("there is no operation {id}"),
    };
    written.unwrap_or_else(|error| panic!("{}: {error:?}", vector["name"]));
    let version = number(&vector["version"]) as u32;
    let header = Header::new(id, version, request.size(), number(&vector["request"]));
    let (header, descriptors) = request.headed(header, same_process);
    let mut message = [header.as_bytes(), request.fixed.as_bytes()].concat();
    request
        .parts()
        .iter()
        .for_each(|part| message.extend_from_slice(part));
    (message, descriptors.len())
}

#[test]
fn requests_are_made_as_the_vectors_have_them() {
    for (which, same_process) in [("requests", false), ("requests_of_the_same_process", true)] {
        let vectors = vectors(which);
        for vector in &vectors {
            let (message, descriptors) = made(vector, same_process);
            assert_eq!(message, bytes(vector), "{}", vector["name"]);
            let names = texts(&vector["descriptors"]);
            assert_eq!(descriptors, names.len(), "{}", vector["name"]);
            assert!(descriptors <= DESCRIPTORS_MAX);
        }
        for kind in OPERATIONS {
            let has_it = |vector: &Value| number(&vector["operation"]) == u64::from(kind.id);
            assert!(vectors.iter().any(has_it), "{} has no vector", kind.name);
        }
    }
}

#[test]
fn questions_are_made_as_the_vectors_have_them() {
    for vector in vectors("questions") {
        let mut body = Request::new();
        body.fixed.u64(number(&vector["about"]));
        let header = Header::new(OUTCOME, 0, body.size(), number(&vector["request"]));
        let made = [header.as_bytes(), body.fixed.as_bytes()].concat();
        assert_eq!(made, bytes(&vector), "{}", vector["name"]);
    }
}

#[test]
fn answers_are_written_and_read_as_the_vectors_have_them() {
    for vector in vectors("answers") {
        let message = bytes(&vector);
        let (header, body) = Header::split(&message).expect("a header");
        let asked = (header.operation, header.request);
        let expected = (
            number(&vector["operation"]) as u32,
            number(&vector["request"]),
        );
        assert_eq!(asked, expected, "{}", vector["name"]);
        let mut reader = Reader(body);
        let answer = Answer::read(&mut reader).expect("an answer");
        assert_eq!(answer.write().as_bytes(), &body[..24], "{}", vector["name"]);
        let found = (answer.verdict as u64, answer.code, answer.errnum.0);
        let code = number(&vector["code"]) as u32;
        let expected = (number(&vector["verdict"]), code, integer(&vector["errno"]));
        assert_eq!(found, expected, "{}", vector["name"]);
        let results: Vec<i32> = (0..answer.results).map(|_| reader.i32().unwrap()).collect();
        assert_eq!(
            results,
            list(&vector["results"], integer),
            "{}",
            vector["name"]
        );
        assert_eq!(
            reader.0,
            vector["text"].as_str().unwrap().as_bytes(),
            "{}",
            vector["name"]
        );
        assert!(answer.text as usize <= TEXT_MAX);
    }
}

/// A process with another thread, to send descriptors of.
struct Target {
    tids: [i32; 2],
    end: Vec<mpsc::Sender<()>>,
}

impl Target {
    /// This process, with two threads that wait.
    fn new() -> Target {
        let mut end = Vec::new();
        let tids = [(); 2].map(|()| {
            let (sender, wait) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                // SAFETY: no arguments.
                tell.send(unsafe { libc::gettid() }).unwrap();
                let _ = wait.recv();
            });
            end.push(sender);
            told.recv().expect("the thread's number")
        });
        Target { tids, end }
    }

    fn descriptor(&self, name: &str) -> OwnedFd {
        let pidfd = |id: i32, flags| {
            let fd = pidfd_open(id, flags).expect("pidfd_open").into_raw();
            // SAFETY: just opened.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        let open = |path: &str, flags| {
            let path = CString::new(path).unwrap();
            // SAFETY: a C string.
            let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
            assert!(fd >= 0, "cannot open {path:?}");
            // SAFETY: just opened.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        let cgroup = cgroup().into_string().unwrap();
        match name {
            "process" => pidfd(std::process::id() as i32, 0),
            "thread" => pidfd(self.tids[0], libc::PIDFD_THREAD),
            "other-thread" => pidfd(1, libc::PIDFD_THREAD),
            "dead-process" => {
                let mut child = std::process::Command::new("true").spawn().expect("true");
                let fd = pidfd(child.id() as i32, 0);
                child.wait().expect("its end");
                fd
            }
            "file" => File::open("/dev/null").expect("/dev/null").into(),
            "socket" => std::os::unix::net::UnixStream::pair().unwrap().0.into(),
            "directory" => open("/tmp", libc::O_PATH),
            "cgroup" => open(&cgroup, libc::O_PATH),
            "cgroup-open" => open(&cgroup, libc::O_RDONLY),
            name => panic!("there is no descriptor {name}"),
        }
    }

    fn message(&self, vector: &Value) -> Vec<u8> {
        let mut message = bytes(vector);
        for (offset, tid) in vector["tids_at"].as_array().unwrap().iter().zip(self.tids) {
            let offset = number(offset) as usize;
            message[offset..offset + 4].copy_from_slice(&tid.to_ne_bytes());
        }
        message
    }
}

fn server() -> Server {
    // SAFETY: asks for a number.
    let uid = unsafe { libc::getuid() };
    // Every operation, of processes that there are not.
    let policy = format!(
        r#"
        version = 1
        [[rule]]
        name = "none"
        peer = {{ uid = {uid} }}
        target = {{ cgroup = "/", uid = 4294967294 }}
        process-set-max-mem-lock = {{ max = 0 }}
        process-set-max-processes = {{ max = 0 }}
        process-set-max-files = {{ max = 0 }}
        process-set-max-core-size = {{ max = 0 }}
        process-set-scheduler = {{ policies = ["other"] }}
        process-set-affinity = {{ cpus = "0" }}
        cgroup-add-threads = {{ roles = ["vcpu"] }}
        "#
    );
    let policy = Policy::parse(&policy, "policy").expect("a policy");
    Server::new(policy, Audit::nowhere()).expect("a server")
}

/// What a server says to messages, one packet after the other, to its end.
fn said(server: &Server, messages: &[(Vec<u8>, Vec<OwnedFd>)]) -> Vec<Vec<u8>> {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: two ints to write.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    assert_eq!(made, 0, "socketpair");
    // SAFETY: just made.
    let [ours, theirs] = pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    for (message, descriptors) in messages {
        let descriptors: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        // As many as a vector has, where the client's code sends two at most.
        send(&ours, message, &descriptors);
    }
    // SAFETY: numbers only.
    unsafe { libc::shutdown(ours.as_raw_fd(), libc::SHUT_WR) };
    server.serve_connected(theirs);
    // Other tests fork: until they exec, they hold the server's end open, too.
    let time = libc::timeval {
        tv_sec: 300,
        tv_usec: 0,
    };
    socket::set_option(ours.as_raw_fd(), libc::SO_RCVTIMEO, &time).expect("a time can be set");
    let mut said = Vec::new();
    loop {
        let mut packet = std::vec![0; 40000];
        let buffers = [socket::slice_mut(&mut packet)];
        // SAFETY: a buffer.
        let received = unsafe { socket::receive(ours.as_raw_fd(), &buffers, 0) };
        match received.map(|received| received.length) {
            // It was closed before it had read all.
            Err(Errno::ECONNRESET) => {}
            Ok(0) => return said,
            Ok(length) => said.push(packet[..length].to_vec()),
            Err(errnum) => panic!("neither an answer nor the end: {errnum}"),
        }
    }
}

fn send(socket: &OwnedFd, message: &[u8], descriptors: &[i32]) {
    let mut control = [0_u64; 8];
    let mut iov = socket::slice(message);
    // SAFETY: all zeros are a message, whose parts are set below; the control
    // message has room for eight descriptors.
    let sent = unsafe {
        let mut header: libc::msghdr = core::mem::zeroed();
        header.msg_iov = &mut iov;
        header.msg_iovlen = 1;
        let size = size_of_val(descriptors) as u32;
        if size > 0 {
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(size) as _;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size) as _;
            let data = libc::CMSG_DATA(first).cast::<i32>();
            core::ptr::copy_nonoverlapping(descriptors.as_ptr(), data, descriptors.len());
        }
        libc::sendmsg(socket.as_raw_fd(), &header, 0)
    };
    assert_eq!(sent, message.len() as isize);
}

fn text_of(message: &[u8]) -> (Header, Answer, String) {
    let (header, body) = Header::split(message).expect("a header");
    let mut reader = Reader(body);
    let answer = Answer::read(&mut reader).expect("an answer");
    let text = &reader.0[4 * answer.results as usize..];
    (
        header,
        answer,
        String::from_utf8(text.to_vec()).expect("UTF-8"),
    )
}

#[test]
fn what_is_malformed_ends_a_connection_with_the_text_that_the_vectors_have() {
    let (server, target) = (server(), Target::new());
    for vector in vectors("malformed_for_delegate") {
        let name = &vector["name"];
        let descriptors = texts(&vector["descriptors"]);
        let descriptors = descriptors
            .iter()
            .map(|name| target.descriptor(name))
            .collect();
        let greeting = (bytes(&vectors("hellos")[0]), Vec::new());
        let after = (greeting.0.clone(), Vec::new());
        let malformed = (target.message(&vector), descriptors);
        let is_first = vector["first"] == true;
        let messages = match is_first {
            true => std::vec![malformed, after],
            false => std::vec![greeting, malformed, after],
        };
        let said = said(&server, &messages);
        assert_eq!(
            said.len(),
            if is_first { 1 } else { 2 },
            "{name}: it is the end"
        );
        let (header, answer, text) = text_of(said.last().unwrap());
        assert_eq!((header.operation, header.request), (OUTCOME, 0), "{name}");
        assert_eq!(answer.verdict as u32, 2, "{name}");
        assert_eq!(text, vector["error"].as_str().unwrap(), "{name}");
    }
    drop(target.end);
}

#[test]
fn what_is_understood_is_answered_and_the_connection_goes_on() {
    let (server, target) = (server(), Target::new());
    let question = bytes(&vectors("questions")[0]);
    for vector in vectors("answered_by_delegate")
        .into_iter()
        .chain(vectors("requests"))
    {
        let name = &vector["name"];
        let descriptors = texts(&vector["descriptors"]);
        let descriptors = descriptors
            .iter()
            .map(|name| target.descriptor(name))
            .collect();
        let greeting = (bytes(&vectors("hellos")[0]), Vec::new());
        let message = (target.message(&vector), descriptors);
        let said = said(
            &server,
            &[greeting, message, (question.clone(), Vec::new())],
        );
        assert_eq!(
            said.len(),
            3,
            "{name}: a hello, an answer, and one to a question"
        );
        let (header, answer, text) = text_of(&said[1]);
        assert_eq!(header.request, 0x1122_3344_5566_7788, "{name}");
        // By the policy of this test, a request that was understood is refused.
        let (verdict, code) = match vector["verdict"].as_u64() {
            Some(verdict) => (verdict as u32, number(&vector["code"]) as u32),
            None => (2, 4),
        };
        assert_eq!(
            (answer.verdict as u32, answer.code),
            (verdict, code),
            "{name}: {text}"
        );
        let expected = vector["text"].as_str().unwrap_or("rule \"none\": ");
        assert!(text.contains(expected), "{name}: {text}");
    }
    drop(target.end);
}

#[test]
fn what_was_not_permitted_and_tried_leaves_no_process_to_the_next_request() {
    let (server, target) = (server(), Target::new());
    let all = |kind: &str| vectors(kind).into_iter();
    let of_the_same = vectors("requests_of_the_same_process");
    // The policy of this test permits nothing, and a question is none of them.
    let before = all("answered_by_delegate").chain(all("requests"));
    for (vector, next) in before.zip(of_the_same.iter().cycle()) {
        let name = &vector["name"];
        let with_descriptors = |vector: &Value| {
            let names = texts(&vector["descriptors"]);
            let descriptors = names.iter().map(|name| target.descriptor(name)).collect();
            (target.message(vector), descriptors)
        };
        let greeting = (bytes(&vectors("hellos")[0]), Vec::new());
        let messages = [greeting, with_descriptors(&vector), with_descriptors(next)];
        let said = said(&server, &messages);
        assert_eq!(said.len(), 3, "{name}: a hello, an answer, a goodbye");
        let (header, _, text) = text_of(&said[2]);
        assert_eq!((header.operation, header.request), (OUTCOME, 0), "{name}");
        let expected = "there is no process of a request before";
        assert_eq!(text, expected, "{name}");
    }
    drop(target.end);
}
