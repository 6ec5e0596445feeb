// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal demo`: the main job, on processes of the command's own.
//!
//! Each row is one call of the library. What came of it is held against what
//! the library promises: a request that is done is one that the kernel
//! confirms; one that is refused would also be refused without the library, and
//! leaves everything as it was.

use std::io;
use std::process::ExitCode;

use clap::Args;
use libc::c_uint;
use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::Kind;
use virt_internal::error::virInternalErrorCode::{
    VIR_INTERNAL_ERR_FAILED, VIR_INTERNAL_ERR_READ_BACK,
};

use crate::host::Host;
use crate::library::{Behaviour, DIRECT, Failure, NO_DIRECT, Outcome, Script};
use crate::operation::{Entry, Request, Scene, State, operations, short_name};
use crate::privilege::{self, Missing};
use crate::table::{Table, Tone, paint};

/// Show what the library does, on processes started for it
#[derive(Args)]
pub struct Demo {
    /// Every way for every operation, not only for the first
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

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

impl Demo {
    pub fn run(&self) -> crate::Result {
        let host = Host::probe()?;
        let mut rows = Vec::new();
        for (index, entry) in operations().iter().enumerate() {
            for scene in (entry.scenes)() {
                play(entry, scene, self.all || index == 0, &mut rows)?;
            }
        }
        let wrong = rows
            .iter()
            .any(|row| matches!(&row.result, Ok(played) if played.wrong.is_some()));
        let text = match self.json {
            true => format!("{:#}\n", to_json(&rows, wrong)),
            false => to_text(&host, &rows, wrong),
        };
        let exit_code = match wrong {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        };
        Ok((text, exit_code))
    }
}

fn play(entry: &Entry, scene: Scene, all: bool, rows: &mut Vec<Row>) -> io::Result<()> {
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
        (true, Way::Direct, first),
        (true, Way::Handler(Behaviour::Does), second),
        (all, Way::Handler(Behaviour::Declines), third),
        (all, Way::Handler(Behaviour::Fails(FAILURE)), beyond),
        (true, Way::Handler(Behaviour::Lies), beyond),
        (all, Way::NoDirect, beyond),
        (true, Way::Direct, beyond),
    ];
    for (_, way, request) in ways.into_iter().filter(|(wanted, ..)| *wanted) {
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

fn to_text(host: &Host, rows: &[Row], wrong: bool) -> String {
    let mut table = Table::new(&["OPERATION", "ASKED", "WAY", "RESULT", "THE KERNEL SAYS"]);
    for row in rows {
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
    let mut text = format!("{}\n\n{table}\n", host.summary());
    if wrong {
        let heading = "This contradicts what the library promises:";
        text += &format!("{}\n", paint(Tone::Wrong, heading));
        for row in rows {
            let Ok(Played {
                asked,
                way,
                wrong: Some(wrong),
                ..
            }) = &row.result
            else {
                continue;
            };
            text += &format!(
                "  {} ({asked}, {}): {wrong}\n",
                row.operation.name,
                way.describe()
            );
        }
    } else {
        text += "All as promised. How to get what is missing: virt-internal capabilities\n";
    }
    text
}

fn to_json(rows: &[Row], wrong: bool) -> Value {
    let rows: Vec<Value> = rows
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
        .collect();
    json!({ "as_promised": !wrong, "rows": rows })
}
