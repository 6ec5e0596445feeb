/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal-delegate.h>
#include <signal.h>
#include <stdio.h>

static virInternalDelegatePtr delegate;

static void stop(int signal) {
    (void)signal;
    virInternalDelegateStop(delegate);
}
static int look_first(pid_t pid, unsigned long long bytes, void *opaque) {
    (void)opaque;
    printf("process %d is to lock %llu bytes\n", pid, bytes);
    return VIR_INTERNAL_NOT_HANDLED; /* the library does it */
}
int main(int argc, char **argv) {
    if (argc != 3)
        return fprintf(stderr, "usage: %s POLICY ADDRESS\n", argv[0]), 2;
    virInternalSetProcessSetMaxMemLockHandler(NULL,
        VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION, look_first, NULL, NULL, 0);
    delegate = virInternalDelegateNew(VIR_INTERNAL_DELEGATE_VERSION, argv[1], NULL, 0);
    if (!delegate || virInternalDelegateListen(delegate, argv[2], "vm-1", 0) == -1)
        return fprintf(stderr, "%s\n", virInternalGetLastError()->message), 1;
    signal(SIGTERM, stop);
    virInternalDelegateRun(delegate);
    virInternalDelegateFree(delegate);
}
