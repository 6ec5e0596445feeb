// SPDX-License-Identifier: LGPL-2.1-or-later
//! The registry's promises, in every order that its steps can take:
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib model`.

use std::ffi::c_void;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use loom::thread;

use super::{Handler, Key, Registry};
use crate::inside::{Inside, Mark};
use crate::sync::Arc;

const CONN: Key = 0x1000;

/// What the model knows of one handler. Its atomics are std's, which are no
/// steps of the model: they observe, and order nothing.
#[derive(Default)]
struct Seen {
    inside: AtomicUsize,
    freed: AtomicUsize,
    /// How long the free callback has begun but not returned.
    freeing: AtomicBool,
}

unsafe extern "C-unwind" fn free(opaque: *mut c_void) {
    // SAFETY: every `Seen` of this file outlives its registry.
    let seen = unsafe { &*opaque.cast::<Seen>() };
    seen.freeing.store(true, SeqCst);
    assert_eq!(
        seen.inside.load(SeqCst),
        0,
        "freed while somebody is inside"
    );
    // A step of the model: others may run in the midst of the callback.
    thread::yield_now();
    assert_eq!(seen.freed.fetch_add(1, SeqCst), 0, "freed twice");
    seen.freeing.store(false, SeqCst);
}

impl Seen {
    fn leak() -> &'static Seen {
        Box::leak(Box::default())
    }

    fn handler(&'static self) -> Handler {
        Handler {
            code: std::ptr::from_ref(self).cast(),
            opaque: std::ptr::from_ref(self).cast_mut().cast(),
            free: Some(free),
            fork_safe: true,
        }
    }

    fn of(handler: &Handler) -> &'static Seen {
        // SAFETY: every handler of this file is made by `handler` above.
        unsafe { &*handler.opaque.cast::<Seen>() }
    }

    /// What a set or unset made outside any handler promises of this handler,
    /// if it was removed for the key.
    fn assert_gone(&self) {
        assert_eq!(self.inside.load(SeqCst), 0, "somebody is still inside");
        assert_eq!(self.freed.load(SeqCst), 1, "the free callback has not run");
        assert!(!self.freeing.load(SeqCst), "the free callback still runs");
    }
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::new(1))
}

/// As an operation does: goes into the handler of `CONN`, if there is one,
/// and runs `body` in it.
fn call(registry: &Registry, inside: &Inside, body: impl FnOnce(&'static Seen)) {
    let Some(call) = registry.enter(CONN, inside) else {
        return;
    };
    let seen = Seen::of(&call.handler);
    assert_eq!(seen.freed.load(SeqCst), 0, "entered after it was freed");
    seen.inside.fetch_add(1, SeqCst);
    {
        let mut mark = Mark::new();
        let _entered = inside.enter(1, call.id, &mut mark);
        thread::yield_now();
        body(seen);
    }
    assert_eq!(seen.freed.load(SeqCst), 0, "freed while we were inside");
    seen.inside.fetch_sub(1, SeqCst);
    drop(call);
}

fn spawn(body: impl FnOnce(&Inside) + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || body(&Inside::new()))
}

#[test]
fn unset_returns_when_nobody_is_inside_and_it_is_freed() {
    loom::model(|| {
        let (registry, first) = (registry(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let registry = Arc::clone(&registry);
                spawn(move |inside| call(&registry, inside, |_| ()))
            })
            .collect();
        registry.set(CONN, None, &inside);
        first.assert_gone();
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
    });
}

#[test]
fn replacing_a_handler_frees_the_old_one_and_not_the_new_one() {
    loom::model(|| {
        let (registry, first, second) = (registry(), Seen::leak(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        let caller = {
            let registry = Arc::clone(&registry);
            spawn(move |inside| {
                call(&registry, inside, |_| ());
                call(&registry, inside, |_| ());
            })
        };
        registry.set(CONN, Some(second.handler()), &inside);
        first.assert_gone();
        caller.join().unwrap();
        assert_eq!(second.freed.load(SeqCst), 0);
        registry.set(CONN, None, &inside);
        second.assert_gone();
    });
}

#[test]
fn concurrent_sets_free_each_handler_once() {
    loom::model(|| {
        let registry = registry();
        let (first, second) = (Seen::leak(), Seen::leak());
        let inside = Inside::new();
        let other = {
            let registry = Arc::clone(&registry);
            spawn(move |inside| registry.set(CONN, Some(second.handler()), inside))
        };
        registry.set(CONN, Some(first.handler()), &inside);
        other.join().unwrap();
        registry.set(CONN, None, &inside);
        first.assert_gone();
        second.assert_gone();
    });
}

#[test]
fn two_handlers_that_unset_each_other_do_not_wait_for_each_other() {
    loom::model(|| {
        let (registry, first) = (registry(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        let unset_from_inside = |registry: Arc<Registry>| {
            move |inside: &Inside| {
                call(&registry, inside, |_| registry.set(CONN, None, inside));
            }
        };
        let other = spawn(unset_from_inside(Arc::clone(&registry)));
        unset_from_inside(Arc::clone(&registry))(&inside);
        other.join().unwrap();
        first.assert_gone();
    });
}

#[test]
fn an_unset_outside_also_waits_for_what_was_unset_inside() {
    loom::model(|| {
        let (registry, first) = (registry(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        let unset_inside = {
            let registry = Arc::clone(&registry);
            spawn(move |inside| {
                call(&registry, inside, |_| {
                    registry.set(CONN, None, inside);
                    thread::yield_now();
                });
            })
        };
        registry.set(CONN, None, &inside);
        first.assert_gone();
        unset_inside.join().unwrap();
    });
}

#[test]
fn a_handler_set_again_from_inside_itself_is_freed_when_left() {
    loom::model(|| {
        let (registry, first, second) = (registry(), Seen::leak(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        let other = {
            let registry = Arc::clone(&registry);
            spawn(move |inside| call(&registry, inside, |_| ()))
        };
        call(&registry, &inside, |_| {
            registry.set(CONN, Some(second.handler()), &inside);
            assert_eq!(first.freed.load(SeqCst), 0, "freed with ourselves inside");
        });
        other.join().unwrap();
        first.assert_gone();
        registry.set(CONN, None, &inside);
        second.assert_gone();
    });
}

#[test]
fn a_connection_closed_meanwhile_leaves_the_others_alone() {
    const OTHER: Key = 0x2000;
    loom::model(|| {
        let (registry, first, others) = (registry(), Seen::leak(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        registry.set(OTHER, Some(others.handler()), &inside);
        let caller = {
            let registry = Arc::clone(&registry);
            spawn(move |inside| call(&registry, inside, |_| ()))
        };
        // As virInternalConnectionClosed() does for each operation.
        registry.set(CONN, None, &inside);
        first.assert_gone();
        caller.join().unwrap();
        assert_eq!(others.freed.load(SeqCst), 0);
        assert!(!registry.is_empty());
        registry.set(OTHER, None, &inside);
        others.assert_gone();
        assert!(registry.is_empty());
    });
}

#[test]
fn a_child_that_shares_memory_sees_handlers_whole_or_not_at_all() {
    loom::model(|| {
        let (registry, first, second) = (registry(), Seen::leak(), Seen::leak());
        let inside = Inside::new();
        registry.set(CONN, Some(first.handler()), &inside);
        // A vforked child: reads while its parent's threads go on.
        let child = {
            let registry = Arc::clone(&registry);
            spawn(move |inside| {
                if let Some(call) = registry.enter_in_child(CONN, inside) {
                    let code = call.handler.code.cast_mut().cast::<c_void>();
                    assert_eq!(code, call.handler.opaque, "two handlers in one");
                    assert!(call.handler.fork_safe);
                }
            })
        };
        registry.set(CONN, None, &inside);
        registry.set(CONN, Some(second.handler()), &inside);
        child.join().unwrap();
        registry.set(CONN, None, &inside);
    });
}
