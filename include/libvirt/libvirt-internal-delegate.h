/*
 * libvirt-internal-delegate.h: running a delegate inside a program
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Generated from the library's source by `UPDATE_HEADER=1 cargo test --test
 * header`: do not edit.
 */

#ifndef LIBVIRT_INTERNAL_DELEGATE_H
# define LIBVIRT_INTERNAL_DELEGATE_H

# ifndef VIR_INTERNAL_UNSTABLE_API_OPT_IN
#  error "libvirt-internal's API is not stable: it may change with every release. If your program can live with that, define VIR_INTERNAL_UNSTABLE_API_OPT_IN before you include <libvirt/libvirt-internal-delegate.h>"
# endif

# include <libvirt/libvirt-internal.h>
# include <sys/types.h>

/*
 * Only a library that was installed by `install.sh --with-delegate` has these
 * functions.
 */

# ifdef __cplusplus
extern "C" {
# endif

/**
 * virInternalDelegate:
 *
 * A delegate in this process: it listens, and does what other processes ask
 * for, within its policy. For each operation it asks the handlers first that
 * this process has set for every connection (conn NULL), and else makes the
 * system call itself.
 *
 * Since: 0.1.0
 */
typedef struct virInternalDelegate virInternalDelegate;

/**
 * virInternalDelegatePtr:
 *
 * Points to a delegate, from virInternalDelegateNew() until
 * virInternalDelegateFree().
 *
 * Since: 0.1.0
 */
typedef virInternalDelegate *virInternalDelegatePtr;

/**
 * virInternalDelegateNew:
 * @version: VIR_INTERNAL_DELEGATE_VERSION
 * @policy: the file of the policy, see docs/policy.md
 * @audit: the file that gets a line for each operation, or NULL for none
 * @flags: 0
 *
 * Makes a delegate, which serves nobody yet. What is not allowed by the policy
 * is refused.
 *
 * Both files are opened by these names again by virInternalDelegateReload().
 * The audit file is created when it is not there, and written at its end.
 *
 * Thread-safe. Not possible in a forked child: daemonize before first use.
 *
 * Returns the delegate, to be freed by virInternalDelegateFree(), or NULL on
 * error: VIR_INTERNAL_ERR_VERSION (EPROTONOSUPPORT) when @version is not the
 * library's; VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for a policy that has an
 * error, which the message shows with file, line and column, for a @policy
 * that is NULL and unknown @flags; VIR_INTERNAL_ERR_FAILED when a file cannot
 * be opened; VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
virInternalDelegatePtr virInternalDelegateNew(unsigned int version,
                                              const char *policy,
                                              const char *audit,
                                              unsigned int flags);

/**
 * virInternalDelegateListen:
 * @delegate: the delegate
 * @address: "unix:/path" of a socket to make, or "fd:NUMBER", a Unix socket of
 * type SOCK_SEQPACKET that listens already, such as one that systemd made
 * @label: what rules, quotas and audit lines know the peers by that connect
 * there, such as a VM's id, or NULL
 * @flags: 0
 *
 * Listens on an address, besides those that are listened on already. Before
 * and while the delegate runs; connections made before it runs wait.
 *
 * Every user may connect to a socket that is made: what they may have done is
 * said by the policy. A socket's file that a delegate left which is no more is
 * replaced. A descriptor is copied and stays the caller's, but it gets the
 * flag O_NONBLOCK, which its copies share.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error, with nothing changed:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for an @address that is none, a path of
 * more than 107 bytes, a descriptor that is no such socket, a @label of more
 * than 255 bytes, an empty one or one with control characters, and unknown
 * @flags; VIR_INTERNAL_ERR_FAILED when it cannot be listened on, with
 * EADDRINUSE when somebody does already, EEXIST when the path is another kind
 * of file, ECANCELED when the delegate was stopped; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalDelegateListen(virInternalDelegatePtr delegate,
                              const char *address,
                              const char *label,
                              unsigned int flags);

/**
 * virInternalDelegateStopListening:
 * @delegate: the delegate
 * @address: an address, as it was given to virInternalDelegateListen()
 *
 * Stops listening on an address, and ends the connections that were made
 * there, each after what it is doing. When this returns nobody can connect
 * there any more, a socket's file that was made is removed, and the address
 * can be listened on again.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error: VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for
 * an @address that is not listened on; VIR_INTERNAL_ERR_FORKED (ECHILD) in a
 * forked child.
 *
 * Since: 0.1.0
 */
int virInternalDelegateStopListening(virInternalDelegatePtr delegate,
                                     const char *address);

/**
 * virInternalDelegateAddConnection:
 * @delegate: the delegate
 * @fd: a connected Unix socket of type SOCK_SEQPACKET, such as one end of a
 * socketpair
 * @label: what rules, quotas and audit lines know the peer by, or NULL
 * @pidfd: the process at the other end, as pidfd_open() has it
 * @uid: its user id, for the policy
 * @gid: its group id, for the policy
 * @flags: 0
 *
 * Serves one connection more, from now on, be it before or while the delegate
 * runs. The kernel knows of a socketpair who made it, which is not who uses it:
 * that is told here, and believed. The process's cgroup is read now.
 *
 * Both descriptors are copied, and stay the caller's; a copy of @fd should not
 * be kept, because the peer would not see the end of the connection. @fd loses
 * the flag O_NONBLOCK, which copies share.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error, with nothing served:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for an @fd that is no such socket, a
 * @pidfd that is none of a process, a @uid or @gid of -1, a @label as for
 * virInternalDelegateListen(), a process that has no cgroup in the policy's
 * hierarchy, and unknown @flags; VIR_INTERNAL_ERR_NO_PROCESS (ESRCH) when the
 * process has exited; VIR_INTERNAL_ERR_FAILED when there are too many
 * connections (EAGAIN), the delegate was stopped (ECANCELED) or the system
 * fails; VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalDelegateAddConnection(virInternalDelegatePtr delegate,
                                     int fd,
                                     const char *label,
                                     int pidfd,
                                     uid_t uid,
                                     gid_t gid,
                                     unsigned int flags);

/**
 * virInternalDelegateRun:
 * @delegate: the delegate
 *
 * Serves whoever connects, until virInternalDelegateStop(). Each connection has
 * a thread, which inherits the calling thread's signal mask, and calls the
 * process's handlers. Then it stops listening, ends the connections, each
 * after what it is doing, and waits up to 5 seconds for them.
 *
 * A delegate runs once: after a stop it serves nobody any more. This thread
 * cannot be cancelled meanwhile.
 *
 * Not possible in a forked child.
 *
 * Returns 0 when the delegate was stopped, -1 on error: VIR_INTERNAL_ERR_FAILED
 * with EBUSY when it runs already, or another errno when it cannot wait for
 * connections; VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) when @delegate is NULL;
 * VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalDelegateRun(virInternalDelegatePtr delegate);

/**
 * virInternalDelegateStop:
 * @delegate: the delegate
 *
 * Has virInternalDelegateRun() return, now or as soon as it is called. Does not
 * wait for that.
 *
 * Async-signal-safe: a signal handler may call it. So the last error is left
 * alone, and errno unless it fails. Thread-safe. Not possible in a forked
 * child.
 *
 * Returns 0 on success, -1 on error, with errno alone: EINVAL when @delegate is
 * NULL, ECHILD in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalDelegateStop(virInternalDelegatePtr delegate);

/**
 * virInternalDelegateReload:
 * @delegate: the delegate
 *
 * Reads the policy's file again, and puts it in force: for every request from
 * now on. Opens the audit file again, too, which may have been renamed.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns 0 on success, -1 on error, and the policy and the audit file stay
 * what they were: VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) for a policy that has
 * an error, which the message shows with file, line and column, or that means
 * another hierarchy of cgroups; VIR_INTERNAL_ERR_FAILED when a file cannot be
 * opened; VIR_INTERNAL_ERR_FORKED (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
int virInternalDelegateReload(virInternalDelegatePtr delegate);

/**
 * virInternalDelegateGetMetrics:
 * @delegate: the delegate
 *
 * Tells what was counted since the delegate was made: operations by outcome,
 * their time, connections. In the text format of Prometheus.
 *
 * Thread-safe. Not possible in a forked child.
 *
 * Returns the text, to be freed by free(), or NULL on error:
 * VIR_INTERNAL_ERR_INVALID_ARG (EINVAL) when @delegate is NULL;
 * VIR_INTERNAL_ERR_FAILED (ENOMEM) without memory; VIR_INTERNAL_ERR_FORKED
 * (ECHILD) in a forked child.
 *
 * Since: 0.1.0
 */
char *virInternalDelegateGetMetrics(virInternalDelegatePtr delegate);

/**
 * virInternalDelegateFree:
 * @delegate: the delegate, or NULL
 *
 * Frees a delegate which does not run any more, or never did. Stops listening,
 * ends the connections and waits for them, as virInternalDelegateRun() does
 * when it is stopped. Nobody may use it meanwhile or afterwards, and no signal
 * handler; it must not be called in a handler of this library.
 *
 * What a peer sent can block the thread that closes it: such a thread is left
 * to itself after 5 seconds, and needs nothing of what is freed here.
 *
 * In a forked child nothing is done: what the parent has stays as it is. The
 * last error is left alone.
 *
 * Since: 0.1.0
 */
void virInternalDelegateFree(virInternalDelegatePtr delegate);

# ifdef __cplusplus
}
# endif

#endif /* LIBVIRT_INTERNAL_DELEGATE_H */
