// SPDX-License-Identifier: LGPL-2.1-or-later
//! Packets and descriptors over a Unix SOCK_SEQPACKET socket, without
//! allocation and without a point where threads are cancelled.

use core::cell::Cell;
use core::mem::{size_of, zeroed};

use libc::c_int;

use super::wire::DESCRIPTORS_MAX;
use crate::errno::Errno;
use crate::kernel::check;
use crate::kernel::file::Fd;
use crate::kernel::syscall::syscall;

/// The kernel gives descriptors in a control message of this size. There is
/// room for one more than a message can have: then it has too many.
const ROOM: usize = DESCRIPTORS_MAX + 1;

#[repr(C, align(8))]
struct Control {
    header: libc::cmsghdr,
    descriptors: [c_int; ROOM + 1],
}

fn control_length(count: usize) -> usize {
    size_of::<libc::cmsghdr>() + count * size_of::<c_int>()
}

/// A buffer of a message that is sent.
pub(crate) fn slice(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// A buffer of a message that is received.
pub(crate) fn slice_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// As [`slice_mut`], for what others may read as well.
pub(crate) fn slice_of_cells<T: Copy>(cells: &[Cell<T>]) -> libc::iovec {
    libc::iovec {
        iov_base: cells.as_ptr().cast_mut().cast(),
        iov_len: size_of_val(cells),
    }
}

/// Sends one packet.
///
/// # Safety
/// The buffers can be read.
pub(crate) unsafe fn send(
    socket: c_int,
    buffers: &[libc::iovec],
    descriptors: &[c_int],
    flags: c_int,
) -> Result<(), Errno> {
    // SAFETY: integers, of which all zeros are valid.
    let mut control: Control = unsafe { zeroed() };
    // SAFETY: as above.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len() as _;
    if !descriptors.is_empty() {
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.header.cmsg_len = control_length(descriptors.len()) as _;
        control.descriptors[..descriptors.len()].copy_from_slice(descriptors);
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = control.header.cmsg_len.next_multiple_of(8) as _;
    }
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the message names the buffers, by the caller's word, and a
    // control message that lives until the call returns.
    unsafe {
        syscall(
            libc::SYS_sendmsg,
            [
                socket as usize,
                &raw const message as usize,
                flags as usize,
                0,
            ],
        )
    }
    .map(|_| ())
}

/// What came with a packet.
#[cfg(feature = "delegate")]
pub(crate) struct Received {
    pub(crate) length: usize,
    /// The packet was longer than the buffers, or had more descriptors than
    /// there is room for.
    pub(crate) cut: bool,
    pub(crate) descriptors: [Option<Fd>; ROOM],
}

/// Receives one packet; its length is 0 at the end of the connection.
///
/// # Safety
/// The buffers can be written.
#[cfg(feature = "delegate")]
pub(crate) unsafe fn receive(
    socket: c_int,
    buffers: &[libc::iovec],
    flags: c_int,
) -> Result<Received, Errno> {
    let mut control = core::mem::MaybeUninit::<Control>::uninit();
    // SAFETY: integers, of which all zeros are valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len() as _;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control_length(ROOM) as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: as above; the kernel writes no more control than there is room.
    let length = unsafe {
        syscall(
            libc::SYS_recvmsg,
            [
                socket as usize,
                &raw mut message as usize,
                flags as usize,
                0,
            ],
        )
    }?;
    let mut received = Received {
        length,
        cut: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        descriptors: [const { None }; ROOM],
    };
    if message.msg_controllen as usize >= size_of::<libc::cmsghdr>() {
        // SAFETY: the kernel has written at least a header, and behind it as
        // many descriptors as the header says, which are ours from now on. No
        // option is set that would make it write anything else.
        unsafe {
            let control = control.as_ptr();
            let length = (*control).header.cmsg_len;
            let count = length.saturating_sub(size_of::<libc::cmsghdr>()) / size_of::<c_int>();
            for (index, fd) in received.descriptors.iter_mut().take(count).enumerate() {
                let number = (&raw const (*control).descriptors)
                    .cast::<c_int>()
                    .add(index);
                *fd = Some(Fd::new(number.read().into()));
            }
        }
    }
    Ok(received)
}

/// Waits until `events` can be had of the socket, or the time is over. `false`:
/// it is over.
pub(crate) fn wait(socket: c_int, events: i16, milliseconds: c_int) -> Result<bool, Errno> {
    let mut poll = libc::pollfd {
        fd: socket,
        events,
        revents: 0,
    };
    let time = libc::timespec {
        tv_sec: (milliseconds / 1000).into(),
        tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
    };
    // SAFETY: one pollfd, a time, no signal mask.
    let ready = unsafe {
        syscall(
            libc::SYS_ppoll,
            [&raw mut poll as usize, 1, &raw const time as usize, 0],
        )
    }?;
    Ok(ready > 0)
}

/// A new socket, close-on-exec.
pub(crate) fn open(flags: c_int) -> Result<Fd, Errno> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | flags;
    // SAFETY: numbers only; the kernel returns a new descriptor.
    unsafe { check(libc::socket(libc::AF_UNIX, kind, 0)).map(|fd| Fd::new(fd)) }
}

/// An option of a socket.
pub(crate) fn option<T: Copy>(socket: c_int, option: c_int) -> Result<T, Errno> {
    // SAFETY: integers, of which all zeros are valid.
    let mut value: T = unsafe { zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes as the value has.
    let got = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    };
    check(got).map(|_| value)
}

/// Sets an option of a socket.
pub(crate) fn set_option<T: Copy>(socket: c_int, option: c_int, value: &T) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the value has.
    let set = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(set).map(|_| ())
}
