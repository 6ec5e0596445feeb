/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Arguments that are no good: each is a clear error, and nothing changes. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A process with two threads, and handlers of everything that must not be
 * asked about it. */
typedef struct {
    Subject subject;
    State before;
    Script handler;
} Fixture;

static void
set_up(Fixture *fixture)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->subject = subject_start(2);
    fixture->before = state_of(fixture->subject.pid, fixture->subject.tids[1]);
    fixture->handler.returns = VIR_INTERNAL_NOT_HANDLED;
}

static void
tear_down(Fixture *fixture)
{
    expect_eq_int(fixture->handler.calls, 0);
    expect_unchanged(&fixture->before, fixture->subject.pid,
                     fixture->subject.tids[1]);
    subject_end(&fixture->subject);
}

/* Runs @body without a handler, and with one for everything. */
static void
both_ways(void (*body)(const Subject *subject))
{
    Fixture fixture;

    set_up(&fixture);
    body(&fixture.subject);
    for_each_operation(operation)
        set(operation, NULL, &fixture.handler, 0);
    body(&fixture.subject);
    for_each_operation(operation)
        unset(operation, NULL);
    tear_down(&fixture);
}

#define expect_invalid(call, part) \
    expect_error(call, VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, part)

static void
unknown_flags(const Subject *subject)
{
    const unsigned int flags[] = {
        1, 1 << 29, 1U << 31, UINT_MAX & ~VIR_INTERNAL_NO_DIRECT
    };

    for_each_operation(operation) {
        for (size_t i = 0; i < COUNT(flags); i++) {
            expect_invalid(operation->call(NULL, subject->pid, flags[i]),
                           text("unknown flags %#x", flags[i]));
            expect_invalid(operation->call(NULL, subject->pid, flags[i]
                                           | VIR_INTERNAL_NO_DIRECT),
                           text("unknown flags %#x", flags[i]));
        }
    }
}

TEST(unknown_flags_of_every_operation)
{
    both_ways(unknown_flags);
}

static void
pids_of_no_process(const Subject *subject)
{
    const pid_t pids[] = { 0, -1, -subject->pid, INT_MIN };

    for_each_operation(operation) {
        for (size_t i = 0; i < COUNT(pids); i++)
            expect_invalid(operation->call(NULL, pids[i], 0),
                           text("pid %d is not the id of a process: it must "
                                "be 1 or more", pids[i]));
    }
}

TEST(pid_0_and_negative_of_every_operation)
{
    State own = state_of(getpid(), getpid());

    both_ways(pids_of_no_process);
    expect_unchanged(&own, getpid(), getpid());
}

static void
largest_pid(const Subject *subject)
{
    (void) subject;
    for_each_operation(operation) {
        if (operation->id != VIR_INTERNAL_OP_CGROUP_ADD_THREADS)
            expect_error(operation->call(NULL, INT_MAX, 0),
                         VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, "2147483647");
    }
}

TEST(a_pid_that_no_kernel_gives)
{
    both_ways(largest_pid);
}

TEST(a_thread_instead_of_a_process_where_a_handler_is_asked)
{
    Fixture fixture;

    set_up(&fixture);
    for_each_operation(operation) {
        set(operation, NULL, &fixture.handler, 0);
        expect_invalid(operation->call(NULL, fixture.subject.tids[1], 0),
                       text("pid %d is the id of a thread, not of a process",
                            fixture.subject.tids[1]));
        unset(operation, NULL);
    }
    tear_down(&fixture);
}

static int
set_batch(pid_t pid, pid_t tid)
{
    return virInternalProcessSetScheduler(NULL, pid, tid,
                                          VIR_INTERNAL_SCHED_BATCH, 0, 0);
}

static int
set_all_cpus(pid_t pid, pid_t tid)
{
    unsigned char map[CPU_SETSIZE / 8];

    memset(map, 0xff, sizeof(map));
    return virInternalProcessSetAffinity(NULL, pid, tid, map, sizeof(map), 0);
}

static int
move_nowhere(pid_t pid, pid_t tid)
{
    return virInternalCgroupAddThreads(NULL, pid, NULL,
                                       VIR_INTERNAL_THREAD_VCPU, &tid, NULL, 1,
                                       NULL, 0, NULL, 0);
}

static void
tids_of_no_thread(const Subject *subject)
{
    const pid_t tids[] = { 0, -1, -subject->pid, INT_MIN };

    for (size_t i = 0; i < COUNT(tids); i++) {
        const char *part = text("tid %d is not the id of a thread", tids[i]);

        expect_invalid(set_batch(subject->pid, tids[i]), part);
        expect_invalid(set_all_cpus(subject->pid, tids[i]), part);
        expect_invalid(virInternalProcessSetScheduler(
                           NULL, subject->pid, tids[i],
                           VIR_INTERNAL_SCHED_NONE, 0, 0), part);
        expect_invalid(move_nowhere(subject->pid, tids[i]),
                       text("tids[0] is %d", tids[i]));
    }
}

TEST(tid_0_and_negative)
{
    both_ways(tids_of_no_thread);
}

static void
threads_that_are_none(const Subject *subject)
{
    pid_t nobody = pid_of_nobody();
    const char *part = text("process %d has no thread %d", subject->pid,
                            nobody);

    expect_error(set_batch(subject->pid, nobody),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, part);
    expect_error(set_all_cpus(subject->pid, nobody),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, part);
}

TEST(a_tid_that_is_no_thread)
{
    both_ways(threads_that_are_none);
}

static void
threads_of_another(const Subject *subject)
{
    pid_t own = getpid();
    const char *part = text("thread %d does not belong to process %d",
                            own, subject->pid);

    expect_invalid(set_batch(subject->pid, own), part);
    expect_invalid(set_all_cpus(subject->pid, own), part);
}

TEST(a_tid_that_is_not_the_processs)
{
    State own = state_of(getpid(), getpid());

    both_ways(threads_of_another);
    expect_unchanged(&own, getpid(), getpid());
}

TEST(a_tid_that_is_not_the_processs_where_a_handler_is_to_move_it)
{
    Fixture fixture;

    set_up(&fixture);
    set(&operations[6], NULL, &fixture.handler, 0);
    expect_invalid(move_nowhere(fixture.subject.pid, getpid()),
                   text("thread %d does not belong to process %d", getpid(),
                        fixture.subject.pid));
    tear_down(&fixture);
}

static void
unknown_policies(const Subject *subject)
{
    const int policies[] = { -1, 5, 6, 0xff, 0x101, INT_MAX, INT_MIN };

    for (size_t i = 0; i < COUNT(policies); i++)
        expect_invalid(virInternalProcessSetScheduler(
                           NULL, subject->pid, subject->pid, policies[i], 1,
                           0),
                       text("%d is not a scheduling policy: they are NONE 0, "
                            "BATCH 1, IDLE 2, FIFO 3, RR 4 and OTHER 0x100",
                            policies[i]));
}

TEST(unknown_policies_of_scheduling)
{
    both_ways(unknown_policies);
}

static void
priorities_out_of_range(const Subject *subject)
{
    const int policies[] = { VIR_INTERNAL_SCHED_FIFO, VIR_INTERNAL_SCHED_RR };
    const int priorities[] = { 0, -1, 100, INT_MAX, INT_MIN };

    for (size_t i = 0; i < COUNT(policies); i++) {
        for (size_t j = 0; j < COUNT(priorities); j++)
            expect_invalid(virInternalProcessSetScheduler(
                               NULL, subject->pid, subject->pid, policies[i],
                               priorities[j], 0),
                           text("scheduler priority %d is out of range "
                                "[1, 99]", priorities[j]));
    }
}

TEST(priorities_out_of_range_of_real_time_policies)
{
    both_ways(priorities_out_of_range);
}

static void
bad_maps(const Subject *subject)
{
    static const unsigned char empty[VIR_INTERNAL_CPUMAP_MAX];
    const unsigned char one[] = { 1 };
    const int lengths[] = {
        0, -1, INT_MIN, VIR_INTERNAL_CPUMAP_MAX + 1, INT_MAX
    };

    for (size_t i = 0; i < COUNT(lengths); i++) {
        const char *part = text("maplen %d is out of range [1, 32768]",
                                lengths[i]);

        expect_invalid(virInternalProcessSetAffinity(
                           NULL, subject->pid, subject->pid, one, lengths[i],
                           0), part);
        expect_invalid(virInternalCgroupAddThreads(
                           NULL, subject->pid, NULL, VIR_INTERNAL_THREAD_VCPU,
                           subject->tids, NULL, 1, one, lengths[i], NULL, 0),
                       part);
    }
    expect_invalid(virInternalProcessSetAffinity(
                       NULL, subject->pid, subject->pid, NULL, 1, 0),
                   "cpumap is NULL");
    expect_invalid(virInternalProcessSetAffinity(
                       NULL, subject->pid, subject->pid, NULL, 0, 0),
                   "maplen 0 is out of range");
    expect_invalid(virInternalCgroupAddThreads(
                       NULL, subject->pid, NULL, VIR_INTERNAL_THREAD_VCPU,
                       subject->tids, NULL, 1, NULL, 1, NULL, 0),
                   "cpumap is NULL");
    for (int length = 1; length <= VIR_INTERNAL_CPUMAP_MAX; length *= 32) {
        const unsigned int flags[] = { 0, VIR_INTERNAL_NO_DIRECT };

        for (size_t i = 0; i < COUNT(flags); i++) {
            expect_invalid(virInternalProcessSetAffinity(
                               NULL, subject->pid, subject->pid, empty, length,
                               flags[i]),
                           "cpumap names no CPU");
            expect_invalid(virInternalCgroupAddThreads(
                               NULL, subject->pid, NULL,
                               VIR_INTERNAL_THREAD_VCPU, subject->tids, NULL, 1,
                               empty, length, NULL, flags[i]),
                           "cpumap names no CPU");
        }
    }
}

TEST(maps_that_are_NULL_or_empty_or_of_absurd_length)
{
    both_ways(bad_maps);
}

TEST(an_empty_map_for_a_process_that_is_no_more)
{
    const unsigned char empty[1] = { 0 };
    pid_t nobody = pid_of_nobody();

    expect_invalid(virInternalProcessSetAffinity(NULL, nobody, nobody, empty,
                                                 1, 0),
                   "cpumap names no CPU");
    expect_invalid(virInternalCgroupAddThreads(
                       NULL, nobody, NULL, VIR_INTERNAL_THREAD_VCPU, &nobody,
                       NULL, 1, empty, 1, NULL, 0),
                   "cpumap names no CPU");
}

static int
move_many(const Subject *subject, const pid_t *tids, size_t ntids)
{
    return virInternalCgroupAddThreads(NULL, subject->pid, NULL,
                                       VIR_INTERNAL_THREAD_VCPU, tids, NULL,
                                       ntids, NULL, 0, NULL, 0);
}

static void
bad_counts(const Subject *subject)
{
    const size_t counts[] = {
        0, VIR_INTERNAL_CGROUP_THREADS_MAX + 1, 1000000000, SIZE_MAX
    };

    for (size_t i = 0; i < COUNT(counts); i++) {
        const char *part = text("ntids %zu is out of range [1, 3000]",
                                counts[i]);

        expect_invalid(move_many(subject, subject->tids, counts[i]), part);
        expect_invalid(move_many(subject, NULL, counts[i]), part);
    }
    expect_invalid(move_many(subject, NULL, 1), "tids is NULL");
}

TEST(no_thread_ids_and_a_billion_of_them)
{
    both_ways(bad_counts);
}

static void
one_bad_tid(const Subject *subject)
{
    const pid_t tids[] = { subject->tids[0], subject->tids[1], -7 };

    expect_invalid(move_many(subject, tids, 3),
                   "tids[2] is -7: the id of a thread is 1 or more");
}

TEST(one_bad_id_among_good_ones)
{
    both_ways(one_bad_tid);
}

static void
unknown_roles(const Subject *subject)
{
    const int roles[] = { -1, 4, INT_MAX, INT_MIN };

    for (size_t i = 0; i < COUNT(roles); i++)
        expect_invalid(virInternalCgroupAddThreads(
                           NULL, subject->pid, NULL, roles[i], subject->tids,
                           NULL, 1, NULL, 0, NULL, 0),
                       text("%d is not a role: they are VCPU 0, EMULATOR 1, "
                            "IOTHREAD 2 and HELPER 3", roles[i]));
}

TEST(unknown_roles_of_threads)
{
    both_ways(unknown_roles);
}

static int
move_to(const Subject *subject, const char *group)
{
    return virInternalCgroupAddThreads(NULL, subject->pid, group,
                                       VIR_INTERNAL_THREAD_VCPU, subject->tids,
                                       NULL, 1, NULL, 0, NULL, 0);
}

static void
bad_groups(const Subject *subject)
{
    char path[PATH_MAX + 1];

    expect_invalid(move_to(subject, ""), "the cgroup's path is empty");
    expect_invalid(move_to(subject, "machine.slice"),
                   "the cgroup's path must be absolute: 'machine.slice'");
    expect_invalid(move_to(subject, "./vm"), "must be absolute: './vm'");

    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[PATH_MAX] = '\0';
    expect_invalid(move_to(subject, path),
                   "the cgroup's path is too long: it must be shorter than "
                   "4096 bytes");
    path[0] = 'x';
    expect_invalid(move_to(subject, path), "too long");

    expect_invalid(move_to(subject, "/proc"), "'/proc' is not a cgroup");
    expect_invalid(move_to(subject, "/"), "'/' is not a cgroup");
    expect_invalid(move_to(subject, "/proc/self/status"),
                   "'/proc/self/status' is not a cgroup");
    expect_error(move_to(subject, "/proc/no/such/group"),
                 VIR_INTERNAL_ERR_FAILED, ENOENT,
                 "cannot open the cgroup '/proc/no/such/group': No such file");
    /* As long as it may be, but one name is longer than names may be. */
    path[0] = '/';
    path[PATH_MAX - 1] = '\0';
    expect_error(move_to(subject, path), VIR_INTERNAL_ERR_FAILED,
                 ENAMETOOLONG, "xxx'... (4095 bytes)");
    /* Whatever a name has in it, a message is one line of text. */
    expect_error(move_to(subject, "/proc/a\nb\033\xff"),
                 VIR_INTERNAL_ERR_FAILED, ENOENT, "'/proc/a\\nb\\x1b\\xff'");
}

TEST(group_paths_that_are_empty_or_relative_or_too_long_or_no_cgroup)
{
    both_ways(bad_groups);
}

TEST(a_control_file_of_a_cgroup_is_not_a_cgroup)
{
    const char *files[] = {
        "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"
    };
    const char *file = files[access(files[0], F_OK) == 0 ? 0 : 1];
    Fixture fixture;

    if (access(file, F_OK) < 0)
        SKIP("cgroup v2 is not mounted");
    set_up(&fixture);
    expect_invalid(move_to(&fixture.subject, file),
                   text("'%s' is not a cgroup", file));
    tear_down(&fixture);
}

TEST(a_fifo_in_the_place_of_a_cgroup_is_not_waited_for)
{
    char directory[] = "/tmp/libvirt-internal-test-XXXXXX";
    const char *fifo;
    Fixture fixture;

    expect_true(mkdtemp(directory));
    fifo = text("%s/fifo", directory);
    must(mkfifo(fifo, 0600));
    set_up(&fixture);
    expect_invalid(move_to(&fixture.subject, fifo),
                   text("'%s' is not a cgroup", fifo));
    expect_invalid(move_to(&fixture.subject, directory),
                   text("'%s' is not a cgroup", directory));
    tear_down(&fixture);
    must(unlink(fifo));
    must(rmdir(directory));
}

TEST(an_error_found_before_acting_leaves_the_results_alone)
{
    int results[2] = { 4711, 4711 };
    Fixture fixture;

    set_up(&fixture);
    expect_invalid(virInternalCgroupAddThreads(
                       NULL, fixture.subject.pid, "/proc",
                       VIR_INTERNAL_THREAD_VCPU, fixture.subject.tids, NULL, 2,
                       NULL, 0, results, 0),
                   "is not a cgroup");
    expect_eq_int(results[0], 4711);
    expect_eq_int(results[1], 4711);
    tear_down(&fixture);
}

/* The connection is a key: whatever it points to is not looked at. */
TEST(a_connection_that_points_nowhere_is_a_key_like_others)
{
    struct _virConnect *conns[] = {
        (struct _virConnect *) 1, (struct _virConnect *) UINTPTR_MAX
    };

    for (size_t i = 0; i < COUNT(conns); i++) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

        set(operations, conns[i], &script, 0);
        expect_success(operations->call(conns[i], getpid(), 0));
        expect_eq_int(script.calls, 1);
        expect_success(virInternalConnectionClosed(conns[i]));
        expect_eq_int(script.freed, 1);
    }
}
