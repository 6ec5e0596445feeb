// SPDX-License-Identifier: LGPL-2.1-or-later
//! The sockets: from the command line, from systemd, from a file.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde::Deserialize;
use virt_internal::delegate::policy::{FILE_MAX, check_label};
use virt_internal::delegate::server::Server;

use super::say;

/// A place to listen at, and what rules and audit lines call it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    address: String,
    label: Option<String>,
}

impl Listen {
    /// From "ADDRESS" or "ADDRESS=LABEL".
    pub fn parse(text: &str) -> Result<Listen, String> {
        let (address, label) = match text.split_once('=') {
            Some((address, label)) => (address, Some(label.to_owned())),
            None => (text, None),
        };
        let listen = Listen {
            address: address.to_owned(),
            label,
        };
        listen.check().map(|()| listen)
    }

    fn check(&self) -> Result<(), String> {
        if !(self.address.starts_with("unix:") || self.address.starts_with("fd:")) {
            return Err(format!(
                "the address {:?} is neither unix:/path nor fd:NUMBER",
                self.address
            ));
        }
        match &self.label {
            Some(label) => check_label(label),
            None => Ok(()),
        }
    }

    fn described(&self) -> String {
        match &self.label {
            Some(label) => format!("{} (label {label})", self.address),
            None => format!("{} (no label)", self.address),
        }
    }
}

/// Those that there are.
pub struct Listeners {
    server: Server,
    /// From the command line and from systemd: they stay.
    fixed: usize,
    /// From the file.
    changing: Vec<Listen>,
}

impl Listeners {
    pub fn new(server: &Server) -> Listeners {
        Listeners {
            server: server.clone(),
            fixed: 0,
            changing: Vec::new(),
        }
    }

    pub fn count(&self) -> usize {
        self.fixed + self.changing.len()
    }

    /// One of the command line.
    pub fn open(&mut self, listen: &Listen) -> Result<(), String> {
        self.listen(listen)?;
        self.fixed += 1;
        Ok(())
    }

    /// One of systemd's.
    pub fn adopt(&mut self, passed: Passed) -> Result<(), String> {
        let Passed { socket, listen } = passed;
        let label = listen.label.as_deref();
        self.server
            .listen_on(socket, &listen.address, label)
            .map_err(|error| {
                format!(
                    "systemd passed a socket that is not fit: {error}: write \
                     ListenSequentialPacket= in the .socket unit"
                )
            })?;
        say(format_args!(
            "listening on {}, from systemd",
            listen.described()
        ));
        self.fixed += 1;
        Ok(())
    }

    fn listen(&self, listen: &Listen) -> Result<(), String> {
        let Listen { address, label } = listen;
        self.server
            .listen(address, label.as_deref())
            .map_err(|error| explain(address, &error))?;
        say(format_args!("listening on {}", listen.described()));
        Ok(())
    }

    /// Has those of the file be these, and says what could not be done. What
    /// failed is tried again the next time.
    pub fn change(&mut self, wanted: Vec<Listen>) -> Vec<String> {
        let gone = |own: &Listen| !wanted.contains(own);
        // Before others: one may have the same address and another label.
        for listen in self.changing.extract_if(.., |own| gone(own)) {
            self.server.unlisten(&listen.address);
            say(format_args!(
                "no longer listening on {}",
                listen.described()
            ));
        }
        let mut problems = Vec::new();
        for listen in wanted {
            if self.changing.contains(&listen) {
                continue;
            }
            match self.listen(&listen) {
                Ok(()) => self.changing.push(listen),
                Err(problem) => problems.push(problem),
            }
        }
        problems
    }
}

/// No address of a socket is longer.
const PATH_MAX: usize = "unix:".len() + 107;

/// Why nobody can listen there, and what to do about it.
fn explain(address: &str, error: &io::Error) -> String {
    let path = Path::new(address.strip_prefix("unix:").unwrap_or(address));
    let directory = path.parent().unwrap_or(path).display();
    let what = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => Some("choose another path".to_owned()),
        Some(libc::EACCES | libc::EPERM) => Some(format!(
            "this user may not make a socket in {directory}: run it as root, or choose another \
             directory"
        )),
        Some(libc::ENOENT) => Some(format!(
            "make {directory} first (RuntimeDirectory= in a systemd unit)"
        )),
        Some(libc::EROFS) => Some(format!(
            "have {directory} on a file system that can be written (ReadWritePaths= in a systemd \
             unit)"
        )),
        Some(libc::ENOTDIR) => Some(format!("{directory} is no directory")),
        Some(_) => None,
        None => match error.kind() {
            io::ErrorKind::AddrInUse => {
                Some("stop that delegate first, or choose another path".to_owned())
            }
            io::ErrorKind::AlreadyExists => Some("remove it, or choose another path".to_owned()),
            io::ErrorKind::InvalidInput if address.len() > PATH_MAX => {
                Some("choose a shorter one".to_owned())
            }
            _ => None,
        },
    };
    match what {
        Some(what) => format!("cannot listen on {address}: {error}: {what}"),
        None => format!("cannot listen on {address}: {error}"),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    listener: Vec<toml::Spanned<Listen>>,
}

/// Reads and checks a file of listeners.
pub fn read(path: &Path) -> Result<Vec<Listen>, String> {
    let text = text_of(path)
        .map_err(|error| format!("{}: cannot read the listeners: {error}", path.display()))?;
    parse(&text).map_err(|(offset, what)| {
        let before = &text[..offset.min(text.len())];
        let line = before.matches('\n').count() + 1;
        format!("{}:{line}: {what}", path.display())
    })
}

/// An error has its offset.
fn parse(text: &str) -> Result<Vec<Listen>, (usize, String)> {
    let file: File = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        (offset, error.message().trim_end().to_owned())
    })?;
    let mut wanted: Vec<Listen> = Vec::new();
    for listen in file.listener {
        let (offset, listen) = (listen.span().start, listen.into_inner());
        listen.check().map_err(|what| (offset, what))?;
        // A descriptor is given once, and a file is read more often.
        if !listen.address.starts_with("unix:/") {
            let what = format!("the address {:?} is not unix:/path", listen.address);
            return Err((offset, what));
        }
        if wanted.iter().any(|other| other.address == listen.address) {
            let what = format!("the address {:?} is there twice", listen.address);
            return Err((offset, what));
        }
        wanted.push(listen);
    }
    Ok(wanted)
}

fn text_of(path: &Path) -> io::Result<String> {
    // A FIFO must not hold up a delegate that reads it again.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    file.take(FILE_MAX as u64 + 1).read_to_string(&mut text)?;
    match text.len() > FILE_MAX {
        true => Err(io::Error::other(format!(
            "it is larger than {FILE_MAX} bytes"
        ))),
        false => Ok(text),
    }
}

/// A socket that systemd passed.
pub struct Passed {
    socket: OwnedFd,
    listen: Listen,
}

/// The first descriptor that is passed.
const FIRST: RawFd = 3;

/// The sockets that systemd passed: sd_listen_fds_with_names(3).
pub fn passed_by_systemd() -> Result<Vec<Passed>, String> {
    let variable = |name| env::var(name).ok();
    let own = std::process::id().to_string();
    if variable("LISTEN_PID") != Some(own) {
        return Ok(Vec::new());
    }
    let count = variable("LISTEN_FDS").unwrap_or_default();
    let count: RawFd = (count.parse().ok())
        .filter(|count| (0..=4096).contains(count))
        .ok_or_else(|| format!("LISTEN_FDS is {count:?}, which is no number of sockets"))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let passed = (FIRST..FIRST + count).map(|fd| {
        // SAFETY: asks for a number.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            return Err(format!(
                "LISTEN_FDS is {count}, but there is no descriptor {fd}"
            ));
        }
        let label = label_of(names.next().unwrap_or_default());
        if let Some(label) = &label {
            check_label(label)?;
        }
        // SAFETY: it was passed to this process, which has not used it yet.
        let socket = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let address = match socket.local_addr() {
            Ok(address) => match address.as_pathname() {
                Some(path) => format!("unix:{}", path.display()),
                None => format!("fd:{fd}"),
            },
            Err(_) => format!("fd:{fd}"),
        };
        // Not for children, should there ever be one.
        // SAFETY: numbers only.
        unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        Ok(Passed {
            socket: socket.into(),
            listen: Listen { address, label },
        })
    });
    passed.collect()
}

/// What FileDescriptorName= says, unless it says nothing: then the name is that
/// of the unit.
fn label_of(name: &str) -> Option<String> {
    let says_nothing = matches!(name, "" | "unknown" | "stored") || name.ends_with(".socket");
    (!says_nothing).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str, label: Option<&str>) -> Listen {
        Listen {
            address: address.into(),
            label: label.map(str::to_owned),
        }
    }

    #[test]
    fn a_label_is_behind_the_address() {
        assert_eq!(
            Listen::parse("unix:/run/a"),
            Ok(listen("unix:/run/a", None))
        );
        assert_eq!(
            Listen::parse("unix:/run/a=vm=1"),
            Ok(listen("unix:/run/a", Some("vm=1")))
        );
        for (text, why) in [
            ("/run/a", "is neither unix:/path nor fd:NUMBER"),
            ("unix:/run/a=", "must have 1 to"),
            ("unix:/run/a=a\nb", "no control characters"),
        ] {
            let error = Listen::parse(text).expect_err(text);
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_has_its_listeners_in_order() {
        let text = "[[listener]]\naddress = \"unix:/a\"\nlabel = \"vm-1\"\n\
                    [[listener]]\naddress = \"unix:/b\"\n";
        let expected = vec![listen("unix:/a", Some("vm-1")), listen("unix:/b", None)];
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(Vec::new()), "a file may have none");
    }

    #[test]
    fn a_wrong_file_is_an_error_that_says_where() {
        for (text, line, why) in [
            ("\n[[listener]]\n", 2, "missing field `address`"),
            (
                "\n\n[[listner]]\naddress = \"unix:/a\"",
                3,
                "unknown field `listner`",
            ),
            (
                "[[listener]]\naddress = \"unix:/a\"\nlable = \"x\"",
                3,
                "unknown field `lable`",
            ),
            ("[[listener]]\naddress = 3", 2, "invalid type: integer `3`"),
            ("[[listener]]\naddress = \"fd:3\"", 1, "is not unix:/path"),
            ("[[listener]]\naddress = \"unix:a\"", 1, "is not unix:/path"),
            (
                "[[listener]]\naddress = \"unix:/a\"\nlabel = \"\"",
                1,
                "must have 1 to",
            ),
            (
                "[[listener]]\naddress = \"unix:/a\"\n[[listener]]\naddress = \"unix:/a\"\n",
                3,
                "is there twice",
            ),
            ("[[listener", 1, "unclosed"),
        ] {
            let (offset, error) = parse(text).expect_err(text);
            let found = text[..offset].matches('\n').count() + 1;
            assert!(error.contains(why), "{text:?}: {error}");
            assert_eq!(found, line, "line of {error:?} in {text:?}");
        }
    }

    #[test]
    fn a_name_that_systemd_made_up_is_no_label() {
        for name in ["", "unknown", "stored", "virt-internal-delegate.socket"] {
            assert_eq!(label_of(name), None, "{name:?}");
        }
        assert_eq!(label_of("vm-1"), Some("vm-1".into()));
    }
}
