// SPDX-License-Identifier: LGPL-2.1-or-later
//! The operations: one file each, with the request, how the kernel does it,
//! and how its state is read back.

mod limit;

#[cfg(feature = "delegate")]
use crate::delegate::policy::Bounds;
#[cfg(feature = "delegate")]
use crate::delegate::server::connection::{Done, Job};
use crate::dispatch::Kind;

/// Declares the operations' files, and the list of them.
macro_rules! operations {
    ($($file:ident),+ $(,)?) => {
        $(pub mod $file;)+

        /// What a policy's rule allows, operation by operation. What is not
        /// there is not allowed.
        #[cfg(feature = "delegate")]
        #[derive(Clone, Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        #[allow(missing_docs)]
        pub struct Allowed {
            $(pub $file: Option<$file::Bounds>,)+
        }

        #[cfg(feature = "delegate")]
        impl Allowed {
            /// Each operation's name, as a policy has it, and what is allowed
            /// of it.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, Option<&dyn Bounds>)> {
                let bounds = [$(self.$file.as_ref().map(|bounds| bounds as &dyn Bounds)),+];
                Self::NAMES.iter().copied().zip(bounds)
            }

            /// The operations' names, in the order of their ids.
            pub const NAMES: &'static [&'static str] = &[$({
                const SNAKE: &str = stringify!($file);
                const KEBAB: [u8; SNAKE.len()] = kebab(SNAKE);
                match core::str::from_utf8(&KEBAB) {
                    Ok(name) => name,
                    Err(_) => SNAKE,
                }
            }),+];
        }

        /// Serves a request for any of them.
        #[cfg(feature = "delegate")]
        pub(crate) fn serve(job: Job<'_>) -> Done {
            match job.kind.id {
                $(id if id == $file::KIND.id => $file::serve(job),)+
                // Whoever makes a job has looked for it.
                _ => Ok(()),
            }
        }

        /// All operations, in the order of their ids.
        pub static OPERATIONS: &[&Kind] = &[$(&$file::KIND),+];
    };
}

operations! {
    process_set_max_mem_lock,
    process_set_max_processes,
    process_set_max_files,
    process_set_max_core_size,
    process_set_scheduler,
    process_set_affinity,
    cgroup_add_threads,
}

/// A file's name as a policy has it: with dashes.
#[cfg(feature = "delegate")]
const fn kebab<const LENGTH: usize>(snake: &str) -> [u8; LENGTH] {
    let mut name = [b'-'; LENGTH];
    let mut index = 0;
    while index < LENGTH {
        if snake.as_bytes()[index] != b'_' {
            name[index] = snake.as_bytes()[index];
        }
        index += 1;
    }
    name
}

/// The name of the operation with that id.
pub(crate) fn name(id: u32) -> &'static str {
    OPERATIONS
        .iter()
        .find(|kind| kind.id == id)
        .map_or("an unknown operation", |kind| kind.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_ids() {
        let ids: Vec<u32> = OPERATIONS.iter().map(|kind| kind.id).collect();
        assert!(ids.is_sorted() && ids[0] == 1, "{ids:?}");
    }
}
