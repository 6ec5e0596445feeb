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

/// What durations are counted by, in microseconds. There is one more for
/// longer ones.
const BUCKETS: [u64; 12] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 50_000, 250_000, 1_000_000,
];

/// What is counted since the delegate was started.
pub(crate) struct Metrics {
    operations: Vec<Counts>,
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) unsupported: AtomicU64,
    pub(crate) audit_lost: AtomicU64,
}

/// Of one operation.
#[derive(Default)]
struct Counts {
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// How many took at most so long, and longer than the one before.
    durations: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

/// What is as it is at the moment.
pub(crate) struct Gauges {
    pub(crate) scopes: usize,
    pub(crate) connections: u32,
    pub(crate) listeners: usize,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        Metrics {
            operations: OPERATIONS.iter().map(|_| Counts::default()).collect(),
            connections: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            unsupported: AtomicU64::new(0),
            audit_lost: AtomicU64::new(0),
        }
    }

    /// Counts an operation that ended.
    pub(crate) fn count(&self, operation: u32, verdict: Verdict, duration: Duration) {
        let column = OUTCOMES.iter().position(|known| *known == verdict);
        let counts = (operation as usize)
            .checked_sub(1)
            .and_then(|index| self.operations.get(index));
        let (Some(counts), Some(column)) = (counts, column) else {
            return;
        };
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS
            .iter()
            .position(|most| nanoseconds <= most * 1000)
            .unwrap_or(BUCKETS.len());
        counts.outcomes[column].fetch_add(1, Ordering::Relaxed);
        counts.durations[bucket].fetch_add(1, Ordering::Relaxed);
        counts.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// All of it.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text, gauges);
        text
    }

    fn write(&self, text: &mut String, gauges: &Gauges) -> std::fmt::Result {
        let name = "virt_internal_operations_total";
        writeln!(
            text,
            "# HELP {name} Operations that peers asked for, by outcome."
        )?;
        writeln!(text, "# TYPE {name} counter")?;
        for (operation, counts) in Allowed::NAMES.iter().zip(&self.operations) {
            for (verdict, count) in OUTCOMES.iter().zip(&counts.outcomes) {
                let (outcome, count) = (outcome(*verdict), count.load(Ordering::Relaxed));
                writeln!(
                    text,
                    "{name}{{operation=\"{operation}\",outcome=\"{outcome}\"}} {count}"
                )?;
            }
        }
        let name = "virt_internal_operation_duration_seconds";
        writeln!(
            text,
            "# HELP {name} From when a request was received until its line was to be written."
        )?;
        writeln!(text, "# TYPE {name} histogram")?;
        for (operation, counts) in Allowed::NAMES.iter().zip(&self.operations) {
            let mut count = 0;
            for (index, bucket) in counts.durations.iter().enumerate() {
                count += bucket.load(Ordering::Relaxed);
                let most = match BUCKETS.get(index) {
                    Some(most) => (*most as f64 / 1e6).to_string(),
                    None => "+Inf".to_owned(),
                };
                writeln!(
                    text,
                    "{name}_bucket{{operation=\"{operation}\",le=\"{most}\"}} {count}"
                )?;
            }
            let seconds = counts.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
            writeln!(text, "{name}_sum{{operation=\"{operation}\"}} {seconds}")?;
            writeln!(text, "{name}_count{{operation=\"{operation}\"}} {count}")?;
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
                "unsupported_total",
                "Requests for operations, or versions of them, that this delegate does not have.",
                &self.unsupported,
            ),
            (
                "audit_lost_total",
                "Audit lines that could not be written.",
                &self.audit_lost,
            ),
        ];
        for (name, help, count) in counters {
            single(text, name, help, "counter", count.load(Ordering::Relaxed))?;
        }
        let Gauges {
            scopes,
            connections,
            listeners,
        } = *gauges;
        let gauges = [
            (
                "connections",
                "Connections that are open.",
                u64::from(connections),
            ),
            (
                "scopes",
                "Containers or users that are connected, or were lately.",
                scopes as u64,
            ),
            (
                "listeners",
                "Sockets that peers can connect to.",
                listeners as u64,
            ),
        ];
        for (name, help, value) in gauges {
            single(text, name, help, "gauge", value)?;
        }
        Ok(())
    }
}

fn single(text: &mut String, name: &str, help: &str, kind: &str, value: u64) -> std::fmt::Result {
    writeln!(text, "# HELP virt_internal_{name} {help}")?;
    writeln!(text, "# TYPE virt_internal_{name} {kind}")?;
    writeln!(text, "virt_internal_{name} {value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_every_bucket_that_is_not_shorter() {
        let metrics = Metrics::new();
        for microseconds in [10, 11, 1_000_000, 1_000_001] {
            metrics.count(1, Verdict::Handled, Duration::from_micros(microseconds));
        }
        let text = metrics.text(&Gauges {
            scopes: 0,
            connections: 0,
            listeners: 0,
        });
        let name = "virt_internal_operation_duration_seconds";
        let operation = "operation=\"process-set-max-mem-lock\"";
        for line in [
            format!("{name}_bucket{{{operation},le=\"0.00001\"}} 1"),
            format!("{name}_bucket{{{operation},le=\"0.000025\"}} 2"),
            format!("{name}_bucket{{{operation},le=\"0.25\"}} 2"),
            format!("{name}_bucket{{{operation},le=\"1\"}} 3"),
            format!("{name}_bucket{{{operation},le=\"+Inf\"}} 4"),
            format!("{name}_sum{{{operation}}} 2.000022"),
            format!("{name}_count{{{operation}}} 4"),
        ] {
            assert!(
                text.lines().any(|own| own == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
