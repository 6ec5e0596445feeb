// SPDX-License-Identifier: LGPL-2.1-or-later
//! A whole policy from its file.

use std::collections::HashMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};
use toml::de::DeTable;

use super::reader::{Error, Result, Table};
use super::value::{self, Name};
use super::{Bounds, Hierarchy, Peers, Policy, Quota, QuotaFields, Rule};
use crate::operation::Allowed;

/// The largest file that is read.
pub const FILE_MAX: usize = 1 << 20;

/// The version of the format.
const VERSION: &str = "1";

/// The highest figure of a quota.
const QUOTA_MAX: u32 = 1_000_000;

/// What a rule has besides the operations.
const RULE_FIELDS: &[&str] = &["name", "peer", "target", "quota"];

/// What is wrong with a policy's file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The file's name, as it was given.
    pub file: String,
    /// Line and column, from 1; none where the file cannot be read at all.
    pub position: Option<(usize, usize)>,
    /// What is wrong.
    pub text: String,
    /// Why the file cannot be read, where the system says so.
    pub errnum: Option<i32>,
}

impl PolicyError {
    fn unreadable(file: &str, error: &io::Error) -> PolicyError {
        PolicyError {
            file: file.to_owned(),
            position: None,
            text: format!("cannot read the policy: {error}"),
            errnum: error.raw_os_error(),
        }
    }

    fn at(file: &str, content: &str, offset: usize, text: String) -> PolicyError {
        let before = content.get(..offset).unwrap_or(content);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        PolicyError {
            file: file.to_owned(),
            position: Some((line, column)),
            text,
            errnum: None,
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.text),
            None => write!(f, "{}: {}", self.file, self.text),
        }
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> std::result::Result<Policy, PolicyError> {
        let file_name = path.display().to_string();
        let bytes = read(path).map_err(|error| PolicyError::unreadable(&file_name, &error))?;
        Policy::parse_bytes(&bytes, &file_name)
    }

    pub(super) fn parse_bytes(
        bytes: &[u8],
        file_name: &str,
    ) -> std::result::Result<Policy, PolicyError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Policy::parse(text, file_name),
            Err(error) => {
                let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let text = "it is not UTF-8".to_owned();
                Err(PolicyError::at(file_name, &valid, valid.len(), text))
            }
        }
    }

    /// Checks a file's text. Errors bear the file's name.
    pub fn parse(text: &str, file_name: &str) -> std::result::Result<Policy, PolicyError> {
        if text.len() > FILE_MAX {
            return Err(PolicyError::unreadable(file_name, &too_large()));
        }
        let error = |offset, message| PolicyError::at(file_name, text, offset, message);
        let document = DeTable::parse(text).map_err(|wrong| {
            let offset = wrong.span().map_or(0, |span| span.start);
            error(
                offset,
                format!("this is not TOML: {}", wrong.message().trim_end()),
            )
        })?;
        policy(&Table::new(text, document.get_ref(), 0))
            .map_err(|wrong| error(wrong.offset(), wrong.to_string()))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A FIFO must not hold up a delegate that reads its policy again.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > FILE_MAX {
        true => Err(too_large()),
        false => Ok(bytes),
    }
}

fn too_large() -> io::Error {
    io::Error::other(format!("it is larger than {FILE_MAX} bytes"))
}

fn policy(file: &Table<'_>) -> Result<Policy> {
    // Before all else: another version may have other fields.
    version(file)?;
    file.only(&["version", "host", "quota", "rule"])?;
    let Host { cgroup_hierarchy } = file.read("host")?.unwrap_or_default();
    let quota: QuotaFields = file.read("quota")?.unwrap_or_default();
    let tables = match file.field("rule") {
        Some(node) => node.tables().map_err(|error| error.below("rule"))?,
        None => Vec::new(),
    };
    let mut names = HashMap::new();
    let mut rules = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        rules.push(rule(index, table, &mut names)?);
    }
    Ok(Policy {
        hierarchy: cgroup_hierarchy,
        quota: quota.over(Quota::default()),
        rules,
    })
}

fn version(file: &Table<'_>) -> Result<()> {
    let Some(node) = file.field("version") else {
        let text = format!("is missing: write version = {VERSION}");
        return Err(Error::at(file.offset(), text).below("version"));
    };
    match node.found() == VERSION {
        true => Ok(()),
        false => Err(node
            .wrong(&format!("this program knows version {VERSION}"))
            .below("version")),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Host {
    #[serde(default)]
    cgroup_hierarchy: Hierarchy,
}

/// The controllers that cgroup v1 has had.
const V1_CONTROLLERS: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

impl<'de> Deserialize<'de> for Hierarchy {
    fn deserialize<D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Hierarchy, D::Error> {
        let name = String::deserialize(deserializer)?;
        let is_named = |name: &str| match name.strip_prefix("name=") {
            Some(name) => Name::new(name).is_ok() && !name.contains([',', ':', '/']),
            None => false,
        };
        match name.as_str() {
            "v2" => Ok(Hierarchy::V2),
            controller if V1_CONTROLLERS.contains(&controller) => Ok(Hierarchy::V1(name)),
            named if is_named(named) => Ok(Hierarchy::V1(name)),
            _ => Err(de::Error::custom(format_args!(
                "it must be v2, name= and the name of a v1 hierarchy, or one of {}",
                V1_CONTROLLERS.join(", ")
            ))),
        }
    }
}

pub(super) fn quota_number<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u32>, D::Error> {
    value::number(deserializer, 1, QUOTA_MAX).map(Some)
}

pub(super) fn quota_rate<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<u32>>, D::Error> {
    struct Rate;

    impl Visitor<'_> for Rate {
        type Value = Option<u32>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "1 to {QUOTA_MAX}, or \"unlimited\"")
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> std::result::Result<Option<u32>, E> {
            u32::try_from(number)
                .ok()
                .filter(|number| (1..=QUOTA_MAX).contains(number))
                .map(Some)
                .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Option<u32>, E> {
            match text {
                "unlimited" => Ok(None),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }
    }

    deserializer.deserialize_any(Rate).map(Some)
}

/// Reads a rule; errors say which one it is in.
fn rule(index: usize, table: Table<'_>, names: &mut HashMap<String, usize>) -> Result<Rule> {
    let name = table.read("name").map(|name| name.map(|Name(name)| name));
    let place = match &name {
        Ok(Some(name)) => format!("rule {name:?}:"),
        _ => format!("rule {}:", index + 1),
    };
    name.and_then(|name| named_rule(index, name, table, names))
        .map_err(|error| error.within(&place))
}

fn named_rule(
    index: usize,
    name: Option<String>,
    table: Table<'_>,
    names: &mut HashMap<String, usize>,
) -> Result<Rule> {
    // First: a mistyped field says more than the one that is missing then.
    let allowed: Allowed = table.read_others(RULE_FIELDS)?;
    let name = name.ok_or_else(|| table.missing("name", "each rule has a name of its own"))?;
    if let Some(other) = names.insert(name.clone(), index + 1) {
        let text = format!("it must be unique, and rule {other} has it, too");
        return Err(table.wrong("name", &text));
    }
    let peers: Peers = table.read("peer")?.ok_or_else(|| {
        let what = "name whom the rule is for, by uid, gid, cgroup or label";
        table.missing("peer", what)
    })?;
    if peers.is_empty() {
        let text = "is empty: it must have a uid, gid, cgroup or label";
        return Err(table.error("peer", text));
    }
    let rule = Rule {
        name,
        peers,
        targets: table.read("target")?.unwrap_or_default(),
        quota: table.read("quota")?.unwrap_or_default(),
        allowed,
    };
    check_root(&rule, &table)?;
    let mut allows_something = false;
    for (operation, bounds) in rule.allowed.iter() {
        let Some(bounds) = bounds else { continue };
        allows_something = true;
        check_bounds(&rule, &table, operation, bounds)?;
    }
    match allows_something {
        true => Ok(rule),
        false => {
            let text = "it allows nothing: add a table such as [rule.process-set-max-mem-lock]";
            Err(Error::at(table.offset(), text))
        }
    }
}

/// A rule for every cgroup must say by other means which processes it means.
fn check_root(rule: &Rule, table: &Table<'_>) -> Result<()> {
    let is_root = rule
        .targets
        .cgroup
        .as_ref()
        .is_some_and(|top| top.is_root());
    if is_root && !rule.may_have_root() {
        let text = "it may be the root only where the rule has peer.uid and target.uid";
        let fields = table.table("target")?;
        return Err(fields.wrong("cgroup", text).below("target"));
    }
    Ok(())
}

fn check_bounds(
    rule: &Rule,
    table: &Table<'_>,
    operation: &str,
    bounds: &dyn Bounds,
) -> Result<()> {
    let wrong = |field: &str, text: &str| -> Result<()> {
        let fields = table.table(operation)?;
        let error = match fields.field(field) {
            Some(node) if node.is_table() => fields.error(field, &format!("is not valid: {text}")),
            Some(node) => node.wrong(text).below(field),
            None => fields.missing(field, text),
        };
        Err(error.below(operation))
    };
    if let Err(contradiction) = bounds.check() {
        return wrong(contradiction.field, &contradiction.text);
    }
    match bounds.cgroup() {
        Some(top) if top.is_root() && !rule.may_have_root() => wrong(
            "cgroup",
            "it may be the root only where the rule has peer.uid, target.uid and target.cgroup",
        ),
        _ => Ok(()),
    }
}
