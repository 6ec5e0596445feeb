// SPDX-License-Identifier: LGPL-2.1-or-later
//! Files and streams that lines are written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::delegate::socket;
use crate::errno::Errno;

/// A file that is only ever appended to, each line by one call.
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
        if !self.torn.swap(false, Ordering::Relaxed) {
            return self.put(line, false);
        }
        self.put(&format!("\n{line}"), true)
    }

    /// What was torn still is, unless something is written.
    fn put(&self, line: &str, was_torn: bool) -> io::Result<()> {
        let written = loop {
            match (&self.file).write(line.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => break written,
            }
        };
        let length = *written.as_ref().unwrap_or(&0);
        if length == line.len() {
            return Ok(());
        }
        self.torn.store(was_torn || length > 0, Ordering::Relaxed);
        // A disk that is full.
        written.and_then(|_| Err(partly()))
    }

    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Relaxed)
    }

    pub(super) fn continue_torn(&self) {
        self.torn.store(true, Ordering::Relaxed);
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

fn partly() -> io::Error {
    io::Error::new(
        io::ErrorKind::WriteZero,
        "there was room for a part of a line only",
    )
}

/// A pipe, a terminal or the like: whoever reads it may have stopped reading.
pub(super) struct Stream {
    file: File,
    way: Way,
    state: Mutex<State>,
}

/// How to write without waiting. The flags of a descriptor that was given are
/// somebody else's, too.
enum Way {
    /// It is our own, with O_NONBLOCK.
    Plain,
    Socket,
    /// It may be one that blocks. A pipe that is ready has room for so many
    /// bytes.
    Ready,
}

/// PIPE_BUF.
const ROOM: usize = 4096;

#[derive(Default)]
struct State {
    /// The last line was cut short.
    torn: bool,
    /// One has waited in vain: no other one waits before there is room.
    stalled: bool,
}

/// How long a line waits for whoever reads the stream.
const PATIENCE: Duration = Duration::from_millis(200);

impl Stream {
    /// One that was given, whose flags stay what they are.
    pub(super) fn given(file: File) -> Stream {
        let is_socket = (file.metadata()).is_ok_and(|status| status.file_type().is_socket());
        // Opened anew it has flags of its own.
        let own = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        match own {
            _ if is_socket => Stream::new(file, Way::Socket),
            Ok(own) => Stream::new(own, Way::Plain),
            // Another user's.
            Err(_) => Stream::new(file, Way::Ready),
        }
    }

    /// One that was opened with O_NONBLOCK.
    pub(super) fn own(file: File) -> Stream {
        Stream::new(file, Way::Plain)
    }

    fn new(file: File, way: Way) -> Stream {
        Stream {
            file,
            way,
            state: Mutex::default(),
        }
    }

    pub(super) fn append(&self, line: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let end = Instant::now() + PATIENCE;
        if state.torn {
            self.write_all(b"\n", end, state)?;
            state.torn = false;
        }
        self.write_all(line.as_bytes(), end, state)
    }

    fn write_all(&self, mut bytes: &[u8], end: Instant, state: &mut State) -> io::Result<()> {
        let whole = bytes.len();
        while !bytes.is_empty() {
            let failed = match self.write(bytes) {
                Ok(length) => {
                    state.stalled = false;
                    bytes = &bytes[length..];
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let left = end.saturating_duration_since(Instant::now());
            let is_full = failed.kind() == io::ErrorKind::WouldBlock;
            if is_full && !state.stalled && !left.is_zero() {
                let milliseconds = left.as_millis() as libc::c_int + 1;
                match socket::wait(self.file.as_raw_fd(), libc::POLLOUT, milliseconds) {
                    Ok(_) | Err(Errno::EINTR) => continue,
                    Err(errnum) => return Err(io::Error::from_raw_os_error(errnum.0)),
                }
            }
            state.stalled = is_full;
            state.torn |= bytes.len() < whole;
            return Err(match is_full {
                true => io::Error::new(io::ErrorKind::TimedOut, "nobody reads the lines"),
                false => failed,
            });
        }
        Ok(())
    }

    /// As much as there is room for now.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let fd = self.file.as_raw_fd();
        match self.way {
            Way::Plain => (&self.file).write(bytes),
            Way::Socket => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: a slice.
                match unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) } {
                    -1 => Err(io::Error::last_os_error()),
                    length => Ok(length as usize),
                }
            }
            Way::Ready => match socket::wait(fd, libc::POLLOUT, 0) {
                Ok(true) => (&self.file).write(&bytes[..bytes.len().min(ROOM)]),
                Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
                Err(errnum) => Err(io::Error::from_raw_os_error(errnum.0)),
            },
        }
    }

    pub(super) fn is_torn(&self) -> bool {
        let state = self.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).torn
    }

    pub(super) fn continue_torn(&self) {
        let state = self.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).torn = true;
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Whether both are of the same file.
pub(super) fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| {
        let status = file.metadata().ok()?;
        Some((status.dev(), status.ino()))
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// The signals by which the kernel ends who writes where nobody reads, or more
/// than a file may have. An error says it, too.
const SIGNALS: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];

/// Has a thread get none of them, whosever it is.
pub(super) fn without_signals(write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: sets of signals that are made here, of this thread alone.
    unsafe {
        let mut blocked = std::mem::zeroed();
        libc::sigemptyset(&mut blocked);
        for signal in SIGNALS {
            libc::sigaddset(&mut blocked, signal);
        }
        let mut before = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, &mut before);
        // What waits already is somebody else's.
        let mut waiting: libc::sigset_t = std::mem::zeroed();
        if SIGNALS
            .iter()
            .any(|signal| libc::sigismember(&before, *signal) == 1)
        {
            libc::sigpending(&mut waiting);
        }
        for signal in SIGNALS {
            if libc::sigismember(&waiting, signal) == 1 {
                libc::sigdelset(&mut blocked, signal);
            }
        }
        let written = write();
        if written.is_err() {
            let now = std::mem::zeroed();
            while libc::sigtimedwait(&blocked, std::ptr::null_mut(), &now) > 0 {}
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        written
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
        let stream = Stream::given(File::from(OwnedFd::from(writer)));
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

    #[test]
    fn a_line_longer_than_a_page_holds_up_nobody_whatever_the_flags_are() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let writer = File::from(OwnedFd::from(writer));
        let shared = writer.try_clone().expect("a copy");
        for stream in [
            Stream::given(writer),
            Stream::new(shared.try_clone().expect("a copy"), Way::Ready),
        ] {
            let long = format!("{}\n", "x".repeat(3 << 16));
            let start = Instant::now();
            let error = stream.append(&long).expect_err("it does not fit");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            // One has waited for all of them.
            for _ in 0..1000 {
                stream.append("full\n").expect_err("there is no room");
            }
            let time = start.elapsed();
            assert!(time < Duration::from_secs(60), "{time:?}");
            // SAFETY: asks for a number.
            let flags = unsafe { libc::fcntl(shared.as_raw_fd(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0, "the flags are somebody else's");
            let mut rest = vec![0; 3 << 16];
            let length = reader.read(&mut rest).expect("what was written");
            assert!(rest[..length].iter().all(|byte| *byte == b'x'));
            stream.append("whole\n").expect("there is room again");
            let length = reader.read(&mut rest).expect("what was written");
            assert_eq!(&rest[..length], b"\nwhole\n");
        }
    }
}
