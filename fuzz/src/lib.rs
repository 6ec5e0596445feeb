// SPDX-License-Identifier: LGPL-2.1-or-later
//! What is done with an input, and what must hold then: for the fuzzer's
//! programs, and for the test that runs through the corpus.

mod client;
mod input;
mod server;
mod sockets;

pub use client::client;
pub use server::server;

/// An input is a policy's text.
pub fn policy(input: &[u8]) {
    use virt_internal::delegate::policy::Policy;
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match Policy::parse(text, "policy.toml") {
        // It can be asked.
        Ok(policy) => {
            let peer = virt_internal::delegate::policy::Peer {
                uid: 107,
                gid: 107,
                cgroup: "/machine.slice/vm",
                label: Some("vm"),
            };
            let quota = policy.quota_for(&peer);
            assert!(quota.connections >= 1 && quota.concurrent >= 1);
            for rule in policy.rules_for(&peer) {
                let _ = rule.permits_target(&peer, "/machine.slice/vm", 107);
                for (_, bounds) in rule.allowed.iter() {
                    let _ = bounds.map(|bounds| bounds.to_string());
                }
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.starts_with("policy.toml:") && text.len() > "policy.toml:1:1: ".len(),
                "an error that says not where, or not what: {text}"
            );
        }
    }
}

/// An input is any part of a message.
pub fn wire(input: &[u8]) {
    virt_internal::delegate::read_anything(input);
}
