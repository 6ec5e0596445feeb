/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What all that is compared has in common, in whatever language: a program
 * prints "ready", then answers each line that it reads, until there is no more.
 *
 * calls N
 *     makes N calls, prints the median of what one takes, in ns
 * millis N
 *     makes calls on all threads for that long, prints how many a second
 */

#ifndef ROUNDS_H
# define ROUNDS_H

# define THREADS_MAX 64

struct caller {
    /* Called once by each thread, before "ready"; may be NULL. */
    void (*prepare)(int thread);
    void (*call)(int thread);
};

/* Answers what is read from standard input. With one thread it is the calling
 * one that makes the calls. */
void answer_rounds(const struct caller *caller, int nthreads);

/* The process's CPUs, written as in 0,1. */
void pin(const char *cpus);

/* A number from a command line. */
long number(const char *argument);

#endif
