/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Handlers that throw: the process ends and says which it was. */
#include "support.h"

#include <csignal>
#include <stdexcept>
#include <sys/wait.h>
#include <unistd.h>

#define DID_NOT_RETURN(what, operation) \
    "libvirt-internal: the " what " of " operation " did not return but threw " \
    "an exception or ended its thread; handlers must return"

#define ENDS_IN(operation) \
    .seconds = 0, .dies_by = SIGABRT, \
    .saying = DID_NOT_RETURN("handler", "virInternal" #operation)

static Script script;

static int
throw_exception(Script *)
{
    throw std::runtime_error("not ours");
}

/* A catch on the other side of the library makes no difference. */
static void
call_and_catch(const Operation *operation)
{
    script.answer = throw_exception;
    set(operation, NULL, &script, 0);
    try {
        operation->call(NULL, getpid(), 0);
    } catch (const std::exception &) {
    }
}

/* Nor does it that there is none. */
TEST(an_exception_that_nobody_catches_ends_the_process,
     ENDS_IN(ProcessSetMaxMemLock))
{
    script.answer = throw_exception;
    set(operations, NULL, &script, 0);
    operations->call(NULL, getpid(), 0);
}

TEST(an_exception_ends_the_process_ProcessSetMaxMemLock,
     ENDS_IN(ProcessSetMaxMemLock))
{
    call_and_catch(&operations[0]);
}

TEST(an_exception_ends_the_process_ProcessSetMaxProcesses,
     ENDS_IN(ProcessSetMaxProcesses))
{
    call_and_catch(&operations[1]);
}

TEST(an_exception_ends_the_process_ProcessSetMaxFiles,
     ENDS_IN(ProcessSetMaxFiles))
{
    call_and_catch(&operations[2]);
}

TEST(an_exception_ends_the_process_ProcessSetMaxCoreSize,
     ENDS_IN(ProcessSetMaxCoreSize))
{
    call_and_catch(&operations[3]);
}

TEST(an_exception_ends_the_process_ProcessSetScheduler,
     ENDS_IN(ProcessSetScheduler))
{
    call_and_catch(&operations[4]);
}

TEST(an_exception_ends_the_process_ProcessSetAffinity,
     ENDS_IN(ProcessSetAffinity))
{
    call_and_catch(&operations[5]);
}

TEST(an_exception_ends_the_process_CgroupAddThreads,
     ENDS_IN(CgroupAddThreads))
{
    call_and_catch(&operations[6]);
}

static void
throw_from_free(void *)
{
    throw 42;
}

TEST(an_exception_in_a_free_callback_ends_the_process,
     .seconds = 0, .dies_by = SIGABRT,
     .saying = DID_NOT_RETURN("free callback", "virInternalCgroupAddThreads"))
{
    const Operation *operation = &operations[6];

    operation->set(NULL, operation->version, &script, throw_from_free, 0);
    try {
        unset(operation, NULL);
    } catch (int) {
    }
}

TEST(an_exception_in_a_fork_safe_handler_ends_the_child,
     ENDS_IN(ProcessSetMaxFiles))
{
    int status;
    pid_t child;

    script.answer = throw_exception;
    set(&operations[2], NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
    child = must(fork());
    if (child == 0) {
        operations[2].call(NULL, getpid(), 0);
        _exit(0);
    }
    must(waitpid(child, &status, 0));
    expect_true(WIFSIGNALED(status));
    raise(WTERMSIG(status));
}

static int
catch_it_oneself(Script *own)
{
    try {
        throw_exception(own);
    } catch (const std::exception &) {
    }
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(an_exception_that_the_handler_catches_is_its_own_affair)
{
    script.answer = catch_it_oneself;
    set(operations, NULL, &script, 0);
    expect_success(operations->call(NULL, getpid(), 0));
    expect_eq_int(script.calls, 1);
    unset(operations, NULL);
}
