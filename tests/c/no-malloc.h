/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An allocator in the place of libc's, so that a test can forbid allocation:
 * in a forked child of a process with threads its locks may be held for ever.
 */

#ifndef NO_MALLOC_H
# define NO_MALLOC_H

# include <stdbool.h>

/* From now on in this process each use of the allocator is its end. */
void forbid_malloc(void);

/* Whether our allocator is the one that is used: valgrind and sanitizers put
 * one of their own in its place. */
bool malloc_can_be_forbidden(void);

#endif /* NO_MALLOC_H */
