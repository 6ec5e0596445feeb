/* SPDX-License-Identifier: LGPL-2.1-or-later */

#define _GNU_SOURCE
#include "wrapper.h"

#include <sched.h>
#include <sys/resource.h>

int wrapperSetMaxMemLock(pid_t pid, unsigned long long bytes)
{
    struct rlimit limit = { bytes, bytes };

    return prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL);
}

int wrapperSetScheduler(pid_t tid, int policy, int priority)
{
    struct sched_param parameters = { priority };

    return sched_setscheduler(tid, policy, &parameters);
}

int wrapperSetAffinity(pid_t tid, const unsigned char *cpumap, int maplen)
{
    return sched_setaffinity(tid, maplen, (const cpu_set_t *)cpumap);
}
