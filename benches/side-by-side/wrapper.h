/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the library is measured against: C functions in a shared library of
 * their own that do nothing but the system call.
 */

#ifndef WRAPPER_H
# define WRAPPER_H

# include <stddef.h>
# include <sys/types.h>

int wrapperSetMaxMemLock(pid_t pid, unsigned long long bytes);
int wrapperSetScheduler(pid_t tid, int policy, int priority);
int wrapperSetAffinity(pid_t tid, const unsigned char *cpumap, int maplen);

#endif /* WRAPPER_H */
