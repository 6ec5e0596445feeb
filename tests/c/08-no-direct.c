/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VIR_INTERNAL_NO_DIRECT: how a caller keeps to its own way. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>

TEST(without_a_handler_nothing_is_done)
{
    for_each_operation(operation) {
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        expect_not_handled(operation->call(NULL, subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_not_handled(operation->call(CONN(1), subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_unchanged(&before, subject.pid, subject.pid);
        subject_end(&subject);
    }
}

TEST(handlers_that_do_not_handle_it_are_asked_and_nothing_is_done)
{
    for_each_operation(operation) {
        Script first = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Script second = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        set(operation, CONN(1), &first, 0);
        set(operation, NULL, &second, 0);
        expect_not_handled(operation->call(CONN(1), subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_eq_int(first.calls, 1);
        expect_eq_int(second.calls, 1);
        expect_unchanged(&before, subject.pid, subject.pid);
        unset(operation, CONN(1));
        unset(operation, NULL);
        subject_end(&subject);
    }
}

static int
act(Script *script)
{
    ((const Operation *) script->data)->act(script->pid);
    return VIR_INTERNAL_HANDLED;
}

TEST(a_handler_that_handles_it_is_a_success)
{
    for_each_operation(operation) {
        Script script = { .answer = act, .data = (void *) operation };
        Subject subject = subject_start(1);

        set(operation, NULL, &script, 0);
        expect_success(operation->call(NULL, subject.pid,
                                       VIR_INTERNAL_NO_DIRECT));
        expect_true(operation->is_done(subject.pid));
        unset(operation, NULL);
        subject_end(&subject);
    }
}

TEST(a_handler_that_fails_is_an_error)
{
    for_each_operation(operation) {
        Script script = { .returns = -EACCES };
        Subject subject = subject_start(1);

        set(operation, NULL, &script, 0);
        expect_error(operation->call(NULL, subject.pid,
                                     VIR_INTERNAL_NO_DIRECT),
                     VIR_INTERNAL_ERR_FAILED, EACCES, "handler");
        unset(operation, NULL);
        subject_end(&subject);
    }
}

TEST(a_handler_for_another_connection_is_nobody)
{
    for_each_operation(operation) {
        Script script = { .returns = -EACCES };
        Subject subject = subject_start(1);

        set(operation, CONN(1), &script, 0);
        expect_not_handled(operation->call(NULL, subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_eq_int(script.calls, 0);
        unset(operation, CONN(1));
        subject_end(&subject);
    }
}

static int
call_from_inside(Script *script)
{
    const Operation *operation = script->data;

    expect_not_handled(operation->call(NULL, script->pid,
                                       VIR_INTERNAL_NO_DIRECT));
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(a_call_from_inside_the_only_handler_is_not_handled)
{
    for_each_operation(operation) {
        Script script = {
            .answer = call_from_inside, .data = (void *) operation
        };
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        set(operation, NULL, &script, 0);
        expect_not_handled(operation->call(NULL, subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_eq_int(script.calls, 1);
        expect_unchanged(&before, subject.pid, subject.pid);
        unset(operation, NULL);
        subject_end(&subject);
    }
}
