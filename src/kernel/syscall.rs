// SPDX-License-Identifier: LGPL-2.1-or-later
//! System calls without a function of the C library around them, for where
//! nanoseconds count.
//!
//! After the kernel has run, a processor predicts the returns from functions
//! badly: where this was measured, each one that followed a system call cost
//! 30 ns and more. And errno is left alone.

use crate::errno::Errno;

/// The result that the kernel encodes in what it returns.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn decode(returned: isize) -> Result<usize, Errno> {
    match returned {
        -4095..=-1 => Err(Errno(-returned as libc::c_int)),
        value => Ok(value as usize),
    }
}

/// # Safety
/// The kernel does what it is told: its pointers must be good.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn syscall(number: libc::c_long, arguments: [usize; 4]) -> Result<usize, Errno> {
    let [first, second, third, fourth] = arguments;
    let returned: isize;
    // SAFETY: the kernel's convention; it changes no other register.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => returned,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    decode(returned)
}

/// # Safety
/// The kernel does what it is told: its pointers must be good.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) unsafe fn syscall(number: libc::c_long, arguments: [usize; 4]) -> Result<usize, Errno> {
    let [first, second, third, fourth] = arguments;
    let returned: isize;
    // SAFETY: the kernel's convention; it changes no other register.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") first => returned,
            in("x1") second,
            in("x2") third,
            in("x3") fourth,
            options(nostack, preserves_flags),
        );
    }
    decode(returned)
}

/// # Safety
/// The kernel does what it is told: its pointers must be good.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) unsafe fn syscall(number: libc::c_long, arguments: [usize; 4]) -> Result<usize, Errno> {
    let [first, second, third, fourth] = arguments;
    // SAFETY: the caller's word.
    match unsafe { libc::syscall(number, first, second, third, fourth) } {
        -1 => Err(Errno::last()),
        value => Ok(value as usize),
    }
}
