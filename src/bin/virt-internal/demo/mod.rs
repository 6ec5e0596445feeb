// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal demo`: the main job, on processes of the command's own.
//!
//! | module | what it does |
//! |---|---|
//! | `delegate` | an unprivileged process without and with a delegate |
//! | `cast` | who that process is, and how it is made one |
//! | `running` | the delegate, which runs as long as this does |
//! | `handlers` | the ways that a request can take within one process |
//! | `signals` | Ctrl-C waits until everything is tidied up |

mod cast;
mod delegate;
mod handlers;
mod running;
mod signals;

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::host::Host;
use crate::library::forget_delegate;
use crate::table::{Tone, paint};

use signals::Signals;

/// Show what the library does, on processes started for it
#[derive(Args)]
pub struct Demo {
    /// More requests of the delegate, and every way for every operation
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub fn run(&self) -> crate::Result {
        // The demonstration has a delegate of its own, and asks it when it
        // says so.
        // SAFETY: there is no other thread, and the library was not used yet.
        unsafe { forget_delegate() };
        let host = Host::probe()?;
        let signals = Signals::hold_back();
        let delegate = delegate::show(self.all, &signals)?;
        let handlers = handlers::show(self.all, &signals)?;
        drop(signals);
        let wrong = [delegate.wrong(), handlers.wrong()].concat();
        let text = match self.json {
            true => {
                let report = json!({
                    "as_promised": wrong.is_empty(),
                    "delegate": delegate.to_json(),
                    "rows": handlers.to_json(),
                });
                format!("{report:#}\n")
            }
            false => {
                let verdict = match wrong.is_empty() {
                    true => {
                        "All as promised. How to get what is missing: virt-internal capabilities"
                            .into()
                    }
                    false => {
                        let heading = "This contradicts what the library promises:";
                        let heading = paint(Tone::Wrong, heading);
                        format!("{heading}\n  {}", wrong.join("\n  "))
                    }
                };
                let (summary, delegate) = (host.summary(), delegate.to_text());
                let handlers_heading = match self.all {
                    true => "Within one process, by handlers and directly:",
                    false => {
                        "Within one process, by handlers and directly (--all: every operation):"
                    }
                };
                let handlers = handlers.to_text();
                format!("{summary}\n\n{delegate}\n{handlers_heading}\n\n{handlers}\n{verdict}\n")
            }
        };
        let exit_code = match wrong.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
        Ok((text, exit_code))
    }
}
