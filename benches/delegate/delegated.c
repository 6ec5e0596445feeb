/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * delegated ADDRESS max-mem-lock|scheduler PID...
 *     performs the operation by the delegate; with several processes a thread
 *     each
 * delegated ADDRESS add-threads PID CGROUP...
 *     moves all threads of the process in one request; with several cgroups
 *     into one after the other, a call each
 * delegated ADDRESS peers NUMBER PID
 *     as many processes, each of which has performed one operation and stays
 *     connected until standard input ends. Prints "ready".
 *
 * Nothing of it may go past the delegate: VIR_INTERNAL_NO_DIRECT.
 */

#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <err.h>
#include <libvirt/libvirt-internal.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "rounds.h"
#include "threads.h"

/* Long enough for a machine that is busy with other work: what is measured is
 * never the time-out. */
#define TIMEOUT_MS 60000

/* Lowering needs no privilege, nor does what it already is. */
#define MEM_LOCK_MAX (64ULL << 20)

static const char *address;
static pid_t pids[THREADS_MAX];
static unsigned long long bytes[THREADS_MAX];
static unsigned int turn[THREADS_MAX];

static char **groups;
static int ngroups;
static pid_t tids[TIDS_MAX];
static int results[TIDS_MAX];
static size_t ntids;

static void must(const char *what, int returned)
{
    const virInternalError *error;

    if (__builtin_expect(returned == 0, 1))
        return;
    error = virInternalGetLastError();
    errx(EXIT_FAILURE, "%s returned %d: %s", what, returned,
         error ? error->message :
         returned == VIR_INTERNAL_NOT_HANDLED ? "nobody handled it" : "");
}

static void connect_delegate(void)
{
    must("virInternalConnectDelegate",
         virInternalConnectDelegate(NULL, VIR_INTERNAL_DELEGATE_VERSION,
                                    address, TIMEOUT_MS, 0));
}

static void set_max_mem_lock(int thread)
{
    must("virInternalProcessSetMaxMemLock",
         virInternalProcessSetMaxMemLock(NULL, pids[thread], bytes[thread],
                                         VIR_INTERNAL_NO_DIRECT));
}

static void prepare_max_mem_lock(int thread)
{
    struct rlimit limit;

    if (prlimit(pids[thread], RLIMIT_MEMLOCK, NULL, &limit) < 0)
        err(EXIT_FAILURE, "prlimit of process %d", pids[thread]);
    bytes[thread] = limit.rlim_max < MEM_LOCK_MAX ? limit.rlim_max :
                                                    MEM_LOCK_MAX;
    set_max_mem_lock(thread);
}

/* To and fro, so that each call changes something. */
static void set_scheduler(int thread)
{
    int policy = turn[thread]++ % 2 ? VIR_INTERNAL_SCHED_OTHER :
                                      VIR_INTERNAL_SCHED_BATCH;

    must("virInternalProcessSetScheduler",
         virInternalProcessSetScheduler(NULL, pids[thread], pids[thread],
                                        policy, 0, VIR_INTERNAL_NO_DIRECT));
}

static void add_threads(int thread)
{
    const char *group = groups[turn[thread]++ % ngroups];

    must("virInternalCgroupAddThreads",
         virInternalCgroupAddThreads(NULL, pids[thread], group,
                                     VIR_INTERNAL_THREAD_EMULATOR, tids, NULL,
                                     ntids, NULL, 0, results,
                                     VIR_INTERNAL_NO_DIRECT));
    for (size_t i = 0; i < ntids; i++) {
        if (results[i] != 0)
            errx(EXIT_FAILURE, "thread %d: %s", tids[i],
                 strerror(-results[i]));
    }
}

static void be_a_peer(int done, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(EXIT_SUCCESS);
    connect_delegate();
    prepare_max_mem_lock(0);
    if (write(done, "", 1) != 1)
        err(EXIT_FAILURE, "write");
    close(done);
    for (;;)
        pause();
}

/* Forked before the library is used here: each is a process of its own to the
 * library too, not somebody's forked child. One after the other: how many can
 * connect at a time is another question. */
static void peers(long npeers)
{
    pid_t parent = getpid();

    for (long i = 0; i < npeers; i++) {
        int done[2];
        char byte;

        if (pipe(done) < 0)
            err(EXIT_FAILURE, "pipe");
        switch (fork()) {
        case -1:
            err(EXIT_FAILURE, "fork");
        case 0:
            close(done[0]);
            be_a_peer(done[1], parent);
        }
        close(done[1]);
        if (read(done[0], &byte, 1) != 1)
            errx(EXIT_FAILURE, "peer %ld has failed", i);
        close(done[0]);
    }
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF)
        ;
}

int main(int argc, char **argv)
{
    const struct caller max_mem_lock = { prepare_max_mem_lock,
                                         set_max_mem_lock };
    const struct caller scheduler = { set_scheduler, set_scheduler };
    const struct caller cgroup = { NULL, add_threads };
    const char *what;

    if (argc < 4)
        errx(EXIT_FAILURE, "see the comment in delegated.c");
    address = argv[1];
    what = argv[2];
    if (strcmp(what, "peers") == 0 && argc == 5) {
        pids[0] = number(argv[4]);
        peers(number(argv[3]));
        return EXIT_SUCCESS;
    }

    connect_delegate();
    if (strcmp(what, "add-threads") == 0 && argc > 4) {
        pids[0] = number(argv[3]);
        ntids = threads_of(pids[0], tids);
        groups = argv + 4;
        ngroups = argc - 4;
        answer_rounds(&cgroup, 1);
        return EXIT_SUCCESS;
    }
    for (int i = 3; i < argc && i - 3 < THREADS_MAX; i++)
        pids[i - 3] = number(argv[i]);
    if (strcmp(what, "max-mem-lock") == 0)
        answer_rounds(&max_mem_lock, argc - 3);
    else if (strcmp(what, "scheduler") == 0)
        answer_rounds(&scheduler, argc - 3);
    else
        errx(EXIT_FAILURE, "no such operation: %s", what);
    return EXIT_SUCCESS;
}
