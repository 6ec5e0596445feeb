// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal`: libvirt-internal by hand, and what it can do here.
//!
//! It goes the way of a C caller, through the exported functions, and reads
//! the kernel's state on its own.

#![warn(missing_docs)]

mod call;
mod capabilities;
mod cgroup;
mod cpus;
mod delegate;
mod demo;
mod host;
mod library;
mod operation;
mod policy;
mod privilege;
mod proc;
mod size;
mod table;
mod target;
mod xml;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::errno::Errno;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed, or done in part, or (demo) not as promised; 2
wrong usage";

/// libvirt-internal: delegation of libvirt's privileged operations
#[derive(Parser)]
#[command(name = "virt-internal", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Capabilities(capabilities::Capabilities),
    Call(call::Call),
    Delegate(delegate::Delegate),
    #[command(hide = true)]
    Target(target::Arguments),
}

/// Arguments that make no sense, which are found after they were parsed.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What a subcommand returns: its text for standard output, and the command's
/// exit code.
type Result = std::result::Result<(String, ExitCode), Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // As C programs do: `virt-internal demo | head` ends quietly.
    // SAFETY: no handler is set, a default is restored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and versions are such errors too.
        Err(error) => return written(error.print(), ExitCode::from(error.exit_code() as u8)),
    };
    let result = match cli.command {
        Command::Demo(demo) => demo.run(),
        Command::Capabilities(capabilities) => capabilities.run(),
        Command::Call(call) => call.run(),
        Command::Delegate(delegate) => delegate.run(),
        Command::Target(target) => target.run(),
    };
    match result {
        Ok((text, exit_code)) => written(write(&text), exit_code),
        Err(error) => {
            complain(&format!("virt-internal: {error}\n"));
            match error.is::<Usage>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The exit code of a command whose text could be written, or could not.
fn written(result: io::Result<()>, exit_code: ExitCode) -> ExitCode {
    let Err(error) = result else {
        return exit_code;
    };
    let why = match error.raw_os_error() {
        Some(errnum) => Errno::from_raw(errnum).desc().to_owned(),
        None => error.to_string(),
    };
    complain(&format!("virt-internal: cannot write: {why}\n"));
    ExitCode::FAILURE
}

/// Writes to standard error. Where that fails, nobody can be told.
fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
