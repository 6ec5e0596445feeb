// SPDX-License-Identifier: LGPL-2.1-or-later
//! Sockets, and how many descriptors there are.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A pair that is connected.
pub fn pair() -> [OwnedFd; 2] {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: two ints to write.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    assert_eq!(made, 0, "socketpair: {}", io::Error::last_os_error());
    // SAFETY: just made.
    pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a packet; whether it could be sent without waiting.
pub fn send(socket: &OwnedFd, packet: &[u8], descriptors: &[i32]) -> bool {
    let mut control = [0_u64; 8];
    let mut iov = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    let size = size_of_val(descriptors) as u32;
    // SAFETY: a message of one slice, and a control message with room for
    // more descriptors than are ever sent.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        if size > 0 {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size) as _;
            assert!(message.msg_controllen as usize <= size_of_val(&control));
            let first = libc::CMSG_FIRSTHDR(&message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size) as _;
            let data = libc::CMSG_DATA(first).cast::<i32>();
            std::ptr::copy_nonoverlapping(descriptors.as_ptr(), data, descriptors.len());
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(socket.as_raw_fd(), &message, flags) >= 0
    }
}

/// Receives a packet; `None` at the end.
pub fn receive(socket: &OwnedFd, flags: i32) -> Option<Vec<u8>> {
    let mut packet = vec![0; 33000];
    loop {
        // SAFETY: a buffer of that length.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                flags,
            )
        };
        match length {
            0 => return None,
            -1 => match io::Error::last_os_error().raw_os_error() {
                // It was closed with data unread; what it said comes after.
                Some(libc::ECONNRESET) => {}
                errnum => panic!("neither a packet nor the end: {errnum:?}"),
            },
            length => {
                packet.truncate(length as usize);
                return Some(packet);
            }
        }
    }
}

/// No more can be sent.
pub fn end(socket: &OwnedFd) {
    // SAFETY: numbers only.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// How many descriptors this process has.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("/proc/self/fd")
        .count()
}
