/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The thread's last error. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

TEST(there_is_no_error_before_the_first_call)
{
    expect_true(virInternalGetLastError() == NULL);
    virInternalResetLastError();
    expect_true(virInternalGetLastError() == NULL);
}

TEST(every_operation_names_itself)
{
    for_each_operation(operation) {
        expect_error(operation->call(NULL, -1, 0),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -1");
        expect_eq_int(virInternalGetLastError()->operation, operation->id);
    }
}

TEST(every_set_function_names_its_operation)
{
    for_each_operation(operation) {
        expect_error(operation->set(NULL, operation->version + 1, NULL, NULL,
                                    0),
                     VIR_INTERNAL_ERR_VERSION, EPROTONOSUPPORT,
                     operation->name);
        expect_eq_int(virInternalGetLastError()->operation, operation->id);
    }
}

TEST(what_is_no_operation_names_none)
{
    expect_error(virInternalConnectionClosed(NULL),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "conn is NULL");
    expect_eq_int(virInternalGetLastError()->operation, 0);
}

TEST(a_success_of_any_operation_ends_the_error)
{
    for_each_operation(operation) {
        expect_eq_int(operations[0].call(NULL, -1, 0), -1);
        expect_true(virInternalGetLastError() != NULL);
        expect_success(operation->call(NULL, getpid(), 0));
    }
}

TEST(a_success_of_any_set_function_ends_the_error)
{
    for_each_operation(operation) {
        expect_eq_int(operations[0].call(NULL, -1, 0), -1);
        unset(operation, NULL);
    }
    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    expect_success(virInternalConnectionClosed(CONN(1)));
}

TEST(NOT_HANDLED_ends_the_error)
{
    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    expect_not_handled(operations[0].call(NULL, getpid(),
                                          VIR_INTERNAL_NO_DIRECT));
}

TEST(an_error_takes_the_place_of_the_one_before)
{
    expect_error(operations[0].call(NULL, -1, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -1");
    expect_error(operations[1].call(NULL, -2, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -2");
    expect_eq_int(virInternalGetLastError()->operation, operations[1].id);
}

TEST(asking_for_the_error_does_not_end_it)
{
    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    expect_true(virInternalGetLastError() != NULL);
    expect_true(virInternalGetLastError() == virInternalGetLastError());
    expect_str_contains(virInternalGetLastError()->message, "pid -1");
}

TEST(reset_ends_the_error_and_leaves_errno_alone)
{
    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    errno = EXDEV;
    virInternalResetLastError();
    expect_eq_int(errno, EXDEV);
    expect_true(virInternalGetLastError() == NULL);
    expect_eq_int(errno, EXDEV);
}

TEST(erasing_leaves_the_error_alone)
{
    char secret[] = "secret";

    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    virInternalSecureErase(secret, sizeof(secret));
    virInternalSecureEraseString(secret);
    expect_true(virInternalGetLastError() != NULL);
}

static void *
fail_and_succeed(void *unused)
{
    expect_true(virInternalGetLastError() == NULL);
    expect_error(operations[1].call(NULL, -3, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -3");
    expect_success(operations[2].call(NULL, getpid(), 0));
    virInternalResetLastError();
    return unused;
}

TEST(the_error_of_a_thread_is_its_own_and_survives_other_threads)
{
    pthread_t thread;
    virInternalErrorPtr error;

    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    error = virInternalGetLastError();
    expect_eq_int(pthread_create(&thread, NULL, fail_and_succeed, NULL), 0);
    expect_eq_int(pthread_join(thread, NULL), 0);
    expect_true(virInternalGetLastError() == error);
    expect_eq_int(error->operation, operations[0].id);
    expect_eq_str(error->message,
                  "pid -1 is not the id of a process: it must be 1 or more");
}

static int
fail_inside(Script *script)
{
    expect_eq_int(operations[1].call(NULL, -1, 0), -1);
    expect_true(virInternalGetLastError() != NULL);
    return script->returns;
}

TEST(an_error_inside_a_handler_that_handles_it_is_not_the_callers)
{
    Script script = { .answer = fail_inside };

    script.returns = VIR_INTERNAL_NOT_HANDLED;
    set(operations, NULL, &script, 0);
    expect_success(operations[0].call(NULL, getpid(), 0));
    expect_eq_int(script.calls, 1);
}

TEST(an_error_inside_a_handler_that_fails_is_not_the_callers)
{
    Script script = { .answer = fail_inside, .returns = -EXDEV };

    set(operations, NULL, &script, 0);
    expect_error(operations[0].call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_FAILED, EXDEV, "the handler could not");
    expect_eq_int(virInternalGetLastError()->operation, operations[0].id);
}

TEST(a_long_message_ends_in_dots)
{
    char path[4096];
    pid_t pid = getpid();
    const char *message;

    /* Each byte is shown as four. */
    memset(path, 0xff, sizeof(path));
    path[0] = '/';
    path[sizeof(path) - 1] = '\0';
    expect_eq_int(virInternalCgroupAddThreads(
        NULL, pid, path, VIR_INTERNAL_THREAD_VCPU, &pid, NULL, 1, NULL, 0,
        NULL, 0), -1);
    message = virInternalGetLastError()->message;
    expect_str_contains(message, "cannot open the cgroup '/\\xff");
    expect_eq_str(message + strlen(message) - 3, "...");
}
