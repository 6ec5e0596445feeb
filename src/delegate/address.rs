// SPDX-License-Identifier: LGPL-2.1-or-later
//! Where a delegate is.

use core::ffi::CStr;
use core::fmt;
use core::mem::{offset_of, zeroed};

use libc::c_int;

use crate::error::{Error, Result};

/// The address of a delegate, as `unix:/path` or `fd:NUMBER` says it.
#[derive(Clone, Copy)]
pub(crate) enum Address {
    /// A socket in the filesystem.
    Unix(UnixPath),
    /// A connected socket that this process was given.
    Descriptor(c_int),
    /// None: what the environment says is not an address.
    Invalid,
}

/// The path of a socket.
#[derive(Clone, Copy)]
pub(crate) struct UnixPath {
    address: libc::sockaddr_un,
    length: usize,
}

/// The longest path, its NUL not counted.
const PATH_MAX: usize = 107;

impl Address {
    pub(crate) fn parse(text: &CStr) -> Result<Address> {
        let bytes = text.to_bytes();
        if let Some(path) = bytes.strip_prefix(b"unix:") {
            return UnixPath::new(path).map(Address::Unix);
        }
        if let Some(number) = bytes.strip_prefix(b"fd:") {
            let number = str::from_utf8(number).ok().and_then(|digits| {
                // parse() takes a sign.
                let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
                digits.parse().ok().filter(|_| plain)
            });
            return number.map(Address::Descriptor).ok_or_else(|| {
                Error::invalid(format_args!(
                    "the delegate's address '{}' has no number of a descriptor: fd:3",
                    Shown(bytes)
                ))
            });
        }
        Err(Error::invalid(format_args!(
            "the delegate's address '{}' is neither unix:/path nor fd:NUMBER",
            Shown(bytes)
        )))
    }
}

impl UnixPath {
    fn new(path: &[u8]) -> Result<UnixPath> {
        if path.first() != Some(&b'/') {
            return Err(Error::invalid(format_args!(
                "the delegate's address 'unix:{}' needs an absolute path",
                Shown(path)
            )));
        }
        if path.len() > PATH_MAX {
            return Err(Error::invalid(format_args!(
                "the delegate's path is too long: {} bytes, a socket's can have {PATH_MAX}",
                path.len()
            )));
        }
        // SAFETY: integers, of which all zeros are valid.
        let mut address: libc::sockaddr_un = unsafe { zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(path) {
            *to = *from as libc::c_char;
        }
        Ok(UnixPath {
            address,
            length: path.len(),
        })
    }

    /// What connect() and bind() take.
    pub(crate) fn as_sockaddr(&self) -> (*const libc::sockaddr_un, usize) {
        let length = offset_of!(libc::sockaddr_un, sun_path) + self.length + 1;
        (&raw const self.address, length)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: within the path, whose characters are bytes.
        unsafe { core::slice::from_raw_parts(self.address.sun_path.as_ptr().cast(), self.length) }
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Unix(one), Address::Unix(other)) => one.as_bytes() == other.as_bytes(),
            (Address::Descriptor(one), Address::Descriptor(other)) => one == other,
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", Shown(path.as_bytes())),
            Address::Descriptor(fd) => write!(f, "fd:{fd}"),
            Address::Invalid => write!(
                f,
                "neither unix:/path, of at most {PATH_MAX} bytes, nor fd:NUMBER"
            ),
        }
    }
}

/// An address in a message: what is too long for one ends in dots.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX: usize = 120;
        write!(f, "{}", self.0[..self.0.len().min(MAX)].escape_ascii())?;
        match self.0.len() > MAX {
            true => f.write_str("..."),
            false => Ok(()),
        }
    }
}
