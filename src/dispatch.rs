// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who does an operation: the handler set for the connection, the handler set
//! for all, the kernel. Whoever says that it is done, the kernel is asked.

use core::ffi::c_void;
use core::fmt;
use core::ops::RangeInclusive;

use crate::errno::Errno;
use libc::{c_int, c_uint};

use crate::capi::types::{VIR_INTERNAL_HANDLED, VIR_INTERNAL_NOT_HANDLED};
use crate::error::{Error, Result};
use crate::foreign;
use crate::fork::Page;
use crate::inside::{DEPTH_MAX, Inside, Mark};
use crate::kernel::process::Held;
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
    fn hold(&self) -> Result<Held>;

    /// Calls a handler.
    ///
    /// # Safety
    /// `handler` is a handler of this operation, `opaque` what it was set with.
    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int;

    /// Fails unless the kernel's state is what was asked for.
    fn read_back(&self) -> Result<()>;

    /// Does it, with libvirt's semantics.
    fn direct(&self) -> Result<()>;
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
        "a handler was to {operation} and said that it did, but {found}"
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

/// Has `operation` done.
#[inline(always)]
pub(crate) fn dispatch(
    page: &Page,
    kind: &'static Kind,
    conn: Key,
    operation: &impl Operation,
    direct: Direct,
) -> Result<Outcome> {
    if !kind.registry.is_empty() {
        return ask(page, kind, conn, operation, direct);
    }
    match direct {
        Direct::Allowed => operation.direct().map(|()| Outcome::Done),
        Direct::Forbidden => Ok(Outcome::NotHandled),
    }
}

#[inline(never)]
fn ask(
    page: &Page,
    kind: &'static Kind,
    conn: Key,
    operation: &dyn Operation,
    direct: Direct,
) -> Result<Outcome> {
    let is_child = page.is_child();
    let child = is_child.then_some(page);
    let asked = |thread: &Thread| chain(kind, conn, operation, direct, thread, child);
    match is_child {
        false => thread::own(asked),
        true => thread::in_child(page, asked).unwrap_or_else(|| {
            Err(Error::failed(
                Errno::EAGAIN,
                format_args!("too many threads of forked children use handlers at a time"),
            ))
        }),
    }
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

#[inline(never)]
fn chain(
    kind: &'static Kind,
    conn: Key,
    operation: &dyn Operation,
    direct: Direct,
    thread: &Thread,
    child: Option<&Page>,
) -> Result<Outcome> {
    const EVERY_CONNECTION: Key = 0;
    let keys = [conn, EVERY_CONNECTION];
    let keys = match conn {
        EVERY_CONNECTION => &keys[1..],
        _ => &keys[..],
    };
    let inside = &thread.inside;
    if child.is_none() {
        require_no_longjmp(inside);
    }
    let mut held = None;
    let mut passed_over = false;
    for &key in keys {
        let found = match child {
            None => kind.registry.enter(key, inside),
            Some(page) => kind
                .registry
                .enter_in_child(key, inside)
                .filter(|call| !thread::was_forked_inside(page, kind.id, call.id)),
        };
        let Some(call) = found else {
            continue;
        };
        if child.is_some() && !call.handler.fork_safe {
            passed_over = true;
            continue;
        }
        if held.is_none() {
            match operation.hold() {
                Ok(process) => held = Some(process),
                Err(error) => {
                    thread.keep_message(|| drop(call));
                    return Err(error);
                }
            }
        }
        let answer = call_handler(kind, operation, &call, inside);
        drop(call);
        if outcome(operation, answer)? == Outcome::Done {
            let read_back = operation.read_back();
            // First of all: what was read was read of that very process.
            require_still(&held)?;
            return read_back.map(|()| Outcome::Done);
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

fn require_still(held: &Option<Held>) -> Result<()> {
    held.as_ref().map_or(Ok(()), Held::require_still)
}

/// Calls the handler, below everything that [`require_no_longjmp`] looks at.
/// `None`: too many are inside one another.
#[inline(never)]
fn call_handler(
    kind: &'static Kind,
    operation: &dyn Operation,
    call: &Call<'_>,
    inside: &Inside,
) -> Option<c_int> {
    let mut mark = Mark::new();
    let _entered = inside.enter(kind.id, call.id, &mut mark)?;
    let guard = foreign::Guard;
    // SAFETY: the registry of this kind has only handlers of it, with what
    // they were set with, and `call` keeps them from being freed.
    let answer = unsafe { operation.invoke(call.handler.code, call.handler.opaque) };
    guard.returned();
    Some(answer)
}

fn outcome(operation: &dyn Operation, answer: Option<c_int>) -> Result<Outcome> {
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
            format_args!("more than {DEPTH_MAX} handlers are inside one another"),
        )),
    }
}
