// SPDX-License-Identifier: LGPL-2.1-or-later
//! Every way that a request can take within one process: by a handler, directly.
//!
//! Each row is one call of the library. What came of it is held against what
//! the library promises: a request that is done is one that the kernel
//! confirms; one that is refused would also be refused without the library, and
//! leaves everything as it was.

use std::io;

use libc::c_uint;
use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::Kind;
use virt_internal::error::virInternalErrorCode::{
    VIR_INTERNAL_ERR_FAILED, VIR_INTERNAL_ERR_READ_BACK,
};

use super::signals::Signals;
use crate::library::{Behaviour, DIRECT, Failure, NO_DIRECT, Outcome, Script};
use crate::operation::{Entry, Request, Scene, State, operations, short_name};
use crate::privilege::{self, Missing};
use crate::table::{Table, Tone};

/// What a handler that fails answers.
const FAILURE: Errno = Errno::EBUSY;

/// The way that a request takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Handler(Behaviour),
    NoDirect,
}

impl Way {
    fn describe(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Handler(Behaviour::Does) => "handler",
            Way::Handler(Behaviour::Declines) => "handler, then direct",
            Way::Handler(Behaviour::Fails(_)) => "handler fails",
            Way::Handler(Behaviour::Lies) => "handler lies",
            Way::NoDirect => "nobody (NO_DIRECT)",
        }
    }

    fn flags(self) -> c_uint {
        match self {
            Way::NoDirect => NO_DIRECT,
            Way::Direct | Way::Handler(_) => DIRECT,
        }
    }

    fn script(self) -> Option<Script> {
        match self {
            Way::Handler(behaviour) => Some(Script::new(behaviour)),
            Way::Direct | Way::NoDirect => None,
        }
    }
}

struct Row {
    operation: &'static Kind,
    label: &'static str,
    result: Result<Played, Missing>,
}

struct Played {
    request: String,
    asked: String,
    asked_values: Value,
    way: Way,
    outcome: Outcome,
    missing: Option<Missing>,
    before: State,
    after: State,
    /// How it contradicts what the library promises.
    wrong: Option<String>,
}

/// What was shown.
pub struct Rows(Vec<Row>);

/// Shows the first operation in every way, or `all` of them.
pub fn show(all: bool, signals: &Signals) -> io::Result<Rows> {
    let mut rows = Vec::new();
    let operations = operations();
    let count = match all {
        true => operations.len(),
        false => 1,
    };
    for entry in &operations[..count] {
        for scene in (entry.scenes)() {
            signals.require_none()?;
            play(entry, scene, &mut rows)?;
        }
    }
    Ok(Rows(rows))
}

fn play(entry: &Entry, scene: Scene, rows: &mut Vec<Row>) -> io::Result<()> {
    let row = |result| Row {
        operation: entry.kind,
        label: scene.label,
        result,
    };
    let stage = match scene.stage {
        Ok(stage) => stage,
        Err(missing) if missing.kind == privilege::Kind::Trial => {
            return Err(io::Error::other(missing.what));
        }
        Err(missing) => {
            rows.push(row(Err(missing)));
            return Ok(());
        }
    };
    let [first, second, third] = &stage.requests.allowed;
    let beyond = &stage.requests.beyond;
    let ways = [
        (Way::Direct, first),
        (Way::Handler(Behaviour::Does), second),
        (Way::Handler(Behaviour::Declines), third),
        (Way::Handler(Behaviour::Fails(FAILURE)), beyond),
        (Way::Handler(Behaviour::Lies), beyond),
        (Way::NoDirect, beyond),
        (Way::Direct, beyond),
    ];
    for (way, request) in ways {
        rows.push(row(Ok(call(way, request.as_ref())?)));
    }
    Ok(())
}

fn call(way: Way, request: &dyn Request) -> io::Result<Played> {
    let before = request.state()?;
    let script = way.script();
    if let Some(script) = &script {
        // SAFETY: unset below, before the script goes.
        set(unsafe { request.set_handler(Some(script)) })?;
    }
    let outcome = Outcome::of(request.call(way.flags()));
    // SAFETY: there is no script.
    set(unsafe { request.set_handler(None) })?;
    let after = request.state()?;
    let promise = Promise {
        way,
        request,
        outcome: &outcome,
        before: &before,
        after: &after,
    };
    let wrong = promise.check(script.as_ref()).err();
    Ok(Played {
        request: request.to_string(),
        asked: request.asked(),
        asked_values: request.asked_values(),
        way,
        missing: match (way, &outcome) {
            (Way::Handler(Behaviour::Fails(_) | Behaviour::Lies), _) => None,
            (_, Outcome::Failed(failure)) => request.missing(failure.errnum),
            _ => None,
        },
        outcome,
        before,
        after,
        wrong,
    })
}

fn set(returned: libc::c_int) -> io::Result<()> {
    match Outcome::of(returned) {
        Outcome::Failed(failure) => Err(io::Error::other(failure.message)),
        _ => Ok(()),
    }
}

/// A call and what came of it.
struct Promise<'a> {
    way: Way,
    request: &'a dyn Request,
    outcome: &'a Outcome,
    before: &'a State,
    after: &'a State,
}

impl Promise<'_> {
    /// Fails where it is not what the library promises.
    fn check(&self, script: Option<&Script>) -> Result<(), String> {
        let called_with = script.map_or(Vec::new(), Script::called_with);
        let expected: Vec<String> = script.iter().map(|_| self.request.to_string()).collect();
        if called_with != expected {
            return Err(format!(
                "handlers were called with {called_with:?}, not {expected:?}"
            ));
        }
        match (self.way, self.outcome) {
            (Way::NoDirect, Outcome::NotHandled) => self.require_unchanged(),
            (Way::Handler(Behaviour::Fails(errnum)), Outcome::Failed(failure))
                if failure.is(VIR_INTERNAL_ERR_FAILED, errnum) =>
            {
                self.require_unchanged()
            }
            (Way::Handler(Behaviour::Lies), Outcome::Failed(failure))
                if failure.is(VIR_INTERNAL_ERR_READ_BACK, Errno::EREMOTEIO) =>
            {
                self.require_unchanged()
            }
            (Way::Direct | Way::Handler(Behaviour::Does | Behaviour::Declines), Outcome::Done) => {
                match self.after.as_asked {
                    true => Ok(()),
                    false => Err(format!("done, but the kernel says {}", self.after.text)),
                }
            }
            (
                Way::Direct | Way::Handler(Behaviour::Does | Behaviour::Declines),
                Outcome::Failed(failure),
            ) if failure.code == VIR_INTERNAL_ERR_FAILED as libc::c_int => {
                self.require_unchanged()?;
                match self.request.act() {
                    Err(errnum) if errnum == failure.errnum => Ok(()),
                    other => Err(format!(
                        "failed with {:?}, but without the library it is {other:?}",
                        failure.errnum
                    )),
                }
            }
            (_, Outcome::Failed(failure)) => Err(format!(
                "failed with {}, {:?}: {}",
                failure.code_name(),
                failure.errnum,
                failure.message
            )),
            (_, outcome) => Err(format!("the outcome was '{}'", outcome.name())),
        }
    }

    fn require_unchanged(&self) -> Result<(), String> {
        match self.before == self.after {
            true => Ok(()),
            false => Err(format!(
                "changed from {} to {}",
                self.before.text, self.after.text
            )),
        }
    }
}

impl Played {
    fn result(&self) -> (Tone, String) {
        if self.wrong.is_some() {
            return (Tone::Wrong, "WRONG, see below".into());
        }
        match (&self.outcome, &self.missing) {
            (Outcome::Done, _) => (Tone::Good, "done".into()),
            (Outcome::NotHandled, _) => (Tone::Good, "not handled, nothing done".into()),
            (Outcome::Failed(failure), Some(missing)) => (
                Tone::Missing,
                format!("{:?}: {}", failure.errnum, missing.needs()),
            ),
            (Outcome::Failed(failure), None) => match self.way {
                Way::Handler(Behaviour::Lies) => (Tone::Good, "READ_BACK: found out".into()),
                Way::Handler(Behaviour::Fails(errnum)) => {
                    (Tone::Good, format!("{errnum:?}, the handler's own"))
                }
                _ => (Tone::Missing, format!("{:?}", failure.errnum)),
            },
        }
    }
}

impl Rows {
    pub fn to_text(&self) -> String {
        let mut table = Table::new(&["OPERATION", "ASKED", "WAY", "RESULT", "THE KERNEL SAYS"]);
        for row in &self.0 {
            let name = format!("{} {}", short_name(row.operation), row.label);
            let name = (Tone::Heading, name.trim_end().to_owned());
            table.add(match &row.result {
                Ok(played) => vec![
                    name,
                    (Tone::Plain, played.asked.clone()),
                    (Tone::Plain, played.way.describe().to_owned()),
                    played.result(),
                    (Tone::Plain, played.after.text.clone()),
                ],
                Err(missing) => vec![
                    name,
                    (Tone::Missing, format!("not shown: {}", missing.needs())),
                ],
            });
        }
        table.to_string()
    }

    /// What contradicts the library's promises, a line each.
    pub fn wrong(&self) -> Vec<String> {
        let played = |row: &Row| {
            let played = row.result.as_ref().ok()?;
            let (wrong, way) = (played.wrong.as_ref()?, played.way.describe());
            let (name, asked) = (row.operation.name, &played.asked);
            Some(format!("{name} ({asked}, {way}): {wrong}"))
        };
        self.0.iter().filter_map(played).collect()
    }

    pub fn to_json(&self) -> Value {
        self.0
            .iter()
            .map(|row| match &row.result {
                Ok(played) => json!({
                    "operation": row.operation.name,
                    "label": row.label,
                    "request": played.request,
                    "asked": played.asked,
                    "way": played.way.describe(),
                    "outcome": played.outcome.name(),
                    "error": played.outcome.failure().map(Failure::to_json),
                    "missing": played.missing.as_ref().map(Missing::to_json),
                    "asked_values": played.asked_values,
                    "before": played.before.text,
                    "before_values": played.before.values,
                    "kernel": played.after.text,
                    "kernel_values": played.after.values,
                    "wrong": played.wrong,
                }),
                Err(missing) => json!({
                    "operation": row.operation.name,
                    "label": row.label,
                    "outcome": "not-shown",
                    "missing": missing.to_json(),
                }),
            })
            .collect()
    }
}
