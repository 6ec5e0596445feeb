// SPDX-License-Identifier: LGPL-2.1-or-later
//! Tells systemd how it goes: sd_notify(3).

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::say;

/// The service manager, if there is one.
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

/// How long a message may wait: the delegate must not.
const PATIENCE: Duration = Duration::from_secs(1);

impl Notify {
    /// The one that NOTIFY_SOCKET names.
    pub fn from_environment() -> Notify {
        Notify {
            socket: socket(),
            watchdog: watchdog(),
        }
    }

    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    pub fn reloading(&self) {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes one timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        let time = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={time}"));
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=finishing what is running");
    }

    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How often it wants to hear that the delegate is alive, if it does.
    pub fn interval(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog)
    }

    fn send(&self, text: &str) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            say(format_args!("cannot tell systemd {text:?}: {error}"));
        }
    }
}

fn socket() -> Option<(UnixDatagram, SocketAddr)> {
    let name = env::var("NOTIFY_SOCKET")
        .ok()
        .filter(|name| !name.is_empty())?;
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let made = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok((socket, address))
    });
    made.inspect_err(|error| say(format_args!("NOTIFY_SOCKET is {name:?}: {error}")))
        .ok()
}

fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    // It may be meant for another process of the service.
    let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let time = number("WATCHDOG_USEC").filter(|time| *time > 0 && is_meant)?;
    Some(Duration::from_micros(time) / 2)
}
