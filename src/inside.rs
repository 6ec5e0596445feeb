// SPDX-License-Identifier: LGPL-2.1-or-later
//! Which handlers a thread is inside of at this moment.
//!
//! A call from inside a handler skips that handler, and a set or unset made
//! there does not wait; both need to know. The record also finds out a
//! handler that was left by longjmp(), which runs nothing of ours.

use core::cell::Cell;

/// How many handlers may be inside one another on one thread.
pub(crate) const DEPTH_MAX: usize = 16;

/// Who is run: a handler of an operation, or (`HANDLER_NONE`) its free
/// callback.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) operation: u32,
    pub(crate) handler: u64,
    /// A word on the stack of whoever called the handler, equal to `seal` as
    /// long as that call has not been left.
    mark: *const u64,
    seal: u64,
}

/// The id that no handler has.
pub(crate) const HANDLER_NONE: u64 = 0;

const FRAME_NONE: Frame = Frame {
    operation: 0,
    handler: HANDLER_NONE,
    mark: core::ptr::null(),
    seal: 0,
};

/// The stack of the handlers that one thread is inside of. All zeros is an
/// empty one.
pub(crate) struct Inside {
    depth: Cell<usize>,
    frames: [Cell<Frame>; DEPTH_MAX],
}

/// The word on the stack that [`Inside::enter`] marks a frame with.
pub(crate) struct Mark(u64);

impl Mark {
    pub(crate) const fn new() -> Self {
        Mark(0)
    }
}

impl Inside {
    pub(crate) const fn new() -> Self {
        Inside {
            depth: Cell::new(0),
            frames: [const { Cell::new(FRAME_NONE) }; DEPTH_MAX],
        }
    }

    /// One that no handler can be entered with: where there is no room to
    /// record it.
    #[cfg(not(loom))]
    pub(crate) fn full() -> Self {
        let full = Inside::new();
        full.depth.set(DEPTH_MAX);
        full
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.depth.get() == 0
    }

    /// Forgets a thread that is no more.
    pub(crate) fn clear(&self) {
        self.depth.set(0);
    }

    fn frames(&self) -> impl Iterator<Item = Frame> {
        self.frames[..self.depth.get()].iter().map(Cell::get)
    }

    /// The handler that the thread went into last.
    pub(crate) fn innermost(&self) -> Option<Frame> {
        self.frames().last()
    }

    pub(crate) fn contains(&self, operation: u32, handler: u64) -> bool {
        self.frames()
            .any(|frame| frame.operation == operation && frame.handler == handler)
    }

    /// Records that the thread goes into a handler, until the result is
    /// dropped. `None`: the stack is full.
    pub(crate) fn enter<'a>(
        &'a self,
        operation: u32,
        handler: u64,
        mark: &'a mut Mark,
    ) -> Option<Entered<'a>> {
        let depth = self.depth.get();
        let frame = self.frames.get(depth)?;
        let address = core::ptr::from_mut(&mut mark.0);
        let seal = (address as u64).rotate_left(32) ^ handler ^ !u64::from(operation);
        // SAFETY: `address` comes from the exclusive borrow above. The write
        // is volatile because its reader, `left_by_longjmp`, is no reader
        // that the compiler knows of.
        unsafe { address.write_volatile(seal) };
        frame.set(Frame {
            operation,
            handler,
            mark: address,
            seal,
        });
        self.depth.set(depth + 1);
        Some(Entered {
            inside: self,
            depth,
        })
    }

    /// The operation whose handler was left by longjmp(), if any was.
    ///
    /// `here` is a variable of the function that is about to run a handler
    /// from a function below it. A handler that is still running was called
    /// from further up the stack, and nothing has written over its mark. A
    /// coroutine, whose stack lies elsewhere than the thread's, is left alone.
    pub(crate) fn left_by_longjmp<T>(&self, here: &T) -> Option<Frame> {
        let newest = self.innermost()?;
        let here = core::ptr::from_ref(here) as usize;
        let mark = newest.mark as usize;
        // SAFETY: the mark is still there if the handler still runs. If it
        // does not, this is a word of the same stack, further up than we are,
        // or of a coroutine that is inside the handler.
        if mark > here && unsafe { newest.mark.read_volatile() } == newest.seal {
            return None;
        }
        let stack = stack_of_this_thread()?;
        (stack.contains(&here) && stack.contains(&mark)).then_some(newest)
    }
}

/// The thread is inside a handler as long as this lives.
pub(crate) struct Entered<'a> {
    inside: &'a Inside,
    depth: usize,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.inside.depth.set(self.depth);
    }
}

/// Where the stack lies that the kernel or pthread_create() gave the thread.
#[cfg(not(loom))]
fn stack_of_this_thread() -> Option<core::ops::Range<usize>> {
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut base, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: pthread_getattr_np() initialises the attributes when it returns
    // 0, and only then are they read and destroyed.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &mut base, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (found == 0).then(|| base as usize..base as usize + size)
    }
}

#[cfg(loom)]
fn stack_of_this_thread() -> Option<core::ops::Range<usize>> {
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_returned_is_no_longer_inside() {
        let inside = Inside::new();
        let mut mark = Mark::new();
        {
            let _entered = inside.enter(1, 7, &mut mark).unwrap();
            assert!(inside.contains(1, 7));
            assert!(!inside.contains(2, 7));
            assert!(!inside.contains(1, 8));
        }
        assert!(inside.is_empty());
        assert!(!inside.contains(1, 7));
    }

    #[test]
    fn a_running_handler_is_not_taken_for_one_left_by_longjmp() {
        #[inline(never)]
        fn deeper(inside: &Inside, levels: u32) -> bool {
            match levels {
                0 => inside.left_by_longjmp(&levels).is_some(),
                _ => core::hint::black_box(deeper(inside, levels - 1)),
            }
        }
        let inside = Inside::new();
        let mut mark = Mark::new();
        let entered = inside.enter(3, 1, &mut mark).unwrap();
        assert!(!deeper(&inside, 0));
        assert!(!deeper(&inside, 50));
        drop(entered);
    }

    #[test]
    fn a_handler_whose_call_is_gone_is_found_out() {
        #[inline(never)]
        fn leave_without_a_trace(inside: &Inside) {
            let mut mark = Mark::new();
            // As longjmp() does: nothing of ours runs on the way out.
            core::mem::forget(inside.enter(5, 1, &mut mark));
        }
        let inside = Inside::new();
        leave_without_a_trace(&inside);
        let here = 0;
        let left = inside.left_by_longjmp(&here);
        assert_eq!(left.map(|frame| frame.operation), Some(5));
    }

    #[test]
    fn one_handler_more_than_fits_is_refused() {
        let inside = Inside::new();
        let mut marks = [const { Mark::new() }; DEPTH_MAX];
        let entered: Vec<_> = marks
            .iter_mut()
            .map(|mark| inside.enter(1, 1, mark).unwrap())
            .collect();
        assert!(inside.enter(1, 1, &mut Mark::new()).is_none());
        drop(entered);
    }
}
