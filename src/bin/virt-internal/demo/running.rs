// SPDX-License-Identifier: LGPL-2.1-or-later
//! A delegate that runs for the demonstration: `virt-internal delegate`, with
//! a policy and an audit file in a directory of their own.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::Value;

use super::cast::Cast;
use super::signals;
use crate::library::DELEGATE;

/// How long it takes at most, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(2);

pub struct Running {
    child: Child,
    directory: Directory,
    pub address: String,
    /// How much of the audit file was read.
    audit_read: usize,
}

impl Running {
    /// Starts one, and waits until it listens.
    pub fn start(cast: &Cast, policy: &str) -> io::Result<Running> {
        let directory = Directory::create(cast)?;
        let socket = directory.path("socket");
        let address = format!("unix:{}", socket.display());
        fs::write(directory.path("policy.toml"), policy)?;
        let log = directory.path("log");
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("virt-internal")
            .args(["delegate", "--listen", &address, "--policy"])
            .arg(directory.path("policy.toml"))
            .arg("--audit")
            .arg(directory.path("audit"))
            .env_remove(DELEGATE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            // Ctrl-C is for whoever tidies up.
            .process_group(0);
        let parent = std::process::id() as libc::pid_t;
        // SAFETY: it makes system calls, and nothing else.
        unsafe { command.pre_exec(move || go_with(parent)) };
        let mut running = Running {
            child: command.spawn()?,
            directory,
            address,
            audit_read: 0,
        };
        let deadline = Instant::now() + PATIENCE;
        while !listens(&socket)? {
            if running.child.try_wait()?.is_some() {
                let said = fs::read_to_string(&log)?;
                let said = said.trim().trim_start_matches("virt-internal: ");
                return Err(io::Error::other(format!("the delegate ended: {said}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("the delegate does not listen"));
            }
            thread::sleep(PAUSE);
        }
        Ok(running)
    }

    /// The audit's lines about operations since the last time, of which there
    /// has to be one. None: it did not come.
    pub fn audit(&mut self) -> io::Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(self.directory.path("audit"))?;
            let new = &text[self.audit_read..];
            if let Some(end) = new.rfind('\n') {
                self.audit_read += end + 1;
                let lines: Vec<String> = new[..end]
                    .lines()
                    .filter(|line| line.contains("\"event\":\"operation\""))
                    .map(str::to_owned)
                    .collect();
                if !lines.is_empty() {
                    return Ok(lines);
                }
            }
            let has_ended = self.child.try_wait()?.is_some();
            if has_ended || Instant::now() > deadline {
                return Ok(Vec::new());
            }
            thread::sleep(PAUSE);
        }
    }

    /// Has it do something, by `call`, whose answer may come too late: each of
    /// these requests may be made again.
    pub fn patiently(call: impl Fn() -> io::Result<Value>) -> io::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = call()?;
            let is_late = matches!(
                said["error"]["code"].as_str(),
                Some("VIR_INTERNAL_ERR_TIMEOUT" | "VIR_INTERNAL_ERR_UNKNOWN_OUTCOME")
            );
            if !is_late || Instant::now() > deadline {
                return Ok(said);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: numbers only; it is a child that nobody has waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The delegate ends when the demonstration does, however that may be.
fn go_with(parent: libc::pid_t) -> io::Result<()> {
    signals::hold_none_back();
    // SAFETY: numbers only.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM))?;
        match libc::getppid() == parent {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    }
}

/// Whether somebody accepts connections at that path.
fn listens(path: &Path) -> io::Result<bool> {
    // SAFETY: integers, of which all zeros are valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from as libc::c_char;
    }
    let length = size_of_val(&address) as libc::socklen_t;
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: an address of that length, whose path ends in a NUL; the socket
    // is closed right away.
    unsafe {
        let socket = Errno::result(libc::socket(libc::AF_UNIX, kind, 0))?;
        let connected = libc::connect(socket, (&raw const address).cast(), length) == 0;
        libc::close(socket);
        Ok(connected)
    }
}

/// A new directory, removed with all that is in it when dropped.
struct Directory(PathBuf);

impl Directory {
    /// Where the caller can reach it, and nobody else can.
    fn create(cast: &Cast) -> io::Result<Directory> {
        let mut places = vec![std::env::temp_dir()];
        places.extend(["/tmp", "/dev/shm", "/run"].map(PathBuf::from));
        let is_for_all = cast.caller_uid() != cast.own;
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for place in places.iter().filter(|place| is_fit(place, is_for_all)) {
            match make(place) {
                Ok(directory) => {
                    if is_for_all {
                        chown(&directory.0, None, Some(cast.caller_uid()))?;
                        fs::set_permissions(&directory.0, Permissions::from_mode(0o710))?;
                    }
                    return Ok(directory);
                }
                Err(error) => failure = error,
            }
        }
        let why = format!("no directory for the delegate's socket: {failure}");
        Err(io::Error::other(why))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Whether a socket's address can have this path, and who has to can follow it.
fn is_fit(place: &Path, is_for_all: bool) -> bool {
    let is_open = |directory: &Path| {
        fs::metadata(directory).is_ok_and(|status| !is_for_all || status.mode() & 1 != 0)
    };
    let Some(text) = place.to_str() else {
        return false;
    };
    // A "=" would begin a label.
    place.is_absolute() && text.len() < 60 && !text.contains('=') && place.ancestors().all(is_open)
}

fn make(place: &Path) -> io::Result<Directory> {
    let template = place.join("virt-internal-XXXXXX");
    let template = CString::new(template.into_os_string().into_encoded_bytes())?;
    let template = template.into_raw();
    // SAFETY: it changes the six letters, and the string is taken back.
    let (made, path) = unsafe {
        let made = !libc::mkdtemp(template).is_null();
        let error = io::Error::last_os_error();
        (made.then_some(()).ok_or(error), CString::from_raw(template))
    };
    made.map(|()| Directory(OsStr::from_bytes(path.as_bytes()).into()))
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
