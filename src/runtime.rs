// SPDX-License-Identifier: LGPL-2.1-or-later
//! What Rust needs in the place of std, which is not linked into the shared
//! library: its panic and backtrace machinery alone is 300 KiB, and its locks
//! and thread-local storage are of no use in forked children.

use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_int;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use crate::foreign;

/// malloc() and free(), as the C program has them.
struct Malloc;

// SAFETY: malloc() returns memory that is the caller's until it is freed.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // What malloc() gives is aligned for every C type.
        match layout.align() <= align_of::<libc::max_align_t>() {
            // SAFETY: any size will do.
            true => unsafe { libc::malloc(layout.size()).cast() },
            // SAFETY: a power of two, and at least a pointer's size.
            false => unsafe { libc::memalign(layout.align(), layout.size()).cast() },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: the caller's word that it came from `alloc`.
        unsafe { libc::free(memory.cast()) };
    }
}

#[global_allocator]
static MALLOC: Malloc = Malloc;

struct StandardError;

impl Write for StandardError {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: write() reads as many bytes as the str has.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
        Ok(())
    }
}

/// A panic is a defect of this library. Going on would be worse.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = write!(
        StandardError,
        "libvirt-internal: a defect of the library: {info}"
    );
    foreign::abort(&[], &[])
}

/// What an unwinder asks when it comes to a frame of this library's: an
/// exception has left a handler. No frame here can be unwound.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> c_int {
    foreign::unwound()
}

// Nobody else's unwinding is this routine's business.
core::arch::global_asm!(".hidden rust_eh_personality");
