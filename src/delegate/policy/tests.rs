// SPDX-License-Identifier: LGPL-2.1-or-later
use super::*;

const EXAMPLE: &str = include_str!("../../../docs/examples/policy.toml");

fn example() -> Policy {
    Policy::parse(EXAMPLE, "policy.toml").unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_example_is_a_policy() {
    let policy = example();
    let names: Vec<&str> = policy.rules.iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["virt-launcher", "libvirtd"]);
}
