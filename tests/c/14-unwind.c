/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Handlers that do not return: the process ends and says which it was. (C++
 * exceptions are in 15-exception.cc.) */
#define _GNU_SOURCE
#include "support.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define DID_NOT_RETURN(what, operation) \
    "libvirt-internal: the " what " of " operation " did not return but threw " \
    "an exception or ended its thread; handlers must return"

#define LEFT_BY_LONGJMP(operation) \
    "libvirt-internal: the handler of " operation " was left by longjmp(); " \
    "handlers must return"

/* A test of each operation that ends as it must. */
#define TEST_EACH(name, message) \
    TEST_ONE(name, message, 0, MaxMemLock) \
    TEST_ONE(name, message, 1, MaxProcesses) \
    TEST_ONE(name, message, 2, MaxFiles) \
    TEST_ONE(name, message, 3, MaxCoreSize) \
    TEST_ONE(name, message, 4, Scheduler) \
    TEST_ONE(name, message, 5, Affinity)
#define TEST_ONE(name, message, index, operation) \
    TEST(name##_##operation, .dies_by = SIGABRT, \
         .saying = message("virInternalProcessSet" #operation)) \
    { \
        name(&operations[index]); \
    }

static int
exit_thread(Script *script)
{
    (void) script;
    pthread_exit(NULL);
}

static void
pthread_exit_ends_the_process(const Operation *operation)
{
    Script script = { .answer = exit_thread };

    set(operation, NULL, &script, 0);
    operation->call(NULL, getpid(), 0);
}

#define OF_HANDLER(operation) DID_NOT_RETURN("handler", operation)

TEST_EACH(pthread_exit_ends_the_process, OF_HANDLER)

TEST(pthread_exit_ends_the_process_CgroupAddThreads, .dies_by = SIGABRT,
     .saying = OF_HANDLER("virInternalCgroupAddThreads"))
{
    pthread_exit_ends_the_process(&operations[6]);
}

static void *
call_in_thread(void *operation)
{
    ((const Operation *) operation)->call(NULL, getpid(), 0);
    return NULL;
}

TEST(pthread_exit_in_another_thread_ends_the_process, .dies_by = SIGABRT,
     .saying = OF_HANDLER("virInternalProcessSetMaxMemLock"))
{
    Script script = { .answer = exit_thread };
    pthread_t thread;

    set(operations, NULL, &script, 0);
    pthread_create(&thread, NULL, call_in_thread, (void *) operations);
    pthread_join(thread, NULL);
}

static int
be_cancelled(Script *script)
{
    (void) script;
    pthread_cancel(pthread_self());
    pthread_testcancel();
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(a_thread_cancelled_in_a_handler_ends_the_process, .dies_by = SIGABRT,
     .saying = OF_HANDLER("virInternalProcessSetMaxMemLock"))
{
    Script script = { .answer = be_cancelled };

    set(operations, NULL, &script, 0);
    operations->call(NULL, getpid(), 0);
}

static void
exit_thread_from_free(void *opaque)
{
    (void) opaque;
    pthread_exit(NULL);
}

TEST(pthread_exit_in_a_free_callback_ends_the_process, .dies_by = SIGABRT,
     .saying = DID_NOT_RETURN("free callback",
                              "virInternalProcessSetAffinity"))
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };
    const Operation *operation = &operations[5];

    operation->set(NULL, operation->version, &script, exit_thread_from_free,
                   0);
    unset(operation, NULL);
}

TEST(pthread_exit_in_a_fork_safe_handler_ends_the_child, .dies_by = SIGABRT,
     .saying = OF_HANDLER("virInternalProcessSetScheduler"))
{
    Script script = { .answer = exit_thread };
    const Operation *operation = &operations[4];
    pid_t child;
    int status;

    set(operation, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
    child = must(fork());
    if (child == 0) {
        operation->call(NULL, getpid(), 0);
        _exit(0);
    }
    must(waitpid(child, &status, 0));
    expect_true(WIFSIGNALED(status));
    raise(WTERMSIG(status));
}

static jmp_buf out;

static int
jump(Script *script)
{
    (void) script;
    longjmp(out, 1);
}

/* Leaves a handler of the operation by longjmp(). */
static void
leave(const Operation *operation, Script *script)
{
    script->answer = jump;
    set(operation, NULL, script, 0);
    if (setjmp(out) == 0) {
        operation->call(NULL, getpid(), 0);
        FAIL("expected a longjmp() out of the handler, found %s",
             virInternalGetLastError()->message);
    }
}

static void
longjmp_is_found_out_by_the_next_call(const Operation *operation)
{
    static Script script;

    leave(operation, &script);
    operation->call(NULL, getpid(), 0);
}

TEST_EACH(longjmp_is_found_out_by_the_next_call, LEFT_BY_LONGJMP)

TEST(longjmp_is_found_out_by_the_next_call_CgroupAddThreads,
     .dies_by = SIGABRT,
     .saying = LEFT_BY_LONGJMP("virInternalCgroupAddThreads"))
{
    longjmp_is_found_out_by_the_next_call(&operations[6]);
}

/* Which would wait for ever. */
TEST(longjmp_is_found_out_by_the_next_unset, .dies_by = SIGABRT,
     .saying = LEFT_BY_LONGJMP("virInternalProcessSetScheduler"))
{
    static Script script;

    leave(&operations[4], &script);
    unset(&operations[4], NULL);
}

TEST(longjmp_is_found_out_when_a_connection_is_closed, .dies_by = SIGABRT,
     .saying = LEFT_BY_LONGJMP("virInternalProcessSetAffinity"))
{
    static Script script;

    leave(&operations[5], &script);
    virInternalConnectionClosed(CONN(1));
}

static int
call_twice(Script *script)
{
    if (setjmp(out) == 0)
        operations[1].call(NULL, script->pid, 0);
    operations[1].call(NULL, script->pid, 0);
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(longjmp_from_one_handler_into_another_is_found_out, .dies_by = SIGABRT,
     .saying = LEFT_BY_LONGJMP("virInternalProcessSetMaxProcesses"))
{
    Script outer = { .answer = call_twice };
    Script inner = { .answer = jump };

    set(&operations[0], NULL, &outer, 0);
    set(&operations[1], NULL, &inner, 0);
    operations[0].call(NULL, getpid(), 0);
}

static int
jump_within(Script *script)
{
    static jmp_buf within;

    if (setjmp(within) == 0)
        longjmp(within, 1);
    return script->returns;
}

TEST(longjmp_within_a_handler_is_its_own_affair)
{
    Script script = {
        .answer = jump_within, .returns = VIR_INTERNAL_NOT_HANDLED
    };

    set(operations, NULL, &script, 0);
    expect_success(operations->call(NULL, getpid(), 0));
    expect_success(operations->call(NULL, getpid(), 0));
    unset(operations, NULL);
    expect_eq_int(script.calls, 2);
}
