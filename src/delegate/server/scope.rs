// SPDX-License-Identifier: LGPL-2.1-or-later
//! Peer scopes: all peers of one container share a quota, and may ask what
//! became of each other's requests.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::fitting;
use super::peer::Peer;
use crate::delegate::policy::{Quota, Scope as Name};
use crate::delegate::wire::Answer;

/// How many of its last requests a scope remembers.
const REMEMBERED: usize = 256;

/// How long a request waits for its turn, before it is refused.
const PATIENCE: Duration = Duration::from_millis(500);

/// One scope, as long as it has a connection and a little longer.
pub(crate) struct Scope {
    state: Mutex<State>,
    /// An operation ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    connections: u32,
    running: u32,
    waiting: u32,
    /// Operations that may be begun now, and when that was so.
    tokens: f64,
    counted: Option<Instant>,
    begun: Vec<u64>,
    outcomes: VecDeque<(u64, Answer, String)>,
}

/// What a scope has no more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    Connections(u32),
    Concurrent(u32),
    PerSecond(u32),
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exhausted::Connections(most) => {
                write!(f, "the quota of {most} connections at a time is used up")
            }
            Exhausted::Concurrent(most) => {
                write!(f, "the quota of {most} operations at a time is used up")
            }
            Exhausted::PerSecond(most) => {
                write!(f, "the quota of {most} operations in a second is used up")
            }
        }
    }
}

/// All scopes.
#[derive(Default)]
pub(crate) struct Scopes(Mutex<HashMap<Key, Arc<Scope>>>);

/// A listener's label, and whose quota it is.
pub(crate) type Key = (Option<String>, Name);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scopes {
    /// Counts a new connection in its peer's scope.
    pub(crate) fn connect(&self, peer: &Peer, quota: Quota) -> Result<Connected<'_>, Exhausted> {
        let name = peer.scope();
        let mut scopes = lock(&self.0);
        let scope = scopes.entry(name.clone()).or_insert_with(|| {
            Arc::new(Scope {
                state: Mutex::default(),
                ended: Condvar::new(),
            })
        });
        let mut state = lock(&scope.state);
        if state.connections >= quota.connections {
            return Err(Exhausted::Connections(quota.connections));
        }
        state.connections += 1;
        drop(state);
        Ok(Connected {
            scopes: self,
            name,
            scope: Arc::clone(scope),
        })
    }

    /// How many scopes and connections there are.
    pub(crate) fn count(&self) -> (usize, u32) {
        let scopes = lock(&self.0);
        let connections = scopes.values().map(|scope| lock(&scope.state).connections);
        (scopes.len(), connections.sum())
    }
}

/// A connection that is counted.
pub(crate) struct Connected<'a> {
    scopes: &'a Scopes,
    name: Key,
    pub(crate) scope: Arc<Scope>,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        let mut scopes = lock(&self.scopes.0);
        let mut state = lock(&self.scope.state);
        state.connections -= 1;
        // What it remembers is asked for over a new connection: it is kept
        // while there are few that do so.
        const KEPT: usize = 64;
        let forget = state.connections == 0 && (state.outcomes.is_empty() || scopes.len() > KEPT);
        drop(state);
        if forget {
            scopes.remove(&self.name);
        }
    }
}

impl Scope {
    /// Waits for its turn to begin an operation.
    pub(crate) fn begin(&self, request: u64, quota: Quota) -> Result<Running<'_>, Exhausted> {
        let mut state = lock(&self.state);
        if let Some(most) = quota.per_second {
            state.refill(most);
            if state.tokens < 1.0 {
                return Err(Exhausted::PerSecond(most));
            }
            state.tokens -= 1.0;
        }
        if state.running >= quota.concurrent {
            let is_full = |state: &mut State| state.running >= quota.concurrent;
            state.waiting += 1;
            let waited = self.ended.wait_timeout_while(state, PATIENCE, is_full);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
            if is_full(&mut state) {
                return Err(Exhausted::Concurrent(quota.concurrent));
            }
        }
        state.running += 1;
        state.begun.push(request);
        Ok(Running {
            scope: self,
            request,
        })
    }

    /// What became of a request; `None` where nobody knows.
    pub(crate) fn outcome(&self, request: u64) -> Option<(Answer, String)> {
        let state = lock(&self.state);
        let mut outcomes = state.outcomes.iter().rev();
        outcomes
            .find(|(id, ..)| *id == request)
            .map(|(_, answer, text)| (*answer, text.clone()))
    }

    /// Whether it is being worked on.
    pub(crate) fn is_running(&self, request: u64) -> bool {
        lock(&self.state).begun.contains(&request)
    }
}

impl State {
    /// Tokens come evenly, and as many as for one second are kept.
    fn refill(&mut self, per_second: u32) {
        let now = Instant::now();
        let most = f64::from(per_second);
        self.tokens = match self.counted {
            None => most,
            Some(before) => {
                let passed = now.duration_since(before).as_secs_f64();
                (self.tokens + passed * most).min(most)
            }
        };
        self.counted = Some(now);
    }
}

/// An operation that has begun.
pub(crate) struct Running<'a> {
    scope: &'a Scope,
    request: u64,
}

impl Running<'_> {
    /// It ended, like that: remembered before the peer is told.
    pub(crate) fn end(self, answer: Answer, text: &str) {
        self.leave(Some((answer, fitting(text).to_owned())));
        std::mem::forget(self);
    }

    fn leave(&self, outcome: Option<(Answer, String)>) {
        let mut state = lock(&self.scope.state);
        if let Some((answer, text)) = outcome {
            if state.outcomes.len() == REMEMBERED {
                state.outcomes.pop_front();
            }
            state.outcomes.push_back((self.request, answer, text));
        }
        state.running -= 1;
        if let Some(index) = state.begun.iter().position(|id| *id == self.request) {
            state.begun.swap_remove(index);
        }
        // Every notification is a system call.
        let is_awaited = state.waiting != 0;
        drop(state);
        if is_awaited {
            self.scope.ended.notify_one();
        }
    }
}

/// It did not come to an end: the connection did.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.leave(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::wire::{TEXT_MAX, Verdict};
    use crate::errno::Errno;

    #[test]
    fn no_more_of_a_text_is_remembered_than_an_answer_can_have() {
        let scope = Scope {
            state: Mutex::default(),
            ended: Condvar::new(),
        };
        let answer = Answer {
            verdict: Verdict::Refused,
            code: 4,
            errnum: Errno::EPERM,
            results: 0,
            text: 0,
        };
        let running = scope.begin(1, Quota::default()).expect("there is room");
        running.end(answer, &"ä".repeat(TEXT_MAX));
        let (_, text) = scope.outcome(1).expect("it is remembered");
        assert_eq!(text, "ä".repeat(TEXT_MAX / 2));
    }
}
