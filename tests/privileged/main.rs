// SPDX-License-Identifier: LGPL-2.1-or-later
//! What needs privileges: the operations on processes of another user.
//!
//! Each test first tries with a plain system call whether the machine allows
//! what it is about. Where it does not, the test is skipped by name, and does
//! not count as passed. In `tests/vm/run`'s VM nothing is skipped.

mod affinity;
mod cgroups;
mod child;
mod identity;
mod library;
mod limits;
mod scheduling;

use std::panic::catch_unwind;
use std::process::ExitCode;

/// What the machine lacks for a test.
struct Skip(String);

type Test = fn() -> Result<(), Skip>;

macro_rules! tests {
    ($($test:path,)+) => { &[$((stringify!($test), $test)),+] };
}

const TESTS: &[(&str, Test)] = tests![
    limits::locked_memory_is_raised,
    limits::locked_memory_is_raised_by_a_handler,
    limits::processes_are_raised,
    limits::processes_are_raised_by_a_handler,
    limits::files_are_raised_to_one_more,
    limits::files_are_raised_by_a_handler,
    limits::core_size_is_raised,
    limits::core_size_is_raised_by_a_handler,
    limits::libvirts_figure_for_unlimited_is_unlimited,
    limits::a_handler_may_grant_more_locked_memory,
    limits::a_handler_that_raises_too_little_is_found_out,
    limits::a_handler_that_raises_the_hard_limit_only_is_found_out,
    limits::a_handler_that_grants_a_larger_core_is_found_out,
    limits::without_the_privilege_the_kernels_refusal_is_the_error,
    limits::a_handler_with_the_privilege_serves_a_caller_without,
    scheduling::every_policy_is_set_on_one_thread,
    scheduling::a_handler_sets_every_policy,
    scheduling::a_handler_that_sets_another_priority_is_found_out,
    affinity::one_thread_is_pinned,
    affinity::a_handler_pins_one_thread,
    affinity::a_handler_that_pins_to_more_cpus_is_found_out,
    affinity::a_cpuset_may_narrow_what_was_asked_for,
    affinity::cpus_outside_the_cpuset_are_an_error,
    cgroups::threads_move_among_threaded_cgroups,
    cgroups::a_handler_moves_threads_among_threaded_cgroups,
    cgroups::a_handler_that_leaves_a_thread_behind_is_found_out,
    cgroups::a_whole_process_moves_between_domains,
    cgroups::a_part_of_a_process_does_not_move_between_domains,
    cgroups::a_thread_that_has_exited_has_its_own_result,
    cgroups::a_thread_that_exits_in_a_handler_has_its_own_result,
    identity::a_process_that_exits_in_a_handler_is_found_out,
    identity::a_process_id_that_becomes_anothers_is_found_out,
    identity::a_thread_that_exits_in_a_handler_is_found_out,
    identity::a_thread_id_that_becomes_anothers_is_found_out,
    identity::threads_are_held_without_pidfd_thread,
    identity::a_thread_id_in_the_place_of_a_process_id_is_an_error,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|role| role == child::ROLE) {
        child::run(arguments[1].parse().expect("a number of threads"));
        return ExitCode::SUCCESS;
    }
    // A delegate is for others to try.
    // SAFETY: there is no other thread yet.
    unsafe { std::env::remove_var("LIBVIRT_INTERNAL_DELEGATE") };
    // Like libtest: a name selects tests, and its options mean nothing here.
    let names: Vec<_> = arguments
        .iter()
        .filter(|name| !name.starts_with('-'))
        .collect();
    let is_selected =
        |test: &str| names.is_empty() || names.iter().any(|name| test.contains(*name));

    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| is_selected(name)) {
        match catch_unwind(test) {
            Ok(Ok(())) => {
                println!("PASS {name}");
                passed += 1;
            }
            Ok(Err(Skip(why))) => {
                println!("SKIP {name}: {why}");
                skipped += 1;
            }
            Err(_) => {
                println!("FAIL {name}");
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    ExitCode::from(u8::from(failed > 0))
}
