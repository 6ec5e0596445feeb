/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A user's program: a handler sees an operation and passes it on, and the
 * kernel then has what was asked for.
 */
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>

#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

static int
pass_on(pid_t pid, unsigned long long bytes, void *opaque)
{
    (void)pid;
    *(unsigned long long *)opaque = bytes;
    return VIR_INTERNAL_NOT_HANDLED;
}

int
main(void)
{
    unsigned long long seen = 0;
    struct rlimit limit = { 0, 0 };

    if (virInternalSetProcessSetMaxMemLockHandler(NULL,
            VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
            pass_on, &seen, NULL, 0) < 0 ||
        virInternalProcessSetMaxMemLock(NULL, getpid(), 4096, 0) < 0) {
        fprintf(stderr, "%s\n", virInternalGetLastError()->message);
        return 1;
    }
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (seen != 4096 || limit.rlim_max != 4096) {
        fprintf(stderr, "expected 4096; the handler saw %llu, the kernel has %llu\n",
                seen, (unsigned long long)limit.rlim_max);
        return 1;
    }
    return 0;
}
