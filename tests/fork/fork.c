/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Children of a process whose threads use the library: of fork(), of a raw
 * clone(), of vfork(), and children of theirs. Each ends in time, allocates
 * nothing, and gets the right answer from every call.
 *
 * Built twice: linked with the library, and (LOAD_BY_DLOPEN) loading it. Only
 * in the second is thread-local storage of the library made at first use.
 *
 *   fork [CHILDREN]    prints PASS or FAIL and the name of each test
 */
#define _GNU_SOURCE
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* How long a child may take before it is said to hang. */
enum { DEADLINE_SECONDS = 300 };

/* The library's functions, without their virInternal. */
#define FUNCTIONS(F)                    \
    F(AskDelegate)                      \
    F(ConnectDelegate)                  \
    F(ConnectionClosed)                 \
    F(DisconnectDelegate)               \
    F(GetLastError)                     \
    F(ResetLastError)                   \
    F(CgroupAddThreads)                 \
    F(ProcessSetAffinity)               \
    F(ProcessSetMaxCoreSize)            \
    F(ProcessSetMaxFiles)               \
    F(ProcessSetMaxMemLock)             \
    F(ProcessSetMaxProcesses)           \
    F(ProcessSetScheduler)              \
    F(SetProcessSetMaxCoreSizeHandler)  \
    F(SetProcessSetMaxFilesHandler)     \
    F(SetProcessSetMaxMemLockHandler)   \
    F(SetProcessSetMaxProcessesHandler)

static struct {
#define MEMBER(name) __typeof__(virInternal##name) *name;
    FUNCTIONS(MEMBER)
} vir;

static void load_library(void)
{
#ifdef LOAD_BY_DLOPEN
    void *library = dlopen("libvirt-internal.so.0", RTLD_NOW);

    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
# define FIND(name) *(void **)&vir.name = dlsym(library, "virInternal" #name);
#else
# define FIND(name) vir.name = virInternal##name;
#endif
    FUNCTIONS(FIND)
}

/* What a child leaves for whoever waits for it, in shared memory. */
struct report {
    const char *step;
    char failure[512];
};

/* The process that runs the tests. */
static pid_t home;
/* The report of the child that this thread is, or makes. */
static __thread struct report *report;
/* How many handlers ran on this thread. */
static __thread int handlers_run;

static struct report *new_report(void)
{
    void *memory = mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return memory;
}

/* Ends a child. */
__attribute__((format(printf, 1, 2), noreturn))
static void fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(report->failure, sizeof(report->failure), format, arguments);
    va_end(arguments);
    _exit(1);
}

/*
 * The allocator of this program, and so of the library: a lock of it may be
 * held for ever in a child.
 */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

static void not_in_a_child(const char *function)
{
    if (home != 0 && getpid() != home)
        fail("%s() was called", function);
}

void *malloc(size_t size)
{
    not_in_a_child("malloc");
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    not_in_a_child("calloc");
    return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
    not_in_a_child("realloc");
    return __libc_realloc(memory, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    not_in_a_child("posix_memalign");
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : ENOMEM;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    not_in_a_child("aligned_alloc");
    return __libc_memalign(alignment, size);
}

void free(void *memory)
{
    not_in_a_child("free");
    __libc_free(memory);
}

/* The kinds of children. */
enum kind { FORK, CLONE, VFORK, KINDS };

static const char *const kind_names[KINDS] = { "fork", "clone", "vfork" };

/*
 * Runs @body in a child and waits for it. Returns whether it went well; if
 * not, the report says what happened.
 */
__attribute__((noinline))
static bool in_child(enum kind kind, void (*body)(void *), void *argument)
{
    volatile pid_t pid;
    int status;

    report->failure[0] = '\0';
    report->step = "start";
    switch (kind) {
    case FORK:
        pid = fork();
        break;
    case CLONE:
        pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
        break;
    default:
        pid = vfork();
        break;
    }
    if (pid == 0) {
        alarm(DEADLINE_SECONDS);
        body(argument);
        _exit(0);
    }
    if (pid < 0) {
        snprintf(report->failure, sizeof(report->failure), "%s: %s",
                 kind_names[kind], strerror(errno));
        return false;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status)) {
        int signal = WTERMSIG(status);

        snprintf(report->failure, sizeof(report->failure),
                 signal == SIGALRM ? "it hangs" : "it was killed by signal %d",
                 signal);
    }
    return status == 0;
}

/* What handlers are set for. The library never looks at what they point to. */
static struct _virConnect *connection(uintptr_t number)
{
    return (struct _virConnect *)(number * 0x1000);
}

/* There is always a handler for these. */
#define STEADY connection(1)
/* Fork-safe handlers that fail with EDOM, and that lie. */
#define FAILING connection(2)
#define LYING connection(3)
/* There is always a delegate for this one, and sometimes for that one, when
 * the tests have an address of one. */
#define DELEGATED connection(20)
#define DELEGATED_SOMETIMES connection(21)
/* Handlers that come and go: NULL and some connections. */
enum { HAMMERED_FIRST = 4, HAMMERED = 4 };

static struct _virConnect *hammered(unsigned int number)
{
    number %= HAMMERED;
    return number == 0 ? NULL : connection(HAMMERED_FIRST + number);
}

/* What handlers get as their opaque. */
struct owner {
    unsigned int magic;
    bool fork_safe;
};

enum { ALIVE = 0x600d, DEAD = 0xdead };

/* In vforked children a handler's opaque must stay: so it is static. */
static struct owner fork_safe_owner = { ALIVE, true };

/* What all handlers do: their job in children, nothing in the tests' process,
 * where only what is so already is asked for. */
static int obey(int resource, pid_t pid, rlim_t value, const struct owner *owner)
{
    struct rlimit limit = { value, value };

    handlers_run++;
    if (getpid() == home) {
        if (owner->magic != ALIVE) {
            fprintf(stderr, "FAIL a handler got an opaque that was freed\n");
            abort();
        }
        return VIR_INTERNAL_HANDLED;
    }
    if (!owner->fork_safe || owner->magic != ALIVE)
        fail("a handler that is not fork-safe was called");
    return prlimit(pid, resource, &limit, NULL) == 0 ? VIR_INTERNAL_HANDLED
                                                     : -errno;
}

static int obey_files(pid_t pid, unsigned int files, void *opaque)
{
    return obey(RLIMIT_NOFILE, pid, files, opaque);
}

static int obey_processes(pid_t pid, unsigned int processes, void *opaque)
{
    return obey(RLIMIT_NPROC, pid, processes, opaque);
}

static int obey_mem_lock(pid_t pid, unsigned long long bytes, void *opaque)
{
    return obey(RLIMIT_MEMLOCK, pid, bytes, opaque);
}

static int fail_files(pid_t pid, unsigned int files, void *opaque)
{
    (void)pid, (void)files, (void)opaque;
    return -EDOM;
}

static int lie_files(pid_t pid, unsigned int files, void *opaque)
{
    (void)pid, (void)files, (void)opaque;
    return VIR_INTERNAL_HANDLED;
}

static void free_owner(void *opaque)
{
    struct owner *owner = opaque;

    if (owner->magic != ALIVE) {
        fprintf(stderr, "FAIL a free callback was called twice\n");
        abort();
    }
    owner->magic = DEAD;
    free(owner);
}

static struct owner *new_owner(void)
{
    struct owner *owner = malloc(sizeof(*owner));

    *owner = (struct owner){ ALIVE, false };
    return owner;
}

#define SET(Operation, OPERATION, conn, handler, opaque, freecb, flags)     \
    vir.SetProcess##Operation##Handler(                                     \
        conn, VIR_INTERNAL_PROCESS_##OPERATION##_VERSION, handler, opaque,  \
        freecb, flags)
#define SET_SAFE(Operation, OPERATION, conn, handler)                \
    SET(Operation, OPERATION, conn, handler, &fork_safe_owner, NULL, \
        VIR_INTERNAL_HANDLER_FORK_SAFE)
#define SET_UNSAFE(Operation, OPERATION, conn, handler) \
    SET(Operation, OPERATION, conn, handler, new_owner(), free_owner, 0)
#define UNSET(Operation, OPERATION, conn) \
    SET(Operation, OPERATION, conn, NULL, NULL, NULL, 0)

/* The steps of a child. */

static void step(const char *name)
{
    report->step = name;
}

static struct rlimit limit_of_self(int resource)
{
    struct rlimit limit;

    if (prlimit(getpid(), resource, NULL, &limit) != 0)
        fail("cannot read back: errno %d", errno);
    return limit;
}

static void expect_limit(int resource, rlim_t value)
{
    struct rlimit limit = limit_of_self(resource);

    if (limit.rlim_cur != value || limit.rlim_max != value)
        fail("the limit is %llu (hard %llu), expected %llu",
             (unsigned long long)limit.rlim_cur,
             (unsigned long long)limit.rlim_max, (unsigned long long)value);
}

static void expect_success(int result)
{
    int errnum = errno;
    virInternalErrorPtr error = vir.GetLastError();

    if (result != 0)
        fail("returned %d, errno %d (%s), expected 0", result, errnum,
             error ? error->message : "no message");
    if (error)
        fail("succeeded, but the last error is '%s'", error->message);
}

static void expect_error(int result, int code, int errnum, const char *text)
{
    int found = errno;
    virInternalErrorPtr error = vir.GetLastError();

    if (result != -1 || found != errnum)
        fail("returned %d, errno %d, expected -1, errno %d", result, found,
             errnum);
    if (!error)
        fail("failed, but there is no last error");
    if (error->code != code || error->errnum != errnum
        || !strstr(error->message, text))
        fail("the last error is %d, errno %d, '%s', expected %d, errno %d, "
             "'...%s...'",
             error->code, error->errnum, error->message, code, errnum, text);
}

/* The address of a delegate, once the tests use it. */
static const char *delegate;

static int connect_delegate(struct _virConnect *conn)
{
    return vir.ConnectDelegate(conn, VIR_INTERNAL_DELEGATE_VERSION, delegate,
                               DEADLINE_SECONDS * 1000, 0);
}

/* As libvirt does: without any descriptor of the parent's. */
static void all_calls_to_delegates(void)
{
    pid_t self = getpid();
    int result;

    syscall(SYS_close_range, 3, ~0U, 0);
    step("a delegate");
    expect_success(vir.ProcessSetMaxCoreSize(DELEGATED, self, 4000,
                                             VIR_INTERNAL_NO_DIRECT));
    expect_limit(RLIMIT_CORE, 4000);
    step("a delegate that refuses");
    expect_error(vir.ProcessSetScheduler(DELEGATED, self, self,
                                         VIR_INTERNAL_SCHED_FIFO, 1, 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused to");
    step("a request that there was not");
    expect_error(vir.AskDelegate(DELEGATED, 1, 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it does not know");
    step("a delegate that comes and goes");
    result = vir.ProcessSetMaxCoreSize(DELEGATED_SOMETIMES, self, 3000,
                                       VIR_INTERNAL_NO_DIRECT);
    if (result == VIR_INTERNAL_NOT_HANDLED) {
        expect_limit(RLIMIT_CORE, 4000);
    } else {
        expect_success(result);
        expect_limit(RLIMIT_CORE, 3000);
    }
    step("connecting and disconnecting");
    expect_error(connect_delegate(DELEGATED), VIR_INTERNAL_ERR_FORKED, ECHILD,
                 "delegates cannot be connected");
    expect_error(vir.DisconnectDelegate(DELEGATED), VIR_INTERNAL_ERR_FORKED,
                 ECHILD, "delegates cannot be disconnected");
}

/* Every call that a child can make. @argument varies what it asks for. */
static void all_calls(void *argument)
{
    unsigned int number = (uintptr_t)argument;
    unsigned int files = 64 + number % 64;
    pid_t self = getpid();
    struct rlimit before;
    cpu_set_t cpus;
    int handled, result;

    step("direct, no handler is set");
    expect_success(vir.ProcessSetMaxCoreSize(NULL, self, 4096 + number, 0));
    expect_limit(RLIMIT_CORE, 4096 + number);
    expect_success(vir.ProcessSetMaxCoreSize(STEADY, self, 4096, 0));
    expect_limit(RLIMIT_CORE, 4096);

    step("a wrong argument, then success");
    expect_error(vir.ProcessSetMaxCoreSize(NULL, 0, 4096, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid 0 is not");
    expect_success(vir.ProcessSetMaxCoreSize(NULL, self, 4096, 0));
    expect_error(vir.ProcessSetMaxCoreSize(NULL, self, 1, 1 << 5),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "unknown flags 0x20");
    vir.ResetLastError();
    if (vir.GetLastError())
        fail("the last error is still there after it was reset");

    step("direct, of a thread");
    if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0)
        fail("sched_getaffinity: errno %d", errno);
    expect_success(vir.ProcessSetAffinity(NULL, self, self,
                                          (unsigned char *)&cpus, sizeof(cpus), 0));
    expect_success(vir.ProcessSetScheduler(NULL, self, self,
                                           VIR_INTERNAL_SCHED_BATCH, 0, 0));
    if (sched_getscheduler(0) != SCHED_BATCH)
        fail("the policy is %d, expected SCHED_BATCH", sched_getscheduler(0));
    expect_success(vir.CgroupAddThreads(NULL, self, NULL, VIR_INTERNAL_THREAD_VCPU,
                                        &self, NULL, 1, NULL, 0, NULL, 0));

    step("a fork-safe handler");
    handled = handlers_run;
    expect_success(vir.ProcessSetMaxFiles(STEADY, self, files, 0));
    if (handlers_run != handled + 1)
        fail("the handler ran %d times, expected once", handlers_run - handled);
    /* The direct way would have set one more. */
    expect_limit(RLIMIT_NOFILE, files);

    step("a fork-safe handler that fails");
    expect_error(vir.ProcessSetMaxFiles(FAILING, self, files, 0),
                 VIR_INTERNAL_ERR_FAILED, EDOM, "the handler could not limit");
    step("a fork-safe handler that lies");
    expect_error(vir.ProcessSetMaxFiles(LYING, self, 1000000, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO, "the kernel says");
    expect_limit(RLIMIT_NOFILE, files);

    step("a handler that is not fork-safe");
    before = limit_of_self(RLIMIT_NPROC);
    expect_error(vir.ProcessSetMaxProcesses(STEADY, self, 5, 0),
                 VIR_INTERNAL_ERR_FORKED, ECHILD,
                 "this is a forked child, and the handler is not "
                 "VIR_INTERNAL_HANDLER_FORK_SAFE");
    if (limit_of_self(RLIMIT_NPROC).rlim_cur != before.rlim_cur)
        fail("failed, but did it all the same");

    step("setting, unsetting and closing");
    expect_error(SET_SAFE(SetMaxFiles, SET_MAX_FILES, STEADY, fail_files),
                 VIR_INTERNAL_ERR_FORKED, ECHILD, "daemonize before");
    expect_error(UNSET(SetMaxFiles, SET_MAX_FILES, STEADY),
                 VIR_INTERNAL_ERR_FORKED, ECHILD, "daemonize before");
    expect_error(vir.ConnectionClosed(STEADY), VIR_INTERNAL_ERR_FORKED, ECHILD,
                 "handlers cannot be unset");
    expect_success(vir.ProcessSetMaxFiles(STEADY, self, files - 1, 0));
    expect_limit(RLIMIT_NOFILE, files - 1);

    step("a handler that comes and goes");
    before = limit_of_self(RLIMIT_MEMLOCK);
    result = vir.ProcessSetMaxMemLock(hammered(number), self, 4096, 0);
    if (result == 0) {
        expect_success(result);
        expect_limit(RLIMIT_MEMLOCK, 4096);
    } else {
        expect_error(result, VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
        if (limit_of_self(RLIMIT_MEMLOCK).rlim_cur != before.rlim_cur)
            fail("failed, but did it all the same");
    }
    if (delegate)
        all_calls_to_delegates();
    step("end");
}

/* As all_calls(), in a child of this child, and then in this one. */
static void all_calls_in_a_grandchild(void *argument)
{
    uintptr_t kind = (uintptr_t)argument;

    if (!in_child((enum kind)kind, all_calls, (void *)kind))
        _exit(1);
    all_calls(argument);
}

/* The tests. */

static int failed;

static void print_result(const char *failure, const char *format, ...)
{
    char name[128];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);
    failed += failure != NULL;
    if (failure)
        printf("FAIL %s: %s\n", name, failure);
    else
        printf("PASS %s\n", name);
    fflush(stdout);
}

/* The last report in words, NULL if it @passed. */
static const char *failure_of(bool passed)
{
    static char text[640];

    if (passed)
        return NULL;
    snprintf(text, sizeof(text), "at '%s': %s", report->step, report->failure);
    return text;
}

/*
 * Puts a handler in the place of its like: a child finds one or the other,
 * never none, and never something of both.
 */
static int set_steady_handler(unsigned int number)
{
    switch (number % 4) {
    case 0:
        return SET_SAFE(SetMaxFiles, SET_MAX_FILES, STEADY, obey_files);
    case 1:
        return SET_SAFE(SetMaxFiles, SET_MAX_FILES, FAILING, fail_files);
    case 2:
        return SET_SAFE(SetMaxFiles, SET_MAX_FILES, LYING, lie_files);
    default:
        return SET_UNSAFE(SetMaxProcesses, SET_MAX_PROCESSES, STEADY,
                          obey_processes);
    }
}

static void set_steady_handlers(void)
{
    for (unsigned int i = 0; i < 4; i++) {
        if (set_steady_handler(i) != 0) {
            printf("FAIL cannot set handlers: %s\n",
                   vir.GetLastError()->message);
            exit(1);
        }
    }
}

static void allocate(void *argument)
{
    (void)argument;
    free(malloc(1));
}

static void test_that_an_allocation_is_noticed(enum kind kind)
{
    bool noticed = !in_child(kind, allocate, NULL)
                   && strstr(report->failure, "malloc() was called");

    print_result(noticed ? NULL : "malloc() in a child went unnoticed",
                 "an_allocation_in_a_child_is_noticed_%s", kind_names[kind]);
}

/* A child whose parent has not used the library is nobody's child to it. */
static void use_first(void *argument)
{
    (void)argument;
    home = getpid();
    step("set");
    expect_success(SET_UNSAFE(SetMaxFiles, SET_MAX_FILES, STEADY, obey_files));
    step("call");
    handlers_run = 0;
    expect_success(vir.ProcessSetMaxFiles(STEADY, home, 0, 0));
    if (handlers_run != 1)
        fail("the handler ran %d times, expected once", handlers_run);
    step("unset");
    expect_success(UNSET(SetMaxFiles, SET_MAX_FILES, STEADY));
}

static void call_directly(void *argument)
{
    (void)argument;
    step("the child's call");
    expect_success(vir.ProcessSetMaxCoreSize(NULL, getpid(), 4096, 0));
    expect_limit(RLIMIT_CORE, 4096);
}

/* A vforked child shares the memory in which the library notes whose it is. */
static void use_after_a_vforked_child(void *argument)
{
    home = getpid();
    if (!in_child(VFORK, call_directly, NULL))
        _exit(1);
    use_first(argument);
}

static void test_the_first_user(void)
{
    for (enum kind kind = FORK; kind <= CLONE; kind++)
        print_result(failure_of(in_child(kind, use_first, NULL)),
                     "a_child_can_be_the_first_user_%s", kind_names[kind]);
    print_result(failure_of(in_child(FORK, use_after_a_vforked_child, NULL)),
                 "a_vforked_child_as_first_user_does_not_lock_its_parent_out");
}

static void test_grandchildren(void)
{
    for (enum kind child = FORK; child < KINDS; child++) {
        /* glibc's fork() is only for children of its own. */
        enum kind first = child == FORK ? FORK : CLONE;

        for (enum kind kind = first; kind < KINDS; kind++) {
            bool passed = in_child(child, all_calls_in_a_grandchild,
                                   (void *)(uintptr_t)kind);

            print_result(failure_of(passed), "a_child_of_a_child_%s_%s",
                         kind_names[child], kind_names[kind]);
        }
    }
}

static void fail_with_another_error(void *argument)
{
    (void)argument;
    step("fail");
    expect_error(vir.ProcessSetMaxFiles(FAILING, getpid(), 1, 0),
                 VIR_INTERNAL_ERR_FAILED, EDOM, "could not");
    step("reset");
    vir.ResetLastError();
    step("succeed");
    expect_success(vir.ProcessSetMaxCoreSize(NULL, getpid(), 4096, 0));
    step("fail again");
    expect_error(vir.ProcessSetMaxFiles(FAILING, getpid(), 1, 0),
                 VIR_INTERNAL_ERR_FAILED, EDOM, "could not");
}

static void test_that_the_last_error_is_the_parents(enum kind kind)
{
    bool passed;
    virInternalErrorPtr error;

    vir.ProcessSetMaxCoreSize(NULL, -7, 0, 0);
    passed = in_child(kind, fail_with_another_error, NULL);
    error = vir.GetLastError();
    if (passed && (!error || !strstr(error->message, "pid -7"))) {
        snprintf(report->failure, sizeof(report->failure),
                 "the parent's last error was 'pid -7...', now it is '%s'",
                 error ? error->message : "none");
        passed = false;
    }
    if (passed) {
        vir.ResetLastError();
        passed = in_child(kind, fail_with_another_error, NULL);
    }
    if (passed && (error = vir.GetLastError())) {
        snprintf(report->failure, sizeof(report->failure),
                 "the parent had no last error, now it is '%s'", error->message);
        passed = false;
    }
    print_result(failure_of(passed), "a_child_has_a_last_error_of_its_own_%s",
                 kind_names[kind]);
}

/* A handler that forks, and what its child then does. */
struct forking_handler {
    enum kind kind;
    void (*child)(void *);
    bool passed;
};

static int fork_in_handler(pid_t pid, unsigned long long bytes, void *opaque)
{
    struct forking_handler *handler = opaque;

    (void)pid, (void)bytes;
    if (getpid() != home)
        fail("a handler was called by a child that was forked inside it");
    handler->passed = in_child(handler->kind, handler->child, NULL);
    return VIR_INTERNAL_NOT_HANDLED;
}

/* "Calls from inside skip this handler." */
static void call_from_inside(void *argument)
{
    (void)argument;
    step("the operation whose handler forked");
    expect_success(vir.ProcessSetMaxCoreSize(STEADY, getpid(), 8192, 0));
    expect_limit(RLIMIT_CORE, 8192);
}

static void calls_from_inside(void *argument)
{
    call_from_inside(argument);
    step("another operation's fork-safe handler");
    expect_success(vir.ProcessSetMaxFiles(STEADY, getpid(), 50, 0));
    expect_limit(RLIMIT_NOFILE, 50);
    step("a direct operation");
    expect_success(vir.ProcessSetScheduler(NULL, getpid(), getpid(),
                                           VIR_INTERNAL_SCHED_BATCH, 0, 0));
}

static bool run_forking_handler(enum kind kind, void (*child)(void *),
                                unsigned int flags)
{
    struct forking_handler handler = { kind, child, false };
    int result;

    SET(SetMaxCoreSize, SET_MAX_CORE_SIZE, STEADY, fork_in_handler, &handler,
        NULL, flags);
    result = vir.ProcessSetMaxCoreSize(STEADY, home, 0, VIR_INTERNAL_NO_DIRECT);
    UNSET(SetMaxCoreSize, SET_MAX_CORE_SIZE, STEADY);
    if (handler.passed && result != VIR_INTERNAL_NOT_HANDLED) {
        snprintf(report->failure, sizeof(report->failure),
                 "the parent's call returned %d, expected NOT_HANDLED", result);
        return false;
    }
    return handler.passed;
}

static void test_a_child_forked_inside_a_handler(enum kind kind)
{
    bool passed = run_forking_handler(kind, calls_from_inside, 0);

    print_result(failure_of(passed), "a_child_forked_inside_a_handler_skips_it_%s",
                 kind_names[kind]);
    passed = run_forking_handler(kind, call_from_inside,
                                 VIR_INTERNAL_HANDLER_FORK_SAFE);
    print_result(failure_of(passed),
                 "a_child_forked_inside_a_fork_safe_handler_skips_it_%s",
                 kind_names[kind]);
}

/* More vforked children at a time than there are places for last errors. */
enum { CROWD = 70, PLACES = 64 };

static atomic_int crowd_failed, crowd_errors;

static void be_one_of_a_crowd(void *argument)
{
    virInternalErrorPtr error;
    char expected[32];
    pid_t pid = -1000 - (pid_t)(uintptr_t)argument;
    int result, errnum;

    step("fail");
    result = vir.ProcessSetMaxCoreSize(NULL, pid, 0, 0);
    errnum = errno;
    if (result != -1 || errnum != EINVAL)
        fail("returned %d, errno %d, expected -1, EINVAL", result, errnum);
    step("wait for the others");
    atomic_fetch_add(&crowd_failed, 1);
    while (atomic_load(&crowd_failed) < CROWD)
        usleep(1000);
    step("read the last error");
    error = vir.GetLastError();
    snprintf(expected, sizeof(expected), "pid %d ", (int)pid);
    if (error && !strstr(error->message, expected))
        fail("the last error is '%s', expected '%s...'", error->message,
             expected);
    atomic_fetch_add(&crowd_errors, error != NULL);
}

/* The report, if the child did not pass. */
static void *vfork_one_of_a_crowd(void *argument)
{
    report = new_report();
    return in_child(VFORK, be_one_of_a_crowd, argument) ? NULL : report;
}

static void test_a_crowd_of_vforked_children(void)
{
    const char *failure = NULL;
    char text[128];
    pthread_t threads[CROWD];
    void *result;

    for (uintptr_t i = 0; i < CROWD; i++)
        pthread_create(&threads[i], NULL, vfork_one_of_a_crowd, (void *)i);
    for (int i = 0; i < CROWD; i++) {
        pthread_join(threads[i], &result);
        if (result)
            failure = ((struct report *)result)->failure;
    }
    if (!failure && crowd_errors != PLACES) {
        snprintf(text, sizeof(text), "%d children had a last error, expected %d",
                 crowd_errors, PLACES);
        failure = text;
    }
    print_result(failure, "vforked_children_at_a_time_have_their_own_errors");
}

/* Threads that keep every lock of the library busy. */

static atomic_bool hammering = true;
static atomic_ulong sets, calls;

static unsigned int next_random(unsigned int *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 16;
}

/* Less of the CPU than the children get. */
static void step_back(void)
{
    setpriority(PRIO_PROCESS, gettid(), 15);
}

static void *hammer_handlers(void *argument)
{
    unsigned int random = (uintptr_t)argument;

    step_back();
    for (; hammering; atomic_fetch_add(&sets, 1)) {
        struct _virConnect *conn = hammered(next_random(&random));
        int result;

        switch (next_random(&random) % 14) {
        case 0:
            result = UNSET(SetMaxMemLock, SET_MAX_MEM_LOCK, conn);
            break;
        case 1:
        case 2:
            result = SET_SAFE(SetMaxMemLock, SET_MAX_MEM_LOCK, conn,
                              obey_mem_lock);
            break;
        case 3:
            result = SET_UNSAFE(SetMaxMemLock, SET_MAX_MEM_LOCK, conn,
                                obey_mem_lock);
            break;
        case 4:
            result = SET_SAFE(SetMaxFiles, SET_MAX_FILES, conn, obey_files);
            break;
        case 5:
            result = UNSET(SetMaxFiles, SET_MAX_FILES, conn);
            break;
        case 6:
            result = SET_UNSAFE(SetMaxProcesses, SET_MAX_PROCESSES, conn,
                                obey_processes);
            break;
        case 7:
            result = conn ? vir.ConnectionClosed(conn) : 0;
            break;
        case 8:
            result = delegate ? connect_delegate(DELEGATED_SOMETIMES) : 0;
            break;
        case 9:
            result = vir.DisconnectDelegate(DELEGATED_SOMETIMES);
            break;
        default:
            result = set_steady_handler(next_random(&random));
        }
        if (result != 0) {
            fprintf(stderr, "FAIL a set in the parent: %s\n",
                    vir.GetLastError()->message);
            abort();
        }
    }
    return NULL;
}

static void *hammer_operations(void *argument)
{
    unsigned int random = (uintptr_t)argument;
    struct rlimit core = limit_of_self(RLIMIT_CORE);

    step_back();
    for (; hammering; atomic_fetch_add(&calls, 1)) {
        struct _virConnect *conn = hammered(next_random(&random));
        const unsigned int flags = VIR_INTERNAL_NO_DIRECT;
        int result, expected = 0;

        if (delegate && next_random(&random) % 2) {
            conn = next_random(&random) % 2 ? DELEGATED : DELEGATED_SOMETIMES;
            result = vir.ProcessSetMaxCoreSize(conn, home, core.rlim_max, 0);
        } else switch (next_random(&random) % 6) {
        case 0:
            result = vir.ProcessSetMaxCoreSize(conn, home, core.rlim_max, 0);
            break;
        case 1:
            result = vir.ProcessSetMaxCoreSize(conn, 0, 0, 0);
            expected = -1;
            break;
        case 2:
            result = vir.ProcessSetMaxFiles(STEADY, home, 0, flags);
            break;
        case 3:
            result = vir.ProcessSetMaxProcesses(STEADY, home, 0, flags);
            break;
        default:
            result = vir.ProcessSetMaxMemLock(conn, home, 0, flags);
            expected = result == VIR_INTERNAL_NOT_HANDLED ? result : 0;
        }
        if (result != expected) {
            fprintf(stderr, "FAIL a call in the parent returned %d: %s\n",
                    result, vir.GetLastError()->message);
            abort();
        }
    }
    return NULL;
}

/* A thread that forks, and what became of its children. */
struct forker {
    unsigned int children;
    /* Or does it call the library for the first time in a child? */
    bool uses_library;
    unsigned int failures[KINDS];
    char first_failure[KINDS][640];
};

/* What only a thread that calls the library in the parent can lose. */
static bool has_own_error(void)
{
    virInternalErrorPtr error = vir.GetLastError();

    return error && strstr(error->message, "pid -9");
}

static void *fork_repeatedly(void *argument)
{
    struct forker *forker = argument;

    report = new_report();
    if (forker->uses_library)
        vir.ProcessSetMaxCoreSize(NULL, -9, 0, 0);
    for (uintptr_t i = 0; i < forker->children; i++) {
        enum kind kind = i % KINDS;
        bool passed = in_child(kind, all_calls, (void *)(i / KINDS));

        if (passed && forker->uses_library && !has_own_error()) {
            step("end");
            strcpy(report->failure, "the parent has lost its last error");
            passed = false;
        }
        if (!passed && forker->failures[kind]++ == 0)
            snprintf(forker->first_failure[kind],
                     sizeof(forker->first_failure[kind]), "at '%s': %s",
                     report->step, report->failure);
    }
    return NULL;
}

static void test_children_of_a_busy_process(unsigned int children)
{
    const char *with = delegate ? "with" : "without";
    struct forker forkers[2] = {
        { .children = children / 2, .uses_library = true },
        { .children = children - children / 2 },
    };
    pthread_t forking[2], hammers[4];

    sets = calls = 0;
    hammering = true;
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&hammers[i], NULL,
                       i % 2 ? hammer_operations : hammer_handlers,
                       (void *)(i + 1));
    for (int i = 0; i < 2; i++)
        pthread_create(&forking[i], NULL, fork_repeatedly, &forkers[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(forking[i], NULL);
    hammering = false;
    for (int i = 0; i < 4; i++)
        pthread_join(hammers[i], NULL);

    for (int i = 0; i < 2; i++) {
        for (enum kind kind = FORK; kind < KINDS; kind++) {
            char text[700];
            unsigned int failures = forkers[i].failures[kind];

            snprintf(text, sizeof(text), "%u children, the first %s", failures,
                     forkers[i].first_failure[kind]);
            print_result(failures ? text : NULL,
                         "children_of_a_busy_process_%s_delegates_%s_by_a_"
                         "thread_that_%s", with, kind_names[kind],
                         forkers[i].uses_library ? "uses_the_library"
                                                 : "has_not_used_it");
        }
    }
    printf("%u children, while the parent made %lu sets and %lu calls\n",
           children, sets, calls);
}

int main(int argc, char **argv)
{
    unsigned int children = argc > 1 ? strtoul(argv[1], NULL, 10) : 10000;

    load_library();
    report = new_report();
    test_the_first_user();

    home = getpid();
    set_steady_handlers();
    for (enum kind kind = FORK; kind < KINDS; kind++) {
        test_that_an_allocation_is_noticed(kind);
        test_that_the_last_error_is_the_parents(kind);
        test_a_child_forked_inside_a_handler(kind);
    }
    test_grandchildren();
    test_a_crowd_of_vforked_children();
    test_children_of_a_busy_process(children);
    delegate = getenv("DELEGATE_ADDRESS");
    if (!delegate) {
        printf("SKIP children that ask delegates: only root is served\n");
        return failed != 0;
    }
    if (connect_delegate(DELEGATED) != 0) {
        printf("FAIL cannot connect: %s\n", vir.GetLastError()->message);
        return 1;
    }
    test_children_of_a_busy_process(children);
    return failed != 0;
}
