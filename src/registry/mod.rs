// SPDX-License-Identifier: LGPL-2.1-or-later
//! The handlers of one operation: who is asked, and when a handler is gone.
//!
//! Any thread may set, unset and call at any time. The lock is held to look a
//! handler up or to change the list, never while foreign code runs; what
//! keeps a handler alive while it runs is the count of who is inside it. The
//! last one out of a removed handler calls its free callback.

#[cfg(all(test, loom))]
mod model;
mod view;

use alloc::vec::Vec;
use core::ffi::c_void;

use crate::foreign;
use crate::inside::{HANDLER_NONE, Inside, Mark};
use crate::sync::atomic::{AtomicUsize, Ordering, fence};
use crate::sync::{Arc, Condvar, Mutex, lock, wait};
use view::View;

/// What a handler was set for: the address of a connection, or 0 for all.
/// It is never dereferenced.
pub(crate) type Key = usize;

/// A handler's code, its type erased. Only the operation that set it knows
/// the type, and only that operation's registry holds it.
pub(crate) type Code = *const ();

/// What the application wants called when the handler is gone.
pub(crate) type FreeCallback = unsafe extern "C-unwind" fn(*mut c_void);

/// What an application sets.
#[derive(Clone, Copy)]
pub(crate) struct Handler {
    pub(crate) code: Code,
    pub(crate) opaque: *mut c_void,
    pub(crate) free: Option<FreeCallback>,
    pub(crate) fork_safe: bool,
}

// SAFETY: setting a handler is the application's word that it may be called,
// with its opaque, from any thread (the header says so).
unsafe impl Send for Handler {}
// SAFETY: as above.
unsafe impl Sync for Handler {}

/// The bit of `Entry::inside` that says that the handler was removed. The
/// bits below count who is inside.
const REMOVED: usize = 1 << (usize::BITS - 1);

struct Entry {
    key: Key,
    id: u64,
    handler: Handler,
    inside: AtomicUsize,
}

struct State {
    entries: Vec<Arc<Entry>>,
    /// Removed, but somebody is inside or the free callback has not returned.
    leaving: Vec<Arc<Entry>>,
    last_id: u64,
}

/// The handlers of one operation.
pub(crate) struct Registry {
    operation: u32,
    /// How many there are: all that a call reads when there is none.
    count: AtomicUsize,
    state: Mutex<State>,
    left: Condvar,
    view: View,
}

macro_rules! registry_new {
    ($($const:tt)?) => {
        /// The registry of the operation with that id.
        pub(crate) $($const)? fn new(operation: u32) -> Self {
            Registry {
                operation,
                count: AtomicUsize::new(0),
                state: Mutex::new(State {
                    entries: Vec::new(),
                    leaving: Vec::new(),
                    last_id: HANDLER_NONE,
                }),
                left: Condvar::new(),
                view: View::new(),
            }
        }
    };
}

impl Registry {
    #[cfg(not(loom))]
    registry_new!(const);
    #[cfg(loom)]
    registry_new!();

    /// Whether no handler is set for any connection.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: whoever needs the handler to be seen has waited for the
        // set to return, and knows of it by some synchronisation of its own.
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Goes into the handler set for `key`, unless this thread is inside it
    /// already. It is not freed before the result is dropped.
    pub(crate) fn enter<'a>(&'a self, key: Key, inside: &'a Inside) -> Option<Call<'a>> {
        let state = lock(&self.state);
        let entry = state
            .entries
            .iter()
            .find(|entry| entry.key == key)
            .filter(|entry| !inside.contains(self.operation, entry.id))?;
        // Relaxed: ordered against the removal by the lock.
        entry.inside.fetch_add(1, Ordering::Relaxed);
        Some(Call {
            handler: entry.handler,
            id: entry.id,
            inside,
            counted: Some((self, Arc::as_ptr(entry))),
        })
    }

    /// As [`enter`](Self::enter), for forked children: takes no lock and
    /// writes nothing, so nobody waits for the call either. Whether the child
    /// is inside it already is not known here: it may have been forked there.
    pub(crate) fn enter_in_child<'a>(&'a self, key: Key, inside: &'a Inside) -> Option<Call<'a>> {
        let (id, handler) = self.view.find(key)?;
        Some(Call {
            handler,
            id,
            inside,
            counted: None,
        })
    }

    /// Puts `new` in the place of what is set for `key`.
    ///
    /// Made outside any handler, it returns when nobody is inside a handler
    /// that was removed for `key` and its free callback has returned.
    pub(crate) fn set(&self, key: Key, new: Option<Handler>, inside: &Inside) {
        let mut state = lock(&self.state);
        let old = state
            .entries
            .iter()
            .position(|entry| entry.key == key)
            .map(|index| state.entries.remove(index));
        if let Some(handler) = new {
            state.last_id += 1;
            let entry = Arc::new(Entry {
                key,
                id: state.last_id,
                handler,
                inside: AtomicUsize::new(0),
            });
            state.entries.push(entry);
        }
        self.view.publish(
            state
                .entries
                .iter()
                .map(|entry| (entry.key, entry.id, entry.handler)),
        );
        self.count.store(state.entries.len(), Ordering::Relaxed);
        if let Some(old) = &old {
            state.leaving.push(Arc::clone(old));
        }
        drop(state);

        if let Some(old) = old
            && old.inside.fetch_or(REMOVED, Ordering::AcqRel) == 0
        {
            self.free(Arc::as_ptr(&old), inside);
        }
        if inside.is_empty() {
            self.wait_until_gone(key);
        }
    }

    fn wait_until_gone(&self, key: Key) {
        let mut state = lock(&self.state);
        while state.leaving.iter().any(|entry| entry.key == key) {
            state = wait(&self.left, state);
        }
    }

    /// Calls the free callback of a handler that nobody is inside any more.
    /// It counts as a handler: a set made in it does not wait for its own end.
    fn free(&self, entry: *const Entry, inside: &Inside) {
        // SAFETY: in `leaving` until it is taken out below, which is done by
        // the last one who was inside, here.
        let handler = unsafe { (*entry).handler };
        if let Some(free) = handler.free {
            let mut mark = Mark::new();
            let _entered = inside.enter(self.operation, HANDLER_NONE, &mut mark);
            let guard = foreign::Guard;
            // SAFETY: the application gave both, to be called once when the
            // handler is gone; `Call` and `set` see to the once.
            unsafe { free(handler.opaque) };
            guard.returned();
        }
        let mut state = lock(&self.state);
        state
            .leaving
            .retain(|leaving| !core::ptr::eq(Arc::as_ptr(leaving), entry));
        drop(state);
        self.left.notify_all();
    }
}

/// A thread's being in a handler, which is not freed as long as this lives.
#[must_use]
pub(crate) struct Call<'a> {
    pub(crate) handler: Handler,
    pub(crate) id: u64,
    inside: &'a Inside,
    /// The registry has the entry as long as somebody is counted inside it.
    counted: Option<(&'a Registry, *const Entry)>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let Some((registry, entry)) = self.counted else {
            return;
        };
        // SAFETY: this call is counted, so the registry still has the entry.
        let inside = unsafe { &(*entry).inside };
        // Release: what was done inside comes before the free callback.
        if inside.fetch_sub(1, Ordering::Release) == REMOVED | 1 {
            fence(Ordering::Acquire);
            registry.free(entry, self.inside);
        }
    }
}
