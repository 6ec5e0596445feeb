// SPDX-License-Identifier: LGPL-2.1-or-later
//! One structured line for each operation: who, on whom, asked, before, after,
//! outcome. docs/delegate.md lists the fields.
//!
//! The thread that did the operation writes its line, before it answers: no
//! other thread is woken for it, and a peer that was answered has its line.

mod journal;
mod sink;

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::hash::Hash;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::journal::Journal;
use self::sink::{Appended, Stream, is_same, without_signals};
use super::peer::Peer;
use super::pidfd::Info;
use crate::delegate::wire::{Answer, Verdict};

/// Where the lines go.
pub struct Audit {
    sink: Sink,
    lost: AtomicU64,
    report: Option<Box<Report>>,
    reported: Mutex<Option<Instant>>,
}

/// Whom lost lines are reported to: how many were lost so far, and why.
type Report = dyn Fn(u64, &io::Error) + Send + Sync;

enum Sink {
    Nowhere,
    File(Appended),
    Stream(Stream),
    Journal(Journal),
}

impl Sink {
    /// The file, and whether its last line was cut short.
    fn file(&self) -> Option<(&File, bool)> {
        match self {
            Sink::File(file) => Some((file.file(), file.is_torn())),
            Sink::Stream(stream) => Some((stream.file(), stream.is_torn())),
            Sink::Nowhere | Sink::Journal(_) => None,
        }
    }
}

/// How often lost lines are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

impl Audit {
    fn new(sink: Sink) -> Audit {
        Audit {
            sink,
            lost: AtomicU64::new(0),
            report: None,
            reported: Mutex::default(),
        }
    }

    /// None.
    pub fn nowhere() -> Audit {
        Audit::new(Sink::Nowhere)
    }

    /// The end of a file, one JSON object a line. A new one is for its owner
    /// and group only.
    pub fn file(path: &Path) -> io::Result<Audit> {
        // A FIFO that nobody reads must not hold up the delegate.
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Audit::new(match file.metadata()?.is_file() {
            true => Sink::File(Appended::new(file)),
            false => Sink::Stream(Stream::own(file)),
        }))
    }

    /// A descriptor that somebody else reads, such as standard output; one
    /// JSON object a line.
    pub fn stream(descriptor: OwnedFd) -> Audit {
        Audit::new(Sink::Stream(Stream::given(descriptor.into())))
    }

    /// The socket of systemd's journal: [`JOURNAL`](Self::JOURNAL).
    pub fn journal(socket: impl Into<PathBuf>) -> io::Result<Audit> {
        Ok(Audit::new(Sink::Journal(Journal::new(socket.into())?)))
    }

    /// Where systemd's journal takes entries.
    pub const JOURNAL: &'static str = "/run/systemd/journal/socket";

    /// Has lines that cannot be written reported, at most once a second: how
    /// many were lost since this was made, and why the last one was.
    pub fn on_loss(self, report: impl Fn(u64, &io::Error) + Send + Sync + 'static) -> Audit {
        Audit {
            report: Some(Box::new(report)),
            ..self
        }
    }

    /// Takes the place of another one, whose last line may have been cut short
    /// in the same file.
    pub(super) fn follow(&self, other: &Audit) {
        let Some((file, is_torn)) = other.sink.file() else {
            return;
        };
        match &self.sink {
            Sink::File(own) if is_torn && is_same(own.file(), file) => own.continue_torn(),
            Sink::Stream(own) if is_torn && is_same(own.file(), file) => own.continue_torn(),
            _ => {}
        }
    }

    /// Writes a line, in one call where that can be, so that lines of several
    /// threads and processes do not mix.
    pub(crate) fn write(&self, record: &impl Line, line: &mut String) -> io::Result<()> {
        if matches!(self.sink, Sink::Nowhere) {
            return Ok(());
        }
        line.clear();
        // A String takes everything.
        let _ = record.write(line);
        let written = without_signals(|| match &self.sink {
            Sink::Nowhere => Ok(()),
            Sink::File(file) => file.append(line),
            Sink::Stream(stream) => stream.append(line),
            Sink::Journal(journal) => journal.send(record, line.trim_end()),
        });
        if let Err(error) = &written {
            self.lose(error);
        }
        written
    }

    fn lose(&self, error: &io::Error) {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(report) = &self.report else { return };
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|time| time.elapsed() >= REPORT_INTERVAL) {
            *reported = Some(Instant::now());
            drop(reported);
            report(lost, error);
        }
    }
}

/// What a line is made of.
pub(crate) trait Line {
    /// As JSON, with a newline.
    fn write(&self, line: &mut String) -> fmt::Result;

    /// Each field of an entry of the journal.
    fn fields(&self, field: &mut dyn FnMut(&str, fmt::Arguments<'_>));
}

/// One operation.
pub(crate) struct Record<'a> {
    pub(crate) request: u64,
    pub(crate) peer: &'a Peer,
    pub(crate) operation: &'static str,
    pub(crate) target: Option<Info>,
    /// Empty where it was not asked for.
    pub(crate) target_cgroup: &'a str,
    /// The one thread of it that was meant, if it is not its first.
    pub(crate) tid: Option<libc::pid_t>,
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
    /// How many that were refused had no line before this one.
    pub(crate) unwritten: u64,
}

impl Line for Record<'_> {
    fn write(&self, line: &mut String) -> fmt::Result {
        begin(line, "operation")?;
        write!(
            line,
            ",\"request\":\"{:#x}\",\"operation\":\"{}\"",
            self.request, self.operation
        )?;
        write_peer(line, self.peer)?;
        if let Some(target) = self.target {
            write!(
                line,
                ",\"target\":{{\"pid\":{},\"uid\":{}",
                target.pid, target.uid
            )?;
            if let Some(tid) = self.tid {
                write!(line, ",\"tid\":{tid}")?;
            }
            if !self.target_cgroup.is_empty() {
                string(line, "cgroup", self.target_cgroup)?;
            }
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
        if self.target.is_some() {
            string(line, "proof", self.proof())?;
        }
        unwritten(line, self.unwritten)?;
        writeln!(line, ",\"microseconds\":{}}}", self.duration.as_micros())
    }

    fn fields(&self, field: &mut dyn FnMut(&str, fmt::Arguments<'_>)) {
        let outcome = outcome(self.answer.verdict);
        let whose = Whose(self.peer.label.as_deref());
        let Peer { pid, uid, .. } = self.peer;
        let (on, target) = match self.target {
            Some(target) => (" on process ", target.pid.to_string()),
            None => ("", String::new()),
        };
        let (colon, reason) = match self.text {
            "" => ("", ""),
            text => (": ", text),
        };
        field(
            "MESSAGE",
            format_args!(
                "{} for process {pid} of user {uid}{whose}{on}{target}: {outcome}{colon}{reason}",
                self.operation
            ),
        );
        field(
            "PRIORITY",
            format_args!("{}", priority(self.answer.verdict)),
        );
        field("VIRT_INTERNAL_EVENT", format_args!("operation"));
        field("VIRT_INTERNAL_REQUEST", format_args!("{:#x}", self.request));
        field(
            "VIRT_INTERNAL_OPERATION",
            format_args!("{}", self.operation),
        );
        peer_fields(self.peer, field);
        if let Some(target) = self.target {
            field("VIRT_INTERNAL_TARGET_PID", format_args!("{}", target.pid));
            field("VIRT_INTERNAL_TARGET_UID", format_args!("{}", target.uid));
            if let Some(tid) = self.tid {
                field("VIRT_INTERNAL_TARGET_TID", format_args!("{tid}"));
            }
            field(
                "VIRT_INTERNAL_TARGET_CGROUP",
                format_args!("{}", self.target_cgroup),
            );
            field("VIRT_INTERNAL_PROOF", format_args!("{}", self.proof()));
        }
        field("VIRT_INTERNAL_OUTCOME", format_args!("{outcome}"));
        if self.answer.errnum.0 != 0 {
            field("ERRNO", format_args!("{}", self.answer.errnum.0));
        }
        if !self.text.is_empty() {
            field("VIRT_INTERNAL_REASON", format_args!("{}", self.text));
        }
        if let Some(rule) = self.rule {
            field("VIRT_INTERNAL_RULE", format_args!("{rule}"));
        }
        field(
            "VIRT_INTERNAL_MICROSECONDS",
            format_args!("{}", self.duration.as_micros()),
        );
    }
}

impl Record<'_> {
    fn proof(&self) -> &'static str {
        match self.by_number {
            true => "number",
            false => "pidfd",
        }
    }
}

/// A connection that was not made, or that the delegate ended, or what came
/// over it that is of no operation.
pub(crate) struct Turned<'a> {
    pub(crate) how: How,
    /// As far as it is known.
    pub(crate) peer: Known<'a>,
    pub(crate) text: &'a str,
    /// How many like it had no line before this one.
    pub(crate) unwritten: u64,
}

/// What was wrong with a connection.
#[derive(Clone, Copy)]
pub(crate) enum How {
    Refused,
    Malformed,
    /// An operation, or a version of one, that this delegate does not have.
    Unsupported,
}

/// What is known of the other end.
pub(crate) enum Known<'a> {
    Peer(&'a Peer),
    /// No more than the kernel said when it connected, if that.
    Credentials(Option<libc::ucred>, Option<&'a str>),
}

/// Those that share what may be written of connections: a user at a listener.
pub(crate) type User = (Option<u32>, Option<String>);

impl Known<'_> {
    pub(crate) fn user(&self) -> User {
        let (uid, label) = match self {
            Known::Peer(peer) => (Some(peer.uid), peer.label.as_deref()),
            Known::Credentials(credentials, label) => {
                (credentials.map(|credentials| credentials.uid), *label)
            }
        };
        (uid, label.map(str::to_owned))
    }
}

impl Turned<'_> {
    fn outcome(&self) -> &'static str {
        match self.how {
            How::Refused => "refused",
            How::Malformed => "malformed",
            How::Unsupported => "unsupported",
        }
    }
}

impl Line for Turned<'_> {
    fn write(&self, line: &mut String) -> fmt::Result {
        begin(line, "connection")?;
        match self.peer {
            Known::Peer(peer) => write_peer(line, peer)?,
            Known::Credentials(credentials, label) => {
                line.push_str(",\"peer\":{");
                let mut comma = "";
                if let Some(libc::ucred { pid, uid, gid }) = credentials {
                    write!(line, "\"pid\":{pid},\"uid\":{uid},\"gid\":{gid}")?;
                    comma = ",";
                }
                if let Some(label) = label {
                    write!(line, "{comma}\"label\":")?;
                    write_string(line, label)?;
                }
                line.push('}');
            }
        }
        string(line, "outcome", self.outcome())?;
        string(line, "reason", self.text)?;
        unwritten(line, self.unwritten)?;
        line.write_str("}\n")
    }

    fn fields(&self, field: &mut dyn FnMut(&str, fmt::Arguments<'_>)) {
        let outcome = self.outcome();
        let (uid, label) = self.peer.user();
        let (of, uid) = match uid {
            Some(uid) => (" of user ", uid.to_string()),
            None => ("", String::new()),
        };
        let whose = Whose(label.as_deref());
        field(
            "MESSAGE",
            format_args!("connection{of}{uid}{whose}: {outcome}: {}", self.text),
        );
        field("PRIORITY", format_args!("4"));
        field("VIRT_INTERNAL_EVENT", format_args!("connection"));
        match self.peer {
            Known::Peer(peer) => peer_fields(peer, field),
            Known::Credentials(credentials, label) => {
                if let Some(libc::ucred { pid, uid, gid }) = credentials {
                    field("VIRT_INTERNAL_PEER_PID", format_args!("{pid}"));
                    field("VIRT_INTERNAL_PEER_UID", format_args!("{uid}"));
                    field("VIRT_INTERNAL_PEER_GID", format_args!("{gid}"));
                }
                if let Some(label) = label {
                    field("VIRT_INTERNAL_LABEL", format_args!("{label}"));
                }
            }
        }
        field("VIRT_INTERNAL_OUTCOME", format_args!("{outcome}"));
        field("VIRT_INTERNAL_REASON", format_args!("{}", self.text));
    }
}

/// How many lines about connections a user at a listener gets in a second:
/// whoever connects in a loop must not fill the disk.
pub(crate) const TURNED_PER_SECOND: u64 = 10;

/// How many lines about operations that were refused a peer scope gets in a
/// second.
pub(crate) const REFUSED_PER_SECOND: u64 = 100;

/// How many that is counted for, each by itself. All others share.
const THROTTLED: usize = 1024;

/// What was written of late about each of those that lines are for.
pub(crate) struct Throttle<K> {
    /// In a second.
    most: u64,
    /// `None`: all those that there was no room for.
    turns: Mutex<HashMap<Option<K>, Turns>>,
}

struct Turns {
    since: Instant,
    written: u64,
    unwritten: u64,
}

impl Turns {
    fn new(since: Instant) -> Turns {
        Turns {
            since,
            written: 0,
            unwritten: 0,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= Duration::from_secs(1)
    }
}

impl<K: Eq + Hash> Throttle<K> {
    pub(crate) fn new(most: u64) -> Throttle<K> {
        Throttle {
            most,
            turns: Mutex::default(),
        }
    }

    /// How many were not written before this one, which is; `None`: neither is
    /// this one.
    pub(crate) fn pass(&self, whose: K) -> Option<u64> {
        self.pass_at(whose, Instant::now())
    }

    fn pass_at(&self, whose: K, now: Instant) -> Option<u64> {
        let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whose = Some(whose);
        if all.len() >= THROTTLED && !all.contains_key(&whose) {
            // None goes uncounted.
            let mut unwritten = 0;
            for (_, over) in all.extract_if(|_, turns| turns.is_over(now)) {
                unwritten += over.unwritten;
            }
            let others = all.entry(None).or_insert_with(|| Turns::new(now));
            others.unwritten += unwritten;
            if all.len() >= THROTTLED {
                whose = None;
            }
        }
        let turns = all.entry(whose).or_insert_with(|| Turns::new(now));
        if turns.is_over(now) {
            turns.since = now;
            turns.written = 0;
        }
        if turns.written >= self.most {
            turns.unwritten += 1;
            return None;
        }
        turns.written += 1;
        Some(std::mem::take(&mut turns.unwritten))
    }
}

/// " at vm-1", where there is a label.
struct Whose<'a>(Option<&'a str>);

impl fmt::Display for Whose<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(label) => write!(f, " at {label}"),
            None => Ok(()),
        }
    }
}

/// How urgent the journal is told that it is.
fn priority(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Handled | Verdict::NotHandled => 6,
        Verdict::Refused | Verdict::Unknown => 4,
        Verdict::Failed => 3,
    }
}

/// What every line has first.
fn begin(line: &mut String, event: &str) -> fmt::Result {
    let now = SystemTime::now();
    let time = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    write!(
        line,
        "{{\"time\":\"{}\",\"event\":\"{event}\"",
        Timestamp(time)
    )
}

fn write_peer(line: &mut String, peer: &Peer) -> fmt::Result {
    let Peer {
        pid,
        uid,
        gid,
        cgroup,
        label,
        by_pidfd,
        ..
    } = peer;
    write!(
        line,
        ",\"peer\":{{\"pid\":{pid},\"uid\":{uid},\"gid\":{gid}"
    )?;
    string(line, "cgroup", cgroup)?;
    if let Some(label) = label {
        string(line, "label", label)?;
    }
    write!(line, ",\"pidfd\":{by_pidfd}}}")
}

fn peer_fields(peer: &Peer, field: &mut dyn FnMut(&str, fmt::Arguments<'_>)) {
    field("VIRT_INTERNAL_PEER_PID", format_args!("{}", peer.pid));
    field("VIRT_INTERNAL_PEER_UID", format_args!("{}", peer.uid));
    field("VIRT_INTERNAL_PEER_GID", format_args!("{}", peer.gid));
    field("VIRT_INTERNAL_PEER_CGROUP", format_args!("{}", peer.cgroup));
    if let Some(label) = &peer.label {
        field("VIRT_INTERNAL_LABEL", format_args!("{label}"));
    }
}

/// Time since 1970, as RFC 3339 has it, in UTC and with microseconds.
struct Timestamp(Duration);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Years that begin with March end with the day that some have and some
        // have not; 400 of them are one era, which always has as many days.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = match month {
            0..=9 => (month + 3, 0),
            _ => (month - 9, 1),
        };
        write!(
            f,
            "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            era * 400 + year + next,
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.0.subsec_micros()
        )
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

/// How many lines were left out, if any.
fn unwritten(line: &mut String, count: u64) -> fmt::Result {
    match count {
        0 => Ok(()),
        _ => write!(line, ",\"unwritten\":{count}"),
    }
}

/// A field with a text.
fn string(line: &mut String, name: &str, text: &str) -> fmt::Result {
    write!(line, ",\"{name}\":")?;
    write_string(line, text)
}

/// A text as JSON. What a terminal could take for something else than a text is
/// escaped, too: a peer chooses the names of cgroups.
pub(crate) fn write_string(json: &mut String, text: &str) -> fmt::Result {
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    json.push('"');
    if text.bytes().all(is_plain) {
        json.push_str(text);
    } else {
        for character in text.chars() {
            match character {
                '"' | '\\' => {
                    json.push('\\');
                    json.push(character);
                }
                // Separators of lines, and what turns the direction of text.
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    write!(json, "\\u{:04x}", u32::from(character))?;
                }
                _ if character.is_control() => write!(json, "\\u{:04x}", u32::from(character))?,
                _ => json.push(character),
            }
        }
    }
    json.push('"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_that_of_rfc_3339() {
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, 999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000Z"),
            (1_735_689_599, 0, "2024-12-31T23:59:59.000000Z"),
            (1_735_689_600, 0, "2025-01-01T00:00:00.000000Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
        ] {
            let time = Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(Timestamp(time).to_string(), text, "{seconds} s");
        }
    }

    #[test]
    fn a_text_cannot_leave_its_string() {
        for text in [
            "plain",
            "a\"b\\c",
            "\n{\"forged\":true}\n",
            "\u{1b}[2J\u{7f}\u{9b}",
            "\u{202e}txt\u{2028}",
            "ümläut 😀",
            "\0",
        ] {
            let mut json = String::new();
            write_string(&mut json, text).expect("a String takes everything");
            let read: String = serde_json::from_str(&json)
                .unwrap_or_else(|error| panic!("{json:?} is no JSON: {error}"));
            assert_eq!(read, text);
            let odd =
                |character: char| character.is_control() || "\u{202e}\u{2028}".contains(character);
            assert!(!json.contains(odd), "{json:?} has what a terminal obeys");
        }
    }

    #[test]
    fn a_user_gets_ten_lines_about_connections_in_a_second() {
        let throttle = Throttle::new(TURNED_PER_SECOND);
        let start = Instant::now();
        let pass = |uid, seconds| throttle.pass_at(uid, start + Duration::from_secs(seconds));
        for _ in 0..10 {
            assert_eq!(pass(107, 0), Some(0));
        }
        assert_eq!(pass(107, 0), None);
        assert_eq!(pass(107, 0), None);
        assert_eq!(pass(108, 0), Some(0), "another user has lines of its own");
        assert_eq!(
            pass(107, 1),
            Some(2),
            "the next line says how many had none"
        );
        assert_eq!(pass(107, 1), Some(0));
    }

    #[test]
    fn a_user_of_many_ids_does_not_silence_others_uncounted() {
        let throttle = Throttle::new(TURNED_PER_SECOND);
        let start = Instant::now();
        let flood: u64 = 5000;
        let mut told = 0;
        for uid in 0..flood {
            told += throttle
                .pass_at(uid, start)
                .map_or(0, |unwritten| 1 + unwritten);
        }
        assert!(told < 1100, "{told} lines in a second");
        // The next second: of each line of the first one it is known that it
        // was, if not whose.
        let later = start + Duration::from_secs(1);
        for uid in flood..2 * flood {
            told += throttle
                .pass_at(uid, later)
                .map_or(0, |unwritten| 1 + unwritten);
        }
        assert!(told >= flood, "{told} lines are known of");
    }

    #[test]
    fn what_was_cut_short_is_ended_by_who_opens_the_file_next() {
        let name = format!("virt-internal-audit-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let audit = || Audit::file(&path).expect("a file can be made");
        let turned = Turned {
            how: How::Refused,
            peer: Known::Credentials(None, None),
            text: "",
            unwritten: 0,
        };
        let cut = audit();
        let Sink::File(file) = &cut.sink else {
            panic!("it is a file");
        };
        file.continue_torn();
        let next = audit();
        next.follow(&cut);
        let mut line = String::new();
        next.write(&turned, &mut line).expect("there is room");
        next.write(&turned, &mut line).expect("there is room");
        let text = std::fs::read_to_string(&path).expect("a text");
        std::fs::remove_file(&path).expect("the file");
        assert!(text.starts_with("\n{"), "{text:?}");
        assert_eq!(text.matches('\n').count(), 3, "{text:?}");
    }
}
