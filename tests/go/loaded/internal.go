// SPDX-License-Identifier: LGPL-2.1-or-later

// Package loaded is libvirt-internal for a Go program that must start without
// it: loaded by dlopen(), with the header's types but without linking.
package loaded

/*
#cgo LDFLAGS: -ldl
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>
#include <dlfcn.h>
#include <stdlib.h>

int goLoadedSetMaxFiles(pid_t pid, unsigned int files, void *opaque);

// Go cannot call a function pointer of C's: so each has a function.
static __typeof__(virInternalProcessSetMaxFiles) *set_max_files;
static __typeof__(virInternalSetProcessSetMaxFilesHandler) *set_handler;
static __typeof__(virInternalConnectDelegate) *connect_delegate;

static const char *load(const char *name)
{
    void *library = dlopen(name, RTLD_NOW);

    if (!library
        || !(set_max_files = dlsym(library, "virInternalProcessSetMaxFiles"))
        || !(set_handler = dlsym(library,
                                 "virInternalSetProcessSetMaxFilesHandler"))
        || !(connect_delegate = dlsym(library, "virInternalConnectDelegate")))
        return dlerror();
    return NULL;
}

static int setHandler(void)
{
    return set_handler(NULL, VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION,
                       goLoadedSetMaxFiles, NULL, NULL, 0);
}

static int setMaxFiles(pid_t pid, unsigned int files)
{
    return set_max_files(NULL, pid, files, 0);
}

static int connectDelegate(const char *address)
{
    return connect_delegate(NULL, VIR_INTERNAL_DELEGATE_VERSION, address,
                            60000, 0);
}
*/
import "C"

import (
	"errors"
	"unsafe"
)

// Handler does the work of SetMaxFiles. To be written before SetHandler.
var Handler func(pid int, files uint) int

//export goLoadedSetMaxFiles
func goLoadedSetMaxFiles(pid C.pid_t, files C.uint, _ unsafe.Pointer) C.int {
	return C.int(Handler(int(pid), uint(files)))
}

// Load loads the library.
func Load(name string) error {
	path := C.CString(name)
	defer C.free(unsafe.Pointer(path))
	if problem := C.load(path); problem != nil {
		return errors.New(C.GoString(problem))
	}
	return nil
}

// SetHandler has Handler called from now on.
func SetHandler() error {
	result, errno := C.setHandler()
	return failure(result, errno)
}

// ConnectDelegate has the delegate at address asked from now on.
func ConnectDelegate(address string) error {
	text := C.CString(address)
	defer C.free(unsafe.Pointer(text))
	result, errno := C.connectDelegate(text)
	return failure(result, errno)
}

// SetMaxFiles is virInternalProcessSetMaxFiles(). Its error is the errno.
func SetMaxFiles(pid int, files uint) error {
	result, errno := C.setMaxFiles(C.pid_t(pid), C.uint(files))
	return failure(result, errno)
}

// failure is the errno of a call that did not return 0: of one that did, errno
// says nothing.
func failure(result C.int, errno error) error {
	if result == 0 {
		return nil
	}
	return errno
}
