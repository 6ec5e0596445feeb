/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the tests of the library share: expectations about its answers,
 * processes to act on, and a table of the operations for what holds of each.
 */

#ifndef SUPPORT_H
# define SUPPORT_H

# define VIR_INTERNAL_UNSTABLE_API_OPT_IN
# include <libvirt/libvirt-internal.h>
# include <sched.h>
# include <sys/resource.h>

# include "runner.h"

# ifdef __cplusplus
extern "C" {
# endif

/* Connections are keys: nobody looks behind the pointer. */
# define CONN(n) ((struct _virConnect *) (0x1000UL * (n)))

/* The call returns 0, and there is no last error. */
# define expect_success(call) \
    support_expect_return(__FILE__, __LINE__, #call, call, 0)

/* The call returns VIR_INTERNAL_NOT_HANDLED, and there is no last error. */
# define expect_not_handled(call) \
    support_expect_return(__FILE__, __LINE__, #call, call, \
                          VIR_INTERNAL_NOT_HANDLED)

/* The call fails with code and errno, and the message contains the part. */
# define expect_error(call, code, errnum, part) \
    support_expect_error(__FILE__, __LINE__, #call, call, code, errnum, part)

void support_expect_return(const char *file, int line, const char *call,
                           int actual, int expected);
void support_expect_error(const char *file, int line, const char *call,
                          int actual, int code, int errnum, const char *part);

/* Formats into static memory, which is used again after TEXT_KEPT bytes: those
 * of any wait in a loop fit into it. */
#define TEXT_KEPT (16 << 20)
__attribute__((format(printf, 1, 2)))
const char *text(const char *format, ...);

/* What belongs to a test has its name: "PREFIX-NUMBER-PID". The number is the
 * runner's: what a killed run has left may be of a test with the same pid. */
const char *name_of_test(const char *prefix, pid_t test);

/* A process that only waits, with as many threads as wanted. */
# define SUBJECT_THREADS_MAX 8

typedef struct {
    pid_t pid;
    size_t nthreads;
    /* The first is the process's id. */
    pid_t tids[SUBJECT_THREADS_MAX];
} Subject;

Subject subject_start(size_t nthreads);
/* SKIPs the test where it may not make a process of another user. */
Subject subject_start_of_another_user(void);
void subject_end_thread(const Subject *subject, size_t index);
void subject_end(const Subject *subject);

/* The id of a process that is no more. */
pid_t pid_of_nobody(void);

/* What the kernel has of all that the operations change. */
typedef struct {
    struct rlimit mem_lock;
    struct rlimit processes;
    struct rlimit files;
    struct rlimit core_size;
    int policy;
    struct sched_param parameters;
    cpu_set_t cpus;
    char cgroups[4096];
} State;

State state_of(pid_t pid, pid_t tid);

/* Nothing has changed since the State was read. */
# define expect_unchanged(state, pid, tid) \
    support_expect_unchanged(__FILE__, __LINE__, state, pid, tid)

void support_expect_unchanged(const char *file, int line, const State *before,
                              pid_t pid, pid_t tid);

# define expect_limit(pid, resource, soft, hard) \
    support_expect_limit(__FILE__, __LINE__, #resource, pid, resource, \
                         soft, hard)

void support_expect_limit(const char *file, int line, const char *what,
                          pid_t pid, int resource,
                          unsigned long long soft, unsigned long long hard);

/* Takes a capability from this thread, if it has it. */
void drop_capability(int capability);

/* Has a system call fail, as container runtimes' filters do. SKIPs the test
 * where there are no filters. */
void refuse_system_call(int number, int errnum);

/* The same for every prlimit() that names a process, with EPERM. setrlimit()
 * is still allowed. */
void forbid_prlimit_by_pid(void);

/*
 * What a handler does that is set for an operation of the table below: it runs
 * @answer, or answers @returns where there is none.
 */
typedef struct Script Script;

struct Script {
    int (*answer)(Script *script);
    int returns;
    /* What @answer finds. */
    pid_t pid;
    void *data;
    /* How often it was called, and its free callback. */
    int calls;
    int freed;
};

/* The free callback of a Script. */
void script_freed(void *script);

typedef struct {
    const char *name;
    unsigned int id;
    unsigned int version;
    /* @script NULL unsets. */
    int (*set)(struct _virConnect *conn, unsigned int version, Script *script,
               virInternalFreeCallback freecb, unsigned int flags);
    /* Asks for something that a fresh process does not have (but for
     * virInternalCgroupAddThreads(), which is called with the group NULL) and
     * that needs no privilege. */
    int (*call)(struct _virConnect *conn, pid_t pid, unsigned int flags);
    /* Does that very thing, without the library. */
    void (*act)(pid_t pid);
    /* Whether it is done. */
    bool (*is_done)(pid_t pid);
} Operation;

# define OPERATIONS 7
extern const Operation operations[OPERATIONS];

# define for_each_operation(operation) \
    for (const Operation *operation = operations; \
         operation < operations + OPERATIONS \
             && (runner_context = operation->name); \
         operation++, runner_context = NULL)

/* Sets a handler, which must succeed. */
void set(const Operation *operation, struct _virConnect *conn, Script *script,
         unsigned int flags);
void unset(const Operation *operation, struct _virConnect *conn);

# ifdef __cplusplus
}
# endif

#endif /* SUPPORT_H */
