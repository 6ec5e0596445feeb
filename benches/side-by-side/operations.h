/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The operations that are measured, each done in several ways ("sides").
 */

#ifndef OPERATIONS_H
# define OPERATIONS_H

# include <stdbool.h>
# include <sys/types.h>

# define SIDES 3

/* Whom a thread acts on: itself, or its process. Nothing changes by it: the
 * limit, the policy and the CPUs are what it has already. */
struct subject {
    pid_t pid;
    pid_t tid;
    unsigned long long memlock;
    unsigned char cpumap[128];
    int maplen;
};

/* Does it that many times; fails loudly. */
typedef void (*batch)(const struct subject *subject, long calls);

struct side {
    const char *name;
    batch run;
};

struct operation {
    const char *name;
    /* All threads of a process share what the kernel changes, and a lock of
     * the kernel's with it. */
    bool of_process;
    /* What the library does when no handler is set, and with one. */
    struct side direct[SIDES];
    struct side handled[SIDES];
};

# define NOPERATIONS 3

extern const struct operation operations[NOPERATIONS];

/* The calling thread, pinned to a CPU. */
struct subject subject_on(int cpu);

void set_handlers(void);

#endif /* OPERATIONS_H */
