/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Operations through a delegate, of all kinds, by several threads, with forked
 * children, connections that come and go, and requests that are refused, for as
 * long as wanted: soak ADDRESS DELEGATE-PID OPERATIONS
 *
 * Memory and descriptors of both processes are taken at the start, behind each
 * quarter and at the end, and must be flat.
 */
#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NTHREADS 4
#define NTIDS NTHREADS
/* Operations of one thread before it ends, and another takes its place: with
 * its connection. */
#define LIFE 5000
/* One of so many is by a forked child, connects anew, or is refused. */
#define CHILD 2000
#define RECONNECT 5000
#define REFUSED 50
#define PHASES 4

/* How much more there may be than behind the first quarter. */
#define MEMORY_KB 2048
#define DESCRIPTORS 16

static const char *address;
static pid_t delegate, target;
static pid_t tids[NTIDS];
static unsigned char cpus[1];
static atomic_long left, done, failed, refused, children, connections;

static void wrong(const char *what, int result)
{
    virInternalErrorPtr error = virInternalGetLastError();
    /* The first few say it all. */
    if (atomic_fetch_add(&failed, 1) < 10)
        printf("     %s returned %d: %s\n", what, result,
               error ? error->message : "no error");
}

/* All ask for the same, so that any of them can come next; but for a scheduling
 * policy, which each worker sets of a thread of its own: it would read back
 * another's. */
static int operation(unsigned which, size_t worker)
{
    switch (which % 7) {
    case 0:
        return virInternalProcessSetMaxMemLock(NULL, target, 65536,
                                               VIR_INTERNAL_NO_DIRECT);
    case 1:
        return virInternalProcessSetMaxProcesses(NULL, target, 4000,
                                                 VIR_INTERNAL_NO_DIRECT);
    case 2:
        return virInternalProcessSetMaxFiles(NULL, target, 99,
                                             VIR_INTERNAL_NO_DIRECT);
    case 3:
        return virInternalProcessSetMaxCoreSize(NULL, target, 0,
                                                VIR_INTERNAL_NO_DIRECT);
    case 4:
        return virInternalProcessSetScheduler(NULL, target, tids[worker],
                                              which & 64
                                              ? VIR_INTERNAL_SCHED_BATCH
                                              : VIR_INTERNAL_SCHED_OTHER, 0,
                                              VIR_INTERNAL_NO_DIRECT);
    case 5:
        return virInternalProcessSetAffinity(NULL, target, tids[worker],
                                             cpus, 1, VIR_INTERNAL_NO_DIRECT);
    default: {
        /* Without a cgroup of the caller's: a delegate has nothing to do. */
        int results[NTIDS];
        int result = virInternalCgroupAddThreads(
            NULL, target, NULL, VIR_INTERNAL_THREAD_VCPU, tids, NULL, NTIDS,
            NULL, 0, results, VIR_INTERNAL_NO_DIRECT);
        return result == VIR_INTERNAL_NOT_HANDLED ? 0 : result ? result : -2;
    }
    }
}

static void be_refused(void)
{
    int result = virInternalProcessSetScheduler(
        NULL, target, target, VIR_INTERNAL_SCHED_IDLE, 0, 0);
    virInternalErrorPtr error = virInternalGetLastError();
    if (result == -1 && error && error->code == VIR_INTERNAL_ERR_REFUSED)
        atomic_fetch_add(&refused, 1);
    else
        wrong("what no rule allows", result);
}

static void ask_in_a_child(unsigned which, size_t worker)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(operation(which, worker) == 0 ? 0 : 1);
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        wrong("a forked child", status);
    atomic_fetch_add(&children, 1);
}

/* The same delegate anew: nobody else's call fails meanwhile, for it takes the
 * place of the one before. */
static void connect_anew(void)
{
    int result = virInternalConnectDelegate(
        NULL, VIR_INTERNAL_DELEGATE_VERSION, address, 60000, 0);
    if (result != 0)
        wrong("virInternalConnectDelegate", result);
    atomic_fetch_add(&connections, 1);
}

typedef struct {
    size_t worker;
    unsigned first;
} Work;

static void *work(void *opaque)
{
    size_t worker = ((const Work *) opaque)->worker;
    unsigned which = ((const Work *) opaque)->first;
    for (int i = 0; i < LIFE && atomic_fetch_sub(&left, 1) > 0; i++) {
        unsigned next = which + (unsigned) i;
        if (next % CHILD == 0) {
            ask_in_a_child(next, worker);
        } else if (next % REFUSED == 0) {
            be_refused();
        } else {
            int result = operation(next, worker);
            if (result != 0)
                wrong("an operation", result);
        }
        if (next % RECONNECT == 0)
            connect_anew();
        atomic_fetch_add(&done, 1);
    }
    return NULL;
}

/* Threads come and go until all is done. */
static void *generations(void *number)
{
    Work own = { (size_t) number, (unsigned) (size_t) number * 1000003 };
    for (; atomic_load(&left) > 0; own.first += LIFE) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, &own) != 0) {
            wrong("pthread_create", errno);
            return NULL;
        }
        pthread_join(thread, NULL);
    }
    return NULL;
}

static void *wait_for_ever(void *told)
{
    pid_t tid = (pid_t) syscall(SYS_gettid);
    if (write(*(int *) told, &tid, sizeof(tid)) != sizeof(tid))
        _exit(1);
    for (;;)
        pause();
    return NULL;
}

static void start_target(void)
{
    int told[2];
    if (pipe(told) != 0)
        abort();
    target = fork();
    if (target == 0) {
        pthread_t thread;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int i = 0; i < NTIDS; i++)
            if (pthread_create(&thread, NULL, wait_for_ever, &told[1]) != 0)
                _exit(1);
        for (;;)
            pause();
    }
    for (int i = 0; i < NTIDS; i++)
        if (read(told[0], &tids[i], sizeof(tids[i])) != sizeof(tids[i]))
            abort();
    close(told[0]);
    close(told[1]);
}

typedef struct {
    long kilobytes;
    int descriptors, threads;
} Use;

static int entries(pid_t pid, const char *what)
{
    char path[60];
    int count = -2;
    snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, what);
    DIR *directory = opendir(path);
    while (directory && readdir(directory))
        count++;
    if (directory)
        closedir(directory);
    return count;
}

static Use use_of(pid_t pid)
{
    char path[60], line[200];
    Use use = { -1, entries(pid, "fd"), entries(pid, "task") };
    snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
    FILE *status = fopen(path, "re");
    while (status && fgets(line, sizeof(line), status))
        sscanf(line, "VmRSS: %ld kB", &use.kilobytes);
    if (status)
        fclose(status);
    return use;
}

/* Whether there are no more descriptors and threads than that. */
static bool has_settled(const Use *use, const Use *first)
{
    return use->descriptors <= first->descriptors + DESCRIPTORS &&
        use->threads <= first->threads + DESCRIPTORS;
}

/* A busy delegate may not yet have seen the end of the last connections. */
static Use settled_use_of(pid_t pid, const Use *first)
{
    struct timespec pause = { 0, 10000000 };
    Use use = use_of(pid);
    for (int i = 0; i < 10000 && !has_settled(&use, first); i++) {
        nanosleep(&pause, NULL);
        use = use_of(pid);
    }
    return use;
}

static void run(long operations)
{
    pthread_t threads[NTHREADS];
    atomic_store(&left, operations);
    for (size_t i = 0; i < NTHREADS; i++)
        if (pthread_create(&threads[i], NULL, generations, (void *) i) != 0)
            abort();
    for (size_t i = 0; i < NTHREADS; i++)
        pthread_join(threads[i], NULL);
}

static bool is_flat(const char *who, const Use *uses)
{
    bool flat = true;
    /* The first quarter fills what is kept. */
    for (int i = 2; i <= PHASES; i++) {
        flat &= uses[i].kilobytes <= uses[1].kilobytes + MEMORY_KB;
        flat &= has_settled(&uses[i], &uses[1]);
    }
    printf("%s %s: memory and descriptors are flat: at most %d KiB and %d "
           "descriptors more than after the first quarter\n",
           flat ? "PASS" : "FAIL", who, MEMORY_KB, DESCRIPTORS);
    return flat;
}

int main(int argc, char **argv)
{
    Use uses[2][PHASES + 1];
    struct timespec start, end;
    int passed = 0, wanted = 4;
    if (argc != 4)
        return 2;
    address = argv[1];
    delegate = (pid_t) atoi(argv[2]);
    long operations = atol(argv[3]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    cpu_set_t set;
    sched_getaffinity(0, sizeof(set), &set);
    for (int cpu = 0; cpu < 8; cpu++)
        cpus[0] |= (unsigned char) (CPU_ISSET(cpu, &set) ? 1 << cpu : 0);
    start_target();
    connect_anew();
    for (unsigned which = 0; which < 7; which++)
        if (operation(which, 0) != 0)
            wrong("the first of an operation", (int) which);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int phase = 0; phase <= PHASES; phase++) {
        if (phase > 0)
            run(operations / PHASES);
        clock_gettime(CLOCK_MONOTONIC, &end);
        uses[0][phase] = phase > 1 ? settled_use_of(delegate, &uses[0][1])
                                   : use_of(delegate);
        uses[1][phase] = use_of(getpid());
        printf("%10ld operations, %5ld s: delegate %ld KiB, %d descriptors, "
               "%d threads; client %ld KiB, %d descriptors\n",
               atomic_load(&done), (long) (end.tv_sec - start.tv_sec),
               uses[0][phase].kilobytes, uses[0][phase].descriptors,
               uses[0][phase].threads, uses[1][phase].kilobytes,
               uses[1][phase].descriptors);
    }
    passed += is_flat("delegate", uses[0]);
    passed += is_flat("client", uses[1]);
    bool all = atomic_load(&done) >= operations / PHASES * PHASES &&
        atomic_load(&failed) == 0;
    printf("%s %ld operations, %ld of them refused as they must be, %ld by "
           "forked children, %ld new connections of all threads: %ld wrong\n",
           all ? "PASS" : "FAIL", atomic_load(&done), atomic_load(&refused),
           atomic_load(&children), atomic_load(&connections),
           atomic_load(&failed));
    passed += all;
    bool mixed = atomic_load(&refused) > 0 && atomic_load(&children) > 0 &&
        atomic_load(&connections) > 1;
    printf("%s some were refused, by children, over new connections\n",
           mixed ? "PASS" : "FAIL");
    passed += mixed;
    kill(target, SIGKILL);
    printf("%d passed, %d failed, 0 skipped\n", passed, wanted - passed);
    return passed != wanted;
}
