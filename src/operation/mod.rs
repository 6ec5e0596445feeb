// SPDX-License-Identifier: LGPL-2.1-or-later
//! The operations: one file each, with the request, how the kernel does it,
//! and how its state is read back.

mod limit;

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
