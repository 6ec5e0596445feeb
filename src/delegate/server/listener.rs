// SPDX-License-Identifier: LGPL-2.1-or-later
//! The sockets that peers connect to.

use std::ffi::CString;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_int;

use super::connection::allow_descriptors;
use crate::delegate::address::Address;
use crate::delegate::policy::check_label;
use crate::delegate::socket;
use crate::errno::Errno;
use crate::kernel::check;
use crate::kernel::file::Fd;
use crate::kernel::syscall::syscall;

/// A socket that listens.
pub(super) struct Listener {
    /// Its address, as it was given.
    pub(super) name: String,
    pub(super) label: Option<String>,
    socket: Fd,
    closed: AtomicBool,
    /// The file that was made for it, with its device and inode.
    file: Option<(PathBuf, (u64, u64))>,
}

/// How many connections may wait to be accepted.
const BACKLOG: c_int = 512;

fn io_error(errnum: Errno) -> io::Error {
    io::Error::from_raw_os_error(errnum.0)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl Listener {
    /// Listens on `unix:/path`, where every user may connect: who may have
    /// what done is the policy's business. Or on a copy of `fd:NUMBER`.
    pub(super) fn open(address: &str, label: Option<&str>) -> io::Result<Listener> {
        label.map_or(Ok(()), check_label).map_err(invalid)?;
        let text = CString::new(address).map_err(|_| invalid("a NUL in an address".into()))?;
        let parsed = Address::parse(&text).map_err(|_| invalid(crate::thread::own_message()))?;
        match parsed {
            Address::Unix(path) => {
                let (sockaddr, length) = path.as_sockaddr();
                let path = PathBuf::from(&address["unix:".len()..]);
                remove_stale(&path)?;
                let socket = socket::open(0).map_err(io_error)?;
                let length = length as libc::socklen_t;
                // SAFETY: an address of that length.
                check(unsafe { libc::bind(socket.get(), sockaddr.cast(), length) })
                    .map_err(io_error)?;
                let identity = open_to_all(&path)?;
                let file = Some((path, identity));
                // SAFETY: numbers only.
                check(unsafe { libc::listen(socket.get(), BACKLOG) }).map_err(io_error)?;
                Listener::new(socket, address, label, file)
            }
            Address::Descriptor(fd) => {
                // SAFETY: a number; the kernel says if it is no descriptor.
                let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) });
                // SAFETY: just made.
                let copy = unsafe { OwnedFd::from_raw_fd(copy.map_err(io_error)? as c_int) };
                Listener::adopt(copy, address, label)
            }
            Address::Invalid => Err(invalid(format!("{address} is no address"))),
        }
    }

    /// Takes over a socket that listens.
    pub(super) fn adopt(socket: OwnedFd, name: &str, label: Option<&str>) -> io::Result<Listener> {
        label.map_or(Ok(()), check_label).map_err(invalid)?;
        for (option, wanted, what) in [
            (libc::SO_DOMAIN, libc::AF_UNIX, "is not a Unix socket"),
            (
                libc::SO_TYPE,
                libc::SOCK_SEQPACKET,
                "is not a SOCK_SEQPACKET socket",
            ),
            (libc::SO_ACCEPTCONN, 1, "does not listen"),
        ] {
            let mut value: c_int = 0;
            let mut length = size_of::<c_int>() as libc::socklen_t;
            // SAFETY: the kernel writes one int.
            check(unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw mut value).cast(),
                    &mut length,
                )
            })
            .map_err(io_error)?;
            if value != wanted {
                return Err(invalid(format!("{name} {what}")));
            }
        }
        // SAFETY: given away by its owner.
        let socket = unsafe { Fd::new(socket.into_raw_fd().into()) };
        Listener::new(socket, name, label, None)
    }

    fn new(
        socket: Fd,
        name: &str,
        label: Option<&str>,
        file: Option<(PathBuf, (u64, u64))>,
    ) -> io::Result<Listener> {
        // SAFETY: numbers only.
        unsafe {
            check(libc::fcntl(socket.get(), libc::F_SETFL, libc::O_NONBLOCK)).map_err(io_error)?;
            check(libc::fcntl(socket.get(), libc::F_SETFD, libc::FD_CLOEXEC)).map_err(io_error)?;
        }
        // Connections have it from here: nothing can be sent along before a
        // thread of the peer's own is there to close it. Before Linux 6.16
        // that cannot be had.
        let _ = allow_descriptors(&socket, false);
        Ok(Listener {
            name: name.to_owned(),
            label: label.map(str::to_owned),
            socket,
            closed: AtomicBool::new(false),
            file,
        })
    }

    /// Takes no more connections, at once: its address can be had again. A
    /// socket that was taken over is also that of whoever gave it.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if self.file.is_some() {
            // SAFETY: numbers only.
            unsafe { libc::shutdown(self.socket.get(), libc::SHUT_RDWR) };
            self.remove_file();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn remove_file(&self) {
        // Another delegate may have made a new one.
        if let Some((path, identity)) = &self.file
            && fs::symlink_metadata(path)
                .is_ok_and(|status| (status.dev(), status.ino()) == *identity)
        {
            let _ = fs::remove_file(path);
        }
    }

    /// A connection that waits, if there is one.
    pub(super) fn accept(&self) -> Option<Fd> {
        loop {
            let flags = libc::SOCK_CLOEXEC as usize;
            // SAFETY: no address is asked for; the kernel returns a new
            // descriptor.
            let accepted = unsafe {
                syscall(libc::SYS_accept4, [self.socket.get() as usize, 0, 0, flags])
                    .map(|fd| Fd::new(fd as i64))
            };
            match accepted {
                Ok(socket) => return Some(socket),
                Err(Errno::EINTR) => {}
                // It was closed meanwhile.
                Err(Errno::EAGAIN | Errno::EINVAL) => return None,
                Err(_) => {
                    // No descriptors left, maybe: others end.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    return None;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Once: there may be another socket by now, with the same inode.
        if !self.is_closed() {
            self.remove_file();
        }
    }
}

/// Lets everybody connect to a socket that was just made. Its device and inode.
/// Whoever can write in that directory may have put something else there: not
/// that, nor what it links to, is changed.
fn open_to_all(path: &Path) -> io::Result<(u64, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let status = file.metadata()?;
    // SAFETY: asks for a number.
    let own = unsafe { libc::geteuid() };
    if !status.file_type().is_socket() || status.uid() != own || status.nlink() != 1 {
        let path = path.display();
        return Err(io::Error::other(format!(
            "{path} is not the socket that was made there: somebody else writes in that directory"
        )));
    }
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(place, Permissions::from_mode(0o666))?;
    Ok((status.dev(), status.ino()))
}

/// Removes the file of a delegate that is no more: a socket that nobody
/// listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(status) if status.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is not a socket", path.display()),
            ));
        }
    }
    let probe = socket::open(libc::SOCK_NONBLOCK).map_err(io_error)?;
    let text = CString::new(format!("unix:{}", path.display()))?;
    let Ok(Address::Unix(address)) = Address::parse(&text) else {
        return Ok(());
    };
    let (address, length) = address.as_sockaddr();
    // SAFETY: an address of that length.
    let connected =
        check(unsafe { libc::connect(probe.get(), address.cast(), length as libc::socklen_t) });
    match connected {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("somebody listens on {} already", path.display()),
        )),
    }
}

/// Waits until a listener has a connection, or `wake` was written to. Those
/// that have one.
pub(super) fn wait<'l>(listeners: &'l [Arc<Listener>], wake: &Fd) -> io::Result<Vec<&'l Listener>> {
    let poll = |fd: &Fd| libc::pollfd {
        fd: fd.get(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls: Vec<_> = listeners
        .iter()
        .map(|listener| poll(&listener.socket))
        .collect();
    polls.push(poll(wake));
    // SAFETY: as many pollfds as that.
    let ready = check(unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) });
    match ready {
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(errnum) => return Err(io_error(errnum)),
        Ok(_) => {}
    }
    if polls[listeners.len()].revents != 0 {
        let _ = crate::kernel::file::read(wake, &mut [0; 8]);
    }
    let ready = listeners.iter().zip(&polls);
    Ok(ready
        .filter(|(_, poll)| poll.revents != 0)
        .map(|(listener, _)| &**listener)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_no_listener_stays_open() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let address = format!("fd:{}", one.as_raw_fd());
        let failed = Listener::open(&address, None)
            .err()
            .expect("it does not listen");
        assert_eq!(failed.kind(), io::ErrorKind::InvalidInput, "{failed}");
        // SAFETY: asks for a number.
        let flags = unsafe { libc::fcntl(one.as_raw_fd(), libc::F_GETFD) };
        assert_ne!(flags, -1, "it was closed");
    }

    #[test]
    fn a_label_that_no_rule_could_name_is_none() {
        let path = std::env::temp_dir().join(format!("virt-internal-l-{}", std::process::id()));
        let address = format!("unix:{}", path.display());
        for label in ["", "a\nb", &"l".repeat(256)] {
            let failed = Listener::open(&address, Some(label)).err().expect(label);
            assert_eq!(failed.kind(), io::ErrorKind::InvalidInput, "{failed}");
            assert!(!path.exists(), "{label:?}: a socket was made");
        }
        let longest = "l".repeat(255);
        drop(Listener::open(&address, Some(&longest)).expect("it is good"));
    }
}
