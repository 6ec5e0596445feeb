/* SPDX-License-Identifier: LGPL-2.1-or-later */

#define _GNU_SOURCE
#include "rounds.h"

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALLS_MAX 1000000

struct thread {
    pthread_t thread;
    int number;
    long long end;
    long calls;
};

static const struct caller *caller;
static struct thread threads[THREADS_MAX];
static pthread_barrier_t together;
static long long begin, duration;
static long long ns[CALLS_MAX];

static long long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    long long x = *(const long long *)a, y = *(const long long *)b;

    return (x > y) - (x < y);
}

/* Call by call: one that something else interrupts then does not weigh on the
 * median, as it does on the mean of a batch. */
static long long median_of(long calls)
{
    if (calls < 1 || calls > CALLS_MAX)
        errx(EXIT_FAILURE, "cannot make %ld calls", calls);
    for (long i = 0; i < calls; i++) {
        long long start = now();

        caller->call(0);
        ns[i] = now() - start;
    }
    qsort(ns, calls, sizeof(*ns), compare);
    return ns[calls / 2];
}

static void call_until_the_end(struct thread *thread)
{
    do {
        caller->call(thread->number);
        thread->calls++;
        thread->end = now();
    } while (thread->end - begin < duration);
}

/* A connection may belong to a thread: it is the same ones in all rounds. */
static void *work(void *opaque)
{
    struct thread *thread = opaque;

    if (caller->prepare)
        caller->prepare(thread->number);
    pthread_barrier_wait(&together);
    for (;;) {
        pthread_barrier_wait(&together);
        call_until_the_end(thread);
        pthread_barrier_wait(&together);
    }
    return NULL;
}

static void start(int nthreads)
{
    pthread_barrier_init(&together, NULL, nthreads + 1);
    for (int i = 0; i < nthreads; i++) {
        threads[i].number = i;
        errno = pthread_create(&threads[i].thread, NULL, work, &threads[i]);
        if (errno != 0)
            err(EXIT_FAILURE, "pthread_create");
    }
    pthread_barrier_wait(&together);
}

static double rate_in(long millis, int nthreads)
{
    long long end;
    long calls = 0;

    if (nthreads == 1)
        errx(EXIT_FAILURE, "one thread has no throughput");
    for (int i = 0; i < nthreads; i++)
        threads[i].calls = 0;
    duration = millis * 1000000LL;
    end = begin = now();
    pthread_barrier_wait(&together);
    pthread_barrier_wait(&together);
    for (int i = 0; i < nthreads; i++) {
        calls += threads[i].calls;
        if (threads[i].end > end)
            end = threads[i].end;
    }
    return calls * 1e9 / (end - begin);
}

void answer_rounds(const struct caller *calls, int nthreads)
{
    char line[80];

    caller = calls;
    if (nthreads < 1 || nthreads > THREADS_MAX)
        errx(EXIT_FAILURE, "cannot run %d threads", nthreads);
    if (nthreads > 1)
        start(nthreads);
    else if (caller->prepare)
        caller->prepare(0);

    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        long n;

        if (nthreads == 1 && sscanf(line, "calls %ld", &n) == 1)
            printf("%lld\n", median_of(n));
        else if (sscanf(line, "millis %ld", &n) == 1)
            printf("%.0f\n", rate_in(n, nthreads));
        else
            errx(EXIT_FAILURE, "not a request: %s", line);
        fflush(stdout);
    }
}

void pin(const char *cpus)
{
    char *copy = strdup(cpus), *rest = copy;
    const char *cpu;
    cpu_set_t set;

    if (!copy)
        err(EXIT_FAILURE, "strdup");
    CPU_ZERO(&set);
    while ((cpu = strsep(&rest, ",")))
        CPU_SET(number(cpu), &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        err(EXIT_FAILURE, "cannot run on CPUs %s", cpus);
    free(copy);
}

long number(const char *argument)
{
    char *end;
    long value = strtol(argument, &end, 10);

    if (end == argument || *end != '\0' || value < 0)
        errx(EXIT_FAILURE, "not a number: %s", argument);
    return value;
}
