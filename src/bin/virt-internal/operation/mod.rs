// SPDX-License-Identifier: LGPL-2.1-or-later
//! The operations: one file each, with what every subcommand needs of it. To
//! add one is to add a file and its line in the list below.

mod limit;

use std::ffi::OsString;
use std::fmt;
use std::io;

use libc::{c_int, c_uint, pid_t};
use nix::errno::Errno;
use serde_json::Value;
use virt_internal::Kind;
use virt_internal::capi::types::virInternalOperation;

use crate::cgroup::Groups;
use crate::library::Script;
use crate::privilege::{self, Missing, SETGID, SETUID, SYS_PTRACE};
use crate::target::{Target, User};

/// An operation with its arguments. It displays as what is to be done, such as
/// "limit locked memory of process 111 to 64 KiB".
pub trait Request: fmt::Display {
    /// What is asked for, for a table.
    fn asked(&self) -> String;

    /// The same for a program: values as in State, where they are asked for.
    fn asked_values(&self) -> Value;

    /// What makes `virt-internal call` call for it.
    fn arguments(&self) -> Vec<OsString>;

    /// Calls the library's function.
    fn call(&self, flags: c_uint) -> c_int;

    /// What the last call says of each thread, if it is about several.
    fn threads(&self) -> Vec<(pid_t, Result<(), Errno>)> {
        Vec::new()
    }

    /// Sets the operation's handler for every connection, or unsets it.
    ///
    /// # Safety
    /// The script lives until the handler is unset.
    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int;

    /// Does it by system calls of our own, as a handler does.
    fn act(&self) -> Result<(), Errno>;

    /// What the kernel says, found out without the library.
    fn state(&self) -> io::Result<State>;

    /// What else is to be said of it, once it is done.
    fn note(&self) -> Option<String> {
        None
    }

    /// What is missing where the kernel refused it with `errnum`, as far as
    /// that can be told.
    fn missing(&self, errnum: Errno) -> Option<Missing>;

    /// What this process would lack as a delegate that failed with `errnum`,
    /// although it may do it.
    fn delegate_lacks(&self, errnum: Errno) -> Option<Missing> {
        // To tell what a thread's number means to the caller.
        let is_it = errnum == Errno::EACCES && !SYS_PTRACE.is_effective();
        is_it.then(|| SYS_PTRACE.missing())
    }
}

/// Reads the id of a process or thread. Whether there can be such an id is for
/// the library to say.
fn id(text: &str) -> Result<pid_t, String> {
    let expected = format!("expected a number from 1 to {}", pid_t::MAX);
    text.parse().map_err(|_| expected)
}

fn count(text: &str) -> Result<c_uint, String> {
    let expected = format!("expected a number from 0 to {}", c_uint::MAX);
    text.parse().map_err(|_| expected)
}

/// What the kernel has.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    pub text: String,
    /// The same for a program: numbers as the kernel has them.
    pub values: Value,
    /// Whether that is what the request asks for.
    pub as_asked: bool,
}

/// What a subcommand wants to know of an operation without arguments.
pub trait Operation: Request {
    const ID: virInternalOperation;

    /// What the demonstration does.
    fn scenes() -> Vec<Scene>;

    /// What it takes to do it directly.
    fn trials() -> Vec<Trial>;

    /// What the demonstration has done by a delegate.
    fn delegations(user: User) -> Vec<Delegation>;

    /// What the policy of that delegate allows of it: a line of a rule.
    fn policy() -> io::Result<String>;
}

/// Requests and what they are about, which is gone when this is dropped.
pub struct Stage<R> {
    pub requests: R,
    /// In the order in which they have to go.
    props: (Target, Option<Groups>),
}

/// Requests to be made of one process, one after the other.
pub struct Scene {
    /// Which of several scenes of an operation.
    pub label: &'static str,
    pub stage: Result<Stage<Requests>, Missing>,
}

pub struct Requests {
    /// Everybody may make them; each changes something where there is room.
    pub allowed: [Box<dyn Request>; 3],
    /// Not the case after them, and maybe not allowed.
    pub beyond: Box<dyn Request>,
}

/// Requests to be made by an unprivileged process, one after the other.
pub struct Delegation {
    /// Which of several of an operation.
    pub label: &'static str,
    pub stage: Result<Stage<Vec<Errand>>, Missing>,
}

/// A request that is made of a delegate.
pub struct Errand {
    pub request: Box<dyn Request>,
    /// It is more than the policy allows.
    pub is_refused: bool,
    /// It is not left out of a short demonstration.
    pub is_main: bool,
}

impl Errand {
    fn new(request: Box<dyn Request>) -> Errand {
        Errand {
            request,
            is_refused: false,
            is_main: false,
        }
    }

    fn refused(mut self) -> Errand {
        self.is_refused = true;
        self
    }

    fn main(mut self) -> Errand {
        self.is_main = true;
        self
    }
}

/// A request made directly, to see whether that is possible here.
pub struct Trial {
    pub name: &'static str,
    pub user: User,
    pub stage: Result<Stage<Box<dyn Request>>, Missing>,
}

impl<R> Stage<R> {
    /// Of a new process of that user.
    fn new(user: User, requests: impl FnOnce(&Target) -> io::Result<R>) -> Result<Self, Missing> {
        Stage::with_groups(user, |_| Ok(None), |target, _| requests(target))
    }

    fn with_groups(
        user: User,
        groups: impl FnOnce(&Target) -> Result<Option<Groups>, Missing>,
        requests: impl FnOnce(&Target, Option<&Groups>) -> io::Result<R>,
    ) -> Result<Self, Missing> {
        if user == User::Other && !(SETUID.is_effective() && SETGID.is_effective()) {
            let what = "to start such a process takes CAP_SETUID, CAP_SETGID";
            return Err(Missing::new(privilege::Kind::Trial, what));
        }
        let target = Target::start(user)?;
        let groups = groups(&target)?;
        let props = (target, groups);
        Ok(Stage {
            requests: requests(&props.0, props.1.as_ref())?,
            props,
        })
    }

    /// The process that the requests are about.
    pub fn pid(&self) -> pid_t {
        self.props.0.pid()
    }
}

/// An operation as the subcommands see it.
pub struct Entry {
    pub kind: &'static Kind,
    pub scenes: fn() -> Vec<Scene>,
    pub trials: fn() -> Vec<Trial>,
    pub delegations: fn(User) -> Vec<Delegation>,
    pub policy: fn() -> io::Result<String>,
}

impl Entry {
    fn of<O: Operation>() -> Entry {
        let kinds = virt_internal::operation::OPERATIONS;
        Entry {
            kind: kinds
                .iter()
                .find(|kind| kind.id == O::ID as u32)
                .expect("the library has every operation of the command"),
            scenes: O::scenes,
            trials: O::trials,
            delegations: O::delegations,
            policy: O::policy,
        }
    }
}

/// The name of an operation's function without the prefix.
pub fn short_name(kind: &Kind) -> &'static str {
    kind.name.trim_start_matches("virInternal")
}

macro_rules! operations {
    ($($file:ident: $operation:ident),+ $(,)?) => {
        $(mod $file;)+

        /// All operations.
        pub fn operations() -> Vec<Entry> {
            vec![$(Entry::of::<$file::$operation>()),+]
        }

        /// An operation with its arguments, from the command line.
        #[derive(clap::Subcommand)]
        pub enum Arguments {
            $(
                #[command(after_help = crate::call::EXIT_CODES)]
                $operation($file::$operation)
            ),+
        }

        impl Arguments {
            pub fn request(&self) -> (Entry, &dyn Request) {
                match self {
                    $(Arguments::$operation(request) => {
                        (Entry::of::<$file::$operation>(), request)
                    })+
                }
            }
        }
    };
}

operations! {
    process_set_max_mem_lock: ProcessSetMaxMemLock,
    process_set_max_processes: ProcessSetMaxProcesses,
    process_set_max_files: ProcessSetMaxFiles,
    process_set_max_core_size: ProcessSetMaxCoreSize,
    process_set_scheduler: ProcessSetScheduler,
    process_set_affinity: ProcessSetAffinity,
    cgroup_add_threads: CgroupAddThreads,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_has_every_operation_of_the_library() {
        let names = |kinds: &[&Kind]| kinds.iter().map(|kind| kind.name).collect::<Vec<_>>();
        let here: Vec<&Kind> = operations().iter().map(|entry| entry.kind).collect();
        assert_eq!(names(&here), names(virt_internal::operation::OPERATIONS));
    }
}
