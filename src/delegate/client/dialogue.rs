// SPDX-License-Identifier: LGPL-2.1-or-later
//! A request over a socket, and the answer: with an end to every wait, without
//! allocation or lock, for forked children do it too.

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use libc::c_int;

use super::Target;
use crate::delegate::address::Address;
use crate::delegate::socket;
use crate::delegate::wire::{
    ANSWER_SIZE, Answer, HELLO, HELLO_MAX, Header, Malformed, OUTCOME, Reader, Request, Spoken,
    TEXT_MAX, Verdict, erase, hello, read_hello,
};
use crate::dispatch::NEGATED_ERRNOS;
use crate::errno::Errno;
use crate::kernel::file::Fd;
use crate::kernel::syscall::syscall;
use crate::operation::OPERATIONS;

/// A socket over which both sides have said hello.
pub(super) struct Connection {
    pub(super) fd: Fd,
    /// Bit n: the delegate has operation n.
    pub(super) speaks: u64,
}

fn now(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a timespec to write.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time
}

/// Until when a call waits.
pub(super) struct Deadline {
    pub(super) timeout_ms: u32,
    pub(super) end_ms: i64,
    /// Whether it waited already: then there is less time left than a socket
    /// waits of its own accord.
    pub(super) waited: Cell<bool>,
}

impl Deadline {
    pub(super) fn new(timeout_ms: u32) -> Self {
        Deadline {
            timeout_ms,
            end_ms: Self::now_ms() + i64::from(timeout_ms),
            waited: Cell::new(false),
        }
    }

    /// Its end, as that clock shows it.
    pub(super) fn end_on(&self, clock: libc::clockid_t) -> libc::timespec {
        let mut time = now(clock);
        let nanoseconds = time.tv_nsec + i64::from(self.left_ms()) * 1_000_000;
        time.tv_sec += nanoseconds / 1_000_000_000;
        time.tv_nsec = nanoseconds % 1_000_000_000;
        time
    }

    pub(super) fn now_ms() -> i64 {
        let time = now(libc::CLOCK_MONOTONIC);
        time.tv_sec * 1000 + time.tv_nsec / 1_000_000
    }

    pub(super) fn left_ms(&self) -> c_int {
        (self.end_ms - Self::now_ms()).clamp(0, self.timeout_ms.into()) as c_int
    }

    /// Waits for the socket.
    pub(super) fn wait(&self, socket: c_int, events: i16) -> core::result::Result<(), Trouble> {
        self.waited.set(true);
        loop {
            match self.left_ms() {
                0 => return Err(Trouble::TooLate),
                left => match socket::wait(socket, events, left) {
                    Ok(true) => return Ok(()),
                    Ok(false) | Err(Errno::EINTR) => {}
                    Err(errnum) => return Err(Trouble::Away(errnum)),
                },
            }
        }
    }

    /// Sleeps a random time up to `most_ms`.
    pub(super) fn pause(&self, most_ms: u64) {
        self.waited.set(true);
        let pause = (random() % most_ms).min(self.left_ms() as u64) as i64;
        let time = libc::timespec {
            tv_sec: 0,
            tv_nsec: pause * 1_000_000,
        };
        // SAFETY: a time to read; what is left of it nobody wants to know.
        let _ = unsafe { syscall(libc::SYS_nanosleep, [&raw const time as usize, 0, 0, 0]) };
    }
}

/// Why there is no answer.
pub(super) enum Trouble {
    /// It cannot be reached.
    Away(Errno),
    /// There was no more time, and nothing was sent.
    TooLate,
    /// Sent, and never answered: there was no more time...
    Unanswered,
    /// ... or the connection ended ...
    Broken,
    /// ... or what came is no answer to it.
    Garbled(Malformed),
    /// It does not speak as agreed.
    Malformed(Malformed),
    /// It does not speak with this process, and says why.
    Dismissed,
}

impl Trouble {
    /// Whether nobody is there to be asked. What this process lacks, such as a
    /// free descriptor, or may not do says nothing of the delegate.
    pub(super) fn is_absence(&self) -> bool {
        use libc::{
            ECONNREFUSED, ECONNRESET, ENOENT, ENOTCONN, ENOTDIR, ENOTSOCK, EPIPE, EPROTOTYPE,
        };
        matches!(
            self,
            Trouble::Away(Errno(
                ECONNREFUSED
                    | ECONNRESET
                    | ENOENT
                    | ENOTCONN
                    | ENOTDIR
                    | ENOTSOCK
                    | EPIPE
                    | EPROTOTYPE
            ))
        )
    }
}

impl From<Malformed> for Trouble {
    fn from(malformed: Malformed) -> Trouble {
        Trouble::Malformed(malformed)
    }
}

/// The text that comes with an answer.
pub(super) struct Text {
    pub(super) bytes: [Cell<u8>; TEXT_MAX],
    pub(super) length: Cell<usize>,
}

impl Text {
    pub(super) fn new() -> Text {
        Text {
            bytes: [const { Cell::new(0) }; TEXT_MAX],
            length: Cell::new(0),
        }
    }

    pub(super) fn set(&self, text: &[u8]) {
        for (to, from) in self.bytes.iter().zip(text) {
            to.set(*from);
        }
        self.length.set(text.len().min(TEXT_MAX));
    }

    /// A text that came without results has its beginning in their place.
    fn move_out_of(&self, results: &[Cell<c_int>]) {
        let moved = size_of_val(results);
        for index in (moved..TEXT_MAX).rev() {
            self.bytes[index].set(self.bytes[index - moved].get());
        }
        for (to, result) in self.bytes.chunks(size_of::<c_int>()).zip(results) {
            for (to, from) in to.iter().zip(result.get().to_ne_bytes()) {
                to.set(from);
            }
        }
        results.iter().for_each(|result| result.set(0));
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; TEXT_MAX];
        for (to, from) in bytes.iter_mut().zip(&self.bytes) {
            *to = from.get();
        }
        let text = str::from_utf8(&bytes[..self.length.get()]).ok();
        match text.filter(|text| !text.is_empty() && !text.contains(char::is_control)) {
            Some(text) => f.write_str(text),
            None => f.write_str("it does not say why"),
        }
    }
}

/// A number that nobody can guess, or at least that nobody else has.
pub(super) fn random() -> u64 {
    let mut number = 0_u64;
    // SAFETY: the kernel writes at most eight bytes.
    let got = unsafe {
        syscall(
            libc::SYS_getrandom,
            [
                &raw mut number as usize,
                size_of::<u64>(),
                libc::GRND_NONBLOCK as usize,
                0,
            ],
        )
    };
    match got {
        Ok(8) => number,
        _ => {
            let time = now(libc::CLOCK_MONOTONIC);
            (time.tv_nsec as u64) << 32 ^ time.tv_sec as u64 ^ crate::fork::getpid() as u64
        }
    }
}

/// The id of a new request: not 0, and no other process's.
pub(super) fn new_request(child: bool) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    // A child would count on from where its parent was.
    if child {
        return random() | 1;
    }
    if LAST.load(Ordering::Relaxed) == 0 {
        let first = random() >> 1;
        let _ = LAST.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    }
    LAST.fetch_add(1, Ordering::Relaxed).max(1)
}

/// Connects, and says hello.
pub(super) fn dial(
    target: &Target,
    patient: bool,
    deadline: &Deadline,
    text: &Text,
) -> core::result::Result<Connection, Trouble> {
    let Address::Unix(path) = &target.address else {
        return Err(Trouble::Away(Errno::ECONNREFUSED));
    };
    // What was there a moment ago may be about to come back. Not all who
    // asked it should be there at once.
    let mut attempts_left = if patient { 4 } else { 0 };
    loop {
        let fd = socket::open(libc::SOCK_NONBLOCK).map_err(Trouble::Away)?;
        let (address, length) = path.as_sockaddr();
        // SAFETY: an address of that length.
        let connected = unsafe {
            syscall(
                libc::SYS_connect,
                [fd.get() as usize, address as usize, length, 0],
            )
        };
        match connected {
            Ok(_) => {
                // Waits are bounded by the socket itself: one call to receive
                // is enough.
                let greeted = block(&fd, target.timeout_ms)
                    .map_err(Trouble::Away)
                    .and_then(|()| greet(fd.get(), deadline, text));
                match greeted {
                    // It ended while this was waiting to be accepted.
                    Err(Trouble::Away(_)) if attempts_left > 0 => {
                        attempts_left -= 1;
                        deadline.pause(50);
                    }
                    greeted => return greeted.map(|speaks| Connection { fd, speaks }),
                }
            }
            Err(Errno::EINTR) => {}
            // Too many are waiting to be accepted.
            Err(Errno::EAGAIN) => match deadline.left_ms() {
                0 => return Err(Trouble::TooLate),
                _ => deadline.pause(20),
            },
            Err(errnum) if attempts_left == 0 => return Err(Trouble::Away(errnum)),
            Err(_) => {
                attempts_left -= 1;
                deadline.pause(50);
            }
        }
    }
}

/// Makes a socket wait, but not for ever.
pub(super) fn block(fd: &Fd, timeout_ms: u32) -> core::result::Result<(), Errno> {
    let time = libc::timeval {
        tv_sec: (timeout_ms / 1000).into(),
        tv_usec: (timeout_ms % 1000 * 1000).into(),
    };
    socket::set_option(fd.get(), libc::SO_RCVTIMEO, &time)?;
    // SAFETY: numbers only.
    crate::kernel::check(unsafe { libc::fcntl(fd.get(), libc::F_SETFL, 0) }).map(|_| ())
}

/// Both sides say what they speak: the delegate's operations, a bit for each.
pub(super) fn greet(
    socket: c_int,
    deadline: &Deadline,
    text: &Text,
) -> core::result::Result<u64, Trouble> {
    let body = hello(OPERATIONS.iter().map(|kind| Spoken {
        operation: kind.id,
        lowest: kind.version,
        highest: kind.version,
    }));
    let header = Header::new(HELLO, 0, body.as_bytes().len(), 0);
    let buffers = [
        socket::slice(header.as_bytes()),
        socket::slice(body.as_bytes()),
    ];
    match send(socket, &buffers, &[], deadline) {
        // It may have said why it does not listen.
        Ok(()) | Err(Trouble::Away(Errno(libc::EPIPE | libc::ECONNRESET))) => {}
        Err(trouble) => return Err(trouble),
    }
    let mut answer = [0; size_of::<Header>() + HELLO_MAX];
    let buffers = [socket::slice_mut(&mut answer)];
    let length = receive(socket, &buffers, deadline).map_err(|trouble| match trouble {
        // Nothing that acts was sent.
        Trouble::Unanswered => Trouble::TooLate,
        Trouble::Broken => Trouble::Away(Errno::ECONNRESET),
        trouble => trouble,
    })?;
    let (header, body) = Header::split(&answer[..length])?;
    header.require_no_flags()?;
    if header.operation != HELLO {
        return Err(dismissed(header, body, text)?);
    }
    let mut speaks = 0;
    read_hello(body, |spoken| {
        speaks |= 1_u64.checked_shl(spoken.operation).unwrap_or(0);
    })?;
    Ok(speaks)
}

/// A delegate's last words: an answer to what was no request.
pub(super) fn dismissed(
    header: Header,
    body: &[u8],
    text: &Text,
) -> core::result::Result<Trouble, Malformed> {
    if header.operation != OUTCOME {
        return Err(Malformed("there is no hello"));
    }
    let mut reader = Reader(body);
    let answer = Answer::read(&mut reader)?;
    text.set(reader.bytes(answer.text as usize)?);
    Ok(Trouble::Dismissed)
}

/// Whether nothing has come over a socket between a request and the next, as it
/// must be: neither its end nor last words.
pub(super) fn is_silent(socket: c_int) -> bool {
    loop {
        match socket::wait(socket, libc::POLLIN, 0) {
            Err(Errno::EINTR) => {}
            said => return said == Ok(false),
        }
    }
}

pub(super) fn send(
    socket: c_int,
    buffers: &[libc::iovec],
    descriptors: &[c_int],
    deadline: &Deadline,
) -> core::result::Result<(), Trouble> {
    loop {
        // SAFETY: the caller's slices.
        match unsafe { socket::send(socket, buffers, descriptors, libc::MSG_DONTWAIT) } {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => deadline.wait(socket, libc::POLLOUT)?,
            Err(errnum) => return Err(Trouble::Away(errnum)),
        }
    }
}

/// Receives one packet, and no descriptors: the kernel closes what comes.
pub(super) fn receive(
    socket: c_int,
    buffers: &[libc::iovec],
    deadline: &Deadline,
) -> core::result::Result<usize, Trouble> {
    // SAFETY: integers, of which all zeros are valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len() as _;
    let mut flags = match deadline.waited.replace(true) {
        false => 0,
        true => libc::MSG_DONTWAIT as usize,
    };
    let mut reset = false;
    loop {
        // SAFETY: the message names the caller's slices.
        let received = unsafe {
            syscall(
                libc::SYS_recvmsg,
                [socket as usize, &raw mut message as usize, flags, 0],
            )
        };
        match received {
            Ok(0) => return Err(Trouble::Broken),
            Ok(_) if message.msg_flags & libc::MSG_TRUNC != 0 => {
                return Err(Malformed("the answer is too long").into());
            }
            Ok(length) => return Ok(length),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if deadline.left_ms() == 0 => return Err(Trouble::Unanswered),
            Err(Errno::EAGAIN) => {}
            // It was closed before it had read all: what it said is behind
            // this error, which comes once.
            Err(Errno::ECONNRESET) if !reset => {
                reset = true;
                continue;
            }
            Err(_) => return Err(Trouble::Broken),
        }
        // A signal came, or it waited before: what is left of the time is not
        // what the socket waits.
        flags = libc::MSG_DONTWAIT as usize;
        deadline
            .wait(socket, libc::POLLIN)
            .map_err(|trouble| match trouble {
                Trouble::TooLate => Trouble::Unanswered,
                _ => Trouble::Broken,
            })?;
    }
}

/// Sends a request over a socket and waits for the answer.
pub(super) fn exchange(
    socket: c_int,
    question: &Question<'_>,
    same_process: bool,
    deadline: &Deadline,
) -> core::result::Result<Answer, Trouble> {
    let Question {
        header,
        request,
        results,
        text,
        ..
    } = question;
    let (header, descriptors) = request.headed(*header, same_process);
    let [one, two, three] = *request.parts();
    let buffers = [header.as_bytes(), request.fixed.as_bytes(), one, two, three].map(socket::slice);
    send(socket, &buffers, descriptors, deadline)?;

    let mut head = [0; ANSWER_HEAD];
    let buffers = [
        socket::slice_mut(&mut head),
        socket::slice_of_cells(results),
        socket::slice_of_cells(&text.bytes),
    ];
    let answer = receive(socket, &buffers, deadline).and_then(|length| {
        let answer = read_answer(question, &head, length);
        answer.unwrap_or_else(|malformed| Err(malformed.into()))
    });
    erase(&mut head);
    answer.map_err(|trouble| match trouble {
        // The request was sent all the same.
        Trouble::Malformed(malformed) => {
            results.iter().for_each(|result| result.set(0));
            Trouble::Garbled(malformed)
        }
        trouble => trouble,
    })
}

const ANSWER_HEAD: usize = size_of::<Header>() + ANSWER_SIZE;

/// Reads an answer that was received, `length` bytes in all, into the buffers
/// of the question.
pub(super) fn read_answer(
    question: &Question<'_>,
    head: &[u8; ANSWER_HEAD],
    length: usize,
) -> core::result::Result<core::result::Result<Answer, Trouble>, Malformed> {
    let mut reader = Reader(&head[..ANSWER_HEAD.min(length)]);
    let header = Header::read(&mut reader)?;
    header.require_no_flags()?;
    let answer = Answer::read(&mut reader)?;
    let tail = answer.results as usize * size_of::<c_int>() + answer.text as usize;
    if ANSWER_HEAD + tail != length || header.size as usize + size_of::<Header>() != length {
        return Err(Malformed("it is not as long as it says"));
    }
    let has_results = answer.results as usize == question.results.len();
    if answer.results == 0 && !has_results {
        question.text.move_out_of(question.results);
    }
    if answer.results == 0 || has_results {
        question.text.length.set(answer.text as usize);
    }
    let asked = question.header;
    if header.operation == OUTCOME && asked.operation != OUTCOME && answer.results == 0 {
        return Ok(Err(Trouble::Dismissed));
    }
    if (header.operation, header.request) != (asked.operation, asked.request) {
        return Err(Malformed("it is to another request"));
    }
    if !has_results && (answer.verdict == Verdict::Handled || answer.results != 0) {
        return Err(Malformed("it has not as many results as there are threads"));
    }
    let is_result =
        |result: &Cell<c_int>| result.get() == 0 || NEGATED_ERRNOS.contains(&result.get());
    if !question.results.iter().all(is_result) {
        return Err(Malformed("a result is neither 0 nor -errno"));
    }
    Ok(Ok(answer))
}

/// Something to ask a delegate: to do an operation, or what became of that.
pub(super) struct Question<'a> {
    pub(super) header: Header,
    /// Whether the process is that of the last request over the thread's own
    /// socket.
    pub(super) same_process: bool,
    pub(super) request: &'a Request<'a>,
    pub(super) results: &'a [Cell<c_int>],
    pub(super) text: &'a Text,
}
