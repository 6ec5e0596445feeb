// SPDX-License-Identifier: LGPL-2.1-or-later
//! The checked-in header is what the source says, and a C compiler takes it.
//! tests/header/run tries more compilers and dialects, and libvirt's headers.

use std::io::Write;
use std::process::{Command, Output, Stdio};

const HEADER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/include/libvirt/libvirt-internal.h"
);

fn generate() -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let config = cbindgen::Config::from_file(format!("{root}/cbindgen.toml"))
        .expect("cbindgen.toml can be read");
    let mut header = Vec::new();
    cbindgen::Builder::new()
        .with_crate(root)
        .with_config(config)
        .generate()
        .expect("a header can be generated")
        .write(&mut header);
    let header = String::from_utf8(header).expect("a header is UTF-8");
    // cbindgen adds stars of its own to those of a `/** */` comment.
    header.replace("\n * *", "\n *")
}

#[test]
fn the_header_is_not_stale() {
    let generated = generate();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(HEADER, &generated).expect("the header can be written");
    }
    let checked_in = std::fs::read_to_string(HEADER).unwrap_or_default();
    assert!(
        generated == checked_in,
        "{HEADER} is stale: run `UPDATE_HEADER=1 cargo test --test header` and commit it"
    );
}

/// Has the C compiler check a program that includes the header.
fn compile(standard: &str, macros: &str) -> Output {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut child = Command::new(&compiler)
        .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(["-fsyntax-only", "-x", "c", "-"])
        .arg(format!("-I{}/include", env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    let program = format!("{macros}\n#include <libvirt/libvirt-internal.h>\n");
    let mut input = child.stdin.take().expect("it was piped");
    input
        .write_all(program.as_bytes())
        .expect("the compiler reads");
    drop(input);
    child.wait_with_output().expect("the compiler ends")
}

#[test]
fn the_header_compiles_as_libvirts_dialect_and_as_c11() {
    for standard in ["-std=gnu99", "-std=c11"] {
        let output = compile(standard, "#define VIR_INTERNAL_UNSTABLE_API_OPT_IN");
        assert!(
            output.status.success(),
            "{standard}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn without_the_macro_the_header_says_what_to_do() {
    let output = compile("-std=gnu99", "");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "expected an error, it compiled");
    assert!(
        message.contains("define VIR_INTERNAL_UNSTABLE_API_OPT_IN before you include"),
        "expected what to do, found: {message}"
    );
}
