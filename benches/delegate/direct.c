/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * direct PID FILE...
 *     moves all threads of a process into a cgroup by writing to its
 *     cgroup.threads (v1: tasks), and reads there whether they are in it
 *
 * With several cgroups: into one after the other, a call each.
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rounds.h"
#include "threads.h"

/* A batch begins with the first cgroup: it has a multiple of their number. */
static char **files;
static int nfiles, next;

static pid_t tids[TIDS_MAX], lowest, highest;
static size_t ntids;

/* The last call that has seen a thread in the cgroup. */
static int *seen, call;

static void set(int fd)
{
    for (size_t i = 0; i < ntids; i++) {
        char text[16];
        int length = snprintf(text, sizeof(text), "%d", tids[i]);

        if (write(fd, text, length) != length)
            err(EXIT_FAILURE, "thread %d cannot be moved", tids[i]);
    }
}

static void see(pid_t tid)
{
    if (tid >= lowest && tid <= highest)
        seen[tid - lowest] = call;
}

static void get(int fd)
{
    char buffer[16 * 1024];
    pid_t tid = 0;
    ssize_t n;

    while ((n = read(fd, buffer, sizeof(buffer))) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            if (buffer[i] == '\n') {
                see(tid);
                tid = 0;
            } else {
                tid = tid * 10 + buffer[i] - '0';
            }
        }
    }
    if (n < 0)
        err(EXIT_FAILURE, "the threads of a cgroup cannot be read");
    for (size_t i = 0; i < ntids; i++) {
        if (seen[tids[i] - lowest] != call)
            errx(EXIT_FAILURE, "thread %d was not moved", tids[i]);
    }
}

static void set_and_get(int thread)
{
    const char *file = files[next++ % nfiles];
    int fd = open(file, O_RDWR | O_CLOEXEC);

    (void)thread;
    if (fd < 0)
        err(EXIT_FAILURE, "%s", file);
    call++;
    set(fd);
    /* Written at no offset: reading begins at the first thread. */
    if (lseek(fd, 0, SEEK_SET) < 0)
        err(EXIT_FAILURE, "lseek");
    get(fd);
    close(fd);
}

int main(int argc, char **argv)
{
    const struct caller caller = { .call = set_and_get };

    if (argc < 3)
        errx(EXIT_FAILURE, "see the comment in direct.c");
    ntids = threads_of(number(argv[1]), tids);
    lowest = highest = tids[0];
    for (size_t i = 0; i < ntids; i++) {
        if (tids[i] < lowest)
            lowest = tids[i];
        if (tids[i] > highest)
            highest = tids[i];
    }
    seen = calloc(highest - lowest + 1, sizeof(*seen));
    if (!seen)
        err(EXIT_FAILURE, "calloc");
    files = argv + 2;
    nfiles = argc - 2;
    answer_rounds(&caller, 1);
    return EXIT_SUCCESS;
}
