/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Limits of memory, processes, files and cores, set directly. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <limits.h>
#include <linux/capability.h>
#include <unistd.h>

/* What libvirt takes for unlimited. */
#define UNLIMITED 9007199254740991ULL

static unsigned long long
hard_limit(pid_t pid, int resource)
{
    struct rlimit limit;

    must(prlimit(pid, resource, NULL, &limit));
    return limit.rlim_max;
}

static void
set_soft_limit(pid_t pid, int resource, unsigned long long soft)
{
    struct rlimit limit = { soft, hard_limit(pid, resource) };

    must(prlimit(pid, resource, &limit, NULL));
}

/* SKIPs the test unless a plain prlimit() may raise the limit. */
static void
require_raising(pid_t pid, int resource, const char *what)
{
    struct rlimit more = { RLIM_INFINITY, RLIM_INFINITY };

    if (prlimit(pid, resource, &more, NULL) < 0) {
        expect_eq_int(errno, EPERM);
        SKIP("raising %s needs CAP_SYS_RESOURCE", what);
    }
}

TEST(max_mem_lock_sets_soft_and_hard_to_the_bytes_asked)
{
    Subject subject = subject_start(1);

    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 65537,
                                                   0));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 65537, 65537);
    subject_end(&subject);
}

TEST(max_mem_lock_of_0_sets_0)
{
    Subject subject = subject_start(1);

    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 0, 0));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 0, 0);
    subject_end(&subject);
}

TEST(max_mem_lock_is_raised)
{
    Subject subject = subject_start(1);
    unsigned long long raised;

    require_raising(subject.pid, RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK");
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 4096,
                                                   0));
    raised = UNLIMITED - 1;
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, raised,
                                                   0));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, raised, raised);
    subject_end(&subject);
}

TEST(max_mem_lock_from_libvirts_unlimited_on_is_unlimited)
{
    const unsigned long long asked[] = {
        UNLIMITED, UNLIMITED + 1, ULLONG_MAX
    };
    Subject subject = subject_start(1);

    require_raising(subject.pid, RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK");
    for (size_t i = 0; i < 3; i++) {
        set_soft_limit(subject.pid, RLIMIT_MEMLOCK, 0);
        expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid,
                                                       asked[i], 0));
        expect_limit(subject.pid, RLIMIT_MEMLOCK, RLIM_INFINITY,
                     RLIM_INFINITY);
    }
    subject_end(&subject);
}

TEST(raising_without_the_capability_fails_in_libvirts_words)
{
    Subject subject = subject_start(1);
    State before;

    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 4096,
                                                   0));
    drop_capability(CAP_SYS_RESOURCE);
    before = state_of(subject.pid, subject.pid);
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, UNLIMITED,
                                                 0),
                 VIR_INTERNAL_ERR_FAILED, EPERM,
                 text("cannot limit locked memory of process %d to "
                      "9007199254740991: Operation not permitted",
                      subject.pid));
    expect_unchanged(&before, subject.pid, subject.pid);
    subject_end(&subject);
}

TEST(max_processes_sets_soft_and_hard_to_the_number_asked)
{
    Subject subject = subject_start(1);
    unsigned long long hard = hard_limit(subject.pid, RLIMIT_NPROC);
    unsigned int asked = hard < 99 ? hard : 99;

    expect_success(virInternalProcessSetMaxProcesses(NULL, subject.pid, asked,
                                                     0));
    expect_limit(subject.pid, RLIMIT_NPROC, asked, asked);
    subject_end(&subject);
}

TEST(max_processes_of_0_sets_0)
{
    Subject subject = subject_start(1);

    expect_success(virInternalProcessSetMaxProcesses(NULL, subject.pid, 0, 0));
    expect_limit(subject.pid, RLIMIT_NPROC, 0, 0);
    subject_end(&subject);
}

TEST(max_processes_of_UINT_MAX_is_a_number_like_others)
{
    Subject subject = subject_start(1);

    require_raising(subject.pid, RLIMIT_NPROC, "RLIMIT_NPROC");
    expect_success(virInternalProcessSetMaxProcesses(NULL, subject.pid,
                                                     UINT_MAX, 0));
    expect_limit(subject.pid, RLIMIT_NPROC, UINT_MAX, UINT_MAX);
    subject_end(&subject);
}

TEST(max_files_sets_one_more_than_asked)
{
    Subject subject = subject_start(1);

    expect_success(virInternalProcessSetMaxFiles(NULL, subject.pid, 99, 0));
    expect_limit(subject.pid, RLIMIT_NOFILE, 100, 100);
    expect_success(virInternalProcessSetMaxFiles(NULL, subject.pid, 0, 0));
    expect_limit(subject.pid, RLIMIT_NOFILE, 1, 1);
    subject_end(&subject);
}

TEST(max_files_are_raised)
{
    Subject subject = subject_start(1);
    unsigned long long hard = hard_limit(subject.pid, RLIMIT_NOFILE);
    struct rlimit more = { hard + 1, hard + 1 };

    if (prlimit(subject.pid, RLIMIT_NOFILE, &more, NULL) < 0)
        SKIP("raising RLIMIT_NOFILE of a process above %llu needs "
             "CAP_SYS_RESOURCE and a larger fs.nr_open", hard);
    expect_success(virInternalProcessSetMaxFiles(NULL, subject.pid, 99, 0));
    expect_success(virInternalProcessSetMaxFiles(NULL, subject.pid, hard, 0));
    expect_limit(subject.pid, RLIMIT_NOFILE, hard + 1, hard + 1);
    subject_end(&subject);
}

/* The sum of 32 bits is 0, which the kernel would set. That of 64 bits is more
 * than fs.nr_open can be. */
TEST(max_files_of_UINT_MAX_is_not_taken_for_0)
{
    Subject subject = subject_start(1);
    State before = state_of(subject.pid, subject.pid);

    expect_error(virInternalProcessSetMaxFiles(NULL, subject.pid, UINT_MAX, 0),
                 VIR_INTERNAL_ERR_FAILED, EPERM,
                 text("cannot limit number of open files of process %d to "
                      "4294967295", subject.pid));
    expect_unchanged(&before, subject.pid, subject.pid);
    subject_end(&subject);
}

TEST(max_core_size_sets_soft_and_hard_to_the_bytes_asked)
{
    Subject subject = subject_start(1);
    unsigned long long hard = hard_limit(subject.pid, RLIMIT_CORE);
    unsigned long long asked = hard < 12345 ? hard : 12345;

    expect_success(virInternalProcessSetMaxCoreSize(NULL, subject.pid, hard,
                                                    0));
    expect_limit(subject.pid, RLIMIT_CORE, hard, hard);
    expect_success(virInternalProcessSetMaxCoreSize(NULL, subject.pid, asked,
                                                    0));
    expect_limit(subject.pid, RLIMIT_CORE, asked, asked);
    expect_success(virInternalProcessSetMaxCoreSize(NULL, subject.pid, 0, 0));
    expect_limit(subject.pid, RLIMIT_CORE, 0, 0);
    subject_end(&subject);
}

TEST(max_core_size_of_ULLONG_MAX_is_unlimited)
{
    Subject subject = subject_start(1);

    require_raising(subject.pid, RLIMIT_CORE, "RLIMIT_CORE");
    set_soft_limit(subject.pid, RLIMIT_CORE, 0);
    expect_success(virInternalProcessSetMaxCoreSize(NULL, subject.pid,
                                                    ULLONG_MAX, 0));
    expect_limit(subject.pid, RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY);
    expect_success(virInternalProcessSetMaxCoreSize(NULL, subject.pid,
                                                    UNLIMITED, 0));
    expect_limit(subject.pid, RLIMIT_CORE, UNLIMITED, UNLIMITED);
    subject_end(&subject);
}

TEST(a_process_limits_itself)
{
    expect_success(virInternalProcessSetMaxMemLock(NULL, getpid(), 8192, 0));
    expect_limit(getpid(), RLIMIT_MEMLOCK, 8192, 8192);
}

TEST(a_process_that_may_not_prlimit_itself_uses_setrlimit)
{
    forbid_prlimit_by_pid();
    expect_eq_int(prlimit(getpid(), RLIMIT_MEMLOCK, NULL, NULL), -1);
    for_each_operation(operation) {
        if (operation->id > VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE)
            break;
        expect_success(operation->call(NULL, getpid(), 0));
    }
    expect_limit(0, RLIMIT_MEMLOCK, 65536, 65536);
}

TEST(another_process_that_prlimit_is_forbidden_for_is_left_alone)
{
    Subject subject = subject_start(1);

    forbid_prlimit_by_pid();
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 4096, 0),
                 VIR_INTERNAL_ERR_FAILED, EPERM,
                 text("cannot limit locked memory of process %d to 4096",
                      subject.pid));
    subject_end(&subject);
}

TEST(another_users_process_needs_the_capability)
{
    Subject subject = subject_start_of_another_user();

    drop_capability(CAP_SYS_RESOURCE);
    for_each_operation(operation) {
        if (operation->id > VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE)
            break;
        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_FAILED, EPERM,
                     text("of process %d to", subject.pid));
    }
    subject_end(&subject);
}

TEST(limits_of_another_users_process_are_raised)
{
    Subject subject = subject_start_of_another_user();

    require_raising(subject.pid, RLIMIT_MEMLOCK,
                    "the limits of another user's process");
    for_each_operation(operation) {
        if (operation->id > VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE)
            break;
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_true(operation->is_done(subject.pid));
    }
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid,
                                                   UNLIMITED, 0));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    subject_end(&subject);
}

TEST(a_process_that_is_no_more_is_NO_PROCESS)
{
    pid_t nobody = pid_of_nobody();

    for_each_operation(operation) {
        if (operation->id > VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE)
            break;
        expect_error(operation->call(NULL, nobody, 0),
                     VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                     text("of process %d to", nobody));
    }
}
