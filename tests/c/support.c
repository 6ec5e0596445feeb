/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534

void
support_expect_return(const char *file, int line, const char *call,
                      int actual, int expected)
{
    virInternalErrorPtr error = virInternalGetLastError();

    if (actual != expected)
        runner_fail(file, line, "expected %s to return %d, found %d: %s",
                    call, expected, actual,
                    error ? error->message : "(no error)");
    if (error)
        runner_fail(file, line, "expected no last error after %s, found: %s",
                    call, error->message);
}

void
support_expect_error(const char *file, int line, const char *call,
                     int actual, int code, int errnum, const char *part)
{
    int left = errno;
    virInternalErrorPtr error = virInternalGetLastError();

    if (actual != -1)
        runner_fail(file, line, "expected %s to return -1, found %d",
                    call, actual);
    if (!error)
        runner_fail(file, line, "expected a last error after %s, found NULL",
                    call);
    if (error->code != code)
        runner_fail(file, line, "expected %s to fail with code %d, found %d: "
                    "%s", call, code, error->code, error->message);
    if (left != errnum || error->errnum != errnum)
        runner_fail(file, line, "expected %s to fail with errno %d, found "
                    "errno %d and errnum %d: %s",
                    call, errnum, left, error->errnum, error->message);
    runner_expect_str_contains(file, line, call, error->message, part);
}

const char *
text(const char *format, ...)
{
    static char buffer[TEXT_KEPT + 4096];
    static size_t used;
    size_t begin = used;
    va_list args;
    int length;

    va_start(args, format);
    length = vsnprintf(buffer + begin, 4096, format, args);
    va_end(args);
    if (length < 0 || length >= 4096)
        FAIL("expected a text of at most 4095 bytes, it has %d", length);
    used = begin + length + 1 < TEXT_KEPT ? begin + length + 1 : 0;
    return buffer + begin;
}

static unsigned int number_of_runner;

/* Before the runner forks, so that it and the tests have the same. */
__attribute__((constructor))
static void
choose_number(void)
{
    must(syscall(SYS_getrandom, &number_of_runner, sizeof(number_of_runner),
                 0));
}

const char *
name_of_test(const char *prefix, pid_t test)
{
    return text("%s-%08x-%d", prefix, number_of_runner, test);
}

/* What a subject tells of its threads. */
typedef struct {
    pid_t tids[SUBJECT_THREADS_MAX];
    size_t ready;
} Told;

static Told *told;

static void
end_this_thread(int signal)
{
    (void) signal;
    syscall(SYS_exit, 0);
}

static void *
wait_for_ever(void *index)
{
    told->tids[(size_t) index] = syscall(SYS_gettid);
    __atomic_add_fetch(&told->ready, 1, __ATOMIC_RELEASE);
    while (pause() == -1)
        continue;
    return NULL;
}

static void
be_a_subject(size_t nthreads, uid_t user)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGUSR1, end_this_thread);
    if (user != getuid())
        must(setresuid(user, user, user));
    for (size_t i = 1; i < nthreads; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, wait_for_ever, (void *) i) != 0)
            FAIL("a subject cannot make its threads");
    }
    wait_for_ever(0);
}

static Subject
start(size_t nthreads, uid_t user)
{
    Subject subject = { .nthreads = nthreads };

    told = mmap(NULL, sizeof(Told), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    expect_true(told != MAP_FAILED);
    subject.pid = must(fork());
    if (subject.pid == 0)
        be_a_subject(nthreads, user);
    while (__atomic_load_n(&told->ready, __ATOMIC_ACQUIRE) < nthreads)
        usleep(500);
    memcpy(subject.tids, told->tids, sizeof(subject.tids));
    munmap(told, sizeof(Told));
    return subject;
}

Subject
subject_start(size_t nthreads)
{
    return start(nthreads, getuid());
}

Subject
subject_start_of_another_user(void)
{
    if (geteuid() != 0)
        SKIP("only root can make a process of another user");
    return start(1, NOBODY);
}

static void
read_file(const char *path, char *buffer, size_t size)
{
    int fd = must(open(path, O_RDONLY | O_CLOEXEC));
    ssize_t length = must(read(fd, buffer, size - 1));

    buffer[length] = '\0';
    close(fd);
}

/* A process's first thread is a zombie until the others have exited too. */
static bool
is_zombie(pid_t pid)
{
    char status[512];

    read_file(text("/proc/%d/stat", pid), status, sizeof(status));
    return strncmp(strrchr(status, ')'), ") Z", 3) == 0;
}

void
subject_end_thread(const Subject *subject, size_t index)
{
    pid_t tid = subject->tids[index];

    must(syscall(SYS_tgkill, subject->pid, tid, SIGUSR1));
    while (tid == subject->pid ? !is_zombie(tid)
           : syscall(SYS_tgkill, subject->pid, tid, 0) == 0)
        usleep(500);
}

void
subject_end(const Subject *subject)
{
    must(kill(subject->pid, SIGKILL));
    must(waitpid(subject->pid, NULL, 0));
}

pid_t
pid_of_nobody(void)
{
    Subject subject = subject_start(1);

    subject_end(&subject);
    return subject.pid;
}

static struct rlimit
limit_of(pid_t pid, int resource)
{
    struct rlimit limit;

    must(prlimit(pid, resource, NULL, &limit));
    return limit;
}

State
state_of(pid_t pid, pid_t tid)
{
    State state;
    char path[64];

    memset(&state, 0, sizeof(state));
    state.mem_lock = limit_of(pid, RLIMIT_MEMLOCK);
    state.processes = limit_of(pid, RLIMIT_NPROC);
    state.files = limit_of(pid, RLIMIT_NOFILE);
    state.core_size = limit_of(pid, RLIMIT_CORE);
    state.policy = must(sched_getscheduler(tid));
    must(sched_getparam(tid, &state.parameters));
    must(sched_getaffinity(tid, sizeof(state.cpus), &state.cpus));
    snprintf(path, sizeof(path), "/proc/%d/task/%d/cgroup", pid, tid);
    read_file(path, state.cgroups, sizeof(state.cgroups));
    return state;
}

void
support_expect_unchanged(const char *file, int line, const State *before,
                         pid_t pid, pid_t tid)
{
    State now = state_of(pid, tid);
    const char *changed = NULL;

#define COMPARE(field) \
    if (memcmp(&now.field, &before->field, sizeof(now.field)) != 0) \
        changed = #field
    COMPARE(mem_lock);
    COMPARE(processes);
    COMPARE(files);
    COMPARE(core_size);
    COMPARE(policy);
    COMPARE(parameters);
    COMPARE(cpus);
    COMPARE(cgroups);
#undef COMPARE
    if (changed)
        runner_fail(file, line, "expected nothing of process %d to change, "
                    "found that %s did", pid, changed);
}

void
support_expect_limit(const char *file, int line, const char *what,
                     pid_t pid, int resource,
                     unsigned long long soft, unsigned long long hard)
{
    struct rlimit limit = limit_of(pid, resource);

    if (limit.rlim_cur != soft || limit.rlim_max != hard)
        runner_fail(file, line, "expected %s of process %d to be %llu "
                    "(hard %llu), found %llu (hard %llu)",
                    what, pid, soft, hard, (unsigned long long) limit.rlim_cur,
                    (unsigned long long) limit.rlim_max);
}

void
drop_capability(int capability)
{
    struct __user_cap_header_struct header = {
        .version = _LINUX_CAPABILITY_VERSION_3
    };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    must(syscall(SYS_capget, &header, data));
    data[capability / 32].effective &= ~(1U << (capability % 32));
    must(syscall(SYS_capset, &header, data));
}

static void
install_filter(struct sock_filter *code, unsigned short length)
{
    struct sock_fprog filter = { .len = length, .filter = code };

    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        SKIP("system calls cannot be filtered: %s", strerror(errno));
}

void
refuse_system_call(int number, int errnum)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | errnum),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    install_filter(code, sizeof(code) / sizeof(code[0]));
}

void
forbid_prlimit_by_pid(void)
{
    /* The low half of the first argument: a pid is no longer than that. */
    const unsigned int pid = offsetof(struct seccomp_data, args[0])
        + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prlimit64, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, pid),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    install_filter(code, sizeof(code) / sizeof(code[0]));
}

void
script_freed(void *script)
{
    __atomic_add_fetch(&((Script *) script)->freed, 1, __ATOMIC_RELAXED);
}

static int
run(void *opaque, pid_t pid)
{
    Script *script = opaque;

    __atomic_add_fetch(&script->calls, 1, __ATOMIC_RELAXED);
    if (!script->answer)
        return script->returns;
    script->pid = pid;
    return script->answer(script);
}

/* The smaller of a value and what the process may have. */
static unsigned long long
at_most(pid_t pid, int resource, unsigned long long value)
{
    struct rlimit limit;

    if (prlimit(pid, resource, NULL, &limit) == 0 && limit.rlim_max < value)
        return limit.rlim_max;
    return value;
}

static void
set_limit(pid_t pid, int resource, unsigned long long value)
{
    struct rlimit limit = { value, value };

    must(prlimit(pid, resource, &limit, NULL));
}

static bool
has_limit(pid_t pid, int resource, unsigned long long value)
{
    struct rlimit limit = limit_of(pid, resource);

    return limit.rlim_cur == value && limit.rlim_max == value;
}

/* The last CPU that the process may run on, as a map. */
#define MAP_BYTES (CPU_SETSIZE / 8)

static void
one_cpu(pid_t pid, unsigned char *map)
{
    cpu_set_t cpus;
    int last = CPU_SETSIZE - 1;

    CPU_ZERO(&cpus);
    if (sched_getaffinity(pid, sizeof(cpus), &cpus) < 0)
        CPU_SET(0, &cpus);
    while (last > 0 && !CPU_ISSET(last, &cpus))
        last--;
    memset(map, 0, MAP_BYTES);
    map[last / 8] = 1 << (last % 8);
}

#define ASKED_MEM_LOCK 65536
#define ASKED_PROCESSES 1000
#define ASKED_FILES 255
#define ASKED_CORE_SIZE 4096

/* Defines X_handler(), which runs the Script, and set_X(). */
#define DEFINE_HANDLER(x, set_function, parameters) \
    static int \
    x##_handler parameters \
    { \
        return run(opaque, pid); \
    } \
    static int \
    set_##x(struct _virConnect *conn, unsigned int version, Script *script, \
            virInternalFreeCallback freecb, unsigned int flags) \
    { \
        return set_function(conn, version, script ? x##_handler : NULL, \
                            script, freecb, flags); \
    }

#define UNUSED __attribute__((unused))

DEFINE_HANDLER(mem_lock, virInternalSetProcessSetMaxMemLockHandler,
               (pid_t pid, UNUSED unsigned long long bytes, void *opaque))
DEFINE_HANDLER(processes, virInternalSetProcessSetMaxProcessesHandler,
               (pid_t pid, UNUSED unsigned int processes, void *opaque))
DEFINE_HANDLER(files, virInternalSetProcessSetMaxFilesHandler,
               (pid_t pid, UNUSED unsigned int files, void *opaque))
DEFINE_HANDLER(core_size, virInternalSetProcessSetMaxCoreSizeHandler,
               (pid_t pid, UNUSED unsigned long long bytes, void *opaque))
DEFINE_HANDLER(scheduler, virInternalSetProcessSetSchedulerHandler,
               (pid_t pid, UNUSED pid_t tid, UNUSED int policy,
                UNUSED int priority, void *opaque))
DEFINE_HANDLER(affinity, virInternalSetProcessSetAffinityHandler,
               (pid_t pid, UNUSED pid_t tid, UNUSED const unsigned char *cpumap,
                UNUSED int maplen, void *opaque))
DEFINE_HANDLER(threads, virInternalSetCgroupAddThreadsHandler,
               (pid_t pid, UNUSED const char *group, UNUSED int role,
                UNUSED const pid_t *tids, UNUSED const unsigned int *ids,
                UNUSED size_t ntids, UNUSED const unsigned char *cpumap,
                UNUSED int maplen, UNUSED int *results, void *opaque))

static int
call_mem_lock(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    unsigned long long bytes = at_most(pid, RLIMIT_MEMLOCK, ASKED_MEM_LOCK);

    return virInternalProcessSetMaxMemLock(conn, pid, bytes, flags);
}

static void
act_mem_lock(pid_t pid)
{
    set_limit(pid, RLIMIT_MEMLOCK,
              at_most(pid, RLIMIT_MEMLOCK, ASKED_MEM_LOCK));
}

static bool
is_done_mem_lock(pid_t pid)
{
    return has_limit(pid, RLIMIT_MEMLOCK,
                     at_most(pid, RLIMIT_MEMLOCK, ASKED_MEM_LOCK));
}

static int
call_processes(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    unsigned int processes = at_most(pid, RLIMIT_NPROC, ASKED_PROCESSES);

    return virInternalProcessSetMaxProcesses(conn, pid, processes, flags);
}

static void
act_processes(pid_t pid)
{
    set_limit(pid, RLIMIT_NPROC, at_most(pid, RLIMIT_NPROC, ASKED_PROCESSES));
}

static bool
is_done_processes(pid_t pid)
{
    return has_limit(pid, RLIMIT_NPROC,
                     at_most(pid, RLIMIT_NPROC, ASKED_PROCESSES));
}

static int
call_files(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    return virInternalProcessSetMaxFiles(conn, pid, ASKED_FILES, flags);
}

static void
act_files(pid_t pid)
{
    set_limit(pid, RLIMIT_NOFILE, ASKED_FILES + 1);
}

static bool
is_done_files(pid_t pid)
{
    return has_limit(pid, RLIMIT_NOFILE, ASKED_FILES + 1);
}

static int
call_core_size(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    unsigned long long bytes = at_most(pid, RLIMIT_CORE, ASKED_CORE_SIZE);

    return virInternalProcessSetMaxCoreSize(conn, pid, bytes, flags);
}

static void
act_core_size(pid_t pid)
{
    set_limit(pid, RLIMIT_CORE, at_most(pid, RLIMIT_CORE, ASKED_CORE_SIZE));
}

static bool
is_done_core_size(pid_t pid)
{
    return has_limit(pid, RLIMIT_CORE,
                     at_most(pid, RLIMIT_CORE, ASKED_CORE_SIZE));
}

static int
call_scheduler(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    return virInternalProcessSetScheduler(conn, pid, pid,
                                          VIR_INTERNAL_SCHED_BATCH, 0, flags);
}

static void
act_scheduler(pid_t pid)
{
    struct sched_param parameters = { .sched_priority = 0 };

    must(sched_setscheduler(pid, SCHED_BATCH, &parameters));
}

static bool
is_done_scheduler(pid_t pid)
{
    return sched_getscheduler(pid) == SCHED_BATCH;
}

static int
call_affinity(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    unsigned char map[MAP_BYTES];

    one_cpu(pid, map);
    return virInternalProcessSetAffinity(conn, pid, pid, map, sizeof(map),
                                         flags);
}

static void
act_affinity(pid_t pid)
{
    cpu_set_t cpus;
    int last = CPU_SETSIZE - 1;

    must(sched_getaffinity(pid, sizeof(cpus), &cpus));
    while (!CPU_ISSET(last, &cpus))
        last--;
    CPU_ZERO(&cpus);
    CPU_SET(last, &cpus);
    must(sched_setaffinity(pid, sizeof(cpus), &cpus));
}

static bool
is_done_affinity(pid_t pid)
{
    cpu_set_t cpus;

    must(sched_getaffinity(pid, sizeof(cpus), &cpus));
    return CPU_COUNT(&cpus) == 1;
}

static int
call_threads(struct _virConnect *conn, pid_t pid, unsigned int flags)
{
    return virInternalCgroupAddThreads(conn, pid, NULL,
                                       VIR_INTERNAL_THREAD_EMULATOR, &pid,
                                       NULL, 1, NULL, 0, NULL, flags);
}

static void
act_threads(UNUSED pid_t pid)
{
}

static bool
is_done_threads(UNUSED pid_t pid)
{
    return true;
}

#define OPERATION(function, capitals, x) { \
    .name = #function, \
    .id = VIR_INTERNAL_OP_##capitals, \
    .version = VIR_INTERNAL_##capitals##_VERSION, \
    .set = set_##x, \
    .call = call_##x, \
    .act = act_##x, \
    .is_done = is_done_##x, \
}

const Operation operations[OPERATIONS] = {
    OPERATION(virInternalProcessSetMaxMemLock, PROCESS_SET_MAX_MEM_LOCK,
              mem_lock),
    OPERATION(virInternalProcessSetMaxProcesses, PROCESS_SET_MAX_PROCESSES,
              processes),
    OPERATION(virInternalProcessSetMaxFiles, PROCESS_SET_MAX_FILES, files),
    OPERATION(virInternalProcessSetMaxCoreSize, PROCESS_SET_MAX_CORE_SIZE,
              core_size),
    OPERATION(virInternalProcessSetScheduler, PROCESS_SET_SCHEDULER,
              scheduler),
    OPERATION(virInternalProcessSetAffinity, PROCESS_SET_AFFINITY, affinity),
    OPERATION(virInternalCgroupAddThreads, CGROUP_ADD_THREADS, threads),
};

void
set(const Operation *operation, struct _virConnect *conn, Script *script,
    unsigned int flags)
{
    expect_success(operation->set(conn, operation->version, script,
                                  script_freed, flags));
}

void
unset(const Operation *operation, struct _virConnect *conn)
{
    expect_success(operation->set(conn, operation->version, NULL, NULL, 0));
}
