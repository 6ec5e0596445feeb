// SPDX-License-Identifier: LGPL-2.1-or-later
package main

/*
#cgo pkg-config: libvirt-internal
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>

int goHandler(pid_t pid, unsigned long long bytes, void *opaque);
*/
import "C"
import (
	"fmt"
	"os"
	"unsafe"
)

//export goHandler
func goHandler(pid C.pid_t, bytes C.ulonglong, opaque unsafe.Pointer) C.int {
	fmt.Println("process", pid, "is to lock", bytes, "bytes")
	return C.VIR_INTERNAL_NOT_HANDLED // HANDLED if it was done, or -errno
}

func main() {
	C.virInternalSetProcessSetMaxMemLockHandler(nil, C.VIR_INTERNAL_PROCESS_SET_MAX_MEM_LOCK_VERSION,
		(C.virInternalSetMaxMemLockHandler)(C.goHandler), nil, nil, 0)
	var pid, bytes int
	fmt.Sscan(os.Args[1]+" "+os.Args[2], &pid, &bytes)
	if result, err := C.virInternalProcessSetMaxMemLock(nil, C.pid_t(pid), C.ulonglong(bytes), 0); result == -1 {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
