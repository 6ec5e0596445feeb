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
mod demo;
mod host;
mod library;
mod operation;
mod privilege;
mod proc;
mod size;
mod table;
mod target;
mod xml;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// libvirt-internal: delegation of libvirt's privileged operations
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Capabilities(capabilities::Capabilities),
    Call(call::Call),
    #[command(hide = true)]
    Target(target::Arguments),
}

/// What a subcommand returns: the command's exit code.
type Result = std::result::Result<ExitCode, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // As C programs do: `virt-internal demo | head` ends quietly.
    // SAFETY: no handler is set, a default is restored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let result = match Cli::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Capabilities(capabilities) => capabilities.run(),
        Command::Call(call) => call.run(),
        Command::Target(target) => target.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("virt-internal: {error}");
        ExitCode::FAILURE
    })
}
