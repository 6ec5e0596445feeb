// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal call`: one operation by hand.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::library::{DIRECT, Failure, NO_DIRECT, Outcome};
use crate::operation::{Arguments, Request};
use crate::privilege::Missing;

/// Do one operation on a process or thread
#[derive(Args)]
pub struct Call {
    #[command(subcommand)]
    operation: Arguments,
    /// Do not act on the kernel directly (VIR_INTERNAL_NO_DIRECT)
    #[arg(long, global = true)]
    no_direct: bool,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

impl Call {
    pub fn run(&self) -> crate::Result {
        let (entry, request) = self.operation.request();
        let flags = match self.no_direct {
            true => NO_DIRECT,
            false => DIRECT,
        };
        let outcome = Outcome::of(request.call(flags));
        let missing = outcome
            .failure()
            .and_then(|failure| request.missing(failure.errnum));
        // Where there is no such process, the kernel has nothing to say of it.
        let kernel = request.state().ok();
        if self.json {
            let report = json!({
                "operation": entry.kind.name,
                "request": request.to_string(),
                "outcome": outcome.name(),
                "error": outcome.failure().map(Failure::to_json),
                "missing": missing.as_ref().map(Missing::to_json),
                "kernel": kernel.as_ref().map(|state| &state.text),
            });
            println!("{report:#}");
        } else {
            print(request, &outcome, missing.as_ref());
            if let Some(state) = &kernel {
                println!("The kernel says: {}", state.text);
            }
        }
        // A success that the kernel does not confirm is none.
        let confirmed = kernel.is_some_and(|state| state.as_asked);
        Ok(match outcome {
            Outcome::Done if confirmed => ExitCode::SUCCESS,
            Outcome::NotHandled => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

fn print(request: &dyn Request, outcome: &Outcome, missing: Option<&Missing>) {
    match outcome {
        Outcome::Done => println!("Done: {request}"),
        Outcome::NotHandled => println!("Not handled, nothing done: {request}"),
        Outcome::Failed(failure) => {
            eprintln!("virt-internal: {}", failure.message);
            eprintln!("  error: {}, {:?}", failure.code_name(), failure.errnum);
            if let Some(Missing { what, hints, .. }) = missing {
                eprintln!("  needs: {what}");
                for hint in hints {
                    eprintln!("  hint: {hint}");
                }
            }
        }
    }
}
