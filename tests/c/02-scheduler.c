/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Scheduling policies and priorities, set directly. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <limits.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#define expect_scheduler(tid, policy, priority) \
    do { \
        struct sched_param parameters; \
        expect_eq_int(sched_getscheduler(tid), policy); \
        must(sched_getparam(tid, &parameters)); \
        expect_eq_int(parameters.sched_priority, priority); \
    } while (0)

static void
require_realtime(pid_t tid)
{
    struct sched_param parameters = { .sched_priority = 99 };

    if (sched_setscheduler(tid, SCHED_FIFO, &parameters) < 0) {
        expect_eq_int(errno, EPERM);
        SKIP("real-time scheduling needs CAP_SYS_NICE or RLIMIT_RTPRIO (and "
             "real-time bandwidth in the cgroup)");
    }
    parameters.sched_priority = 0;
    must(sched_setscheduler(tid, SCHED_OTHER, &parameters));
}

TEST(policies_without_priority_are_set)
{
    const struct { int asked, kernel; } policies[] = {
        { VIR_INTERNAL_SCHED_BATCH, SCHED_BATCH },
        { VIR_INTERNAL_SCHED_OTHER, SCHED_OTHER },
        /* The last: a way back needs RLIMIT_NICE or CAP_SYS_NICE. */
        { VIR_INTERNAL_SCHED_IDLE, SCHED_IDLE },
    };
    Subject subject = subject_start(1);

    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
        expect_success(virInternalProcessSetScheduler(
            NULL, subject.pid, subject.pid, policies[i].asked, 0, 0));
        expect_scheduler(subject.pid, policies[i].kernel, 0);
    }
    subject_end(&subject);
}

TEST(priority_is_not_looked_at_where_there_is_none)
{
    const int priorities[] = { 1, 100, -1, INT_MAX, INT_MIN };
    Subject subject = subject_start(1);

    for (size_t i = 0; i < sizeof(priorities) / sizeof(priorities[0]); i++) {
        expect_success(virInternalProcessSetScheduler(
            NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_BATCH,
            priorities[i], 0));
        expect_scheduler(subject.pid, SCHED_BATCH, 0);
    }
    subject_end(&subject);
}

TEST(real_time_policies_are_set_with_their_priority)
{
    const int priorities[] = { 1, 50, 99 };
    Subject subject = subject_start(1);

    require_realtime(subject.pid);
    for (size_t i = 0; i < sizeof(priorities) / sizeof(priorities[0]); i++) {
        expect_success(virInternalProcessSetScheduler(
            NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_FIFO,
            priorities[i], 0));
        expect_scheduler(subject.pid, SCHED_FIFO, priorities[i]);
        expect_success(virInternalProcessSetScheduler(
            NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_RR,
            priorities[i], 0));
        expect_scheduler(subject.pid, SCHED_RR, priorities[i]);
    }
    expect_success(virInternalProcessSetScheduler(
        NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_OTHER, 0, 0));
    expect_scheduler(subject.pid, SCHED_OTHER, 0);
    subject_end(&subject);
}

TEST(NONE_is_a_success_that_leaves_all_as_it_is_and_asks_nobody)
{
    Script script = { .returns = -EACCES };
    Subject subject = subject_start(1);
    State before;

    for_each_operation(operation) {
        if (operation->id == VIR_INTERNAL_OP_PROCESS_SET_SCHEDULER)
            set(operation, NULL, &script, 0);
    }
    before = state_of(subject.pid, subject.pid);
    expect_success(virInternalProcessSetScheduler(
        NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_NONE, 0, 0));
    expect_success(virInternalProcessSetScheduler(
        NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_NONE, 100,
        VIR_INTERNAL_NO_DIRECT));
    expect_unchanged(&before, subject.pid, subject.pid);
    expect_eq_int(script.calls, 0);
    subject_end(&subject);
}

TEST(one_thread_of_another_process_is_set_and_the_others_are_left_alone)
{
    Subject subject = subject_start(3);

    expect_success(virInternalProcessSetScheduler(
        NULL, subject.pid, subject.tids[1], VIR_INTERNAL_SCHED_BATCH, 0, 0));
    expect_scheduler(subject.tids[0], SCHED_OTHER, 0);
    expect_scheduler(subject.tids[1], SCHED_BATCH, 0);
    expect_scheduler(subject.tids[2], SCHED_OTHER, 0);
    subject_end(&subject);
}

static void *
set_own(void *result)
{
    pid_t tid = syscall(SYS_gettid);

    expect_success(virInternalProcessSetScheduler(
        NULL, getpid(), tid, VIR_INTERNAL_SCHED_BATCH, 0, 0));
    expect_scheduler(tid, SCHED_BATCH, 0);
    return result;
}

TEST(a_thread_sets_itself)
{
    pthread_t thread;

    expect_eq_int(pthread_create(&thread, NULL, set_own, NULL), 0);
    expect_eq_int(pthread_join(thread, NULL), 0);
    expect_scheduler(getpid(), SCHED_OTHER, 0);
}

TEST(real_time_without_the_privilege_fails_and_changes_nothing)
{
    const int policies[] = { VIR_INTERNAL_SCHED_FIFO, VIR_INTERNAL_SCHED_RR };
    struct rlimit none = { 0, 0 };
    Subject subject = subject_start(1);
    State before = state_of(subject.pid, subject.pid);

    must(prlimit(subject.pid, RLIMIT_RTPRIO, &none, NULL));
    drop_capability(CAP_SYS_NICE);
    for (size_t i = 0; i < 2; i++)
        expect_error(virInternalProcessSetScheduler(
                         NULL, subject.pid, subject.pid, policies[i], 7, 0),
                     VIR_INTERNAL_ERR_FAILED, EPERM,
                     text("cannot set scheduler parameters of process %d to "
                          "%s with priority 7: Operation not permitted",
                          subject.pid, i ? "SCHED_RR" : "SCHED_FIFO"));
    expect_unchanged(&before, subject.pid, subject.pid);
    subject_end(&subject);
}

TEST(another_users_process_needs_the_capability)
{
    Subject subject = subject_start_of_another_user();

    drop_capability(CAP_SYS_NICE);
    expect_error(virInternalProcessSetScheduler(
                     NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_BATCH,
                     0, 0),
                 VIR_INTERNAL_ERR_FAILED, EPERM,
                 text("scheduler parameters of process %d", subject.pid));
    expect_scheduler(subject.pid, SCHED_OTHER, 0);
    subject_end(&subject);
}

TEST(a_process_that_is_no_more_is_NO_PROCESS)
{
    pid_t nobody = pid_of_nobody();

    expect_error(virInternalProcessSetScheduler(
                     NULL, nobody, nobody, VIR_INTERNAL_SCHED_BATCH, 0, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                 text("process %d", nobody));
}

TEST(a_thread_that_is_no_more_is_NO_PROCESS)
{
    Subject subject = subject_start(2);

    subject_end_thread(&subject, 1);
    expect_error(virInternalProcessSetScheduler(
                     NULL, subject.pid, subject.tids[1],
                     VIR_INTERNAL_SCHED_BATCH, 0, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                 text("process %d has no thread %d", subject.pid,
                      subject.tids[1]));
    subject_end(&subject);
}

TEST(a_thread_of_another_process_is_refused_and_left_alone)
{
    Subject subject = subject_start(2);
    Subject other = subject_start(2);

    for (size_t i = 0; i < 2; i++) {
        State before = state_of(other.pid, other.tids[i]);

        expect_error(virInternalProcessSetScheduler(
                         NULL, subject.pid, other.tids[i],
                         VIR_INTERNAL_SCHED_BATCH, 0, 0),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                     text("thread %d does not belong to process %d",
                          other.tids[i], subject.pid));
        expect_unchanged(&before, other.pid, other.tids[i]);
    }
    subject_end(&other);
    subject_end(&subject);
}

typedef struct {
    int calls;
    pid_t pid, tid;
    int policy, priority;
} Asked;

static int
note_asked(pid_t pid, pid_t tid, int policy, int priority, void *opaque)
{
    Asked *asked = opaque;

    asked->calls++;
    asked->pid = pid;
    asked->tid = tid;
    asked->policy = policy;
    asked->priority = priority;
    return -EXDEV;
}

TEST(a_handler_gets_libvirts_numbers_and_priority_0_where_there_is_none)
{
    const struct { int policy, priority, expected; } calls[] = {
        { VIR_INTERNAL_SCHED_BATCH, 5, 0 },
        { VIR_INTERNAL_SCHED_IDLE, -5, 0 },
        { VIR_INTERNAL_SCHED_OTHER, 500, 0 },
        { VIR_INTERNAL_SCHED_FIFO, 1, 1 },
        { VIR_INTERNAL_SCHED_RR, 99, 99 },
    };
    Subject subject = subject_start(2);

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        Asked asked = { .calls = 0 };

        expect_success(virInternalSetProcessSetSchedulerHandler(
            NULL, VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION, note_asked,
            &asked, NULL, 0));
        expect_error(virInternalProcessSetScheduler(
                         NULL, subject.pid, subject.tids[1], calls[i].policy,
                         calls[i].priority, 0),
                     VIR_INTERNAL_ERR_FAILED, EXDEV, "handler");
        expect_eq_int(asked.calls, 1);
        expect_eq_int(asked.pid, subject.pid);
        expect_eq_int(asked.tid, subject.tids[1]);
        expect_eq_int(asked.policy, calls[i].policy);
        expect_eq_int(asked.priority, calls[i].expected);
    }
    subject_end(&subject);
}
