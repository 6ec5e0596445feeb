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
    /// The packet was longer than the buffers, had more descriptors than there
    /// is room for, or something else besides.
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
    let mut places = received.descriptors.iter_mut();
    // SAFETY: the kernel has written control messages of `msg_controllen` bytes
    // in all, each as long as its header says. Descriptors in them are ours from
    // now on.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while let Some(&libc::cmsghdr {
            cmsg_len: length,
            cmsg_level: level,
            cmsg_type: kind,
            ..
        }) = header.as_ref()
        {
            // Whoever gave the socket may have asked for more than descriptors.
            received.cut |= (level, kind) != (libc::SOL_SOCKET, libc::SCM_RIGHTS);
            if level == libc::SOL_SOCKET && matches!(kind, libc::SCM_RIGHTS | SCM_PIDFD) {
                let count = (length - control_length(0)) / size_of::<c_int>();
                let numbers = libc::CMSG_DATA(header).cast::<c_int>();
                for index in 0..count {
                    let fd = Fd::new(numbers.add(index).read().into());
                    match places.next() {
                        Some(place) => *place = Some(fd),
                        None => received.cut = true,
                    }
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok(received)
}

/// Descriptors that the kernel itself adds.
#[cfg(feature = "delegate")]
const SCM_PIDFD: c_int = 4;

/// Has the kernel add nothing to packets that are received. Systemd, say, has an
/// option for each (`PassCredentials=`).
#[cfg(feature = "delegate")]
pub(crate) fn receive_nothing_besides(socket: c_int) {
    const SO_PASSPIDFD: c_int = 76;
    let options = [
        libc::SO_PASSCRED,
        libc::SO_PASSSEC,
        SO_PASSPIDFD,
        libc::SO_TIMESTAMP,
    ];
    for option in options {
        // What the kernel does not know, it does not add.
        let _ = set_option::<c_int>(socket, option, &0);
    }
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

#[cfg(all(test, feature = "delegate"))]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    fn pair() -> [OwnedFd; 2] {
        let mut pair = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: two ints to write.
        let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: just made.
        pair.map(|fd| unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
    }

    fn received(from: &OwnedFd) -> Received {
        let mut buffer = [0; 16];
        // SAFETY: a slice that nobody else uses.
        let received = unsafe { receive(from.as_raw_fd(), &[slice_mut(&mut buffer)], 0) };
        received.expect("a packet")
    }

    #[test]
    fn only_descriptors_that_were_sent_are_taken_for_descriptors() {
        // Also pidfds, which begin a message's control data where others end.
        for option in [libc::SO_PASSCRED, libc::SO_TIMESTAMP, 76] {
            let [near, far] = pair();
            if set_option::<c_int>(near.as_raw_fd(), option, &1).is_err() {
                assert_eq!(option, 76, "Linux 6.5 has it, all others are older");
                continue;
            }
            // SAFETY: a slice.
            unsafe { send(far.as_raw_fd(), &[slice(b"x")], &[], 0) }.expect("room");
            let got = received(&near);
            assert!(got.cut, "option {option}: nobody expects that");
            let count = got.descriptors.iter().flatten().count();
            assert_eq!(count, usize::from(option == 76), "option {option}");
            drop(got);
            receive_nothing_besides(near.as_raw_fd());
            // SAFETY: a slice, and a descriptor that is open.
            unsafe { send(far.as_raw_fd(), &[slice(b"x")], &[far.as_raw_fd()], 0) }.expect("room");
            let got = received(&near);
            assert!(!got.cut, "option {option} was reset");
            assert!(matches!(got.descriptors, [Some(_), None, ..]));
        }
    }

    #[test]
    fn what_has_too_many_descriptors_is_cut() {
        let [near, far] = pair();
        // SAFETY: all zeros are valid.
        let mut control: [u64; 16] = [0; 16];
        // SAFETY: as above.
        let mut message: libc::msghdr = unsafe { zeroed() };
        let mut data = slice(b"x");
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        let many = [far.as_raw_fd(); ROOM + 2];
        message.msg_controllen = control_length(many.len()).next_multiple_of(8) as _;
        // SAFETY: there is room for a header and that many ints.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = control_length(many.len()) as _;
            libc::CMSG_DATA(header)
                .cast::<[c_int; ROOM + 2]>()
                .write(many);
            assert_eq!(libc::sendmsg(far.as_raw_fd(), &message, 0), 1);
        }
        assert!(received(&near).cut);
    }
}
