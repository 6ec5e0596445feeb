// SPDX-License-Identifier: LGPL-2.1-or-later
//! The checked-in header is what the source says.

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
    String::from_utf8(header).expect("a header is UTF-8")
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
