/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Handlers: who is asked, what their answers do, and when they are gone. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int
handled(Script *script, struct _virConnect *conn)
{
    int calls = script->calls;

    expect_success(operations[0].call(conn, getpid(), 0));
    return script->calls - calls;
}

static int
act(Script *script)
{
    ((const Operation *) script->data)->act(script->pid);
    return VIR_INTERNAL_HANDLED;
}

TEST(a_handler_for_one_connection_is_asked_for_no_other)
{
    for_each_operation(operation) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Subject subject = subject_start(1);

        set(operation, CONN(1), &script, 0);
        expect_success(operation->call(CONN(2), subject.pid, 0));
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_eq_int(script.calls, 0);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_eq_int(script.calls, 1);
        unset(operation, CONN(1));
        subject_end(&subject);
    }
}

TEST(a_handler_for_every_connection_is_asked_for_each_and_for_none)
{
    for_each_operation(operation) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Subject subject = subject_start(1);

        set(operation, NULL, &script, 0);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_success(operation->call(CONN(2), subject.pid, 0));
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_eq_int(script.calls, 3);
        unset(operation, NULL);
        subject_end(&subject);
    }
}

TEST(a_handler_of_one_operation_is_not_asked_for_another)
{
    for_each_operation(operation) {
        Script script = { .returns = -EACCES };

        set(operation, NULL, &script, 0);
        for (const Operation *other = operations;
             other < operations + OPERATIONS; other++) {
            Subject subject = subject_start(1);

            if (other != operation)
                expect_success(other->call(NULL, subject.pid, 0));
            subject_end(&subject);
        }
        expect_eq_int(script.calls, 0);
        unset(operation, NULL);
    }
}

TEST(HANDLED_ends_the_chain)
{
    for_each_operation(operation) {
        Script first = { .answer = act, .data = (void *) operation };
        Script second = { .returns = -EACCES };
        Subject subject = subject_start(1);

        set(operation, CONN(1), &first, 0);
        set(operation, NULL, &second, 0);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_eq_int(first.pid, subject.pid);
        expect_eq_int(first.calls, 1);
        expect_eq_int(second.calls, 0);
        expect_true(operation->is_done(subject.pid));
        unset(operation, CONN(1));
        unset(operation, NULL);
        subject_end(&subject);
    }
}

typedef struct {
    Script script;
    /* The Script that must have been called before. */
    const Script *before;
} Link;

static int
pass_on(Script *script)
{
    const Link *link = (const Link *) script;

    if (link->before)
        expect_eq_int(link->before->calls, 1);
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(NOT_HANDLED_goes_on_to_the_handler_for_all_and_then_to_the_kernel)
{
    for_each_operation(operation) {
        Link first = { .script = { .answer = pass_on } };
        Link second = {
            .script = { .answer = pass_on }, .before = &first.script
        };
        Subject subject = subject_start(1);

        set(operation, NULL, &second.script, 0);
        set(operation, CONN(1), &first.script, 0);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_eq_int(first.script.calls, 1);
        expect_eq_int(second.script.calls, 1);
        expect_true(operation->is_done(subject.pid));
        unset(operation, CONN(1));
        unset(operation, NULL);
        subject_end(&subject);
    }
}

TEST(an_errno_is_passed_through_and_nothing_falls_through)
{
    const int errnums[] = { 1, EACCES, ENOSPC, ETIMEDOUT, 4000, 4095 };

    for_each_operation(operation) {
        Script second = { .returns = VIR_INTERNAL_HANDLED };
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        set(operation, NULL, &second, 0);
        for (size_t i = 0; i < sizeof(errnums) / sizeof(errnums[0]); i++) {
            Script first = { .returns = -errnums[i] };

            set(operation, CONN(1), &first, 0);
            expect_error(operation->call(CONN(1), subject.pid, 0),
                         VIR_INTERNAL_ERR_FAILED, errnums[i],
                         "the handler could not ");
            expect_eq_int(first.calls, 1);
            unset(operation, CONN(1));
        }
        expect_eq_int(second.calls, 0);
        expect_unchanged(&before, subject.pid, subject.pid);
        unset(operation, NULL);
        subject_end(&subject);
    }
}

static int
set_errno(Script *script)
{
    errno = EBUSY;
    return script->returns;
}

TEST(the_variable_errno_of_a_handler_is_not_looked_at)
{
    Script script = { .answer = set_errno };

    script.returns = -EXDEV;
    set(operations, NULL, &script, 0);
    expect_error(operations->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_FAILED, EXDEV, "handler");
    script.returns = VIR_INTERNAL_NOT_HANDLED;
    expect_success(operations->call(NULL, getpid(), 0));
    unset(operations, NULL);
}

TEST(any_other_answer_is_an_error_that_names_it)
{
    const int answers[] = { 2, EPERM + 1, 4096, INT_MAX, -4096, INT_MIN };

    for_each_operation(operation) {
        Script second = { .returns = VIR_INTERNAL_HANDLED };
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        set(operation, NULL, &second, 0);
        for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
            Script first = { .returns = answers[i] };

            set(operation, CONN(1), &first, 0);
            expect_error(operation->call(CONN(1), subject.pid, 0),
                         VIR_INTERNAL_ERR_FAILED, EPROTO,
                         text(" answered %d,", answers[i]));
            unset(operation, CONN(1));
        }
        expect_eq_int(second.calls, 0);
        expect_unchanged(&before, subject.pid, subject.pid);
        unset(operation, NULL);
        subject_end(&subject);
    }
}

TEST(unset_handlers_are_not_asked_any_more)
{
    for_each_operation(operation) {
        Script script = { .returns = -EACCES };
        Subject subject = subject_start(1);

        set(operation, NULL, &script, 0);
        set(operation, CONN(1), &script, 0);
        unset(operation, NULL);
        unset(operation, CONN(1));
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_eq_int(script.calls, 0);
        subject_end(&subject);
    }
}

TEST(the_free_callback_runs_once_when_the_handler_is_unset)
{
    for_each_operation(operation) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

        set(operation, NULL, &script, 0);
        expect_eq_int(script.freed, 0);
        unset(operation, NULL);
        expect_eq_int(script.freed, 1);
        unset(operation, NULL);
        expect_eq_int(script.freed, 1);
    }
}

TEST(the_free_callback_runs_once_when_the_handler_is_replaced)
{
    for_each_operation(operation) {
        Script first = { .returns = -EACCES };
        Script second = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Subject subject = subject_start(1);

        set(operation, CONN(1), &first, 0);
        set(operation, CONN(1), &second, 0);
        expect_eq_int(first.freed, 1);
        expect_eq_int(second.freed, 0);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_eq_int(first.calls, 0);
        expect_eq_int(second.calls, 1);
        unset(operation, CONN(1));
        expect_eq_int(first.freed, 1);
        expect_eq_int(second.freed, 1);
        subject_end(&subject);
    }
}

TEST(the_same_handler_set_again_is_freed_once_for_each)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    set(operations, NULL, &script, 0);
    set(operations, NULL, &script, 0);
    expect_eq_int(script.freed, 1);
    unset(operations, NULL);
    expect_eq_int(script.freed, 2);
}

TEST(a_handler_needs_no_free_callback)
{
    for_each_operation(operation) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

        expect_success(operation->set(NULL, operation->version, &script, NULL,
                                      0));
        unset(operation, NULL);
        expect_eq_int(script.freed, 0);
    }
}

TEST(a_handler_for_another_version_is_refused_at_once_with_both_numbers)
{
    for_each_operation(operation) {
        const unsigned int versions[] = {
            0, operation->version + 1, UINT_MAX
        };
        Script first = { .returns = -EXDEV };
        Script second = { .returns = -EACCES };

        set(operation, NULL, &first, 0);
        for (size_t i = 0; i < 3; i++) {
            expect_error(operation->set(NULL, versions[i], &second,
                                        script_freed, 0),
                         VIR_INTERNAL_ERR_VERSION, EPROTONOSUPPORT,
                         text("version %u of %s, but this library has "
                              "version %u", versions[i], operation->name,
                              operation->version));
            /* Unsetting is no exception. */
            expect_error(operation->set(NULL, versions[i], NULL, NULL, 0),
                         VIR_INTERNAL_ERR_VERSION, EPROTONOSUPPORT,
                         operation->name);
        }
        expect_eq_int(second.freed, 0);
        expect_eq_int(first.freed, 0);
        expect_error(operation->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_FAILED, EXDEV, "handler");
        unset(operation, NULL);
    }
}

TEST(unknown_flags_of_a_set_function_are_refused_and_change_nothing)
{
    const unsigned int flags[] = {
        1 << 1, 1U << 31, VIR_INTERNAL_NO_DIRECT,
        VIR_INTERNAL_HANDLER_FORK_SAFE | 1 << 2
    };

    for_each_operation(operation) {
        Script first = { .returns = -EXDEV };
        Script second = { .returns = -EACCES };

        set(operation, NULL, &first, 0);
        for (size_t i = 0; i < 4; i++)
            expect_error(
                operation->set(NULL, operation->version, &second, script_freed,
                               flags[i]),
                VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                text("unknown flags %#x",
                     flags[i] & ~VIR_INTERNAL_HANDLER_FORK_SAFE));
        expect_eq_int(second.freed, 0);
        expect_eq_int(first.freed, 0);
        expect_error(operation->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_FAILED, EXDEV, "handler");
        unset(operation, NULL);
    }
}

TEST(a_closed_connection_loses_its_handlers_and_no_other_does)
{
    Script closed = { .returns = -EACCES };
    Script other = { .returns = VIR_INTERNAL_NOT_HANDLED };
    Script all = { .returns = VIR_INTERNAL_NOT_HANDLED };
    Subject subject = subject_start(1);

    for_each_operation(operation) {
        set(operation, CONN(1), &closed, 0);
        set(operation, CONN(2), &other, 0);
        set(operation, NULL, &all, 0);
    }
    expect_success(virInternalConnectionClosed(CONN(1)));
    expect_eq_int(closed.freed, OPERATIONS);
    expect_eq_int(other.freed, 0);
    expect_eq_int(all.freed, 0);
    for_each_operation(operation) {
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_success(operation->call(CONN(2), subject.pid, 0));
    }
    expect_eq_int(closed.calls, 0);
    expect_eq_int(other.calls, OPERATIONS);
    expect_eq_int(all.calls, 2 * OPERATIONS);

    expect_success(virInternalConnectionClosed(CONN(1)));
    expect_success(virInternalConnectionClosed(CONN(3)));
    expect_eq_int(closed.freed, OPERATIONS);
    expect_success(virInternalConnectionClosed(CONN(2)));
    expect_eq_int(other.freed, OPERATIONS);
    for_each_operation(operation)
        unset(operation, NULL);
    expect_eq_int(all.freed, OPERATIONS);
    subject_end(&subject);
}

TEST(closing_no_connection_is_an_error_and_unsets_nothing)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    set(operations, NULL, &script, 0);
    expect_error(virInternalConnectionClosed(NULL),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "conn is NULL");
    expect_eq_int(script.freed, 0);
    expect_eq_int(handled(&script, NULL), 1);
    unset(operations, NULL);
}

/* From inside a handler. */

typedef struct {
    Script script;
    const Operation *operation;
    struct _virConnect *conn;
    /* What the call from inside returned. */
    int inner;
} Caller;

static int
call_again(Script *script)
{
    Caller *caller = (Caller *) script;

    expect_eq_int(script->calls, 1);
    caller->inner = caller->operation->call(caller->conn, script->pid, 0);
    return VIR_INTERNAL_HANDLED;
}

TEST(a_call_from_inside_a_handler_skips_it_and_goes_to_the_kernel)
{
    struct _virConnect *conns[] = { NULL, CONN(1) };

    for_each_operation(operation) {
        for (int i = 0; i < 2; i++) {
            Caller caller = {
                .script = { .answer = call_again },
                .operation = operation, .conn = conns[i], .inner = -2
            };
            Subject subject = subject_start(1);

            set(operation, conns[i], &caller.script, 0);
            expect_success(operation->call(conns[i], subject.pid, 0));
            expect_eq_int(caller.script.calls, 1);
            expect_eq_int(caller.inner, 0);
            expect_true(operation->is_done(subject.pid));
            unset(operation, conns[i]);
            subject_end(&subject);
        }
    }
}

TEST(a_call_from_inside_a_connections_handler_goes_to_the_handler_for_all)
{
    for_each_operation(operation) {
        Caller caller = {
            .script = { .answer = call_again },
            .operation = operation, .conn = CONN(1), .inner = -2
        };
        Script all = { .answer = act, .data = (void *) operation };
        Subject subject = subject_start(1);

        set(operation, CONN(1), &caller.script, 0);
        set(operation, NULL, &all, 0);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_eq_int(caller.inner, 0);
        expect_eq_int(all.calls, 1);
        unset(operation, CONN(1));
        unset(operation, NULL);
        subject_end(&subject);
    }
}

TEST(two_handlers_that_call_each_other_are_each_entered_once)
{
    Subject subject = subject_start(1);
    Caller first = {
        .script = { .answer = call_again },
        .operation = operations, .conn = CONN(2), .inner = -2
    };
    Caller second = {
        .script = { .answer = call_again },
        .operation = operations, .conn = CONN(1), .inner = -2
    };

    set(operations, CONN(1), &first.script, 0);
    set(operations, CONN(2), &second.script, 0);
    expect_success(operations->call(CONN(1), subject.pid, 0));
    expect_eq_int(first.script.calls, 1);
    expect_eq_int(second.script.calls, 1);
    expect_eq_int(first.inner, 0);
    expect_eq_int(second.inner, 0);
    expect_true(operations->is_done(subject.pid));
    expect_success(virInternalConnectionClosed(CONN(1)));
    expect_success(virInternalConnectionClosed(CONN(2)));
    subject_end(&subject);
}

TEST(a_call_of_another_operation_from_inside_asks_its_handler)
{
    Script other = { .returns = VIR_INTERNAL_NOT_HANDLED };
    Subject subject = subject_start(1);
    Caller caller = {
        .script = { .answer = call_again },
        .operation = operations + 1, .conn = NULL, .inner = -2
    };

    set(operations, NULL, &caller.script, 0);
    set(operations + 1, NULL, &other, 0);
    operations->act(subject.pid);
    expect_success(operations->call(NULL, subject.pid, 0));
    expect_eq_int(caller.inner, 0);
    expect_eq_int(other.calls, 1);
    unset(operations, NULL);
    unset(operations + 1, NULL);
    subject_end(&subject);
}

#define NESTED_MAX 16

/* Each handler calls the next connection's. */
typedef struct {
    Script script;
    unsigned long number;
    int errnum;
    char message[256];
} Nested;

static int
call_next(Script *script)
{
    Nested *nested = (Nested *) script;

    if (operations->call(CONN(nested->number + 1), script->pid, 0) < 0) {
        virInternalErrorPtr error = virInternalGetLastError();

        nested->errnum = error->errnum;
        strncpy(nested->message, error->message, sizeof(nested->message) - 1);
        return -error->errnum;
    }
    return VIR_INTERNAL_HANDLED;
}

static void
nest(Nested *nested, unsigned long count)
{
    memset(nested, 0, count * sizeof(*nested));
    for (unsigned long i = 0; i < count; i++) {
        nested[i].script.answer = call_next;
        nested[i].number = i + 1;
        set(operations, CONN(i + 1), &nested[i].script, 0);
    }
}

TEST(sixteen_handlers_can_be_inside_one_another)
{
    Nested nested[NESTED_MAX];
    Subject subject = subject_start(1);

    nest(nested, NESTED_MAX);
    expect_success(operations->call(CONN(1), subject.pid, 0));
    expect_eq_int(nested[NESTED_MAX - 1].script.calls, 1);
    expect_true(operations->is_done(subject.pid));
    subject_end(&subject);
}

TEST(a_seventeenth_handler_inside_another_is_ELOOP_and_not_entered)
{
    Nested nested[NESTED_MAX + 1];
    Subject subject = subject_start(1);
    State before = state_of(subject.pid, subject.pid);

    nest(nested, NESTED_MAX + 1);
    expect_error(operations->call(CONN(1), subject.pid, 0),
                 VIR_INTERNAL_ERR_FAILED, ELOOP, "the handler could not");
    expect_eq_int(nested[NESTED_MAX].script.calls, 0);
    expect_eq_int(nested[NESTED_MAX - 1].errnum, ELOOP);
    expect_str_contains(nested[NESTED_MAX - 1].message,
                        "more than 16 handlers are inside one another");
    expect_unchanged(&before, subject.pid, subject.pid);
    /* The way out is a clean one. */
    unset(operations, CONN(NESTED_MAX + 1));
    expect_success(operations->call(CONN(1), subject.pid, 0));
    subject_end(&subject);
}

typedef struct {
    Script script;
    const Operation *operation;
    Script *successor;
} Replacer;

static int
replace_oneself(Script *script)
{
    Replacer *replacer = (Replacer *) script;
    const Operation *operation = replacer->operation;

    if (replacer->successor)
        set(operation, NULL, replacer->successor, 0);
    else
        unset(operation, NULL);
    /* It is still running. */
    expect_eq_int(script->freed, 0);
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(a_handler_that_unsets_itself_is_freed_when_it_is_left)
{
    for_each_operation(operation) {
        Replacer replacer = {
            .script = { .answer = replace_oneself }, .operation = operation
        };
        Subject subject = subject_start(1);

        set(operation, NULL, &replacer.script, 0);
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_eq_int(replacer.script.freed, 1);
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_eq_int(replacer.script.calls, 1);
        subject_end(&subject);
    }
}

TEST(a_handler_that_replaces_itself_is_freed_when_it_is_left)
{
    for_each_operation(operation) {
        Script successor = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Replacer replacer = {
            .script = { .answer = replace_oneself },
            .operation = operation, .successor = &successor
        };
        Subject subject = subject_start(1);

        set(operation, NULL, &replacer.script, 0);
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_eq_int(replacer.script.freed, 1);
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_eq_int(replacer.script.calls, 1);
        expect_eq_int(successor.calls, 1);
        expect_eq_int(successor.freed, 0);
        unset(operation, NULL);
        subject_end(&subject);
    }
}

static int
close_connection(Script *script)
{
    expect_success(virInternalConnectionClosed(CONN(1)));
    expect_eq_int(script->freed, OPERATIONS - 1);
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(a_handler_may_close_its_own_connection)
{
    Script script = { .answer = close_connection };
    Subject subject = subject_start(1);

    for_each_operation(operation)
        set(operation, CONN(1), &script, 0);
    expect_success(operations->call(CONN(1), subject.pid, 0));
    expect_eq_int(script.freed, OPERATIONS);
    subject_end(&subject);
}

static Script successor_of_freed = { .returns = VIR_INTERNAL_NOT_HANDLED };

static void
set_successor(void *script)
{
    script_freed(script);
    set(operations, NULL, &successor_of_freed, 0);
    set(operations + 1, NULL, &successor_of_freed, 0);
    unset(operations + 1, NULL);
}

TEST(a_free_callback_may_set_and_unset)
{
    Script script = { .returns = -EACCES };

    expect_success(operations->set(NULL, operations->version, &script,
                                   set_successor, 0));
    unset(operations, NULL);
    expect_eq_int(script.freed, 1);
    expect_eq_int(successor_of_freed.freed, 1);
    expect_eq_int(handled(&successor_of_freed, NULL), 1);
    unset(operations, NULL);
    expect_eq_int(successor_of_freed.freed, 2);
}

static void
call_from_free(void *script)
{
    script_freed(script);
    expect_success(operations->call(NULL, getpid(), 0));
}

TEST(a_free_callback_may_call_operations)
{
    Script script = { .returns = -EACCES };

    expect_success(operations->set(NULL, operations->version, &script,
                                   call_from_free, 0));
    unset(operations, NULL);
    expect_eq_int(script.freed, 1);
    expect_eq_int(script.calls, 0);
    expect_true(operations->is_done(getpid()));
}

/* With a second thread. */

typedef struct {
    Script script;
    sem_t entered;
    sem_t may_leave;
    bool left;
    bool unsets;
} Waiter;

static int
wait_inside(Script *script)
{
    Waiter *waiter = (Waiter *) script;

    sem_post(&waiter->entered);
    sem_wait(&waiter->may_leave);
    if (waiter->unsets)
        unset(operations, NULL);
    /* Time for an unset that does not wait to be caught. */
    usleep(50000);
    expect_eq_int(script->freed, 0);
    __atomic_store_n(&waiter->left, true, __ATOMIC_RELEASE);
    return VIR_INTERNAL_NOT_HANDLED;
}

static void *
call_once(void *data)
{
    expect_success(operations->call(NULL, getpid(), 0));
    return data;
}

static pthread_t
start_waiter(Waiter *waiter, void *(*run)(void *))
{
    pthread_t thread;

    waiter->script.answer = wait_inside;
    sem_init(&waiter->entered, 0, 0);
    sem_init(&waiter->may_leave, 0, 0);
    set(operations, NULL, &waiter->script, 0);
    expect_eq_int(pthread_create(&thread, NULL, run, waiter), 0);
    sem_wait(&waiter->entered);
    return thread;
}

TEST(unset_returns_when_nobody_is_inside_any_more)
{
    Waiter waiter = { .unsets = false };
    pthread_t thread = start_waiter(&waiter, call_once);

    sem_post(&waiter.may_leave);
    unset(operations, NULL);
    expect_true(__atomic_load_n(&waiter.left, __ATOMIC_ACQUIRE));
    expect_eq_int(waiter.script.freed, 1);
    pthread_join(thread, NULL);
}

TEST(unset_also_waits_for_a_handler_that_is_unsetting_itself)
{
    Waiter waiter = { .unsets = true };
    pthread_t thread = start_waiter(&waiter, call_once);

    sem_post(&waiter.may_leave);
    unset(operations, NULL);
    expect_true(__atomic_load_n(&waiter.left, __ATOMIC_ACQUIRE));
    expect_eq_int(waiter.script.freed, 1);
    pthread_join(thread, NULL);
}

static int
unset_and_let_go(Script *script)
{
    Waiter *waiter = script->data;

    /* If this waited, nobody would ever let the waiter go. */
    unset(operations, NULL);
    expect_eq_int(waiter->script.freed, 0);
    sem_post(&waiter->may_leave);
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(unset_from_inside_another_handler_does_not_wait)
{
    Waiter waiter = { .unsets = false };
    Script unsetter = { .answer = unset_and_let_go, .data = &waiter };
    pthread_t thread = start_waiter(&waiter, call_once);

    set(operations, CONN(1), &unsetter, 0);
    expect_success(operations->call(CONN(1), getpid(), 0));
    pthread_join(thread, NULL);
    expect_eq_int(waiter.script.freed, 1);
    unset(operations, CONN(1));
}

TEST(nobody_enters_a_handler_that_was_unset_while_another_is_inside)
{
    Waiter waiter = { .unsets = false };
    Script unsetter = { .answer = unset_and_let_go, .data = &waiter };
    pthread_t thread = start_waiter(&waiter, call_once);

    set(operations, CONN(1), &unsetter, 0);
    expect_success(operations->call(CONN(1), getpid(), 0));
    expect_success(operations->call(NULL, getpid(), 0));
    expect_eq_int(waiter.script.calls, 1);
    pthread_join(thread, NULL);
    unset(operations, CONN(1));
}

TEST(many_threads_are_inside_one_handler_at_a_time)
{
    Waiter waiter = { .unsets = false };
    pthread_t first = start_waiter(&waiter, call_once);
    pthread_t second;

    expect_eq_int(pthread_create(&second, NULL, call_once, &waiter), 0);
    /* The first has not left. */
    sem_wait(&waiter.entered);
    expect_true(!waiter.left);
    sem_post(&waiter.may_leave);
    sem_post(&waiter.may_leave);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    unset(operations, NULL);
    expect_eq_int(waiter.script.freed, 1);
}

TEST(a_handler_that_one_thread_is_inside_is_not_skipped_by_another)
{
    Waiter waiter = { .unsets = false };
    pthread_t thread = start_waiter(&waiter, call_once);

    sem_post(&waiter.may_leave);
    sem_post(&waiter.may_leave);
    expect_success(operations->call(NULL, getpid(), 0));
    expect_eq_int(waiter.script.calls, 2);
    pthread_join(thread, NULL);
    unset(operations, NULL);
}

/* Threads that are cancelled in the library come to its end. */

static void *
unset_until_cancelled(void *returned)
{
    unset(operations, NULL);
    *(bool *) returned = true;
    pthread_testcancel();
    return NULL;
}

TEST(an_unset_by_a_thread_that_is_cancelled_while_it_waits_goes_to_its_end)
{
    Waiter waiter = { .unsets = false };
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };
    pthread_t caller = start_waiter(&waiter, call_once);
    bool returned = false;
    pthread_t unsetter;
    void *end;

    expect_eq_int(pthread_create(&unsetter, NULL, unset_until_cancelled,
                                 &returned), 0);
    /* Time for it to wait. */
    usleep(50000);
    pthread_cancel(unsetter);
    usleep(50000);
    sem_post(&waiter.may_leave);
    expect_eq_int(pthread_join(unsetter, &end), 0);
    expect_true(end == PTHREAD_CANCELED);
    expect_true(returned);
    expect_eq_int(waiter.script.freed, 1);
    pthread_join(caller, NULL);
    set(operations, NULL, &script, 0);
    expect_eq_int(handled(&script, NULL), 1);
    unset(operations, NULL);
}

static void *
call_cancelled(void *subject)
{
    pthread_cancel(pthread_self());
    for_each_operation(operation) {
        expect_success(operation->call(NULL, *(pid_t *) subject, 0));
        expect_success(operation->call(CONN(1), *(pid_t *) subject, 0));
    }
    pthread_testcancel();
    return NULL;
}

TEST(calls_by_a_thread_that_was_cancelled_go_to_their_end)
{
    Script passes = { .returns = VIR_INTERNAL_NOT_HANDLED };
    Script handles = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(1);
    pthread_t thread;
    void *end;

    for_each_operation(operation) {
        set(operation, NULL, &passes, 0);
        /* Done by then. */
        set(operation, CONN(1), &handles, 0);
    }
    expect_eq_int(pthread_create(&thread, NULL, call_cancelled, &subject.pid),
                  0);
    expect_eq_int(pthread_join(thread, &end), 0);
    expect_true(end == PTHREAD_CANCELED);
    expect_eq_int(passes.calls, OPERATIONS);
    expect_eq_int(handles.calls, OPERATIONS);
    subject_end(&subject);
}

TEST(without_pidfd_open_a_call_that_has_a_handler_is_UNSUPPORTED)
{
    Script script = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(1);

    refuse_system_call(SYS_pidfd_open, ENOSYS);
    if (syscall(SYS_pidfd_open, subject.pid, 0) >= 0)
        SKIP("a filter does not take pidfd_open() away in valgrind");
    for_each_operation(operation) {
        set(operation, NULL, &script, 0);
        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_UNSUPPORTED, ENOSYS, "pidfd_open()");
        unset(operation, NULL);
        expect_success(operation->call(NULL, subject.pid, 0));
    }
    expect_eq_int(script.calls, 0);
    subject_end(&subject);
}
