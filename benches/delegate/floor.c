/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * floor CPUS PAIRS
 *     ping-pong of 64 bytes over SOCK_SEQPACKET: what is left of a delegated
 *     operation when everything but the way there and back is taken away
 *
 * CPUS are those of the other end, a process of its own. Several pairs are
 * threads at either end, as a delegate and its clients have.
 */

#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rounds.h"

#define BYTES 64

static int near_end[THREADS_MAX], far_end[THREADS_MAX];

static void *pong(void *opaque)
{
    int fd = *(int *)opaque;
    char bytes[BYTES];

    while (recv(fd, bytes, sizeof(bytes), 0) == BYTES) {
        if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) != BYTES)
            break;
    }
    _exit(EXIT_SUCCESS);
}

static void serve(const char *cpus, int pairs)
{
    pin(cpus);
    /* Or it would never be told that the other process has ended. */
    for (int i = 0; i < pairs; i++)
        close(near_end[i]);
    for (int i = 1; i < pairs; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, pong, &far_end[i]) != 0)
            errx(EXIT_FAILURE, "cannot create a thread");
    }
    pong(&far_end[0]);
}

static void ping(int pair)
{
    char bytes[BYTES] = { 0 };

    if (send(near_end[pair], bytes, sizeof(bytes), MSG_NOSIGNAL) != BYTES ||
        recv(near_end[pair], bytes, sizeof(bytes), 0) != BYTES)
        errx(EXIT_FAILURE, "the other end has gone away");
}

int main(int argc, char **argv)
{
    const struct caller caller = { .call = ping };
    int pairs;

    if (argc != 3)
        errx(EXIT_FAILURE, "see the comment in floor.c");
    pairs = number(argv[2]);
    if (pairs < 1 || pairs > THREADS_MAX)
        errx(EXIT_FAILURE, "cannot make %d pairs", pairs);
    for (int i = 0; i < pairs; i++) {
        int ends[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
            err(EXIT_FAILURE, "socketpair");
        near_end[i] = ends[0];
        far_end[i] = ends[1];
    }
    switch (fork()) {
    case -1:
        err(EXIT_FAILURE, "fork");
    case 0:
        serve(argv[1], pairs);
    }
    for (int i = 0; i < pairs; i++)
        close(far_end[i]);
    answer_rounds(&caller, pairs);
    return EXIT_SUCCESS;
}
