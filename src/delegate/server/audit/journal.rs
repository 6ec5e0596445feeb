// SPDX-License-Identifier: LGPL-2.1-or-later
//! systemd's journal, by its native protocol: a datagram of fields.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use super::Line;

/// The journal's socket.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

/// How long an entry waits for a journal that is busy.
const PATIENCE: Duration = Duration::from_millis(200);

/// What all entries of the delegate have.
const IDENTIFIER: &str = "virt-internal-delegate";

impl Journal {
    pub(super) fn new(path: PathBuf) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // Tells at once when there is none. It is not kept: the journal may be
        // restarted.
        UnixDatagram::unbound()?.connect(&path)?;
        Ok(Journal { socket, path })
    }

    /// Sends one entry.
    pub(super) fn send(&self, record: &impl Line, json: &str) -> io::Result<()> {
        let entry = entry(record, json);
        match self.socket.send_to(&entry, &self.path) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => self.send_large(&entry),
            sent => sent.map(|_| ()),
        }
    }

    /// What is too large for a datagram goes in a file without a name that
    /// nobody can change any more.
    fn send_large(&self, entry: &[u8]) -> io::Result<()> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: a C string; the kernel returns a new descriptor.
        let mut file = unsafe {
            match libc::memfd_create(c"virt-internal-audit".as_ptr(), flags) {
                -1 => return Err(io::Error::last_os_error()),
                fd => File::from_raw_fd(fd),
            }
        };
        file.write_all(entry)?;
        let seals =
            libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: numbers only.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect(&self.path)?;
        // SAFETY: no buffers.
        unsafe { crate::delegate::socket::send(socket.as_raw_fd(), &[], &[file.as_raw_fd()], 0) }
            .map_err(|errnum| io::Error::from_raw_os_error(errnum.0))
    }
}

fn entry(record: &impl Line, json: &str) -> Vec<u8> {
    let mut entry = Vec::with_capacity(1024 + json.len());
    let mut value = String::new();
    let mut put = |name: &str, text: std::fmt::Arguments<'_>| {
        value.clear();
        // A String takes everything.
        let _ = std::fmt::Write::write_fmt(&mut value, text);
        entry.extend_from_slice(name.as_bytes());
        // A text with a newline has its length before it, so that it cannot
        // pass for another field.
        match value.contains('\n') {
            false => entry.push(b'='),
            true => {
                entry.push(b'\n');
                entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
            }
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    };
    record.fields(&mut put);
    put("SYSLOG_IDENTIFIER", format_args!("{IDENTIFIER}"));
    put("VIRT_INTERNAL_JSON", format_args!("{json}"));
    entry
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::delegate::socket;

    struct Text(String);

    impl Line for Text {
        fn write(&self, _: &mut String) -> fmt::Result {
            Ok(())
        }

        fn fields(&self, field: &mut dyn FnMut(&str, fmt::Arguments<'_>)) {
            field("MESSAGE", format_args!("{}", self.0));
        }
    }

    #[test]
    fn a_newline_does_not_begin_another_field() {
        let entry = entry(&Text("a\nPRIORITY=0".into()), "{}");
        let mut expected = b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n".to_vec();
        expected.extend_from_slice(b"SYSLOG_IDENTIFIER=virt-internal-delegate\n");
        expected.extend_from_slice(b"VIRT_INTERNAL_JSON={}\n");
        assert_eq!(
            String::from_utf8_lossy(&entry),
            String::from_utf8_lossy(&expected)
        );
    }

    #[test]
    fn an_entry_that_is_too_large_for_a_datagram_goes_in_a_sealed_file() {
        let path =
            std::env::temp_dir().join(format!("virt-internal-journal-{}", std::process::id()));
        // One that was killed, and had the same pid, may have left it.
        let _ = std::fs::remove_file(&path);
        let receiver = UnixDatagram::bind(&path).expect("a socket");
        let journal = Journal::new(path.clone()).expect("the socket is there");
        let large = "x".repeat(4 << 20);
        let sent = journal.send(&Text(large.clone()), "{}");
        std::fs::remove_file(&path).expect("the socket's file");
        sent.expect("it can be sent");
        let mut nothing = [0; 16];
        let buffers = [socket::slice_mut(&mut nothing)];
        // SAFETY: a slice that nobody else uses.
        let received = unsafe { socket::receive(receiver.as_raw_fd(), &buffers, 0) };
        let received = received.expect("a datagram");
        assert_eq!(received.length, 0);
        let [Some(file), ..] = received.descriptors else {
            panic!("there is no descriptor");
        };
        // SAFETY: given away.
        let mut file = unsafe { File::from_raw_fd(file.into_raw()) };
        let mut entry = String::new();
        file.rewind().expect("a file");
        file.read_to_string(&mut entry).expect("a text");
        assert!(entry.starts_with(&format!("MESSAGE={large}\nSYSLOG_IDENTIFIER=")));
        file.write_all(b"x").expect_err("nobody can change it");
    }
}
