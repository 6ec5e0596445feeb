/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A process with threads, to act on: prints their numbers as its own PID
 * namespace has them, and ends when its input does. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_barrier_t barrier;
static pid_t *tids;

static void *sit(void *index)
{
    tids[(long)index] = gettid();
    pthread_barrier_wait(&barrier);
    for (;;)
        pause();
    return NULL;
}

int main(int argc, char **argv)
{
    long count = argc > 1 ? atol(argv[1]) : 0;
    char byte;

    tids = calloc(count + 1, sizeof(*tids));
    pthread_barrier_init(&barrier, NULL, count + 1);
    for (long index = 0; index < count; index++) {
        pthread_t thread;
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 65536);
        if (pthread_create(&thread, &small, sit, (void *)index) != 0)
            return 1;
    }
    pthread_barrier_wait(&barrier);
    for (long index = 0; index < count; index++)
        printf("%d ", tids[index]);
    printf("\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
