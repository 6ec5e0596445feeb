// SPDX-License-Identifier: LGPL-2.1-or-later
//! The side that does it: a delegate, in any privileged program.
//!
//! | module | what it does |
//! |---|---|
//! | `listener` | the sockets that peers connect to |
//! | `connection` | a thread for each connection: reads requests, answers them |
//! | `peer` | who is at the other end, as the kernel says |
//! | `serve` | what an operation tells of itself, and what a request is about |
//! | `pidfd`, `cgroupfs` | processes, threads and cgroups by descriptors |
//! | `cpuset` | the CPUs that a thread can be given |
//! | `threads` | a process's threads, moved between cgroups |
//! | `housekeeping` | a VM's threads but vCPUs in a cgroup of their own |
//! | `scope` | quotas, and what became of requests |
//! | `audit`, `metrics` | what was done, in lines and in numbers |

pub(crate) mod audit;
pub(crate) mod cgroupfs;
pub(crate) mod connection;
pub(crate) mod cpuset;
pub(crate) mod housekeeping;
mod listener;
mod metrics;
pub(crate) mod peer;
pub(crate) mod pidfd;
mod scope;
pub(crate) mod serve;
pub(crate) mod threads;

use std::collections::HashMap;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, iter};

pub use audit::Audit;
use audit::{How, Known, Line, REFUSED_PER_SECOND, TURNED_PER_SECOND, Throttle, Turned, User};
use listener::Listener;
use metrics::{Gauges, Metrics};
use peer::Peer;
use scope::Scopes;

use super::policy::{Hierarchy, Policy};
use crate::kernel::file::Fd;

/// A delegate: it listens, and does what peers ask for within its policy. All
/// of it may be called by any thread, at any time.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

pub(crate) struct Shared {
    policy: RwLock<Arc<Policy>>,
    /// Which policy that is: connections keep the one they know, so that they
    /// do not all write to one place for every request.
    policy_number: AtomicU64,
    audit: RwLock<Audit>,
    turned: Throttle<User>,
    refused: Throttle<scope::Key>,
    metrics: Metrics,
    scopes: Scopes,
    listeners: Mutex<Vec<Arc<Listener>>>,
    connections: Mutex<Connections>,
    /// A connection ended.
    ended: Condvar,
    /// Written to when the listeners change, or the delegate is to stop.
    wake: Fd,
    stopped: AtomicBool,
    /// How many connections are accepted whose peers are not yet known to be
    /// within their quotas.
    arriving: AtomicUsize,
}

/// How many connections arrive at a time: more wait to be accepted, so that who
/// makes them faster than they are turned away takes no more than that.
const ARRIVING_MAX: usize = 128;

/// How many connections of a listener are accepted before it is others' turn.
const ROUND: usize = 16;

/// A connection that is arriving.
struct Arriving(Arc<Shared>);

impl Arriving {
    fn new(shared: &Arc<Shared>) -> Arriving {
        shared.arriving.fetch_add(1, Ordering::AcqRel);
        Arriving(Arc::clone(shared))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The open connections, by a number of our own.
#[derive(Default)]
struct Connections {
    last: u64,
    open: HashMap<u64, Open>,
    /// The thread that ended last. It joins the one before.
    ended: Option<JoinHandle<()>>,
}

struct Open {
    /// `None` when it is being closed.
    socket: Option<Arc<Fd>>,
    /// The listener's name; `None` for one that was given.
    listener: Option<String>,
    thread: Option<JoinHandle<()>>,
}

/// How many connections there can be of all peers together.
const CONNECTIONS_MAX: usize = 8192;

/// The stack of a connection's thread: it holds the results of 3000 threads
/// a few times.
const STACK: usize = 256 * 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// A delegate that does not listen yet.
    pub fn new(policy: Policy, audit: Audit) -> io::Result<Server> {
        // Without it, errors have no texts in a program that calls nothing
        // else of the library.
        crate::fork::page().map_err(|error| io::Error::from_raw_os_error(error.errnum.0))?;
        Ok(Server(Arc::new(Shared {
            policy: RwLock::new(Arc::new(policy)),
            policy_number: AtomicU64::new(1),
            audit: RwLock::new(audit),
            turned: Throttle::new(TURNED_PER_SECOND),
            refused: Throttle::new(REFUSED_PER_SECOND),
            metrics: Metrics::new(),
            scopes: Scopes::default(),
            listeners: Mutex::default(),
            connections: Mutex::default(),
            ended: Condvar::new(),
            wake: Fd::event().map_err(|errnum| io::Error::from_raw_os_error(errnum.0))?,
            stopped: AtomicBool::new(false),
            arriving: AtomicUsize::new(0),
        })))
    }

    /// Listens on `unix:/path`, or on a copy of `fd:NUMBER`, a socket that
    /// listens already, which stays the caller's. `label` is what rules, quotas and audit lines know its peers
    /// by.
    pub fn listen(&self, address: &str, label: Option<&str>) -> io::Result<()> {
        self.add(Listener::open(address, label)?)
    }

    /// Takes over a socket that listens already.
    pub fn listen_on(&self, socket: OwnedFd, name: &str, label: Option<&str>) -> io::Result<()> {
        self.add(Listener::adopt(socket, name, label)?)
    }

    fn add(&self, listener: Listener) -> io::Result<()> {
        let mut listeners = lock(&self.0.listeners);
        if self.0.stopped.load(Ordering::Acquire) {
            return Err(stopped());
        }
        if listeners.iter().any(|other| other.name == listener.name) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is listened on already", listener.name),
            ));
        }
        listeners.push(Arc::new(listener));
        drop(listeners);
        self.0.wake_up();
        Ok(())
    }

    /// Stops listening on that address, and ends the connections that were
    /// made there, each after what it is doing. Whether it was listened on.
    pub fn unlisten(&self, address: &str) -> bool {
        let mut listeners = lock(&self.0.listeners);
        let Some(index) = listeners
            .iter()
            .position(|listener| listener.name == address)
        else {
            return false;
        };
        let listener = listeners.remove(index);
        drop(listeners);
        // Whoever runs may still wait on it.
        listener.close();
        self.0.wake_up();
        self.0
            .end_connections(|name| name.as_deref() == Some(&*listener.name));
        true
    }

    /// Serves a connection that is made already. The kernel knows who made it,
    /// which need not be who uses it: the caller says who that is.
    pub(crate) fn serve_given(&self, socket: Fd, peer: Peer) -> io::Result<()> {
        let label = peer.label.clone();
        self.serve(socket, None, Some(peer), label)
    }

    /// The hierarchy of cgroups that the policy means.
    pub(crate) fn hierarchy(&self) -> Hierarchy {
        self.0.policy().hierarchy.clone()
    }

    /// Puts another policy in force: for every request from now on. Not one
    /// that means another hierarchy of cgroups, for peers that are connected
    /// were found in the old one.
    pub fn set_policy(&self, policy: Policy) -> io::Result<()> {
        let old = self.0.policy.write();
        let mut old = old.unwrap_or_else(PoisonError::into_inner);
        if old.hierarchy != policy.hierarchy {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "host.cgroup-hierarchy is another one now, which takes a restart",
            ));
        }
        *old = Arc::new(policy);
        self.0.policy_number.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Has audit lines go elsewhere.
    pub fn set_audit(&self, audit: Audit) {
        let mut old = self.0.audit.write().unwrap_or_else(PoisonError::into_inner);
        audit.follow(&old);
        *old = audit;
    }

    /// The counters, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let (scopes, connections) = self.0.scopes.count();
        self.0.metrics.text(&Gauges {
            scopes,
            connections,
            listeners: lock(&self.0.listeners).len(),
        })
    }

    /// Accepts connections until [`stop`](Self::stop); then ends those that
    /// are open, each after what it is doing.
    pub fn run(&self) -> io::Result<()> {
        while !self.0.stopped.load(Ordering::Acquire) {
            let listeners = lock(&self.0.listeners).clone();
            for listener in listener::wait(&listeners, &self.0.wake)? {
                for socket in iter::from_fn(|| listener.accept()).take(ROUND) {
                    self.0.let_others_arrive();
                    // What is not served is closed.
                    let _ = self.serve(socket, Some(listener), None, listener.label.clone());
                }
            }
        }
        self.end();
        Ok(())
    }

    /// Ends what is open, after [`stop`](Self::stop).
    pub(crate) fn end(&self) {
        lock(&self.0.listeners).clear();
        self.0.end_connections(|_| true);
        let open = lock(&self.0.connections);
        // What a peer sent may block whoever closes it, even for ever.
        const PATIENCE: Duration = Duration::from_secs(5);
        let waited = self
            .0
            .ended
            .wait_timeout_while(open, PATIENCE, |connections| !connections.open.is_empty());
        let (mut connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let last = connections.ended.take();
        drop(connections);
        last.map(JoinHandle::join);
    }

    /// Ends [`run`](Self::run). Async-signal-safe.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.wake_up();
    }

    /// Serves a connected socket to its end, on this thread. For tests and
    /// fuzzing: no listener has it, and nothing ends it but its peer.
    #[doc(hidden)]
    pub fn serve_connected(&self, socket: OwnedFd) {
        // SAFETY: given away by its owner.
        let socket = unsafe { Fd::new(socket.into_raw_fd().into()) };
        let connected = connection::serve(&self.0, &socket, None, None, &mut None);
        drop(socket);
        drop(connected);
    }

    /// Serves a connection on a thread of its own.
    fn serve(
        &self,
        socket: Fd,
        listener: Option<&Listener>,
        peer: Option<Peer>,
        label: Option<String>,
    ) -> io::Result<()> {
        let socket = Arc::new(socket);
        // Held until the thread is known: it asks for itself when it ends.
        let mut connections = lock(&self.0.connections);
        // Whoever closes a listener, or stops, then ends what is open.
        if self.0.stopped.load(Ordering::Acquire) || listener.is_some_and(Listener::is_closed) {
            return Err(stopped());
        }
        let whose = label.clone();
        let turn_down = |socket: &Fd, text: &str| {
            let credentials = peer::credentials(socket.get()).ok();
            let known = Known::Credentials(credentials, whose.as_deref());
            self.0.turn_away(How::Refused, known, text);
            // Closed without a word it would look like a delegate that is away.
            connection::goodbye(socket, 0, text);
        };
        if connections.open.len() >= CONNECTIONS_MAX {
            drop(connections);
            let text = format!("there are {CONNECTIONS_MAX} connections already");
            turn_down(&socket, &text);
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        connections.last += 1;
        let number = connections.last;
        let open = Open {
            socket: Some(Arc::clone(&socket)),
            listener: listener.map(|listener| listener.name.clone()),
            thread: None,
        };
        let shared = Arc::clone(&self.0);
        let mut arriving = Some(Arriving::new(&self.0));
        let thread = std::thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(STACK)
            .spawn({
                move || {
                    let connected = connection::serve(&shared, &socket, peer, label, &mut arriving);
                    // Closed on this thread: that may block.
                    let shut = lock(&shared.connections)
                        .open
                        .get_mut(&number)
                        .and_then(|open| open.socket.take());
                    drop((socket, shut));
                    drop((connected, arriving));
                    let mut connections = lock(&shared.connections);
                    let own = connections.open.remove(&number);
                    let own = own.and_then(|open| open.thread);
                    let earlier = std::mem::replace(&mut connections.ended, own);
                    drop(connections);
                    shared.ended.notify_all();
                    earlier.map(JoinHandle::join);
                }
            });
        match thread {
            Ok(thread) => {
                let thread = Some(thread);
                connections.open.insert(number, Open { thread, ..open });
                Ok(())
            }
            Err(error) => {
                // The socket is closed when nobody waits for the lock.
                drop(connections);
                if let Some(socket) = &open.socket {
                    turn_down(socket, &format!("there is no thread for it: {error}"));
                }
                Err(error)
            }
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the delegate was stopped")
}

impl Shared {
    /// The policy that is in force, and a number not above its own.
    fn numbered_policy(&self) -> (u64, Arc<Policy>) {
        let number = self.policy_number.load(Ordering::Acquire);
        (number, self.policy())
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn audit(&self, record: &impl Line, line: &mut String) {
        let audit = self.audit.read().unwrap_or_else(PoisonError::into_inner);
        if audit.write(record, line).is_err() {
            self.metrics.audit_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection that is not served, or not any more, or a request
    /// that is of no operation, and leaves a line.
    fn turn_away(&self, how: How, peer: Known<'_>, text: &str) {
        let count = match how {
            How::Refused => &self.metrics.connections_refused,
            How::Malformed => &self.metrics.malformed,
            How::Unsupported => &self.metrics.unsupported,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let Some(unwritten) = self.turned.pass(peer.user()) else {
            return;
        };
        let turned = Turned {
            how,
            peer,
            text,
            unwritten,
        };
        self.audit(&turned, &mut String::new());
    }

    /// Waits until fewer connections are arriving, but not for ever: before
    /// Linux 6.16 a peer can have whoever closes its connection wait.
    fn let_others_arrive(&self) {
        for _ in 0..100 {
            if self.arriving.load(Ordering::Acquire) < ARRIVING_MAX {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wake_up(&self) {
        let one = 1_u64.to_ne_bytes();
        // It cannot be full: it is read before anybody waits.
        let _ = crate::kernel::file::write(&self.wake, &one);
    }

    /// Ends connections when they have answered what they are working on.
    fn end_connections(&self, which: impl Fn(&Option<String>) -> bool) {
        let connections = lock(&self.connections);
        for open in connections.open.values() {
            if let Some(socket) = open.socket.as_ref().filter(|_| which(&open.listener)) {
                // SAFETY: numbers only.
                unsafe { libc::shutdown(socket.get(), libc::SHUT_RD) };
            }
        }
    }
}
