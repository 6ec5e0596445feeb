// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal call`: one operation by hand.

use std::process::ExitCode;

use clap::Args;
use libc::pid_t;
use nix::errno::Errno;
use serde_json::json;

use crate::complain;
use crate::library::{DIRECT, Failure, NO_DIRECT, Outcome};
use crate::operation::{Arguments, Request};
use crate::privilege::Missing;

pub const EXIT_CODES: &str = "\
Exit codes: 0 done, or not handled as --no-direct wants it; 1 failed, or done
for some of the threads only; 2 wrong usage";

/// What became of one of several threads.
type ThreadResult = Result<(), Errno>;

/// Do one operation on a process or thread
///
/// It is done by the delegate that the environment names
/// (LIBVIRT_INTERNAL_DELEGATE=unix:/path), without one directly.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Call {
    #[command(subcommand)]
    operation: Arguments,
    /// Forbid the direct way (VIR_INTERNAL_NO_DIRECT): where no delegate is
    /// asked, it is not handled and nothing is done, since this command sets no
    /// handler
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
            .filter(|failure| !failure.is_of_delegate())
            .and_then(|failure| request.missing(failure.errnum));
        let threads = threads(request, &outcome);
        let not_done: Vec<(pid_t, Errno)> = threads
            .iter()
            .flatten()
            .filter_map(|(tid, result)| Some((*tid, result.err()?)))
            .collect();
        let result = match (not_done.len(), &threads) {
            (0, _) => outcome.name(),
            (count, Some(threads)) if count < threads.len() => "partly",
            _ => "failed",
        };
        // Where there is no such process, the kernel has nothing to say of it.
        let kernel = request.state().ok();
        // A success that the kernel does not confirm is none.
        let confirmed = kernel.as_ref().is_some_and(|state| state.as_asked);
        let note = match result {
            "done" => request.note(),
            _ => None,
        };
        let text = if self.json {
            let thread = |(tid, result): &(pid_t, ThreadResult)| {
                let errno = result.err().map(|errnum| format!("{errnum:?}"));
                json!({ "tid": tid, "errno": errno })
            };
            let threads = threads.map(|threads| threads.iter().map(thread).collect::<Vec<_>>());
            let report = json!({
                "operation": entry.kind.name,
                "request": request.to_string(),
                "outcome": result,
                "threads": threads,
                "error": outcome.failure().map(Failure::to_json),
                "missing": missing.as_ref().map(Missing::to_json),
                "asked_values": request.asked_values(),
                "kernel": kernel.as_ref().map(|state| &state.text),
                "kernel_values": kernel.as_ref().map(|state| &state.values),
                "as_asked": confirmed,
                "note": note,
            });
            format!("{report:#}\n")
        } else {
            if let Outcome::Failed(failure) = &outcome {
                complain(&describe(failure, missing.as_ref()));
            }
            for (tid, errnum) in not_done {
                complain(&match errnum {
                    Errno::ESRCH => format!("virt-internal: thread {tid}: has exited (ESRCH)\n"),
                    _ => format!(
                        "virt-internal: thread {tid}: {} ({errnum:?})\n",
                        errnum.desc()
                    ),
                });
            }
            if result == "done" && !confirmed {
                complain("virt-internal: done, but the kernel does not confirm it\n");
            }
            let done = match result {
                "done" => format!("Done: {request}\n"),
                "partly" => format!("Partly done: {request}\n"),
                "not-handled" => format!("Not handled, nothing done: {request}\n"),
                _ => String::new(),
            };
            let kernel = kernel.as_ref();
            let kernel = kernel.map(|state| format!("The kernel says: {}\n", state.text));
            let note = note.map(|note| format!("Note: {note}\n"));
            done + &kernel.unwrap_or_default() + &note.unwrap_or_default()
        };
        let exit_code = match result {
            "done" if confirmed => ExitCode::SUCCESS,
            "not-handled" => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
        Ok((text, exit_code))
    }
}

/// What the library says of each thread, as far as it got to them.
fn threads(request: &dyn Request, outcome: &Outcome) -> Option<Vec<(pid_t, ThreadResult)>> {
    let threads = request.threads();
    let got_to_them = match outcome {
        Outcome::Done => !threads.is_empty(),
        Outcome::NotHandled => false,
        // A thread that has exited is no failure of the whole.
        Outcome::Failed(_) => threads
            .iter()
            .any(|(_, result)| result.is_err_and(|errnum| errnum != Errno::ESRCH)),
    };
    got_to_them.then_some(threads)
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
