/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The library as Go and Python programs load it. */
#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "no-malloc.h"
#include "runner.h"

#define LIBRARY "libvirt-internal.so.0"

/* The functions, as they are called when the library was linked. */
static __typeof__(virInternalProcessSetMaxMemLock) *set_max_mem_lock;
static __typeof__(virInternalSetProcessSetMaxMemLockHandler) *set_handler;
static __typeof__(virInternalGetLastError) *get_last_error;

static void *
symbol(void *library, const char *name)
{
    void *found = dlvsym(library, name, "LIBVIRT_INTERNAL_UNSTABLE_1");

    if (!found)
        FAIL("%s: %s", name, dlerror());
    return found;
}

static void *
load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);

    if (!library)
        FAIL("%s", dlerror());
    set_max_mem_lock = symbol(library, "virInternalProcessSetMaxMemLock");
    set_handler = symbol(library, "virInternalSetProcessSetMaxMemLockHandler");
    get_last_error = symbol(library, "virInternalGetLastError");
    return library;
}

static void
require_own_limit(unsigned long long bytes)
{
    struct rlimit limit;

    must(getrlimit(RLIMIT_MEMLOCK, &limit));
    expect_eq_int(limit.rlim_cur, bytes);
    expect_eq_int(limit.rlim_max, bytes);
}

#define expect_success(call) \
    do { \
        expect_eq_int(call, 0); \
        expect_true(get_last_error() == NULL); \
    } while (0)

#define expect_failure(call, error_code, part) \
    do { \
        expect_eq_int(call, -1); \
        expect_true(get_last_error() != NULL); \
        expect_eq_int(get_last_error()->code, error_code); \
        expect_str_contains(get_last_error()->message, part); \
    } while (0)

static int calls;

static int
set_limit(pid_t pid, unsigned long long bytes, void *opaque)
{
    struct rlimit limit = { bytes, bytes };

    expect_true(opaque == &calls);
    calls++;
    must(prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL));
    return VIR_INTERNAL_HANDLED;
}

static int
set(virInternalSetMaxMemLockHandler handler, unsigned int flags)
{
    return set_handler(NULL, VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
                       handler, &calls, NULL, flags);
}

TEST(operations_and_handlers_work)
{
    load();
    expect_success(set_max_mem_lock(NULL, getpid(), 65536, 0));
    require_own_limit(65536);
    expect_failure(set_max_mem_lock(NULL, -1, 0, 0),
                   VIR_INTERNAL_ERR_INVALID_ARG, "pid -1");
    expect_success(set(set_limit, 0));
    expect_success(set_max_mem_lock(NULL, getpid(), 4096, 0));
    expect_eq_int(calls, 1);
    require_own_limit(4096);
    expect_success(set(NULL, 0));
}

TEST(dlclose_does_not_unload_it)
{
    void *library = load();

    expect_success(set(set_limit, 0));
    expect_eq_int(dlclose(library), 0);
    expect_true(dlopen(LIBRARY, RTLD_NOW | RTLD_NOLOAD) != NULL);
    expect_success(set_max_mem_lock(NULL, getpid(), 4096, 0));
    expect_eq_int(calls, 1);
}

TEST(loaded_again_it_is_the_same)
{
    void *function;

    dlclose(load());
    function = (void *) set_max_mem_lock;
    load();
    expect_true((void *) set_max_mem_lock == function);
}

static void *
use_in_thread(void *library)
{
    expect_failure(set_max_mem_lock(NULL, -1, 0, 0),
                   VIR_INTERNAL_ERR_INVALID_ARG, "pid -1");
    expect_success(set(set_limit, 0));
    expect_success(set_max_mem_lock(NULL, getpid(), 4096, 0));
    expect_eq_int(dlclose(library), 0);
    return NULL;
}

/* Its thread-local storage is still there when the thread ends. */
TEST(a_thread_that_used_it_exits_after_dlclose)
{
    for (int i = 0; i < 10; i++) {
        pthread_t thread;

        expect_eq_int(pthread_create(&thread, NULL, use_in_thread, load()), 0);
        expect_eq_int(pthread_join(thread, NULL), 0);
    }
    expect_eq_int(calls, 10);
}

static pid_t
start(void (*body)(void))
{
    pid_t child = must(fork());

    if (child == 0) {
        body();
        _exit(EXIT_SUCCESS);
    }
    return child;
}

static void
do_everything_in_child(void)
{
    expect_success(set_max_mem_lock(NULL, getpid(), 4096, 0));
    expect_eq_int(calls, 1);
    require_own_limit(4096);
    expect_failure(set_max_mem_lock(NULL, -1, 0, 0),
                   VIR_INTERNAL_ERR_INVALID_ARG, "pid -1");
    expect_failure(set(NULL, 0), VIR_INTERNAL_ERR_FORKED, "child");
}

TEST(a_child_does_what_a_child_can_do)
{
    load();
    expect_success(set(set_limit, VIR_INTERNAL_HANDLER_FORK_SAFE));
    expect_child_passes(start(do_everything_in_child));
}

static void
allocate(void)
{
    void *volatile block;

    forbid_malloc();
    block = malloc(1);
    free(block);
}

static void
do_everything_without_malloc(void)
{
    forbid_malloc();
    do_everything_in_child();
}

static void *
fork_in_thread(void *unused)
{
    expect_child_passes(start(do_everything_without_malloc));
    return unused;
}

/* Nor for the thread-local storage of a library that was not there when the
 * program began, which is allocated where it is first used. */
TEST(a_child_of_a_thread_that_never_used_it_allocates_nothing)
{
    pthread_t thread;
    int status;

    if (!malloc_can_be_forbidden())
        SKIP("malloc is valgrind's or a sanitizer's, and cannot be forbidden");
    must(waitpid(start(allocate), &status, 0));
    expect_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    load();
    expect_success(set(set_limit, VIR_INTERNAL_HANDLER_FORK_SAFE));
    expect_eq_int(pthread_create(&thread, NULL, fork_in_thread, NULL), 0);
    expect_eq_int(pthread_join(thread, NULL), 0);
}

static void
use_it_directly(void)
{
    expect_success(set_max_mem_lock(NULL, getpid(), 4096, 0));
    require_own_limit(4096);
}

static void
require_error_for_unsafe_handler(void)
{
    expect_failure(set_max_mem_lock(NULL, getpid(), 4096, 0),
                   VIR_INTERNAL_ERR_FORKED, "forked child");
}

TEST(a_child_goes_directly_or_fails_clearly_after_dlclose)
{
    void *library = load();

    expect_success(set(set_limit, 0));
    expect_success(set(NULL, 0));
    expect_eq_int(dlclose(library), 0);
    expect_child_passes(start(use_it_directly));
    expect_success(set(set_limit, 0));
    expect_child_passes(start(require_error_for_unsafe_handler));
    expect_eq_int(calls, 0);
}
