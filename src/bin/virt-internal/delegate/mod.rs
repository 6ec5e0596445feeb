// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal delegate`: does what others may not.
//!
//! | module | what it does |
//! |---|---|
//! | `listeners` | the sockets: from the command line, from systemd, from a file |
//! | `running` | a delegate that runs: signals, reload, stop, watchdog |
//! | `metrics` | the counters, over HTTP or into a file |
//! | `notify` | tells systemd how it goes |
//! | `signals` | signals as things to read |
//! | `start` | what this process may do, and what will fail |

mod listeners;
mod metrics;
mod notify;
mod running;
mod signals;
mod start;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fmt, io};

use clap::Args;
use virt_internal::delegate::policy::Policy;
use virt_internal::delegate::server::{Audit, Server};

use self::listeners::{Listen, Listeners};
use self::metrics::Metrics;
use self::notify::Notify;
use self::running::Running;
use self::signals::Signals;
use crate::{complain, policy};

const HELP: &str = "\
Signals: HUP reads the policy and the listeners again and opens the audit file
anew; TERM and INT end it when it has answered what it is working on, a second
one at once.

Exit codes: 0 ended by a signal, or the policy is right, or it permits what
--explain asks about; 1 failed, or the policy is wrong or refuses it; 2 wrong
usage

docs/delegate.md tells the rest.";

/// Do operations for unprivileged processes, within a policy
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Delegate {
    /// Where to listen: unix:/path or fd:NUMBER, and =LABEL behind it for the
    /// name that the policy's rules and audit lines have for it. May be given
    /// several times. Sockets that systemd passes need no --listen
    #[arg(long, value_name = "ADDRESS[=LABEL]", value_parser = Listen::parse)]
    listen: Vec<Listen>,
    /// A TOML file of more listeners, each a [[listener]] with address and
    /// label, which come and go when it is read again
    #[arg(long, value_name = "FILE")]
    listeners: Option<PathBuf>,
    /// Who may have what done: see docs/policy.md
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Where a line goes for each operation: a file, "journald", or "-" for
    /// standard output
    #[arg(long, value_name = "FILE")]
    audit: Option<String>,
    /// Where the counters can be had, in Prometheus' format: unix:/path,
    /// 127.0.0.1:PORT or [::1]:PORT by HTTP, or file:/path, written every 15
    /// seconds
    #[arg(long, value_name = "ADDRESS", value_parser = metrics::Address::parse)]
    metrics: Option<metrics::Address>,
    /// Check the policy, and the file of listeners if one is given, and do
    /// nothing else
    #[arg(long, group = "dry", conflicts_with_all = ["listen", "audit", "metrics"])]
    check: bool,
    /// Say what the policy has for that peer and operation, and do nothing else
    #[arg(
        long,
        group = "dry",
        num_args = 2,
        value_names = ["PEER", "OPERATION"],
        conflicts_with_all = ["listen", "listeners", "audit", "metrics"]
    )]
    explain: Option<Vec<String>>,
    /// With --explain: what it would be done to
    #[arg(long, value_name = "TARGET", requires = "explain")]
    target: Option<String>,
    /// With --check or --explain: print JSON
    #[arg(long, requires = "dry")]
    json: bool,
    /// The journal's socket
    #[arg(long, hide = true, value_name = "PATH", default_value = Audit::JOURNAL)]
    journal_socket: PathBuf,
}

/// What to do about an audit file whose directory is not there.
fn unmade(file: &str, error: &io::Error) -> String {
    let directory = Path::new(file).parent();
    match directory {
        Some(directory) if error.kind() == io::ErrorKind::NotFound => format!(
            ": make {} first (LogsDirectory= in a systemd unit)",
            directory.display()
        ),
        _ => String::new(),
    }
}

/// Tells the operator something, on standard error: under systemd, in the
/// journal.
fn say(text: impl fmt::Display) {
    complain(&format!("virt-internal: {text}\n"));
}

impl Delegate {
    pub fn run(&self) -> crate::Result {
        if self.check {
            let listeners = match &self.listeners {
                Some(file) => {
                    let count = listeners::read(file)?.len();
                    format!("{}: right\nlisteners: {count}\n", file.display())
                }
                None => String::new(),
            };
            let (text, exit_code) = policy::check(&self.policy, self.json)?;
            let text = match self.json {
                true => text,
                false => listeners + &text,
            };
            return Ok((text, exit_code));
        }
        if let Some([peer, operation]) = self.explain.as_deref() {
            let target = self.target.as_deref();
            return policy::explain(&self.policy, peer, operation, target, self.json);
        }
        self.serve()
    }

    fn serve(&self) -> crate::Result {
        // Before there is any other thread, which would have them as they were.
        let signals = Signals::take_over()?;
        let notify = Notify::from_environment();
        let passed = listeners::passed_by_systemd()?;
        if self.listen.is_empty() && self.listeners.is_none() && passed.is_empty() {
            say(
                "it has nowhere to listen: give --listen unix:/path, or --listeners FILE, \
                 or have systemd pass sockets (see virt-internal-delegate.socket)",
            );
            return Ok((String::new(), ExitCode::from(2)));
        }
        start::raise_descriptor_limit();
        let policy = Policy::read(&self.policy)?;
        let problems = start::problems(&policy);
        let server = Server::new(policy, self.open_audit()?)?;
        let mut listeners = Listeners::new(&server);
        for socket in passed {
            listeners.adopt(socket)?;
        }
        for listen in &self.listen {
            listeners.open(listen)?;
        }
        if let Some(file) = &self.listeners {
            let wanted = listeners::read(file)?;
            if let Some(problem) = listeners.change(wanted).into_iter().next() {
                return Err(problem.into());
            }
        }
        let metrics = match &self.metrics {
            Some(address) => Some(Metrics::start(address, &server)?),
            None => None,
        };
        for problem in problems {
            say(problem);
        }
        let running = Running {
            options: self,
            server: server.clone(),
            listeners,
            metrics: metrics.as_ref(),
            notify: &notify,
        };
        running.run(&signals)?;
        if let Some(metrics) = metrics {
            metrics.end();
        }
        Ok((String::new(), ExitCode::SUCCESS))
    }

    /// Opens what audit lines go to, at first and when it is to be opened anew.
    fn open_audit(&self) -> Result<Audit, String> {
        let audit = match self.audit.as_deref() {
            None => Ok(Audit::nowhere()),
            Some("-") => io::stdout().as_fd().try_clone_to_owned().map(Audit::stream),
            Some("journald") => Audit::journal(&self.journal_socket),
            Some(file) => Audit::file(file.as_ref()),
        };
        let name = self.audit.as_deref().unwrap_or_default();
        audit
            .map(|audit| {
                audit.on_loss(|lost, error| {
                    say(format_args!(
                        "audit: {lost} lines could not be written since it was opened: {error}"
                    ));
                })
            })
            .map_err(|error| match name {
                "journald" => format!(
                    "cannot write to the journal's socket {}: {error}: it takes a systemd-journald \
                     that runs, and in a container its socket",
                    self.journal_socket.display()
                ),
                _ => format!(
                    "cannot open the audit file {name}: {error}{}",
                    unmade(name, &error)
                ),
            })
    }
}
