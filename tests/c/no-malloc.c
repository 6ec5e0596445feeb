/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "no-malloc.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALIGNMENT (2 * sizeof(void *))

/* Volatile: a compiler takes it for granted that malloc() changes no variable
 * of the program's. */
static volatile bool is_forbidden;
static volatile bool was_used;

void
forbid_malloc(void)
{
    is_forbidden = true;
}

/* A sanitizer must see what is allocated: there is no allocator of ours. */
#ifndef __SANITIZE_ADDRESS__

/* Memory is taken from the front of an arena and never given back: a test
 * does not live long. The kernel gives no memory for what is not touched. */
static char arena[256 << 20] __attribute__((aligned(4096)));
static size_t used;

static void
note_use(void)
{
    static const char message[] = "malloc was used where it is forbidden\n";

    was_used = true;
    if (is_forbidden) {
        if (write(STDERR_FILENO, message, sizeof(message) - 1) < 0)
            _exit(EXIT_FAILURE);
        abort();
    }
}

/* The word in front of each block is its size. */
static size_t *
size_of_block(void *block)
{
    return (size_t *) block - 1;
}

static void *
allocate(size_t size, size_t alignment)
{
    size_t start, block, end;

    note_use();
    if (alignment < ALIGNMENT)
        alignment = ALIGNMENT;
    start = __atomic_load_n(&used, __ATOMIC_RELAXED);
    do {
        block = (start + sizeof(size_t) + alignment - 1) & ~(alignment - 1);
        if (size > sizeof(arena) || block > sizeof(arena) - size) {
            errno = ENOMEM;
            return NULL;
        }
        end = block + size;
    } while (!__atomic_compare_exchange_n(&used, &start, end, false,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *size_of_block(arena + block) = size;
    return arena + block;
}

void *
malloc(size_t size)
{
    return allocate(size, ALIGNMENT);
}

void *
calloc(size_t count, size_t size)
{
    /* Untouched memory is zero. */
    if (size && count > SIZE_MAX / size) {
        errno = ENOMEM;
        return NULL;
    }
    return allocate(count * size, ALIGNMENT);
}

void *
realloc(void *old, size_t size)
{
    void *new = allocate(size, ALIGNMENT);

    if (old && new) {
        size_t before = *size_of_block(old);

        memcpy(new, old, before < size ? before : size);
    }
    return new;
}

void
free(void *block)
{
    if (block)
        note_use();
}

void *
aligned_alloc(size_t alignment, size_t size)
{
    return allocate(size, alignment);
}

void *
memalign(size_t alignment, size_t size)
{
    return allocate(size, alignment);
}

int
posix_memalign(void **block, size_t alignment, size_t size)
{
    *block = allocate(size, alignment);
    return *block ? 0 : ENOMEM;
}

#endif /* __SANITIZE_ADDRESS__ */

bool
malloc_can_be_forbidden(void)
{
    void *volatile block;

    was_used = false;
    block = malloc(1);
    free(block);
    return was_used;
}
