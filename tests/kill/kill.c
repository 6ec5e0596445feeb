/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A delegate that is killed after each system call of an operation in turn:
 * kill VIRT-INTERNAL DIRECTORY
 *
 * For each operation and N = 1, 2, ...: a delegate, a client that is connected
 * to it, a process to act on. The delegate's threads are traced; when they have
 * made N system calls since the client asked, it is killed. The client must be
 * told one of the defined outcomes, the kernel must have the old state or the
 * new one, and a delegate that is started anew must tell the truth.
 */
#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How long a call waits: one that is told an outcome returns before. */
#define TIMEOUT_MS 60000
/* How long anything may take that must happen at all. */
#define PATIENCE_S 120
#define NTIDS 2

static const char *program, *directory;
static char socket_path[100], policy_path[100], audit_path[100];
static char group[300];

static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("FAIL ", stdout);
    vprintf(format, args);
    va_end(args);
    printf(" (errno %d: %s)\n", errno, strerror(errno));
    fflush(stdout);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double) time.tv_sec + (double) time.tv_nsec / 1e9;
}

static void pause_a_little(void)
{
    struct timespec time = { 0, 200000 };
    nanosleep(&time, NULL);
}

/* What is acted on. */
typedef struct {
    pid_t pid;
    pid_t tids[NTIDS];
} Target;

static void *wait_for_ever(void *told)
{
    pid_t tid = (pid_t) syscall(SYS_gettid);
    if (write(*(int *) told, &tid, sizeof(tid)) != sizeof(tid))
        _exit(1);
    for (;;)
        pause();
    return NULL;
}

static void lower(__rlimit_resource_t resource, rlim_t most)
{
    struct rlimit limit;
    getrlimit(resource, &limit);
    if (limit.rlim_max > most)
        limit.rlim_max = most;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(resource, &limit);
}

static Target target_start(void)
{
    int told[2];
    Target target;
    if (pipe2(told, O_CLOEXEC) != 0)
        die("pipe2");
    target.pid = fork();
    if (target.pid == 0) {
        pthread_t thread;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        lower(RLIMIT_MEMLOCK, 1 << 20);
        lower(RLIMIT_NPROC, 50000);
        lower(RLIMIT_NOFILE, 900);
        lower(RLIMIT_CORE, 1 << 20);
        for (int i = 0; i < NTIDS; i++)
            if (pthread_create(&thread, NULL, wait_for_ever, &told[1]) != 0)
                _exit(1);
        for (;;)
            pause();
    }
    for (int i = 0; i < NTIDS; i++)
        if (read(told[0], &target.tids[i], sizeof(pid_t)) != sizeof(pid_t))
            die("the target has no threads");
    close(told[0]);
    close(told[1]);
    return target;
}

static void target_end(Target target)
{
    kill(target.pid, SIGKILL);
    waitpid(target.pid, NULL, 0);
}

/* The operations, each with a state that differs from what it sets. */

static int limit_is(const Target *target, __rlimit_resource_t resource,
                    rlim_t value)
{
    struct rlimit limit;
    if (prlimit(target->pid, resource, NULL, &limit) != 0)
        die("prlimit");
    return limit.rlim_cur == value && limit.rlim_max == value;
}

static int call_memlock(const Target *t)
{
    return virInternalProcessSetMaxMemLock(NULL, t->pid, 65536, 0);
}

static int is_memlock(const Target *t, int part)
{
    (void) part;
    return limit_is(t, RLIMIT_MEMLOCK, 65536);
}

static int call_processes(const Target *t)
{
    return virInternalProcessSetMaxProcesses(NULL, t->pid, 4000, 0);
}

static int is_processes(const Target *t, int part)
{
    (void) part;
    return limit_is(t, RLIMIT_NPROC, 4000);
}

static int call_files(const Target *t)
{
    return virInternalProcessSetMaxFiles(NULL, t->pid, 99, 0);
}

static int is_files(const Target *t, int part)
{
    (void) part;
    return limit_is(t, RLIMIT_NOFILE, 100);
}

static int call_core(const Target *t)
{
    return virInternalProcessSetMaxCoreSize(NULL, t->pid, 4096, 0);
}

static int is_core(const Target *t, int part)
{
    (void) part;
    return limit_is(t, RLIMIT_CORE, 4096);
}

static int call_scheduler(const Target *t)
{
    return virInternalProcessSetScheduler(NULL, t->pid, t->tids[0],
                                          VIR_INTERNAL_SCHED_BATCH, 0, 0);
}

static int is_scheduler(const Target *t, int part)
{
    (void) part;
    return sched_getscheduler(t->tids[0]) == SCHED_BATCH;
}

static int call_affinity(const Target *t)
{
    unsigned char map[1] = { 1 };
    return virInternalProcessSetAffinity(NULL, t->pid, t->tids[0], map, 1, 0);
}

static int is_affinity(const Target *t, int part)
{
    cpu_set_t set;
    (void) part;
    if (sched_getaffinity(t->tids[0], sizeof(set), &set) != 0)
        die("sched_getaffinity");
    return CPU_COUNT(&set) == 1 && CPU_ISSET(0, &set);
}

static int call_cgroup(const Target *t)
{
    char path[400];
    int results[NTIDS];
    snprintf(path, sizeof(path), "%s/threads", group);
    return virInternalCgroupAddThreads(NULL, t->pid, path,
                                       VIR_INTERNAL_THREAD_VCPU, t->tids, NULL,
                                       NTIDS, NULL, 0, results, 0);
}

static int is_cgroup(const Target *t, int part)
{
    char path[400];
    int tid, found = 0;
    snprintf(path, sizeof(path), "%s/threads/cgroup.threads", group);
    FILE *file = fopen(path, "re");
    if (!file)
        die("%s", path);
    while (fscanf(file, "%d", &tid) == 1)
        found |= tid == t->tids[part];
    fclose(file);
    return found;
}

static const struct {
    const char *name, *audit;
    int (*call)(const Target *);
    /* Whether a part of the target is as it was asked for; it is as it was
     * before or as it was asked for, see is_old. */
    int (*is_new)(const Target *, int part);
    int parts;
} operations[] = {
    { "MaxMemLock", "process-set-max-mem-lock", call_memlock, is_memlock, 1 },
    { "MaxProcesses", "process-set-max-processes", call_processes,
      is_processes, 1 },
    { "MaxFiles", "process-set-max-files", call_files, is_files, 1 },
    { "MaxCoreSize", "process-set-max-core-size", call_core, is_core, 1 },
    { "Scheduler", "process-set-scheduler", call_scheduler, is_scheduler, 1 },
    { "Affinity", "process-set-affinity", call_affinity, is_affinity, 1 },
    { "CgroupAddThreads", "cgroup-add-threads", call_cgroup, is_cgroup,
      NTIDS },
};
#define NOPERATIONS ((int) (sizeof(operations) / sizeof(operations[0])))

/* Everything that any operation could change, but for cgroups. */
typedef struct {
    struct rlimit limits[RLIM_NLIMITS];
    int policies[NTIDS + 1];
    cpu_set_t cpus[NTIDS + 1];
} State;

static State state_of(const Target *target)
{
    State state;
    memset(&state, 0, sizeof(state));
    for (int i = 0; i < RLIM_NLIMITS; i++)
        prlimit(target->pid, (__rlimit_resource_t) i, NULL, &state.limits[i]);
    for (int i = 0; i <= NTIDS; i++) {
        pid_t tid = i < NTIDS ? target->tids[i] : target->pid;
        state.policies[i] = sched_getscheduler(tid);
        sched_getaffinity(tid, sizeof(cpu_set_t), &state.cpus[i]);
    }
    return state;
}

/* The delegate. */

static bool can_connect(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, socket_path);
    int connected = connect(fd, (struct sockaddr *) &address, sizeof(address));
    close(fd);
    return connected == 0;
}

static pid_t delegate_start(void)
{
    char listen[120];
    snprintf(listen, sizeof(listen), "unix:%s", socket_path);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(program, program, "delegate", "--listen", listen, "--policy",
              policy_path, "--audit", audit_path, (char *) NULL);
        _exit(127);
    }
    double end = now() + PATIENCE_S;
    while (!can_connect()) {
        if (now() > end || waitpid(pid, NULL, WNOHANG) != 0)
            die("the delegate does not listen");
        pause_a_little();
    }
    return pid;
}

/* Its first thread, and that of its connection, when there is one. */
static void threads_of(pid_t pid, pid_t *tids)
{
    char path[400], name[32];
    double end = now() + PATIENCE_S;
    tids[0] = pid;
    for (;;) {
        int found = 0;
        struct dirent *entry;
        snprintf(path, sizeof(path), "/proc/%d/task", (int) pid);
        DIR *threads = opendir(path);
        while (threads && (entry = readdir(threads))) {
            snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", (int) pid,
                     entry->d_name);
            FILE *file = fopen(path, "re");
            if (!file)
                continue;
            if (fgets(name, sizeof(name), file) &&
                strcmp(name, "connection\n") == 0) {
                tids[1] = atoi(entry->d_name);
                found++;
            }
            fclose(file);
        }
        if (threads)
            closedir(threads);
        if (found == 1)
            return;
        if (now() > end)
            die("the delegate has %d connections, not one", found);
        pause_a_little();
    }
}

/* How many lines of the audit say that it was done to that process, or to one
 * before that had its number. */
static int lines_of(const char *operation, const Target *target)
{
    static char line[65536];
    char name[80], pid[40];
    int count = 0;
    FILE *file = fopen(audit_path, "re");
    if (!file)
        return 0;
    snprintf(name, sizeof(name), "\"operation\":\"%s\"", operation);
    snprintf(pid, sizeof(pid), "\"target\":{\"pid\":%d,", (int) target->pid);
    while (fgets(line, sizeof(line), file))
        count += strstr(line, name) && strstr(line, pid) &&
            strstr(line, "\"outcome\":\"handled\"");
    fclose(file);
    return count;
}

/* The client: a process that is told what to do by a character. */

typedef struct {
    int result, code, errnum;
    unsigned long long request;
    int milliseconds;
    char message[512];
} Outcome;

static Outcome outcome_of(int result, double start)
{
    Outcome outcome;
    memset(&outcome, 0, sizeof(outcome));
    outcome.result = result;
    outcome.milliseconds = (int) ((now() - start) * 1000);
    if (result == -1) {
        virInternalErrorPtr error = virInternalGetLastError();
        outcome.code = error ? (int) error->code : 0;
        outcome.errnum = error ? error->errnum : 0;
        snprintf(outcome.message, sizeof(outcome.message), "%s",
                 error ? error->message : "no last error");
    }
    outcome.request = virInternalGetLastRequest();
    return outcome;
}

static void client(int commands, int outcomes, int operation, Target target)
{
    char address[120], command;
    struct rlimit limit;
    Outcome outcome;
    snprintf(address, sizeof(address), "unix:%s", socket_path);
    if (virInternalConnectDelegate(NULL, VIR_INTERNAL_DELEGATE_VERSION,
                                   address, TIMEOUT_MS, 0) != 0)
        _exit(1);
    while (read(commands, &command, 1) == 1) {
        double start = now();
        switch (command) {
        case 'w': /* Connects, with what changes nothing. */
            getrlimit(RLIMIT_CORE, &limit);
            outcome = outcome_of(virInternalProcessSetMaxCoreSize(
                                     NULL, getpid(), limit.rlim_max, 0), start);
            break;
        case 'o':
            outcome = outcome_of(operations[operation].call(&target), start);
            break;
        default: /* What became of it? */
            outcome = outcome_of(virInternalAskDelegate(
                                     NULL, virInternalGetLastRequest(), 0),
                                 start);
        }
        if (write(outcomes, &outcome, sizeof(outcome)) != sizeof(outcome))
            _exit(1);
    }
    _exit(0);
}

typedef struct {
    pid_t pid;
    int commands, outcomes;
} Client;

static Client client_start(int operation, Target target)
{
    int commands[2], outcomes[2];
    if (pipe2(commands, O_CLOEXEC) != 0 || pipe2(outcomes, O_CLOEXEC) != 0)
        die("pipe2");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(commands[1]);
        close(outcomes[0]);
        client(commands[0], outcomes[1], operation, target);
    }
    close(commands[0]);
    close(outcomes[1]);
    return (Client) { pid, commands[1], outcomes[0] };
}

static void tell(const Client *client, char command)
{
    if (write(client->commands, &command, 1) != 1)
        die("the client is gone");
}

static bool has_outcome(const Client *client, int milliseconds)
{
    struct pollfd poll_one = { .fd = client->outcomes, .events = POLLIN };
    return poll(&poll_one, 1, milliseconds) == 1;
}

static Outcome outcome_from(const Client *client)
{
    Outcome outcome;
    if (!has_outcome(client, PATIENCE_S * 1000))
        die("the client was told nothing in %d s", PATIENCE_S);
    if (read(client->outcomes, &outcome, sizeof(outcome)) != sizeof(outcome))
        die("the client ended");
    return outcome;
}

static void client_end(Client client)
{
    close(client.commands);
    close(client.outcomes);
    kill(client.pid, SIGKILL);
    waitpid(client.pid, NULL, 0);
}

/* Kills it, and waits for all of its threads: those that are traced are
 * children of their own, and its first is the last to be reported. */
static void delegate_end(pid_t delegate)
{
    int status;
    pid_t ended;
    kill(delegate, SIGKILL);
    do {
        ended = waitpid(-1, &status, __WALL);
        if (ended < 0)
            die("the delegate cannot be waited for");
    } while (ended != delegate ||
             (!WIFEXITED(status) && !WIFSIGNALED(status)));
}

/* Whether all of the threads sleep in a system call. */
static bool all_wait(pid_t delegate, const pid_t *tids, int ntids)
{
    char path[80], line[400];
    for (int i = 0; i < ntids; i++) {
        bool waits = false;
        snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", (int) delegate,
                 (int) tids[i]);
        FILE *file = fopen(path, "re");
        if (file) {
            waits = fgets(line, sizeof(line), file) &&
                strncmp(strrchr(line, ')'), ") S", 3) == 0;
            fclose(file);
        }
        if (!waits)
            return false;
    }
    return true;
}

/*
 * Lets the delegate's threads run until they have made `most` system calls,
 * then kills it. Whether it was killed: or the client had its answer before,
 * and all threads wait again.
 */
static bool run_and_kill(pid_t delegate, const pid_t *tids, int ntids,
                         const Client *client, int most, long *number)
{
    int calls = 0;
    long last = -1;
    double end = now() + PATIENCE_S;
    for (int i = 0; i < ntids; i++) {
        int status;
        if (ptrace(PTRACE_SEIZE, tids[i], 0, PTRACE_O_TRACESYSGOOD) != 0)
            die("PTRACE_SEIZE of %d", (int) tids[i]);
        if (ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) != 0 ||
            waitpid(tids[i], &status, __WALL) != tids[i])
            die("PTRACE_INTERRUPT");
        if (ptrace(PTRACE_SYSCALL, tids[i], 0, 0) != 0)
            die("PTRACE_SYSCALL");
    }
    tell(client, 'o');
    while (now() < end) {
        int status;
        struct __ptrace_syscall_info info;
        pid_t tid = waitpid(-1, &status, __WALL | WNOHANG);
        if (tid == 0) {
            /* An answer, and no thread that does anything any more. */
            bool over = has_outcome(client, 0) &&
                all_wait(delegate, tids, ntids);
            tid = waitpid(-1, &status, __WALL | WNOHANG);
            if (tid == 0 && over)
                return false;
            if (tid == 0) {
                pause_a_little();
                continue;
            }
        }
        if (tid < 0 || WIFEXITED(status) || WIFSIGNALED(status))
            die("process %d ended by itself, status %x", (int) tid, status);
        if (WSTOPSIG(status) == (SIGTRAP | 0x80) &&
            ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof(info), &info) > 0) {
            if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
                last = (long) info.entry.nr;
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT &&
                       ++calls == most) {
                *number = last;
                delegate_end(delegate);
                return true;
            }
        }
        ptrace(PTRACE_SYSCALL, tid, 0, 0);
    }
    die("the operation does not end");
    return false;
}

static int failures;

static void wrong(const char *name, int calls, long number, const char *what,
                  const Outcome *outcome)
{
    printf("     %s, killed after system call %d (number %ld): %s; returned "
           "%d, code %d, errno %d, %d ms: %s\n", name, calls, number, what,
           outcome->result, outcome->code, outcome->errnum,
           outcome->milliseconds, outcome->message);
    failures++;
}

/* Whether it could be killed: false when it had ended before. */
static bool kill_after(int operation, int most, int *done, int *unknown,
                       int *unfinished)
{
    const char *name = operations[operation].name;
    const char *audit = operations[operation].audit;
    int parts = operations[operation].parts, changed = 0;
    long number = -1;
    pid_t threads[2];
    Target target = target_start();
    if (operations[operation].call == call_cgroup) {
        char path[400];
        snprintf(path, sizeof(path), "%s/cgroup.procs", group);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || dprintf(fd, "%d", (int) target.pid) < 0)
            die("%s", path);
        close(fd);
    }
    for (int part = 0; part < parts; part++)
        if (operations[operation].is_new(&target, part))
            die("%s: the old state is the new one", name);
    State before = state_of(&target);
    int others = lines_of(audit, &target);
    pid_t delegate = delegate_start();
    Client asker = client_start(operation, target);
    tell(&asker, 'w');
    if (outcome_from(&asker).result != 0)
        die("the delegate does not work");
    threads_of(delegate, threads);

    bool killed = run_and_kill(delegate, threads, 2, &asker, most, &number);
    Outcome outcome = outcome_from(&asker);
    State after = state_of(&target);
    int lines = lines_of(audit, &target) - others;
    for (int part = 0; part < parts; part++)
        changed += operations[operation].is_new(&target, part) != 0;

    if (outcome.milliseconds >= TIMEOUT_MS)
        wrong(name, most, number, "not in time", &outcome);
    if (!killed && outcome.result != 0)
        wrong(name, most, number, "failed without being killed", &outcome);
    if (outcome.result == 0) {
        (*done)++;
        if (changed != parts)
            wrong(name, most, number, "done, but the kernel has it not",
                  &outcome);
        if (lines != 1)
            wrong(name, most, number, "done, without its audit line",
                  &outcome);
    } else if (outcome.result == -1 &&
               outcome.code == VIR_INTERNAL_ERR_UNKNOWN_OUTCOME &&
               outcome.errnum == EINPROGRESS) {
        (*unknown)++;
        *unfinished += changed == parts && lines == 0;
    } else {
        wrong(name, most, number, "is no outcome of a request that was sent",
              &outcome);
    }
    /* Old or new: all else is as it was. */
    if (!changed && memcmp(&before, &after, sizeof(before)) != 0)
        wrong(name, most, number, "neither the old state nor the new one",
              &outcome);

    if (killed) {
        delegate = delegate_start();
        if (outcome.result == -1) {
            /* It remembers nothing: that is the truth. */
            tell(&asker, 'a');
            Outcome asked = outcome_from(&asker);
            if (asked.result != -1 ||
                asked.code != VIR_INTERNAL_ERR_UNKNOWN_OUTCOME)
                wrong(name, most, number, "asked, and told what it cannot know",
                      &asked);
        }
        tell(&asker, 'o');
        Outcome again = outcome_from(&asker);
        if (again.result != 0)
            wrong(name, most, number, "not done when called again", &again);
        for (int part = 0; part < parts; part++)
            if (!operations[operation].is_new(&target, part))
                wrong(name, most, number,
                      "called again, and the kernel has it not", &again);
        if (lines_of(audit, &target) != others + lines + 1)
            wrong(name, most, number, "called again, without its audit line",
                  &again);
    }
    client_end(asker);
    delegate_end(delegate);
    target_end(target);
    return killed;
}

/* A cgroup of v2 with a child that takes threads. */
static bool make_group(void)
{
    char path[400], line[1000], point[200], kind[40];
    FILE *mounts = fopen("/proc/mounts", "re");
    while (mounts && fgets(line, sizeof(line), mounts)) {
        if (sscanf(line, "%*s %199s %39s", point, kind) != 2 ||
            strcmp(kind, "cgroup2") != 0)
            continue;
        /* Nobody else's, also not of a run that was killed. */
        snprintf(group, sizeof(group), "%s/virt-internal-kill-%s", point,
                 strrchr(directory, '/') + 1);
        break;
    }
    if (mounts)
        fclose(mounts);
    if (!*group || mkdir(group, 0755) != 0)
        return false;
    snprintf(path, sizeof(path), "%s/threads", group);
    if (mkdir(path, 0755) != 0)
        return false;
    snprintf(path, sizeof(path), "%s/threads/cgroup.type", group);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "threaded", 8) != 8)
        return false;
    close(fd);
    return true;
}

static void remove_group(void)
{
    char path[400];
    if (!*group)
        return;
    double end = now() + PATIENCE_S;
    snprintf(path, sizeof(path), "%s/threads", group);
    while (rmdir(path) != 0 && errno == EBUSY && now() < end)
        pause_a_little();
    while (rmdir(group) != 0 && errno == EBUSY && now() < end)
        pause_a_little();
}

int main(int argc, char **argv)
{
    int passed = 0, failed = 0, skipped = 0;
    if (argc != 3)
        return 2;
    program = argv[1];
    directory = argv[2];
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(socket_path, sizeof(socket_path), "%s/socket", directory);
    snprintf(policy_path, sizeof(policy_path), "%s/policy", directory);
    snprintf(audit_path, sizeof(audit_path), "%s/audit", directory);
    bool has_group = make_group();
    atexit(remove_group);
    for (int i = 0; i < NOPERATIONS; i++) {
        int most = 1, done = 0, unknown = 0, unfinished = 0, before = failures;
        if (operations[i].call == call_cgroup && !has_group) {
            printf("SKIP kill: %s: no cgroup with threads can be made\n",
                   operations[i].name);
            skipped++;
            continue;
        }
        while (kill_after(i, most, &done, &unknown, &unfinished))
            most++;
        /* The last one was not killed. */
        if (most < 5 || !unknown || !done)
            failures++;
        printf("%s %s: killed after each of %d system calls: %d times done, "
               "%d times of unknown outcome, in %d of them it was done and "
               "has no audit line\n", failures == before ? "PASS" : "FAIL",
               operations[i].name, most - 1, done - 1, unknown, unfinished);
        if (failures == before)
            passed++;
        else
            failed++;
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0 || passed == 0;
}
