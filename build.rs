// SPDX-License-Identifier: LGPL-2.1-or-later
//! Gives the shared library its soname, its version node and the promise
//! that it is never unloaded (its thread-local storage would dangle).

fn main() {
    let map = "src/libvirt-internal.map";
    println!("cargo:rerun-if-changed={map}");
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for argument in [
        "-Wl,-soname,libvirt-internal.so.0".to_owned(),
        "-Wl,-z,nodelete,-z,now,-z,defs".to_owned(),
        format!("-Wl,--version-script={root}/{map}"),
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
