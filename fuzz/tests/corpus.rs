// SPDX-License-Identifier: LGPL-2.1-or-later
//! Every input of the corpus, and every one that once failed, holds what
//! fuzzing checks.

use std::fs;
use std::path::Path;

fn each(target: &str, run: fn(&[u8])) {
    let mut inputs = 0;
    for directory in ["corpus", "regressions"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(directory)
            .join(target);
        let Ok(entries) = fs::read_dir(&path) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("an entry").path();
            println!("{}", path.display());
            run(&fs::read(&path).expect("an input"));
            inputs += 1;
        }
    }
    assert!(inputs > 0, "there is no input for {target}");
}

// One test: the checks count the descriptors of the whole process.
#[test]
fn every_input_holds_what_fuzzing_checks() {
    each("wire", libvirt_internal_fuzz::wire);
    each("policy", libvirt_internal_fuzz::policy);
    each("server", libvirt_internal_fuzz::server);
    each("client", libvirt_internal_fuzz::client);
}
