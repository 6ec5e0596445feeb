// SPDX-License-Identifier: LGPL-2.1-or-later
//! One structured line for each operation: who, on whom, asked, before, after,
//! outcome.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::peer::Peer;
use super::pidfd::Info;
use crate::delegate::wire::{Answer, Verdict};

/// Where the lines go.
pub struct Audit(Sink);

enum Sink {
    Nowhere,
    File(File),
}

impl Audit {
    /// None.
    pub fn nowhere() -> Audit {
        Audit(Sink::Nowhere)
    }

    /// The end of a file, one JSON object a line.
    pub fn file(path: &Path) -> io::Result<Audit> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Audit(Sink::File(file)))
    }

    /// Writes a line, in one call, so that lines of several threads and
    /// processes do not mix.
    pub(crate) fn write(&self, record: &Record<'_>, line: &mut String) -> io::Result<()> {
        let Sink::File(file) = &self.0 else {
            return Ok(());
        };
        line.clear();
        record
            .write(line)
            .map_err(|_| io::Error::other("a line cannot be made"))?;
        (&*file).write_all(line.as_bytes())
    }
}

/// One operation.
pub(crate) struct Record<'a> {
    pub(crate) request: u64,
    pub(crate) peer: &'a Peer,
    pub(crate) operation: &'static str,
    pub(crate) target: Option<Info>,
    pub(crate) target_cgroup: &'a str,
    /// Each as JSON, or empty.
    pub(crate) asked: &'a str,
    pub(crate) before: &'a str,
    pub(crate) after: &'a str,
    pub(crate) answer: Answer,
    pub(crate) text: &'a str,
    pub(crate) rule: Option<&'a str>,
    pub(crate) duration: Duration,
    /// A thread was known by its number alone.
    pub(crate) by_number: bool,
}

impl Record<'_> {
    fn write(&self, line: &mut String) -> std::fmt::Result {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        write!(
            line,
            "{{\"time\":{}.{:06},\"request\":\"{:#x}\",\"operation\":\"{}\"",
            time.as_secs(),
            time.subsec_micros(),
            self.request,
            self.operation
        )?;
        let Peer {
            pid,
            uid,
            gid,
            cgroup,
            label,
            by_pidfd,
            ..
        } = self.peer;
        write!(
            line,
            ",\"peer\":{{\"pid\":{pid},\"uid\":{uid},\"gid\":{gid}"
        )?;
        string(line, "cgroup", cgroup)?;
        if let Some(label) = label {
            string(line, "label", label)?;
        }
        write!(line, ",\"pidfd\":{by_pidfd}}}")?;
        if let Some(target) = self.target {
            write!(
                line,
                ",\"target\":{{\"pid\":{},\"uid\":{}",
                target.pid, target.uid
            )?;
            string(line, "cgroup", self.target_cgroup)?;
            line.push('}');
        }
        for (name, json) in [
            ("asked", self.asked),
            ("before", self.before),
            ("after", self.after),
        ] {
            if !json.is_empty() {
                write!(line, ",\"{name}\":{json}")?;
            }
        }
        string(line, "outcome", outcome(self.answer.verdict))?;
        if self.answer.errnum.0 != 0 {
            write!(line, ",\"errno\":{}", self.answer.errnum.0)?;
        }
        if !self.text.is_empty() {
            string(line, "reason", self.text)?;
        }
        if let Some(rule) = self.rule {
            string(line, "rule", rule)?;
        }
        if self.by_number {
            string(line, "proof", "number")?;
        }
        writeln!(line, ",\"microseconds\":{}}}", self.duration.as_micros())
    }
}

/// An outcome's word.
pub(crate) fn outcome(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Handled => "handled",
        Verdict::NotHandled => "not-handled",
        Verdict::Refused => "refused",
        Verdict::Failed => "failed",
        Verdict::Unknown => "unknown",
    }
}

/// A field with a text.
fn string(line: &mut String, name: &str, text: &str) -> std::fmt::Result {
    write!(line, ",\"{name}\":")?;
    write_string(line, text)
}

/// A text as JSON.
pub(crate) fn write_string(json: &mut String, text: &str) -> std::fmt::Result {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f;
    if text.bytes().all(is_plain) {
        return write!(json, "\"{text}\"");
    }
    let text = serde_json::to_string(text).map_err(|_| std::fmt::Error)?;
    json.write_str(&text)
}
