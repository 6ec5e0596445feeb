// SPDX-License-Identifier: LGPL-2.1-or-later
//! The handlers as a forked child sees them: read without a lock, without
//! allocation, and without writing anything.
//!
//! A child of fork() has the memory as it was at one moment, whatever its
//! parent's threads were doing; a lock may be held in it for ever. A child of
//! vfork() even shares the memory with threads that go on. So there are two
//! tables, of which the one with the version's parity is complete while the
//! other is being written. Tables are never freed, only outgrown, so that a
//! reader that is late reads old words, notices by the version, and repeats.

use alloc::boxed::Box;
use core::ptr;

use super::{Handler, Key};
use crate::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::relax;

/// The words of one handler, each of which may be read while it is written.
struct Slot {
    key: AtomicUsize,
    id: AtomicU64,
    code: AtomicPtr<()>,
    opaque: AtomicPtr<core::ffi::c_void>,
    fork_safe: AtomicUsize,
}

impl Slot {
    fn new() -> Self {
        Slot {
            key: AtomicUsize::new(0),
            id: AtomicU64::new(0),
            code: AtomicPtr::new(ptr::null_mut()),
            opaque: AtomicPtr::new(ptr::null_mut()),
            fork_safe: AtomicUsize::new(0),
        }
    }

    fn write(&self, (key, id, handler): (Key, u64, Handler)) {
        self.key.store(key, Ordering::Relaxed);
        self.id.store(id, Ordering::Relaxed);
        self.code.store(handler.code.cast_mut(), Ordering::Relaxed);
        self.opaque.store(handler.opaque, Ordering::Relaxed);
        self.fork_safe
            .store(handler.fork_safe.into(), Ordering::Relaxed);
    }

    fn read(&self) -> (u64, Handler) {
        let handler = Handler {
            code: self.code.load(Ordering::Relaxed),
            opaque: self.opaque.load(Ordering::Relaxed),
            // Children free nothing: that is left to their parent.
            free: None,
            fork_safe: self.fork_safe.load(Ordering::Relaxed) != 0,
        };
        (self.id.load(Ordering::Relaxed), handler)
    }
}

struct Table {
    length: AtomicUsize,
    slots: Box<[Slot]>,
    /// The table that this one took the place of: a late reader may be in it.
    _outgrown: *mut Table,
}

pub(super) struct View {
    version: AtomicUsize,
    tables: [AtomicPtr<Table>; 2],
}

macro_rules! view_new {
    ($($const:tt)?) => {
        pub(super) $($const)? fn new() -> Self {
            View {
                version: AtomicUsize::new(0),
                tables: [
                    AtomicPtr::new(ptr::null_mut()),
                    AtomicPtr::new(ptr::null_mut()),
                ],
            }
        }
    };
}

impl View {
    #[cfg(not(loom))]
    view_new!(const);
    #[cfg(loom)]
    view_new!();

    /// Makes `handlers` the ones that children see. The caller holds the
    /// registry's lock: there is one writer at a time.
    pub(super) fn publish(&self, handlers: impl ExactSizeIterator<Item = (Key, u64, Handler)>) {
        let next = self.version.load(Ordering::Relaxed).wrapping_add(1);
        // Whoever sees a word of what follows also sees the version that put
        // the other table in force, and no longer trusts this one.
        fence(Ordering::Release);
        let table = self.table_for(next % 2, handlers.len());
        table.length.store(handlers.len(), Ordering::Relaxed);
        for (slot, handler) in table.slots.iter().zip(handlers) {
            slot.write(handler);
        }
        self.version.store(next, Ordering::Release);
    }

    fn table_for(&self, index: usize, length: usize) -> &Table {
        let current = self.tables[index].load(Ordering::Relaxed);
        // SAFETY: a table is never freed.
        let grown = match unsafe { current.as_ref() } {
            Some(table) if table.slots.len() >= length => return table,
            _ => length.next_power_of_two(),
        };
        let table = Box::into_raw(Box::new(Table {
            length: AtomicUsize::new(0),
            slots: (0..grown).map(|_| Slot::new()).collect(),
            _outgrown: current,
        }));
        self.tables[index].store(table, Ordering::Release);
        // SAFETY: made right above, and never freed.
        unsafe { &*table }
    }

    /// The id of what is set for `key`, and what it is.
    pub(super) fn find(&self, key: Key) -> Option<(u64, Handler)> {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let table = self.tables[version % 2].load(Ordering::Acquire);
            // SAFETY: a table is never freed.
            let found = unsafe { table.as_ref() }.and_then(|table| {
                let length = table.length.load(Ordering::Relaxed);
                table.slots[..length.min(table.slots.len())]
                    .iter()
                    .find(|slot| slot.key.load(Ordering::Relaxed) == key)
                    .map(Slot::read)
            });
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return found;
            }
            relax();
        }
    }
}
