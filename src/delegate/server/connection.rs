// SPDX-License-Identifier: LGPL-2.1-or-later
//! One connection, on a thread of its own: what a peer sends may block whoever
//! examines or closes it, and then blocks nobody else.

use std::cell::Cell;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libc::c_int;

use super::audit::{How, Known, Record};
use super::peer::{self, Peer};
use super::pidfd::{self, Info};
use super::scope::Connected;
use super::serve::{Asked, Lists, Serve, Subject, Unfit};
use super::{Arriving, Shared};
use crate::delegate::policy::{Denied, Hierarchy, Policy, Rule};
use crate::delegate::socket;
use crate::delegate::wire::{
    Answer, BODY_MAX, HELLO, Header, Malformed, OUTCOME, Reader, SAME_PROCESS, Spoken, TEXT_MAX,
    Verdict, bytes_of, erase, hello, read_hello,
};
use crate::dispatch::{self, Handlers, Operation, Outcome};
use crate::errno::Errno;
use crate::error::{Code, Error};
use crate::kernel::file::Fd;
use crate::kernel::memory;
use crate::kernel::process::Held;
use crate::operation::{self, Allowed, OPERATIONS};
use crate::thread;

/// How long a peer may take to say hello.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// How long a peer may take to make room for an answer.
const SEND_TIME: Duration = Duration::from_secs(2);

/// A hello or a question with a flag.
const NO_REQUEST: Malformed = Malformed("what is no request has the flag of one");

/// Why a connection ends.
pub(crate) enum End {
    /// The peer, or the delegate, closed it.
    Closed,
    /// It sent what cannot be understood.
    Malformed(Malformed),
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> End {
        End::Malformed(malformed)
    }
}

/// Serves a connection until it ends. To close it may take any time, for which
/// it still counts: what is returned is to be dropped after the socket.
///
/// Once the peer is known to be within its quotas, it is not `arriving` any
/// more.
pub(super) fn serve<'a>(
    shared: &'a Shared,
    socket: &Fd,
    peer: Option<Peer>,
    label: Option<String>,
    arriving: &mut Option<Arriving>,
) -> Option<Connected<'a>> {
    let policy = shared.policy();
    let known = match peer {
        Some(peer) => Ok(peer),
        None => Peer::of(socket.get(), &policy.hierarchy, label.clone()),
    };
    let peer = match known {
        Ok(peer) => peer,
        Err(unknown) => {
            let known = Known::Credentials(peer::credentials(socket.get()).ok(), label.as_deref());
            shared.dismiss(socket, known, &unknown.to_string());
            return None;
        }
    };
    // It has nothing to ask for, and must not take the place of those that do.
    if let Err(denied) = policy.admit(&peer.facts()) {
        shared.dismiss(socket, Known::Peer(&peer), &denied.to_string());
        return None;
    }
    let quota = policy.quota_for(&peer.facts());
    drop(policy);
    let connected = match shared.scopes.connect(&peer, quota) {
        Ok(connected) => connected,
        Err(exhausted) => {
            shared.dismiss(socket, Known::Peer(&peer), &exhausted.to_string());
            return None;
        }
    };
    *arriving = None;
    shared.metrics.connections.fetch_add(1, Ordering::Relaxed);
    let Ok(buffer) = Buffer::new() else {
        let text = "the delegate has no memory left";
        shared.dismiss(socket, Known::Peer(&peer), text);
        return Some(connected);
    };
    let connection = Connection {
        shared,
        socket,
        peer,
        connected: &connected,
    };
    connection.run(&mut Workspace {
        policy: shared.numbered_policy(),
        buffer,
        texts: Texts::default(),
        last: Last::default(),
    });
    Some(connected)
}

impl Shared {
    /// Tells a peer why it is not served.
    fn dismiss(&self, socket: &Fd, peer: Known<'_>, text: &str) {
        self.turn_away(How::Refused, peer, text);
        let _ = allow_descriptors(socket, false);
        goodbye(socket, 0, text);
    }
}

/// Whether a peer can send descriptors, where the kernel can forbid it (Linux
/// 6.16): what is never read must not be closed here.
pub(super) fn allow_descriptors(socket: &Fd, allow: bool) -> Result<(), Errno> {
    const SO_PASSRIGHTS: c_int = 83;
    socket::set_option(socket.get(), SO_PASSRIGHTS, &c_int::from(allow))
}

/// The last words on a connection: an answer to what is no request.
pub(super) fn goodbye(socket: &Fd, request: u64, text: &str) {
    let answer = Answer {
        verdict: Verdict::Refused,
        code: Code::VIR_INTERNAL_ERR_REFUSED as u32,
        errnum: Errno::EPERM,
        results: 0,
        text: 0,
    };
    let _ = send(socket, OUTCOME, 0, request, answer, &[], text);
}

/// As much of a text as an answer can have.
pub(super) fn fitting(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT_MAX)).rfind(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn send(
    socket: &Fd,
    operation: u32,
    version: u32,
    request: u64,
    mut answer: Answer,
    results: &[c_int],
    text: &str,
) -> Result<(), Errno> {
    let text = fitting(text).as_bytes();
    answer.text = text.len() as u32;
    answer.results = results.len() as u32;
    let results = bytes_of(results);
    let body = answer.write();
    let size = body.as_bytes().len() + results.len() + text.len();
    let header = Header::new(operation, version, size, request);
    let buffers = [header.as_bytes(), body.as_bytes(), results, text].map(socket::slice);
    loop {
        // SAFETY: slices.
        match unsafe { socket::send(socket.get(), &buffers, &[], 0) } {
            Err(Errno::EINTR) => {}
            sent => return sent,
        }
    }
}

/// Where messages are received. Most are short: memory for long ones is only
/// touched by those.
struct Buffer {
    short: [u8; SHORT],
    long: *mut u8,
}

const SHORT: usize = 256;

const MESSAGE_MAX: usize = size_of::<Header>() + BODY_MAX;

impl Buffer {
    fn new() -> Result<Buffer, Errno> {
        memory::map(MESSAGE_MAX).map(|mapping| Buffer {
            short: [0; SHORT],
            long: mapping.cast(),
        })
    }

    fn long(&mut self) -> &mut [u8] {
        // SAFETY: as large as that, zeroed, and reached through `self` only.
        unsafe { std::slice::from_raw_parts_mut(self.long, MESSAGE_MAX) }
    }

    /// What takes a message of any length.
    fn as_iovecs(&mut self) -> [libc::iovec; 2] {
        let long = socket::slice_mut(&mut self.long()[SHORT..]);
        [socket::slice_mut(&mut self.short), long]
    }

    /// A message that was received.
    fn message(&mut self, length: usize) -> &mut [u8] {
        if length <= SHORT {
            return &mut self.short[..length];
        }
        let start = self.short;
        erase(&mut self.short);
        let message = &mut self.long()[..length];
        message[..SHORT].copy_from_slice(&start);
        message
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference is left.
        unsafe { memory::unmap(self.long.cast(), MESSAGE_MAX) };
    }
}

/// Texts that each operation makes anew.
#[derive(Default)]
struct Texts {
    asked: String,
    before: String,
    after: String,
    line: String,
}

impl Texts {
    fn clear(&mut self) {
        for text in [&mut self.asked, &mut self.before, &mut self.after] {
            text.clear();
        }
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    socket: &'a Fd,
    peer: Peer,
    connected: &'a Connected<'a>,
}

/// What one request after the other is worked on with.
struct Workspace {
    policy: (u64, Arc<Policy>),
    buffer: Buffer,
    texts: Texts,
    last: Last,
}

/// What is kept from one request to the next.
#[derive(Default)]
struct Last {
    /// The process that it was about, if that was permitted and tried. The
    /// client goes by that: whatever else a request comes to leaves none.
    process: Option<Fd>,
    /// The cgroup that a target was in, by its number.
    cgroup: Option<(u64, String)>,
}

impl Connection<'_> {
    fn run(&self, space: &mut Workspace) {
        let mut ended = self.greet(space);
        while ended.is_ok() {
            ended = self.next(space);
        }
        if let Err(End::Malformed(Malformed(what))) = ended {
            let shared = self.shared;
            shared.turn_away(How::Malformed, Known::Peer(&self.peer), what);
            goodbye(self.socket, 0, what);
        }
    }

    /// Both sides say hello.
    fn greet(&self, space: &mut Workspace) -> Result<(), End> {
        socket::receive_nothing_besides(self.socket.get());
        let _ = allow_descriptors(self.socket, true);
        self.set_time(libc::SO_SNDTIMEO, SEND_TIME)?;
        self.set_time(libc::SO_RCVTIMEO, HELLO_TIME)?;
        let (message, descriptors) = self.receive(&mut space.buffer)?;
        let (header, body) = Header::split(message)?;
        if header.operation != HELLO {
            return Err(Malformed("the first message is not a hello").into());
        }
        if header.flags != 0 {
            return Err(NO_REQUEST.into());
        }
        if !descriptors.is_empty() {
            return Err(Malformed("a hello has no descriptors").into());
        }
        read_hello(body, |_| {})?;
        let body = hello(OPERATIONS.iter().map(|kind| Spoken {
            operation: kind.id,
            lowest: kind.version,
            highest: kind.version,
        }));
        let header = Header::new(HELLO, 0, body.as_bytes().len(), header.request);
        let buffers = [header.as_bytes(), body.as_bytes()].map(socket::slice);
        // SAFETY: slices.
        unsafe { socket::send(self.socket.get(), &buffers, &[], 0) }.map_err(|_| End::Closed)?;
        self.set_time(libc::SO_RCVTIMEO, Duration::ZERO)
    }

    /// Zero: any time.
    fn set_time(&self, option: c_int, time: Duration) -> Result<(), End> {
        let time = libc::timeval {
            tv_sec: time.as_secs() as libc::time_t,
            tv_usec: time.subsec_micros().into(),
        };
        socket::set_option(self.socket.get(), option, &time).map_err(|_| End::Closed)
    }

    /// Receives one message, and the descriptors that came along.
    fn receive<'b>(&self, buffer: &'b mut Buffer) -> Result<(&'b mut [u8], Vec<Fd>), End> {
        let buffers = buffer.as_iovecs();
        let received = loop {
            // SAFETY: a slice that nobody else uses.
            match unsafe { socket::receive(self.socket.get(), &buffers, 0) } {
                Ok(received) => break received,
                Err(Errno::EINTR) => {}
                Err(_) => return Err(End::Closed),
            }
        };
        match received.length {
            _ if received.cut => Err(Malformed(
                "the message is longer than 32800 bytes, or has too many descriptors",
            )
            .into()),
            0 => Err(End::Closed),
            length => Ok((
                buffer.message(length),
                received.descriptors.into_iter().flatten().collect(),
            )),
        }
    }

    /// Receives one request and answers it.
    fn next(&self, space: &mut Workspace) -> Result<(), End> {
        let (message, descriptors) = self.receive(&mut space.buffer)?;
        let start = Instant::now();
        if self.shared.policy_number.load(Ordering::Acquire) != space.policy.0 {
            space.policy = self.shared.numbered_policy();
        }
        let policy = &*space.policy.1;
        let texts = &mut space.texts;
        let done = self.answer(message, descriptors, start, policy, texts, &mut space.last);
        erase(message);
        done
    }

    fn answer(
        &self,
        message: &[u8],
        descriptors: Vec<Fd>,
        start: Instant,
        policy: &Policy,
        texts: &mut Texts,
        last: &mut Last,
    ) -> Result<(), End> {
        let (header, body) = Header::split(message)?;
        match header.operation {
            HELLO | OUTCOME if header.flags != 0 => Err(NO_REQUEST.into()),
            HELLO => Err(Malformed("there is a second hello").into()),
            OUTCOME => self.tell_outcome(header, body, &descriptors),
            id => {
                let known = match header.flags {
                    SAME_PROCESS => {
                        let known = last.process.take();
                        Some(known.ok_or(Malformed("there is no process of a request before"))?)
                    }
                    _ => None,
                };
                let kind = OPERATIONS.iter().find(|kind| kind.id == id);
                let Some(kind) = kind.filter(|kind| kind.version == header.version) else {
                    // This is the last request now, and nobody looked at what
                    // it is about.
                    last.process = None;
                    return self.lacks(header, kind.copied());
                };
                let job = Job {
                    connection: self,
                    policy,
                    kind,
                    header,
                    body,
                    known,
                    descriptors,
                    start,
                    lists: &Lists::default(),
                    texts,
                    last,
                };
                operation::serve(job)
            }
        }
    }

    /// Answers a request of an operation that there is not, or of another
    /// version of `kind`.
    fn lacks(&self, header: Header, kind: Option<&dispatch::Kind>) -> Result<(), End> {
        let Header {
            operation, version, ..
        } = header;
        let (text, said) = match kind {
            None => {
                let text = format!("this delegate does not have operation {operation}");
                (text, Said::not_handled())
            }
            Some(kind) => {
                let text = format!(
                    "the request is of version {version} of {}, this delegate has version {}",
                    kind.name, kind.version
                );
                let code = Code::VIR_INTERNAL_ERR_VERSION;
                let said = Said::failed(code, Errno::EPROTONOSUPPORT, text.clone());
                (text, said)
            }
        };
        let peer = Known::Peer(&self.peer);
        self.shared.turn_away(How::Unsupported, peer, &text);
        self.reply(header, said)
    }

    /// What became of an earlier request of this scope.
    fn tell_outcome(&self, header: Header, body: &[u8], descriptors: &[Fd]) -> Result<(), End> {
        let mut reader = Reader(body);
        let request = reader.u64()?;
        reader.end()?;
        if !descriptors.is_empty() {
            return Err(Malformed("a question has no descriptors").into());
        }
        let scope = &self.connected.scope;
        let unknown = |text: &str| {
            let answer = Answer {
                verdict: Verdict::Unknown,
                ..Said::not_handled().answer
            };
            (answer, text.to_owned())
        };
        let (answer, text) = match scope.outcome(request) {
            Some(outcome) => outcome,
            None if scope.is_running(request) => unknown("it is still working on it"),
            None => unknown("it does not know of that request, or not any more"),
        };
        self.reply(
            header,
            Said {
                answer,
                text,
                results: Vec::new(),
            },
        )
    }

    fn reply(&self, header: Header, said: Said) -> Result<(), End> {
        let Header {
            operation,
            version,
            request,
            ..
        } = header;
        let Said {
            answer,
            text,
            results,
        } = said;
        send(
            self.socket,
            operation,
            version,
            request,
            answer,
            &results,
            &text,
        )
        .map_err(|_| End::Closed)
    }
}

/// What a request is answered.
struct Said {
    answer: Answer,
    text: String,
    results: Vec<c_int>,
}

impl Said {
    fn new(verdict: Verdict, code: u32, errnum: Errno, text: String) -> Said {
        Said {
            answer: Answer {
                verdict,
                code,
                errnum,
                results: 0,
                text: 0,
            },
            text,
            results: Vec::new(),
        }
    }

    fn handled() -> Said {
        Said::new(Verdict::Handled, 0, Errno(0), String::new())
    }

    fn not_handled() -> Said {
        Said::new(Verdict::NotHandled, 0, Errno(0), String::new())
    }

    fn failed(code: Code, errnum: Errno, text: String) -> Said {
        Said::new(Verdict::Failed, code as u32, errnum, text)
    }

    fn refused(text: String) -> Said {
        let code = Code::VIR_INTERNAL_ERR_REFUSED as u32;
        Said::new(Verdict::Refused, code, Errno::EPERM, text)
    }

    /// With what became of each thread.
    fn with_results(mut self, operation: &impl Operation) -> Said {
        self.results = operation.results().iter().map(Cell::get).collect();
        self
    }

    /// An error of the library's, whose text this thread has.
    fn error(error: Error) -> Said {
        Said::failed(error.code, error.errnum, thread::own_message())
    }
}

/// A request that is being worked on.
pub(crate) struct Job<'a> {
    connection: &'a Connection<'a>,
    policy: &'a Policy,
    pub(crate) kind: &'static dispatch::Kind,
    header: Header,
    body: &'a [u8],
    /// The process of the request before, if it is that one's again.
    known: Option<Fd>,
    descriptors: Vec<Fd>,
    start: Instant,
    lists: &'a Lists,
    texts: &'a mut Texts,
    last: &'a mut Last,
}

/// How a job ended: the connection goes on, or not.
pub(crate) type Done = Result<(), End>;

impl<'a> Job<'a> {
    /// Reads the request, has it permitted, done and proved, and leaves a line.
    // Not inlined: else each operation's thread would have the stack of the
    // one that needs most.
    #[inline(never)]
    pub(crate) fn serve<O: Serve<'a>>(self) -> Done {
        let Job {
            connection,
            policy,
            header,
            texts,
            ..
        } = self;
        let Connection { shared, peer, .. } = connection;
        texts.clear();
        let facts = peer.facts();
        let quota = policy.quota_for(&facts);
        let running = connection.connected.scope.begin(header.request, quota);
        let mut rules = policy.rules_for(&facts);
        let is_refused = running.is_err() || !rules.any(|rule| O::bounds(&rule.allowed).is_some());
        let mut subject = Subject::new(peer, self.known, self.descriptors, self.lists, is_refused);
        let mut body = Reader(self.body);
        let read = O::read(&mut body, &mut subject).and_then(|operation| {
            body.end()?;
            subject.end()?;
            Ok(operation)
        });
        let target = subject.info();
        let (tid, by_number) = (subject.tid(), subject.is_by_number());
        let (mut rule, mut cgroup) = (None, "");
        let mut held = None;
        let said = match (read, &running) {
            (Err(Unfit::Malformed(malformed)), _) => return Err(malformed.into()),
            (_, Err(exhausted)) => Said::refused(exhausted.to_string()),
            (Err(Unfit::Error(error)), _) => Said::error(error),
            (Ok(mut operation), Ok(_)) => {
                // A String takes everything.
                let _ = operation.asked(&mut texts.asked);
                match cgroup_of(&subject, &policy.hierarchy, &mut self.last.cgroup) {
                    Err(error) => Said::error(error),
                    Ok(path) => {
                        cgroup = path;
                        match permit(&mut operation, policy, peer, target, cgroup) {
                            Err(denied) => {
                                Said::refused(denied.to_string()).with_results(&operation)
                            }
                            Ok(permitting) => {
                                rule = Some(permitting.name.as_str());
                                let handlers = Handlers::of(self.kind);
                                // A handler does not tell.
                                let replaces = O::REPLACES && handlers == Handlers::None;
                                if !replaces {
                                    let _ = operation.before(&mut texts.before);
                                }
                                let held = &*held.insert(subject.hold()?);
                                let done = dispatch::serve(self.kind, &operation, held, handlers);
                                if replaces {
                                    let _ = operation.before(&mut texts.before);
                                }
                                let said = match done {
                                    Ok(Outcome::Done) => Said::handled(),
                                    Ok(Outcome::NotHandled) => Said::not_handled(),
                                    Err(error) => Said::error(error),
                                };
                                let _ = operation.after(&mut texts.after);
                                said.with_results(&operation)
                            }
                        }
                    }
                }
            }
        };
        let duration = self.start.elapsed();
        let verdict = said.answer.verdict;
        shared.metrics.count(self.kind.id, verdict, duration);
        let unwritten = match verdict {
            Verdict::Refused => shared.refused.pass(peer.scope()),
            _ => Some(0),
        };
        let record = |unwritten| Record {
            request: header.request,
            peer,
            operation: Allowed::NAMES[self.kind.id as usize - 1],
            target,
            target_cgroup: cgroup,
            tid,
            asked: &texts.asked,
            before: &texts.before,
            after: &texts.after,
            answer: said.answer,
            text: &said.text,
            rule,
            duration,
            by_number,
            unwritten,
        };
        if let Some(unwritten) = unwritten {
            shared.audit(&record(unwritten), &mut texts.line);
        }
        if let Ok(running) = running {
            running.end(said.answer, &said.text);
        }
        let replied = connection.reply(header, said);
        // What it takes the place of is closed when the peer has its answer.
        self.last.process = held.map(|held: Held| held.into_known().fd);
        replied
    }
}

/// The rule that permits an operation.
fn permit<'p, 'm, O: Serve<'m>>(
    operation: &mut O,
    policy: &'p Policy,
    peer: &Peer,
    target: Option<Info>,
    cgroup: &str,
) -> Result<&'p Rule, Denied> {
    let facts = peer.facts();
    let decided = policy.decide(&facts, |rule| {
        let name = O::NAME;
        let bounds = O::bounds(&rule.allowed).ok_or_else(|| rule.not_allowed(name))?;
        let uid = target.map_or(u32::MAX, |target| target.uid);
        rule.permits_target(&facts, cgroup, uid)?;
        operation.permit(bounds, &Asked { peer, facts, rule })
    });
    decided.map(|(rule, ())| rule)
}

/// The cgroup of the process that a request is about.
fn cgroup_of<'c>(
    subject: &Subject<'_>,
    hierarchy: &Hierarchy,
    known: &'c mut Option<(u64, String)>,
) -> Result<&'c str, Error> {
    let (Some(info), Some(pidfd)) = (subject.info(), subject.descriptor()) else {
        return Ok("");
    };
    let number = info.cgroup.filter(|_| *hierarchy == Hierarchy::V2);
    let is_known =
        matches!((&*known, number), (Some((known, _)), Some(number)) if *known == number);
    if !is_known {
        let gone = || Error::no_process(format_args!("process {} is no more", info.pid));
        let failed = |errnum| {
            Error::failed(
                errnum,
                format_args!("cannot tell the cgroup of process {}", info.pid),
            )
        };
        let text = pidfd::read_lines(&format!("/proc/{}/cgroup", info.pid));
        let text = text.map_err(|errnum| match errnum {
            Errno::ESRCH => gone(),
            errnum => failed(errnum),
        })?;
        // It was that very process's, and it was not moved meanwhile.
        let after = pidfd::info(pidfd).map_err(|_| gone())?;
        if after.cgroup != info.cgroup {
            return Err(failed(Errno::EAGAIN));
        }
        let path = hierarchy.path_in(&text).unwrap_or_default();
        // A number that nothing has: what is not known is read again.
        *known = Some((number.unwrap_or(0), path.to_owned()));
    }
    Ok(known.as_ref().map_or("", |(_, path)| path))
}
