// SPDX-License-Identifier: LGPL-2.1-or-later
//! A policy in words, for people: what is in it, and what would happen.

use std::fmt;

use serde_json::{Value, json};

use super::{Closeness, Denied, Peer, Peers, Policy, Quota, Rule, Scope, Targets};
use crate::operation::Allowed;

/// A process that an operation is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Its real user id.
    pub uid: u32,
    /// Its cgroup in the policy's hierarchy.
    pub cgroup: &'a str,
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} in {}", self.uid, self.cgroup)
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            self.uid.as_ref().map(|ids| format!("uid {ids}")),
            self.gid.as_ref().map(|ids| format!("gid {ids}")),
            self.cgroup.as_ref().map(|top| format!("in {top} or below")),
            self.label.as_ref().map(|labels| format!("label {labels}")),
        ];
        let fields: Vec<String> = fields.into_iter().flatten().collect();
        f.write_str(&fields.join(", "))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cgroup {
            Some(top) => write!(f, "in {top} or below")?,
            None => f.write_str("in the peer's own cgroup or below")?,
        }
        match &self.uid {
            Some(ids) => write!(f, ", uid {ids}"),
            None => Ok(()),
        }
    }
}

/// A summary: one line for each rule, its peers, targets and operations.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cgroup hierarchy: {}", self.hierarchy)?;
        writeln!(f, "quota: {}", self.quota)?;
        if self.rules.is_empty() {
            return writeln!(f, "no rule: everything is denied");
        }
        for rule in &self.rules {
            writeln!(f, "rule {:?}", rule.name)?;
            writeln!(f, "  peers: {}", rule.peers)?;
            writeln!(f, "  targets: {}", rule.targets)?;
            let quota = rule.quota.over(self.quota);
            if quota != self.quota {
                writeln!(f, "  quota: {quota}")?;
            }
            for (operation, bounds) in rule.operations() {
                writeln!(f, "  {operation}: {bounds}")?;
            }
        }
        Ok(())
    }
}

impl Rule {
    fn operations(&self) -> impl Iterator<Item = (&'static str, String)> {
        let allowed = self.allowed.iter();
        allowed.filter_map(|(operation, bounds)| Some((operation, bounds?.to_string())))
    }

    fn bounds(&self, operation: &str) -> Option<String> {
        self.operations()
            .find_map(|(name, bounds)| (name == operation).then_some(bounds))
    }
}

impl Quota {
    fn to_json(self) -> Value {
        json!({
            "connections": self.connections,
            "concurrent": self.concurrent,
            "per-second": self.per_second,
        })
    }
}

impl Policy {
    /// The summary for a program.
    pub fn to_json(&self) -> Value {
        let text = |value: Option<&dyn fmt::Display>| value.map(ToString::to_string);
        let rule = |rule: &Rule| {
            let Rule { peers, targets, .. } = rule;
            let operations: serde_json::Map<String, Value> = rule
                .operations()
                .map(|(operation, bounds)| (operation.to_owned(), bounds.into()))
                .collect();
            json!({
                "name": rule.name,
                "peer": {
                    "uid": text(peers.uid.as_ref().map(|ids| ids as _)),
                    "gid": text(peers.gid.as_ref().map(|ids| ids as _)),
                    "cgroup": text(peers.cgroup.as_ref().map(|top| top as _)),
                    "label": peers.label.as_ref().map(|labels| labels.iter().collect::<Vec<_>>()),
                },
                "target": {
                    "cgroup": text(targets.cgroup.as_ref().map(|top| top as _)),
                    "uid": text(targets.uid.as_ref().map(|ids| ids as _)),
                },
                "quota": rule.quota.over(self.quota).to_json(),
                "operations": operations,
            })
        };
        json!({
            "cgroup-hierarchy": self.hierarchy.to_string(),
            "quota": self.quota.to_json(),
            "rules": self.rules.iter().map(rule).collect::<Vec<_>>(),
        })
    }

    /// What would happen if that peer asked for an operation, named as in a
    /// rule; of that process, if one is given. An error says which operations
    /// there are.
    pub fn explain(
        &self,
        peer: &Peer<'_>,
        operation: &str,
        target: Option<Target<'_>>,
    ) -> Result<Explanation, String> {
        let names = Allowed::NAMES;
        let Some(operation) = names.iter().copied().find(|name| *name == operation) else {
            let names = names.join(", ");
            return Err(format!(
                "there is no operation {operation:?}: there are {names}"
            ));
        };
        let attempt = |rule: &Rule| match rule.bounds(operation) {
            None => Err(rule.not_allowed(operation)),
            Some(bounds) => match target {
                Some(Target { uid, cgroup }) => rule.permits_target(peer, cgroup, uid),
                None => rule.target_subtree(peer).map(drop),
            }
            .map(|()| bounds),
        };
        let rules = self.rules.iter().map(|rule| {
            let verdict = match rule.peers.misfit(peer) {
                Some(misfit) => Verdict::OtherPeers(misfit),
                None => match attempt(rule) {
                    Ok(bounds) => Verdict::Permits {
                        bounds,
                        targets: in_words(rule, peer),
                    },
                    Err(denied) => Verdict::Denies(denied.why),
                },
            };
            (rule.name.clone(), verdict)
        });
        Ok(Explanation {
            peer: peer.to_string(),
            operation,
            target: target.map(|target| target.to_string()),
            scope: peer.scope(),
            quota: self.quota_for(peer),
            rules: rules.collect(),
            refusal: self.decide(peer, attempt).err(),
        })
    }
}

/// The processes that a rule means for that peer.
fn in_words(rule: &Rule, peer: &Peer<'_>) -> String {
    let mut text = match rule.target_subtree(peer) {
        Ok(top) => format!("in {top} or below"),
        Err(denied) => denied.why,
    };
    if let Some(ids) = &rule.targets.uid {
        text += &format!(", uid {ids}");
    }
    text
}

/// What a rule says of a peer's wish.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is not for this peer.
    OtherPeers(String),
    Denies(String),
    Permits {
        bounds: String,
        targets: String,
    },
}

/// What would happen, and by which rule. It displays as text of several lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    peer: String,
    operation: &'static str,
    target: Option<String>,
    scope: Scope,
    quota: Quota,
    rules: Vec<(String, Verdict)>,
    refusal: Option<Denied>,
}

impl Explanation {
    /// Whether some rule permits it, within bounds.
    pub fn is_permitted(&self) -> bool {
        self.refusal.is_none()
    }

    /// The rules that permit it, in the order in which they are asked.
    fn permitting(&self) -> impl Iterator<Item = &str> {
        let permits = |(_, verdict): &&(_, Verdict)| matches!(verdict, Verdict::Permits { .. });
        self.rules
            .iter()
            .filter(permits)
            .map(|(name, _)| name.as_str())
    }

    fn result(&self) -> String {
        let rules: Vec<String> = self.permitting().map(|name| format!("{name:?}")).collect();
        match (&self.refusal, rules.as_slice()) {
            (Some(denied), _) => format!("refused: {denied}"),
            (None, [rule]) => format!("permitted by rule {rule}, within its bounds"),
            (None, _) => format!(
                "permitted by the first of rules {} whose bounds it is within",
                rules.join(", ")
            ),
        }
    }

    /// The same for a program.
    pub fn to_json(&self) -> Value {
        let rule = |(name, verdict): &(String, Verdict)| match verdict {
            Verdict::OtherPeers(why) => {
                json!({ "name": name, "verdict": "other-peers", "why": why })
            }
            Verdict::Denies(why) => json!({ "name": name, "verdict": "denies", "why": why }),
            Verdict::Permits { bounds, targets } => json!({
                "name": name,
                "verdict": "permits",
                "bounds": bounds,
                "targets": targets,
            }),
        };
        let refusal = self.refusal.as_ref().map(|denied| {
            let closeness = match denied.closeness {
                Closeness::Peer => "peer",
                Closeness::Operation => "operation",
                Closeness::Target => "target",
                Closeness::Bounds => "bounds",
            };
            json!({ "rule": denied.rule, "about": closeness, "why": denied.why })
        });
        json!({
            "peer": self.peer,
            "operation": self.operation,
            "target": self.target,
            "scope": self.scope.to_string(),
            "quota": self.quota.to_json(),
            "rules": self.rules.iter().map(rule).collect::<Vec<_>>(),
            "permitted": self.is_permitted(),
            "permitted-by": self.permitting().collect::<Vec<_>>(),
            "refusal": refusal,
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "peer: {}", self.peer)?;
        writeln!(f, "operation: {}", self.operation)?;
        if let Some(target) = &self.target {
            writeln!(f, "target: {target}")?;
        }
        writeln!(f, "quota of {}: {}", self.scope, self.quota)?;
        for (name, verdict) in &self.rules {
            match verdict {
                Verdict::OtherPeers(why) => writeln!(f, "rule {name:?} is for others: {why}")?,
                Verdict::Denies(why) => writeln!(f, "rule {name:?} denies: {why}")?,
                Verdict::Permits { bounds, targets } => {
                    writeln!(f, "rule {name:?} permits: {bounds}")?;
                    writeln!(f, "  of processes {targets}")?;
                }
            }
        }
        writeln!(f, "result: {}", self.result())
    }
}
