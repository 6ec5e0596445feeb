/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * target THREADS
 *     a process on which operations are performed: its threads sleep until
 *     standard input ends. Prints "ready".
 */

#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "rounds.h"

#define STACK (64 * 1024)

static void *sleep_on(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_attr_t small;

    if (argc != 2)
        errx(EXIT_FAILURE, "see the comment in target.c");
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    for (long i = number(argv[1]); i > 1; i--) {
        pthread_t thread;

        if (pthread_create(&thread, &small, sleep_on, NULL) != 0)
            errx(EXIT_FAILURE, "cannot create a thread");
    }
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return EXIT_SUCCESS;
}
