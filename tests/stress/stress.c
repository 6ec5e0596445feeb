/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Operations on all cores, against handlers that are set, replaced and unset
 * all the time: nobody runs a handler that is freed, each is freed once, and
 * a set or unset outside any handler returns when what it removed is gone.
 *
 *   stress [OPERATIONS [PAIRS]]    prints PASS or FAIL and the name of each test
 */
#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>

#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static pid_t self;
/* What the process may do already, so that doing it again changes nothing. */
static struct rlimit core;
static cpu_set_t cpus;

static int failed;

__attribute__((format(printf, 2, 3)))
static void print_result(bool passed, const char *format, ...)
{
    va_list arguments;

    failed += !passed;
    fputs(passed ? "PASS " : "FAIL ", stdout);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

/* Something happened after which the rest says nothing any more. */
__attribute__((format(printf, 1, 2), noreturn))
static void give_up(const char *format, ...)
{
    va_list arguments;

    fputs("FAIL ", stdout);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
    _exit(1);
}

/* What is known of one handler. It outlives the handler's opaque memory. */
struct record {
    atomic_int inside;
    atomic_int freed;
};

/* A handler's opaque memory, which its free callback poisons and frees. */
struct opaque {
    unsigned int magic;
    struct record *record;
    /* Freed with it, where nobody looks at it after that. */
    struct record own_record;
};

enum { ALIVE = 0x600d600d, POISON = 0xdd };

/* NULL, and some connections. */
enum { KEYS = 4 };

static struct _virConnect *key(unsigned int number)
{
    return (struct _virConnect *)((uintptr_t)(number % KEYS) * 0x1000);
}

static atomic_ulong successful_sets, freed_handlers;
static atomic_ulong calls_handled, calls_direct, calls_not_handled;
static atomic_ulong handlers_run, unsets_from_handlers, sets_from_freecbs;

static __thread unsigned int random_state;

static unsigned int next_random(void)
{
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 16;
}

/* 1 in @n. */
static bool seldom(unsigned int n)
{
    return next_random() % n == 0;
}

static void check_alive(const struct opaque *opaque, const char *where)
{
    if (opaque->magic != ALIVE)
        give_up("%s: the opaque memory was freed (%#x)", where, opaque->magic);
}

static int unset(struct _virConnect *conn)
{
    return virInternalSetProcessSetMaxCoreSizeHandler(
        conn, VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION, NULL, NULL, NULL,
        0);
}

static void set(struct _virConnect *conn, struct record *record);

static void free_opaque(void *memory)
{
    struct opaque *opaque = memory;
    struct record *record = opaque->record;
    int inside = atomic_load(&record->inside);

    check_alive(opaque, "a free callback");
    if (inside != 0)
        give_up("a free callback ran while %d were inside the handler", inside);
    if (seldom(64)) {
        atomic_fetch_add(&sets_from_freecbs, 1);
        if (seldom(2))
            set(key(next_random()), NULL);
        else if (unset(key(next_random())) != 0)
            give_up("an unset from a free callback failed");
    }
    check_alive(opaque, "the end of a free callback");
    if (atomic_fetch_add(&record->freed, 1) != 0)
        give_up("a free callback ran twice");
    atomic_fetch_add(&freed_handlers, 1);
    memset(opaque, POISON, sizeof(*opaque));
    free(opaque);
}

static int set_core_size(pid_t pid, unsigned long long bytes, void *memory)
{
    struct opaque *opaque = memory;
    struct record *record = opaque->record;
    int answer = VIR_INTERNAL_HANDLED;

    check_alive(opaque, "a handler");
    atomic_fetch_add(&record->inside, 1);
    atomic_fetch_add(&handlers_run, 1);
    switch (next_random() % 128) {
    case 0:
        /* From inside: skips this handler, but not that of another key. */
        if (virInternalProcessSetMaxCoreSize(key(next_random()), pid, bytes, 0)
            != 0)
            give_up("a call from inside a handler failed");
        break;
    case 1:
        atomic_fetch_add(&unsets_from_handlers, 1);
        if (unset(key(next_random())) != 0)
            give_up("an unset from inside a handler failed");
        break;
    case 2:
        set(key(next_random()), NULL);
        break;
    case 3:
        sched_yield();
        break;
    case 4:
        answer = VIR_INTERNAL_NOT_HANDLED;
        break;
    case 5:
        prlimit(pid, RLIMIT_CORE, &core, NULL);
        break;
    }
    check_alive(opaque, "the end of a handler");
    atomic_fetch_sub(&record->inside, 1);
    return answer;
}

/* @record, if any, is where the caller will look what became of it. */
static void set(struct _virConnect *conn, struct record *record)
{
    struct opaque *opaque = malloc(sizeof(*opaque));

    *opaque = (struct opaque){ .magic = ALIVE };
    opaque->record = record ? record : &opaque->own_record;
    /* Counted first: it may be freed before the set function returns. */
    atomic_fetch_add(&successful_sets, 1);
    if (virInternalSetProcessSetMaxCoreSizeHandler(
            conn, VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION, set_core_size,
            opaque, free_opaque, 0)
        != 0)
        give_up("a set failed: %s", virInternalGetLastError()->message);
}

/* A promise of every set and unset made outside any handler. */
static void check_gone(const struct record *record, const char *by)
{
    int inside = atomic_load(&record->inside);
    int freed = atomic_load(&record->freed);

    if (inside != 0 || freed != 1)
        give_up("after %s, %d are inside the removed handler and its free "
                "callback ran %d times, expected 0 and 1",
                by, inside, freed);
}

/* The threads. */

static atomic_bool operating = true;
static atomic_ulong rounds, closings;

static bool have_met(void)
{
    return handlers_run > 0 && rounds > 0 && closings > 0;
}

/* However the threads get their turns: not before there was something to meet. */
static void *call_operations(void *argument)
{
    unsigned long operations = *(unsigned long *)argument;

    random_state = gettid();
    for (unsigned long i = 0; i < operations || !have_met(); i++) {
        unsigned int flags = seldom(4) ? VIR_INTERNAL_NO_DIRECT : 0;
        int result;

        if (seldom(4)) {
            /* Has no handlers. */
            result = virInternalProcessSetAffinity(
                key(next_random()), self, self, (unsigned char *)&cpus,
                sizeof(cpus), flags);
            if (result != (flags ? VIR_INTERNAL_NOT_HANDLED : 0))
                give_up("SetAffinity returned %d with flags %#x", result, flags);
            atomic_fetch_add(&calls_direct, 1);
            continue;
        }
        result = virInternalProcessSetMaxCoreSize(key(next_random()), self,
                                                  core.rlim_max, flags);
        if (result == 0)
            atomic_fetch_add(&calls_handled, 1);
        else if (result == VIR_INTERNAL_NOT_HANDLED && flags)
            atomic_fetch_add(&calls_not_handled, 1);
        else
            give_up("SetMaxCoreSize returned %d with flags %#x: %s", result,
                    flags, result == -1 ? virInternalGetLastError()->message : "");
    }
    return NULL;
}

/* Sets, replaces and removes; and each time, what was set first is gone,
 * whoever of the others removed it meanwhile. */
static void *change_handlers(void *argument)
{
    (void)argument;
    random_state = gettid();
    for (; operating; atomic_fetch_add(&rounds, 1)) {
        struct _virConnect *conn = key(next_random());
        struct record first = { 0 }, second = { 0 };

        set(conn, &first);
        if (seldom(2))
            sched_yield();
        set(conn, &second);
        check_gone(&first, "replacing it");
        if (unset(conn) != 0)
            give_up("an unset failed: %s", virInternalGetLastError()->message);
        check_gone(&second, "unsetting it");
        /* So that some operations find a handler. */
        set(conn, NULL);
        sched_yield();
    }
    return NULL;
}

static void *close_connections(void *argument)
{
    (void)argument;
    random_state = gettid();
    for (; operating; atomic_fetch_add(&closings, 1)) {
        struct _virConnect *conn = key(1 + next_random() % (KEYS - 1));
        struct record first = { 0 };

        set(conn, &first);
        if (virInternalConnectionClosed(conn) != 0)
            give_up("closing failed: %s", virInternalGetLastError()->message);
        check_gone(&first, "closing its connection");
        usleep(100);
    }
    return NULL;
}

static void test_operations_against_changes(unsigned long operations)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    long callers = cores > 2 ? cores : 2;
    unsigned long each = operations / callers;
    pthread_t calling[callers], changing[callers], closing;

    for (long i = 0; i < callers; i++) {
        pthread_create(&calling[i], NULL, call_operations, &each);
        pthread_create(&changing[i], NULL, change_handlers, NULL);
    }
    pthread_create(&closing, NULL, close_connections, NULL);
    for (long i = 0; i < callers; i++)
        pthread_join(calling[i], NULL);
    operating = false;
    for (long i = 0; i < callers; i++)
        pthread_join(changing[i], NULL);
    pthread_join(closing, NULL);

    /* A free callback may set a handler again, if seldom. */
    for (int again = 0; again < 20; again++)
        for (unsigned int i = 0; i < KEYS; i++)
            unset(key(i));

    printf("%lu handled or direct, %lu with no handler set, %lu not handled; "
           "%lu handlers run, %lu unsets from inside, %lu from free callbacks; "
           "%lu rounds of sets, %lu connections closed; %ld threads each\n",
           calls_handled, calls_direct, calls_not_handled, handlers_run,
           unsets_from_handlers, sets_from_freecbs, rounds, closings, callers);
    /* What was found meanwhile has ended the process: give_up(). */
    print_result(true, "no_handler_runs_after_it_was_removed");
    print_result(true, "a_removed_handler_is_gone_when_its_removal_returns");
    print_result(have_met(), "operations_meet_handlers_that_come_and_go");
    print_result(freed_handlers == successful_sets,
                 "every_handler_is_freed_once: %lu set, %lu freed",
                 successful_sets, freed_handlers);
}

static size_t memory_in_use(void)
{
    return mallinfo2().uordblks;
}

static long resident_kib(void)
{
    long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");

    if (!statm || fscanf(statm, "%*d %ld", &pages) != 1)
        give_up("cannot read /proc/self/statm");
    fclose(statm);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static int open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    if (!directory)
        give_up("cannot read /proc/self/fd");
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void *set_and_unset(void *argument)
{
    unsigned long pairs = *(unsigned long *)argument;

    random_state = gettid();
    for (unsigned long i = 0; i < pairs; i++) {
        struct _virConnect *conn = key(next_random());

        set(conn, NULL);
        if (unset(conn) != 0)
            give_up("an unset failed: %s", virInternalGetLastError()->message);
    }
    return NULL;
}

static void run_on_two_threads(unsigned long pairs)
{
    unsigned long each = pairs / 2;
    pthread_t threads[2];

    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, set_and_unset, &each);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static void test_leaks(unsigned long pairs)
{
    /* In KiB: a stack or two may be in huge pages one time, not the other. */
    enum { BOUND = 64 * 1024, RESIDENT_BOUND = 8 * 1024 };
    size_t before, after;
    long resident_before, resident_after;

    /* What is kept for good is made by now: tables, the allocator's arenas. */
    run_on_two_threads(pairs / 100);
    before = memory_in_use();
    resident_before = resident_kib();
    run_on_two_threads(pairs);
    after = memory_in_use();
    resident_after = resident_kib();
    print_result(after < before + BOUND,
                 "set_and_unset_leaks_no_memory: %zu bytes in use before %lu "
                 "pairs, %zu after",
                 before, pairs, after);
    print_result(resident_after < resident_before + RESIDENT_BOUND,
                 "set_and_unset_does_not_grow_the_process: %ld KiB before, "
                 "%ld KiB after",
                 resident_before, resident_after);
}

int main(int argc, char **argv)
{
    unsigned long operations = argc > 1 ? strtoul(argv[1], NULL, 10) : 8000000;
    unsigned long pairs = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000000;
    int descriptors = open_descriptors();

    self = getpid();
    if (getrlimit(RLIMIT_CORE, &core) != 0
        || sched_getaffinity(0, sizeof(cpus), &cpus) != 0)
        give_up("cannot read this process's own state");
    /* Soft equal to hard: the read-back wants exactly what was asked for. */
    core.rlim_cur = core.rlim_max;
    setrlimit(RLIMIT_CORE, &core);

    test_operations_against_changes(operations);
    test_leaks(pairs);
    print_result(open_descriptors() == descriptors,
                 "no_descriptor_is_left_open: %d before, %d after", descriptors,
                 open_descriptors());
    return failed != 0;
}
