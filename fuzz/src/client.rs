// SPDX-License-Identifier: LGPL-2.1-or-later
//! The client against a delegate that says what it likes.

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::OnceLock;

use virt_internal::capi::cgroup_add_threads::virInternalCgroupAddThreads;
use virt_internal::capi::delegate::{
    virInternalAskDelegate, virInternalConnectDelegate, virInternalDisconnectDelegate,
};
use virt_internal::capi::error::virInternalGetLastError;
use virt_internal::capi::process_set_max_core_size::virInternalProcessSetMaxCoreSize;
use virt_internal::capi::process_set_scheduler::virInternalProcessSetScheduler;

use crate::input::{header, packets};
use crate::sockets;

const NO_DIRECT: u32 = 1 << 30;

/// An input is a byte for what is asked, and the packets that answer: to the
/// hello, then to requests. With no packet left the connection ends.
pub fn client(input: &[u8]) {
    static WARM: OnceLock<()> = OnceLock::new();
    WARM.get_or_init(|| run(0, &[]));
    let Some((&asked, input)) = input.split_first() else {
        return;
    };
    let before = sockets::descriptors();
    run(asked, input);
    let after = sockets::descriptors();
    assert_eq!(before, after, "descriptors before and after");
}

/// How often it is asked, over one connection.
const TIMES: usize = 3;

fn run(asked: u8, input: &[u8]) {
    let [ours, theirs] = sockets::pair();
    let script: Vec<_> = packets(input)
        .map(|packet| (packet.kind, packet.descriptors, packet.body.to_vec()))
        .collect();
    let delegate = std::thread::spawn(move || answer(&theirs, &script));

    let address = CString::new(format!("fd:{}", ours.as_raw_fd())).expect("an address");
    // SAFETY: a C string.
    let connected = unsafe { virInternalConnectDelegate(null_mut(), 1, address.as_ptr(), 0, 0) };
    assert_eq!(connected, 0, "virInternalConnectDelegate");
    drop(ours);
    let outcomes: Vec<_> = (0..TIMES).map(|_| ask(asked)).collect();
    virInternalDisconnectDelegate(null_mut());
    let verdicts = delegate.join().expect("the delegate's thread");
    let done = outcomes.iter().filter(|&&outcome| outcome == 0).count();
    let said = verdicts.iter().filter(|&&verdict| verdict == 0).count();
    assert!(
        done <= said,
        "done {done} times, which was said {said} times"
    );
}

/// Asks; what it returned.
fn ask(asked: u8) -> i32 {
    // SAFETY: no arguments.
    let (pid, tid) = unsafe { (libc::getpid(), libc::gettid()) };
    let conn = null_mut();
    let mut results = [0; 2];
    let tids = [tid, tid];
    let mut ntids = 0;
    // SAFETY: arrays of those lengths; strings.
    let result = unsafe {
        match asked % 4 {
            0 => {
                let mut limit: libc::rlimit = std::mem::zeroed();
                libc::getrlimit(libc::RLIMIT_CORE, &mut limit);
                virInternalProcessSetMaxCoreSize(conn, pid, limit.rlim_cur, NO_DIRECT)
            }
            1 => virInternalProcessSetScheduler(conn, pid, pid, 0x100, 0, NO_DIRECT),
            2 => {
                ntids = 1 + usize::from(asked >> 7);
                virInternalCgroupAddThreads(
                    conn,
                    pid,
                    std::ptr::null(),
                    0,
                    tids.as_ptr(),
                    std::ptr::null(),
                    ntids,
                    std::ptr::null(),
                    0,
                    results.as_mut_ptr(),
                    NO_DIRECT,
                )
            }
            _ => virInternalAskDelegate(conn, 77, 0),
        }
    };
    for result in &results[..ntids] {
        assert!((-4095..=0).contains(result), "a result of {result}");
    }
    match result {
        0 | 1 => {}
        -1 => {
            // SAFETY: the thread's last error, which is there after -1.
            let (code, errnum, message) = unsafe {
                let error = virInternalGetLastError();
                assert!(!error.is_null(), "no last error");
                let message = CStr::from_ptr((*error).message);
                ((*error).code as i32, (*error).errnum, message.to_str())
            };
            let message = message.expect("UTF-8");
            assert!(!message.is_empty() && !message.contains(char::is_control));
            // Nothing takes so long that it could not be sent in time.
            let defined = [1, 2, 3, 4, 5, 6, 7, 9, 11];
            assert!(defined.contains(&code), "code {code}: {message}");
            assert!((1..4096).contains(&errnum), "errno {errnum}: {message}");
        }
        result => panic!("the result is {result}"),
    }
    result
}

/// Answers requests; the verdicts that were said.
fn answer(socket: &std::os::fd::OwnedFd, script: &[(u8, u8, Vec<u8>)]) -> Vec<u32> {
    let mut verdicts = Vec::new();
    for (kind, descriptors, body) in script {
        let Some(asked) = sockets::receive(socket, 0) else {
            break;
        };
        let word = |at: usize| u32::from_ne_bytes(asked[at..at + 4].try_into().unwrap());
        // Others may ask over the same connection.
        assert_eq!(word(20), 0, "flags over a descriptor");
        let request = u64::from_ne_bytes(asked[24..32].try_into().unwrap());
        let packet = match kind {
            0 => body.clone(),
            // All of it fits, but for the body.
            1..=199 => {
                let mut packet = header(word(8), word(12), body.len(), request).to_vec();
                packet.extend_from_slice(body);
                packet
            }
            200..=229 => {
                let mut packet = header(u32::MAX, 0, body.len(), 0).to_vec();
                packet.extend_from_slice(body);
                packet
            }
            // Whole answers: their verdicts, and texts that fit.
            _ => {
                let [code, errnum, ..] = *body.as_slice() else {
                    break;
                };
                let text = &body[2..body.len().min(402)];
                let results = if word(8) == 7 && kind % 2 == 0 {
                    word(36)
                } else {
                    0
                };
                let words = [
                    u32::from(kind % 5),
                    code.into(),
                    errnum.into(),
                    results,
                    text.len() as u32,
                    0,
                ];
                let mut said: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                said.resize(said.len() + 4 * results as usize, 0);
                said.extend_from_slice(text);
                let mut packet = header(word(8), word(12), said.len(), request).to_vec();
                packet.extend_from_slice(&said);
                packet
            }
        };
        if word(8) != 0 && packet.len() >= 36 {
            verdicts.push(u32::from_ne_bytes(packet[32..36].try_into().unwrap()));
        }
        // A client is sent what it must not keep.
        let mut pipe = [-1; 2];
        // SAFETY: two ints to write.
        unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) };
        let sent = sockets::send(socket, &packet, &pipe[..usize::from(descriptors % 3)]);
        for fd in pipe {
            // SAFETY: just made.
            unsafe { libc::close(fd) };
        }
        if !sent {
            break;
        }
    }
    verdicts
}
