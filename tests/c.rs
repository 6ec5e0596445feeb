// SPDX-License-Identifier: LGPL-2.1-or-later
//! The C tests: `tests/c/run` builds and runs them, which needs a C compiler.

use std::process::{Command, Stdio};

#[test]
fn the_c_tests_pass() {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/c/run");
    let output = Command::new(run)
        .stdin(Stdio::null())
        .output()
        .expect("tests/c/run can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{run}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    // What was not tested here is named, even where cargo captures what the
    // macros print.
    let mut skipped: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("SKIP "))
        .collect();
    skipped.extend(text.lines().last());
    std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("{}\n", skipped.join("\n")).as_bytes(),
    )
    .expect("standard error can be written");
}
