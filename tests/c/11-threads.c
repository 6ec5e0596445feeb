/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Many threads call operations while others set, unset and close. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define CALLERS 4
#define SETTERS 3
#define CONNECTIONS 3
#define MILLISECONDS 1000

/* What a handler is set with: it must be alive in every call of the handler,
 * and its end is written over it. */
#define ALIVE 0x600d600d
#define DEAD 0xdeaddead

typedef struct {
    unsigned int state;
    int answer;
} Opaque;

static int set_count;
static int freed_count;
static int called_count;
static bool stop;

static int
answer(pid_t pid, unsigned long long bytes, void *data)
{
    Opaque *opaque = data;
    struct rlimit limit = { bytes, bytes };

    expect_eq_int(__atomic_load_n(&opaque->state, __ATOMIC_RELAXED), ALIVE);
    if (opaque->answer == VIR_INTERNAL_HANDLED)
        must(prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL));
    sched_yield();
    expect_eq_int(__atomic_load_n(&opaque->state, __ATOMIC_RELAXED), ALIVE);
    __atomic_add_fetch(&called_count, 1, __ATOMIC_RELAXED);
    return opaque->answer;
}

static void
free_opaque(void *data)
{
    Opaque *opaque = data;

    expect_eq_int(opaque->state, ALIVE);
    __atomic_store_n(&opaque->state, DEAD, __ATOMIC_RELAXED);
    free(opaque);
    __atomic_add_fetch(&freed_count, 1, __ATOMIC_RELAXED);
}

static void *
call(void *pid)
{
    unsigned long n = 0;

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        struct _virConnect *conn = CONN(n++ % (CONNECTIONS + 1));
        int result = virInternalProcessSetMaxMemLock(conn, *(pid_t *) pid,
                                                     4096, 0);

        if (result == -1)
            expect_error(result, VIR_INTERNAL_ERR_FAILED, EXDEV, "handler");
        else
            expect_success(result);
    }
    return NULL;
}

static void *
set_and_unset(void *seed)
{
    const int answers[] = {
        VIR_INTERNAL_HANDLED, VIR_INTERNAL_NOT_HANDLED, -EXDEV
    };
    unsigned int random = (unsigned long) seed;

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        struct _virConnect *conn = CONN(rand_r(&random) % (CONNECTIONS + 1));
        Opaque *opaque;

        switch (rand_r(&random) % 4) {
        case 0:
            unset(operations, conn);
            break;
        case 1:
            if (conn)
                expect_success(virInternalConnectionClosed(conn));
            break;
        default:
            opaque = malloc(sizeof(*opaque));
            opaque->state = ALIVE;
            opaque->answer = answers[rand_r(&random) % 3];
            __atomic_add_fetch(&set_count, 1, __ATOMIC_RELAXED);
            expect_success(virInternalSetProcessSetMaxMemLockHandler(
                conn, VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, answer,
                opaque, free_opaque, 0));
        }
    }
    return NULL;
}

static bool
has_begun(void)
{
    return __atomic_load_n(&set_count, __ATOMIC_RELAXED) > 0
        && __atomic_load_n(&called_count, __ATOMIC_RELAXED) > 0;
}

TEST(calls_go_on_while_handlers_come_and_go_and_each_is_freed_once)
{
    Subject subject = subject_start(1);
    pthread_t threads[CALLERS + SETTERS];

    for (unsigned long i = 0; i < CALLERS + SETTERS; i++) {
        void *(*run)(void *) = i < CALLERS ? call : set_and_unset;
        void *data = i < CALLERS ? (void *) &subject.pid : (void *) i;

        expect_eq_int(pthread_create(threads + i, NULL, run, data), 0);
    }
    /* And, however slow the machine is, until a caller has met a handler. */
    for (int ms = 0; ms < MILLISECONDS || !has_begun(); ms++)
        usleep(1000);
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    for (int i = 0; i < CALLERS + SETTERS; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    for (unsigned long i = 0; i <= CONNECTIONS; i++)
        unset(operations, CONN(i));

    expect_true(set_count > 0);
    expect_true(called_count > 0);
    expect_eq_int(freed_count, set_count);
    subject_end(&subject);
}

static void *
unset_once(void *data)
{
    unset(operations, NULL);
    return data;
}

TEST(of_many_that_unset_one_handler_all_return_and_it_is_freed_once)
{
    for (int round = 0; round < 50; round++) {
        Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };
        pthread_t threads[CALLERS];

        set(operations, NULL, &script, 0);
        for (int i = 0; i < CALLERS; i++)
            expect_eq_int(pthread_create(threads + i, NULL, unset_once, NULL),
                          0);
        for (int i = 0; i < CALLERS; i++)
            expect_eq_int(pthread_join(threads[i], NULL), 0);
        expect_eq_int(script.freed, 1);
    }
}

static void *
call_first(void *script)
{
    expect_success(operations->call(NULL, getpid(), 0));
    return script;
}

TEST(many_threads_may_be_the_first_to_use_the_library)
{
    pthread_t threads[CALLERS];

    for (int i = 0; i < CALLERS; i++)
        expect_eq_int(pthread_create(threads + i, NULL, call_first, NULL), 0);
    for (int i = 0; i < CALLERS; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
}
