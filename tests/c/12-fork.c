/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Children of every kind. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "no-malloc.h"

/* What a child does; it passes if it returns. */
typedef void (*Body)(void *data);

/* Kinds of children, each of which runs @body and then exits. */

static pid_t
by_fork(Body body, void *data)
{
    pid_t child = must(fork());

    if (child == 0) {
        body(data);
        _exit(EXIT_SUCCESS);
    }
    return child;
}

/* As a raw clone(), which runs no atfork handlers. */
static pid_t
by_clone(Body body, void *data)
{
    pid_t child = must(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));

    if (child == 0) {
        body(data);
        _exit(EXIT_SUCCESS);
    }
    return child;
}

__attribute__((noinline))
static void
run_and_exit(Body body, void *data)
{
    body(data);
    _exit(EXIT_SUCCESS);
}

/* The child has the parent's memory, and the parent waits. */
static pid_t
by_vfork(Body body, void *data)
{
    pid_t child = vfork();

    if (child == 0)
        run_and_exit(body, data);
    return must(child);
}

/* A child of a child. */
typedef struct {
    Body body;
    void *data;
} Grandchild;

static void
run_grandchild(void *data)
{
    const Grandchild *grandchild = data;

    expect_child_passes(by_fork(grandchild->body, grandchild->data));
}

static pid_t
by_two_forks(Body body, void *data)
{
    Grandchild grandchild = { body, data };

    return by_fork(run_grandchild, &grandchild);
}

static const struct {
    const char *name;
    pid_t (*start)(Body body, void *data);
    bool shares_memory;
} kinds[] = {
    { "fork", by_fork, false },
    { "clone", by_clone, false },
    { "two forks", by_two_forks, false },
    { "vfork", by_vfork, true },
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* Runs @body in a child of each kind. */
static void
in_each_kind(Body body, void *data)
{
    const char *context = runner_context;

    for (size_t i = 0; i < KINDS; i++) {
        runner_context = text("%s by %s", context ? context : "child",
                              kinds[i].name);
        expect_child_passes(kinds[i].start(body, data));
    }
    runner_context = context;
}

/* The library has been used, so that this process is its home. */
static void
use_library(void)
{
    expect_not_handled(operations->call(NULL, getpid(),
                                        VIR_INTERNAL_NO_DIRECT));
}

static void
call_and_see_it_done(void *data)
{
    const Operation *operation = data;

    expect_success(operation->call(NULL, getpid(), 0));
    expect_true(operation->is_done(getpid()));
}

TEST(operations_work_directly_on_the_child_itself)
{
    use_library();
    for_each_operation(operation)
        in_each_kind(call_and_see_it_done, (void *) operation);
}

typedef struct {
    const Operation *operation;
    const Subject *subject;
} Target;

static void
call_on_subject(void *data)
{
    const Target *target = data;

    expect_success(target->operation->call(NULL, target->subject->pid, 0));
    expect_true(target->operation->is_done(target->subject->pid));
}

TEST(operations_work_directly_on_another_process)
{
    use_library();
    for_each_operation(operation) {
        for (size_t i = 0; i < KINDS; i++) {
            Subject subject = subject_start(1);
            Target target = { operation, &subject };

            expect_child_passes(kinds[i].start(call_on_subject, &target));
            subject_end(&subject);
        }
    }
}

static int
act(Script *script)
{
    ((const Operation *) script->data)->act(script->pid);
    return VIR_INTERNAL_HANDLED;
}

static void
call_with_safe_handler(void *data)
{
    Script *script = data;
    const Operation *operation = script->data;
    int calls = script->calls;

    expect_success(operation->call(NULL, getpid(), 0));
    expect_eq_int(script->calls, calls + 1);
    expect_eq_int(script->pid, getpid());
    expect_true(operation->is_done(getpid()));
}

TEST(a_fork_safe_handler_is_asked_in_a_child)
{
    for_each_operation(operation) {
        Script script = { .answer = act, .data = (void *) operation };

        set(operation, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
        in_each_kind(call_with_safe_handler, &script);
        unset(operation, NULL);
        expect_eq_int(script.freed, 1);
    }
}

static void
call_with_liar(void *data)
{
    const Target *target = data;

    expect_error(target->operation->call(NULL, target->subject->pid, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "said that it did, but the kernel ");
}

TEST(a_fork_safe_handler_that_lies_is_found_out_in_a_child)
{
    const Operation *operation = &operations[4];
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(1);
    Target target = { operation, &subject };

    set(operation, NULL, &liar, VIR_INTERNAL_HANDLER_FORK_SAFE);
    in_each_kind(call_with_liar, &target);
    unset(operation, NULL);
    subject_end(&subject);
}

static void
call_with_failing_handler(void *data)
{
    const Operation *operation = data;

    expect_error(operation->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_FAILED, EXDEV, "the handler could not");
}

TEST(the_errno_of_a_fork_safe_handler_is_passed_through_in_a_child)
{
    for_each_operation(operation) {
        Script script = { .returns = -EXDEV };

        set(operation, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
        in_each_kind(call_with_failing_handler, (void *) operation);
        unset(operation, NULL);
    }
}

static void
call_with_unsafe_handler(void *data)
{
    const Operation *operation = data;
    State before = state_of(getpid(), getpid());

    expect_error(operation->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_FORKED, ECHILD,
                 "this is a forked child, and the handler is not "
                 "VIR_INTERNAL_HANDLER_FORK_SAFE");
    expect_eq_int(virInternalGetLastError()->operation, operation->id);
    expect_unchanged(&before, getpid(), getpid());
}

TEST(a_handler_that_is_not_fork_safe_is_an_error_in_a_child_and_not_asked)
{
    for_each_operation(operation) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

        set(operation, NULL, &script, 0);
        in_each_kind(call_with_unsafe_handler, (void *) operation);
        expect_eq_int(script.calls, 0);
        /* It is still there for the parent. */
        expect_not_handled(operation->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        expect_eq_int(script.calls, 1);
        unset(operation, NULL);
    }
}

static void
call_without_direct(void *data)
{
    const Operation *operation = data;

    expect_error(operation->call(NULL, getpid(), VIR_INTERNAL_NO_DIRECT),
                 VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
}

TEST(a_handler_that_is_not_fork_safe_is_an_error_with_NO_DIRECT_too)
{
    for_each_operation(operation) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

        set(operation, NULL, &script, 0);
        in_each_kind(call_without_direct, (void *) operation);
        unset(operation, NULL);
    }
}

static void
call_for_connection(void *data)
{
    const Operation *operation = data;

    expect_success(operation->call(CONN(1), getpid(), 0));
    expect_true(operation->is_done(getpid()));
}

TEST(a_fork_safe_handler_for_all_stands_in_for_a_connections_that_is_not)
{
    for_each_operation(operation) {
        Script first = { .returns = -EACCES };
        Script second = { .answer = act, .data = (void *) operation };

        set(operation, CONN(1), &first, 0);
        set(operation, NULL, &second, VIR_INTERNAL_HANDLER_FORK_SAFE);
        in_each_kind(call_for_connection, (void *) operation);
        expect_eq_int(first.calls, 0);
        unset(operation, CONN(1));
        unset(operation, NULL);
    }
}

TEST(a_handler_for_another_connection_is_nobodys_concern_in_a_child)
{
    for_each_operation(operation) {
        Script script = { .returns = -EACCES };

        set(operation, CONN(1), &script, 0);
        in_each_kind(call_and_see_it_done, (void *) operation);
        unset(operation, CONN(1));
    }
}

TEST(a_handler_that_was_unset_is_not_there_in_a_child)
{
    for_each_operation(operation) {
        Script script = { .returns = -EACCES };

        set(operation, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
        set(operation, CONN(1), &script, 0);
        unset(operation, NULL);
        unset(operation, CONN(1));
        in_each_kind(call_and_see_it_done, (void *) operation);
    }
}

static void
set_in_child(void *data)
{
    Script script = { .returns = -EACCES };

    (void) data;
    for (const Operation *operation = operations;
         operation < operations + OPERATIONS; operation++) {
        expect_error(operation->set(NULL, operation->version, &script,
                                    script_freed, 0),
                     VIR_INTERNAL_ERR_FORKED, ECHILD,
                     "handlers cannot be set in a child of the process that "
                     "first used the library");
        expect_error(operation->set(NULL, operation->version, NULL, NULL, 0),
                     VIR_INTERNAL_ERR_FORKED, ECHILD, "child");
    }
    expect_error(virInternalConnectionClosed(CONN(1)),
                 VIR_INTERNAL_ERR_FORKED, ECHILD, "handlers cannot be unset");
    expect_eq_int(script.freed, 0);
}

TEST(nothing_is_set_or_unset_in_a_child)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    for_each_operation(operation)
        set(operation, CONN(1), &script, 0);
    in_each_kind(set_in_child, NULL);
    expect_eq_int(script.freed, 0);
    expect_success(virInternalConnectionClosed(CONN(1)));
    expect_eq_int(script.freed, OPERATIONS);
}

static void
have_errors_of_its_own(void *data)
{
    (void) data;
    expect_true(virInternalGetLastError() == NULL);
    expect_error(operations[1].call(NULL, -2, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -2");
    expect_eq_int(virInternalGetLastError()->operation, operations[1].id);
    expect_success(operations[2].call(NULL, getpid(), 0));
    expect_eq_int(operations[1].call(NULL, -2, 0), -1);
    virInternalResetLastError();
    expect_true(virInternalGetLastError() == NULL);
    expect_eq_int(operations[1].call(NULL, -2, 0), -1);
}

TEST(a_childs_last_error_is_its_own_and_its_parents_stays)
{
    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    in_each_kind(have_errors_of_its_own, NULL);
    expect_true(virInternalGetLastError() != NULL);
    expect_eq_int(virInternalGetLastError()->operation, operations[0].id);
    expect_str_contains(virInternalGetLastError()->message, "pid -1");
}

static void
call_and_set(void *data)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    (void) data;
    for_each_operation(operation) {
        expect_success(operation->call(NULL, getpid(), 0));
        set(operation, NULL, &script, 0);
        expect_success(operation->call(NULL, getpid(), 0));
        unset(operation, NULL);
    }
    expect_eq_int(script.calls, OPERATIONS);
    expect_eq_int(script.freed, OPERATIONS);
}

TEST(a_child_that_is_the_first_to_use_the_library_is_no_child_to_it)
{
    expect_child_passes(by_fork(call_and_set, NULL));
    expect_child_passes(by_clone(call_and_set, NULL));
    expect_child_passes(by_two_forks(call_and_set, NULL));
}

static int
call_again(Script *script)
{
    const Operation *operation = script->data;

    /* It would go on for ever. */
    if (script->calls > 1)
        return -EDEADLK;
    expect_success(operation->call(NULL, script->pid, 0));
    script->calls = 0;
    return VIR_INTERNAL_HANDLED;
}

TEST(a_call_from_inside_a_handler_skips_it_in_a_child_too)
{
    for_each_operation(operation) {
        Script script = { .answer = call_again, .data = (void *) operation };

        set(operation, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
        in_each_kind(call_and_see_it_done, (void *) operation);
        unset(operation, NULL);
    }
}

typedef struct {
    Script script;
    const Operation *operation;
    size_t kind;
} Forker;

static void
call_in_child_of_handler(void *data)
{
    const Forker *forker = data;
    const Operation *operation = forker->operation;

    expect_success(operation->call(NULL, forker->script.pid, 0));
}

static int
fork_and_call(Script *script)
{
    Forker *forker = (Forker *) script;

    /* It would go on for ever. */
    if (script->calls > 1)
        return -EDEADLK;
    expect_child_passes(kinds[forker->kind].start(call_in_child_of_handler,
                                                  forker));
    return VIR_INTERNAL_HANDLED;
}

TEST(a_child_forked_by_a_handler_is_inside_it_and_its_call_skips_it)
{
    for_each_operation(operation) {
        for (size_t i = 0; i < KINDS; i++) {
            Forker forker = {
                .script = { .answer = fork_and_call },
                .operation = operation, .kind = i
            };
            Subject subject = subject_start(1);

            set(operation, NULL, &forker.script,
                VIR_INTERNAL_HANDLER_FORK_SAFE);
            expect_success(operation->call(NULL, subject.pid, 0));
            expect_true(operation->is_done(subject.pid));
            unset(operation, NULL);
            subject_end(&subject);
        }
    }
}

/* Without allocation. */

static void
allocate(void *data)
{
    void *volatile block;

    (void) data;
    forbid_malloc();
    block = malloc(1);
    free(block);
}

static void
require_forbidding_malloc(void)
{
    int status;

    if (!malloc_can_be_forbidden())
        SKIP("malloc is valgrind's or a sanitizer's, and cannot be forbidden");
    must(waitpid(by_fork(allocate, NULL), &status, 0));
    expect_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void
do_everything_without_malloc(void *data)
{
    (void) data;
    forbid_malloc();
    expect_true(virInternalGetLastError() == NULL);
    for (int i = 0; i < OPERATIONS; i++) {
        const Operation *operation = &operations[i];

        expect_success(operation->call(CONN(3), getpid(), 0));
        expect_success(operation->call(CONN(1), getpid(), 0));
        expect_error(operation->call(CONN(2), getpid(), 0),
                     VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
        expect_error(operation->call(CONN(3), -1, 0),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -1");
    }
    set_in_child(NULL);
    virInternalResetLastError();
}

TEST(a_child_allocates_nothing)
{
    Script safe[OPERATIONS];
    Script unsafe = { .returns = -EACCES };
    Body body = do_everything_without_malloc;

    require_forbidding_malloc();
    memset(safe, 0, sizeof(safe));
    for (int i = 0; i < OPERATIONS; i++) {
        safe[i].answer = act;
        safe[i].data = (void *) &operations[i];
        set(&operations[i], CONN(1), &safe[i],
            VIR_INTERNAL_HANDLER_FORK_SAFE);
        set(&operations[i], CONN(2), &unsafe, 0);
    }
    expect_child_passes(by_fork(body, safe));
    expect_child_passes(by_clone(body, safe));
    expect_child_passes(by_two_forks(body, safe));
}

/* The path of the v2 cgroup that this process is in. */
static const char *
own_group(void)
{
    const char *mount = "/sys/fs/cgroup";
    const char *found = NULL;
    FILE *groups = fopen("/proc/self/cgroup", "re");
    char line[256];

    if (access("/sys/fs/cgroup/cgroup.procs", F_OK) < 0)
        mount = "/sys/fs/cgroup/unified";
    while (groups && fgets(line, sizeof(line), groups)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::", 3) == 0)
            found = text("%s%s", mount, line + 3);
    }
    if (groups)
        fclose(groups);
    if (!found || access(text("%s/cgroup.threads", found), W_OK) < 0)
        SKIP("the process's own cgroup of v2 cannot be written");
    return found;
}

static void
move_without_malloc(void *group)
{
    pid_t pid = getpid();

    forbid_malloc();
    expect_success(virInternalCgroupAddThreads(
        NULL, pid, group, VIR_INTERNAL_THREAD_VCPU, &pid, NULL, 1, NULL, 0,
        NULL, 0));
}

TEST(a_child_allocates_nothing_to_move_its_threads)
{
    const char *group = own_group();

    require_forbidding_malloc();
    use_library();
    expect_child_passes(by_fork(move_without_malloc, (void *) group));
    expect_child_passes(by_clone(move_without_malloc, (void *) group));
}

/* While other threads use the library. */

static bool stop;

static void *
set_and_call(void *data)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        set(operations, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
        expect_success(operations->call(NULL, getpid(), 0));
        set(operations + 1, NULL, &script, 0);
        unset(operations, NULL);
        unset(operations + 1, NULL);
    }
    return data;
}

static void
call_whatever_is_set(void *data)
{
    const Operation *unsafe = operations + 1;
    int result;

    (void) data;
    expect_success(operations->call(NULL, getpid(), 0));
    result = unsafe->call(NULL, getpid(), 0);
    if (result == -1)
        expect_error(result, VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
    else
        expect_success(result);
    set_in_child(NULL);
}

TEST(children_of_a_process_whose_threads_use_the_library_end_in_time,
     .seconds = 900)
{
    pthread_t threads[2];

    use_library();
    for (int i = 0; i < 2; i++)
        expect_eq_int(pthread_create(threads + i, NULL, set_and_call, NULL),
                      0);
    for (int i = 0; i < 100; i++)
        in_each_kind(call_whatever_is_set, NULL);
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
}

/* A crowd of children, and of threads of one: more of them than the library
 * has places for what it keeps of each. */
#define CROWD 70
#define PLACES 64

static void
become_sleep(void *seconds)
{
    execlp("sleep", "sleep", (char *) seconds, NULL);
    SKIP("sleep cannot be run: %s", strerror(errno));
}

static void
call_and_become_sleep(void *seconds)
{
    expect_success(operations->call(NULL, getpid(), 0));
    become_sleep(seconds);
}

static void
have_an_error(void *data)
{
    (void) data;
    expect_error(operations->call(NULL, -1, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid -1");
}

TEST(vforked_children_that_became_programs_take_no_place_from_later_ones)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };
    pid_t children[CROWD];

    expect_child_passes(by_fork(become_sleep, "0"));
    set(operations, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
    for (int i = 0; i < CROWD; i++)
        children[i] = by_vfork(call_and_become_sleep, "36000");
    expect_child_passes(by_vfork(have_an_error, NULL));
    for (int i = 0; i < CROWD; i++) {
        int status;

        must(kill(children[i], SIGKILL));
        must(waitpid(children[i], &status, 0));
        if (!WIFSIGNALED(status))
            FAIL("expected vforked child %d to sleep until it is killed, "
                 "found that it exited with status %d", i,
                 WEXITSTATUS(status));
    }
    unset(operations, NULL);
}

static int
end_the_child(Script *script)
{
    (void) script;
    _exit(EXIT_SUCCESS);
}

TEST(a_vforked_child_that_ends_in_a_handler_does_not_hide_it_from_later_ones)
{
    for_each_operation(operation) {
        Script script = { .answer = end_the_child, .returns = -EXDEV };

        set(operation, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
        expect_child_passes(by_vfork(call_and_see_it_done,
                                     (void *) operation));
        script.answer = NULL;
        for (int i = 0; i < 2; i++)
            expect_child_passes(by_vfork(call_with_failing_handler,
                                         (void *) operation));
        unset(operation, NULL);
    }
}

/* A handler that is left in the parent, and in a child. */
typedef struct {
    Script script;
    const Operation *operation;
    pid_t (*fork)(void);
    pid_t child;
} Brancher;

static pid_t
raw_clone(void)
{
    return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static int
unset_and_branch(Script *script)
{
    Brancher *brancher = (Brancher *) script;

    /* So that whoever leaves it last would free it. */
    unset(brancher->operation, NULL);
    brancher->child = must(brancher->fork());
    if (brancher->child != 0)
        expect_child_passes(brancher->child);
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(a_handler_that_forks_ends_with_FORKED_in_the_child_and_goes_on_in_parent)
{
    pid_t (*const forks[])(void) = { fork, raw_clone };

    for_each_operation(operation) {
        for (size_t i = 0; i < 2; i++) {
            Brancher brancher = {
                .script = { .answer = unset_and_branch },
                .operation = operation, .fork = forks[i]
            };
            int result;

            set(operation, NULL, &brancher.script, 0);
            result = operation->call(NULL, getpid(), VIR_INTERNAL_NO_DIRECT);
            if (brancher.child == 0) {
                expect_error(result, VIR_INTERNAL_ERR_FORKED, ECHILD,
                             "the handler forked, and returned in the child");
                expect_eq_int(brancher.script.freed, 0);
                _exit(EXIT_SUCCESS);
            }
            expect_not_handled(result);
            expect_eq_int(brancher.script.freed, 1);
        }
    }
}

/* A thread of a child is inside a handler, when that child is forked. */

static sem_t entered, may_leave;

static int
wait_inside(Script *script)
{
    sem_post(&entered);
    sem_wait(&may_leave);
    return script->returns;
}

static void *
call_and_fail(void *script)
{
    call_with_failing_handler((void *) operations);
    return script;
}

static void
call_in_thread_at(void *address)
{
    pthread_t thread;

    sem_post(&may_leave);
    expect_eq_int(pthread_create(&thread, NULL, call_and_fail, NULL), 0);
    if (thread != (pthread_t) address)
        SKIP("a new thread did not get the address of one that is gone");
    expect_eq_int(pthread_join(thread, NULL), 0);
}

static void
fork_while_a_thread_is_inside(void *data)
{
    pthread_t thread;

    (void) data;
    expect_eq_int(pthread_create(&thread, NULL, call_and_fail, NULL), 0);
    sem_wait(&entered);
    expect_child_passes(by_fork(call_in_thread_at, (void *) thread));
    sem_post(&may_leave);
    expect_eq_int(pthread_join(thread, NULL), 0);
}

TEST(a_new_thread_of_a_grandchild_is_not_where_one_at_its_address_was)
{
    Script script = { .answer = wait_inside, .returns = -EXDEV };

    sem_init(&entered, 0, 0);
    sem_init(&may_leave, 0, 0);
    set(operations, NULL, &script, VIR_INTERNAL_HANDLER_FORK_SAFE);
    expect_child_passes(by_fork(fork_while_a_thread_is_inside, NULL));
    unset(operations, NULL);
}

TEST(the_parent_of_a_vforked_first_user_sets_handlers_also_without_kcmp)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    refuse_system_call(SYS_kcmp, EPERM);
    expect_child_passes(by_vfork(call_and_see_it_done, (void *) operations));
    set(operations, NULL, &script, 0);
    expect_success(operations->call(NULL, getpid(), 0));
    expect_eq_int(script.calls, 1);
    unset(operations, NULL);
}

static pthread_barrier_t all_have_called;

static void *
call_among_many(void *errors)
{
    int result = operations->call(NULL, getpid(), 0);
    int left = errno;
    virInternalErrorPtr error = virInternalGetLastError();

    expect_eq_int(result, -1);
    expect_eq_int(left, ECHILD);
    if (error) {
        expect_eq_int(error->code, VIR_INTERNAL_ERR_FORKED);
        __atomic_add_fetch((int *) errors, 1, __ATOMIC_RELAXED);
    }
    pthread_barrier_wait(&all_have_called);
    return NULL;
}

static void
call_in_many_threads(void *data)
{
    pthread_t threads[CROWD];
    int errors = 0;

    (void) data;
    pthread_barrier_init(&all_have_called, NULL, CROWD);
    for (int i = 0; i < CROWD; i++)
        expect_eq_int(pthread_create(threads + i, NULL, call_among_many,
                                     &errors), 0);
    for (int i = 0; i < CROWD; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    expect_eq_int(errors, PLACES);
}

TEST(a_handler_that_is_not_fork_safe_is_an_error_in_each_of_many_threads)
{
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    set(operations, NULL, &script, 0);
    expect_child_passes(by_fork(call_in_many_threads, NULL));
    expect_eq_int(script.calls, 0);
    unset(operations, NULL);
}
