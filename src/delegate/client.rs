// SPDX-License-Identifier: LGPL-2.1-or-later
//! The side that asks: delegates that are connected, and a request to one.
//!
//! A delegate is set for a connection as a handler is, in a registry of its
//! own, which sees to it that nobody is asking when it is gone. Each thread has
//! a socket of its own to it, made when first needed, so that requests do not
//! wait for one another. A forked child makes a new one for each request: it
//! must not speak over its parent's, and has nowhere to keep one.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

use libc::c_int;

use super::address::Address;
use super::socket;
use super::wire::{
    ANSWER_SIZE, Answer, HELLO, HELLO_MAX, Header, Malformed, OUTCOME, Reader, Request, Spoken,
    TEXT_MAX, Verdict, erase, failed_code, hello, read_hello,
};
use crate::dispatch::{Kind, Operation, Outcome};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::fork::Page;
use crate::inside::Inside;
use crate::kernel::file::Fd;
use crate::kernel::memory;
use crate::kernel::process::Held;
use crate::kernel::syscall::syscall;
use crate::operation::OPERATIONS;
use crate::registry::{Call, Handler, Key, Registry};
use crate::sync::{Mutex, lock};
use crate::thread::{self, Thread};

/// How long a call waits for a delegate, when nobody says otherwise.
pub(crate) const TIMEOUT_MS: u32 = 2000;

/// The longest that a call can be told to wait: a day.
pub(crate) const TIMEOUT_MAX_MS: u32 = 24 * 60 * 60 * 1000;

/// Which delegate, and how it is asked. Never freed: a child of vfork() may
/// read it while its parent's threads go on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Target {
    pub(crate) address: Address,
    pub(crate) timeout_ms: u32,
    /// One that is away counts as one that does not handle anything.
    pub(crate) optional: bool,
}

/// A delegate that this process was connected to.
struct Delegate {
    target: &'static Target,
    /// Whether it was there once: then it may be about to come back.
    reached: AtomicBool,
    /// The one connection, when it is by a descriptor.
    only: Only,
}

/// The delegates, by connection.
static DELEGATES: Registry = Registry::new(HELLO);

/// The one that the environment names, for every connection.
static ENVIRONMENT: AtomicPtr<Delegate> = AtomicPtr::new(ptr::null_mut());

/// The id of the environment's delegate, which no registry gives.
const ENVIRONMENT_ID: u64 = u64::MAX;

/// Whether any delegate is connected. All that a call reads when there is none.
#[inline(always)]
pub(crate) fn is_any() -> bool {
    !DELEGATES.is_empty() || !ENVIRONMENT.load(Ordering::Relaxed).is_null()
}

/// Every target that was ever connected to, once.
static TARGETS: Mutex<Vec<&'static Target>> = Mutex::new(Vec::new());

fn interned(target: Target) -> &'static Target {
    let mut targets = lock(&TARGETS);
    let known = targets.iter().find(|known| ***known == target);
    known.copied().unwrap_or_else(|| {
        let target: &'static Target = Box::leak(Box::new(target));
        targets.push(target);
        target
    })
}

/// Connects `key` to a delegate, in the place of the one before.
pub(crate) fn connect(key: Key, target: Target, inside: &Inside) -> Result<()> {
    let only = match target.address {
        Address::Descriptor(fd) => Only::duplicate_of(fd)?,
        _ => Only::none(),
    };
    let target = interned(target);
    let delegate = Box::into_raw(Box::new(Delegate {
        target,
        reached: AtomicBool::new(false),
        only,
    }));
    let handler = Handler {
        code: ptr::from_ref(target).cast(),
        opaque: delegate.cast(),
        free: Some(free),
        fork_safe: true,
    };
    DELEGATES.set(key, Some(handler), inside);
    Ok(())
}

/// Disconnects `key` from its delegate, if it has one.
pub(crate) fn disconnect(key: Key, inside: &Inside) {
    DELEGATES.set(key, None, inside);
}

/// Nobody asks this delegate any more.
unsafe extern "C-unwind" fn free(delegate: *mut c_void) {
    let delegate = delegate.cast::<Delegate>();
    close_links(delegate);
    // SAFETY: `connect` made it with a Box, and the registry calls this once.
    drop(unsafe { Box::from_raw(delegate) });
}

/// Reads the environment, when the library is first used: by anybody, so it
/// allocates nothing.
pub(crate) fn read_environment() {
    const NAME: &core::ffi::CStr = c"LIBVIRT_INTERNAL_DELEGATE";
    unsafe extern "C" {
        fn secure_getenv(name: *const libc::c_char) -> *const libc::c_char;
    }
    // SAFETY: a C string; NULL where credentials were raised.
    let text = unsafe {
        let text = secure_getenv(NAME.as_ptr());
        match text.is_null() {
            true => return,
            false => core::ffi::CStr::from_ptr(text),
        }
    };
    if text.is_empty() {
        return;
    }
    let address = Address::parse(text).unwrap_or(Address::Invalid);
    let Ok(memory) = memory::map(size_of::<(Delegate, Target)>()) else {
        return;
    };
    let memory = memory.cast::<(Delegate, Target)>();
    // SAFETY: large enough, aligned to a page, and nobody else knows of it
    // before it is published; then nobody unmaps it.
    unsafe {
        let target = &raw mut (*memory).1;
        target.write(Target {
            address,
            timeout_ms: TIMEOUT_MS,
            optional: false,
        });
        let delegate = &raw mut (*memory).0;
        delegate.write(Delegate {
            target: &*target,
            reached: AtomicBool::new(false),
            only: match address {
                Address::Descriptor(fd) => Only::of(fd),
                _ => Only::none(),
            },
        });
        let published = ENVIRONMENT.compare_exchange(
            ptr::null_mut(),
            delegate,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if published.is_err() {
            memory::unmap(memory.cast(), size_of::<(Delegate, Target)>());
        }
    }
}

/// A delegate that a thread is asking: it is not freed meanwhile.
pub(crate) struct Asked<'a> {
    target: &'static Target,
    id: u64,
    /// `None` in a child.
    delegate: Option<&'a Delegate>,
    _call: Option<Call<'a>>,
}

/// The delegate that was set for `key`; for every connection the environment's
/// stands in.
pub(crate) fn enter(key: Key, inside: &Inside, child: bool) -> Option<Asked<'_>> {
    let call = match child {
        false => DELEGATES.enter(key, inside),
        true => DELEGATES.enter_in_child(key, inside),
    };
    if let Some(call) = call {
        // SAFETY: `connect` set both; targets are never freed, delegates not
        // while a call is inside.
        let (target, delegate) = unsafe {
            (
                &*call.handler.code.cast::<Target>(),
                &*call.handler.opaque.cast::<Delegate>(),
            )
        };
        return Some(Asked {
            target,
            id: call.id,
            delegate: (!child).then_some(delegate),
            _call: Some(call),
        });
    }
    if key != 0 {
        return None;
    }
    // SAFETY: null, or published and never unmapped.
    let delegate = unsafe { ENVIRONMENT.load(Ordering::Acquire).as_ref() }?;
    Some(Asked {
        target: delegate.target,
        id: ENVIRONMENT_ID,
        delegate: (!child).then_some(delegate),
        _call: None,
    })
}

/// Where a thread keeps its sockets. All zeros are none.
pub(crate) struct Links([Link; LINKS_MAX]);

/// How many delegates one thread can have a socket to at a time.
const LINKS_MAX: usize = 4;

/// A thread's socket to a delegate. Used by its thread, while it is inside the
/// delegate; closed by who removes the delegate when nobody is inside.
struct Link {
    /// The delegate's id; 0 when this is free.
    id: AtomicU64,
    delegate: AtomicPtr<Delegate>,
    fd: AtomicI32,
    speaks: AtomicU64,
    previous: AtomicPtr<Link>,
    next: AtomicPtr<Link>,
}

/// The first of all links of all threads, in a list. Its lock is held to add
/// and to remove, never while anything waits.
static LINKED: Mutex<First> = Mutex::new(First(ptr::null_mut()));

struct First(*mut Link);

// SAFETY: what it points to is only reached with the lock held.
unsafe impl Send for First {}

impl Link {
    const fn new() -> Self {
        Link {
            id: AtomicU64::new(0),
            delegate: AtomicPtr::new(ptr::null_mut()),
            fd: AtomicI32::new(-1),
            speaks: AtomicU64::new(0),
            previous: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn open(&self, asked: &Asked<'_>, connection: Connection) {
        let mut first = lock(&LINKED);
        let own = ptr::from_ref(self).cast_mut();
        self.previous.store(ptr::null_mut(), Ordering::Relaxed);
        self.next.store(first.0, Ordering::Relaxed);
        // SAFETY: links in the list are alive: a thread takes its own out.
        if let Some(next) = unsafe { first.0.as_ref() } {
            next.previous.store(own, Ordering::Relaxed);
        }
        first.0 = own;
        let delegate = asked.delegate.map_or(ptr::null(), ptr::from_ref);
        self.delegate.store(delegate.cast_mut(), Ordering::Relaxed);
        self.speaks.store(connection.speaks, Ordering::Relaxed);
        self.fd.store(connection.fd.into_raw(), Ordering::Relaxed);
        self.id.store(asked.id, Ordering::Relaxed);
    }

    /// Takes it out of the list and closes it. The lock is held.
    fn close(&self, first: &mut First) {
        let previous = self.previous.load(Ordering::Relaxed);
        let next = self.next.load(Ordering::Relaxed);
        // SAFETY: links in the list are alive.
        unsafe {
            match previous.as_ref() {
                Some(previous) => previous.next.store(next, Ordering::Relaxed),
                None => first.0 = next,
            }
            if let Some(next) = next.as_ref() {
                next.previous.store(previous, Ordering::Relaxed);
            }
            drop(Fd::new(self.fd.swap(-1, Ordering::Relaxed).into()));
        }
        self.id.store(0, Ordering::Relaxed);
    }

    fn close_if_open(&self) {
        let mut first = lock(&LINKED);
        if self.id.load(Ordering::Relaxed) != 0 {
            self.close(&mut first);
        }
    }
}

/// Closes what any thread has to that delegate. Nobody is using it.
fn close_links(delegate: *mut Delegate) {
    let mut first = lock(&LINKED);
    let mut link = first.0;
    // SAFETY: links in the list are alive.
    while let Some(open) = unsafe { link.as_ref() } {
        link = open.next.load(Ordering::Relaxed);
        if open.delegate.load(Ordering::Relaxed) == delegate {
            open.close(&mut first);
        }
    }
}

impl Links {
    pub(crate) const fn new() -> Self {
        Links([const { Link::new() }; LINKS_MAX])
    }

    fn find(&self, id: u64) -> Option<&Link> {
        let is_its = |link: &&Link| link.id.load(Ordering::Relaxed) == id;
        self.0.iter().find(is_its)
    }

    /// A free one; if there is none, the one that `id` makes free.
    fn free(&self, id: u64) -> &Link {
        self.find(0).unwrap_or_else(|| {
            let link = &self.0[id as usize % LINKS_MAX];
            link.close_if_open();
            link
        })
    }

    /// The thread ends.
    pub(crate) fn close(&self) {
        self.0.iter().for_each(Link::close_if_open);
    }
}

/// A socket over which both sides have said hello.
struct Connection {
    fd: Fd,
    /// Bit n: the delegate has operation n.
    speaks: u64,
}

/// The one socket of a delegate that was given by a descriptor: threads take
/// turns.
struct Only {
    turn: UnsafeCell<libc::pthread_mutex_t>,
    fd: AtomicI32,
    /// Whether this is a copy, to be closed.
    is_own: bool,
    speaks: AtomicU64,
    greeted: AtomicBool,
}

// SAFETY: the mutex may be locked by any thread, the rest are atomics.
unsafe impl Sync for Only {}

impl Only {
    const fn none() -> Only {
        Only::of(-1)
    }

    const fn of(fd: c_int) -> Only {
        Only {
            turn: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
            fd: AtomicI32::new(fd),
            is_own: false,
            speaks: AtomicU64::new(0),
            greeted: AtomicBool::new(false),
        }
    }

    fn duplicate_of(fd: c_int) -> Result<Only> {
        let invalid = |what: fmt::Arguments<'_>| Error::invalid(format_args!("fd:{fd} {what}"));
        let mut kind: c_int = 0;
        let mut length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes one int.
        let got = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_TYPE,
                (&raw mut kind).cast(),
                &mut length,
            )
        };
        if got != 0 {
            return Err(invalid(format_args!("is not a socket: {}", Errno::last())));
        }
        if kind != libc::SOCK_SEQPACKET {
            return Err(invalid(format_args!("is not a SOCK_SEQPACKET socket")));
        }
        // SAFETY: numbers only; the kernel returns a new descriptor.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        match copy {
            -1 => Err(Error::failed(
                Errno::last(),
                format_args!("cannot copy descriptor {fd}"),
            )),
            copy => {
                let mut only = Only::of(copy);
                only.is_own = true;
                Ok(only)
            }
        }
    }

    /// Waits for its turn.
    fn lock(&self, deadline: &Deadline) -> core::result::Result<Turn<'_>, Trouble> {
        // pthread_mutex_clocklock() is younger than what we want to run with.
        let mut time = now(libc::CLOCK_REALTIME);
        let nanoseconds = time.tv_nsec + i64::from(deadline.left_ms()) * 1_000_000;
        time.tv_sec += nanoseconds / 1_000_000_000;
        time.tv_nsec = nanoseconds % 1_000_000_000;
        // SAFETY: initialised, and not moved since it was first locked.
        match unsafe { libc::pthread_mutex_timedlock(self.turn.get(), &time) } {
            0 => Ok(Turn(self)),
            _ => Err(Trouble::TooLate),
        }
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        let fd = *self.fd.get_mut();
        if self.is_own && fd >= 0 {
            // SAFETY: `duplicate_of` made it.
            drop(unsafe { Fd::new(fd.into()) });
        }
    }
}

struct Turn<'a>(&'a Only);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.turn.get()) };
    }
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
struct Deadline {
    timeout_ms: u32,
    end_ms: i64,
}

impl Deadline {
    fn new(timeout_ms: u32) -> Self {
        Deadline {
            timeout_ms,
            end_ms: Self::now_ms() + i64::from(timeout_ms),
        }
    }

    fn now_ms() -> i64 {
        let time = now(libc::CLOCK_MONOTONIC);
        time.tv_sec * 1000 + time.tv_nsec / 1_000_000
    }

    fn left_ms(&self) -> c_int {
        (self.end_ms - Self::now_ms()).clamp(0, self.timeout_ms.into()) as c_int
    }

    /// Waits for the socket.
    fn wait(&self, socket: c_int, events: i16) -> core::result::Result<(), Trouble> {
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
    fn pause(&self, most_ms: u64) {
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
enum Trouble {
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

impl From<Malformed> for Trouble {
    fn from(malformed: Malformed) -> Trouble {
        Trouble::Malformed(malformed)
    }
}

/// The text that comes with an answer.
struct Text {
    bytes: [Cell<u8>; TEXT_MAX],
    length: Cell<usize>,
}

impl Text {
    fn new() -> Text {
        Text {
            bytes: [const { Cell::new(0) }; TEXT_MAX],
            length: Cell::new(0),
        }
    }

    fn set(&self, text: &[u8]) {
        for (to, from) in self.bytes.iter().zip(text) {
            to.set(*from);
        }
        self.length.set(text.len().min(TEXT_MAX));
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
fn random() -> u64 {
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
fn new_request(child: bool) -> u64 {
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
fn dial(
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
                return block(&fd, target.timeout_ms)
                    .map_err(Trouble::Away)
                    .and_then(|()| greet(fd.get(), deadline, text))
                    .map(|speaks| Connection { fd, speaks });
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
fn block(fd: &Fd, timeout_ms: u32) -> core::result::Result<(), Errno> {
    let time = libc::timeval {
        tv_sec: (timeout_ms / 1000).into(),
        tv_usec: (timeout_ms % 1000 * 1000).into(),
    };
    socket::set_option(fd.get(), libc::SO_RCVTIMEO, &time)?;
    // SAFETY: numbers only.
    crate::kernel::check(unsafe { libc::fcntl(fd.get(), libc::F_SETFL, 0) }).map(|_| ())
}

/// Both sides say what they speak: the delegate's operations, a bit for each.
fn greet(socket: c_int, deadline: &Deadline, text: &Text) -> core::result::Result<u64, Trouble> {
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
    let sent = send(socket, &buffers, &[], deadline);
    if let Err(Trouble::TooLate) = sent {
        return Err(Trouble::TooLate);
    }
    let mut answer = [0; size_of::<Header>() + HELLO_MAX];
    let buffers = [socket::slice_mut(&mut answer)];
    // Who is refused may be told so before the hello was sent or read: then the
    // kernel has an error first, and behind it the words.
    let received = match receive(socket, &buffers, deadline) {
        Err(Trouble::Broken) => receive(socket, &buffers, deadline),
        received => received,
    };
    let length = received.map_err(|trouble| match trouble {
        // Nothing that acts was sent.
        Trouble::Unanswered => Trouble::TooLate,
        Trouble::Broken => Trouble::Away(Errno::ECONNRESET),
        trouble => trouble,
    })?;
    let (header, body) = Header::split(&answer[..length])?;
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
fn dismissed(header: Header, body: &[u8], text: &Text) -> core::result::Result<Trouble, Malformed> {
    if header.operation != OUTCOME {
        return Err(Malformed("there is no hello"));
    }
    let mut reader = Reader(body);
    let answer = Answer::read(&mut reader)?;
    text.set(reader.bytes(answer.text as usize)?);
    Ok(Trouble::Dismissed)
}

fn send(
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
fn receive(
    socket: c_int,
    buffers: &[libc::iovec],
    deadline: &Deadline,
) -> core::result::Result<usize, Trouble> {
    // SAFETY: integers, of which all zeros are valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len() as _;
    let mut flags = 0;
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
            Err(_) => return Err(Trouble::Broken),
        }
        // A signal came: what is left of the time is not what the socket
        // waits.
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
fn exchange(
    socket: c_int,
    question: &Question<'_>,
    deadline: &Deadline,
) -> core::result::Result<Answer, Trouble> {
    let Question {
        header,
        request,
        results,
        text,
    } = question;
    let [one, two, three] = *request.parts();
    let buffers = [header.as_bytes(), request.fixed.as_bytes(), one, two, three].map(socket::slice);
    send(socket, &buffers, request.descriptors(), deadline)?;

    let mut head = [0; ANSWER_HEAD];
    let buffers = [
        socket::slice_mut(&mut head),
        socket::slice_of_cells(results),
        socket::slice_of_cells(&text.bytes),
    ];
    let length = receive(socket, &buffers, deadline)?;
    let answer = read_answer(question, &head, length);
    erase(&mut head);
    answer.unwrap_or_else(|malformed| Err(Trouble::Garbled(malformed)))
}

const ANSWER_HEAD: usize = size_of::<Header>() + ANSWER_SIZE;

/// Reads an answer that was received, `length` bytes in all, into the buffers
/// of the question.
fn read_answer(
    question: &Question<'_>,
    head: &[u8; ANSWER_HEAD],
    length: usize,
) -> core::result::Result<core::result::Result<Answer, Trouble>, Malformed> {
    let mut reader = Reader(&head[..ANSWER_HEAD.min(length)]);
    let header = Header::read(&mut reader)?;
    let answer = Answer::read(&mut reader)?;
    let tail = answer.results as usize * size_of::<c_int>() + answer.text as usize;
    if ANSWER_HEAD + tail != length || header.size as usize + size_of::<Header>() != length {
        return Err(Malformed("it is not as long as it says"));
    }
    // A text with fewer results than there is room for lies among them.
    let has_results = answer.results as usize == question.results.len();
    if has_results {
        question.text.length.set(answer.text as usize);
    }
    let asked = question.header;
    if header.operation == OUTCOME && asked.operation != OUTCOME {
        return Ok(Err(Trouble::Dismissed));
    }
    if (header.operation, header.request) != (asked.operation, asked.request) {
        return Err(Malformed("it is to another request"));
    }
    let needs_results = matches!(answer.verdict, Verdict::Handled | Verdict::NotHandled);
    if !has_results && (needs_results || answer.results != 0) {
        return Err(Malformed("it has not as many results as there are threads"));
    }
    Ok(Ok(answer))
}

/// Something to ask a delegate: to do an operation, or what became of that.
struct Question<'a> {
    header: Header,
    request: &'a Request<'a>,
    results: &'a [Cell<c_int>],
    text: &'a Text,
}

impl Asked<'_> {
    /// Asks over the thread's own socket, or over a new one. `None`: the
    /// delegate does not have that operation.
    fn ask(
        &self,
        question: &Question<'_>,
        thread: Option<&Thread>,
        deadline: &Deadline,
    ) -> core::result::Result<Option<Answer>, Trouble> {
        let operation = question.header.operation;
        let speak = |socket, speaks: u64| {
            let is_spoken = operation == OUTCOME || speaks >> operation & 1 != 0;
            is_spoken
                .then(|| exchange(socket, question, deadline))
                .transpose()
        };
        let (Some(delegate), Some(thread)) = (self.delegate, thread) else {
            let connection = dial(self.target, false, deadline, question.text)?;
            return speak(connection.fd.get(), connection.speaks);
        };
        if let Address::Descriptor(_) = self.target.address {
            return delegate.only.ask(deadline, question.text, speak);
        }
        if let Some(link) = thread.links.find(self.id) {
            let socket = link.fd.load(Ordering::Relaxed);
            match speak(socket, link.speaks.load(Ordering::Relaxed)) {
                // Restarted meanwhile: nothing was sent.
                Err(Trouble::Away(_)) => link.close_if_open(),
                said => {
                    if said.is_err() {
                        // The answer may still come, and would be taken for
                        // that to the next request.
                        link.close_if_open();
                    }
                    return said;
                }
            }
        }
        let patient = delegate.reached.load(Ordering::Relaxed);
        let connection = dial(self.target, patient, deadline, question.text)?;
        delegate.reached.store(true, Ordering::Relaxed);
        let said = speak(connection.fd.get(), connection.speaks);
        if said.is_ok() {
            thread.links.free(self.id).open(self, connection);
        }
        said
    }
}

impl Only {
    fn ask<T>(
        &self,
        deadline: &Deadline,
        text: &Text,
        speak: impl FnOnce(c_int, u64) -> core::result::Result<T, Trouble>,
    ) -> core::result::Result<T, Trouble> {
        let _turn = self.lock(deadline)?;
        let socket = self.fd.load(Ordering::Relaxed);
        if socket < 0 {
            return Err(Trouble::Away(Errno::ECONNRESET));
        }
        let greeted = self.greeted.load(Ordering::Relaxed);
        let said = match greeted {
            true => Ok(()),
            false => self.greet(socket, deadline, text),
        }
        .and_then(|()| speak(socket, self.speaks.load(Ordering::Relaxed)));
        if said.is_err() {
            // There is no other connection, and what comes over this one is
            // not to be trusted any more.
            self.end();
        }
        said
    }

    fn greet(
        &self,
        socket: c_int,
        deadline: &Deadline,
        text: &Text,
    ) -> core::result::Result<(), Trouble> {
        // SAFETY: numbers only.
        let flags = unsafe { libc::fcntl(socket, libc::F_GETFL) };
        if flags & libc::O_NONBLOCK != 0 {
            // SAFETY: as above.
            unsafe { libc::fcntl(socket, libc::F_SETFL, flags & !libc::O_NONBLOCK) };
        }
        let time = libc::timeval {
            tv_sec: (deadline.timeout_ms / 1000).into(),
            tv_usec: (deadline.timeout_ms % 1000 * 1000).into(),
        };
        socket::set_option(socket, libc::SO_RCVTIMEO, &time).map_err(Trouble::Away)?;
        let speaks = greet(socket, deadline, text)?;
        self.speaks.store(speaks, Ordering::Relaxed);
        self.greeted.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self) {
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        if self.is_own && fd >= 0 {
            // SAFETY: `duplicate_of` made it.
            drop(unsafe { Fd::new(fd.into()) });
        }
    }
}

/// Has a delegate do an operation.
pub(crate) fn perform(
    asked: &Asked<'_>,
    thread: Option<&Thread>,
    child: bool,
    kind: &'static Kind,
    operation: &impl Operation,
    held: &Held,
) -> Result<Outcome> {
    let mut request = Request::new();
    operation.request(held, &mut request)?;
    let id = new_request(child);
    let text = Text::new();
    let question = Question {
        header: Header::new(kind.id, kind.version, request.size(), id),
        request: &request,
        results: operation.results(),
        text: &text,
    };
    let deadline = Deadline::new(asked.target.timeout_ms);
    let own = thread.filter(|_| !child);
    let said = asked.ask(&question, own, &deadline);
    request.fixed.erase();
    match said {
        Ok(None) => Ok(Outcome::NotHandled),
        Ok(Some(answer)) => outcome(answer, &text, operation),
        Err(Trouble::Away(_)) if asked.target.optional => Ok(Outcome::NotHandled),
        Err(trouble) => {
            if let (Trouble::Unanswered | Trouble::Broken | Trouble::Garbled(_), Some(thread)) =
                (&trouble, thread)
            {
                thread.request.set(id);
            }
            Err(trouble.error(operation, asked.target, id, &text))
        }
    }
}

/// Asks what became of a request: of the first delegate there is for `key`.
pub(crate) fn ask_outcome(page: &Page, key: Key, request: u64) -> Result<Outcome> {
    let (child, thread) = thread::own_of_any(page);
    let nowhere = Inside::full();
    let inside = thread.map_or(&nowhere, |thread| &thread.inside);
    let asked = enter(key, inside, child).or_else(|| enter(0, inside, child));
    let Some(asked) = asked else {
        return Err(Error::unreachable(format_args!(
            "cannot ask about request {request:#x}: no delegate is connected"
        )));
    };
    let mut body = Request::new();
    body.fixed.u64(request);
    let text = Text::new();
    let question = Question {
        header: Header::new(OUTCOME, 0, body.size(), new_request(child)),
        request: &body,
        results: &[],
        text: &text,
    };
    let what = format_args!("tell what became of request {request:#x}");
    let deadline = Deadline::new(asked.target.timeout_ms);
    let trouble = match asked.ask(&question, thread.filter(|_| !child), &deadline) {
        Ok(Some(answer)) => {
            let what = format_args!("do what request {request:#x} asks for");
            return outcome(answer, &text, &what);
        }
        Ok(None) => return Ok(Outcome::NotHandled),
        // This can be asked again.
        Err(Trouble::Unanswered) => Trouble::TooLate,
        Err(Trouble::Broken) => Trouble::Away(Errno::ECONNRESET),
        Err(trouble) => trouble,
    };
    Err(trouble.error(&what, asked.target, request, &text))
}

fn outcome(answer: Answer, text: &Text, operation: &dyn fmt::Display) -> Result<Outcome> {
    match answer.verdict {
        Verdict::Handled => Ok(Outcome::Done),
        Verdict::NotHandled => Ok(Outcome::NotHandled),
        Verdict::Refused => Err(Error::refused(format_args!(
            "the delegate refused to {operation}: {text}"
        ))),
        Verdict::Failed => {
            let mut error = Error::failed(
                answer.errnum,
                format_args!("the delegate could not {operation}: {text}"),
            );
            error.code = failed_code(answer.code);
            Err(error)
        }
        Verdict::Unknown => Err(Error::unknown_outcome(format_args!(
            "it is not known whether the delegate did {operation}: {text}"
        ))),
    }
}

impl Trouble {
    fn error(
        self,
        operation: &dyn fmt::Display,
        target: &Target,
        request: u64,
        text: &Text,
    ) -> Error {
        let Target {
            address,
            timeout_ms,
            ..
        } = target;
        match self {
            Trouble::Away(_) if *address == Address::Invalid => Error::unreachable(format_args!(
                "cannot {operation}: the environment's LIBVIRT_INTERNAL_DELEGATE is {address}"
            )),
            Trouble::Away(errnum) => Error::unreachable(format_args!(
                "cannot {operation}: the delegate at {address} cannot be reached: {errnum}"
            )),
            Trouble::TooLate => Error::timeout(format_args!(
                "cannot {operation}: the delegate at {address} was not ready within \
                 {timeout_ms} ms; nothing was sent"
            )),
            Trouble::Unanswered => Error::unknown_outcome(format_args!(
                "it is not known whether the delegate did {operation}: it did not answer \
                 request {request:#x} within {timeout_ms} ms"
            )),
            Trouble::Broken => Error::unknown_outcome(format_args!(
                "it is not known whether the delegate did {operation}: the connection ended \
                 before it answered request {request:#x}"
            )),
            Trouble::Garbled(Malformed(what)) => Error::unknown_outcome(format_args!(
                "it is not known whether the delegate did {operation}: what it answered to \
                 request {request:#x} cannot be understood: {what}"
            )),
            Trouble::Malformed(Malformed(what)) => Error::failed(
                Errno::EPROTO,
                format_args!(
                    "cannot {operation}: what is at {address} does not speak as a delegate \
                     does: {what}"
                ),
            ),
            Trouble::Dismissed => Error::refused(format_args!(
                "cannot {operation}: the delegate at {address} ended the connection: {text}"
            )),
        }
    }
}
