// SPDX-License-Identifier: LGPL-2.1-or-later
//! Running a delegate inside a program. Only in a library that is built with
//! the feature `delegate`; these functions have a header of their own.

use core::ffi::{CStr, c_char};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_uint, gid_t, uid_t};

use super::delegate::VIR_INTERNAL_DELEGATE_VERSION;
use super::{boundary, require_no_child, symver, unknown_flags};
use crate::delegate::address::Address;
use crate::delegate::policy::{Name, Policy, PolicyError};
use crate::delegate::server::peer::{Peer, Unknown, socket_option};
use crate::delegate::server::pidfd::{self, Info, is_pidfd};
use crate::delegate::server::{Audit, Server};
use crate::dispatch::Outcome;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::foreign;
use crate::fork::{self, Page};
use crate::kernel::check;
use crate::kernel::file::Fd;

/**
 * virInternalDelegate:
 *
 * A delegate in this process: it listens, and does what other processes ask
 * for, within its policy. For each operation it asks the handlers first that
 * this process has set for every connection (conn NULL), and else makes the
 * system call itself.
 *
 * Since: 0.1.0
 */
pub struct virInternalDelegate {
    server: Server,
    /// Where the policy and the audit lines are.
    policy: PathBuf,
    audit: Option<PathBuf>,
    /// Whether a thread is in `virInternalDelegateRun`.
    runs: AtomicBool,
}

/**
 * virInternalDelegatePtr:
 *
 * Points to a delegate, from virInternalDelegateNew() until
 * virInternalDelegateFree().
 *
 * Since: 0.1.0
 */
pub type virInternalDelegatePtr = *mut virInternalDelegate;

/// Runs what opens files and waits for threads, where a thread that is
/// cancelled would unwind through the library: here it is not.
fn uncancelled<T>(body: impl FnOnce() -> T) -> T {
    unsafe extern "C" {
        fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    }
    const PTHREAD_CANCEL_DISABLE: c_int = 1;
    let mut before = 0;
    // SAFETY: an int to write.
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut before) };
    let returned = body();
    let mut disabled = 0;
    // SAFETY: what it was, and an int to write.
    unsafe { pthread_setcancelstate(before, &mut disabled) };
    returned
}

/// Runs the body of a function that is none of an operation.
fn enter(body: impl FnOnce() -> Result<()>) -> c_int {
    uncancelled(|| {
        boundary(0, |page| {
            require_no_child(page, "a delegate cannot be run")?;
            body().map(|()| Outcome::Done)
        })
    })
}

/// A panic is a defect of this library, and ends the process, as it does where
/// the library has no std. It must not end just a thread that has locks.
fn end_with_a_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            foreign::abort(&["a defect of the library: ", &info.to_string()], &[])
        }));
    });
}

fn delegate<'d>(delegate: virInternalDelegatePtr) -> Result<&'d virInternalDelegate> {
    // SAFETY: NULL, or what virInternalDelegateNew() made and nobody has freed:
    // the caller's word.
    unsafe { delegate.as_ref() }.ok_or_else(|| Error::invalid(format_args!("delegate is NULL")))
}

fn require_no_flags(flags: c_uint) -> Result<()> {
    match flags {
        0 => Ok(()),
        _ => Err(unknown_flags(flags)),
    }
}

/// A string that must be given.
fn string<'s>(name: &str, text: *const c_char) -> Result<&'s CStr> {
    if text.is_null() {
        return Err(Error::invalid(format_args!("{name} is NULL")));
    }
    // SAFETY: the caller's word that it is a C string.
    Ok(unsafe { CStr::from_ptr(text) })
}

fn path(text: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(text.to_bytes()))
}

/// NULL: none.
fn label<'s>(text: *const c_char) -> Result<Option<&'s str>> {
    if text.is_null() {
        return Ok(None);
    }
    let text = string("label", text)?;
    let wrong = |why: &str| Error::invalid(format_args!("label {}: {why}", Shown(text)));
    let label = text.to_str().map_err(|_| wrong("it is not UTF-8"))?;
    Name::new(label).map_err(|why| wrong(&why))?;
    Ok(Some(label))
}

/// A text in a message: what is too long for one ends in dots.
struct Shown<'a>(&'a CStr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX: usize = 200;
        let bytes = self.0.to_bytes();
        write!(f, "'{}'", bytes[..bytes.len().min(MAX)].escape_ascii())?;
        match bytes.len() > MAX {
            true => write!(f, "... ({} bytes)", bytes.len()),
            false => Ok(()),
        }
    }
}

/// What is wrong with a policy comes last in its message, where it would be
/// cut: of a name that is too long, the end is left.
fn of_policy(error: PolicyError) -> Error {
    const MAX: usize = 200;
    let file = &error.file;
    let start = (file.len().saturating_sub(MAX)..=file.len()).find(|&i| file.is_char_boundary(i));
    let start = start.unwrap_or(0);
    let shown = PolicyError {
        file: format!("{}{}", if start > 0 { "..." } else { "" }, &file[start..]),
        ..error
    };
    match shown.errnum {
        Some(errnum) => Error::failed(
            Errno(errnum),
            format_args!("{}: cannot read the policy", shown.file),
        ),
        None => Error::invalid(format_args!("{shown}")),
    }
}

/// The server's errors. Those with a text of their own do not have an errno.
fn of_io(error: &io::Error, what: fmt::Arguments<'_>) -> Error {
    use io::ErrorKind::{AddrInUse, AlreadyExists, ConnectionAborted, InvalidInput, WouldBlock};
    if let Some(errnum) = error.raw_os_error() {
        return Error::failed(Errno(errnum), what);
    }
    let errnum = match error.kind() {
        InvalidInput => return Error::invalid(format_args!("{error}")),
        AddrInUse => libc::EADDRINUSE,
        AlreadyExists => libc::EEXIST,
        ConnectionAborted => libc::ECANCELED,
        WouldBlock => libc::EAGAIN,
        _ => libc::EIO,
    };
    Error::failed(Errno(errnum), format_args!("{what}: {error}"))
}

fn open_audit(file: Option<&Path>) -> Result<Audit> {
    let Some(file) = file else {
        return Ok(Audit::nowhere());
    };
    Audit::file(file).map_err(|error| {
        let shown = std::ffi::CString::new(file.as_os_str().as_bytes()).unwrap_or_default();
        of_io(
            &error,
            format_args!("cannot open the audit file {}", Shown(&shown)),
        )
    })
}

/// A descriptor of our own for what the caller has. `what` says where it is
/// from.
fn copy(fd: c_int, what: &str) -> Result<Fd> {
    // SAFETY: numbers only; the kernel returns a new descriptor.
    match check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }) {
        // SAFETY: just made.
        Ok(fd) => Ok(unsafe { Fd::new(fd) }),
        Err(Errno(libc::EBADF)) => Err(Error::invalid(format_args!(
            "{what} {fd} is no open descriptor"
        ))),
        Err(errnum) => Err(Error::failed(
            errnum,
            format_args!("cannot copy {what} {fd}"),
        )),
    }
}

/// A socket that a peer may be at the other end of.
fn connected(fd: c_int) -> Result<Fd> {
    let socket = copy(fd, "fd")?;
    let is = |option, wanted: c_int| socket_option(socket.get(), option, 0) == Ok(wanted);
    if !is(libc::SO_DOMAIN, libc::AF_UNIX)
        || !is(libc::SO_TYPE, libc::SOCK_SEQPACKET)
        || !is(libc::SO_ACCEPTCONN, 0)
        || !has_peer(&socket)
    {
        return Err(Error::invalid(format_args!(
            "fd {fd} is not a connected Unix socket of type SOCK_SEQPACKET"
        )));
    }
    // Reads wait. SAFETY: numbers only.
    let cleared = check(unsafe {
        let flags = libc::fcntl(socket.get(), libc::F_GETFL);
        libc::fcntl(socket.get(), libc::F_SETFL, flags & !libc::O_NONBLOCK)
    });
    match cleared {
        Ok(_) => Ok(socket),
        Err(errnum) => Err(Error::failed(
            errnum,
            format_args!("cannot use the socket of fd {fd}"),
        )),
    }
}

/// Whether there is another end, be it closed.
fn has_peer(socket: &Fd) -> bool {
    let mut address = core::mem::MaybeUninit::<libc::sockaddr_un>::uninit();
    let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the kernel writes at most that length.
    let named =
        unsafe { libc::getpeername(socket.get(), address.as_mut_ptr().cast(), &mut length) };
    named == 0
}

/// The peer that the caller says is at the other end.
fn given(
    server: &Server,
    fd: c_int,
    uid: uid_t,
    gid: gid_t,
    label: Option<String>,
) -> Result<Peer> {
    let held = copy(fd, "pidfd")?;
    let is_process = |info: Info| info.pid == info.process;
    if !is_pidfd(held.get()) || pidfd::info(held.get()).is_ok_and(|info| !is_process(info)) {
        return Err(Error::invalid(format_args!(
            "pidfd {fd} is not a descriptor of a process"
        )));
    }
    Peer::given(&held, uid, gid, &server.hierarchy(), label).map_err(|unknown| match unknown {
        Unknown::Gone => Error::no_process(format_args!("the process of pidfd {fd} is no more")),
        Unknown::Failed(what, errnum) => {
            Error::failed(errnum, format_args!("cannot tell the {what} of pidfd {fd}"))
        }
        unknown => Error::invalid(format_args!("pidfd {fd}: {unknown}")),
    })
}

/**
 * virInternalDelegateNew:
 * @version: VIR_INTERNAL_DELEGATE_VERSION
 * @policy: the file of the policy, see docs/policy.md
 * @audit: the file that gets a line for each operation, or NULL for none
 * @flags: 0
 *
 * Makes a delegate, which serves nobody yet. What is not allowed by the policy
 * is refused.
 *
 * Both files are opened by these names again by virInternalDelegateReload().
 * The audit file is created when it is not there, and written at its end.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns the delegate, to be freed by virInternalDelegateFree(), or NULL on
 * error: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's; VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for a policy that has an
 * error, which the message shows with file, line and column, for a @policy
 * that is NULL and unknown @flags; VIR_INTERNAL_ERR_FAILED when a file cannot
 * be opened; VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateNew(
    version: c_uint,
    policy: *const c_char,
    audit: *const c_char,
    flags: c_uint,
) -> virInternalDelegatePtr {
    let mut made = core::ptr::null_mut();
    enter(|| {
        end_with_a_panic();
        if version != VIR_INTERNAL_DELEGATE_VERSION {
            return Err(Error::version(format_args!(
                "the program was made for version {version} of the interface to delegates, but \
                 this library has version {VIR_INTERNAL_DELEGATE_VERSION}: build it with this \
                 library's header"
            )));
        }
        require_no_flags(flags)?;
        let policy = path(string("policy", policy)?).to_owned();
        let audit = match audit.is_null() {
            true => None,
            false => Some(path(string("audit", audit)?).to_owned()),
        };
        let read = Policy::read(&policy).map_err(of_policy)?;
        let server = Server::new(read, open_audit(audit.as_deref())?)
            .map_err(|error| of_io(&error, format_args!("cannot make a delegate")))?;
        made = Box::into_raw(Box::new(virInternalDelegate {
            server,
            policy,
            audit,
            runs: AtomicBool::new(false),
        }));
        Ok(())
    });
    made
}
symver!(virInternalDelegateNew);

/**
 * virInternalDelegateListen:
 * @delegate: the delegate
 * @address: "unix:/path" of a socket to make, or "fd:NUMBER", a Unix socket of
 * type SOCK_SEQPACKET that listens already, such as one that systemd made
 * @label: what rules, quotas and audit lines know the peers by that connect
 * there, such as a VM's id, or NULL
 * @flags: 0
 *
 * Listens on an address, besides those that are listened on already. Before
 * and while the delegate runs; connections made before it runs wait.
 *
 * Every user may connect to a socket that is made: what they may have done is
 * said by the policy. A socket's file that a delegate left which is no more is
 * replaced. A descriptor is copied and stays the caller's, but it gets the
 * flag O_NONBLOCK, which its copies share.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error, with nothing changed:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for an @address that is none, a path of
 * more than 107 bytes, a descriptor that is no such socket, a @label of more
 * than 255 bytes, an empty one or one with control characters, and unknown
 * @flags; VIR_INTERNAL_ERR_FAILED when it cannot be listened on, with
 * EADDRINUSE when somebody does already, EEXIST when the path is another kind
 * of file, ECANCELED when the delegate was stopped; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateListen(
    delegate: virInternalDelegatePtr,
    address: *const c_char,
    label: *const c_char,
    flags: c_uint,
) -> c_int {
    enter(|| {
        let server = &self::delegate(delegate)?.server;
        require_no_flags(flags)?;
        let text = string("address", address)?;
        let label = self::label(label)?;
        let parsed = Address::parse(text)?;
        let Ok(name) = text.to_str() else {
            return Err(Error::invalid(format_args!(
                "the address {} is not UTF-8",
                Shown(text)
            )));
        };
        let listening = match parsed {
            Address::Descriptor(fd) => {
                let fd = copy(fd, "address fd")?.into_raw();
                // SAFETY: just made.
                server.listen_on(unsafe { OwnedFd::from_raw_fd(fd) }, name, label)
            }
            _ => server.listen(name, label),
        };
        listening.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTSOCK) => Error::invalid(format_args!("{name} is not a socket")),
            _ => of_io(&error, format_args!("cannot listen on {}", Shown(text))),
        })
    })
}
symver!(virInternalDelegateListen);

/**
 * virInternalDelegateStopListening:
 * @delegate: the delegate
 * @address: an address, as it was given to virInternalDelegateListen()
 *
 * Stops listening on an address, and ends the connections that were made
 * there, each after what it is doing. When this returns nobody can connect
 * there any more, a socket's file that was made is removed, and the address
 * can be listened on again.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error: VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for
 * an @address that is not listened on; VIR_INTERNAL_ERR_FORKED (ECHILD) in a
 * forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateStopListening(
    delegate: virInternalDelegatePtr,
    address: *const c_char,
) -> c_int {
    enter(|| {
        let server = &self::delegate(delegate)?.server;
        let text = string("address", address)?;
        match text.to_str().is_ok_and(|name| server.unlisten(name)) {
            true => Ok(()),
            false => Err(Error::invalid(format_args!(
                "{} is not listened on",
                Shown(text)
            ))),
        }
    })
}
symver!(virInternalDelegateStopListening);

/**
 * virInternalDelegateAddConnection:
 * @delegate: the delegate
 * @fd: a connected Unix socket of type SOCK_SEQPACKET, such as one end of a
 * socketpair
 * @label: what rules, quotas and audit lines know the peer by, or NULL
 * @pidfd: the process at the other end, as pidfd_open() has it
 * @uid: its user id, for the policy
 * @gid: its group id, for the policy
 * @flags: 0
 *
 * Serves one connection more, from now on, be it before or while the delegate
 * runs. The kernel knows of a socketpair who made it, which is not who uses it:
 * that is told here, and believed. The process's cgroup is read now.
 *
 * Both descriptors are copied, and stay the caller's; a copy of @fd should not
 * be kept, because the peer would not see the end of the connection. @fd loses
 * the flag O_NONBLOCK, which copies share.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error, with nothing served:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for an @fd that is no such socket, a
 * @pidfd that is none of a process, a @uid or @gid of -1, a @label as for
 * virInternalDelegateListen(), a process that has no cgroup in the policy's
 * hierarchy, and unknown @flags; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH) when the
 * process has exited; VIR_INTERNAL_ERR_FAILED when there are too many
 * connections (EAGAIN), the delegate was stopped (ECANCELED) or the system
 * fails; VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateAddConnection(
    delegate: virInternalDelegatePtr,
    fd: c_int,
    label: *const c_char,
    pidfd: c_int,
    uid: uid_t,
    gid: gid_t,
    flags: c_uint,
) -> c_int {
    enter(|| {
        let server = &self::delegate(delegate)?.server;
        require_no_flags(flags)?;
        for (name, id) in [("uid", uid), ("gid", gid)] {
            if id == u32::MAX {
                return Err(Error::invalid(format_args!("{name} -1 is nobody's")));
            }
        }
        let label = self::label(label)?.map(str::to_owned);
        let socket = connected(fd)?;
        let peer = given(server, pidfd, uid, gid, label)?;
        server
            .serve_given(socket, peer)
            .map_err(|error| of_io(&error, format_args!("cannot serve the connection")))
    })
}
symver!(virInternalDelegateAddConnection);

/**
 * virInternalDelegateRun:
 * @delegate: the delegate
 *
 * Serves whoever connects, until virInternalDelegateStop(). Each connection has
 * a thread, which inherits the calling thread's signal mask, and calls the
 * process's handlers. Then it stops listening, ends the connections, each
 * after what it is doing, and waits up to 5 seconds for them.
 *
 * A delegate runs once: after a stop it serves nobody any more. This thread
 * cannot be cancelled meanwhile.
 *
 * Not possible in a forked child.
 *
 * Returns 0 when the delegate was stopped, -1 on error: VIR_INTERNAL_ERR_FAILED
 * with EBUSY when it runs already, or another errno when it cannot wait for
 * connections; VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) when @delegate is NULL;
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateRun(delegate: virInternalDelegatePtr) -> c_int {
    enter(|| {
        let delegate = self::delegate(delegate)?;
        if delegate.runs.swap(true, Ordering::AcqRel) {
            return Err(Error::failed(
                Errno(libc::EBUSY),
                format_args!("the delegate runs already"),
            ));
        }
        let run = delegate.server.run();
        delegate.runs.store(false, Ordering::Release);
        run.map_err(|error| of_io(&error, format_args!("cannot wait for connections")))
    })
}
symver!(virInternalDelegateRun);

/**
 * virInternalDelegateStop:
 * @delegate: the delegate
 *
 * Has virInternalDelegateRun() return, now or as soon as it is called. Does not
 * wait for that.
 *
 * Async-signal-safe: a signal handler may call it. So the last error is left
 * alone, and errno unless it fails. Thread-safe. Not possible in a forked
 * child.
 *
 * Returns 0 on success, -1 on error, with errno alone: EINVAL when @delegate is
 * NULL, ECHILD in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateStop(delegate: virInternalDelegatePtr) -> c_int {
    // SAFETY: as in `delegate`.
    let failed = match unsafe { delegate.as_ref() } {
        None => Errno::EINVAL,
        Some(_) if is_child() => Errno::ECHILD,
        Some(delegate) => {
            delegate.server.stop();
            return 0;
        }
    };
    failed.set();
    -1
}
symver!(virInternalDelegateStop);

/// Whether this is a child of the process that made the delegate.
fn is_child() -> bool {
    fork::page_if_made().is_some_and(Page::is_child)
}

/**
 * virInternalDelegateReload:
 * @delegate: the delegate
 *
 * Reads the policy's file again, and puts it in force: for every request from
 * now on. Opens the audit file again, too, which may have been renamed.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error, and the policy and the audit file stay
 * what they were: VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for a policy that has
 * an error, which the message shows with file, line and column, or that means
 * another hierarchy of cgroups; VIR_INTERNAL_ERR_FAILED when a file cannot be
 * opened; VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateReload(delegate: virInternalDelegatePtr) -> c_int {
    enter(|| {
        let delegate = self::delegate(delegate)?;
        let policy = Policy::read(&delegate.policy).map_err(of_policy)?;
        let audit = open_audit(delegate.audit.as_deref())?;
        let set = delegate.server.set_policy(policy);
        set.map_err(|error| {
            Error::invalid(format_args!("{}: {error}", delegate.policy.display()))
        })?;
        delegate.server.set_audit(audit);
        Ok(())
    })
}
symver!(virInternalDelegateReload);

/**
 * virInternalDelegateGetMetrics:
 * @delegate: the delegate
 *
 * Tells what was counted since the delegate was made: operations by outcome,
 * their time, connections. In the text format of Prometheus.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns the text, to be freed by free(), or NULL on error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) when @delegate is NULL;
 * VIR_INTERNAL_ERR_FAILED (ENOMEM) without memory; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateGetMetrics(
    delegate: virInternalDelegatePtr,
) -> *mut c_char {
    let mut text = core::ptr::null_mut();
    enter(|| {
        let metrics = self::delegate(delegate)?.server.metrics();
        // SAFETY: as many bytes as that.
        text = unsafe { libc::strndup(metrics.as_ptr().cast(), metrics.len()) };
        match text.is_null() {
            true => Err(Error::failed(
                Errno(libc::ENOMEM),
                format_args!("cannot have the text of the metrics"),
            )),
            false => Ok(()),
        }
    });
    text
}
symver!(virInternalDelegateGetMetrics);

/**
 * virInternalDelegateFree:
 * @delegate: the delegate, or NULL
 *
 * Frees a delegate which does not run any more, or never did. Stops listening,
 * ends the connections and waits for them, as virInternalDelegateRun() does
 * when it is stopped. Nobody may use it meanwhile or afterwards, and no signal
 * handler; it must not be called in a handler of this library.
 *
 * What a peer sent can block the thread that closes it: such a thread is left
 * to itself after 5 seconds, and needs nothing of what is freed here.
 *
 * In a forked child nothing is done: what the parent has stays as it is. The
 * last error is left alone.
 *
 * Since: 0.1.0
 */
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virInternalDelegateFree(delegate: virInternalDelegatePtr) {
    if delegate.is_null() || is_child() {
        return;
    }
    uncancelled(|| {
        // SAFETY: virInternalDelegateNew() made it, and nobody else uses it:
        // the caller's word.
        let delegate = unsafe { Box::from_raw(delegate) };
        delegate.server.stop();
        delegate.server.end();
    });
}
symver!(virInternalDelegateFree);
