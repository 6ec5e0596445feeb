/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The CPUs that a thread may run on. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#define BYTES (CPU_SETSIZE / 8)

/* libvirt's map of the CPUs of a thread. */
static void
map_of(pid_t tid, unsigned char *map)
{
    cpu_set_t cpus;

    must(sched_getaffinity(tid, sizeof(cpus), &cpus));
    memset(map, 0, BYTES);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &cpus))
            map[cpu / 8] |= 1 << (cpu % 8);
    }
}

static int
first_cpu(const unsigned char *map)
{
    int cpu = 0;

    while (!(map[cpu / 8] >> (cpu % 8) & 1))
        cpu++;
    return cpu;
}

/* Leaves only the first CPU of a map. */
static void
leave_first_cpu(unsigned char *map)
{
    int cpu = first_cpu(map);

    memset(map, 0, BYTES);
    map[cpu / 8] = 1 << (cpu % 8);
}

static void
require_two_cpus(pid_t tid)
{
    cpu_set_t cpus;

    must(sched_getaffinity(tid, sizeof(cpus), &cpus));
    if (CPU_COUNT(&cpus) < 2)
        SKIP("it takes two CPUs");
}

#define expect_map(tid, expected) \
    do { \
        unsigned char found[BYTES]; \
        map_of(tid, found); \
        for (int i = 0; i < BYTES; i++) { \
            if (found[i] != (expected)[i]) \
                FAIL("expected the CPUs %d to %d to be %#x, found %#x", \
                     i * 8, i * 8 + 7, (expected)[i], found[i]); \
        } \
    } while (0)

TEST(a_process_runs_on_the_cpus_of_the_map)
{
    unsigned char all[BYTES];
    unsigned char one[BYTES];
    Subject subject = subject_start(1);

    map_of(subject.pid, all);
    memcpy(one, all, BYTES);
    leave_first_cpu(one);
    expect_success(virInternalProcessSetAffinity(NULL, subject.pid,
                                                 subject.pid, one, BYTES, 0));
    expect_map(subject.pid, one);
    expect_success(virInternalProcessSetAffinity(NULL, subject.pid,
                                                 subject.pid, all, BYTES, 0));
    expect_map(subject.pid, all);
    subject_end(&subject);
}

TEST(one_thread_is_set_and_the_others_are_left_alone)
{
    unsigned char all[BYTES];
    unsigned char one[BYTES];
    Subject subject = subject_start(3);

    require_two_cpus(subject.pid);
    map_of(subject.pid, all);
    memcpy(one, all, BYTES);
    leave_first_cpu(one);
    expect_success(virInternalProcessSetAffinity(
        NULL, subject.pid, subject.tids[1], one, BYTES, 0));
    expect_map(subject.tids[0], all);
    expect_map(subject.tids[1], one);
    expect_map(subject.tids[2], all);
    subject_end(&subject);
}

TEST(a_map_may_be_as_short_as_its_last_cpu)
{
    unsigned char one[BYTES];
    Subject subject = subject_start(1);

    map_of(subject.pid, one);
    leave_first_cpu(one);
    expect_success(virInternalProcessSetAffinity(
        NULL, subject.pid, subject.pid, one, first_cpu(one) / 8 + 1, 0));
    expect_map(subject.pid, one);
    subject_end(&subject);
}

TEST(a_map_may_be_as_long_as_libvirt_makes_them)
{
    static unsigned char longest[VIR_INTERNAL_CPUMAP_MAX];
    unsigned char one[BYTES];
    Subject subject = subject_start(1);

    map_of(subject.pid, one);
    leave_first_cpu(one);
    memcpy(longest, one, BYTES);
    expect_success(virInternalProcessSetAffinity(
        NULL, subject.pid, subject.pid, longest, sizeof(longest), 0));
    expect_map(subject.pid, one);
    subject_end(&subject);
}

TEST(cpus_that_the_machine_does_not_have_are_left_out)
{
    static unsigned char ones[VIR_INTERNAL_CPUMAP_MAX];
    unsigned char all[BYTES];
    Subject subject = subject_start(1);

    memset(ones, 0xff, sizeof(ones));
    map_of(subject.pid, all);
    expect_success(virInternalProcessSetAffinity(
        NULL, subject.pid, subject.pid, ones, sizeof(ones), 0));
    expect_map(subject.pid, all);
    subject_end(&subject);
}

TEST(no_cpu_but_those_that_the_machine_does_not_have_is_an_error)
{
    static unsigned char last[VIR_INTERNAL_CPUMAP_MAX];
    Subject subject = subject_start(1);
    State before = state_of(subject.pid, subject.pid);

    last[sizeof(last) - 1] = 0x80;
    expect_error(virInternalProcessSetAffinity(
                     NULL, subject.pid, subject.pid, last, sizeof(last), 0),
                 VIR_INTERNAL_ERR_FAILED, EINVAL,
                 text("cannot set CPU affinity of process %d to CPUs 262143",
                      subject.pid));
    expect_unchanged(&before, subject.pid, subject.pid);
    subject_end(&subject);
}

/* The map has only CPUs that no machine has. */
static void *
set_affinity_to_none(void *map)
{
    if (virInternalProcessSetAffinity(NULL, getpid(), gettid(), map,
                                      VIR_INTERNAL_CPUMAP_MAX, 0) == 0)
        return NULL;
    return (void *) (long) errno;
}

TEST(a_thread_with_a_small_stack_can_fail)
{
    static unsigned char last[VIR_INTERNAL_CPUMAP_MAX];
    pthread_attr_t small;
    pthread_t thread;
    void *errnum;

    last[sizeof(last) - 1] = 0x80;
    pthread_attr_init(&small);
    expect_eq_int(pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN + 8192),
                  0);
    expect_eq_int(pthread_create(&thread, &small, set_affinity_to_none, last),
                  0);
    expect_eq_int(pthread_join(thread, &errnum), 0);
    expect_eq_int((long) errnum, EINVAL);
    pthread_attr_destroy(&small);
}

TEST(a_process_that_is_no_more_is_NO_PROCESS)
{
    const unsigned char map[] = { 0xff };
    pid_t nobody = pid_of_nobody();

    expect_error(virInternalProcessSetAffinity(NULL, nobody, nobody, map, 1, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                 text("process %d", nobody));
}

TEST(a_thread_that_is_no_more_is_NO_PROCESS)
{
    const unsigned char map[] = { 0xff };
    Subject subject = subject_start(2);

    subject_end_thread(&subject, 1);
    expect_error(virInternalProcessSetAffinity(
                     NULL, subject.pid, subject.tids[1], map, 1, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                 text("process %d has no thread %d", subject.pid,
                      subject.tids[1]));
    subject_end(&subject);
}

TEST(a_thread_of_another_process_is_refused_and_left_alone)
{
    unsigned char one[BYTES];
    Subject subject = subject_start(1);
    Subject other = subject_start(2);
    State before = state_of(other.pid, other.tids[1]);

    map_of(other.pid, one);
    leave_first_cpu(one);
    expect_error(virInternalProcessSetAffinity(
                     NULL, subject.pid, other.tids[1], one, BYTES, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 text("thread %d does not belong to process %d",
                      other.tids[1], subject.pid));
    expect_unchanged(&before, other.pid, other.tids[1]);
    subject_end(&other);
    subject_end(&subject);
}

typedef struct {
    int calls;
    pid_t pid, tid;
    unsigned char map[4];
    int maplen;
} Asked;

static int
note_asked(pid_t pid, pid_t tid, const unsigned char *cpumap, int maplen,
           void *opaque)
{
    Asked *asked = opaque;

    asked->calls++;
    asked->pid = pid;
    asked->tid = tid;
    memcpy(asked->map, cpumap, sizeof(asked->map));
    asked->maplen = maplen;
    return -EXDEV;
}

TEST(a_handler_gets_the_map_as_it_was_given)
{
    const unsigned char map[] = { 0x01, 0x80, 0x00, 0x7e };
    Asked asked = { .calls = 0 };
    Subject subject = subject_start(2);

    expect_success(virInternalSetProcessSetAffinityHandler(
        NULL, VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION, note_asked, &asked,
        NULL, 0));
    expect_error(virInternalProcessSetAffinity(
                     NULL, subject.pid, subject.tids[1], map, sizeof(map), 0),
                 VIR_INTERNAL_ERR_FAILED, EXDEV, "CPUs 0,15,25-30");
    expect_eq_int(asked.calls, 1);
    expect_eq_int(asked.pid, subject.pid);
    expect_eq_int(asked.tid, subject.tids[1]);
    expect_eq_int(asked.maplen, sizeof(map));
    expect_eq_int(memcmp(asked.map, map, sizeof(map)), 0);
    subject_end(&subject);
}
