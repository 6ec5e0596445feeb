// SPDX-License-Identifier: LGPL-2.1-or-later
//! The shared library, as it was built, keeps what was promised about it. A
//! forgotten `symver!` or linker flag is silent anywhere else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NODE: &str = "LIBVIRT_INTERNAL_UNSTABLE_1";

static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let stage = output(&mut Command::new(format!("{ROOT}/tests/stage")));
    PathBuf::from(stage.trim()).join("lib/libvirt-internal.so")
});

fn output(command: &mut Command) -> String {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the tools write UTF-8")
}

fn readelf(option: &str) -> String {
    output(
        Command::new("readelf")
            .args(["--wide", option])
            .arg(&*LIBRARY),
    )
}

/// The values of one tag of the dynamic section: `(NEEDED) ... [libc.so.6]`.
fn dynamic(tag: &str) -> Vec<String> {
    let tag = format!("({tag})");
    readelf("--dynamic")
        .lines()
        .filter_map(|line| line.split_once(&tag))
        .map(|(_, value)| match value.split_once('[') {
            Some((_, name)) => name.trim_end_matches(']').to_owned(),
            None => value.trim().to_owned(),
        })
        .collect()
}

/// The dynamic symbols: nm's letter, and the name with its version.
fn symbols(which: &str) -> Vec<(char, String)> {
    output(Command::new("nm").args(["-D", which]).arg(&*LIBRARY))
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace().rev();
            let name = words.next().expect("a symbol has a name").to_owned();
            let letter = words.next().and_then(|word| word.chars().next());
            (letter.expect("a symbol has a type"), name)
        })
        .collect()
}

/// What the library exports, with versions. GNU ld also defines the version
/// node itself, as an absolute symbol.
fn exported() -> Vec<String> {
    symbols("--defined-only")
        .into_iter()
        .filter(|(letter, _)| *letter != 'A')
        .map(|(_, name)| name)
        .collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{path}")).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The functions that the symbol map names.
fn mapped() -> BTreeSet<String> {
    read("src/libvirt-internal.map")
        .lines()
        .filter_map(|line| line.trim().strip_suffix(';'))
        .filter(|name| name.starts_with("virInternal"))
        .map(str::to_owned)
        .collect()
}

/// The functions that the header declares: they begin a line, types do not.
fn declared() -> BTreeSet<String> {
    read("include/libvirt/libvirt-internal.h")
        .lines()
        .filter(|line| line.starts_with(char::is_alphabetic) && !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn assert_same(what: &str, found: &BTreeSet<String>, expected: &BTreeSet<String>) {
    assert!(!expected.is_empty(), "no function found to compare with");
    assert!(
        found == expected,
        "{what}\n missing: {:?}\n surplus: {:?}",
        expected.difference(found).collect::<Vec<_>>(),
        found.difference(expected).collect::<Vec<_>>()
    );
}

#[test]
fn the_soname_carries_the_major_version() {
    assert_eq!(dynamic("SONAME"), ["libvirt-internal.so.0"]);
}

#[test]
fn every_exported_symbol_carries_the_version_node() {
    let suffix = format!("@@{NODE}");
    let strays: Vec<_> = exported()
        .into_iter()
        .filter(|name| !name.ends_with(&suffix))
        .collect();
    assert!(strays.is_empty(), "expected {suffix}, found {strays:?}");
}

#[test]
fn what_is_exported_is_what_the_map_names() {
    let found = exported()
        .iter()
        .filter_map(|name| name.split('@').next())
        .map(str::to_owned)
        .collect();
    assert_same("exported, against the map:", &found, &mapped());
}

#[test]
fn what_the_header_declares_is_what_the_map_names() {
    assert_same("declared, against the map:", &declared(), &mapped());
}

#[test]
fn it_is_bound_at_once_and_never_unloaded() {
    let flags = dynamic("FLAGS_1").join(" ");
    for flag in ["NOW", "NODELETE"] {
        assert!(
            flags.split_whitespace().any(|found| found == flag),
            "expected {flag} in FLAGS_1, found {flags:?}"
        );
    }
}

#[test]
fn it_needs_nothing_but_libc_and_libgcc_s() {
    let surplus: Vec<_> = dynamic("NEEDED")
        .into_iter()
        .filter(|name| {
            let loader = name.starts_with("ld-linux") && name.contains(".so");
            !loader && name != "libc.so.6" && name != "libgcc_s.so.1"
        })
        .collect();
    assert!(
        surplus.is_empty(),
        "expected libc, libgcc_s and the loader alone, found {surplus:?} too"
    );
}

#[test]
fn every_undefined_symbol_is_one_of_libc_or_libgcc_s() {
    let strays: Vec<_> = symbols("--undefined-only")
        .into_iter()
        .filter(|(letter, name)| {
            let versioned = name.contains("@GLIBC_") || name.contains("@GCC_");
            // crti's hooks are weak and without a version.
            !versioned && *letter != 'w'
        })
        .collect();
    assert!(
        strays.is_empty(),
        "expected GLIBC_ and GCC_ versions, found {strays:?}"
    );
}

#[test]
fn its_stack_is_not_executable() {
    let segments = readelf("--program-headers");
    let stack = segments
        .lines()
        .find(|line| line.contains("GNU_STACK"))
        .expect("a GNU_STACK segment: without it the stack is executable");
    assert!(
        !stack.contains("RWE"),
        "expected flags RW, found: {stack:?}"
    );
}

#[test]
fn it_has_no_text_relocations() {
    assert_eq!(dynamic("TEXTREL"), [""; 0]);
    let flags = dynamic("FLAGS").join(" ");
    assert!(!flags.contains("TEXTREL"), "found {flags:?}");
}

#[test]
fn it_looks_for_libraries_only_where_the_system_does() {
    assert_eq!(dynamic("RPATH"), [""; 0]);
    assert_eq!(dynamic("RUNPATH"), [""; 0]);
}

#[test]
fn it_is_stripped_and_at_most_350_kib() {
    let sections = readelf("--sections");
    assert!(
        !sections.contains(".symtab") && !sections.contains(".debug_"),
        "expected a stripped library, found:\n{sections}"
    );
    let size = LIBRARY.metadata().expect("it was built").len();
    assert!(
        size <= 350 * 1024,
        "expected at most 358400 bytes, found {size}"
    );
}
