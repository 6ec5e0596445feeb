/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * side-by-side
 *     prints the table
 * side-by-side OPERATION direct|handled SIDE CALLS
 *     makes that many calls, so that something else can count instructions
 *
 * In each repetition every side runs a batch of calls, one side after the
 * other on the same CPU; who begins changes. What is printed are medians over
 * the repetitions: of each side, and of the differences within a repetition.
 * Nothing is judged by the exit status: other programs disturb the figures.
 */

#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "operations.h"

#define CALLS 200
#define REPETITIONS 3001

#define BOUND_DIRECT 10
#define BOUND_HANDLED 40

struct worker {
    struct run *run;
    int cpu;
    pthread_t thread;
    double ns[SIDES][REPETITIONS];
};

/* Lies in shared memory: the workers may be processes. */
struct run {
    const struct operation *operation;
    bool handled;
    pthread_barrier_t together;
    int nworkers;
    struct worker workers[];
};

static const struct side *sides(const struct run *run)
{
    return run->handled ? run->operation->handled : run->operation->direct;
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void *work(void *opaque)
{
    struct worker *worker = opaque;
    struct run *run = worker->run;
    struct subject subject = subject_on(worker->cpu);

    for (int i = 0; i < REPETITIONS; i++) {
        for (int j = 0; j < SIDES; j++) {
            int side = (i + j) % SIDES;
            double start;

            /* All CPUs are on the same side at the same time. */
            pthread_barrier_wait(&run->together);
            start = now();
            sides(run)[side].run(&subject, CALLS);
            worker->ns[side][i] = (now() - start) / CALLS;
        }
    }
    return NULL;
}

/* In a process of its own, the first that uses the library: children of one
 * that has used it are served in another way. */
static pid_t start(struct run *run, struct worker *workers, int nworkers)
{
    pid_t child = fork();

    if (child < 0)
        err(EXIT_FAILURE, "fork");
    if (child > 0)
        return child;

    if (run->handled)
        set_handlers();
    for (int i = 1; i < nworkers; i++) {
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            errx(EXIT_FAILURE, "cannot create a thread");
    }
    work(&workers[0]);
    for (int i = 1; i < nworkers; i++)
        pthread_join(workers[i].thread, NULL);
    _exit(EXIT_SUCCESS);
}

/* Threads of one process; but where they would wait for one another in the
 * kernel, processes with one thread each. */
static void run_workers(struct run *run)
{
    int share = run->operation->of_process ? 1 : run->nworkers;

    for (int i = 0; i < run->nworkers; i += share)
        start(run, &run->workers[i], share);
    for (int i = 0; i < run->nworkers; i += share) {
        int status;

        if (wait(&status) < 0 || status != 0)
            errx(EXIT_FAILURE, "a process that measures has failed");
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Of one side over all workers, less what another takes, unless it is -1. */
static double median(const struct run *run, int side, int other)
{
    double *all = malloc(sizeof(double) * REPETITIONS * run->nworkers);
    double median;
    size_t n = 0;

    if (!all)
        err(EXIT_FAILURE, "malloc");
    for (int i = 0; i < run->nworkers; i++) {
        const struct worker *worker = &run->workers[i];

        for (int j = 0; j < REPETITIONS; j++)
            all[n++] = worker->ns[side][j] -
                       (other < 0 ? 0 : worker->ns[other][j]);
    }
    qsort(all, n, sizeof(*all), compare);
    median = all[n / 2];
    free(all);
    return median;
}

/* The last side is the library, the one before it what it is compared with. */
static void print(const struct run *run, int bound)
{
    double first = median(run, 0, -1);
    double difference = median(run, SIDES - 1, SIDES - 2);

    printf("  %-13s", run->operation->name);
    for (int i = 0; i < SIDES; i++) {
        double ns = median(run, i, -1);

        printf(" %9.1f %4.2f", ns, ns / first);
    }
    printf(" %+11.1f %6d  %s\n", difference, bound,
           difference <= bound ? "within" : "ABOVE");
}

static void measure(const struct operation *operation, bool handled,
                    const int *cpus, int ncpus)
{
    size_t size = sizeof(struct run) + ncpus * sizeof(struct worker);
    struct run *run = mmap(NULL, size, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t shared;

    if (run == MAP_FAILED)
        err(EXIT_FAILURE, "mmap");
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&run->together, &shared, ncpus);
    run->operation = operation;
    run->handled = handled;
    run->nworkers = ncpus;
    for (int i = 0; i < ncpus; i++) {
        run->workers[i].run = run;
        run->workers[i].cpu = cpus[i];
    }
    run_workers(run);
    print(run, handled ? BOUND_HANDLED : BOUND_DIRECT);
    munmap(run, size);
}

static void table(const char *title, bool handled, const int *cpus, int ncpus)
{
    const struct side *side = handled ? operations[0].handled :
                                        operations[0].direct;

    printf("%s\n  ns per call  ", title);
    for (int i = 0; i < SIDES; i++)
        printf(" %9s %4s", side[i].name, i ? "" : "=1");
    printf(" %11s %6s\n", "difference", "bound");
    for (int i = 0; i < NOPERATIONS; i++)
        measure(&operations[i], handled, cpus, ncpus);
    printf("\n");
    fflush(stdout);
}

static void tables(void)
{
    int cpus[CPU_SETSIZE], ncpus = 0;
    char title[80];
    cpu_set_t allowed;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
        err(EXIT_FAILURE, "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &allowed))
            cpus[ncpus++] = cpu;
    }
    table("No handler, 1 CPU", false, cpus, 1);
    snprintf(title, sizeof(title), "No handler, %d CPUs at a time", ncpus);
    table(title, false, cpus, ncpus);
    table("A handler is set, 1 CPU", true, cpus, 1);
}

static int only_call(char **argv)
{
    struct subject subject = subject_on(sched_getcpu());

    for (int i = 0; i < NOPERATIONS; i++) {
        bool handled = strcmp(argv[1], "handled") == 0;
        const struct side *side = handled ? operations[i].handled :
                                            operations[i].direct;

        if (strcmp(argv[0], operations[i].name) != 0)
            continue;
        if (handled)
            set_handlers();
        for (int j = 0; j < SIDES; j++) {
            if (strcmp(argv[2], side[j].name) == 0) {
                side[j].run(&subject, atol(argv[3]));
                return EXIT_SUCCESS;
            }
        }
    }
    warnx("no such operation or side: %s %s %s", argv[0], argv[1], argv[2]);
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    switch (argc) {
    case 1:
        tables();
        return EXIT_SUCCESS;
    case 5:
        return only_call(argv + 1);
    default:
        errx(EXIT_FAILURE, "see the comment in side-by-side/main.c");
    }
}
