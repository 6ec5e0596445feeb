// SPDX-License-Identifier: LGPL-2.1-or-later
//! Counters, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::audit::outcome;
use crate::delegate::wire::Verdict;
use crate::operation::{Allowed, OPERATIONS};

const OUTCOMES: [Verdict; 4] = [
    Verdict::Handled,
    Verdict::NotHandled,
    Verdict::Refused,
    Verdict::Failed,
];

/// What is counted since the delegate was started.
pub(crate) struct Metrics {
    operations: Vec<[AtomicU64; OUTCOMES.len()]>,
    microseconds: Vec<AtomicU64>,
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) audit_lost: AtomicU64,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        Metrics {
            operations: OPERATIONS.iter().map(|_| Default::default()).collect(),
            microseconds: OPERATIONS.iter().map(|_| AtomicU64::new(0)).collect(),
            connections: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            audit_lost: AtomicU64::new(0),
        }
    }

    /// Counts an operation that ended.
    pub(crate) fn count(&self, operation: u32, verdict: Verdict, duration: Duration) {
        let index = operation as usize - 1;
        let column = OUTCOMES.iter().position(|known| *known == verdict);
        if let (Some(row), Some(column)) = (self.operations.get(index), column) {
            row[column].fetch_add(1, Ordering::Relaxed);
            self.microseconds[index].fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// All of it.
    pub(crate) fn text(&self, scopes: usize, connected: u32) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text, scopes, connected);
        text
    }

    fn write(&self, text: &mut String, scopes: usize, connected: u32) -> std::fmt::Result {
        let name = "virt_internal_operations_total";
        writeln!(
            text,
            "# HELP {name} Operations that peers asked for, by outcome."
        )?;
        writeln!(text, "# TYPE {name} counter")?;
        for (operation, row) in Allowed::NAMES.iter().zip(&self.operations) {
            for (verdict, count) in OUTCOMES.iter().zip(row) {
                let (outcome, count) = (outcome(*verdict), count.load(Ordering::Relaxed));
                writeln!(
                    text,
                    "{name}{{operation=\"{operation}\",outcome=\"{outcome}\"}} {count}"
                )?;
            }
        }
        let name = "virt_internal_operation_seconds_total";
        writeln!(text, "# HELP {name} Time that they took.")?;
        writeln!(text, "# TYPE {name} counter")?;
        for (operation, time) in Allowed::NAMES.iter().zip(&self.microseconds) {
            let seconds = time.load(Ordering::Relaxed) as f64 / 1e6;
            writeln!(text, "{name}{{operation=\"{operation}\"}} {seconds}")?;
        }
        let counters = [
            (
                "connections_total",
                "Connections that were accepted.",
                &self.connections,
            ),
            (
                "connections_refused_total",
                "Connections of peers that are unknown or over their quota.",
                &self.connections_refused,
            ),
            (
                "malformed_total",
                "Connections that ended because of a message that cannot be understood.",
                &self.malformed,
            ),
            (
                "audit_lost_total",
                "Audit lines that could not be written.",
                &self.audit_lost,
            ),
        ];
        for (name, help, count) in counters {
            writeln!(text, "# HELP virt_internal_{name} {help}")?;
            writeln!(text, "# TYPE virt_internal_{name} counter")?;
            writeln!(
                text,
                "virt_internal_{name} {}",
                count.load(Ordering::Relaxed)
            )?;
        }
        let gauges = [
            (
                "connections",
                "Connections that are open.",
                u64::from(connected),
            ),
            (
                "scopes",
                "Containers or users that are connected.",
                scopes as u64,
            ),
        ];
        for (name, help, value) in gauges {
            writeln!(text, "# HELP virt_internal_{name} {help}")?;
            writeln!(text, "# TYPE virt_internal_{name} gauge")?;
            writeln!(text, "virt_internal_{name} {value}")?;
        }
        Ok(())
    }
}
