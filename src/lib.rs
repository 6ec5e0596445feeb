// SPDX-License-Identifier: LGPL-2.1-or-later
//! Delegation of libvirt's privileged operations.
//!
//! A daemon calls an operation, such as
//! [`virInternalProcessSetMaxMemLock`](capi::process_set_max_mem_lock::virInternalProcessSetMaxMemLock).
//! If an application set a handler for it, the handler does the work; else the
//! library asks the kernel itself, with libvirt's semantics. When a handler
//! says that it is done, the kernel's state is read back.
//!
//! A call goes through these modules, from the top down:
//!
//! | module | what it does |
//! |---|---|
//! | [`capi`] | checks a C caller's arguments and makes a request of them |
//! | `dispatch` | asks the handlers, then the kernel; reads the state back |
//! | `registry` | which handler is set, who is inside it, when it is freed |
//! | [`operation`] | one file an operation: its request, its way, its read-back |
//! | `kernel` | the kernel's interfaces, without allocation |
//!
//! and beside them are `fork` (is this a child?), `thread` (last error),
//! `inside` (which handlers a thread is in), `foreign` (code that may not
//! return) and [`error`].

//! The shared library is built without std, see `runtime`; the feature `std`
//! is for Rust programs that use this crate, such as the command.

#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![warn(missing_docs)]
#![allow(non_camel_case_types)]

extern crate alloc;

#[cfg(not(loom))]
#[allow(non_snake_case, clippy::missing_safety_doc)]
pub mod capi;
/// cbindgen:ignore
#[cfg(not(loom))]
pub mod delegate;
#[cfg(not(loom))]
mod dispatch;
mod errno;
#[cfg(not(loom))]
pub mod error;
mod foreign;
#[cfg(not(loom))]
mod fork;
mod inside;
#[cfg(not(loom))]
mod kernel;
#[cfg(not(loom))]
pub mod operation;
mod registry;
#[cfg(not(any(feature = "std", test)))]
mod runtime;
mod sync;
#[cfg(not(loom))]
mod thread;

#[cfg(not(loom))]
pub use dispatch::Kind;
