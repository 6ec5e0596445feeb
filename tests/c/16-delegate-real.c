/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The library and the real delegate, the command virt-internal. */
#define _GNU_SOURCE
#include "delegate.h"

#include <errno.h>
#include <pthread.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const Operation *const scheduler = &operations[4];

/* The last operation moves threads to no cgroup here: there is nothing for a
 * delegate to do. */
#define DOABLE (OPERATIONS - 1)

DELEGATE_TEST(each_operation_is_done_and_leaves_a_line)
{
    Delegate delegate = delegate_start(NULL);

    connect_to(NULL, delegate.address, LONG, 0);
    for (int i = 0; i < DOABLE; i++) {
        Subject subject = subject_start(1);

        runner_context = operations[i].name;
        /* Not directly. */
        expect_success(operations[i].call(NULL, subject.pid,
                                          VIR_INTERNAL_NO_DIRECT));
        expect_true(operations[i].is_done(subject.pid));
        expect_eq_int(delegate_audit_lines(&delegate, ""), i + 1);
        subject_end(&subject);
    }
    runner_context = NULL;
    disconnect_from(NULL);
    delegate_stop(&delegate);
}

DELEGATE_TEST(a_single_thread_is_the_target_and_no_other)
{
    Delegate delegate = delegate_start(NULL);
    Subject subject = subject_start(3);

    connect_to(NULL, delegate.address, LONG, 0);
    expect_success(virInternalProcessSetScheduler(
        NULL, subject.pid, subject.tids[1], VIR_INTERNAL_SCHED_BATCH, 0,
        VIR_INTERNAL_NO_DIRECT));
    expect_eq_int(sched_getscheduler(subject.tids[0]), SCHED_OTHER);
    expect_eq_int(sched_getscheduler(subject.tids[1]), SCHED_BATCH);
    expect_eq_int(sched_getscheduler(subject.tids[2]), SCHED_OTHER);
    expect_eq_int(delegate_audit_lines(&delegate, text("\"pid\":%d,",
                                                       subject.pid)), 1);
    expect_eq_int(delegate_audit_lines(&delegate, text("\"tid\":%d,",
                                                       subject.tids[1])), 1);
    subject_end_thread(&subject, 2);
    expect_error(virInternalProcessSetScheduler(
                     NULL, subject.pid, subject.tids[2],
                     VIR_INTERNAL_SCHED_BATCH, 0, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, "no thread");
    disconnect_from(NULL);
    subject_end(&subject);
    delegate_stop(&delegate);
}

#define NARROW \
    "version = 1\n" \
    "[[rule]]\n" \
    "name = \"narrow\"\n" \
    "peer = { uid = 0 }\n" \
    "target = { cgroup = \"/\", uid = 0 }\n" \
    "process-set-scheduler = { policies = [\"idle\"] }\n" \
    "process-set-max-files = { max = 4294967295 }\n"

DELEGATE_TEST(what_the_policy_does_not_allow_is_REFUSED_and_not_done)
{
    Delegate delegate = delegate_start(NARROW);

    for (unsigned int flags = 0; flags <= VIR_INTERNAL_DELEGATE_OPTIONAL;
         flags++) {
        connect_to(NULL, delegate.address, LONG, flags);
        for (int i = 0; i < DOABLE; i++) {
            State before = state_of(getpid(), getpid());

            runner_context = operations[i].name;
            if (operations[i].id == VIR_INTERNAL_OP_PROCESS_SET_MAX_FILES)
                continue;
            expect_error(operations[i].call(NULL, getpid(), 0),
                         VIR_INTERNAL_ERR_REFUSED, EPERM,
                         "the delegate refused to ");
            expect_str_contains(virInternalGetLastError()->message, "narrow");
            expect_unchanged(&before, getpid(), getpid());
        }
    }
    runner_context = NULL;
    disconnect_from(NULL);
    delegate_stop(&delegate);
}

DELEGATE_TEST(refused_threads_have_their_results_and_the_reason)
{
    Delegate delegate = delegate_start(NARROW);
    pid_t pid = getpid();
    pid_t tids[] = { pid, pid, pid };
    int results[] = { 1, 2, 3 };

    connect_to(NULL, delegate.address, LONG, 0);
    expect_error(virInternalCgroupAddThreads(
                     NULL, pid, NULL, VIR_INTERNAL_THREAD_VCPU, tids, NULL, 3,
                     NULL, 0, results, 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "narrow");
    for (int i = 0; i < 3; i++)
        expect_eq_int(results[i], -EPERM);
    disconnect_from(NULL);
    delegate_stop(&delegate);
}

#define ONE_PER_SECOND NARROW \
    "[quota]\n" \
    "per-second = 1\n"

DELEGATE_TEST(what_a_quota_does_not_allow_is_REFUSED_and_says_so)
{
    Delegate delegate = delegate_start(ONE_PER_SECOND);
    pid_t pid = getpid();
    int result;
    int results[] = { 1 };

    connect_to(NULL, delegate.address, LONG, 0);
    /* Until there are none left. */
    do {
        result = virInternalCgroupAddThreads(
            NULL, pid, NULL, VIR_INTERNAL_THREAD_VCPU, &pid, NULL, 1, NULL, 0,
            results, 0);
        expect_error(result, VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
        expect_eq_int(results[0], -EPERM);
    } while (strstr(virInternalGetLastError()->message, "narrow"));
    expect_str_contains(virInternalGetLastError()->message, "second");
    disconnect_from(NULL);
    delegate_stop(&delegate);
}

DELEGATE_TEST(what_the_kernel_does_not_let_the_delegate_do_is_FAILED)
{
    Delegate delegate = delegate_start(NARROW);
    Subject subject = subject_start(1);

    connect_to(NULL, delegate.address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    /* More than any process may have. */
    expect_error(virInternalProcessSetMaxFiles(NULL, subject.pid, 4294967295U,
                                               0),
                 VIR_INTERNAL_ERR_FAILED, EPERM, "the delegate could not ");
    disconnect_from(NULL);
    subject_end(&subject);
    delegate_stop(&delegate);
}

/* Has a request sent that is only read after the caller gave up, and returns
 * its id. */
static unsigned long long
request_without_answer(Delegate *delegate, pid_t pid)
{
    int status;

    /* The connection must be there: else nothing is sent. */
    do {
        connect_to(NULL, delegate->address, 1000, 0);
    } while (operations[OPERATIONS - 1].call(NULL, getpid(),
                                             VIR_INTERNAL_NO_DIRECT) == -1);
    must(kill(delegate->pid, SIGSTOP));
    must(waitpid(delegate->pid, &status, WUNTRACED));
    expect_true(WIFSTOPPED(status));
    expect_error(scheduler->call(NULL, pid, 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "did not answer");
    return virInternalGetLastRequest();
}

/* Asks until it is known. */
static int
ask(unsigned long long request)
{
    int result;

    while ((result = virInternalAskDelegate(NULL, request, 0)) == -1
           && (virInternalGetLastError()->code
               == VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
               || virInternalGetLastError()->code == VIR_INTERNAL_ERR_TIMEOUT))
        usleep(1000);
    return result;
}

DELEGATE_TEST(a_request_without_an_answer_can_be_asked_about_once_it_was_done)
{
    Delegate delegate = delegate_start(NULL);
    Subject subject = subject_start(1);
    unsigned long long request;

    request = request_without_answer(&delegate, subject.pid);
    expect_true(request != 0);
    expect_true(!scheduler->is_done(subject.pid));
    must(kill(delegate.pid, SIGCONT));
    expect_success(ask(request));
    expect_true(scheduler->is_done(subject.pid));
    /* Nobody knows of this one. */
    expect_error(virInternalAskDelegate(NULL, request + 1000000, 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it does not know of that request");
    /* And a new delegate of neither. */
    delegate_kill(&delegate);
    expect_error(virInternalAskDelegate(NULL, request, 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "request ");
    delegate_restart(&delegate);
    expect_error(virInternalAskDelegate(NULL, request, 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it does not know of that request");
    disconnect_from(NULL);
    subject_end(&subject);
    delegate_stop(&delegate);
}

DELEGATE_TEST(a_request_without_an_answer_can_be_asked_about_once_refused)
{
    Delegate delegate = delegate_start(NARROW
        "cgroup-add-threads = { roles = [\"emulator\"], cgroup = \"/\" }\n");
    Subject subject = subject_start(1);
    unsigned long long request;

    request = request_without_answer(&delegate, subject.pid);
    must(kill(delegate.pid, SIGCONT));
    expect_error(ask(request), VIR_INTERNAL_ERR_REFUSED, EPERM, "narrow");
    expect_true(!scheduler->is_done(subject.pid));
    disconnect_from(NULL);
    subject_end(&subject);
    delegate_stop(&delegate);
}

#define CALLERS 8

static int done, stopped;

/* Outcomes that are defined, and no other. */
static void *
call_whatever_becomes_of_it(void *unused)
{
    while (!__atomic_load_n(&stopped, __ATOMIC_RELAXED)) {
        pid_t tid = syscall(SYS_gettid);
        int result = virInternalProcessSetScheduler(
            NULL, getpid(), tid, VIR_INTERNAL_SCHED_BATCH, 0,
            VIR_INTERNAL_NO_DIRECT);

        if (result == 0) {
            expect_eq_int(sched_getscheduler(tid), SCHED_BATCH);
            __atomic_add_fetch(&done, 1, __ATOMIC_RELEASE);
            continue;
        }
        expect_eq_int(result, -1);
        switch (virInternalGetLastError()->code) {
        case VIR_INTERNAL_ERR_UNREACHABLE:
        case VIR_INTERNAL_ERR_TIMEOUT:
            break;
        case VIR_INTERNAL_ERR_UNKNOWN_OUTCOME:
            expect_true(virInternalGetLastRequest() != 0);
            break;
        default:
            FAIL("expected UNREACHABLE, TIMEOUT or UNKNOWN_OUTCOME, found: %s",
                 virInternalGetLastError()->message);
        }
    }
    return unused;
}

DELEGATE_TEST(a_delegate_is_killed_and_started_again_while_threads_ask_it,
              .seconds = 900)
{
    Delegate delegate = delegate_start(NULL);
    pthread_t callers[CALLERS];

    connect_to(NULL, delegate.address, LONG, 0);
    for (int i = 0; i < CALLERS; i++)
        expect_eq_int(pthread_create(callers + i, NULL,
                                     call_whatever_becomes_of_it, NULL), 0);
    for (int i = 0; i < 20; i++) {
        int before = __atomic_load_n(&done, __ATOMIC_ACQUIRE);

        /* It goes on with the new one. */
        while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) < before + 100)
            usleep(1000);
        delegate_kill(&delegate);
        delegate_restart(&delegate);
    }
    __atomic_store_n(&stopped, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < CALLERS; i++)
        expect_eq_int(pthread_join(callers[i], NULL), 0);
    expect_success(virInternalProcessSetScheduler(
        NULL, getpid(), getpid(), VIR_INTERNAL_SCHED_BATCH, 0,
        VIR_INTERNAL_NO_DIRECT));
    disconnect_from(NULL);
    delegate_stop(&delegate);
}

static int waiting;

static void *
wait_in_thread(void *tid)
{
    *(pid_t *) tid = syscall(SYS_gettid);
    __atomic_add_fetch(&waiting, 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&stopped, __ATOMIC_ACQUIRE))
        usleep(5000);
    return NULL;
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

#define OWN_THREADS 30
#define CROWD 3000

DELEGATE_TEST(three_thousand_threads_with_their_numbers_are_moved_at_once)
{
    static pid_t tids[CROWD];
    static unsigned int ids[CROWD];
    static int results[CROWD];
    const char *group = own_group();
    Delegate delegate = delegate_start(NULL);
    pthread_t threads[OWN_THREADS];

    for (int i = 0; i < OWN_THREADS; i++)
        expect_eq_int(pthread_create(threads + i, NULL, wait_in_thread,
                                     tids + i), 0);
    while (__atomic_load_n(&waiting, __ATOMIC_ACQUIRE) < OWN_THREADS)
        usleep(1000);
    for (int i = 0; i < CROWD; i++) {
        tids[i] = tids[i % OWN_THREADS];
        ids[i] = i;
        results[i] = 1;
    }
    connect_to(NULL, delegate.address, LONG, 0);
    expect_success(virInternalCgroupAddThreads(
        NULL, getpid(), group, VIR_INTERNAL_THREAD_VCPU, tids, ids, CROWD,
        NULL, 0, results, VIR_INTERNAL_NO_DIRECT));
    for (int i = 0; i < CROWD; i++)
        expect_eq_int(results[i], 0);
    disconnect_from(NULL);
    __atomic_store_n(&stopped, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < OWN_THREADS; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    delegate_stop(&delegate);
}

/* As libvirt does between fork() and exec(). */
DELEGATE_TEST(a_child_with_all_descriptors_closed_has_it_done)
{
    Delegate delegate = delegate_start(NULL);
    pid_t child;

    connect_to(NULL, delegate.address, LONG, 0);
    for (int i = 0; i < 2; i++) {
        child = must(i == 0 ? fork() : syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
        if (child == 0) {
            syscall(SYS_close_range, 3, ~0U, 0);
            for (int j = 0; j < DOABLE; j++) {
                expect_success(operations[j].call(NULL, getpid(),
                                                  VIR_INTERNAL_NO_DIRECT));
                expect_true(operations[j].is_done(getpid()));
            }
            _exit(EXIT_SUCCESS);
        }
        expect_child_passes(child);
        expect_eq_int(delegate_audit_lines(&delegate, ""), (i + 1) * DOABLE);
    }
    disconnect_from(NULL);
    delegate_stop(&delegate);
}

/* What it is all for. */
DELEGATE_TEST(a_hard_limit_is_raised_for_a_caller_who_may_not)
{
    struct rlimit more = { RLIM_INFINITY, RLIM_INFINITY };
    Subject subject = subject_start(1);
    Delegate delegate;

    if (prlimit(subject.pid, RLIMIT_MEMLOCK, &more, NULL) < 0)
        SKIP("raising a hard limit needs CAP_SYS_RESOURCE");
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 65536,
                                                   0));
    delegate = delegate_start(NULL);
    drop_capability(CAP_SYS_RESOURCE);
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 1 << 30, 0),
                 VIR_INTERNAL_ERR_FAILED, EPERM, "Operation not permitted");
    connect_to(NULL, delegate.address, LONG, 0);
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 1 << 30,
                                                   0));
    must(prlimit(subject.pid, RLIMIT_MEMLOCK, NULL, &more));
    expect_eq_int(more.rlim_cur, 1 << 30);
    expect_eq_int(more.rlim_max, 1 << 30);
    expect_eq_int(delegate_audit_lines(&delegate, "\"handled\""), 1);
    disconnect_from(NULL);
    subject_end(&subject);
    delegate_stop(&delegate);
}

DELEGATE_TEST(a_delegate_from_the_environment_does_it)
{
    Delegate delegate = delegate_start(NULL);
    pid_t child;

    must(setenv("LIBVIRT_INTERNAL_DELEGATE", delegate.address, 1));
    /* In a process of its own: nobody disconnects it. */
    child = must(fork());
    if (child == 0) {
        for (int i = 0; i < DOABLE; i++)
            expect_success(operations[i].call(NULL, getpid(),
                                              VIR_INTERNAL_NO_DIRECT));
        _exit(EXIT_SUCCESS);
    }
    expect_child_passes(child);
    expect_eq_int(delegate_audit_lines(&delegate, ""), DOABLE);
    delegate_stop(&delegate);
}
