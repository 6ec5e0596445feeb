// SPDX-License-Identifier: LGPL-2.1-or-later
//! A delegate against a peer that sends what it likes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use virt_internal::delegate::policy::Policy;
use virt_internal::delegate::server::{Audit, Server};

use crate::input::{Packet, header, packets};
use crate::sockets;

/// What there is once: a delegate, and a process that it is asked about.
struct World {
    server: Server,
    /// The process, a thread of it, a cgroup, a file, a socket, a FIFO, this
    /// thread, a process that has exited.
    descriptors: [OwnedFd; 8],
    tid: i32,
}

/// Everything is allowed on what is not root's: the process has a user id of
/// its own where that can be had, so that nothing else is changed.
const POLICY: &str = r#"
version = 1
[[rule]]
name = "some"
peer = { uid = "0-4294967294" }
target = { cgroup = "/", uid = "0-4294967294" }
process-set-max-mem-lock = { max = "1 GiB", grant = "64 KiB" }
process-set-max-processes = { max = 100000 }
process-set-max-files = { max = 1000 }
process-set-max-core-size = { max = "unlimited" }
process-set-scheduler = { policies = ["other", "batch", "idle", "fifo"], max-priority = 2, cpus = "0-1" }
process-set-affinity = { cpus = "0-7" }
cgroup-add-threads = { roles = ["vcpu", "helper"], cgroup = "/" }
"#;

fn pidfd(id: i32, flags: libc::c_uint) -> OwnedFd {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) };
    assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    // SAFETY: just opened.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// A process that ends with this one, and the number of its second thread.
fn target() -> (i32, i32) {
    let [mut read, write] = {
        let mut pipe = [0; 2];
        // SAFETY: two ints to write.
        assert_eq!(
            unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) },
            0
        );
        // SAFETY: just made.
        pipe.map(|fd| unsafe { File::from_raw_fd(fd) })
    };
    // SAFETY: the child makes a thread and waits, by system calls alone.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: as above. The stack is the child's own, and lives as long as
        // it does.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            static mut STACK: [u64; 4096] = [0; 4096];
            extern "C" fn wait(pipe: *mut libc::c_void) -> libc::c_int {
                // SAFETY: an int to read.
                unsafe {
                    let tid = libc::syscall(libc::SYS_gettid) as i32;
                    libc::write(pipe as i32, (&raw const tid).cast(), 4);
                    loop {
                        libc::syscall(libc::SYS_pause);
                    }
                }
            }
            let flags = libc::CLONE_VM
                | libc::CLONE_THREAD
                | libc::CLONE_SIGHAND
                | libc::CLONE_FILES
                | libc::CLONE_FS;
            let top = (&raw mut STACK).cast::<u64>().add(4096).cast();
            libc::clone(wait, top, flags, write.as_raw_fd() as *mut libc::c_void);
            loop {
                libc::pause();
            }
        }
    }
    let mut tid = [0; 4];
    read.read_exact(&mut tid).expect("the number of a thread");
    (child, i32::from_ne_bytes(tid))
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let (pid, tid) = target();
        // SAFETY: the child ends at once.
        let dead = unsafe { libc::fork() };
        if dead == 0 {
            // SAFETY: no arguments that matter.
            unsafe { libc::_exit(0) };
        }
        let exited = pidfd(dead, 0);
        // SAFETY: a child of ours.
        unsafe { libc::waitpid(dead, std::ptr::null_mut(), 0) };
        let mounts = std::fs::read_to_string("/proc/mounts").expect("/proc/mounts");
        let cgroup = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let cgroup = cgroup
            .and_then(|line| line.split(' ').nth(1))
            .unwrap_or("/tmp");
        let open_path = |path: &str| {
            use std::os::unix::fs::OpenOptionsExt;
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_PATH);
            OwnedFd::from(options.open(path).expect("O_PATH"))
        };
        // SAFETY: no arguments.
        let own = unsafe { libc::gettid() };
        let [socket, _] = sockets::pair();
        let policy = Policy::parse(POLICY, "policy.toml").expect("the policy");
        let audit = Audit::file(Path::new("/dev/null")).expect("/dev/null");
        World {
            server: Server::new(policy, audit).expect("a delegate"),
            descriptors: [
                pidfd(pid, 0),
                pidfd(tid, libc::PIDFD_THREAD as libc::c_uint),
                open_path(cgroup),
                File::open("/dev/zero").expect("/dev/zero").into(),
                socket,
                open_path("/tmp"),
                pidfd(own, libc::PIDFD_THREAD as libc::c_uint),
                exited,
            ],
            tid,
        }
    })
}

/// What descriptors a packet has, by its byte.
fn descriptors(world: &World, byte: u8) -> Vec<i32> {
    let [
        process,
        thread,
        cgroup,
        file,
        socket,
        directory,
        own,
        exited,
    ] = world.descriptors.each_ref().map(AsRawFd::as_raw_fd);
    match byte % 16 {
        0 => vec![],
        1 | 2 => vec![process],
        3 => vec![process, thread],
        4 => vec![process, cgroup],
        5 => vec![thread],
        6 => vec![file],
        7 => vec![socket],
        8 => vec![process, file],
        9 => vec![process, socket],
        10 => vec![process, directory],
        11 => vec![process, thread, cgroup],
        12 => vec![process; 5],
        13 => vec![exited],
        14 => vec![exited, thread],
        // Its own process is asked about with a thread of another.
        _ => vec![process, own],
    }
}

/// In the byte of a packet's descriptors: the header has the flag.
const SAME_PROCESS: u8 = 0x40;

fn bytes(world: &World, packet: &Packet<'_>, request: u64) -> Vec<u8> {
    let body = packet.body;
    let operation = match packet.kind {
        0 => return body.to_vec(),
        // Numbers of operations that there are not, too.
        kind @ 1..=63 => u32::from(kind % 10),
        _ => u32::MAX,
    };
    let version = u32::from(packet.kind & 0x40 == 0 && operation != 0);
    let mut bytes = header(operation, version, body.len(), request).to_vec();
    if packet.descriptors & SAME_PROCESS != 0 {
        bytes[20..24].copy_from_slice(&1_u32.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    // A number of a thread, of which this process has one.
    let at = if operation == 7 { 52 } else { 32 };
    if packet.descriptors & 0x80 != 0
        && matches!(operation, 5..=7)
        && let Some(number) = bytes.get_mut(at..at + 4)
    {
        number.copy_from_slice(&world.tid.to_ne_bytes());
    }
    bytes
}

/// An input is the packets of a peer, behind a hello unless the first byte is
/// 0xff.
pub fn server(input: &[u8]) {
    let world = world();
    // What is opened once and kept.
    static WARM: OnceLock<()> = OnceLock::new();
    WARM.get_or_init(|| {
        let mut input = Vec::new();
        for (operation, descriptors, body) in [(7, 4, &[0_u8; 24][..]), (4, 1, &[0; 8])] {
            input.extend_from_slice(&[operation, descriptors | 0x80, body.len() as u8, 0]);
            input.extend_from_slice(body);
        }
        // One thread.
        input[8] = 1;
        input[16] = 1;
        run(world, &input);
    });
    let before = sockets::descriptors();
    run(world, input);
    let after = sockets::descriptors();
    assert_eq!(before, after, "descriptors before and after");
}

fn run(world: &World, input: &[u8]) {
    let [ours, theirs] = sockets::pair();
    let input = match input.strip_prefix(&[0xff]) {
        Some(input) => input,
        None => {
            let mut hello = header(0, 0, 8, 0).to_vec();
            hello.extend_from_slice(&[0; 8]);
            assert!(sockets::send(&ours, &hello, &[]));
            input
        }
    };
    let mut sent = Vec::new();
    for (packet, request) in packets(input).zip(1..) {
        let bytes = bytes(world, &packet, request);
        if !sockets::send(&ours, &bytes, &descriptors(world, packet.descriptors)) {
            break;
        }
        sent.push(bytes);
    }
    sockets::end(&ours);
    world.server.serve_connected(theirs);
    let mut answers = 0;
    let mut requests = sent.iter();
    let mut is_kept = false;
    let mut is_over = false;
    while let Some(said) = sockets::receive(&ours, libc::MSG_DONTWAIT) {
        assert!(!is_over, "something was said after a goodbye");
        let word = |at: usize| u32::from_ne_bytes(said[at..at + 4].try_into().unwrap());
        assert_eq!(&said[..4], b"VIRd", "an answer's magic");
        assert_eq!(word(16) as usize, said.len() - 32, "an answer's size");
        if word(8) != 0 {
            let (results, text) = (word(44) as usize, word(48) as usize);
            assert_eq!(said.len(), 56 + 4 * results + text, "an answer's parts");
            assert!(word(32) <= 4 && text <= 400, "an answer's verdict and text");
            let text = str::from_utf8(&said[56 + 4 * results..]).expect("UTF-8");
            // Nothing answered is without a reason, if it was not done.
            assert!(matches!(word(32), 0 | 1) || !text.is_empty(), "no reason");
        }
        is_over = word(8) == u32::MAX && said[24..32] == [0; 8];
        if !is_over && word(8) != 0 {
            let request = requests.next().expect("an answer to nothing");
            let flag = u32::from_ne_bytes(request[20..24].try_into().unwrap());
            assert!(flag == 0 || is_kept, "a process that nobody sent");
            // A question changes nothing.
            if word(8) != u32::MAX {
                is_kept = (1..=7).contains(&word(8)) && word(12) == 1 && word(32) != 2;
            }
        }
        answers += 1;
    }
    let sent = sent.len();
    assert!(answers <= sent + 1, "{answers} answers to {sent} packets");
}
