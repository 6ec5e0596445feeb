// SPDX-License-Identifier: LGPL-2.1-or-later
//! An unprivileged process without and with a delegate.
//!
//! Each row is a request that is made twice, by new processes. What came of it
//! is held against what is promised: what is done the kernel confirms; what
//! fails with a delegate would fail in its place, too; what is refused changes
//! nothing and has a rule; and the audit has a line for each.

use std::io;

use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::Kind;

use super::cast::Cast;
use super::running::Running;
use super::signals::Signals;
use crate::library::DELEGATE;
use crate::operation::{Delegation, Errand, Request, State, operations, short_name};
use crate::privilege::{self, Missing};
use crate::proc;
use crate::table::{Table, Tone};

/// The name of the policy's rule.
const RULE: &str = "demo";

/// What was shown, or why nothing was.
pub struct Shown {
    cast: Cast,
    policy: String,
    rows: Result<Vec<Row>, Missing>,
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
    is_refused: bool,
    /// What the caller says of it.
    without: Value,
    with: Value,
    /// What the delegate lacks.
    missing: Option<Missing>,
    before: State,
    between: State,
    after: State,
    /// The audit's lines.
    audit: Vec<String>,
    /// How it contradicts what is promised.
    wrong: Option<String>,
}

/// Shows what matters of every operation, or `all` of it.
pub fn show(all: bool, signals: &Signals) -> io::Result<Shown> {
    let cast = Cast::choose();
    let mut shown = Shown {
        policy: String::new(),
        rows: Ok(Vec::new()),
        cast,
    };
    let cgroups = proc::read("/proc/self/cgroup").unwrap_or_default();
    let Some(hierarchy) = hierarchy(&cgroups) else {
        let what = "cgroups: a delegate tells its peers apart by them";
        shown.rows = Err(Missing::new(privilege::Kind::Kernel, what));
        return Ok(shown);
    };
    shown.policy = policy(&shown.cast, hierarchy)?;
    let mut running = Running::start(&shown.cast, &shown.policy)?;
    let mut rows = Vec::new();
    for entry in operations() {
        for Delegation { label, stage } in (entry.delegations)(shown.cast.target) {
            let row = |result| Row {
                operation: entry.kind,
                label,
                result,
            };
            let stage = match stage {
                Ok(stage) => stage,
                Err(missing) if missing.kind == privilege::Kind::Trial => {
                    return Err(io::Error::other(missing.what));
                }
                Err(missing) => {
                    rows.push(row(Err(missing)));
                    continue;
                }
            };
            let errands = stage.requests.iter();
            for errand in errands.filter(|errand| all || errand.is_main) {
                signals.require_none()?;
                let played = play(errand, stage.pid(), &shown.cast, &mut running)?;
                rows.push(row(Ok(played)));
            }
        }
    }
    shown.rows = Ok(rows);
    Ok(shown)
}

/// The hierarchy whose paths a policy can mean here, by its name there.
fn hierarchy(cgroups: &str) -> Option<&str> {
    let controllers = |line: &'_ str| -> Option<(usize, usize)> {
        let start = line.find(':')? + 1;
        Some((start, start + line[start..].find(':')?))
    };
    let names = || {
        cgroups.lines().filter_map(|line| {
            let (start, end) = controllers(line)?;
            line[start..end].split(',').next()
        })
    };
    match names().any(str::is_empty) {
        true => Some("v2"),
        false => names().next(),
    }
}

fn policy(cast: &Cast, hierarchy: &str) -> io::Result<String> {
    let (caller, target) = (cast.caller_uid(), cast.target_uid());
    let mut text = format!(
        "version = 1\n\
         host = {{ cgroup-hierarchy = \"{hierarchy}\" }}\n\
         \n\
         [[rule]]\n\
         name = \"{RULE}\"\n\
         peer = {{ uid = {caller} }}\n\
         target = {{ uid = {target}, cgroup = \"/\" }}\n"
    );
    for entry in operations() {
        text += &format!("{}\n", (entry.policy)()?);
    }
    Ok(text)
}

fn play(
    errand: &Errand,
    pid: libc::pid_t,
    cast: &Cast,
    running: &mut Running,
) -> io::Result<Played> {
    let request = errand.request.as_ref();
    let arguments = request.arguments();
    let before = request.state()?;
    let without = cast.call(&arguments, None)?;
    let between = request.state()?;
    let address = running.address.clone();
    let with = Running::patiently(|| cast.call(&arguments, Some(&address)))?;
    let after = request.state()?;
    let audit = running.audit()?;
    let last = audit
        .last()
        .and_then(|line| serde_json::from_str(line).ok());
    let promise = Promise {
        errand,
        pid,
        cast,
        with: &with,
        audit: last.as_ref().unwrap_or(&Value::Null),
        between: &between,
        after: &after,
    };
    let wrong = check_without(errand, &without, &before, &between)
        .and_then(|()| promise.check())
        .err();
    let missing = match with["error"]["code"].as_str() {
        // This process may do as much as the delegate.
        Some("VIR_INTERNAL_ERR_FAILED") => promise.errno().and_then(|errno| {
            let lacks = request.delegate_lacks(errno);
            lacks.or_else(|| request.missing(errno))
        }),
        _ => None,
    };
    Ok(Played {
        request: request.to_string(),
        asked: request.asked(),
        asked_values: request.asked_values(),
        is_refused: errand.is_refused,
        without,
        with,
        missing,
        before,
        between,
        after,
        audit,
        wrong,
    })
}

/// Fails where the kernel does not confirm what an unprivileged process did
/// itself, or could not do.
fn check_without(
    errand: &Errand,
    said: &Value,
    before: &State,
    after: &State,
) -> Result<(), String> {
    let is_expected = |errno| match errno {
        "EPERM" | "EACCES" | "EROFS" => true,
        // What a policy does not allow may not even be there.
        "EINVAL" => errand.is_refused,
        _ => false,
    };
    match (said["outcome"].as_str(), said["error"]["errno"].as_str()) {
        (Some("done"), _) if after.as_asked => Ok(()),
        (Some("failed"), Some(errno)) if is_expected(errno) => {
            require_unchanged(before, after).map_err(|why| format!("without the delegate: {why}"))
        }
        _ => Err(format!("without the delegate: {}", describe(said))),
    }
}

fn require_unchanged(before: &State, after: &State) -> Result<(), String> {
    match before == after {
        true => Ok(()),
        false => Err(format!(
            "it failed, but changed {} to {}",
            before.text, after.text
        )),
    }
}

/// What a caller says, in a line.
fn describe(said: &Value) -> String {
    match said["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the outcome is {}", said["outcome"]),
    }
}

/// A request of the delegate and what came of it.
struct Promise<'a> {
    errand: &'a Errand,
    pid: libc::pid_t,
    cast: &'a Cast,
    with: &'a Value,
    /// Its line, or null.
    audit: &'a Value,
    between: &'a State,
    after: &'a State,
}

impl Promise<'_> {
    /// Fails where it is not what is promised.
    fn check(&self) -> Result<(), String> {
        let Promise {
            with,
            between,
            after,
            ..
        } = self;
        let request: &dyn Request = self.errand.request.as_ref();
        let outcome = match (with["outcome"].as_str(), with["error"]["code"].as_str()) {
            (Some("failed"), Some("VIR_INTERNAL_ERR_REFUSED")) if self.errand.is_refused => {
                require_unchanged(between, after)?;
                "refused"
            }
            (Some("done"), _) if !self.errand.is_refused => {
                if !after.as_asked || with["as_asked"] != true {
                    return Err(format!("done, but the kernel says {}", after.text));
                }
                "handled"
            }
            (Some("failed"), Some("VIR_INTERNAL_ERR_FAILED")) if !self.errand.is_refused => {
                require_unchanged(between, after)?;
                let is_true = self.errno().is_some_and(|errno| {
                    request.delegate_lacks(errno).is_some() || request.act() == Err(errno)
                });
                if !is_true {
                    return Err(format!(
                        "{}, but in its place that is not so",
                        describe(with)
                    ));
                }
                "failed"
            }
            _ => return Err(describe(with)),
        };
        self.check_audit(outcome)
    }

    /// The error that the delegate's line has, if it is the one that it gave.
    fn errno(&self) -> Option<Errno> {
        let number = self.audit["errno"].as_i64()?;
        let errno = Errno::from_raw(i32::try_from(number).ok()?);
        (self.with["error"]["errno"] == format!("{errno:?}")).then_some(errno)
    }

    fn check_audit(&self, outcome: &str) -> Result<(), String> {
        let Promise { audit, cast, .. } = self;
        if audit.is_null() {
            return Err("the audit has no line for it".into());
        }
        let reason = match outcome {
            "refused" => format!("rule {RULE:?}: "),
            _ => String::new(),
        };
        // A line has the rule that permits, if it came to that.
        let is_right_rule = match outcome {
            "handled" => audit["rule"] == RULE,
            "refused" => audit["rule"].is_null(),
            _ => audit["rule"] == RULE || audit["rule"].is_null(),
        };
        let has = |value: &Value, expected: Value| *value == expected;
        for (what, is_right) in [
            ("outcome", has(&audit["outcome"], outcome.into())),
            ("peer", has(&audit["peer"]["uid"], cast.caller_uid().into())),
            ("target", has(&audit["target"]["pid"], self.pid.into())),
            ("rule", is_right_rule),
            (
                "reason",
                (audit["reason"].as_str().unwrap_or_default()).starts_with(&reason),
            ),
        ] {
            if !is_right {
                return Err(format!("the audit's line has another {what}: {audit}"));
            }
        }
        Ok(())
    }
}

impl Played {
    fn result_without(&self) -> (Tone, String) {
        match self.without["error"]["errno"].as_str() {
            Some(errno) => (Tone::Missing, errno.to_owned()),
            None => (Tone::Good, "done".into()),
        }
    }

    fn result_with(&self) -> (Tone, String) {
        if self.wrong.is_some() {
            return (Tone::Wrong, "WRONG, see below".into());
        }
        if self.is_refused {
            let audit = self.audit.last();
            let audit: Option<Value> = audit.and_then(|line| serde_json::from_str(line).ok());
            let audit = audit.unwrap_or_default();
            let reason = audit["reason"].as_str().unwrap_or_default();
            return (Tone::Good, shortened(format!("REFUSED by {reason}")));
        }
        match (self.with["error"]["errno"].as_str(), &self.missing) {
            (None, _) => (Tone::Good, "done".into()),
            (Some(errno), None) => (Tone::Missing, errno.to_owned()),
            (Some(errno), Some(missing)) => (
                Tone::Missing,
                shortened(format!("{errno}: {}", missing.needs())),
            ),
        }
    }

    fn to_json(&self) -> Value {
        let audit = self.audit.iter();
        json!({
            "request": self.request,
            "asked": self.asked,
            "asked_values": self.asked_values,
            "beyond_policy": self.is_refused,
            "without": self.without,
            "with": self.with,
            "delegate_missing": self.missing.as_ref().map(Missing::to_json),
            "before": self.before.text,
            "before_values": self.before.values,
            "between": self.between.text,
            "between_values": self.between.values,
            "kernel": self.after.text,
            "kernel_values": self.after.values,
            "audit": audit
                .map(|line| serde_json::from_str(line).unwrap_or_else(|_| line.as_str().into()))
                .collect::<Vec<Value>>(),
            "wrong": self.wrong,
        })
    }
}

impl Shown {
    fn played(&self) -> impl Iterator<Item = (&Row, &Played)> {
        let rows = self.rows.iter().flatten();
        rows.filter_map(|row| Some((row, row.result.as_ref().ok()?)))
    }

    /// What contradicts the promises, a line each.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = |(row, played): (&Row, &Played)| {
            let wrong = played.wrong.as_ref()?;
            Some(format!(
                "{} ({}): {wrong}",
                row.operation.name, played.asked
            ))
        };
        self.played().filter_map(wrong).collect()
    }

    pub fn to_text(&self) -> String {
        let rows = match &self.rows {
            Ok(rows) => rows,
            Err(missing) => return format!("No delegate is shown: {}\n", missing.needs()),
        };
        let (caller, target) = (self.cast.caller_uid(), self.cast.target_uid());
        let mut text = format!(
            "A caller (uid {caller}, no capabilities) asks for what a VM's processes (uid {target}) \
             need,\nwithout and with a delegate (uid {}) that does it within its policy:\n\n",
            self.cast.own
        );
        let mut table = Table::new(&[
            "OPERATION",
            "ASKED",
            "WITHOUT",
            "WITH THE DELEGATE",
            "THE KERNEL SAYS",
        ]);
        for row in rows {
            let name = format!("{} {}", short_name(row.operation), row.label);
            let name = (Tone::Heading, name.trim_end().to_owned());
            table.add(match &row.result {
                Ok(played) => vec![
                    name,
                    (Tone::Plain, played.asked.clone()),
                    played.result_without(),
                    played.result_with(),
                    (Tone::Plain, played.after.text.clone()),
                ],
                Err(missing) => vec![
                    name,
                    (Tone::Missing, format!("not shown: {}", missing.needs())),
                ],
            });
        }
        text += &table.to_string();
        if let Some(note) = &self.cast.note {
            text += &format!("Note: {note}\n");
        }
        let lines: Vec<&String> = self
            .played()
            .flat_map(|(_, played)| &played.audit)
            .collect();
        let is_done = |line: &&&String| line.contains("\"outcome\":\"handled\"");
        if let Some(line) = lines.iter().find(is_done).or(lines.first()) {
            text += &format!("\nThe delegate's audit has {} lines such as\n", lines.len());
            text += &folded(line);
        }
        text += "\nTo run one, and to have a caller ask it (docs/policy.md):\n\
                 \x20 virt-internal delegate --listen unix:/run/vir.sock --policy FILE --audit FILE\n";
        text += &format!("  {DELEGATE}=unix:/run/vir.sock virt-internal call ...\n");
        text
    }

    pub fn to_json(&self) -> Value {
        let rows = self.rows.as_ref().map(|rows| {
            let rows = rows.iter().map(|row| {
                let mut json = match &row.result {
                    Ok(played) => played.to_json(),
                    Err(missing) => {
                        json!({ "outcome": "not-shown", "missing": missing.to_json() })
                    }
                };
                json["operation"] = row.operation.name.into();
                json["label"] = row.label.into();
                json
            });
            rows.collect::<Vec<_>>()
        });
        let audit_lines: usize = self.played().map(|(_, played)| played.audit.len()).sum();
        json!({
            "cast": self.cast.to_json(),
            "policy": self.policy,
            "missing": rows.as_ref().err().map(|missing| missing.to_json()),
            "audit_lines": audit_lines,
            "rows": rows.unwrap_or_default(),
        })
    }
}

/// What fits into the widest column.
fn shortened(text: String) -> String {
    const WIDTH: usize = 52;
    match text.char_indices().nth(WIDTH) {
        Some(_) => text.chars().take(WIDTH - 3).collect::<String>() + "...",
        None => text,
    }
}

/// A line of JSON on several that are not too long, broken between fields
/// where that is possible.
fn folded(line: &str) -> String {
    const WIDTH: usize = 116;
    let (mut text, mut column) = (String::from("  "), 0);
    for field in line.split_inclusive(",\"") {
        // The quote belongs to the next field.
        let field = field.chars().collect::<Vec<_>>();
        if column > 0 && column + field.len() > WIDTH {
            let quote = text.pop();
            text.push_str("\n  ");
            text.extend(quote);
            column = 1;
        }
        for character in field {
            if column == WIDTH {
                text.push_str("\n  ");
                column = 0;
            }
            text.push(character);
            column += 1;
        }
    }
    text + "\n"
}
