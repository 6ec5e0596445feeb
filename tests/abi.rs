// SPDX-License-Identifier: LGPL-2.1-or-later
//! The shared libraries, as they were built, keep what was promised about them.
//! A forgotten `symver!` or linker flag is silent anywhere else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NODE: &str = "LIBVIRT_INTERNAL_UNSTABLE_1";

/// A kind of library that is installed.
struct Library {
    file: PathBuf,
    /// What it exports, and where that is declared.
    maps: &'static [&'static str],
    headers: &'static [&'static str],
    /// The most KiB that it may have.
    size: u64,
}

/// The library, and the one that can run a delegate.
static LIBRARIES: LazyLock<[Library; 2]> = LazyLock::new(|| {
    let staged = |options: &[&str]| {
        let stage = output(Command::new(format!("{ROOT}/tests/stage")).args(options));
        PathBuf::from(stage.trim()).join("lib/libvirt-internal.so")
    };
    [
        Library {
            file: staged(&[]),
            maps: &["libvirt-internal.map"],
            headers: &["libvirt-internal.h"],
            size: 350,
        },
        Library {
            file: staged(&["--with-delegate"]),
            maps: &["libvirt-internal.map", "libvirt-internal-delegate.map"],
            headers: &["libvirt-internal.h", "libvirt-internal-delegate.h"],
            size: 1280,
        },
    ]
});

/// Checks each, and says which one it is that fails.
fn for_each_library(check: impl Fn(&Library)) {
    for library in &*LIBRARIES {
        eprintln!("{}:", library.file.display());
        check(library);
    }
}

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

impl Library {
    fn readelf(&self, option: &str) -> String {
        output(
            Command::new("readelf")
                .args(["--wide", option])
                .arg(&self.file),
        )
    }

    /// The values of one tag of the dynamic section: `(NEEDED) ... [libc.so.6]`.
    fn dynamic(&self, tag: &str) -> Vec<String> {
        let tag = format!("({tag})");
        self.readelf("--dynamic")
            .lines()
            .filter_map(|line| line.split_once(&tag))
            .map(|(_, value)| match value.split_once('[') {
                Some((_, name)) => name.trim_end_matches(']').to_owned(),
                None => value.trim().to_owned(),
            })
            .collect()
    }

    /// The dynamic symbols: nm's letter, and the name with its version.
    fn symbols(&self, which: &str) -> Vec<(char, String)> {
        output(Command::new("nm").args(["-D", which]).arg(&self.file))
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
    fn exported(&self) -> Vec<String> {
        self.symbols("--defined-only")
            .into_iter()
            .filter(|(letter, _)| *letter != 'A')
            .map(|(_, name)| name)
            .collect()
    }

    /// The functions that its symbol maps name.
    fn mapped(&self) -> BTreeSet<String> {
        read_all("src", self.maps)
            .lines()
            .filter_map(|line| line.trim().strip_suffix(';'))
            .filter(|name| name.starts_with("virInternal"))
            .map(str::to_owned)
            .collect()
    }

    /// The functions that its headers declare: they begin a line, types do not.
    fn declared(&self) -> BTreeSet<String> {
        read_all("include/libvirt", self.headers)
            .lines()
            .filter(|line| line.starts_with(char::is_alphabetic) && !line.starts_with("typedef"))
            .filter_map(|line| line.split_once('('))
            .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
            .map(str::to_owned)
            .collect()
    }
}

fn read_all(directory: &str, names: &[&str]) -> String {
    let read = |name: &&str| {
        let path = format!("{ROOT}/{directory}/{name}");
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    names.iter().map(read).collect()
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
    for_each_library(|library| {
        assert_eq!(library.dynamic("SONAME"), ["libvirt-internal.so.0"]);
    });
}

#[test]
fn every_exported_symbol_carries_the_version_node() {
    for_each_library(|library| {
        let suffix = format!("@@{NODE}");
        let strays: Vec<_> = library
            .exported()
            .into_iter()
            .filter(|name| !name.ends_with(&suffix))
            .collect();
        assert!(strays.is_empty(), "expected {suffix}, found {strays:?}");
    });
}

#[test]
fn what_is_exported_is_what_the_maps_name() {
    for_each_library(|library| {
        let found = library
            .exported()
            .iter()
            .filter_map(|name| name.split('@').next())
            .map(str::to_owned)
            .collect();
        assert_same("exported, against the maps:", &found, &library.mapped());
    });
}

#[test]
fn what_the_headers_declare_is_what_the_maps_name() {
    for_each_library(|library| {
        assert_same(
            "declared, against the maps:",
            &library.declared(),
            &library.mapped(),
        );
    });
}

#[test]
fn it_is_bound_at_once_and_never_unloaded() {
    for_each_library(|library| {
        let flags = library.dynamic("FLAGS_1").join(" ");
        for flag in ["NOW", "NODELETE"] {
            assert!(
                flags.split_whitespace().any(|found| found == flag),
                "expected {flag} in FLAGS_1, found {flags:?}"
            );
        }
    });
}

#[test]
fn it_needs_nothing_but_libc_and_libgcc_s() {
    for_each_library(|library| {
        let surplus: Vec<_> = library
            .dynamic("NEEDED")
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
    });
}

#[test]
fn every_undefined_symbol_is_one_of_libc_or_libgcc_s() {
    for_each_library(|library| {
        let strays: Vec<_> = library
            .symbols("--undefined-only")
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
    });
}

#[test]
fn its_stack_is_not_executable() {
    for_each_library(|library| {
        let segments = library.readelf("--program-headers");
        let stack = segments
            .lines()
            .find(|line| line.contains("GNU_STACK"))
            .expect("a GNU_STACK segment: without it the stack is executable");
        assert!(
            !stack.contains("RWE"),
            "expected flags RW, found: {stack:?}"
        );
    });
}

#[test]
fn it_has_no_text_relocations() {
    for_each_library(|library| {
        assert_eq!(library.dynamic("TEXTREL"), [""; 0]);
        let flags = library.dynamic("FLAGS").join(" ");
        assert!(!flags.contains("TEXTREL"), "found {flags:?}");
    });
}

#[test]
fn it_looks_for_libraries_only_where_the_system_does() {
    for_each_library(|library| {
        assert_eq!(library.dynamic("RPATH"), [""; 0]);
        assert_eq!(library.dynamic("RUNPATH"), [""; 0]);
    });
}

#[test]
fn it_is_stripped_and_within_its_size() {
    for_each_library(|library| {
        let sections = library.readelf("--sections");
        assert!(
            !sections.contains(".symtab") && !sections.contains(".debug_"),
            "expected a stripped library, found:\n{sections}"
        );
        let size = library.file.metadata().expect("it was built").len();
        assert!(
            size <= library.size * 1024,
            "expected at most {} KiB, found {size} bytes",
            library.size
        );
    });
}
