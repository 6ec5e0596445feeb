// SPDX-License-Identifier: LGPL-2.1-or-later
//! The library's C functions, with the types of Rust.

use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use libc::{c_char, c_int, c_uchar, c_uint, c_ulonglong, pid_t, size_t};
use nix::errno::Errno;

pub use virt_internal::capi::cgroup_add_threads::virInternalThreadRole::VIR_INTERNAL_THREAD_VCPU;
use virt_internal::capi::cgroup_add_threads::*;
use virt_internal::capi::error::virInternalGetLastError;
use virt_internal::capi::process_set_affinity::*;
use virt_internal::capi::process_set_max_core_size::*;
use virt_internal::capi::process_set_max_files::*;
use virt_internal::capi::process_set_max_mem_lock::*;
use virt_internal::capi::process_set_max_processes::*;
use virt_internal::capi::process_set_scheduler::*;
pub use virt_internal::capi::types::VIR_INTERNAL_HANDLED;
pub use virt_internal::error::virInternalErrorCode::{self, *};

/// The last error, after a call that returned -1.
#[derive(Debug)]
pub struct Failure {
    pub code: c_int,
    pub errnum: c_int,
    pub message: String,
}

impl Failure {
    /// Fails the test unless it is this error.
    #[track_caller]
    pub fn expect(&self, code: virInternalErrorCode, errnum: Errno) {
        assert!(
            self.code == code as c_int && self.errnum == errnum as c_int,
            "expected {code:?} with {errnum:?}, found {self:?}"
        );
    }
}

pub type Answer = Result<(), Failure>;

fn answer(returned: c_int) -> Answer {
    let errnum = Errno::last_raw();
    if returned == 0 {
        return Ok(());
    }
    assert_eq!(returned, -1, "an operation returns 0 or -1");
    // SAFETY: NULL, or good until the thread's next call.
    let error = unsafe { virInternalGetLastError().as_ref() }.expect("a last error");
    assert_eq!(error.errnum, errnum, "errno, and that of the last error");
    Err(Failure {
        code: error.code,
        errnum,
        // SAFETY: a message is a C string.
        message: unsafe { CStr::from_ptr(error.message) }
            .to_string_lossy()
            .into_owned(),
    })
}

/// A handler is set as long as this lives.
#[must_use]
pub struct Handled<'a> {
    unset: fn() -> c_int,
    work: PhantomData<&'a ()>,
}

impl Drop for Handled<'_> {
    fn drop(&mut self) {
        answer((self.unset)()).expect("a handler can be unset");
    }
}

/// Defines a function that has an operation handled by a closure.
macro_rules! handle {
    ($name:ident, $set:ident, $version:ident, $($argument:ident: $type:ty),*) => {
        pub fn $name<'a, F: Fn($($type),*) -> c_int + 'a>(work: F) -> Handled<'a> {
            unsafe extern "C-unwind" fn handler<F: Fn($($type),*) -> c_int>(
                $($argument: $type,)*
                opaque: *mut c_void,
            ) -> c_int {
                // SAFETY: what the handler is set with below.
                let work = unsafe { &*opaque.cast::<F>() };
                work($($argument),*)
            }
            let opaque = Box::into_raw(Box::new(work)).cast();
            // SAFETY: the closure lives until it is freed by the callback.
            let set = unsafe {
                $set(ptr::null_mut(), $version, Some(handler::<F>), opaque, Some(free::<F>), 0)
            };
            answer(set).expect("a handler can be set");
            Handled {
                // SAFETY: nothing is pointed to.
                unset: || unsafe { $set(ptr::null_mut(), $version, None, ptr::null_mut(), None, 0) },
                work: PhantomData,
            }
        }
    };
}

unsafe extern "C-unwind" fn free<F>(opaque: *mut c_void) {
    // SAFETY: made by Box::into_raw(), and the library frees once.
    drop(unsafe { Box::from_raw(opaque.cast::<F>()) });
}

handle!(
    handle_max_mem_lock,
    virInternalSetProcessSetMaxMemLockHandler,
    VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
    pid: pid_t, bytes: c_ulonglong
);
handle!(
    handle_max_processes,
    virInternalSetProcessSetMaxProcessesHandler,
    VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION,
    pid: pid_t, processes: c_uint
);
handle!(
    handle_max_files,
    virInternalSetProcessSetMaxFilesHandler,
    VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION,
    pid: pid_t, files: c_uint
);
handle!(
    handle_max_core_size,
    virInternalSetProcessSetMaxCoreSizeHandler,
    VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION,
    pid: pid_t, bytes: c_ulonglong
);
handle!(
    handle_scheduler,
    virInternalSetProcessSetSchedulerHandler,
    VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION,
    pid: pid_t, tid: pid_t, policy: c_int, priority: c_int
);
handle!(
    handle_affinity,
    virInternalSetProcessSetAffinityHandler,
    VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION,
    pid: pid_t, tid: pid_t, cpumap: *const c_uchar, maplen: c_int
);
handle!(
    handle_cgroup_add_threads,
    virInternalSetCgroupAddThreadsHandler,
    VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION,
    pid: pid_t, group: *const c_char, role: c_int, tids: *const pid_t, ids: *const c_uint,
    ntids: size_t, cpumap: *const c_uchar, maplen: c_int, results: *mut c_int
);

pub fn set_max_mem_lock(pid: pid_t, bytes: c_ulonglong) -> Answer {
    // SAFETY: numbers only.
    answer(unsafe { virInternalProcessSetMaxMemLock(ptr::null_mut(), pid, bytes, 0) })
}

pub fn set_max_processes(pid: pid_t, processes: c_uint) -> Answer {
    // SAFETY: numbers only.
    answer(unsafe { virInternalProcessSetMaxProcesses(ptr::null_mut(), pid, processes, 0) })
}

pub fn set_max_files(pid: pid_t, files: c_uint) -> Answer {
    // SAFETY: numbers only.
    answer(unsafe { virInternalProcessSetMaxFiles(ptr::null_mut(), pid, files, 0) })
}

pub fn set_max_core_size(pid: pid_t, bytes: c_ulonglong) -> Answer {
    // SAFETY: numbers only.
    answer(unsafe { virInternalProcessSetMaxCoreSize(ptr::null_mut(), pid, bytes, 0) })
}

pub fn set_scheduler(pid: pid_t, tid: pid_t, policy: c_int, priority: c_int) -> Answer {
    // SAFETY: numbers only.
    answer(unsafe {
        virInternalProcessSetScheduler(ptr::null_mut(), pid, tid, policy, priority, 0)
    })
}

pub fn set_affinity(pid: pid_t, tid: pid_t, cpumap: &[u8]) -> Answer {
    let (map, length) = (cpumap.as_ptr(), cpumap.len() as c_int);
    // SAFETY: pointer and length come from a slice.
    answer(unsafe { virInternalProcessSetAffinity(ptr::null_mut(), pid, tid, map, length, 0) })
}

/// Moves vCPU threads; also returns the result of each.
pub fn cgroup_add_threads(pid: pid_t, group: &Path, tids: &[pid_t]) -> (Answer, Vec<c_int>) {
    let group = CString::new(group.as_os_str().as_bytes()).expect("a path has no NUL");
    let mut results = vec![c_int::MIN; tids.len()];
    // SAFETY: pointers and lengths come from slices, and the path is a C
    // string.
    let returned = unsafe {
        virInternalCgroupAddThreads(
            ptr::null_mut(),
            pid,
            group.as_ptr(),
            VIR_INTERNAL_THREAD_VCPU as c_int,
            tids.as_ptr(),
            ptr::null(),
            tids.len(),
            ptr::null(),
            0,
            results.as_mut_ptr(),
            0,
        )
    };
    (answer(returned), results)
}
