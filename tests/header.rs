// SPDX-License-Identifier: LGPL-2.1-or-later
//! The checked-in headers are what the source says, and a C compiler takes them.
//! tests/header/run tries more compilers and dialects, and libvirt's headers.

use std::io::Write;
use std::process::{Command, Output, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const HEADERS: [&str; 2] = ["libvirt-internal.h", "libvirt-internal-delegate.h"];

/// The header of the library, or that of what one with a delegate has besides,
/// which is all in one file.
fn generate(name: &str) -> String {
    let (config, builder) = match name {
        "libvirt-internal.h" => ("cbindgen.toml", cbindgen::Builder::new().with_crate(ROOT)),
        _ => (
            "cbindgen-delegate.toml",
            cbindgen::Builder::new().with_src(format!("{ROOT}/src/capi/server.rs")),
        ),
    };
    let config =
        cbindgen::Config::from_file(format!("{ROOT}/{config}")).expect("its config can be read");
    let mut header = Vec::new();
    builder
        .with_config(config)
        .generate()
        .expect("a header can be generated")
        .write(&mut header);
    let header = String::from_utf8(header).expect("a header is UTF-8");
    // cbindgen adds stars of its own to those of a `/** */` comment.
    header.replace("\n * *", "\n *")
}

#[test]
fn the_headers_are_not_stale() {
    for name in HEADERS {
        let header = format!("{ROOT}/include/libvirt/{name}");
        let generated = generate(name);
        if std::env::var_os("UPDATE_HEADER").is_some() {
            std::fs::write(&header, &generated).expect("the header can be written");
        }
        let checked_in = std::fs::read_to_string(&header).unwrap_or_default();
        assert!(
            generated == checked_in,
            "{header} is stale: run `UPDATE_HEADER=1 cargo test --test header` and commit it"
        );
    }
}

/// Has the C compiler check a program that includes a header.
fn compile(standard: &str, macros: &str, header: &str) -> Output {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut child = Command::new(&compiler)
        .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(["-fsyntax-only", "-x", "c", "-"])
        .arg(format!("-I{ROOT}/include"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    let program = format!("{macros}\n#include <libvirt/{header}>\n");
    let mut input = child.stdin.take().expect("it was piped");
    input
        .write_all(program.as_bytes())
        .expect("the compiler reads");
    drop(input);
    child.wait_with_output().expect("the compiler ends")
}

#[test]
fn the_headers_compile_as_libvirts_dialect_and_as_c11() {
    for header in HEADERS {
        for standard in ["-std=gnu99", "-std=c11"] {
            let output = compile(standard, "#define VIR_INTERNAL_UNSTABLE_API_OPT_IN", header);
            assert!(
                output.status.success(),
                "{header}, {standard}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

#[test]
fn without_the_macro_the_headers_say_what_to_do() {
    for header in HEADERS {
        let output = compile("-std=gnu99", "", header);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success(),
            "expected an error, {header} compiled"
        );
        let advice = format!(
            "define VIR_INTERNAL_UNSTABLE_API_OPT_IN before you include <libvirt/{header}>"
        );
        assert!(
            message.contains(&advice),
            "expected what to do, found: {message}"
        );
    }
}
