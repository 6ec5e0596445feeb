/* SPDX-License-Identifier: LGPL-2.1-or-later */

#ifndef THREADS_H
# define THREADS_H

# include <stddef.h>
# include <sys/types.h>

# define TIDS_MAX 3000

/* The threads of a process, by /proc. Returns how many. */
size_t threads_of(pid_t pid, pid_t *tids);

#endif
