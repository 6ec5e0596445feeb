// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal call`: one operation by hand.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::library::{DIRECT, Failure, NO_DIRECT, Outcome};
use crate::operation::Arguments;
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
        let text = if self.json {
            let report = json!({
                "operation": entry.kind.name,
                "request": request.to_string(),
                "outcome": outcome.name(),
                "error": outcome.failure().map(Failure::to_json),
                "missing": missing.as_ref().map(Missing::to_json),
                "kernel": kernel.as_ref().map(|state| &state.text),
            });
            format!("{report:#}\n")
        } else {
            if let Outcome::Failed(failure) = &outcome {
                crate::complain(&describe(failure, missing.as_ref()));
            }
            let done = match &outcome {
                Outcome::Done => format!("Done: {request}\n"),
                Outcome::NotHandled => format!("Not handled, nothing done: {request}\n"),
                Outcome::Failed(_) => String::new(),
            };
            let kernel = kernel.as_ref();
            let kernel = kernel.map(|state| format!("The kernel says: {}\n", state.text));
            done + &kernel.unwrap_or_default()
        };
        // A success that the kernel does not confirm is none.
        let confirmed = kernel.is_some_and(|state| state.as_asked);
        let exit_code = match outcome {
            Outcome::Done if confirmed => ExitCode::SUCCESS,
            Outcome::NotHandled => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
        Ok((text, exit_code))
    }
}

fn describe(failure: &Failure, missing: Option<&Missing>) -> String {
    let mut text = format!("virt-internal: {}\n", failure.message);
    text += &format!("  error: {}, {:?}\n", failure.code_name(), failure.errnum);
    if let Some(Missing { what, hints, .. }) = missing {
        text += &format!("  needs: {what}\n");
        for hint in hints {
            text += &format!("  hint: {hint}\n");
        }
    }
    text
}
