// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who does an operation: the handler set for the connection, the handler set
//! for all, their delegates, the kernel. Whoever says that it is done, the
//! kernel is asked.

use core::cell::Cell;
use core::ffi::c_void;
use core::fmt;
use core::ops::RangeInclusive;

use crate::errno::Errno;
use libc::{c_int, c_uint};

use crate::capi::types::{VIR_INTERNAL_HANDLED, VIR_INTERNAL_NOT_HANDLED};
use crate::delegate::client;
use crate::delegate::wire::Request;
use crate::error::{Error, Result};
use crate::foreign;
use crate::fork::Page;
use crate::inside::{DEPTH_MAX, Inside, Mark};
use crate::kernel::process::{Held, Known};
use crate::registry::{Call, Code, Key, Registry};
use crate::thread::{self, Thread};

/// What a handler can answer when it failed.
pub(crate) const NEGATED_ERRNOS: RangeInclusive<c_int> = -4095..=-1;

/// What there is of an operation once, whoever asks for it.
pub struct Kind {
    /// Its `virInternalOperation`.
    pub id: u32,
    /// The name of its C function.
    pub name: &'static str,
    /// What a handler's version must be.
    pub version: c_uint,
    pub(crate) registry: Registry,
}

impl Kind {
    pub(crate) const fn new(id: u32, name: &'static str, version: c_uint) -> Self {
        Kind {
            id,
            name,
            version,
            registry: Registry::new(id),
        }
    }
}

/// A request for an operation, all of it checked. It displays as what is to
/// be done, such as "limit locked memory of process 111 to 4096".
pub(crate) trait Operation: fmt::Display {
    /// Checks what only the kernel knows, before anybody acts, and holds the
    /// process whose number a handler is about to be given.
    ///
    /// A descriptor of a process is taken in the place of a new one, if it is
    /// that process's.
    fn hold(&self, known: Option<Known>) -> Result<Held>;

    /// Checks what a request names by numbers alone, which no descriptor that
    /// came with it is of.
    #[cfg(feature = "delegate")]
    fn require_subject(&self) -> Result<()> {
        Ok(())
    }

    /// Calls a handler.
    ///
    /// # Safety
    /// `handler` is a handler of this operation, `opaque` what it was set with.
    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int;

    /// Fails unless the kernel's state is what was asked for.
    fn read_back(&self) -> Result<()>;

    /// Does it, with libvirt's semantics.
    fn direct(&self) -> Result<()>;

    /// Does it as a delegate: so that it can be undone.
    #[cfg(feature = "delegate")]
    fn act(&self) -> Result<Outcome> {
        self.direct().map(|()| Outcome::Done)
    }

    /// Undoes it where it was done to another process, which has the number by
    /// now that was asked about.
    #[cfg(feature = "delegate")]
    fn undo(&self) {}

    /// What a delegate is told: the body of a message, and descriptors.
    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()>;

    /// Where a delegate's results go, one for each thread.
    fn results(&self) -> &[Cell<c_int>] {
        &[]
    }

    /// It was not done, for that reason: for operations that tell more than
    /// by what they return.
    #[inline(always)]
    fn failed(&self, _: Errno) {}

    /// A delegate failed, and its results say which threads it did it to.
    fn failed_in_part(&self) {}
}

/// The error of a system call that did not do `operation`.
#[cold]
pub(crate) fn cannot(operation: &dyn Operation, errnum: Errno) -> Error {
    Error::from_kernel(errnum, format_args!("cannot {operation}"))
}

/// The error when the kernel shows `found` in the place of what was asked.
#[cold]
pub(crate) fn not_done(operation: &dyn Operation, found: fmt::Arguments<'_>) -> Error {
    Error::read_back(format_args!(
        "a handler or delegate was to {operation} and said that it did, but {found}"
    ))
}

/// The error when the kernel cannot be asked whether it was done.
#[cold]
pub(crate) fn not_readable(operation: &dyn Operation, errnum: Errno) -> Error {
    not_done(
        operation,
        format_args!("the kernel's state cannot be read: {}", errnum),
    )
}

/// What became of an operation that did not fail.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Outcome {
    Done = VIR_INTERNAL_HANDLED,
    NotHandled = VIR_INTERNAL_NOT_HANDLED,
}

/// Whether the kernel may be asked directly, when nobody else does it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direct {
    Allowed,
    Forbidden,
}

/// Whether a delegate's process has handlers.
#[cfg(feature = "delegate")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handlers {
    None,
    Set,
}

#[cfg(feature = "delegate")]
impl Handlers {
    pub(crate) fn of(kind: &Kind) -> Handlers {
        match kind.registry.is_empty() {
            true => Handlers::None,
            false => Handlers::Set,
        }
    }
}

/// What handlers and delegates are set for that are for every connection.
pub(crate) const EVERY_CONNECTION: Key = 0;

/// For which keys one is asked, in this order: a call without a connection has
/// only the second.
#[inline(always)]
pub(crate) fn keys_of(conn_and_every: &[Key; 2]) -> &[Key] {
    match conn_and_every[0] {
        EVERY_CONNECTION => &conn_and_every[1..],
        _ => conn_and_every,
    }
}

/// Has `operation` done.
#[inline(always)]
pub(crate) fn dispatch(
    page: &Page,
    kind: &'static Kind,
    conn: Key,
    operation: &impl Operation,
    direct: Direct,
) -> Result<Outcome> {
    let done = if !kind.registry.is_empty() || client::is_any() {
        ask(page, kind, conn, operation, direct)
    } else if direct == Direct::Allowed {
        operation.direct().map(|()| Outcome::Done)
    } else {
        Ok(Outcome::NotHandled)
    };
    done.inspect_err(|error| operation.failed(error.errnum))
}

#[inline(never)]
fn ask(
    page: &Page,
    kind: &'static Kind,
    conn: Key,
    operation: &impl Operation,
    direct: Direct,
) -> Result<Outcome> {
    with_chain(page, kind, operation, None, |chain| chain.run(conn, direct))
}

/// Makes what knows of this thread and process.
#[inline(always)]
fn with_chain<O, T>(
    page: &Page,
    kind: &'static Kind,
    operation: &O,
    given: Option<&Held>,
    run: impl FnOnce(&Chain<'_, O>) -> T,
) -> T {
    let (child, thread) = thread::own_of_any(page);
    let full;
    let inside = match thread {
        Some(thread) => &thread.inside,
        None => {
            full = Inside::full();
            &full
        }
    };
    run(&Chain {
        page,
        kind,
        operation,
        given,
        thread,
        inside,
        child,
    })
}

/// Has `operation` done as a delegate, to what `held` is of: by a handler of
/// this process if it is to be asked, else by the kernel. What the kernel has
/// then is read in any case.
#[cfg(feature = "delegate")]
pub(crate) fn serve(
    kind: &'static Kind,
    operation: &impl Operation,
    held: &Held,
    handlers: Handlers,
) -> Result<Outcome> {
    let asked = match handlers {
        Handlers::None => Ok(Outcome::NotHandled),
        Handlers::Set => ask_own_handlers(kind, operation, held),
    };
    let done = asked.and_then(|outcome| {
        if outcome == Outcome::NotHandled {
            operation.require_subject()?;
            if operation.act()? == Outcome::NotHandled {
                return Ok(Outcome::NotHandled);
            }
        }
        let read_back = operation.read_back();
        held.require_still().inspect_err(|_| operation.undo())?;
        read_back.map(|()| Outcome::Done)
    });
    done.inspect_err(|error| operation.failed(error.errnum))
}

/// Asks the handlers of a delegate's process. They are not given what nobody
/// has looked at: a peer's library may not have.
#[cfg(feature = "delegate")]
fn ask_own_handlers(
    kind: &'static Kind,
    operation: &impl Operation,
    held: &Held,
) -> Result<Outcome> {
    held.require_still()?;
    operation.require_subject()?;
    let page = crate::fork::page()?;
    let outcome = with_chain(page, kind, operation, Some(held), |chain| {
        chain.ask_handlers(&[EVERY_CONNECTION], &mut None, &mut false)
    })?;
    if outcome == Outcome::NotHandled {
        // Time has passed in handlers that did nothing.
        held.require_still()?;
    }
    Ok(outcome)
}

/// Ends the process if a handler was left by longjmp(): it counts as running
/// for ever, so that removing it would never end.
#[inline(always)]
pub(crate) fn require_no_longjmp(inside: &Inside) {
    if !inside.is_empty() {
        let here = 0_u8;
        if let Some(frame) = inside.left_by_longjmp(core::hint::black_box(&here)) {
            foreign::abort(
                &foreign::describe(frame),
                &[" was left by longjmp(); handlers must return"],
            );
        }
    }
}

/// One operation's way from handler to handler, and to the kernel.
struct Chain<'a, O> {
    page: &'a Page,
    kind: &'static Kind,
    operation: &'a O,
    /// What already holds the process.
    given: Option<&'a Held>,
    /// `None` where there is no room for it: in a child with many threads.
    thread: Option<&'a Thread>,
    inside: &'a Inside,
    /// Whether this is a forked child.
    child: bool,
}

impl<'a, O: Operation> Chain<'a, O> {
    // Not by a table of functions: an indirect call costs most right after a
    // system call, where the processor has forgotten where it led.
    #[inline(always)]
    fn run(&self, conn: Key, direct: Direct) -> Result<Outcome> {
        let Chain { operation, .. } = *self;
        let keys = [conn, EVERY_CONNECTION];
        let keys = keys_of(&keys);
        if !self.child {
            require_no_longjmp(self.inside);
        }
        let mut held = None;
        let mut passed_over = false;
        if self.ask_handlers(keys, &mut held, &mut passed_over)? == Outcome::Done {
            return self.read_back(&held);
        }
        if client::is_any() {
            for &key in keys {
                if self.ask_delegate(key, &mut held)? == Outcome::Done {
                    return Ok(Outcome::Done);
                }
            }
        }
        if passed_over {
            return Err(Error::forked(format_args!(
                "cannot {operation}: this is a forked child, and the handler is not \
                 VIR_INTERNAL_HANDLER_FORK_SAFE"
            )));
        }
        if direct == Direct::Forbidden {
            return Ok(Outcome::NotHandled);
        }
        // Time has passed in handlers that did nothing.
        require_still(&held)?;
        operation.direct()?;
        require_still(&held)?;
        Ok(Outcome::Done)
    }

    /// Asks the handlers that are set for `keys`, one after the other.
    #[inline(always)]
    fn ask_handlers(
        &self,
        keys: &[Key],
        held: &mut Option<Held>,
        passed_over: &mut bool,
    ) -> Result<Outcome> {
        let Chain { operation, .. } = *self;
        for &key in keys {
            let Some(call) = self.enter(key) else {
                continue;
            };
            if self.child && !call.handler.fork_safe {
                *passed_over = true;
                continue;
            }
            if self.given.is_none()
                && let Err(error) = hold(held, operation)
            {
                if let Some(thread) = self.thread {
                    thread.keep_message(|| drop(call));
                }
                return Err(error);
            }
            let answer = self.call(&call);
            // A lock may be held here for ever.
            if !self.child && self.page.is_wiped() {
                core::mem::forget(call);
                return Err(Error::forked(format_args!(
                    "cannot {operation}: the handler forked, and returned in the child"
                )));
            }
            drop(call);
            if outcome(operation, answer)? == Outcome::Done {
                return Ok(Outcome::Done);
            }
        }
        Ok(Outcome::NotHandled)
    }

    /// Somebody said that it is done.
    #[inline(always)]
    fn read_back(&self, held: &Option<Held>) -> Result<Outcome> {
        let read_back = self.operation.read_back();
        // First of all: what was read was read of that very process.
        require_still(held)?;
        read_back.map(|()| Outcome::Done)
    }

    /// Asks the delegate that is set for `key`, if there is one.
    #[inline(never)]
    fn ask_delegate(&self, key: Key, held: &mut Option<Held>) -> Result<Outcome> {
        let Some(asked) = client::enter(key, self.inside, self.child) else {
            return Ok(Outcome::NotHandled);
        };
        let is_new = held.is_none();
        let process = match held {
            Some(held) => held,
            None => {
                let known = asked.take_known(self.thread);
                held.insert(self.operation.hold(known)?)
            }
        };
        let question = client::Request {
            kind: self.kind,
            operation: self.operation,
            held: process,
            same_process: is_new && process.was_known(),
        };
        let outcome = asked.perform(self.thread, &question)?;
        if outcome == Outcome::Done {
            self.read_back(held)?;
            asked.keep_known(self.thread, held.take());
        }
        Ok(outcome)
    }

    /// Goes into the handler that is set for `key`, unless this thread is
    /// inside it.
    fn enter(&self, key: Key) -> Option<Call<'a>> {
        let registry = &self.kind.registry;
        match self.child {
            false => registry.enter(key, self.inside),
            true => registry
                .enter_in_child(key, self.inside)
                .filter(|call| !thread::was_forked_inside(self.page, self.kind.id, call.id)),
        }
    }

    /// Calls the handler, below everything that [`require_no_longjmp`] looks
    /// at. `None`: too many are inside one another.
    #[inline(never)]
    fn call(&self, call: &Call<'_>) -> Option<c_int> {
        let mut mark = Mark::new();
        let _entered = self.inside.enter(self.kind.id, call.id, &mut mark)?;
        let guard = foreign::Guard;
        // SAFETY: the registry of this kind has only handlers of it, with what
        // they were set with, and `call` keeps them from being freed.
        let answer = unsafe {
            self.operation
                .invoke(call.handler.code, call.handler.opaque)
        };
        guard.returned();
        Some(answer)
    }
}

/// Holds what the operation is about, once.
#[inline(always)]
fn hold<'a>(held: &'a mut Option<Held>, operation: &impl Operation) -> Result<&'a Held> {
    match held {
        Some(held) => Ok(held),
        None => Ok(held.insert(operation.hold(None)?)),
    }
}

#[inline(always)]
fn require_still(held: &Option<Held>) -> Result<()> {
    held.as_ref().map_or(Ok(()), Held::require_still)
}

fn outcome(operation: &impl Operation, answer: Option<c_int>) -> Result<Outcome> {
    match answer {
        Some(VIR_INTERNAL_HANDLED) => Ok(Outcome::Done),
        Some(VIR_INTERNAL_NOT_HANDLED) => Ok(Outcome::NotHandled),
        Some(answer) if NEGATED_ERRNOS.contains(&answer) => Err(Error::failed(
            Errno(-answer),
            format_args!("the handler could not {operation}"),
        )),
        Some(answer) => Err(Error::failed(
            Errno::EPROTO,
            format_args!(
                "the handler that was to {operation} answered {answer}, which is neither \
                 VIR_INTERNAL_HANDLED, nor VIR_INTERNAL_NOT_HANDLED, nor -errno"
            ),
        )),
        None => Err(Error::failed(
            Errno::ELOOP,
            format_args!(
                "cannot {operation}: more than {DEPTH_MAX} handlers are inside one another, or too \
                 many threads of forked children are in handlers"
            ),
        )),
    }
}
