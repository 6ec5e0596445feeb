// SPDX-License-Identifier: LGPL-2.1-or-later
//! Moves threads of a process into a cgroup.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, OsString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::{fmt, fs, io, ptr, slice};

use clap::{Args, ValueEnum};
use libc::{c_char, c_int, c_uchar, c_uint, pid_t, size_t};
use nix::errno::Errno;
use serde_json::{Value, json};
use virt_internal::capi::cgroup_add_threads::{
    VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION, virInternalCgroupAddThreads,
    virInternalCgroupAddThreadsHandler, virInternalSetCgroupAddThreadsHandler,
    virInternalThreadRole,
};
use virt_internal::capi::types::virInternalOperation;

use super::{Delegation, Errand, Operation, Request, Requests, Scene, Stage, State, Trial};
use crate::cgroup::{self, Groups, Version};
use crate::library::Script;
use crate::privilege::{DAC_READ_SEARCH, Kind, Missing, SYS_PTRACE, is_in_initial_user_namespace};
use crate::proc;
use crate::target::{Target, User};

/// The operation's name for `call` and in policies.
const NAME: &str = "cgroup-add-threads";

/// Move threads of a process into a cgroup
#[derive(Args)]
pub struct CgroupAddThreads {
    /// The process
    #[arg(long, allow_negative_numbers = true, value_parser = super::id)]
    pid: pid_t,
    /// The cgroup's directory
    #[arg(long)]
    group: PathBuf,
    /// What the threads do
    #[arg(long, default_value = "vcpu")]
    role: Role,
    /// A thread; more may follow
    #[arg(
        long = "tid",
        required_unless_present = "all_threads",
        num_args = 1..,
        allow_negative_numbers = true,
        value_parser = super::id
    )]
    tids: Vec<pid_t>,
    /// All threads of the process
    #[arg(long, conflicts_with = "tids")]
    all_threads: bool,
    /// What the last call made of each thread: 0 or -errno.
    #[arg(skip)]
    results: RefCell<Vec<(pid_t, c_int)>>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Vcpu,
    Emulator,
    Iothread,
    Helper,
}

impl Role {
    fn number(self) -> c_int {
        use virInternalThreadRole::*;
        let role = match self {
            Role::Vcpu => VIR_INTERNAL_THREAD_VCPU,
            Role::Emulator => VIR_INTERNAL_THREAD_EMULATOR,
            Role::Iothread => VIR_INTERNAL_THREAD_IOTHREAD,
            Role::Helper => VIR_INTERNAL_THREAD_HELPER,
        };
        role as c_int
    }

    fn words(self) -> &'static str {
        match self {
            Role::Vcpu => "vCPU",
            Role::Emulator => "emulator",
            Role::Iothread => "IOThread",
            Role::Helper => "helper",
        }
    }

    fn of_number(number: c_int) -> Option<Role> {
        let mut roles = Role::value_variants().iter().copied();
        roles.find(|role| role.number() == number)
    }
}

impl CgroupAddThreads {
    fn tids(&self) -> Vec<pid_t> {
        match self.all_threads {
            // Of a process that is not there the library is to say so.
            true => proc::threads(self.pid).unwrap_or_else(|_| vec![self.pid]),
            false => self.tids.clone(),
        }
    }

    fn name(&self) -> Cow<'_, str> {
        self.group
            .file_name()
            .unwrap_or(self.group.as_os_str())
            .to_string_lossy()
    }

    fn role_option(&self) -> String {
        let role = self.role.to_possible_value();
        role.map_or(String::new(), |role| role.get_name().to_owned())
    }

    /// What it takes where the group takes no thread from the process's domain.
    fn missing_domain(&self) -> Missing {
        let file = self.group.join("cgroup.type");
        let kind = proc::read(&file.to_string_lossy()).unwrap_or_default();
        let (kind, file) = (kind.trim(), file.display());
        // Such a group takes no processes either.
        if kind == "domain invalid" {
            return Missing::new(
                Kind::Cgroup,
                "a threaded cgroup: this one is domain invalid",
            )
            .hint(format!("echo threaded > {file}"));
        }
        let mut missing = Missing::new(
            Kind::Cgroup,
            match self.all_threads {
                true => "a threaded cgroup in the domain of the process",
                false => "a threaded cgroup in the domain of the process, or all its threads",
            },
        );
        if kind != "threaded" {
            missing = missing.hint(format!(
                "echo threaded > {file}, if that is below the cgroup of the process"
            ));
        }
        if !self.all_threads {
            missing = missing.hint(format!(
                "virt-internal call cgroup-add-threads --pid={} --group={} --role={} --all-threads",
                self.pid,
                self.group.display(),
                self.role_option()
            ));
        }
        missing
    }

    fn file(&self) -> PathBuf {
        let v2 = self.group.join(Version::V2.threads_file());
        match v2.exists() {
            true => v2,
            false => self.group.join(Version::V1.threads_file()),
        }
    }
}

unsafe extern "C-unwind" fn handler(
    pid: pid_t,
    group: *const c_char,
    role: c_int,
    tids: *const pid_t,
    _ids: *const c_uint,
    ntids: size_t,
    _cpumap: *const c_uchar,
    _maplen: c_int,
    _results: *mut c_int,
    opaque: *mut c_void,
) -> c_int {
    let Some(role) = Role::of_number(role) else {
        return -libc::EINVAL;
    };
    // SAFETY: the library gives that many ids and, since every request here
    // has one, a group.
    let (group, tids) = unsafe { (CStr::from_ptr(group), slice::from_raw_parts(tids, ntids)) };
    let request = CgroupAddThreads {
        pid,
        group: OsStr::from_bytes(group.to_bytes()).into(),
        role,
        tids: tids.to_vec(),
        all_threads: false,
        results: RefCell::default(),
    };
    // SAFETY: set with a script, by `set_handler`.
    unsafe { Script::of(opaque) }.answer(&request)
}

impl Request for CgroupAddThreads {
    fn asked(&self) -> String {
        format!("{} into {}", self.tids().len(), self.name())
    }

    fn asked_values(&self) -> Value {
        json!({ "tids": self.tids(), "group": self.group })
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut group = OsString::from("--group=");
        group.push(&self.group);
        let mut arguments = vec![
            NAME.into(),
            format!("--pid={}", self.pid).into(),
            group,
            format!("--role={}", self.role_option()).into(),
        ];
        arguments.extend(self.tids().iter().map(|tid| format!("--tid={tid}").into()));
        arguments
    }

    fn call(&self, flags: c_uint) -> c_int {
        let tids = self.tids();
        // An argument of a program has no NUL.
        let group = CString::new(self.group.as_os_str().as_bytes()).unwrap_or_default();
        let mut results = vec![0; tids.len()];
        // SAFETY: both lists are as long as it says; what is NULL may be.
        let returned = unsafe {
            virInternalCgroupAddThreads(
                ptr::null_mut(),
                self.pid,
                group.as_ptr(),
                self.role.number(),
                tids.as_ptr(),
                ptr::null(),
                tids.len(),
                ptr::null(),
                0,
                results.as_mut_ptr(),
                flags,
            )
        };
        *self.results.borrow_mut() = tids.into_iter().zip(results).collect();
        returned
    }

    fn threads(&self) -> Vec<(pid_t, Result<(), Errno>)> {
        let results = self.results.borrow();
        let result = |result: c_int| match result {
            0 => Ok(()),
            result => Err(Errno::from_raw(-result)),
        };
        results
            .iter()
            .map(|(tid, number)| (*tid, result(*number)))
            .collect()
    }

    unsafe fn set_handler(&self, script: Option<&Script>) -> c_int {
        let function: virInternalCgroupAddThreadsHandler = script.map(|_| handler as _);
        // SAFETY: the caller keeps the script, which is what `handler` takes.
        unsafe {
            virInternalSetCgroupAddThreadsHandler(
                ptr::null_mut(),
                VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION,
                function,
                script.map_or(ptr::null_mut(), Script::as_opaque),
                None,
                0,
            )
        }
    }

    fn act(&self) -> Result<(), Errno> {
        let errnum = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        let file = self.file();
        self.tids()
            .iter()
            .try_for_each(|tid| fs::write(&file, tid.to_string()).map_err(errnum))
    }

    fn state(&self) -> io::Result<State> {
        let file = self.file();
        let members = proc::read(&file.to_string_lossy())?;
        let is_in = |tid: &&pid_t| members.lines().any(|member| member == tid.to_string());
        let tids = self.tids();
        let inside: Vec<_> = tids.iter().filter(is_in).collect();
        Ok(State {
            text: format!("{} of {} inside", inside.len(), tids.len()),
            values: json!({ "tids": inside, "group": self.group }),
            as_asked: inside.len() == tids.len(),
        })
    }

    fn missing(&self, errnum: Errno) -> Option<Missing> {
        let missing = Missing::new;
        match errnum {
            Errno::EACCES | Errno::EPERM | Errno::EROFS => {
                Some(cgroup::not_writable(&self.file(), &errnum.into()))
            }
            Errno::EOPNOTSUPP => Some(self.missing_domain()),
            Errno::ENOENT => Some(missing(Kind::Argument, "a cgroup that exists")),
            _ => None,
        }
    }

    fn delegate_lacks(&self, errnum: Errno) -> Option<Missing> {
        // To open the cgroup that a caller sends by its handle.
        let may_open = DAC_READ_SEARCH.is_effective() && is_in_initial_user_namespace();
        match errnum {
            Errno::EPERM if !may_open => Some(DAC_READ_SEARCH.missing()),
            Errno::EACCES if !SYS_PTRACE.is_effective() => Some(SYS_PTRACE.missing()),
            _ => None,
        }
    }
}

/// Both versions, with the words for them.
const VERSIONS: [(&str, Version); 2] = [("v2", Version::V2), ("v1", Version::V1)];

fn stage<R>(
    version: Version,
    user: User,
    requests: impl FnOnce(&dyn Fn(&[usize], &str, Role) -> Box<dyn Request>) -> R,
) -> Result<Stage<R>, Missing> {
    let groups = |target: &Target| Groups::create(version, target.pid()).map(Some);
    Stage::with_groups(user, groups, |target, groups| {
        let request = |threads: &[usize], name: &str, role| -> Box<dyn Request> {
            Box::new(CgroupAddThreads {
                pid: target.pid(),
                group: groups.map(|groups| groups.path(name)).unwrap_or_default(),
                role,
                tids: threads.iter().map(|thread| target.tids[*thread]).collect(),
                all_threads: false,
                results: RefCell::default(),
            })
        };
        Ok(requests(&request))
    })
}

impl Operation for CgroupAddThreads {
    const ID: virInternalOperation = virInternalOperation::VIR_INTERNAL_OP_CGROUP_ADD_THREADS;

    fn scenes() -> Vec<Scene> {
        VERSIONS
            .map(|(label, version)| {
                let stage = stage(version, User::Own, |request| Requests {
                    allowed: [
                        request(&[1], "vcpu0", Role::Vcpu),
                        request(&[0, 2], "emulator", Role::Emulator),
                        request(&[1, 2], "vcpu0", Role::Vcpu),
                    ],
                    beyond: request(&[1], "emulator", Role::Iothread),
                });
                Scene { label, stage }
            })
            .into()
    }

    fn trials() -> Vec<Trial> {
        VERSIONS
            .map(|(name, version)| Trial {
                name,
                user: User::Own,
                stage: stage(version, User::Own, |request| {
                    request(&[1], "vcpu0", Role::Vcpu)
                }),
            })
            .into()
    }

    fn delegations(user: User) -> Vec<Delegation> {
        VERSIONS
            .map(|(label, version)| {
                let stage = stage(version, user, |request| {
                    let errand = |threads: &[usize], name: &str, role| {
                        Errand::new(request(threads, name, role))
                    };
                    vec![
                        errand(&[1], "vcpu0", Role::Vcpu).main(),
                        errand(&[0, 2], "emulator", Role::Emulator),
                        errand(&[1], "emulator", Role::Helper).refused(),
                    ]
                });
                Delegation { label, stage }
            })
            .into()
    }

    fn policy() -> io::Result<String> {
        Ok(format!(
            "{NAME} = {{ roles = [\"vcpu\", \"emulator\"], cgroup = \"/\" }}"
        ))
    }
}

impl fmt::Display for CgroupAddThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, pid, group) = (self.role.words(), self.pid, self.group.display());
        match self.tids().len() {
            1 => write!(f, "move 1 {role} thread of process {pid} to {group}"),
            count => write!(f, "move {count} {role} threads of process {pid} to {group}"),
        }
    }
}
