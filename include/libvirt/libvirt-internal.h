/*
 * libvirt-internal.h: delegation of libvirt's privileged operations
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Generated from the library's source by `UPDATE_HEADER=1 cargo test --test
 * header`: do not edit.
 */

#ifndef LIBVIRT_INTERNAL_H
# define LIBVIRT_INTERNAL_H

# ifndef VIR_INTERNAL_UNSTABLE_API_OPT_IN
#  error "libvirt-internal's API is not stable: it may change with every release. If your program can live with that, define VIR_INTERNAL_UNSTABLE_API_OPT_IN before you include <libvirt/libvirt-internal.h>"
# endif

# include <stddef.h>
# include <sys/types.h>

/*
 * A process that forks: the process that first called a function of this
 * library is its home. Operations work in its children too, but handlers
 * cannot be set there: daemonize before the first call.
 *
 * Locks: when a set function returns, nobody is inside the old handler any
 * more, so it may wait for one. Do not hold a lock that a handler takes while
 * you call a set function.
 */

# ifdef __cplusplus
extern "C" {
# endif

struct _virConnect;

/**
 * VIR_INTERNAL_CGROUP_THREADS_MAX:
 *
 * How many threads one call of virInternalCgroupAddThreads() can name.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_CGROUP_THREADS_MAX 3000

/**
 * VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION:
 *
 * The version of virInternalCgroupAddThreads() that this header is
 * for: give it to virInternalSetCgroupAddThreadsHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION 1

/**
 * VIR_INTERNAL_DELEGATE_VERSION:
 *
 * The version of the interface to delegates that this header is for: give it
 * to virInternalConnectDelegate().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_DELEGATE_VERSION 1

/**
 * VIR_INTERNAL_DELEGATE_OPTIONAL:
 *
 * A flag of virInternalConnectDelegate(): a delegate that is away (nobody
 * listens at its address, or the connection ended before a request was sent)
 * counts as one that does not handle anything, and the call goes on down the
 * chain. Without it, that is an error; and so it is in any case when this
 * process has no descriptor left to ask with, or may not connect.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_DELEGATE_OPTIONAL (1 << 0)

/**
 * VIR_INTERNAL_CPUMAP_MAX:
 *
 * The longest map of CPUs in bytes: 262144 CPUs.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_CPUMAP_MAX 32768

/**
 * VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION:
 *
 * The version of virInternalProcessSetAffinity() that this header is
 * for: give it to virInternalSetProcessSetAffinityHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION 1

/**
 * VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION:
 *
 * The version of virInternalProcessSetMaxCoreSize() that this header is
 * for: give it to virInternalSetProcessSetMaxCoreSizeHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION 1

/**
 * VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION:
 *
 * The version of virInternalProcessSetMaxFiles() that this header is
 * for: give it to virInternalSetProcessSetMaxFilesHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION 1

/**
 * VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION:
 *
 * The version of virInternalProcessSetMaxMemLock() that this header is
 * for: give it to virInternalSetProcessSetMaxMemLockHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION 1

/**
 * VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION:
 *
 * The version of virInternalProcessSetMaxProcesses() that this header is
 * for: give it to virInternalSetProcessSetMaxProcessesHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION 1

/**
 * VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION:
 *
 * The version of virInternalProcessSetScheduler() that this header is
 * for: give it to virInternalSetProcessSetSchedulerHandler().
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION 1

/**
 * VIR_INTERNAL_HANDLED:
 *
 * A handler's answer: it is done. The library then reads the kernel's state
 * back.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_HANDLED 0

/**
 * VIR_INTERNAL_NOT_HANDLED:
 *
 * A handler's answer: go on down the chain, to the handler set for every
 * connection, to the delegates, and then to the kernel. Also what an operation
 * returns that nobody handled and that was called with VIR_INTERNAL_NO_DIRECT;
 * then nothing was done.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_NOT_HANDLED 1

/**
 * VIR_INTERNAL_NO_DIRECT:
 *
 * A flag of every operation: do not act on the kernel directly. When nobody
 * handles the operation it returns VIR_INTERNAL_NOT_HANDLED, having done
 * nothing, and the caller goes its own way.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_NO_DIRECT (1 << 30)

/**
 * VIR_INTERNAL_HANDLER_FORK_SAFE:
 *
 * A flag of every set function: the handler may be called in a forked child
 * of a process with several threads. There it must not allocate, lock, or use
 * anything that another thread may have held when the child was forked; only
 * what is async-signal-safe is safe.
 *
 * A child of vfork(), or of clone() with CLONE_VM, shares the memory, and
 * nobody waits for a handler that runs in it: its code and @opaque must stay
 * valid as long as such children can be inside.
 *
 * Since: 0.1.0
 */
#define VIR_INTERNAL_HANDLER_FORK_SAFE (1 << 0)

/**
 * virInternalErrorCode:
 *
 * What kind of error it is: the code of a virInternalError.
 *
 * Since: 0.1.0
 */
typedef enum {
    /**
     * An argument is not what the operation takes (EINVAL)
     */
    VIR_INTERNAL_ERR_INVALID_ARG = 1,
    /**
     * The handler was made for another version, or the delegate has another
     * one (EPROTONOSUPPORT)
     */
    VIR_INTERNAL_ERR_VERSION = 2,
    /**
     * The process or thread is not there, or went away (ESRCH)
     */
    VIR_INTERNAL_ERR_NO_PROCESS = 3,
    /**
     * The delegate's policy does not allow it (EPERM)
     */
    VIR_INTERNAL_ERR_REFUSED = 4,
    /**
     * The handler, the delegate or the kernel failed (its errno)
     */
    VIR_INTERNAL_ERR_FAILED = 5,
    /**
     * It was said to be done, the kernel says otherwise (EREMOTEIO)
     */
    VIR_INTERNAL_ERR_READ_BACK = 6,
    /**
     * The delegate cannot be reached (ECONNREFUSED)
     */
    VIR_INTERNAL_ERR_UNREACHABLE = 7,
    /**
     * The delegate was not ready in time, and nothing was sent (ETIMEDOUT)
     */
    VIR_INTERNAL_ERR_TIMEOUT = 8,
    /**
     * Sent to the delegate, never answered (EINPROGRESS)
     */
    VIR_INTERNAL_ERR_UNKNOWN_OUTCOME = 9,
    /**
     * Not possible in a forked child (ECHILD)
     */
    VIR_INTERNAL_ERR_FORKED = 10,
    /**
     * Not supported here (ENOSYS)
     */
    VIR_INTERNAL_ERR_UNSUPPORTED = 11,
} virInternalErrorCode;

/**
 * virInternalOperation:
 *
 * The operations, as they are named in virInternalError.
 *
 * Since: 0.1.0
 */
typedef enum {
    VIR_INTERNAL_OP_PROCESS_SET_MAX_MEM_LOCK = 1,
    VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES = 2,
    VIR_INTERNAL_OP_PROCESS_SET_MAX_FILES = 3,
    VIR_INTERNAL_OP_PROCESS_SET_MAX_CORE_SIZE = 4,
    VIR_INTERNAL_OP_PROCESS_SET_SCHEDULER = 5,
    VIR_INTERNAL_OP_PROCESS_SET_AFFINITY = 6,
    VIR_INTERNAL_OP_CGROUP_ADD_THREADS = 7,
} virInternalOperation;

/**
 * virInternalSchedPolicy:
 *
 * Scheduling policies by libvirt's numbers (virProcessSchedPolicy), not the
 * kernel's. OTHER is not among libvirt's.
 *
 * Since: 0.1.0
 */
typedef enum {
    /**
     * leave as it is: a success with nothing done
     */
    VIR_INTERNAL_SCHED_NONE = 0,
    /**
     * SCHED_BATCH
     */
    VIR_INTERNAL_SCHED_BATCH = 1,
    /**
     * SCHED_IDLE
     */
    VIR_INTERNAL_SCHED_IDLE = 2,
    /**
     * SCHED_FIFO, with a priority from 1 to 99
     */
    VIR_INTERNAL_SCHED_FIFO = 3,
    /**
     * SCHED_RR, with a priority from 1 to 99
     */
    VIR_INTERNAL_SCHED_RR = 4,
    /**
     * SCHED_OTHER
     */
    VIR_INTERNAL_SCHED_OTHER = 256,
} virInternalSchedPolicy;

/**
 * virInternalThreadRole:
 *
 * What the threads of a VM do.
 *
 * Since: 0.1.0
 */
typedef enum {
    VIR_INTERNAL_THREAD_VCPU = 0,
    VIR_INTERNAL_THREAD_EMULATOR = 1,
    VIR_INTERNAL_THREAD_IOTHREAD = 2,
    VIR_INTERNAL_THREAD_HELPER = 3,
} virInternalThreadRole;

/**
 * virInternalCgroupAddThreadsHandler:
 * @pid: the process
 * @group: the cgroup's directory, or NULL when libvirt manages none for the VM
 * @role: what the threads do: a virInternalThreadRole
 * @tids: the ids of the threads
 * @ids: the numbers of the vCPUs or IOThreads, or NULL
 * @ntids: how many threads
 * @cpumap: the CPUs that they should run on, or NULL
 * @maplen: its length in bytes
 * @results: one for each thread, never NULL: 0, or -ESRCH for those that have
 * exited already; to be overwritten with -errno for those that fail
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalCgroupAddThreads(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalCgroupAddThreads() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalCgroupAddThreadsHandler)(pid_t pid,
                                                  const char *group,
                                                  int role,
                                                  const pid_t *tids,
                                                  const unsigned int *ids,
                                                  size_t ntids,
                                                  const unsigned char *cpumap,
                                                  int maplen,
                                                  int *results,
                                                  void *opaque);

/**
 * virInternalFreeCallback:
 * @opaque: what the handler was set with
 *
 * Called exactly once when a handler is gone: it was replaced, unset, or its
 * connection was closed, and nobody is inside it any more. Never called when
 * setting the handler failed. It runs on the thread that removes the handler
 * or on the one that leaves it last, with no lock held, and counts as part of
 * the handler: it must return, and a set function called in it does not wait.
 *
 * Since: 0.1.0
 */
typedef void (*virInternalFreeCallback)(void *opaque);

/**
 * virInternalError:
 *
 * What went wrong in a thread's last call.
 *
 * Since: 0.1.0
 */
typedef struct {
    /**
     * what kind of error: a virInternalErrorCode
     */
    int code;
    /**
     * the errno that the call left
     */
    int errnum;
    /**
     * which operation: a virInternalOperation, 0 when it was none
     */
    unsigned int operation;
    /**
     * what happened, in words; never NULL
     */
    const char *message;
} virInternalError;

/**
 * virInternalErrorPtr:
 *
 * Points to memory of the library's, which is good until the thread's next
 * call of a function of this library, and must not be freed.
 *
 * Since: 0.1.0
 */
typedef virInternalError *virInternalErrorPtr;

/**
 * virInternalSetAffinityHandler:
 * @pid: the process
 * @tid: one of its threads; the same as @pid for its first
 * @cpumap: the CPUs, as in virDomainPinVcpu()
 * @maplen: its length in bytes
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetAffinity(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetAffinity() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalSetAffinityHandler)(pid_t pid,
                                             pid_t tid,
                                             const unsigned char *cpumap,
                                             int maplen,
                                             void *opaque);

/**
 * virInternalSetMaxCoreSizeHandler:
 * @pid: the process
 * @bytes: the largest size in bytes
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetMaxCoreSize(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetMaxCoreSize() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalSetMaxCoreSizeHandler)(pid_t pid,
                                                unsigned long long bytes,
                                                void *opaque);

/**
 * virInternalSetMaxFilesHandler:
 * @pid: the process
 * @files: how many it may have open
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetMaxFiles(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetMaxFiles() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalSetMaxFilesHandler)(pid_t pid,
                                             unsigned int files,
                                             void *opaque);

/**
 * virInternalSetMaxMemLockHandler:
 * @pid: the process
 * @bytes: how much it may lock, in bytes
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetMaxMemLock(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetMaxMemLock() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalSetMaxMemLockHandler)(pid_t pid,
                                               unsigned long long bytes,
                                               void *opaque);

/**
 * virInternalSetMaxProcessesHandler:
 * @pid: the process
 * @processes: how many there may be
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetMaxProcesses(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetMaxProcesses() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalSetMaxProcessesHandler)(pid_t pid,
                                                 unsigned int processes,
                                                 void *opaque);

/**
 * virInternalSetSchedulerHandler:
 * @pid: the process
 * @tid: one of its threads; the same as @pid for its first
 * @policy: a virInternalSchedPolicy, but not VIR_INTERNAL_SCHED_NONE
 * @priority: 1 to 99 for FIFO and RR, otherwise 0
 * @opaque: what the handler was set with
 *
 * Does the work of virInternalProcessSetScheduler(). It may be called by any
 * thread, by several at a time, and no lock of the library is held. libvirt
 * calls it under its lock of that VM: it must not call libvirt on it. Calls of
 * virInternalProcessSetScheduler() from inside skip this handler.
 *
 * It must return: leaving it by a C++ exception, pthread_exit() or longjmp()
 * ends the process.
 *
 * Returns VIR_INTERNAL_HANDLED when it is done, VIR_INTERNAL_NOT_HANDLED to go
 * on down the chain, or -errno when it failed; errno itself is not looked at.
 *
 * Since: 0.1.0
 */
typedef int (*virInternalSetSchedulerHandler)(pid_t pid,
                                              pid_t tid,
                                              int policy,
                                              int priority,
                                              void *opaque);

/**
 * virInternalCgroupAddThreads:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @group: absolute path of the cgroup's directory, or NULL
 * @role: what the threads do: a virInternalThreadRole
 * @tids: the ids of the threads, each one of @pid's
 * @ids: the numbers of the vCPUs or IOThreads in the order of @tids, or NULL
 * @ntids: how many threads, 1 to VIR_INTERNAL_CGROUP_THREADS_MAX
 * @cpumap: the CPUs that the threads should run on, or NULL
 * @maplen: its length in bytes, 1 to VIR_INTERNAL_CPUMAP_MAX, 0 without @cpumap
 * @results: receives 0 or -errno for each thread, or NULL
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Moves threads of one process into a cgroup, v2 or v1. In v2 it writes to
 * cgroup.threads; where only whole processes can be moved (from one domain to
 * another) it writes to cgroup.procs if @tids are all of the process's threads,
 * and fails with EOPNOTSUPP if not. In v1 it writes to tasks.
 *
 * @group NULL means that libvirt manages no cgroup for this VM: a handler is
 * still asked and does its own read-back, directly it is a success with nothing
 * done. @role, @ids and @cpumap are for handlers, the direct way does not look
 * at them.
 *
 * A thread that has exited has -ESRCH in @results, the others are still moved
 * and the call succeeds. Where a thread cannot be moved for another reason, the
 * others are moved as well, @results says which is which, and the call fails
 * with the first such errno. A thread of another process is an error before
 * anything is moved.
 *
 * When the call fails as a whole, each of @results is -errno; a thread that a
 * handler left elsewhere has -EREMOTEIO. They are not looked at nor written
 * when an argument is out of range, and mean nothing when it was not handled.
 *
 * The caller must be able to see the cgroup, for it is opened before a handler
 * is asked. A caller that cannot has @group NULL.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalCgroupAddThreads(struct _virConnect *conn,
                                pid_t pid,
                                const char *group,
                                int role,
                                const pid_t *tids,
                                const unsigned int *ids,
                                size_t ntids,
                                const unsigned char *cpumap,
                                int maplen,
                                int *results,
                                unsigned int flags);

/**
 * virInternalSetCgroupAddThreadsHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_CGROUP_ADD_THREADS_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalCgroupAddThreads(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetCgroupAddThreadsHandler(struct _virConnect *conn,
                                          unsigned int version,
                                          virInternalCgroupAddThreadsHandler handler,
                                          void *opaque,
                                          virInternalFreeCallback freecb,
                                          unsigned int flags);

/**
 * virInternalConnectionClosed:
 * @conn: the connection that was closed, or is about to be
 *
 * Drops everything that was set for @conn: every handler is unset as by its
 * set function, and its delegate disconnected. To be called by whoever closes a connection, since the library
 * only knows its address, which may become that of another one.
 *
 * Called outside any handler, it returns when nobody is inside a handler that
 * was set for @conn and every free callback has returned; do not hold a lock
 * that a handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, also when nothing was set; -1 on error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) when @conn is NULL,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalConnectionClosed(struct _virConnect *conn);

/**
 * virInternalConnectDelegate:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_DELEGATE_VERSION
 * @address: "unix:/path" of a delegate's socket, or "fd:NUMBER", a connected
 * SOCK_SEQPACKET socket that this process was given
 * @timeoutMs: how long a call waits for the delegate, in milliseconds, 0 for
 * 2000; at most 86400000, a day
 * @flags: 0, or VIR_INTERNAL_DELEGATE_OPTIONAL
 *
 * From now on the operations are done by a delegate, when no handler does
 * them: by the one connected for the operation's connection, then by the one
 * connected for every connection. It takes the place of the one that was
 * connected for @conn before. Of a delegate's answers only that it does not
 * handle the operation goes on down the chain; what it refuses is an error.
 *
 * Nothing is sent yet: each thread makes a connection of its own when it first
 * asks, and a new one when the delegate was restarted. It keeps that and a
 * descriptor of the process it asked about last, which are the library's:
 * whoever closes descriptors must not close those of the process it runs in.
 *
 * Over a descriptor there is one connection for all threads, which take turns,
 * and no new one: what does not answer, or not in time, is unreachable from
 * then on. The descriptor is copied, and stays the caller's; nothing of its
 * socket is set. The same one can be connected for several connections; the
 * last disconnect shuts the socket down.
 *
 * When nothing is connected for every connection, the environment variable
 * LIBVIRT_INTERNAL_DELEGATE is the address of that delegate, as it was when the
 * library was first used, with 2000 milliseconds and without a flag. Empty, it
 * names none; what is no address makes each call fail with
 * VIR_INTERNAL_ERR_UNREACHABLE. It is ignored in a process whose credentials
 * were raised when it was started (setuid, file capabilities). A descriptor is
 * not copied, and must stay open; one that is of another socket by the time of
 * a call is not touched.
 *
 * In a forked child, requests go over a new connection each time. Over a
 * descriptor there are none: it is away.
 *
 * Called outside any handler, it returns when nobody waits for the delegate
 * that was connected before. Thread-safe. Not possible in a forked child:
 * daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed:
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's; VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for an @address that is
 * none, a path of more than 107 bytes, a descriptor that is no Unix
 * SOCK_SEQPACKET socket or that the environment names, a @timeoutMs that is out
 * of range, and unknown @flags; VIR_INTERNAL_ERR_FAILED
 * when the descriptor cannot be copied; VIR_INTERNAL_ERR_FORKED (ECHILD) in a
 * forked child.
 *
 * Since: 0.1.0
 */
int virInternalConnectDelegate(struct _virConnect *conn,
                               unsigned int version,
                               const char *address,
                               unsigned int timeoutMs,
                               unsigned int flags);

/**
 * virInternalDisconnectDelegate:
 * @conn: the connection, or NULL for every connection
 *
 * Disconnects the delegate that was connected for @conn, and closes every
 * thread's connection to it. What the environment names stays.
 *
 * Called outside any handler, it returns when nobody waits for the delegate
 * any more. Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, also when none was connected; -1 on error:
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalDisconnectDelegate(struct _virConnect *conn);

/**
 * virInternalGetLastRequest:
 *
 * The calling thread's last request to a delegate that failed with
 * VIR_INTERNAL_ERR_UNKNOWN_OUTCOME: sent, and never answered.
 *
 * Thread-safe, fork-safe.
 *
 * Returns the id of the request, for virInternalAskDelegate(), or 0 when
 * there is none.
 *
 * Since: 0.1.0
 */
unsigned long long virInternalGetLastRequest(void);

/**
 * virInternalAskDelegate:
 * @conn: the connection that the request was made for, or NULL
 * @request: its id, from virInternalGetLastRequest()
 * @flags: 0
 *
 * Asks the delegate what became of a request that it did not answer in time:
 * the one connected for @conn and, when that did not handle it or does not
 * know, the one connected for every connection. A delegate remembers the last
 * 256 requests from the container (or the user) that asks, until it is
 * restarted.
 *
 * The operations set a state and can as well be called again.
 *
 * Thread-safe, fork-safe.
 *
 * Returns 0 when it was done, VIR_INTERNAL_NOT_HANDLED when nothing was done,
 * -1 on error: what the operation itself would have returned, such as
 * VIR_INTERNAL_ERR_REFUSED (EPERM) or VIR_INTERNAL_ERR_FAILED;
 * VIR_INTERNAL_ERR_UNKNOWN_OUTCOME (EINPROGRESS) when it is still being worked
 * on or the delegate does not know; VIR_INTERNAL_ERR_UNREACHABLE
 * (ECONNREFUSED) and VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it cannot be
 * asked, and when no delegate is connected; VIR_INTERNAL_ERR_INVALID_ARG
 * (EINVAL) for a @request of 0 and unknown @flags.
 *
 * Since: 0.1.0
 */
int virInternalAskDelegate(struct _virConnect *conn,
                           unsigned long long request,
                           unsigned int flags);

/**
 * virInternalGetLastError:
 *
 * Tells what went wrong in this thread's last call of a function of this
 * library.
 *
 * In a forked child it works without allocation for up to 64 threads at a
 * time; beyond that it returns NULL and errno is all there is.
 *
 * Thread-safe, fork-safe.
 *
 * Returns the error, or NULL when that call succeeded. It is good until the
 * thread's next call and must not be freed.
 *
 * Since: 0.1.0
 */
virInternalErrorPtr virInternalGetLastError(void);

/**
 * virInternalResetLastError:
 *
 * Makes virInternalGetLastError() return NULL, until this thread's next call
 * that fails.
 *
 * Thread-safe, fork-safe.
 *
 * Since: 0.1.0
 */
void virInternalResetLastError(void);

/**
 * virInternalProcessSetAffinity:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @tid: one of its threads; the same as @pid for its first
 * @cpumap: the CPUs, as in virDomainPinVcpu(): bit n % 8 of byte n / 8 is CPU n
 * @maplen: its length in bytes, 1 to VIR_INTERNAL_CPUMAP_MAX
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Sets the CPUs that one thread may run on, as libvirt's
 * virProcessSetAffinity() does. CPUs that the machine does not have, or that
 * the thread's cpuset does not allow, are left out by the kernel; none at all
 * is an error (EINVAL). @tid must be a thread of @pid, before and after.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalProcessSetAffinity(struct _virConnect *conn,
                                  pid_t pid,
                                  pid_t tid,
                                  const unsigned char *cpumap,
                                  int maplen,
                                  unsigned int flags);

/**
 * virInternalSetProcessSetAffinityHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_AFFINITY_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetAffinity(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetProcessSetAffinityHandler(struct _virConnect *conn,
                                            unsigned int version,
                                            virInternalSetAffinityHandler handler,
                                            void *opaque,
                                            virInternalFreeCallback freecb,
                                            unsigned int flags);

/**
 * virInternalProcessSetMaxCoreSize:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @bytes: the largest size in bytes
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Limits the size of the core file that @pid may leave (RLIMIT_CORE, soft and
 * hard), as libvirt's virProcessSetMaxCoreSize() does. ULLONG_MAX means
 * unlimited.
 *
 * A handler must set exactly this.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalProcessSetMaxCoreSize(struct _virConnect *conn,
                                     pid_t pid,
                                     unsigned long long bytes,
                                     unsigned int flags);

/**
 * virInternalSetProcessSetMaxCoreSizeHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_MAX_CORE_SIZE_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetMaxCoreSize(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetProcessSetMaxCoreSizeHandler(struct _virConnect *conn,
                                               unsigned int version,
                                               virInternalSetMaxCoreSizeHandler handler,
                                               void *opaque,
                                               virInternalFreeCallback freecb,
                                               unsigned int flags);

/**
 * virInternalProcessSetMaxFiles:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @files: how many it may have open
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Limits the files that @pid may have open (RLIMIT_NOFILE, soft and hard). As
 * libvirt's virProcessSetMaxFiles() does, it sets one more than asked; other
 * than there, the sum does not wrap: UINT_MAX sets 4294967296 (where the
 * kernel allows that many). A handler sees @files as it was given, and need
 * not add one.
 *
 * A handler may grant more than was asked for, never less.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalProcessSetMaxFiles(struct _virConnect *conn,
                                  pid_t pid,
                                  unsigned int files,
                                  unsigned int flags);

/**
 * virInternalSetProcessSetMaxFilesHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetMaxFiles(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetProcessSetMaxFilesHandler(struct _virConnect *conn,
                                            unsigned int version,
                                            virInternalSetMaxFilesHandler handler,
                                            void *opaque,
                                            virInternalFreeCallback freecb,
                                            unsigned int flags);

/**
 * virInternalProcessSetMaxMemLock:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @bytes: how much it may lock, in bytes
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Limits the memory that @pid may lock (RLIMIT_MEMLOCK, soft and hard), as
 * libvirt's virProcessSetMaxMemLock() does. 9007199254740991 (libvirt's
 * VIR_DOMAIN_MEMORY_PARAM_UNLIMITED) and more mean unlimited; 0 sets 0.
 *
 * A handler may grant more than was asked for, never less.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalProcessSetMaxMemLock(struct _virConnect *conn,
                                    pid_t pid,
                                    unsigned long long bytes,
                                    unsigned int flags);

/**
 * virInternalSetProcessSetMaxMemLockHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetMaxMemLock(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetProcessSetMaxMemLockHandler(struct _virConnect *conn,
                                              unsigned int version,
                                              virInternalSetMaxMemLockHandler handler,
                                              void *opaque,
                                              virInternalFreeCallback freecb,
                                              unsigned int flags);

/**
 * virInternalProcessSetMaxProcesses:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @processes: how many there may be
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Limits the processes and threads of @pid's user, as @pid sees it
 * (RLIMIT_NPROC, soft and hard), as libvirt's virProcessSetMaxProcesses() does.
 * 0 sets 0.
 *
 * A handler may grant more than was asked for, never less.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalProcessSetMaxProcesses(struct _virConnect *conn,
                                      pid_t pid,
                                      unsigned int processes,
                                      unsigned int flags);

/**
 * virInternalSetProcessSetMaxProcessesHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_MAX_PROCESSES_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetMaxProcesses(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetProcessSetMaxProcessesHandler(struct _virConnect *conn,
                                                unsigned int version,
                                                virInternalSetMaxProcessesHandler handler,
                                                void *opaque,
                                                virInternalFreeCallback freecb,
                                                unsigned int flags);

/**
 * virInternalProcessSetScheduler:
 * @conn: the connection whose handler is asked first, or NULL
 * @pid: the process, 1 or more
 * @tid: one of its threads; the same as @pid for its first
 * @policy: a virInternalSchedPolicy (libvirt's numbers, not the kernel's)
 * @priority: 1 to 99 for FIFO and RR, otherwise not looked at
 * @flags: 0, or VIR_INTERNAL_NO_DIRECT
 *
 * Sets the scheduling policy and priority of one thread, as libvirt's
 * virProcessSetScheduler() does. VIR_INTERNAL_SCHED_NONE is a success with
 * nothing done and nobody asked. @tid must be a thread of @pid, before and
 * after.
 *
 * Asks the handler set for @conn, then the one set for every connection, then
 * the delegate connected for @conn, then the one for every connection, then
 * the kernel directly. When a handler or a delegate says that it is done, the
 * kernel's state is read back.
 *
 * Thread-safe, fork-safe. Do not call it from a signal handler.
 *
 * Returns 0 on success; VIR_INTERNAL_NOT_HANDLED when nobody handled it and
 * @flags has VIR_INTERNAL_NO_DIRECT; -1 on error, with errno and a last error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for arguments that are out of range and
 * unknown @flags, before anything was done; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH)
 * when the process or thread is not there, or went away meanwhile;
 * VIR_INTERNAL_ERR_REFUSED (EPERM) when the delegate's policy does not allow
 * it; VIR_INTERNAL_ERR_FAILED with the errno of the handler, the delegate or
 * the kernel, EPROTO for an answer that is none, ELOOP when 16 handlers are
 * inside one another; VIR_INTERNAL_ERR_READ_BACK (EREMOTEIO) when a handler or
 * a delegate said that it was done and the kernel says otherwise;
 * VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when the delegate has another
 * version of the operation; VIR_INTERNAL_ERR_UNREACHABLE (ECONNREFUSED) when
 * the delegate cannot be reached, VIR_INTERNAL_ERR_TIMEOUT (ETIMEDOUT) when it
 * was not ready in time and nothing was sent, VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
 * (EINPROGRESS) when it was sent and never answered; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child when a handler is set that is not
 * VIR_INTERNAL_HANDLER_FORK_SAFE and no delegate handled it;
 * VIR_INTERNAL_ERR_UNSUPPORTED (ENOSYS) when a handler or a delegate is to be
 * asked and there is no pidfd_open() to hold the process by.
 *
 * Since: 0.1.0
 */
int virInternalProcessSetScheduler(struct _virConnect *conn,
                                   pid_t pid,
                                   pid_t tid,
                                   int policy,
                                   int priority,
                                   unsigned int flags);

/**
 * virInternalSetProcessSetSchedulerHandler:
 * @conn: the connection, or NULL for every connection
 * @version: VIR_INTERNAL_PROCESS_SET_SCHEDULER_VERSION
 * @handler: what does the work from now on, or NULL to unset
 * @opaque: handed to @handler untouched
 * @freecb: called once with @opaque when the handler is gone, or NULL
 * @flags: 0, or VIR_INTERNAL_HANDLER_FORK_SAFE
 *
 * Sets the handler of virInternalProcessSetScheduler(), in the place of the
 * one that was set for @conn. Any thread may set at any time. @conn is an
 * opaque key: it is never dereferenced, and need not be open.
 *
 * Called outside any handler, it returns when nobody is inside the old handler
 * any more and the old free callback has returned: do not hold a lock that a
 * handler takes. Called inside a handler, it does not wait.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns 0 on success, -1 on error, with nothing changed and @freecb not
 * called: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's, VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for unknown @flags,
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalSetProcessSetSchedulerHandler(struct _virConnect *conn,
                                             unsigned int version,
                                             virInternalSetSchedulerHandler handler,
                                             void *opaque,
                                             virInternalFreeCallback freecb,
                                             unsigned int flags);

/**
 * virInternalSecureErase:
 * @buf: the memory, or NULL
 * @len: its length in bytes
 *
 * Overwrites @len bytes at @buf with zeros, in a way that the compiler does
 * not leave out (explicit_bzero()). Does nothing when @buf is NULL.
 *
 * Thread-safe, fork-safe. errno and the last error are left alone.
 *
 * Since: 0.1.0
 */
void virInternalSecureErase(void *buf,
                            size_t len);

/**
 * virInternalSecureEraseString:
 * @str: the string, or NULL
 *
 * Overwrites the bytes of @str up to its NUL with zeros, as
 * virInternalSecureErase() does. Does nothing when @str is NULL.
 *
 * Thread-safe, fork-safe. errno and the last error are left alone.
 *
 * Since: 0.1.0
 */
void virInternalSecureEraseString(char *str);

# ifdef __cplusplus
}
# endif

#endif /* LIBVIRT_INTERNAL_H */
