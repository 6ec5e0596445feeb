/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Handlers that say that it is done, and what the kernel says. (Those of
 * cgroups are in 04-cgroup.c.) */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNLIMITED 9007199254740991ULL

static const Operation *const max_mem_lock = &operations[0];
static const Operation *const max_processes = &operations[1];
static const Operation *const max_files = &operations[2];
static const Operation *const max_core_size = &operations[3];
static const Operation *const scheduler = &operations[4];
static const Operation *const affinity = &operations[5];

/* A handler that sets a limit to something of its own. */
typedef struct {
    Script script;
    int resource;
    unsigned long long soft, hard;
} Granter;

static int
grant(Script *script)
{
    Granter *granter = (Granter *) script;
    struct rlimit limit = { granter->soft, granter->hard };

    must(prlimit(script->pid, granter->resource, &limit, NULL));
    return VIR_INTERNAL_HANDLED;
}

/* Sets a handler that grants this, and makes a process. */
static Subject
start_granting(Granter *granter, const Operation *operation, int resource,
               unsigned long long soft, unsigned long long hard)
{
    Granter granting = {
        .script = { .answer = grant },
        .resource = resource, .soft = soft, .hard = hard
    };

    *granter = granting;
    set(operation, NULL, &granter->script, 0);
    return subject_start(1);
}

TEST(a_handler_that_grants_less_memory_is_found_out)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_mem_lock, RLIMIT_MEMLOCK,
                                     65535, 65535);

    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 65536, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 text("a handler or delegate was to limit locked memory of process %d to "
                      "65536 and said that it did, but the kernel says 65535 "
                      "(hard 65535)", subject.pid));
    subject_end(&subject);
}

TEST(a_handler_that_grants_less_as_the_soft_limit_is_found_out)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_mem_lock, RLIMIT_MEMLOCK,
                                     4096, 65536);

    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 65536, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel says 4096 (hard 65536)");
    subject_end(&subject);
}

TEST(a_handler_that_grants_more_memory_is_believed)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_mem_lock, RLIMIT_MEMLOCK,
                                     65537, 70000);

    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 65536,
                                                   0));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 65537, 70000);
    subject_end(&subject);
}

TEST(unlimited_memory_is_not_less_than_libvirts_figure_for_it)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_mem_lock, RLIMIT_MEMLOCK,
                                     65536, 65536);

    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, UNLIMITED,
                                                 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "to 9007199254740991 and said");
    subject_end(&subject);
}

TEST(a_handler_that_grants_fewer_processes_is_found_out)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_processes, RLIMIT_NPROC,
                                     41, 42);

    expect_error(virInternalProcessSetMaxProcesses(NULL, subject.pid, 42, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel says 41 (hard 42)");
    subject_end(&subject);
}

TEST(a_handler_that_grants_more_processes_is_believed)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_processes, RLIMIT_NPROC,
                                     43, 44);

    expect_success(virInternalProcessSetMaxProcesses(NULL, subject.pid, 42,
                                                     0));
    subject_end(&subject);
}

TEST(a_handler_that_grants_fewer_files_is_found_out)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_files, RLIMIT_NOFILE,
                                     41, 41);

    expect_error(virInternalProcessSetMaxFiles(NULL, subject.pid, 42, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel says 41 (hard 41)");
    subject_end(&subject);
}

TEST(a_handler_may_grant_as_many_files_as_asked_or_more)
{
    for (int more = 0; more < 3; more++) {
        Granter granter;
        Subject subject = start_granting(&granter, max_files, RLIMIT_NOFILE,
                                         42 + more, 42 + more);

        expect_success(virInternalProcessSetMaxFiles(NULL, subject.pid, 42,
                                                     0));
        subject_end(&subject);
    }
}

TEST(a_core_size_that_is_not_exactly_the_one_asked_is_found_out)
{
    const struct { unsigned long long soft, hard; } grants[] = {
        { 4095, 4095 }, { 4095, 4096 }, { 4096, 4097 }, { 4097, 4097 },
    };

    for (size_t i = 0; i < sizeof(grants) / sizeof(grants[0]); i++) {
        Granter granter;
        Subject subject = start_granting(&granter, max_core_size, RLIMIT_CORE,
                                         grants[i].soft, grants[i].hard);
        struct rlimit limit;

        must(prlimit(subject.pid, RLIMIT_CORE, NULL, &limit));
        if (limit.rlim_max < 4097)
            SKIP("the hard limit of core files is below 4097");
        expect_error(virInternalProcessSetMaxCoreSize(NULL, subject.pid, 4096,
                                                      0),
                     VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                     text("the kernel says %llu (hard %llu)", grants[i].soft,
                          grants[i].hard));
        subject_end(&subject);
    }
}

TEST(a_handler_that_changes_another_limit_is_found_out)
{
    Granter granter;
    Subject subject = start_granting(&granter, max_core_size, RLIMIT_MEMLOCK,
                                     4096, 4096);

    if (max_core_size->is_done(subject.pid))
        SKIP("the hard limit of core files is below 4096");
    expect_error(max_core_size->call(NULL, subject.pid, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 text("core file size of process %d", subject.pid));
    subject_end(&subject);
}

TEST(a_handler_that_does_nothing_to_a_limit_is_found_out)
{
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    struct rlimit low = { 64, 64 };
    Subject subject = subject_start(1);

    must(prlimit(subject.pid, RLIMIT_MEMLOCK, &low, NULL));
    must(prlimit(subject.pid, RLIMIT_NPROC, &low, NULL));
    must(prlimit(subject.pid, RLIMIT_NOFILE, &low, NULL));
    must(prlimit(subject.pid, RLIMIT_CORE, &low, NULL));
    set(max_mem_lock, NULL, &liar, 0);
    set(max_processes, NULL, &liar, 0);
    set(max_files, NULL, &liar, 0);
    set(max_core_size, NULL, &liar, 0);
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 65, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, "locked memory");
    expect_error(virInternalProcessSetMaxProcesses(NULL, subject.pid, 65, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, "subprocesses");
    expect_error(virInternalProcessSetMaxFiles(NULL, subject.pid, 65, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, "open files");
    expect_error(virInternalProcessSetMaxCoreSize(NULL, subject.pid, 65, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, "core file size");
    expect_eq_int(liar.calls, 4);
    subject_end(&subject);
}

TEST(a_limit_that_prlimit_may_not_read_is_read_from_proc)
{
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    struct rlimit limit = { 4096, 4096 };
    Subject subject = subject_start(1);

    must(prlimit(subject.pid, RLIMIT_MEMLOCK, &limit, NULL));
    forbid_prlimit_by_pid();
    set(max_mem_lock, NULL, &liar, 0);
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 4096,
                                                   0));
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 4097, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel says 4096 (hard 4096)");
    subject_end(&subject);
}

TEST(a_limit_of_another_users_process_is_read_back)
{
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start_of_another_user();

    set(max_mem_lock, NULL, &liar, 0);
    expect_success(virInternalProcessSetMaxMemLock(NULL, subject.pid, 1, 0));
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid,
                                                 UNLIMITED - 1, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, "the kernel says ");
    subject_end(&subject);
}

/* Becomes a user who sees nothing in /proc of the processes of others. */
static void
hide_processes_of_others(void)
{
    const uid_t user = 65533;

    if (unshare(CLONE_NEWNS) < 0
        || mount("none", "/", "", MS_REC | MS_PRIVATE, NULL) < 0
        || mount("proc", "/proc", "proc", 0, "hidepid=2") < 0)
        SKIP("cannot have a /proc with hidepid=2: %s", strerror(errno));
    must(setgroups(0, NULL));
    must(setresgid(user, user, user));
    must(setresuid(user, user, user));
}

TEST(a_process_that_proc_hides_is_not_taken_for_one_that_is_no_more)
{
    const Operation *const readable[] = {
        max_mem_lock, max_processes, max_files, max_core_size, scheduler
    };
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start_of_another_user();
    pid_t child = must(fork());

    if (child == 0) {
        hide_processes_of_others();
        expect_true(access(text("/proc/%d", subject.pid), F_OK) < 0);
        for (size_t i = 0; i < 5; i++) {
            runner_context = readable[i]->name;
            set(readable[i], NULL, &liar, 0);
            expect_error(readable[i]->call(NULL, subject.pid, 0),
                         VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                         "said that it did");
        }
        _exit(EXIT_SUCCESS);
    }
    expect_child_passes(child);
    subject_end(&subject);
}

/* A handler that sets policy and priority to something of its own. */
typedef struct {
    Script script;
    int policy, priority;
} Scheduler;

static int
schedule(Script *script)
{
    Scheduler *own = (Scheduler *) script;
    struct sched_param parameters = { .sched_priority = own->priority };

    must(sched_setscheduler(script->pid, own->policy, &parameters));
    return VIR_INTERNAL_HANDLED;
}

TEST(a_handler_that_sets_another_policy_is_found_out)
{
    Scheduler own = { .script = { .answer = schedule }, .policy = SCHED_IDLE };
    Subject subject = subject_start(1);

    set(scheduler, NULL, &own.script, 0);
    expect_error(scheduler->call(NULL, subject.pid, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 text("was to set scheduler parameters of process %d to "
                      "SCHED_BATCH with priority 0 and said that it did, but "
                      "the kernel says SCHED_IDLE with priority 0",
                      subject.pid));
    subject_end(&subject);
}

TEST(a_handler_that_sets_the_policy_but_not_the_priority_is_found_out)
{
    Scheduler own = {
        .script = { .answer = schedule }, .policy = SCHED_FIFO, .priority = 1
    };
    struct sched_param parameters = { .sched_priority = 1 };
    Subject subject = subject_start(1);

    if (sched_setscheduler(subject.pid, SCHED_FIFO, &parameters) < 0)
        SKIP("real-time scheduling needs CAP_SYS_NICE");
    set(scheduler, NULL, &own.script, 0);
    expect_error(virInternalProcessSetScheduler(
                     NULL, subject.pid, subject.pid, VIR_INTERNAL_SCHED_FIFO,
                     2, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel says SCHED_FIFO with priority 1");
    subject_end(&subject);
}

TEST(a_handler_that_does_nothing_to_a_scheduler_is_found_out)
{
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(1);

    set(scheduler, NULL, &liar, 0);
    expect_error(scheduler->call(NULL, subject.pid, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel says SCHED_OTHER with priority 0");
    subject_end(&subject);
}

static void
require_two_cpus(pid_t pid)
{
    cpu_set_t cpus;

    must(sched_getaffinity(pid, sizeof(cpus), &cpus));
    if (CPU_COUNT(&cpus) < 2)
        SKIP("it takes two CPUs");
}

TEST(a_handler_that_leaves_more_cpus_is_found_out)
{
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(1);

    require_two_cpus(subject.pid);
    set(affinity, NULL, &liar, 0);
    expect_error(affinity->call(NULL, subject.pid, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                 "the kernel lets it run on other CPUs as well");
    subject_end(&subject);
}

TEST(a_handler_that_grants_fewer_cpus_is_believed_as_a_cpuset_is)
{
    const unsigned char map[CPU_SETSIZE / 8] = {
        [0 ... CPU_SETSIZE / 8 - 1] = 0xff
    };
    Script liar = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(1);

    affinity->act(subject.pid);
    set(affinity, NULL, &liar, 0);
    expect_success(virInternalProcessSetAffinity(
        NULL, subject.pid, subject.pid, map, sizeof(map), 0));
    subject_end(&subject);
}

/* The process or thread goes away. */

/* Does what was asked, and then ends the process. */
typedef struct {
    Script script;
    const Operation *operation;
    bool reaps;
} Killer;

static int
do_it_and_kill(Script *script)
{
    Killer *killer = (Killer *) script;

    killer->operation->act(script->pid);
    must(kill(script->pid, SIGKILL));
    if (killer->reaps) {
        must(waitpid(script->pid, NULL, 0));
    } else {
        siginfo_t info;

        must(waitid(P_PID, script->pid, &info, WEXITED | WNOWAIT));
    }
    return VIR_INTERNAL_HANDLED;
}

TEST(a_process_that_dies_in_the_handler_is_NO_PROCESS_reaped_or_not)
{
    for_each_operation(operation) {
        for (int reaps = 0; reaps < 2; reaps++) {
            Killer killer = {
                .script = { .answer = do_it_and_kill },
                .operation = operation, .reaps = reaps
            };
            Subject subject = subject_start(1);

            set(operation, NULL, &killer.script, 0);
            expect_error(operation->call(NULL, subject.pid, 0),
                         VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                         text("process %d went away meanwhile", subject.pid));
            unset(operation, NULL);
            if (!reaps)
                must(waitpid(subject.pid, NULL, 0));
        }
    }
}

static int
kill_and_pass_on(Script *script)
{
    must(kill(script->pid, SIGKILL));
    must(waitpid(script->pid, NULL, 0));
    return VIR_INTERNAL_NOT_HANDLED;
}

TEST(a_process_that_dies_in_a_handler_that_passes_on_is_NO_PROCESS)
{
    for_each_operation(operation) {
        Script killer = { .answer = kill_and_pass_on };
        Subject subject = subject_start(1);

        set(operation, NULL, &killer, 0);
        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                     text("process %d", subject.pid));
        unset(operation, NULL);
    }
}

static int
end_thread(Script *script)
{
    subject_end_thread(script->data, 1);
    return VIR_INTERNAL_HANDLED;
}

TEST(a_thread_that_exits_in_the_handler_is_NO_PROCESS)
{
    const unsigned char map[] = { 0xff };
    Subject subject = subject_start(3);
    Script ender = { .answer = end_thread, .data = &subject };
    const char *gone = text("thread %d of process %d went away meanwhile",
                            subject.tids[1], subject.pid);

    set(scheduler, NULL, &ender, 0);
    expect_error(virInternalProcessSetScheduler(
                     NULL, subject.pid, subject.tids[1],
                     VIR_INTERNAL_SCHED_OTHER, 0, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, gone);
    subject_end(&subject);

    subject = subject_start(3);
    gone = text("thread %d of process %d went away meanwhile",
                subject.tids[1], subject.pid);
    set(affinity, NULL, &ender, 0);
    expect_error(virInternalProcessSetAffinity(
                     NULL, subject.pid, subject.tids[1], map, 1, 0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, gone);
    subject_end(&subject);
}

/* Numbers that become another's. */

/* Another process may have the number first, for a while: so often is it tried,
 * each millisecond. */
#define TRIES 30000

/* A process with that very pid, or -1. */
static pid_t
start_with_pid(pid_t pid)
{
    /* The kernel's struct clone_args, of which only set_tid matters. */
    struct {
        unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal;
        unsigned long long stack, stack_size, tls, set_tid, set_tid_size;
    } args = {
        .exit_signal = SIGCHLD,
        .set_tid = (unsigned long) &pid,
        .set_tid_size = 1
    };
    pid_t child = syscall(SYS_clone3, &args, sizeof(args));

    for (int tries = 1; child < 0 && errno == EEXIST && tries < TRIES;
         tries++) {
        usleep(1000);
        child = syscall(SYS_clone3, &args, sizeof(args));
    }
    if (child == 0) {
        while (pause() == -1)
            continue;
    }
    return child;
}

/* Ends the process, and starts another with its number; does what was asked to
 * that one if it is going to say so. */
static int
recycle(Script *script)
{
    pid_t pid = script->pid;

    must(kill(pid, SIGKILL));
    must(waitpid(pid, NULL, 0));
    if (start_with_pid(pid) < 0)
        SKIP("cannot start a process with a given pid (clone3 with set_tid "
             "needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE): %s",
             strerror(errno));
    if (script->returns == VIR_INTERNAL_HANDLED)
        ((const Operation *) script->data)->act(pid);
    return script->returns;
}

TEST(a_pid_that_is_recycled_while_the_handler_runs_is_NO_PROCESS)
{
    const int answers[] = { VIR_INTERNAL_HANDLED, VIR_INTERNAL_NOT_HANDLED };
    State fresh = state_of(getpid(), getpid());

    for_each_operation(operation) {
        for (int i = 0; i < 2; i++) {
            Script recycler = {
                .answer = recycle, .returns = answers[i],
                .data = (void *) operation
            };
            Subject subject = subject_start(1);

            set(operation, NULL, &recycler, 0);
            expect_error(operation->call(NULL, subject.pid, 0),
                         VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                         text("process %d went away meanwhile", subject.pid));
            unset(operation, NULL);
            if (answers[i] == VIR_INTERNAL_NOT_HANDLED)
                expect_unchanged(&fresh, subject.pid, subject.pid);
            subject_end(&subject);
        }
    }
}

/* A thread of this process that only waits until it is let go. */
typedef struct {
    pthread_t thread;
    pid_t tid;
    bool may_end;
} Thread;

static void *
wait_to_be_let_go(void *data)
{
    Thread *thread = data;

    __atomic_store_n(&thread->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
    while (!__atomic_load_n(&thread->may_end, __ATOMIC_ACQUIRE))
        usleep(500);
    return NULL;
}

static void
thread_start(Thread *thread)
{
    memset(thread, 0, sizeof(*thread));
    expect_eq_int(pthread_create(&thread->thread, NULL, wait_to_be_let_go,
                                 thread), 0);
    while (!__atomic_load_n(&thread->tid, __ATOMIC_ACQUIRE))
        usleep(500);
}

static void
thread_end(Thread *thread)
{
    __atomic_store_n(&thread->may_end, true, __ATOMIC_RELEASE);
    pthread_join(thread->thread, NULL);
    while (syscall(SYS_tgkill, getpid(), thread->tid, 0) == 0)
        usleep(500);
}

/* Ends the thread, and starts others until one has its id. */
static int
recycle_thread(Script *script)
{
    Thread *thread = script->data;
    pid_t wanted = thread->tid;
    const char *last = text("%d", wanted - 1);
    int fd;

    thread_end(thread);
    for (int tries = 0; tries < TRIES; tries++) {
        fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, last, strlen(last)) < 0)
            SKIP("cannot choose the id of a thread by ns_last_pid: %s",
                 strerror(errno));
        close(fd);
        thread_start(thread);
        if (thread->tid == wanted)
            return VIR_INTERNAL_HANDLED;
        thread_end(thread);
        usleep(1000);
    }
    SKIP("no thread got the id of another in %d tries", TRIES);
}

#ifndef PIDFD_THREAD
# define PIDFD_THREAD O_EXCL
#endif

TEST(a_thread_id_that_is_recycled_while_the_handler_runs_is_NO_PROCESS)
{
    Thread thread;
    Script recycler = { .answer = recycle_thread, .data = &thread };
    int pidfd = syscall(SYS_pidfd_open, getpid(), PIDFD_THREAD);

    if (pidfd < 0)
        SKIP("a thread has no pidfd before Linux 6.9");
    close(pidfd);
    thread_start(&thread);
    set(scheduler, NULL, &recycler, 0);
    expect_error(virInternalProcessSetScheduler(
                     NULL, getpid(), thread.tid, VIR_INTERNAL_SCHED_OTHER, 0,
                     0),
                 VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                 "went away meanwhile");
    thread_end(&thread);
}

static int
close_all(Script *script)
{
    ((const Operation *) script->data)->act(script->pid);
    must(syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0));
    return VIR_INTERNAL_HANDLED;
}

TEST(a_handler_that_closes_all_descriptors_leaves_no_proof)
{
    for_each_operation(operation) {
        Script closer = { .answer = close_all, .data = (void *) operation };
        Subject subject = subject_start(1);

        set(operation, NULL, &closer, 0);
        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                     "the descriptor that held the process was closed");
        unset(operation, NULL);
        subject_end(&subject);
    }
}
