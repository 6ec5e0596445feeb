// SPDX-License-Identifier: LGPL-2.1-or-later
//! The counters, over HTTP or into a file.
//!
//! One thread serves all who ask, and each has a deadline: nobody can hold up
//! another, or take more than a little memory.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use virt_internal::delegate::server::Server;

use super::say;

/// Where the counters can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    File(PathBuf),
}

impl Address {
    pub fn parse(text: &str) -> Result<Address, String> {
        let absolute = |path: &str| match path.starts_with('/') {
            true => Ok(PathBuf::from(path)),
            false => Err(format!("{path:?} is no absolute path")),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return absolute(path).map(Address::Unix);
        }
        if let Some(path) = text.strip_prefix("file:") {
            return absolute(path).map(Address::File);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Address::Tcp(address)),
            Ok(_) => Err("only this machine may ask: 127.0.0.1:PORT or [::1]:PORT".to_owned()),
            Err(_) => {
                Err("expected unix:/path, 127.0.0.1:PORT, [::1]:PORT or file:/path".to_owned())
            }
        }
    }
}

/// The counters, where they can be had.
pub struct Metrics {
    counters: Arc<Counters>,
    place: Place,
}

enum Place {
    Socket(Option<PathBuf>),
    File(PathBuf, Mutex<Written>),
}

/// What became of writing a file.
struct Written {
    due: Instant,
    has_failed: bool,
}

/// The server's and our own.
struct Counters {
    server: Server,
    reloads: [AtomicU64; 2],
}

/// How often a file is written.
const INTERVAL: Duration = Duration::from_secs(15);

impl Metrics {
    pub fn start(address: &Address, server: &Server) -> Result<Metrics, String> {
        let counters = Arc::new(Counters {
            server: server.clone(),
            reloads: Default::default(),
        });
        let wrong = |shown: &dyn std::fmt::Display, error: io::Error| {
            format!("cannot serve metrics at {shown}: {error}")
        };
        let place = match address {
            Address::Unix(path) => {
                let shown = path.display();
                let listener = bind(path).map_err(|error| wrong(&shown, error))?;
                serve(Listener::Unix(listener), &counters).map_err(|error| wrong(&shown, error))?;
                say(format_args!("metrics at unix:{shown}"));
                Place::Socket(Some(path.clone()))
            }
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(|error| wrong(address, error))?;
                // The port may have been 0.
                let own = listener
                    .local_addr()
                    .map_err(|error| wrong(address, error))?;
                serve(Listener::Tcp(listener), &counters).map_err(|error| wrong(address, error))?;
                say(format_args!("metrics at http://{own}/metrics"));
                Place::Socket(None)
            }
            Address::File(path) => {
                write_file(path, &counters.text())
                    .map_err(|error| wrong(&path.display(), error))?;
                say(format_args!("metrics in {}", path.display()));
                let written = Written {
                    due: Instant::now() + INTERVAL,
                    has_failed: false,
                };
                Place::File(path.clone(), Mutex::new(written))
            }
        };
        Ok(Metrics { counters, place })
    }

    pub fn count_reload(&self, is_good: bool) {
        self.counters.reloads[usize::from(!is_good)].fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the file if it is time, and says when it is the next time.
    pub fn write_when_due(&self, now: Instant) -> Option<Instant> {
        let Place::File(path, written) = &self.place else {
            return None;
        };
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.due <= now {
            written.due = now + INTERVAL;
            let result = write_file(path, &self.counters.text());
            // Once, not every time.
            if let (Err(error), false) = (&result, written.has_failed) {
                say(format_args!("cannot write {}: {error}", path.display()));
            }
            written.has_failed = result.is_err();
        }
        Some(written.due)
    }

    /// The delegate has ended.
    pub fn end(&self) {
        match &self.place {
            Place::Socket(Some(path)) => {
                let _ = fs::remove_file(path);
            }
            Place::Socket(None) => {}
            Place::File(path, _) => {
                if let Err(error) = write_file(path, &self.counters.text()) {
                    say(format_args!("cannot write {}: {error}", path.display()));
                }
            }
        }
    }
}

impl Counters {
    fn text(&self) -> String {
        let mut text = self.server.metrics();
        let name = "virt_internal_reloads_total";
        // A String takes everything.
        let _ = writeln!(
            text,
            "# HELP {name} SIGHUPs, by whether everything could be read again.\n\
             # TYPE {name} counter"
        );
        for (result, count) in ["good", "bad"].iter().zip(&self.reloads) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}{{result=\"{result}\"}} {count}");
        }
        let name = "virt_internal_build_info";
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(
            text,
            "# HELP {name} The delegate's version.\n# TYPE {name} gauge\n\
             {name}{{version=\"{version}\"}} 1"
        );
        text
    }
}

/// Whoever reads it sees the old file or the new one.
fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        // The collector is another user.
        .mode(0o644)
        .open(&new)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Listens on a path, in the place of a delegate that is no more.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            let nobody = UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !(is_socket && nobody) {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Either kind of connection.
trait Stream: Read + Write + AsRawFd + Send {}

impl Stream for UnixStream {}
impl Stream for TcpStream {}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
        }
    }

    fn prepare(&self) -> io::Result<RawFd> {
        match self {
            Listener::Unix(listener) => listener.set_nonblocking(true)?,
            Listener::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        Ok(match self {
            Listener::Unix(listener) => listener.as_raw_fd(),
            Listener::Tcp(listener) => listener.as_raw_fd(),
        })
    }
}

/// How long one who asks has, from beginning to end.
const DEADLINE: Duration = Duration::from_secs(5);

/// How many may ask at a time; the oldest gives way to a new one.
const CLIENTS_MAX: usize = 32;

/// How long a request may be.
const REQUEST_MAX: usize = 8192;

/// One who asks.
struct Client {
    stream: Box<dyn Stream>,
    state: State,
    until: Instant,
}

enum State {
    Asking(Vec<u8>),
    /// The answer, and how much of it was sent.
    Answering(Vec<u8>, usize),
    /// Closed in our direction. What is closed while there is something to be
    /// read takes the answer back.
    Leaving,
}

fn serve(listener: Listener, counters: &Arc<Counters>) -> io::Result<()> {
    let fd = listener.prepare()?;
    let counters = Arc::clone(counters);
    thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            let mut clients = Vec::new();
            loop {
                round(&listener, fd, &mut clients, &counters);
            }
        })?;
    Ok(())
}

/// Waits until there is something to do, and does it.
fn round(listener: &Listener, fd: RawFd, clients: &mut Vec<Client>, counters: &Counters) {
    let poll = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let mut polls = vec![poll(fd, libc::POLLIN)];
    polls.extend(clients.iter().map(|client| {
        let events = match client.state {
            State::Answering(..) => libc::POLLOUT,
            State::Asking(_) | State::Leaving => libc::POLLIN,
        };
        poll(client.stream.as_raw_fd(), events)
    }));
    let now = Instant::now();
    let first = clients.iter().map(|client| client.until).min();
    let time = first.map_or(-1, |until| {
        until.saturating_duration_since(now).as_millis() as libc::c_int + 1
    });
    // SAFETY: as many pollfds as that.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, time) };
    let now = Instant::now();
    clients.retain_mut(|client| client.until > now && client.go_on(counters));
    if polls[0].revents == 0 {
        return;
    }
    match listener.accept() {
        Ok(stream) => {
            if clients.len() == CLIENTS_MAX {
                clients.remove(0);
            }
            clients.push(Client {
                stream,
                state: State::Asking(Vec::new()),
                until: now + DEADLINE,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // No descriptors left, maybe: others end.
        Err(_) => thread::sleep(Duration::from_millis(20)),
    }
}

impl Client {
    /// Whether there is more to be done.
    fn go_on(&mut self, counters: &Counters) -> bool {
        match self.advance(counters) {
            Ok(more) => more,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    fn advance(&mut self, counters: &Counters) -> io::Result<bool> {
        loop {
            match &mut self.state {
                State::Asking(request) => {
                    let mut buffer = [0; 1024];
                    let length = self.stream.read(&mut buffer)?;
                    request.extend_from_slice(&buffer[..length]);
                    match answer(request, counters) {
                        Some(answer) => self.state = State::Answering(answer, 0),
                        None if length == 0 => return Ok(false),
                        None => {}
                    }
                }
                State::Answering(answer, sent) => {
                    *sent += self.stream.write(&answer[*sent..])?;
                    if *sent == answer.len() {
                        // SAFETY: numbers only.
                        unsafe { libc::shutdown(self.stream.as_raw_fd(), libc::SHUT_WR) };
                        self.state = State::Leaving;
                    }
                }
                // Once: others are waiting, too.
                State::Leaving => return Ok(self.stream.read(&mut [0; 1024])? > 0),
            }
        }
    }
}

/// What to answer to a request; `None`: there is more of it to come.
fn answer(request: &[u8], counters: &Counters) -> Option<Vec<u8>> {
    let is_whole = request.windows(4).any(|end| end == b"\r\n\r\n")
        || request.windows(2).any(|end| end == b"\n\n");
    if !is_whole {
        let too_long = request.len() > REQUEST_MAX;
        return too_long.then(|| reply("431 Request Header Fields Too Large", "", "too long\n"));
    }
    let line = request
        .split(|byte| *byte == b'\r' || *byte == b'\n')
        .next()?;
    let line = std::str::from_utf8(line).unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    Some(match words[..] {
        [method, target, version] if version.starts_with("HTTP/1.") => {
            let path = target.split('?').next().unwrap_or_default();
            match (path, method) {
                ("/metrics", "GET") => reply("200 OK", "", &counters.text()),
                ("/metrics", _) => reply("405 Method Not Allowed", "Allow: GET\r\n", "GET only\n"),
                _ => reply("404 Not Found", "", "there is only /metrics\n"),
            }
        }
        _ => reply("400 Bad Request", "", "that is not HTTP/1.1\n"),
    })
}

fn reply(status: &str, header: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\n\
         Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\n\
         {header}Connection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_this_machine() {
        assert_eq!(
            Address::parse("unix:/run/m"),
            Ok(Address::Unix("/run/m".into()))
        );
        assert_eq!(
            Address::parse("file:/var/m.prom"),
            Ok(Address::File("/var/m.prom".into()))
        );
        for address in ["127.0.0.1:9100", "[::1]:9100"] {
            assert!(matches!(Address::parse(address), Ok(Address::Tcp(_))));
        }
        for (address, why) in [
            ("0.0.0.0:9100", "only this machine"),
            ("[::]:9100", "only this machine"),
            ("unix:m", "no absolute path"),
            ("file:m", "no absolute path"),
            ("127.0.0.1", "expected unix:/path"),
            ("", "expected unix:/path"),
        ] {
            let error = Address::parse(address).expect_err(address);
            assert!(error.contains(why), "{address:?}: {error}");
        }
    }
}
