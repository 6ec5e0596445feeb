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

/* Memory is taken from the front of an arena, or is what was freed before: a
 * test sets handlers as long as others have not come to their end, however
 * long that is. The kernel gives no memory for what is not touched. */
static char arena[256 << 20] __attribute__((aligned(4096)));
static size_t used;

/* For each power of two, the freed blocks of that size: the low half is where
 * in the arena the first is, or 0, and that is where the next is. The high half
 * counts, so that a list that has changed never looks as before. Without locks,
 * because a child may be forked at any time. */
static uint64_t freed[32];

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

/* The power of two that has room for it. */
static unsigned int
class_of(size_t size)
{
    unsigned int class = 4;

    while ((size_t) 1 << class < size)
        class++;
    return class;
}

static void
put_back(void *block)
{
    uint64_t *list = &freed[class_of(*size_of_block(block))];
    uint64_t first = __atomic_load_n(list, __ATOMIC_RELAXED);
    uint64_t changed;

    do {
        __atomic_store_n((uint64_t *) block, first & UINT32_MAX,
                         __ATOMIC_RELAXED);
        changed = ((first >> 32) + 1) << 32 | (uint64_t) ((char *) block - arena);
    } while (!__atomic_compare_exchange_n(list, &first, changed, false,
                                          __ATOMIC_RELEASE, __ATOMIC_RELAXED));
}

static void *
take_freed(unsigned int class)
{
    uint64_t *list = &freed[class];
    uint64_t first = __atomic_load_n(list, __ATOMIC_ACQUIRE);
    uint64_t changed;
    char *block;

    do {
        block = arena + (first & UINT32_MAX);
        if (block == arena)
            return NULL;
        /* Whatever is there, if another thread was faster. */
        changed = ((first >> 32) + 1) << 32
            | (__atomic_load_n((uint64_t *) block, __ATOMIC_RELAXED)
               & UINT32_MAX);
    } while (!__atomic_compare_exchange_n(list, &first, changed, false,
                                          __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE));
    return block;
}

static void *
allocate(size_t size, size_t alignment)
{
    size_t start, block, end;
    void *again;

    note_use();
    if (size > sizeof(arena)) {
        errno = ENOMEM;
        return NULL;
    }
    size = (size_t) 1 << class_of(size);
    if (alignment <= ALIGNMENT) {
        alignment = ALIGNMENT;
        again = take_freed(class_of(size));
        if (again)
            return again;
    }
    start = __atomic_load_n(&used, __ATOMIC_RELAXED);
    do {
        block = (start + sizeof(size_t) + alignment - 1) & ~(alignment - 1);
        if (block > sizeof(arena) || size > sizeof(arena) - block) {
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
    void *block;

    if (size && count > SIZE_MAX / size) {
        errno = ENOMEM;
        return NULL;
    }
    block = allocate(count * size, ALIGNMENT);
    return block ? memset(block, 0, count * size) : NULL;
}

void *
realloc(void *old, size_t size)
{
    void *new = allocate(size, ALIGNMENT);

    if (old && new) {
        size_t before = *size_of_block(old);

        memcpy(new, old, before < size ? before : size);
        put_back(old);
    }
    return new;
}

void
free(void *block)
{
    if (!block)
        return;
    note_use();
    put_back(block);
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
