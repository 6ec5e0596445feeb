// SPDX-License-Identifier: LGPL-2.1-or-later
//! A delegate that runs: signals, reload, stop, watchdog.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use virt_internal::delegate::policy::Policy;
use virt_internal::delegate::server::Server;

use super::listeners::{self, Listeners};
use super::metrics::Metrics;
use super::notify::Notify;
use super::signals::{Signal, Signals, die_of};
use super::{Delegate, say};

pub struct Running<'a> {
    pub options: &'a Delegate,
    pub server: Server,
    pub listeners: Listeners,
    pub metrics: Option<&'a Metrics>,
    pub notify: &'a Notify,
}

impl Running<'_> {
    /// Until a signal ends it.
    pub fn run(mut self, signals: &Signals) -> crate::Result {
        let server = self.server.clone();
        let has_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            // It accepts connections, and ends them.
            let accepting =
                thread::Builder::new()
                    .name("accept".into())
                    .spawn_scoped(scope, || {
                        let ended = server.run();
                        has_ended.store(true, Ordering::Release);
                        // Whoever waits for signals must hear of it.
                        // SAFETY: a signal to this process, which is taken over.
                        unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
                        ended
                    })?;
            self.notify.ready(&self.status());
            let mut is_stopping = false;
            let mut last_alive = Instant::now();
            let obeyed = loop {
                if has_ended.load(Ordering::Acquire) {
                    break Ok(());
                }
                let now = Instant::now();
                let alive_at = self.notify.interval().map(|interval| last_alive + interval);
                if alive_at.is_some_and(|time| time <= now) {
                    // It takes the locks that operations take: where they are
                    // stuck, systemd hears nothing.
                    let _ = self.server.metrics();
                    self.notify.alive();
                    last_alive = now;
                    continue;
                }
                let written_at = self.metrics.and_then(|metrics| metrics.write_when_due(now));
                let until = alive_at.into_iter().chain(written_at).min();
                match signals.wait(until.map(|time| time.saturating_duration_since(now))) {
                    Ok(None) => {}
                    Ok(Some(Signal::Reload)) if is_stopping => {}
                    Ok(Some(Signal::Reload)) => self.reload(),
                    Ok(Some(Signal::Stop(_))) if has_ended.load(Ordering::Acquire) => break Ok(()),
                    Ok(Some(Signal::Stop(signal))) if is_stopping => die_of(signal),
                    Ok(Some(Signal::Stop(_))) => {
                        is_stopping = true;
                        say("ends when it has answered what it is working on");
                        self.notify.stopping();
                        self.server.stop();
                    }
                    Err(error) => {
                        self.server.stop();
                        break Err(error);
                    }
                }
            };
            let ended = accepting
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that accepts panicked")));
            obeyed.and(ended)
        })
        .map_err(|error| format!("cannot go on: {error}"))?;
        Ok((String::new(), std::process::ExitCode::SUCCESS))
    }

    /// What systemctl status shows.
    fn status(&self) -> String {
        format!("listening on {} sockets", self.listeners.count())
    }

    /// Reads everything anew. What is wrong stays as it was.
    fn reload(&mut self) {
        self.notify.reloading();
        let mut problems = Vec::new();
        match self.reload_policy() {
            Ok(()) => {}
            Err(error) => problems.push(format!("{error}: the old policy stays")),
        }
        match self.options.open_audit() {
            Ok(audit) => self.server.set_audit(audit),
            Err(error) => problems.push(format!("{error}: the lines go where they went")),
        }
        if let Some(file) = &self.options.listeners {
            match listeners::read(file) {
                Ok(wanted) => problems.extend(self.listeners.change(wanted)),
                Err(error) => problems.push(format!("{error}: the old listeners stay")),
            }
        }
        for problem in &problems {
            say(problem);
        }
        if let Some(metrics) = self.metrics {
            metrics.count_reload(problems.is_empty());
        }
        let status = self.status();
        let status = match problems.first() {
            None => {
                say("read everything again");
                status
            }
            Some(problem) => format!("{status}; {problem}"),
        };
        self.notify.ready(&status);
    }

    fn reload_policy(&self) -> Result<(), String> {
        let file = &self.options.policy;
        let policy = Policy::read(file).map_err(|error| error.to_string())?;
        let set = self.server.set_policy(policy);
        set.map_err(|error| format!("{}: {error}", file.display()))
    }
}
