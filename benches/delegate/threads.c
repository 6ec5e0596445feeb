/* SPDX-License-Identifier: LGPL-2.1-or-later */

#define _GNU_SOURCE
#include "threads.h"

#include <dirent.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>

size_t threads_of(pid_t pid, pid_t *tids)
{
    const struct dirent *entry;
    size_t ntids = 0;
    char path[64];
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    tasks = opendir(path);
    if (!tasks)
        err(EXIT_FAILURE, "%s", path);
    while ((entry = readdir(tasks))) {
        if (entry->d_name[0] == '.')
            continue;
        if (ntids == TIDS_MAX)
            errx(EXIT_FAILURE, "process %d has too many threads", pid);
        tids[ntids++] = atoi(entry->d_name);
    }
    closedir(tasks);
    return ntids;
}
