// SPDX-License-Identifier: LGPL-2.1-or-later
//! The CPUs that a thread may run on.

use core::fmt;

use libc::c_ulong;

use crate::errno::Errno;

use super::memory;
use super::syscall::syscall;
use crate::capi::process_set_affinity::VIR_INTERNAL_CPUMAP_MAX;
use crate::error::{Error, Result};

/// The longest map: 262144 CPUs, which libvirt calls enough for anyone.
const BYTES_MAX: usize = VIR_INTERNAL_CPUMAP_MAX as usize;

/// The kernel's masks are made of longs.
const LONG: usize = size_of::<c_ulong>();

/// The first size of a mask: glibc's 1024 CPUs.
const BYTES_FIRST: usize = 128;

/// libvirt's map of CPUs: bit `n % 8` of byte `n / 8` is CPU n.
#[derive(Clone, Copy)]
pub(crate) struct CpuMap<'a>(&'a [u8]);

impl<'a> CpuMap<'a> {
    /// # Safety
    /// `map` is NULL or points to `length` bytes that nobody writes for 'a.
    #[inline(always)]
    pub(crate) unsafe fn new(map: *const u8, length: libc::c_int) -> Result<CpuMap<'a>> {
        let bytes = match usize::try_from(length) {
            Ok(bytes @ 1..=BYTES_MAX) => bytes,
            _ => {
                return Err(Error::invalid(format_args!(
                    "maplen {length} is out of range [1, {BYTES_MAX}]"
                )));
            }
        };
        if map.is_null() {
            return Err(Error::invalid(format_args!("cpumap is NULL")));
        }
        // SAFETY: not NULL, and the caller's word for the length.
        let map = unsafe { core::slice::from_raw_parts(map, bytes) };
        if map.iter().all(|&byte| byte == 0) {
            return Err(Error::invalid(format_args!("cpumap names no CPU")));
        }
        Ok(CpuMap(map))
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether each CPU of the kernel's `mask` is one of this map's, and there
    /// is one.
    fn covers(&self, mask: &[u8]) -> bool {
        let (mut has, mut has_other) = (0, 0);
        for start in (0..mask.len()).step_by(LONG) {
            let asked = c_ulong::from_le_bytes(long_at(self.0, start));
            let found = c_ulong::from_ne_bytes(long_at(mask, start));
            has |= found;
            has_other |= found & !asked;
        }
        has != 0 && has_other == 0
    }
}

/// The bytes of a long, zeros where there are none.
#[inline(always)]
fn long_at(bytes: &[u8], start: usize) -> [u8; LONG] {
    let rest = bytes.get(start..).unwrap_or(&[]);
    rest.first_chunk().copied().unwrap_or_else(|| {
        let mut long = [0; LONG];
        long[..rest.len()].copy_from_slice(rest);
        long
    })
}

/// As taskset says it: "0-3,8". What is too long for a message ends in dots.
impl fmt::Display for CpuMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RANGES_MAX: usize = 16;
        let has = |cpu: usize| {
            self.0
                .get(cpu / 8)
                .is_some_and(|byte| byte >> (cpu % 8) & 1 != 0)
        };
        let end = self.0.len() * 8;
        let (mut cpu, mut ranges) = (0, 0);
        while let Some(first) = (cpu..end).find(|&cpu| has(cpu)) {
            let last = (first..end)
                .take_while(|&cpu| has(cpu))
                .last()
                .unwrap_or(first);
            let comma = if ranges == 0 { "CPUs " } else { "," };
            if ranges == RANGES_MAX {
                return f.write_str(",...");
            }
            match last {
                _ if last == first => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
            (cpu, ranges) = (last + 1, ranges + 1);
        }
        match ranges {
            0 => f.write_str("no CPU"),
            _ => Ok(()),
        }
    }
}

/// Where the kernel, which has a mask of longs, keeps byte `index` of a map.
fn in_kernel(index: usize) -> usize {
    match cfg!(target_endian = "big") {
        true => index ^ (LONG - 1),
        false => index,
    }
}

/// Sets the CPUs of a thread.
#[inline(always)]
pub(crate) fn set(tid: libc::pid_t, map: CpuMap<'_>) -> core::result::Result<(), Errno> {
    match cfg!(target_endian = "little").then(|| set_mask(tid, map.0)) {
        Some(Ok(())) => Ok(()),
        Some(Err(errnum)) if errnum != Errno::EINVAL => Err(errnum),
        _ => set_widened(tid, map),
    }
}

#[inline(always)]
fn set_mask(tid: libc::pid_t, mask: &[u8]) -> core::result::Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the mask has, at any address.
    unsafe {
        syscall(
            libc::SYS_sched_setaffinity,
            [tid as usize, mask.len(), mask.as_ptr() as usize, 0],
        )
    }
    .map(|_| ())
}

/// There is no way to ask for the size of the kernel's mask but to try, and
/// to widen on EINVAL: up to four times, as libvirt's virProcessSetAffinity.
#[cold]
#[inline(never)]
fn set_widened(tid: libc::pid_t, map: CpuMap<'_>) -> core::result::Result<(), Errno> {
    let mut widest = Widest::new()?;
    let mask = widest.as_mut();
    for (index, &byte) in map.0.iter().enumerate() {
        mask[in_kernel(index)] = byte;
    }
    sizes(map.0.len())
        .map(|size| set_mask(tid, &mask[..size]))
        .find(|set| *set != Err(Errno::EINVAL))
        .unwrap_or(Err(Errno::EINVAL))
}

/// The widest mask, all zeros. It is mapped: a thread's stack may be smaller,
/// and a forked child must not allocate.
struct Widest(*mut [u8; BYTES_MAX]);

impl Widest {
    fn new() -> core::result::Result<Widest, Errno> {
        memory::map(BYTES_MAX).map(|mapping| Widest(mapping.cast()))
    }

    fn as_mut(&mut self) -> &mut [u8; BYTES_MAX] {
        // SAFETY: as large as that, zeroed, and reached through `self` only.
        unsafe { &mut *self.0 }
    }
}

impl Drop for Widest {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference is left.
        unsafe { memory::unmap(self.0.cast(), BYTES_MAX) };
    }
}

/// The sizes to try for a map of `length` bytes.
fn sizes(length: usize) -> impl Iterator<Item = usize> {
    core::iter::successors(Some(BYTES_FIRST), |size| Some(size * 4))
        .take_while(|size| *size <= BYTES_MAX)
        .filter(move |size| *size >= length)
}

/// Whether the thread's CPUs are a non-empty subset of the map: a cpuset may
/// have narrowed them.
#[inline(always)]
pub(crate) fn is_within(tid: libc::pid_t, map: CpuMap<'_>) -> core::result::Result<bool, Errno> {
    match get_mask(tid, &mut [0; BYTES_FIRST]) {
        Ok(mask) => Ok(map.covers(mask)),
        Err(Errno::EINVAL) => is_within_widened(tid, map),
        Err(errnum) => Err(errnum),
    }
}

/// The kernel takes a mask that is larger than its own, but none that is
/// smaller.
#[cold]
#[inline(never)]
fn is_within_widened(tid: libc::pid_t, map: CpuMap<'_>) -> core::result::Result<bool, Errno> {
    let mut widest = Widest::new()?;
    get_mask(tid, widest.as_mut()).map(|mask| map.covers(mask))
}

/// The CPUs of a thread, as libvirt's map.
#[cfg(feature = "delegate")]
pub(crate) fn get(tid: libc::pid_t) -> core::result::Result<alloc::vec::Vec<u8>, Errno> {
    let mut widest = Widest::new()?;
    let mask = get_mask(tid, widest.as_mut())?;
    Ok((0..mask.len())
        .map(|index| mask[in_kernel(index)])
        .collect())
}

/// The CPUs of a thread, in the kernel's order of bytes, in as much of
/// `buffer` as the kernel fills.
#[inline(always)]
fn get_mask(tid: libc::pid_t, buffer: &mut [u8]) -> core::result::Result<&[u8], Errno> {
    // SAFETY: the kernel writes at most the buffer's length. (The system call
    // says how many bytes it wrote; glibc's wrapper does not.)
    let length = unsafe {
        syscall(
            libc::SYS_sched_getaffinity,
            [tid as usize, buffer.len(), buffer.as_mut_ptr() as usize, 0],
        )
    }?;
    Ok(&buffer[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(map: &[u8], mask: &[u8]) -> bool {
        CpuMap(map).covers(mask)
    }

    #[test]
    fn a_subset_that_is_not_empty_is_what_was_asked_for() {
        assert!(covers(&[0b0110], &[0b0110]));
        assert!(covers(&[0b0110], &[0b0010]));
        assert!(covers(&[0b0110], &[0b0010, 0, 0]));
        assert!(covers(&[0, 1, 0], &[0, 1]));
        assert!(!covers(&[0b0110], &[0]));
        assert!(!covers(&[0b0110], &[0b0111]));
        assert!(!covers(&[0b0110], &[0b0010, 1]));
    }

    #[test]
    fn a_mask_is_widened_up_to_four_times_and_never_cuts_the_map() {
        let sizes = |length| super::sizes(length).collect::<Vec<_>>();
        assert_eq!(sizes(1), [128, 512, 2048, 8192, 32768]);
        assert_eq!(sizes(129), [512, 2048, 8192, 32768]);
        assert_eq!(sizes(BYTES_MAX), [32768]);
    }
}
