// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the operations on resource limits have in common: all but which limit.

use core::ffi::c_void;
use core::fmt;

use libc::{c_int, pid_t};

use crate::delegate::wire::Request;
#[cfg(feature = "delegate")]
use crate::delegate::wire::{Reader, Understood};
#[cfg(feature = "delegate")]
use crate::dispatch::Outcome;
use crate::dispatch::{Operation, cannot, not_done, not_readable};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::kernel::process::{Held, Known, Pid};
use crate::kernel::rlimit::{self, Limit, Resource};
use crate::registry::Code;

/// A limit that an operation sets: what one has different from the others.
pub(crate) trait Settable {
    /// As the C function takes it.
    type Value: Figure;

    const RESOURCE: &'static Resource;

    /// What the kernel is told.
    fn limit(value: Self::Value) -> u64 {
        value.into()
    }

    /// Whether what the kernel has is what was asked for: a handler may grant
    /// more, unless the operation says otherwise.
    fn is_enough(found: Limit, value: Self::Value) -> bool {
        found.soft.min(found.hard) >= value.into()
    }

    /// Calls a handler.
    ///
    /// # Safety
    /// `handler` is a handler of this operation, `opaque` what it was set with.
    unsafe fn invoke(handler: Code, pid: pid_t, value: Self::Value, opaque: *mut c_void) -> c_int;
}

/// The figure of a limit, as it is passed and sent.
pub(crate) trait Figure: Copy + Ord + Into<u64> + fmt::Display {
    fn write(self, request: &mut Request<'_>);
    #[cfg(feature = "delegate")]
    fn read(body: &mut Reader<'_>) -> Understood<Self>;
}

impl Figure for u32 {
    fn write(self, request: &mut Request<'_>) {
        request.fixed.u32(self);
    }

    #[cfg(feature = "delegate")]
    fn read(body: &mut Reader<'_>) -> Understood<u32> {
        body.u32()
    }
}

impl Figure for u64 {
    fn write(self, request: &mut Request<'_>) {
        request.fixed.u64(self);
    }

    #[cfg(feature = "delegate")]
    fn read(body: &mut Reader<'_>) -> Understood<u64> {
        body.u64()
    }
}

/// A request to set a limit of a process.
pub(crate) struct SetLimit<L: Settable> {
    pid: Pid,
    value: L::Value,
    #[cfg(feature = "delegate")]
    seen: Seen,
}

impl<L: Settable> SetLimit<L> {
    pub(crate) fn new(pid: Pid, value: L::Value) -> Self {
        SetLimit {
            pid,
            value,
            #[cfg(feature = "delegate")]
            seen: Seen::default(),
        }
    }
}

impl<L: Settable> Operation for SetLimit<L> {
    #[inline(always)]
    fn hold(&self, known: Option<Known>) -> Result<Held> {
        Held::process(self.pid, known)
    }

    unsafe fn invoke(&self, handler: Code, opaque: *mut c_void) -> c_int {
        // SAFETY: the caller's word.
        unsafe { L::invoke(handler, self.pid.get(), self.value, opaque) }
    }

    #[inline(always)]
    fn read_back(&self) -> Result<()> {
        let found = rlimit::get(L::RESOURCE, self.pid);
        #[cfg(feature = "delegate")]
        self.seen.found.set(found.ok());
        match found {
            Ok(limit) if L::is_enough(limit, self.value) => Ok(()),
            Ok(limit) => Err(not_done(self, format_args!("the kernel says {limit}"))),
            Err(Errno::ESRCH) => Err(Error::no_process(format_args!(
                "process {} went away meanwhile",
                self.pid
            ))),
            Err(errnum) => Err(not_readable(self, errnum)),
        }
    }

    fn request<'a>(&'a self, held: &Held, request: &mut Request<'a>) -> Result<()> {
        request.process(held);
        self.value.write(request);
        Ok(())
    }

    #[inline(always)]
    fn direct(&self) -> Result<()> {
        rlimit::set(L::RESOURCE, self.pid, L::limit(self.value))
            .map_err(|errnum| cannot(self, errnum))
    }

    #[cfg(feature = "delegate")]
    fn act(&self) -> Result<Outcome> {
        let replaced = rlimit::replace(L::RESOURCE, self.pid, L::limit(self.value))
            .map_err(|errnum| cannot(self, errnum))?;
        self.seen.replaced.set(Some(replaced));
        Ok(Outcome::Done)
    }

    #[cfg(feature = "delegate")]
    fn undo(&self) {
        let value = L::limit(self.value);
        let set = Limit {
            soft: value,
            hard: value,
        };
        // What another has set since then stays.
        if let Some(replaced) = self.seen.replaced.get()
            && let Ok(held) = Held::process(self.pid, None)
            && rlimit::get(L::RESOURCE, self.pid) == Ok(set)
            && held.require_still().is_ok()
        {
            let _ = rlimit::exchange(L::RESOURCE, self.pid, replaced);
        }
    }
}

/// As libvirt says it.
impl<L: Settable> fmt::Display for SetLimit<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SetLimit { pid, value, .. } = self;
        write!(f, "limit {} of process {pid} to {value}", L::RESOURCE.words)
    }
}

#[cfg(feature = "delegate")]
use served::Seen;
#[cfg(feature = "delegate")]
pub(crate) use served::{Amount, Bounds, Served, at_most};

/// What a delegate does with a request to set a limit.
#[cfg(feature = "delegate")]
mod served {
    use alloc::string::String;
    use core::cell::Cell;
    use core::fmt::Write;

    use super::*;
    use crate::delegate::policy::{self, Contradiction, Denied};
    use crate::delegate::server::serve::{Asked, Read, Serve, Subject};
    use crate::operation::Allowed;

    /// What a delegate has seen of a limit, for its audit line.
    #[derive(Default)]
    pub(super) struct Seen {
        /// What was there, taken in the same moment in which it was set.
        pub(super) replaced: Cell<Option<Limit>>,
        /// What was read back.
        pub(super) found: Cell<Option<Limit>>,
    }

    /// What a delegate knows of a limit besides.
    pub(crate) trait Served: Settable {
        type Bounds: policy::Bounds;

        /// Its operation's name in a policy.
        const NAME: &'static str;

        /// What a rule allows of it, if anything.
        fn bounds(allowed: &Allowed) -> Option<&Self::Bounds>;

        /// What is set where so much is asked for; an error says why nothing is.
        fn permit(
            asked: Self::Value,
            bounds: &Self::Bounds,
        ) -> core::result::Result<Self::Value, String>;
    }

    /// What a policy's rule allows of a limit of which more may be granted.
    #[derive(Clone, Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    pub struct Bounds<V> {
        /// The most that may be asked for.
        pub max: V,
        /// Set at least this much, for callers whose own figure is too low.
        pub grant: Option<V>,
    }

    /// A figure of a policy's.
    pub trait Amount: Copy + Ord + fmt::Display {
        /// What the kernel is told where that is granted.
        fn as_told(self) -> Self {
            self
        }
    }

    impl Amount for u32 {}

    impl<V: Amount> Bounds<V> {
        /// What is granted to who asks for so much.
        pub(crate) fn permit(&self, asked: V) -> core::result::Result<V, String> {
            at_most(self.max, asked)?;
            Ok(self.grant.map_or(asked, |grant| grant.max(asked)))
        }
    }

    /// That no more is asked for than may be.
    pub(crate) fn at_most<V: Ord + fmt::Display>(
        max: V,
        asked: V,
    ) -> core::result::Result<(), String> {
        match asked > max {
            true => Err(std::format!("{asked} is more than {max}")),
            false => Ok(()),
        }
    }

    impl<V: Amount> policy::Bounds for Bounds<V> {
        fn check(&self) -> core::result::Result<(), Contradiction> {
            let Bounds { max, grant } = *self;
            let Some(told) = grant.map(V::as_told).filter(|told| *told > max) else {
                return Ok(());
            };
            let mut text = std::format!("it must be at most max, which is {max}");
            if Some(told) != grant {
                text += &std::format!(", and the kernel is told {told} for it");
            }
            Err(Contradiction::new("grant", text))
        }
    }

    impl<V: fmt::Display> fmt::Display for Bounds<V> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "up to {}", self.max)?;
            match &self.grant {
                Some(grant) => write!(f, "; at least {grant} is set"),
                None => Ok(()),
            }
        }
    }

    impl<'m, L: Served> Serve<'m> for SetLimit<L> {
        type Bounds = L::Bounds;

        const NAME: &'static str = L::NAME;

        fn bounds(allowed: &Allowed) -> Option<&L::Bounds> {
            L::bounds(allowed)
        }

        fn read(body: &mut Reader<'m>, subject: &mut Subject<'m>) -> Read<Self> {
            let pid = subject.process()?;
            Ok(Self::new(pid, L::Value::read(body)?))
        }

        fn permit(
            &mut self,
            bounds: &L::Bounds,
            asked: &Asked<'_>,
        ) -> core::result::Result<(), Denied> {
            self.value = L::permit(self.value, bounds).or_else(|why| asked.beyond(why))?;
            Ok(())
        }

        fn asked(&self, json: &mut String) -> fmt::Result {
            write!(json, "{}", self.value)
        }

        const REPLACES: bool = true;

        fn before(&self, json: &mut String) -> fmt::Result {
            self.write(json, self.seen.replaced.get())
        }

        fn after(&self, json: &mut String) -> fmt::Result {
            self.write(json, self.seen.found.get())
        }
    }

    impl<L: Settable> SetLimit<L> {
        /// What was seen as JSON; else what is there now.
        fn write(&self, json: &mut String, seen: Option<Limit>) -> fmt::Result {
            let Some(limit) = seen.or_else(|| rlimit::get(L::RESOURCE, self.pid).ok()) else {
                return json.write_str("null");
            };
            let mut comma = '{';
            for (name, value) in [("soft", limit.soft), ("hard", limit.hard)] {
                match value {
                    libc::RLIM_INFINITY => write!(json, "{comma}\"{name}\":\"unlimited\"")?,
                    value => write!(json, "{comma}\"{name}\":{value}")?,
                }
                comma = ',';
            }
            json.write_char('}')
        }
    }
}
