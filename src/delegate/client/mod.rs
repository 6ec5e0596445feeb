// SPDX-License-Identifier: LGPL-2.1-or-later
//! The side that asks: delegates that are connected, and a request to one.
//!
//! A delegate is set for a connection as a handler is, in a registry of its
//! own, which sees to it that nobody is asking when it is gone. Each thread has
//! a socket of its own to it, made when first needed, so that requests do not
//! wait for one another. A forked child makes a new one for each request: it
//! must not speak over its parent's, and has nowhere to keep one.
//!
//! | module | what it does |
//! |---|---|
//! | `dialogue` | connecting, a request and its answer over a socket |
//! | `link` | the sockets that a thread keeps |
//! | `only` | the one socket that was given by a descriptor |

mod dialogue;
mod link;
mod only;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::delegate::address::Address;
use crate::delegate::wire::{
    Answer, HELLO, Header, Malformed, OUTCOME, Request as Body, Verdict, failed_code,
};
use crate::dispatch::{EVERY_CONNECTION, Kind, Operation, Outcome, keys_of};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::fork::Page;
use crate::inside::Inside;
use crate::kernel::memory;
use crate::kernel::process::{Held, Known};
use crate::registry::{Call, Handler, Key, Registry};
use crate::sync::{Mutex, lock};
use crate::thread::{self, Thread};

use dialogue::{Deadline, Question, Text, Trouble, dial, exchange, is_silent, new_request};
pub(crate) use link::Links;
use link::{Link, close_links};
use only::Only;

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
    /// The one connection, when it is by a descriptor; else NULL.
    only: *const Only,
}

impl Delegate {
    fn only(&self) -> Option<&Only> {
        // SAFETY: NULL, or alive as long as this is: `connect` has a count of
        // it, and the environment's is never unmapped.
        unsafe { self.only.as_ref() }
    }
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
        Address::Descriptor(fd) => {
            if environment().is_some_and(|own| own.only().is_some_and(|only| only.is_of(fd))) {
                return Err(Error::invalid(format_args!(
                    "fd:{fd} is the delegate of LIBVIRT_INTERNAL_DELEGATE, which is connected \
                     already"
                )));
            }
            Arc::into_raw(Only::of(fd)?)
        }
        _ => ptr::null(),
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
    let delegate = unsafe { Box::from_raw(delegate) };
    if !delegate.only.is_null() {
        // SAFETY: from `connect`, which left its count here.
        drop(unsafe { Arc::from_raw(delegate.only) });
    }
}

/// Reads the environment, when the library is first used: by anybody, so it
/// allocates nothing.
pub(crate) fn read_environment() -> Result<()> {
    const NAME: &core::ffi::CStr = c"LIBVIRT_INTERNAL_DELEGATE";
    unsafe extern "C" {
        fn secure_getenv(name: *const libc::c_char) -> *const libc::c_char;
    }
    // SAFETY: a C string; NULL where credentials were raised.
    let text = unsafe {
        let text = secure_getenv(NAME.as_ptr());
        match text.is_null() {
            true => return Ok(()),
            false => core::ffi::CStr::from_ptr(text),
        }
    };
    if text.is_empty() {
        return Ok(());
    }
    let address = Address::parse(text).unwrap_or(Address::Invalid);
    let size = size_of::<(Delegate, Target, Only)>();
    let memory = memory::map(size).map_err(|errnum| {
        Error::failed(
            errnum,
            format_args!("cannot map {size} bytes for LIBVIRT_INTERNAL_DELEGATE"),
        )
    })?;
    let memory = memory.cast::<(Delegate, Target, Only)>();
    // SAFETY: large enough, aligned to a page, and nobody else knows of it
    // before it is published; then nobody unmaps it.
    unsafe {
        let target = &raw mut (*memory).1;
        target.write(Target {
            address,
            timeout_ms: TIMEOUT_MS,
            optional: false,
        });
        let only = &raw mut (*memory).2;
        let delegate = &raw mut (*memory).0;
        delegate.write(Delegate {
            target: &*target,
            reached: AtomicBool::new(false),
            only: match address {
                Address::Descriptor(fd) => {
                    only.write(Only::of_environment(fd));
                    only
                }
                _ => ptr::null(),
            },
        });
        let published = ENVIRONMENT.compare_exchange(
            ptr::null_mut(),
            delegate,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if published.is_err() {
            memory::unmap(memory.cast(), size);
        }
    }
    Ok(())
}

/// The delegate that the environment names.
fn environment() -> Option<&'static Delegate> {
    // SAFETY: null, or published and never unmapped.
    unsafe { ENVIRONMENT.load(Ordering::Acquire).as_ref() }
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
        let delegate = call.handler.opaque.cast::<Delegate>();
        return Some(Asked {
            // SAFETY: `connect` set it, and it is never freed.
            target: unsafe { &*call.handler.code.cast::<Target>() },
            id: call.id,
            // SAFETY: `connect` set it, and it is not freed while a call is
            // inside. That of a child does not count.
            delegate: (!child).then(|| unsafe { &*delegate }),
            _call: Some(call),
        });
    }
    if key != 0 {
        return None;
    }
    let delegate = environment()?;
    Some(Asked {
        target: delegate.target,
        id: ENVIRONMENT_ID,
        delegate: (!child).then_some(delegate),
        _call: None,
    })
}

impl Asked<'_> {
    fn link<'t>(&self, thread: Option<&'t Thread>) -> Option<&'t Link> {
        // What a child finds is its parent's.
        self.delegate.and(thread)?.links.find(self.id)
    }

    /// The process that the delegate knows from this thread's last request.
    pub(crate) fn take_known(&self, thread: Option<&Thread>) -> Option<Known> {
        self.link(thread)?.take_known()
    }

    /// The delegate has done something for that process, and knows it.
    pub(crate) fn keep_known(&self, thread: Option<&Thread>, held: Option<Held>) {
        if let (Some(link), Some(held)) = (self.link(thread), held) {
            link.keep_known(held.into_known());
        }
    }

    /// Asks over the thread's own socket, or over a new one. `None`: the
    /// delegate does not have that operation.
    fn ask(
        &self,
        question: &Question<'_>,
        thread: Option<&Thread>,
        deadline: &Deadline,
    ) -> core::result::Result<Option<Answer>, Trouble> {
        let operation = question.header.operation;
        let speak = |socket, speaks: u64, same_process| {
            let is_spoken = operation == OUTCOME || speaks >> operation & 1 != 0;
            is_spoken
                .then(|| exchange(socket, question, same_process, deadline))
                .transpose()
        };
        let (Some(delegate), Some(thread)) = (self.delegate, thread) else {
            let connection = dial(self.target, false, deadline, question.text)?;
            return speak(connection.fd.get(), connection.speaks, false);
        };
        if let Some(only) = delegate.only() {
            let speak = |socket, speaks| speak(socket, speaks, false);
            return only.ask(deadline, question.text, speak);
        }
        if let Some(link) = thread.links.find(self.id) {
            if !question.same_process {
                // Whatever comes of it, the delegate knows another one then.
                drop(link.take_known());
            }
            let socket = link.fd.load(Ordering::Relaxed);
            let speaks = link.speaks.load(Ordering::Relaxed);
            match speak(socket, speaks, question.same_process) {
                // Somebody else closed it: what has its number next is not
                // ours to close.
                Err(Trouble::Away(Errno(libc::EBADF | libc::ENOTSOCK))) => link.lose(),
                // Restarted meanwhile: nothing was sent.
                Err(Trouble::Away(_)) => link.close_if_open(),
                // Or there is another one by now, which may have more.
                Ok(None) if !is_silent(socket) => link.close_if_open(),
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
        let said = speak(connection.fd.get(), connection.speaks, false);
        if said.is_ok() {
            thread.links.free(self.id).open(self, connection);
        }
        said
    }
}

/// An operation for a delegate to do.
pub(crate) struct Request<'a, O> {
    pub(crate) kind: &'static Kind,
    pub(crate) operation: &'a O,
    pub(crate) held: &'a Held,
    /// Whether the process is the one that the delegate knows.
    pub(crate) same_process: bool,
}

impl Asked<'_> {
    /// Has the delegate do an operation.
    pub(crate) fn perform<O: Operation>(
        &self,
        thread: Option<&Thread>,
        request: &Request<'_, O>,
    ) -> Result<Outcome> {
        let Request {
            kind, operation, ..
        } = *request;
        let mut body = Body::new();
        operation.request(request.held, &mut body)?;
        let id = new_request(self.delegate.is_none());
        let text = Text::new();
        let question = Question {
            header: Header::new(kind.id, kind.version, body.size(), id),
            same_process: request.same_process,
            request: &body,
            results: operation.results(),
            text: &text,
        };
        let deadline = Deadline::new(self.target.timeout_ms);
        let said = self.ask(&question, thread, &deadline);
        body.fixed.erase();
        match said {
            Ok(None) => Ok(Outcome::NotHandled),
            Ok(Some(answer)) => {
                if answer.verdict == Verdict::Failed && answer.results != 0 {
                    operation.failed_in_part();
                }
                if let (Verdict::Unknown, Some(thread)) = (answer.verdict, thread) {
                    thread.request.set(id);
                }
                outcome(answer, &text, operation)
            }
            Err(trouble) if self.target.optional && trouble.is_absence() => Ok(Outcome::NotHandled),
            Err(trouble) => {
                if let (Trouble::Unanswered | Trouble::Broken | Trouble::Garbled(_), Some(thread)) =
                    (&trouble, thread)
                {
                    thread.request.set(id);
                }
                Err(trouble.error(operation, self.target, id, &text))
            }
        }
    }
}

/// Asks what became of a request: of the delegate for `key`, and of the one
/// for every connection, to which it went if the first did not handle it.
pub(crate) fn ask_outcome(page: &Page, key: Key, request: u64) -> Result<Outcome> {
    let (child, thread) = thread::own_of_any(page);
    let nowhere = Inside::full();
    let inside = thread.map_or(&nowhere, |thread| &thread.inside);
    let what = format_args!("do what request {request:#x} asks for");
    let texts = [Text::new(), Text::new()];
    let (mut is_connected, mut unsure) = (false, None);
    for (&key, text) in keys_of(&[key, EVERY_CONNECTION]).iter().zip(&texts) {
        let Some(asked) = enter(key, inside, child) else {
            continue;
        };
        is_connected = true;
        let said = asked.ask_outcome(thread, request, text);
        match said {
            Ok(None) => {}
            Ok(Some(answer)) if answer.verdict == Verdict::NotHandled => {}
            Ok(Some(answer)) if answer.verdict != Verdict::Unknown => {
                return outcome(answer, text, &what);
            }
            said => unsure = unsure.or(Some((said, asked.target, text))),
        }
    }
    match unsure {
        Some((Ok(Some(answer)), _, text)) => outcome(answer, text, &what),
        Some((Err(trouble), target, text)) => {
            let what = format_args!("tell what became of request {request:#x}");
            Err(trouble.error(&what, target, request, text))
        }
        Some((Ok(None), ..)) | None if is_connected => Ok(Outcome::NotHandled),
        _ => Err(Error::unreachable(format_args!(
            "cannot ask about request {request:#x}: no delegate is connected"
        ))),
    }
}

impl Asked<'_> {
    fn ask_outcome(
        &self,
        thread: Option<&Thread>,
        request: u64,
        text: &Text,
    ) -> core::result::Result<Option<Answer>, Trouble> {
        let mut body = Body::new();
        body.fixed.u64(request);
        let id = new_request(self.delegate.is_none());
        let question = Question {
            header: Header::new(OUTCOME, 0, body.size(), id),
            same_process: false,
            request: &body,
            results: &[],
            text,
        };
        let deadline = Deadline::new(self.target.timeout_ms);
        let said = self.ask(&question, thread, &deadline);
        said.map_err(|trouble| match trouble {
            // This can be asked again.
            Trouble::Unanswered => Trouble::TooLate,
            Trouble::Broken => Trouble::Away(Errno::ECONNRESET),
            trouble => trouble,
        })
    }
}

fn outcome(answer: Answer, text: &Text, operation: &dyn fmt::Display) -> Result<Outcome> {
    match answer.verdict {
        Verdict::Handled => Ok(Outcome::Done),
        Verdict::NotHandled => Ok(Outcome::NotHandled),
        Verdict::Refused => Err(Error::refused(format_args!(
            "the delegate refused to {operation}: {text}"
        ))),
        Verdict::Failed => {
            let text = format_args!("the delegate could not {operation}: {text}");
            let code = failed_code(answer.code);
            Err(Error::of_delegate(code, answer.errnum, text))
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
            Trouble::Away(_) if matches!(address, Address::Invalid) => {
                Error::unreachable(format_args!(
                    "cannot {operation}: the environment's LIBVIRT_INTERNAL_DELEGATE is {address}"
                ))
            }
            // What this process lacks.
            Trouble::Away(
                errnum @ Errno(
                    libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ETOOMANYREFS,
                ),
            ) => Error::failed(
                errnum,
                format_args!("cannot {operation}: cannot ask the delegate at {address}: {errnum}"),
            ),
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
