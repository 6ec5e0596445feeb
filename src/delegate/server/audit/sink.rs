// SPDX-License-Identifier: LGPL-2.1-or-later
//! Files and streams that lines are written to, each by one call.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::delegate::socket;

/// A file that is only ever appended to.
pub(super) struct Appended {
    file: File,
    /// The last line was cut short: the next one begins a new one.
    torn: AtomicBool,
}

impl Appended {
    pub(super) fn new(file: File) -> Appended {
        Appended {
            file,
            torn: AtomicBool::new(false),
        }
    }

    pub(super) fn append(&self, line: &str) -> io::Result<()> {
        if self.torn.swap(false, Ordering::Relaxed) {
            return self.put(&format!("\n{line}"));
        }
        self.put(line)
    }

    fn put(&self, line: &str) -> io::Result<()> {
        let written = loop {
            match (&self.file).write(line.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => break written,
            }
        };
        match written {
            Ok(length) if length == line.len() => Ok(()),
            // A disk that is full, or a FIFO.
            Ok(length) => {
                self.torn
                    .store(length > 0 || line.starts_with('\n'), Ordering::Relaxed);
                Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    "there was room for a part of a line only",
                ))
            }
            Err(error) => {
                // What was torn still is.
                if line.starts_with('\n') {
                    self.torn.store(true, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }
}

/// A pipe, a terminal or the like: whoever reads it may have stopped reading.
pub(super) struct Stream(Mutex<Appended>);

/// How long a line waits for whoever reads the stream.
const PATIENCE_MS: libc::c_int = 200;

impl Stream {
    pub(super) fn new(file: File) -> Stream {
        Stream(Mutex::new(Appended::new(file)))
    }

    pub(super) fn append(&self, line: &str) -> io::Result<()> {
        // The flags of the descriptor are somebody else's, too, so it may be
        // one that blocks. A pipe that is ready has room for 4096 bytes.
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = socket::wait(stream.file.as_raw_fd(), libc::POLLOUT, PATIENCE_MS);
        match ready {
            Ok(true) => stream.append(line),
            Ok(false) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "nobody reads the lines",
            )),
            Err(errnum) => Err(io::Error::from_raw_os_error(errnum.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_stream_that_nobody_reads_loses_lines_and_holds_up_nobody() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let stream = Stream::new(File::from(OwnedFd::from(writer)));
        let line = format!("{}\n", "x".repeat(4095));
        let mut written = 0;
        let lost = loop {
            match stream.append(&line) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(lost.kind(), io::ErrorKind::TimedOut, "{lost}");
        assert!(written > 0, "there is room for a line");
        let mut buffer = [0; 4096];
        reader.read_exact(&mut buffer).expect("a line");
        stream.append(&line).expect("room for a line again");
    }

    #[test]
    fn after_a_line_that_was_cut_short_comes_a_new_one() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        // SAFETY: numbers only.
        let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        let file = Appended::new(File::from(OwnedFd::from(writer)));
        let long = "x".repeat(1 << 20);
        let error = file.append(&long).expect_err("it does not fit");
        assert_eq!(error.kind(), io::ErrorKind::WriteZero, "{error}");
        file.append("full\n").expect_err("there is no room at all");
        let mut rest = vec![0; 1 << 20];
        let length = reader.read(&mut rest).expect("what was written");
        assert!(rest[..length].iter().all(|byte| *byte == b'x'));
        // A pipe gives room by whole pages: all was read.
        file.append("whole\n").expect("there is room again");
        let length = reader.read(&mut rest).expect("what was written");
        assert_eq!(&rest[..length], b"\nwhole\n");
    }
}
