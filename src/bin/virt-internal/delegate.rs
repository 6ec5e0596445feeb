// SPDX-License-Identifier: LGPL-2.1-or-later
//! `virt-internal delegate`: does what others may not.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use virt_internal::delegate::policy::Policy;
use virt_internal::delegate::server::{Audit, Server};

use crate::policy;

/// Do operations for unprivileged processes, within a policy
#[derive(Args)]
pub struct Delegate {
    /// Where to listen: unix:/path or fd:NUMBER, and =LABEL behind it for the
    /// name that the policy's rules and audit lines have for it
    #[arg(long, value_name = "ADDRESS[=LABEL]")]
    listen: Vec<String>,
    /// Who may have what done: see docs/policy.md
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Where a line goes for each operation
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Check the policy, and do nothing else
    #[arg(long)]
    check: bool,
    /// Say what the policy has for that peer and operation, and do nothing else
    #[arg(long, num_args = 2, value_names = ["PEER", "OPERATION"])]
    explain: Option<Vec<String>>,
    /// With --explain: what it would be done to
    #[arg(long, value_name = "TARGET", requires = "explain")]
    target: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Delegate {
    pub fn run(&self) -> crate::Result {
        if self.check {
            return policy::check(&self.policy, self.json);
        }
        if let Some([peer, operation]) = self.explain.as_deref() {
            let target = self.target.as_deref();
            return policy::explain(&self.policy, peer, operation, target, self.json);
        }
        let audit = match &self.audit {
            Some(path) => Audit::file(path)?,
            None => Audit::nowhere(),
        };
        raise_files();
        let server = Server::new(Policy::read(&self.policy)?, audit)?;
        for listen in &self.listen {
            let (address, label) = match listen.split_once('=') {
                Some((address, label)) => (address, Some(label)),
                None => (listen.as_str(), None),
            };
            server.listen(address, label)?;
        }
        server.run()?;
        Ok((String::new(), ExitCode::SUCCESS))
    }
}

/// Has as many files as it may: each peer takes some. The soft limit is there
/// for programs that use select().
fn raise_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one rlimit, written and then read; without it there are less.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
