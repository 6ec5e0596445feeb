/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>
#include <stdio.h>
#include <stdlib.h>

static int ask_helper(pid_t pid, unsigned long long bytes, void *helper) {
    printf("%s: process %d is to lock %llu bytes\n", (char *)helper, pid, bytes);
    return VIR_INTERNAL_NOT_HANDLED; /* HANDLED if it was done, or -errno */
}
int main(int argc, char **argv) {
    virInternalSetProcessSetMaxMemLockHandler(NULL,
        VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, ask_helper, "helper", NULL, 0);
    if (argc == 3 && virInternalProcessSetMaxMemLock(NULL, atoi(argv[1]), atoll(argv[2]), 0) == -1)
        return fprintf(stderr, "%s\n", virInternalGetLastError()->message), 1;
}
