/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Moving threads into cgroups of v2 and v1. */
#define _GNU_SOURCE
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static bool
is_mount_of(const char *path, unsigned long magic)
{
    struct statfs status;

    return statfs(path, &status) == 0
        && (unsigned long) status.f_type == magic;
}

/* Where cgroup v2 is mounted, or NULL. */
static const char *
find_v2(void)
{
    const char *places[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };

    for (size_t i = 0; i < 2; i++) {
        if (is_mount_of(places[i], CGROUP2_SUPER_MAGIC))
            return places[i];
    }
    return NULL;
}

/* Where a controller of cgroup v1 is mounted, or NULL. */
static const char *
find_v1(const char *controller)
{
    const char *place = text("/sys/fs/cgroup/%s", controller);

    return is_mount_of(place, CGROUP_SUPER_MAGIC) ? place : NULL;
}

/* The name of the one group that a test makes at each mount. */
static const char *
group_name(pid_t test)
{
    return name_of_test("libvirt-internal-test", test);
}

/* Some kernels take a moment to forget who was in it. */
static void
remove_empty(const char *group)
{
    int result = rmdir(group);

    for (int i = 0; result < 0 && errno == EBUSY && i < 60000; i++) {
        usleep(1000);
        result = rmdir(group);
    }
    if (result < 0)
        fprintf(stderr, "cannot remove %s: %s\n", group, strerror(errno));
}

static void
remove_group(const char *mount, pid_t test)
{
    const char *group = text("%s/%s", mount, group_name(test));
    DIR *directory = opendir(group);
    struct dirent *entry;

    if (!directory)
        return;
    while ((entry = readdir(directory))) {
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            remove_empty(text("%s/%s", group, entry->d_name));
    }
    closedir(directory);
    remove_empty(group);
}

static void
remove_groups(pid_t test)
{
    const char *controllers[] = { "cpu", "cpuset", "freezer" };

    if (find_v2())
        remove_group(find_v2(), test);
    for (size_t i = 0; i < 3; i++) {
        if (find_v1(controllers[i]))
            remove_group(find_v1(controllers[i]), test);
    }
}

#define GROUP_TEST(name) TEST(name, .after = remove_groups)

static void
write_file(const char *path, const char *content)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, content, strlen(content)) < 0)
        FAIL("cannot write %s to %s: %s", content, path, strerror(errno));
    close(fd);
}

typedef struct { char path[256]; } Group;

static Group
make_group(const char *parent, const char *name)
{
    Group group;

    snprintf(group.path, sizeof(group.path), "%s/%s", parent, name);
    if (mkdir(group.path, 0755) < 0)
        SKIP("cannot make a cgroup in %s: %s", parent, strerror(errno));
    return group;
}

/* A cgroup of v2 with a process in it, as a daemon makes one for a VM. */
static Group
make_v2(pid_t member)
{
    Group group;

    if (!find_v2())
        SKIP("cgroup v2 is not mounted");
    group = make_group(find_v2(), group_name(getpid()));
    write_file(text("%s/cgroup.procs", group.path), text("%d", member));
    return group;
}

static Group
make_threaded(const Group *parent, const char *name)
{
    Group group = make_group(parent->path, name);

    write_file(text("%s/cgroup.type", group.path), "threaded");
    return group;
}

static Group
make_v1(const char *controller)
{
    const char *mount = find_v1(controller);

    if (!mount)
        SKIP("the %s controller of cgroup v1 is not mounted", controller);
    return make_group(mount, group_name(getpid()));
}

static bool
is_in(const Group *group, const char *file, pid_t tid)
{
    FILE *members = fopen(text("%s/%s", group->path, file), "re");
    bool found = false;
    pid_t member;

    if (!members)
        FAIL("%s/%s: %s", group->path, file, strerror(errno));
    while (fscanf(members, "%d", &member) == 1)
        found |= member == tid;
    fclose(members);
    return found;
}

#define V1 "tasks"
#define V2 "cgroup.threads"

static int
add_threads(const Subject *subject, const Group *group, int *results)
{
    return virInternalCgroupAddThreads(
        NULL, subject->pid, group->path, VIR_INTERNAL_THREAD_VCPU,
        subject->tids, NULL, subject->nthreads, NULL, 0, results, 0);
}

static int
add_thread(const Subject *subject, const Group *group, size_t index)
{
    return virInternalCgroupAddThreads(
        NULL, subject->pid, group->path, VIR_INTERNAL_THREAD_VCPU,
        subject->tids + index, NULL, 1, NULL, 0, NULL, 0);
}

GROUP_TEST(a_threaded_group_of_v2_takes_single_threads)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");

    expect_success(add_thread(&subject, &vcpu, 1));
    expect_true(is_in(&vm, V2, subject.tids[0]));
    expect_true(is_in(&vcpu, V2, subject.tids[1]));
    expect_true(is_in(&vm, V2, subject.tids[2]));
    subject_end(&subject);
}

GROUP_TEST(threads_go_back_from_a_threaded_group_to_the_VMs)
{
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group emulator = make_threaded(&vm, "emulator");

    expect_success(add_threads(&subject, &emulator, NULL));
    for (int i = 0; i < 3; i++)
        expect_true(is_in(&emulator, V2, subject.tids[i]));
    expect_success(add_threads(&subject, &vm, results));
    for (int i = 0; i < 3; i++) {
        expect_true(is_in(&vm, V2, subject.tids[i]));
        expect_eq_int(results[i], 0);
    }
    subject_end(&subject);
}

GROUP_TEST(a_domain_of_v2_takes_all_threads_of_a_process)
{
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group domain = make_group(vm.path, "domain");

    expect_success(add_threads(&subject, &domain, results));
    for (int i = 0; i < 3; i++) {
        expect_true(is_in(&domain, V2, subject.tids[i]));
        expect_eq_int(results[i], 0);
    }
    subject_end(&subject);
}

GROUP_TEST(a_domain_of_v2_does_not_take_some_threads_of_a_process)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group domain = make_group(vm.path, "domain");
    State before = state_of(subject.pid, subject.tids[2]);
    int results[2] = { 1, 1 };

    expect_error(virInternalCgroupAddThreads(
                     NULL, subject.pid, domain.path, VIR_INTERNAL_THREAD_VCPU,
                     subject.tids + 1, NULL, 2, NULL, 0, results, 0),
                 VIR_INTERNAL_ERR_FAILED, EOPNOTSUPP,
                 "takes whole processes only");
    expect_eq_int(results[0], -EOPNOTSUPP);
    expect_eq_int(results[1], -EOPNOTSUPP);
    expect_unchanged(&before, subject.pid, subject.tids[2]);
    subject_end(&subject);
}

GROUP_TEST(a_group_of_v2_that_takes_nobody_is_an_error)
{
    Subject subject = subject_start(2);
    Group vm = make_v2(subject.pid);
    /* A threaded brother makes the root of both a threaded domain, in which a
     * domain is an invalid one. */
    Group vcpu = make_threaded(&vm, "vcpu0");
    Group invalid = make_group(vm.path, "invalid");
    State before = state_of(subject.pid, subject.pid);

    expect_success(add_thread(&subject, &vcpu, 1));
    expect_error(add_threads(&subject, &invalid, NULL),
                 VIR_INTERNAL_ERR_FAILED, EOPNOTSUPP, invalid.path);
    expect_unchanged(&before, subject.pid, subject.pid);
    subject_end(&subject);
}

GROUP_TEST(a_group_of_v1_takes_single_threads)
{
    Subject subject = subject_start(3);
    Group group = make_v1("freezer");

    expect_success(add_thread(&subject, &group, 1));
    expect_true(!is_in(&group, V1, subject.tids[0]));
    expect_true(is_in(&group, V1, subject.tids[1]));
    expect_true(!is_in(&group, V1, subject.tids[2]));
    subject_end(&subject);
}

GROUP_TEST(a_group_of_v1_takes_all_threads)
{
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    Group group = make_v1("cpu");

    expect_success(add_threads(&subject, &group, results));
    for (int i = 0; i < 3; i++) {
        expect_true(is_in(&group, V1, subject.tids[i]));
        expect_eq_int(results[i], 0);
    }
    subject_end(&subject);
}

/* In either version. */
static void
require_ESRCH_for_the_one_that_has_exited(const Subject *subject,
                                          const Group *group, const char *file,
                                          size_t exited)
{
    int results[3] = { 1, 1, 1 };

    subject_end_thread(subject, exited);
    expect_success(add_threads(subject, group, results));
    for (size_t i = 0; i < 3; i++) {
        expect_true(i == exited || is_in(group, file, subject->tids[i]));
        expect_eq_int(results[i], i == exited ? -ESRCH : 0);
    }
    subject_end(subject);
}

GROUP_TEST(a_thread_that_has_exited_is_ESRCH_and_v2_takes_the_others)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group emulator = make_threaded(&vm, "emulator");

    require_ESRCH_for_the_one_that_has_exited(&subject, &emulator, V2, 1);
}

GROUP_TEST(a_thread_that_has_exited_is_ESRCH_and_a_domain_takes_the_others)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group domain = make_group(vm.path, "domain");

    require_ESRCH_for_the_one_that_has_exited(&subject, &domain, V2, 1);
}

GROUP_TEST(a_thread_that_has_exited_is_ESRCH_and_v1_takes_the_others)
{
    Subject subject = subject_start(3);
    Group group = make_v1("freezer");

    require_ESRCH_for_the_one_that_has_exited(&subject, &group, V1, 1);
}

GROUP_TEST(a_first_thread_that_exited_is_ESRCH_and_v2_takes_the_others)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group emulator = make_threaded(&vm, "emulator");

    require_ESRCH_for_the_one_that_has_exited(&subject, &emulator, V2, 0);
}

GROUP_TEST(a_first_thread_that_exited_is_ESRCH_and_a_domain_takes_the_others)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group domain = make_group(vm.path, "domain");

    require_ESRCH_for_the_one_that_has_exited(&subject, &domain, V2, 0);
}

GROUP_TEST(a_first_thread_that_exited_is_ESRCH_and_v1_takes_the_others)
{
    Subject subject = subject_start(3);
    Group group = make_v1("freezer");

    require_ESRCH_for_the_one_that_has_exited(&subject, &group, V1, 0);
}

/* Without real-time bandwidth a group of v1 takes no real-time thread. */
GROUP_TEST(a_thread_that_the_group_does_not_take_is_named_and_others_are_moved)
{
    struct sched_param parameters = { .sched_priority = 1 };
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    Group group = make_v1("cpu");

    if (access(text("%s/cpu.rt_runtime_us", group.path), F_OK) < 0)
        SKIP("this kernel has no real-time bandwidth for groups");
    if (sched_setscheduler(subject.tids[1], SCHED_FIFO, &parameters) < 0)
        SKIP("real-time scheduling needs CAP_SYS_NICE");
    expect_error(add_threads(&subject, &group, results),
                 VIR_INTERNAL_ERR_FAILED, EINVAL,
                 text("2 of them were moved, thread %d was not",
                      subject.tids[1]));
    expect_eq_int(results[0], 0);
    expect_eq_int(results[1], -EINVAL);
    expect_eq_int(results[2], 0);
    expect_true(is_in(&group, V1, subject.tids[0]));
    expect_true(!is_in(&group, V1, subject.tids[1]));
    expect_true(is_in(&group, V1, subject.tids[2]));
    subject_end(&subject);
}

GROUP_TEST(a_group_that_takes_none_fails_with_the_kernels_errno)
{
    int results[2] = { 1, 1 };
    Subject subject = subject_start(2);
    /* A new cpuset has no CPUs. */
    Group group = make_v1("cpuset");

    expect_error(add_threads(&subject, &group, results),
                 VIR_INTERNAL_ERR_FAILED, ENOSPC, "0 of them were moved");
    expect_eq_int(results[0], -ENOSPC);
    expect_eq_int(results[1], -ENOSPC);
    subject_end(&subject);
}

GROUP_TEST(a_thread_of_another_process_is_an_error_before_any_is_moved)
{
    Subject subject = subject_start(2);
    Subject other = subject_start(1);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");
    State before = state_of(subject.pid, subject.tids[1]);
    pid_t tids[] = { subject.tids[1], other.pid };
    int results[2] = { 1, 1 };

    expect_error(virInternalCgroupAddThreads(
                     NULL, subject.pid, vcpu.path, VIR_INTERNAL_THREAD_VCPU,
                     tids, NULL, 2, NULL, 0, results, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 text("thread %d does not belong to process %d", other.pid,
                      subject.pid));
    expect_eq_int(results[0], -EINVAL);
    expect_eq_int(results[1], -EINVAL);
    expect_unchanged(&before, subject.pid, subject.tids[1]);
    subject_end(&other);
    subject_end(&subject);
}

GROUP_TEST(a_process_that_is_no_more_is_NO_PROCESS)
{
    int results[2] = { 1, 1 };
    Subject subject = subject_start(2);
    Group vm = make_v2(subject.pid);

    subject_end(&subject);
    expect_error(add_threads(&subject, &vm, results),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                 text("there is no process %d", subject.pid));
    expect_eq_int(results[0], -ESRCH);
    expect_eq_int(results[1], -ESRCH);
}

GROUP_TEST(a_group_that_may_not_be_written_fails_with_EACCES)
{
    int results[2] = { 1, 1 };
    Subject subject = subject_start(2);
    Group vm = make_v2(subject.pid);

    must(chmod(text("%s/cgroup.threads", vm.path), 0400));
    if (geteuid() == 0)
        must(seteuid(65534));
    expect_error(add_threads(&subject, &vm, results),
                 VIR_INTERNAL_ERR_FAILED, EACCES, vm.path);
    expect_eq_int(results[0], -EACCES);
    expect_eq_int(results[1], -EACCES);
    if (getuid() == 0)
        must(seteuid(0));
    subject_end(&subject);
}

TEST(without_a_group_it_is_a_success_with_nothing_done)
{
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    State before = state_of(subject.pid, subject.pid);

    expect_success(virInternalCgroupAddThreads(
        NULL, subject.pid, NULL, VIR_INTERNAL_THREAD_VCPU, subject.tids, NULL,
        3, NULL, 0, results, 0));
    for (int i = 0; i < 3; i++)
        expect_eq_int(results[i], 0);
    expect_unchanged(&before, subject.pid, subject.pid);
    subject_end(&subject);
}

TEST(as_many_threads_as_the_header_says_are_taken)
{
    static pid_t tids[VIR_INTERNAL_CGROUP_THREADS_MAX];

    for (size_t i = 0; i < VIR_INTERNAL_CGROUP_THREADS_MAX; i++)
        tids[i] = getpid();
    expect_success(virInternalCgroupAddThreads(
        NULL, getpid(), NULL, VIR_INTERNAL_THREAD_HELPER, tids, NULL,
        VIR_INTERNAL_CGROUP_THREADS_MAX, NULL, 0, NULL, 0));
}

/* What a handler was called with, and how it goes on. */
typedef struct {
    int calls;
    pid_t pid;
    char group[256];
    bool has_group;
    int role;
    pid_t tids[3];
    bool has_ids;
    unsigned int ids[3];
    size_t ntids;
    bool has_cpumap;
    unsigned char cpumap[2];
    int maplen;
    int found[3];
    bool has_results;
    /* What it leaves in the results, and its answer. */
    int leaves[3];
    int answer;
} Asked;

static int
note_asked(pid_t pid, const char *group, int role, const pid_t *tids,
           const unsigned int *ids, size_t ntids, const unsigned char *cpumap,
           int maplen, int *results, void *opaque)
{
    Asked *asked = opaque;

    asked->calls++;
    asked->pid = pid;
    asked->has_group = group;
    if (group)
        snprintf(asked->group, sizeof(asked->group), "%s", group);
    asked->role = role;
    asked->ntids = ntids;
    memcpy(asked->tids, tids, ntids * sizeof(*tids));
    asked->has_ids = ids;
    if (ids)
        memcpy(asked->ids, ids, ntids * sizeof(*ids));
    asked->has_cpumap = cpumap;
    if (cpumap)
        memcpy(asked->cpumap, cpumap, maplen);
    asked->maplen = maplen;
    asked->has_results = results;
    memcpy(asked->found, results, ntids * sizeof(*results));
    memcpy(results, asked->leaves, ntids * sizeof(*results));
    return asked->answer;
}

static void
set_note_asked(Asked *asked)
{
    expect_success(virInternalSetCgroupAddThreadsHandler(
        NULL, VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION, note_asked, asked,
        NULL, 0));
}

TEST(a_handler_gets_every_argument_and_each_role)
{
    const unsigned int ids[] = { 7, 0, 4000000000U };
    const unsigned char cpumap[] = { 0x02, 0x80 };
    Asked asked = { .answer = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(3);

    set_note_asked(&asked);
    for (int role = VIR_INTERNAL_THREAD_VCPU;
         role <= VIR_INTERNAL_THREAD_HELPER; role++) {
        int results[3] = { 1, 1, 1 };

        expect_success(virInternalCgroupAddThreads(
            NULL, subject.pid, NULL, role, subject.tids, ids, 3, cpumap, 2,
            results, 0));
        expect_eq_int(asked.calls, role + 1);
        expect_eq_int(asked.pid, subject.pid);
        expect_true(!asked.has_group);
        expect_eq_int(asked.role, role);
        expect_eq_int(asked.ntids, 3);
        expect_true(asked.has_ids);
        expect_eq_int(asked.maplen, 2);
        expect_eq_int(memcmp(asked.cpumap, cpumap, 2), 0);
        for (int i = 0; i < 3; i++) {
            expect_eq_int(asked.tids[i], subject.tids[i]);
            expect_eq_int(asked.ids[i], ids[i]);
            expect_eq_int(asked.found[i], 0);
            expect_eq_int(results[i], 0);
        }
    }
    subject_end(&subject);
}

GROUP_TEST(a_handler_gets_the_groups_path_and_NULL_for_what_is_not_given)
{
    Asked asked = { .answer = -EXDEV };
    Subject subject = subject_start(2);
    Group vm = make_v2(subject.pid);

    set_note_asked(&asked);
    expect_error(add_threads(&subject, &vm, NULL),
                 VIR_INTERNAL_ERR_FAILED, EXDEV,
                 text("move 2 vCPU threads of process %d to '%s'",
                      subject.pid, vm.path));
    expect_eq_str(asked.group, vm.path);
    expect_true(!asked.has_ids);
    expect_true(!asked.has_cpumap);
    expect_eq_int(asked.maplen, 0);
    /* It has somewhere to put them, though. */
    expect_true(asked.has_results);
    subject_end(&subject);
}

TEST(a_handler_finds_ESRCH_for_a_thread_that_has_exited)
{
    Asked asked = { .leaves = { 0, -ESRCH, 0 } };
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);

    subject_end_thread(&subject, 1);
    set_note_asked(&asked);
    expect_success(virInternalCgroupAddThreads(
        NULL, subject.pid, NULL, VIR_INTERNAL_THREAD_VCPU, subject.tids, NULL,
        3, NULL, 0, results, 0));
    expect_eq_int(asked.found[0], 0);
    expect_eq_int(asked.found[1], -ESRCH);
    expect_eq_int(asked.found[2], 0);
    expect_eq_int(results[1], -ESRCH);
    subject_end(&subject);
}

TEST(a_thread_that_a_handler_could_not_move_fails_the_call)
{
    Asked asked = { .leaves = { 0, -EBUSY, 0 } };
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);

    set_note_asked(&asked);
    expect_error(virInternalCgroupAddThreads(
                     NULL, subject.pid, NULL, VIR_INTERNAL_THREAD_VCPU,
                     subject.tids, NULL, 3, NULL, 0, results, 0),
                 VIR_INTERNAL_ERR_FAILED, EBUSY,
                 text("thread %d was not", subject.tids[1]));
    expect_eq_int(results[0], 0);
    expect_eq_int(results[1], -EBUSY);
    expect_eq_int(results[2], 0);
    subject_end(&subject);
}

TEST(a_handler_that_fails_leaves_its_errno_for_each_thread)
{
    Asked asked = { .answer = -EPERM };
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);

    set_note_asked(&asked);
    expect_error(virInternalCgroupAddThreads(
                     NULL, subject.pid, NULL, VIR_INTERNAL_THREAD_VCPU,
                     subject.tids, NULL, 3, NULL, 0, results, 0),
                 VIR_INTERNAL_ERR_FAILED, EPERM, "the handler could not");
    for (int i = 0; i < 3; i++)
        expect_eq_int(results[i], -EPERM);
    subject_end(&subject);
}

TEST(a_result_that_is_no_errno_is_an_error)
{
    const int strange[] = { 1, EBUSY, -4096 };
    Subject subject = subject_start(2);

    for (size_t i = 0; i < 3; i++) {
        Asked asked = { .leaves = { 0, strange[i] } };

        set_note_asked(&asked);
        expect_error(virInternalCgroupAddThreads(
                         NULL, subject.pid, NULL, VIR_INTERNAL_THREAD_VCPU,
                         subject.tids, NULL, 2, NULL, 0, NULL, 0),
                     VIR_INTERNAL_ERR_FAILED, EPROTO,
                     text("left the result %d for thread %d", strange[i],
                          subject.tids[1]));
    }
    subject_end(&subject);
}

GROUP_TEST(a_handler_that_handles_nothing_leaves_it_to_the_kernel)
{
    Asked asked = { .answer = VIR_INTERNAL_NOT_HANDLED };
    int results[2] = { 1, 1 };
    Subject subject = subject_start(2);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");

    set_note_asked(&asked);
    expect_success(add_threads(&subject, &vcpu, results));
    expect_eq_int(asked.calls, 1);
    for (int i = 0; i < 2; i++) {
        expect_eq_int(results[i], 0);
        expect_true(is_in(&vcpu, V2, subject.tids[i]));
    }
    subject_end(&subject);
}

/* Handlers whose word is checked. */

typedef struct {
    const Subject *subject;
    const Group *group;
    const char *file;
    size_t nmoved;
    bool ends_last;
} Mover;

static int
move_some(pid_t pid, const char *group, int role, const pid_t *tids,
          const unsigned int *ids, size_t ntids, const unsigned char *cpumap,
          int maplen, int *results, void *opaque)
{
    const Mover *mover = opaque;

    (void) pid, (void) group, (void) role, (void) ids;
    (void) cpumap, (void) maplen;
    for (size_t i = 0; i < mover->nmoved; i++) {
        if (results[i] != -ESRCH)
            write_file(text("%s/%s", mover->group->path, mover->file),
                       text("%d", tids[i]));
    }
    if (mover->ends_last)
        subject_end_thread(mover->subject, ntids - 1);
    return VIR_INTERNAL_HANDLED;
}

static void
set_move_some(Mover *mover)
{
    expect_success(virInternalSetCgroupAddThreadsHandler(
        NULL, VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION, move_some, mover,
        NULL, 0));
}

GROUP_TEST(a_handler_that_moves_all_threads_is_believed)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");
    Mover mover = { .group = &vcpu, .file = V2, .nmoved = 3 };

    set_move_some(&mover);
    expect_success(add_threads(&subject, &vcpu, NULL));
    subject_end(&subject);
}

GROUP_TEST(a_handler_that_moves_all_threads_in_v1_is_believed)
{
    Subject subject = subject_start(3);
    Group group = make_v1("freezer");
    Mover mover = { .group = &group, .file = V1, .nmoved = 3 };

    set_move_some(&mover);
    expect_success(add_threads(&subject, &group, NULL));
    subject_end(&subject);
}

static void
require_handler_moves_all_but_the_first(const Subject *subject,
                                        const Group *group, const char *file)
{
    Mover mover = { .group = group, .file = file, .nmoved = 3 };

    set_move_some(&mover);
    require_ESRCH_for_the_one_that_has_exited(subject, group, file, 0);
}

GROUP_TEST(a_handler_need_not_move_a_first_thread_that_has_exited)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");

    require_handler_moves_all_but_the_first(&subject, &vcpu, V2);
}

GROUP_TEST(a_handler_need_not_move_a_first_thread_that_has_exited_in_v1)
{
    Subject subject = subject_start(3);
    Group group = make_v1("freezer");

    require_handler_moves_all_but_the_first(&subject, &group, V1);
}

GROUP_TEST(a_handler_that_moves_all_but_one_thread_is_found_out)
{
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");
    Mover mover = { .group = &vcpu, .file = V2, .nmoved = 2 };

    set_move_some(&mover);
    expect_error(add_threads(&subject, &vcpu, results),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 text("the kernel has thread %d elsewhere", subject.tids[2]));
    expect_eq_int(results[0], 0);
    expect_eq_int(results[1], 0);
    expect_eq_int(results[2], -EREMOTEIO);
    subject_end(&subject);
}

GROUP_TEST(a_handler_that_moves_threads_elsewhere_is_found_out)
{
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");
    Group elsewhere = make_threaded(&vm, "vcpu00");
    Mover mover = { .group = &elsewhere, .file = V2, .nmoved = 3 };

    set_move_some(&mover);
    expect_error(add_threads(&subject, &vcpu, NULL),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, vcpu.path);
    subject_end(&subject);
}

GROUP_TEST(a_thread_that_exits_while_the_handler_runs_is_ESRCH)
{
    int results[3] = { 1, 1, 1 };
    Subject subject = subject_start(3);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");
    Mover mover = {
        .subject = &subject, .group = &vcpu, .file = V2, .nmoved = 2,
        .ends_last = true
    };

    set_move_some(&mover);
    expect_success(add_threads(&subject, &vcpu, results));
    expect_eq_int(results[0], 0);
    expect_eq_int(results[1], 0);
    expect_eq_int(results[2], -ESRCH);
    subject_end(&subject);
}

/* A thread that was cancelled, but has not come to where it ends. */

typedef struct {
    const Subject *subject;
    const Group *group;
    int result;
} CancelledMove;

static void *
move_cancelled(void *data)
{
    CancelledMove *move = data;

    pthread_cancel(pthread_self());
    move->result = add_threads(move->subject, move->group, NULL);
    pthread_testcancel();
    return NULL;
}

static void
require_move_by_cancelled(const Subject *subject, const Group *group)
{
    CancelledMove move = { subject, group, -1 };
    pthread_t thread;
    void *end;

    expect_eq_int(pthread_create(&thread, NULL, move_cancelled, &move), 0);
    expect_eq_int(pthread_join(thread, &end), 0);
    expect_true(end == PTHREAD_CANCELED);
    expect_eq_int(move.result, 0);
    expect_true(is_in(group, V2, subject->tids[1]));
}

GROUP_TEST(a_move_by_a_thread_that_was_cancelled_goes_to_its_end)
{
    Asked asked = { .answer = VIR_INTERNAL_NOT_HANDLED };
    Subject subject = subject_start(2);
    Group vm = make_v2(subject.pid);
    Group vcpu = make_threaded(&vm, "vcpu0");

    require_move_by_cancelled(&subject, &vm);
    set_note_asked(&asked);
    require_move_by_cancelled(&subject, &vcpu);
    /* Only looks whether they are there. */
    asked.answer = VIR_INTERNAL_HANDLED;
    require_move_by_cancelled(&subject, &vcpu);
    expect_eq_int(asked.calls, 2);
    subject_end(&subject);
}
