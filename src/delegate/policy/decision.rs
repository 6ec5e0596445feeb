// SPDX-License-Identifier: LGPL-2.1-or-later
//! A peer, the rules that are for it, and why something is denied.

use std::fmt;

use super::value::{covers, is_whole};
use super::{Peers, Policy, Quota, QuotaFields, Rule};

/// Who asks: what the kernel and the listener say, never the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Its cgroup in the policy's hierarchy.
    pub cgroup: &'a str,
    /// The label of the listener that it connected to.
    pub label: Option<&'a str>,
}

/// Whose quota a peer takes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// That of all peers in a cgroup.
    Cgroup(String),
    /// That of a user's peers in the root cgroup.
    Uid(u32),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Cgroup(path) => write!(f, "cgroup {path}"),
            Scope::Uid(uid) => write!(f, "uid {uid}"),
        }
    }
}

impl Peer<'_> {
    /// Whose quota it takes from.
    pub fn scope(&self) -> Scope {
        match is_somewhere(self.cgroup) {
            true => Scope::Cgroup(self.cgroup.to_owned()),
            false => Scope::Uid(self.uid),
        }
    }
}

/// "uid 107, gid 107 in /x with label "vm-1""
impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer {
            uid, gid, cgroup, ..
        } = self;
        write!(f, "uid {uid}, gid {gid} in {cgroup}")?;
        match self.label {
            Some(label) => write!(f, " with label {label:?}"),
            None => Ok(()),
        }
    }
}

/// Whether the path is one that tells processes from others: not the root, and
/// not one that the delegate cannot see.
fn is_somewhere(cgroup: &str) -> bool {
    cgroup != "/" && is_whole(cgroup)
}

/// How far an attempt came that was denied in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closeness {
    /// No rule names the peer.
    Peer,
    /// The rule does not allow the operation.
    Operation,
    /// The rule allows it, but not on that target.
    Target,
    /// On that target, but not what was asked for.
    Bounds,
}

/// Why something is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// How far it came.
    pub closeness: Closeness,
    /// The rule that does not permit it; `None`: there is none for the peer.
    pub rule: Option<String>,
    /// What the rule says against it.
    pub why: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "rule {rule:?}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

impl std::error::Error for Denied {}

impl Denied {
    fn stranger(peer: &Peer<'_>) -> Denied {
        Denied {
            closeness: Closeness::Peer,
            rule: None,
            why: format!("no rule names {peer}"),
        }
    }
}

impl Policy {
    /// The rules that are for that peer, in the file's order.
    pub fn rules_for<'p>(&'p self, peer: &Peer<'_>) -> impl Iterator<Item = &'p Rule> {
        self.rules.iter().filter(|rule| rule.peers.fit(peer))
    }

    /// What the first rule for that peer says that does not deny, and which
    /// rule that is; or why the one denies that comes closest.
    pub fn decide<'p, T>(
        &'p self,
        peer: &Peer<'_>,
        mut attempt: impl FnMut(&'p Rule) -> Result<T, Denied>,
    ) -> Result<(&'p Rule, T), Denied> {
        let mut closest: Option<Denied> = None;
        for rule in self.rules_for(peer) {
            match attempt(rule) {
                Ok(permitted) => return Ok((rule, permitted)),
                Err(denied) => match &closest {
                    Some(before) if before.closeness >= denied.closeness => {}
                    _ => closest = Some(denied),
                },
            }
        }
        Err(closest.unwrap_or_else(|| Denied::stranger(peer)))
    }

    /// Whether a rule names that peer.
    pub fn admit(&self, peer: &Peer<'_>) -> Result<(), Denied> {
        match self.rules_for(peer).next() {
            Some(_) => Ok(()),
            None => Err(Denied::stranger(peer)),
        }
    }

    /// What that peer's scope may take. Of several rules the first that has a
    /// field decides about it.
    pub fn quota_for(&self, peer: &Peer<'_>) -> Quota {
        let fields = self
            .rules_for(peer)
            .fold(QuotaFields::default(), |fields, rule| QuotaFields {
                connections: fields.connections.or(rule.quota.connections),
                concurrent: fields.concurrent.or(rule.quota.concurrent),
                per_second: fields.per_second.or(rule.quota.per_second),
            });
        fields.over(self.quota)
    }
}

impl Peers {
    pub(super) fn is_empty(&self) -> bool {
        let Peers {
            uid,
            gid,
            cgroup,
            label,
        } = self;
        uid.is_none() && gid.is_none() && cgroup.is_none() && label.is_none()
    }

    /// Whether that peer is one of them.
    pub fn fit(&self, peer: &Peer<'_>) -> bool {
        let uid = self.uid.as_ref().is_none_or(|ids| ids.contains(peer.uid));
        let gid = self.gid.as_ref().is_none_or(|ids| ids.contains(peer.gid));
        let cgroup = (self.cgroup.as_ref()).is_none_or(|top| top.covers(peer.cgroup));
        let label = (self.label.as_ref())
            .is_none_or(|labels| peer.label.is_some_and(|label| labels.contains(label)));
        uid && gid && cgroup && label
    }

    /// Why that peer is none of them.
    pub(super) fn misfit(&self, peer: &Peer<'_>) -> Option<String> {
        match self {
            Peers { uid: Some(ids), .. } if !ids.contains(peer.uid) => {
                Some(format!("uid {} is not {ids}", peer.uid))
            }
            Peers { gid: Some(ids), .. } if !ids.contains(peer.gid) => {
                Some(format!("gid {} is not {ids}", peer.gid))
            }
            Peers {
                cgroup: Some(top), ..
            } if !top.covers(peer.cgroup) => Some(format!("{} is not {top} or below", peer.cgroup)),
            Peers {
                label: Some(labels),
                ..
            } => match peer.label {
                None => Some(format!("the listener has no label, and not {labels}")),
                Some(label) if !labels.contains(label) => {
                    Some(format!("the listener's label {label:?} is not {labels}"))
                }
                Some(_) => None,
            },
            _ => None,
        }
    }
}

impl Rule {
    /// That this rule denies it, and why.
    pub fn denied(&self, closeness: Closeness, why: impl Into<String>) -> Denied {
        Denied {
            closeness,
            rule: Some(self.name.clone()),
            why: why.into(),
        }
    }

    /// That this rule does not have the operation of that name.
    pub fn not_allowed(&self, operation: &str) -> Denied {
        let why = format!("it does not allow {operation}");
        self.denied(Closeness::Operation, why)
    }

    /// Whether it names peers and targets well enough to allow every cgroup.
    pub(super) fn may_have_root(&self) -> bool {
        let targets = &self.targets;
        self.peers.uid.is_some() && targets.uid.is_some() && targets.cgroup.is_some()
    }

    /// The cgroup in whose subtree that peer's targets must be.
    pub fn target_subtree<'a>(&'a self, peer: &Peer<'a>) -> Result<&'a str, Denied> {
        match &self.targets.cgroup {
            Some(top) => Ok(top.path()),
            None => self.own_subtree(peer).map_err(|own| {
                let why = format!(
                    "the peer's own cgroup is {own}, which does not tell its processes from others: write peer.uid, target.uid and target.cgroup"
                );
                self.denied(Closeness::Target, why)
            }),
        }
    }

    /// The cgroup in whose subtree are those that threads may be moved to, where
    /// `bounds` has them.
    pub fn destination_subtree<'a>(
        &'a self,
        peer: &Peer<'a>,
        bounds: &'a dyn super::Bounds,
    ) -> Result<&'a str, Denied> {
        match bounds.cgroup() {
            Some(top) => Ok(top.path()),
            None => self.own_subtree(peer).map_err(|own| {
                let why = format!(
                    "the peer's own cgroup is {own}, which is none to move threads below: write the operation's cgroup"
                );
                self.denied(Closeness::Bounds, why)
            }),
        }
    }

    fn own_subtree<'a>(&self, peer: &Peer<'a>) -> Result<&'a str, &'a str> {
        match peer.cgroup {
            own if is_somewhere(own) => Ok(own),
            "/" => Err("the root"),
            "" => Err("not known"),
            own => Err(own),
        }
    }

    /// Whether that peer may have a process changed that is in `cgroup` and has
    /// the real user id `uid`.
    pub fn permits_target(&self, peer: &Peer<'_>, cgroup: &str, uid: u32) -> Result<(), Denied> {
        let top = self.target_subtree(peer)?;
        if !covers(top, cgroup) {
            let why = format!("the target is in {cgroup}, which is not {top} or below");
            return Err(self.denied(Closeness::Target, why));
        }
        match &self.targets.uid {
            Some(ids) if !ids.contains(uid) => {
                let why = format!("the target's uid is {uid}, which is not {ids}");
                Err(self.denied(Closeness::Target, why))
            }
            _ => Ok(()),
        }
    }
}
