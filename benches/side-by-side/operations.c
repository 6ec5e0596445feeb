/* SPDX-License-Identifier: LGPL-2.1-or-later */

#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include "operations.h"

#include <err.h>
#include <libvirt/libvirt-internal.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wrapper.h"

static void must(const char *what, long returned)
{
    if (__builtin_expect(returned < 0, 0))
        errx(EXIT_FAILURE, "%s failed: %ld, errno %m", what, returned);
}

/* A system call without any function around it. */
static inline long raw(long number, long a, long b, long c, long d)
{
#if defined(__x86_64__)
    long returned;
    register long r10 __asm__("r10") = d;

    __asm__ volatile("syscall"
                     : "=a"(returned)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return returned;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;

    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3)
                     : "memory");
    return x0;
#else
# error "write the system call instruction of this processor here"
#endif
}

#define SIDE(function, call) \
    static void function(const struct subject *s, long calls) \
    { \
        while (calls-- > 0) \
            must(#function, call); \
    }

/* Directly: what the library does when no handler is set. */

static inline long raw_memlock(const struct subject *s)
{
    struct rlimit limit = { s->memlock, s->memlock };

    return raw(SYS_prlimit64, s->pid, RLIMIT_MEMLOCK, (long)&limit, 0);
}

static inline long raw_scheduler(const struct subject *s)
{
    struct sched_param parameters = { 0 };

    return raw(SYS_sched_setscheduler, s->tid, SCHED_OTHER,
               (long)&parameters, 0);
}

static inline long raw_affinity(const struct subject *s)
{
    return raw(SYS_sched_setaffinity, s->tid, s->maplen, (long)s->cpumap, 0);
}

SIDE(inline_memlock, raw_memlock(s))
SIDE(inline_scheduler, raw_scheduler(s))
SIDE(inline_affinity, raw_affinity(s))

SIDE(wrapper_memlock, wrapperSetMaxMemLock(s->pid, s->memlock))
SIDE(wrapper_scheduler, wrapperSetScheduler(s->tid, SCHED_OTHER, 0))
SIDE(wrapper_affinity, wrapperSetAffinity(s->tid, s->cpumap, s->maplen))

SIDE(library_memlock,
     virInternalProcessSetMaxMemLock(NULL, s->pid, s->memlock, 0))
SIDE(library_scheduler,
     virInternalProcessSetScheduler(NULL, s->pid, s->tid,
                                    VIR_INTERNAL_SCHED_OTHER, 0, 0))
SIDE(library_affinity,
     virInternalProcessSetAffinity(NULL, s->pid, s->tid, s->cpumap,
                                   s->maplen, 0))

/* With a handler: calling it as a function, with the system calls around it
 * that hold the process by a pidfd and read the kernel's state back. */

static int handle_memlock(pid_t pid, unsigned long long bytes, void *opaque)
{
    (void)opaque;
    return wrapperSetMaxMemLock(pid, bytes);
}

static int handle_scheduler(pid_t pid, pid_t tid, int policy, int priority,
                            void *opaque)
{
    (void)pid, (void)opaque;
    if (policy != VIR_INTERNAL_SCHED_OTHER)
        return VIR_INTERNAL_NOT_HANDLED;
    return wrapperSetScheduler(tid, SCHED_OTHER, priority);
}

static int handle_affinity(pid_t pid, pid_t tid, const unsigned char *cpumap,
                           int maplen, void *opaque)
{
    (void)pid, (void)opaque;
    return wrapperSetAffinity(tid, cpumap, maplen);
}

/* volatile: a handler is called by its address. */
static virInternalSetMaxMemLockHandler volatile memlock_handler =
    handle_memlock;
static virInternalSetSchedulerHandler volatile scheduler_handler =
    handle_scheduler;
static virInternalSetAffinityHandler volatile affinity_handler =
    handle_affinity;

static int hold(const struct subject *s)
{
    int pidfd = syscall(SYS_pidfd_open, s->pid, 0);

    must("pidfd_open", pidfd);
    return pidfd;
}

static int let_go(int pidfd)
{
    struct pollfd poll_pidfd = { .fd = pidfd, .events = POLLIN };
    int exited = poll(&poll_pidfd, 1, 0);

    close(pidfd);
    return -exited;
}

static int function_memlock(const struct subject *s)
{
    struct rlimit limit;
    int pidfd = hold(s);

    must("handler", memlock_handler(s->pid, s->memlock, NULL));
    must("prlimit", prlimit(s->pid, RLIMIT_MEMLOCK, NULL, &limit));
    return let_go(pidfd);
}

static int function_scheduler(const struct subject *s)
{
    /* As large as the kernel's struct sched_attr. */
    unsigned char attributes[56];
    int pidfd = hold(s);

    must("handler", scheduler_handler(s->pid, s->tid,
                                      VIR_INTERNAL_SCHED_OTHER, 0, NULL));
    must("sched_getattr", syscall(SYS_sched_getattr, s->tid, attributes,
                                  sizeof(attributes), 0));
    return let_go(pidfd);
}

static int function_affinity(const struct subject *s)
{
    unsigned char mask[128];
    int pidfd = hold(s);

    must("handler", affinity_handler(s->pid, s->tid, s->cpumap, s->maplen,
                                     NULL));
    must("sched_getaffinity", syscall(SYS_sched_getaffinity, s->tid,
                                      sizeof(mask), mask));
    return let_go(pidfd);
}

/* A child of vfork() has its parent's memory: that it is one, only the kernel
 * can tell. */
static long and_getpid(int done)
{
    must("getpid", syscall(SYS_getpid));
    return done;
}

SIDE(calls_memlock, function_memlock(s))
SIDE(calls_scheduler, function_scheduler(s))
SIDE(calls_affinity, function_affinity(s))

SIDE(getpid_memlock, and_getpid(function_memlock(s)))
SIDE(getpid_scheduler, and_getpid(function_scheduler(s)))
SIDE(getpid_affinity, and_getpid(function_affinity(s)))

#define OPERATION(name, of_process, which) \
    { name, of_process, \
      { { "inline", inline_##which }, \
        { "wrapper", wrapper_##which }, \
        { "library", library_##which } }, \
      { { "calls", calls_##which }, \
        { "+getpid", getpid_##which }, \
        { "library", library_##which } } }

const struct operation operations[NOPERATIONS] = {
    OPERATION("SetMaxMemLock", true, memlock),
    OPERATION("SetScheduler", false, scheduler),
    OPERATION("SetAffinity", false, affinity),
};

struct subject subject_on(int cpu)
{
    struct subject s = { .pid = getpid(), .tid = syscall(SYS_gettid) };
    struct rlimit limit;
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    must("sched_setaffinity", sched_setaffinity(0, sizeof(one), &one));
    s.maplen = sizeof(s.cpumap);
    memcpy(s.cpumap, &one, sizeof(s.cpumap));
    must("getrlimit", getrlimit(RLIMIT_MEMLOCK, &limit));
    s.memlock = limit.rlim_max;
    return s;
}

void set_handlers(void)
{
    must("set", virInternalSetProcessSetMaxMemLockHandler(
        NULL, VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, memlock_handler,
        NULL, NULL, 0));
    must("set", virInternalSetProcessSetSchedulerHandler(
        NULL, VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION, scheduler_handler,
        NULL, NULL, 0));
    must("set", virInternalSetProcessSetAffinityHandler(
        NULL, VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION, affinity_handler,
        NULL, NULL, 0));
}
