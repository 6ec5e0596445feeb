// SPDX-License-Identifier: LGPL-2.1-or-later
//! Small files of /proc and cgroupfs, without allocation.
//!
//! The system calls are made without the C library's functions, which are
//! points where threads are cancelled: a cancelled thread would unwind through
//! the library.

use core::ffi::CStr;
use core::fmt::{self, Write};

use libc::c_int;

use crate::errno::Errno;

use super::check;
use super::syscall::syscall;

/// A descriptor, closed when dropped.
pub(crate) struct Fd(c_int);

impl Fd {
    /// # Safety
    /// The descriptor was just made, and is nobody else's.
    pub(crate) unsafe fn new(fd: i64) -> Fd {
        Fd(fd as c_int)
    }

    /// A new one that counts events.
    #[cfg(feature = "delegate")]
    pub(crate) fn event() -> Result<Fd, Errno> {
        // SAFETY: numbers only; the kernel returns a new descriptor.
        unsafe { check(libc::eventfd(0, libc::EFD_CLOEXEC)).map(|fd| Fd::new(fd)) }
    }

    pub(crate) fn get(&self) -> c_int {
        self.0
    }

    /// Whoever takes it closes it.
    pub(crate) fn into_raw(self) -> c_int {
        let fd = self.0;
        core::mem::forget(self);
        fd
    }
}

/// Which file a descriptor is of: no other has it as long as that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: libc::dev_t,
    inode: libc::ino_t,
}

impl Identity {
    pub(crate) fn of(fd: c_int) -> Result<Identity, Errno> {
        // SAFETY: integers, of which all zeros are valid.
        let mut status: libc::stat = unsafe { core::mem::zeroed() };
        // SAFETY: the kernel writes one stat.
        check(unsafe { libc::fstat(fd, &mut status) })?;
        Ok(Identity {
            device: status.st_dev,
            inode: status.st_ino,
        })
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: nobody else's, so nobody uses it.
        let _ = unsafe { syscall(libc::SYS_close, [self.0 as usize, 0, 0, 0]) };
    }
}

/// Opens `name` below `directory`, close-on-exec.
pub(crate) fn open_at(directory: &Fd, name: &CStr, flags: c_int) -> Result<Fd, Errno> {
    open_below(directory.get(), name, flags)
}

/// Opens a path, close-on-exec.
pub(crate) fn open(path: &CStr, flags: c_int) -> Result<Fd, Errno> {
    open_below(libc::AT_FDCWD, path, flags)
}

fn open_below(directory: c_int, name: &CStr, flags: c_int) -> Result<Fd, Errno> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the name is a C string; without O_CREAT there is no mode.
    let fd = check(unsafe { libc::syscall(libc::SYS_openat, directory, name.as_ptr(), flags) })?;
    // SAFETY: just opened.
    Ok(unsafe { Fd::new(fd) })
}

/// Reads at most as much as fits; 0 at the end.
pub(crate) fn read(file: &Fd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let read = check(unsafe {
            libc::syscall(
                libc::SYS_read,
                file.get(),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        });
        match read {
            Err(Errno::EINTR) => {}
            read => return read.map(|length| length as usize),
        }
    }
}

/// Writes all of it in one call, as control files want it.
pub(crate) fn write(file: &Fd, text: &[u8]) -> Result<(), Errno> {
    loop {
        // SAFETY: the kernel reads at most the text's length.
        let written =
            check(unsafe { libc::syscall(libc::SYS_write, file.get(), text.as_ptr(), text.len()) });
        match written {
            Err(Errno::EINTR) => {}
            Ok(length) if length as usize != text.len() => return Err(Errno::EIO),
            written => return written.map(|_| ()),
        }
    }
}

/// A short text, made without allocation: the path of a file in /proc, or the
/// number that a control file takes.
pub(crate) struct Text<const SIZE: usize = 64> {
    length: usize,
    bytes: [u8; SIZE],
}

impl<const SIZE: usize> Text<SIZE> {
    /// The text and a NUL behind it must fit: whoever calls this knows the
    /// longest that can be.
    pub(crate) fn new(text: fmt::Arguments<'_>) -> Self {
        let mut made = Text {
            length: 0,
            bytes: [0; SIZE],
        };
        let fits = made.write_fmt(text).is_ok();
        debug_assert!(fits, "a text of more than {SIZE} bytes");
        made
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

impl<const SIZE: usize> Write for Text<SIZE> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        if end >= SIZE {
            return Err(fmt::Error);
        }
        self.bytes[self.length..end].copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Calls `each` with every number in a file of one number a line, however
/// long the file is.
pub(crate) fn for_each_number(file: &Fd, mut each: impl FnMut(u32)) -> Result<(), Errno> {
    let mut buffer = [0; 4096];
    let mut number = None;
    loop {
        let length = read(file, &mut buffer)?;
        for &byte in &buffer[..length] {
            match byte {
                b'0'..=b'9' => {
                    let digit = u32::from(byte - b'0');
                    number = Some(number.unwrap_or(0_u32).wrapping_mul(10).wrapping_add(digit));
                }
                _ => number.take().into_iter().for_each(&mut each),
            }
        }
        if length == 0 {
            number.into_iter().for_each(each);
            return Ok(());
        }
    }
}
