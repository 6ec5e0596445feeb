// SPDX-License-Identifier: LGPL-2.1-or-later
//! Who is who: the caller, the delegate, and whose processes it is about.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::uid_t;
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::library::DELEGATE;
use crate::privilege::{SETGID, SETUID};
use crate::target::{GUEST_UID, Target, User};

/// The user of a caller that is not ours.
const CALLER_UID: uid_t = 65534;

pub struct Cast {
    /// The delegate's user.
    pub own: uid_t,
    /// Whom a caller becomes.
    becomes: Option<uid_t>,
    pub target: User,
    /// Why it is not as it should be.
    pub note: Option<String>,
}

impl Cast {
    /// Three users, where that is possible.
    pub fn choose() -> Cast {
        // SAFETY: asks for a number.
        let own = unsafe { libc::geteuid() };
        let all_own = |why: &str| Cast {
            own,
            becomes: None,
            target: User::Own,
            note: Some(format!(
                "no process of another user can be started here ({why}),\n\
                 so that the delegate may hardly do more than the caller"
            )),
        };
        if !(SETUID.is_effective() && SETGID.is_effective()) {
            return all_own("needs CAP_SETUID, CAP_SETGID");
        }
        let is_in_user_namespace = match Target::start(User::Guest) {
            // Who may not even look need not be told.
            Ok(target) => target.is_in_user_namespace().unwrap_or(true),
            Err(_) => return all_own("there is none, or it is not allowed"),
        };
        let note = (!is_in_user_namespace).then(|| {
            "there can be no user namespace here: other users' limits need CAP_SYS_RESOURCE".into()
        });
        Cast {
            own,
            becomes: Some(CALLER_UID),
            target: User::Guest,
            note,
        }
    }

    pub fn caller_uid(&self) -> uid_t {
        self.becomes.unwrap_or(self.own)
    }

    pub fn target_uid(&self) -> uid_t {
        match self.target {
            User::Guest => GUEST_UID,
            User::Own | User::Other => self.own,
        }
    }

    /// Has an unprivileged process make a request, of the delegate at that
    /// address or of none. What it has to say, as `call --json` does.
    pub fn call(&self, arguments: &[OsString], address: Option<&str>) -> io::Result<Value> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("virt-internal").arg("call").args(arguments);
        command.arg("--json").current_dir("/");
        match address {
            Some(address) => command.env(DELEGATE, address),
            None => command.env_remove(DELEGATE),
        };
        let becomes = self.becomes;
        // SAFETY: it makes system calls, and nothing else.
        unsafe { command.pre_exec(move || drop_privileges(becomes)) };
        let output = command.output().map_err(|error| {
            io::Error::other(format!("the unprivileged caller does not start: {error}"))
        })?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let error = String::from_utf8_lossy(&output.stderr);
            io::Error::other(format!("the caller says nothing but {error:?}"))
        })
    }
}

/// For good: exec() gives none back, not even to root.
fn drop_privileges(becomes: Option<uid_t>) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    /// Effective, permitted, inheritable.
    type Bits = [u32; 3];
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: LINUX_CAPABILITY_VERSION_3,
        pid: 0,
    };
    let none: [Bits; 2] = [[0; 3]; 2];
    let check = |returned: i64| Errno::result(returned).map(drop);
    // SAFETY: numbers; no list of groups is read where there are none; the
    // kernel reads a header and the bits that belong to its version.
    unsafe {
        if let Some(id) = becomes {
            check(libc::setgroups(0, std::ptr::null()).into())?;
            check(libc::setresgid(id, id, id).into())?;
            check(libc::setresuid(id, id, id).into())?;
        }
        check(libc::syscall(libc::SYS_capset, &header, &none))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
    }
    Ok(())
}

impl Cast {
    pub fn to_json(&self) -> Value {
        json!({
            "delegate_uid": self.own,
            "caller_uid": self.caller_uid(),
            "target_uid": self.target_uid(),
            "note": self.note,
        })
    }
}
