// SPDX-License-Identifier: LGPL-2.1-or-later
//! What calls cost from Rust: `cargo bench`. Beside the raw system calls, from
//! C and in one run: `benches/run`.

#![allow(missing_docs)] // of what criterion_group! makes

use std::ffi::c_void;
use std::hint::black_box;
use std::ptr;

use criterion::{Criterion, criterion_group, criterion_main};
use virt_internal::capi::process_set_affinity::virInternalProcessSetAffinity;
use virt_internal::capi::process_set_max_core_size::*;
use virt_internal::capi::process_set_scheduler::virInternalProcessSetScheduler;

const EVERY_CONNECTION: *mut virt_internal::capi::types::_virConnect = ptr::null_mut();
const BATCH: i32 = 1;

/// The limit is what was asked for already: what is measured is the way there.
unsafe extern "C-unwind" fn handler(pid: libc::pid_t, bytes: u64, _: *mut c_void) -> i32 {
    black_box((pid, bytes));
    0
}

fn set(handler: virInternalSetMaxCoreSizeHandler) {
    let version = VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION;
    // SAFETY: the handler needs no opaque.
    let set = unsafe {
        virInternalSetProcessSetMaxCoreSizeHandler(
            EVERY_CONNECTION,
            version,
            handler,
            ptr::null_mut(),
            None,
            0,
        )
    };
    assert_eq!(set, 0);
}

fn set_core_size(pid: libc::pid_t) {
    // SAFETY: numbers only.
    let result = unsafe { virInternalProcessSetMaxCoreSize(EVERY_CONNECTION, pid, 0, 0) };
    assert_eq!(result, 0);
}

fn operations(criterion: &mut Criterion) {
    let pid = std::process::id() as libc::pid_t;
    let mut cpus = [0_u8; 128];
    // SAFETY: the kernel writes at most as many bytes.
    let length = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            pid,
            cpus.len(),
            cpus.as_mut_ptr(),
        )
    };
    let cpus = &cpus[..usize::try_from(length).expect("the CPUs can be read")];

    let mut direct = criterion.benchmark_group("direct");
    direct.bench_function("SetMaxCoreSize", |bench| bench.iter(|| set_core_size(pid)));
    direct.bench_function("SetScheduler", |bench| {
        bench.iter(|| {
            // SAFETY: numbers only.
            unsafe { virInternalProcessSetScheduler(EVERY_CONNECTION, pid, pid, BATCH, 0, 0) }
        });
    });
    direct.bench_function("SetAffinity", |bench| {
        bench.iter(|| {
            // SAFETY: the map is as long as it says.
            unsafe {
                virInternalProcessSetAffinity(
                    EVERY_CONNECTION,
                    pid,
                    pid,
                    cpus.as_ptr(),
                    cpus.len() as i32,
                    0,
                )
            }
        });
    });
    direct.finish();

    let mut handled = criterion.benchmark_group("handler");
    set(Some(handler));
    handled.bench_function("SetMaxCoreSize", |bench| bench.iter(|| set_core_size(pid)));
    handled.bench_function("set and unset", |bench| {
        bench.iter(|| {
            set(Some(handler));
            set(None);
        });
    });
    handled.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
