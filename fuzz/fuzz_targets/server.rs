// SPDX-License-Identifier: LGPL-2.1-or-later
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| libvirt_internal_fuzz::server(input));
