// SPDX-License-Identifier: LGPL-2.1-or-later

// Package linked is libvirt-internal for Go, linked by cgo: a handler is a Go
// function.
package linked

/*
#cgo LDFLAGS: -lvirt-internal
#define VIR_INTERNAL_UNSTABLE_API_OPT_IN
#include <libvirt/libvirt-internal.h>
#include <stdint.h>
#include <stdlib.h>

int goSetMaxFiles(pid_t pid, unsigned int files, void *opaque);
void goFree(void *opaque);

// Go wants to see no pointer that is none: an opaque and a connection are
// numbers to it.
static int setHandler(uintptr_t conn, unsigned int version, uintptr_t opaque)
{
    return virInternalSetProcessSetMaxFilesHandler(
        (struct _virConnect *)conn, version, goSetMaxFiles, (void *)opaque,
        goFree, 0);
}

static int unsetHandler(uintptr_t conn)
{
    return virInternalSetProcessSetMaxFilesHandler(
        (struct _virConnect *)conn,
        VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION, NULL, NULL, NULL, 0);
}

static int setMaxFiles(uintptr_t conn, pid_t pid, unsigned int files,
                       unsigned int flags)
{
    return virInternalProcessSetMaxFiles((struct _virConnect *)conn, pid, files,
                                         flags);
}

static int connectDelegate(uintptr_t conn, const char *address,
                           unsigned int flags)
{
    return virInternalConnectDelegate(
        (struct _virConnect *)conn, VIR_INTERNAL_DELEGATE_VERSION, address,
        60000, flags);
}

static int disconnectDelegate(uintptr_t conn)
{
    return virInternalDisconnectDelegate((struct _virConnect *)conn);
}

static int askDelegate(uintptr_t conn, unsigned long long request)
{
    return virInternalAskDelegate((struct _virConnect *)conn, request, 0);
}
*/
import "C"

import (
	"fmt"
	"runtime"
	"runtime/cgo"
	"syscall"
	"unsafe"
)

// What an operation or a handler answers.
const (
	Handled    = C.VIR_INTERNAL_HANDLED
	NotHandled = C.VIR_INTERNAL_NOT_HANDLED
	NoDirect   = C.VIR_INTERNAL_NO_DIRECT
)

// Optional is a flag of ConnectDelegate.
const Optional = C.VIR_INTERNAL_DELEGATE_OPTIONAL

// Version is that of the header.
const Version = C.VIR_INTERNAL_PROCESS_SET_MAX_FILES_VERSION

// Codes of errors.
const (
	ErrFailed         = C.VIR_INTERNAL_ERR_FAILED
	ErrReadBack       = C.VIR_INTERNAL_ERR_READ_BACK
	ErrRefused        = C.VIR_INTERNAL_ERR_REFUSED
	ErrUnknownOutcome = C.VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
	ErrUnreachable    = C.VIR_INTERNAL_ERR_UNREACHABLE
	ErrVersion        = C.VIR_INTERNAL_ERR_VERSION
)

// Conn is the address of a connection, or 0 for all.
type Conn uintptr

// Handler does the work of SetMaxFiles, and says when it is gone.
type Handler interface {
	SetMaxFiles(pid int, files uint) int
	Freed()
}

// Error is the last error of a call.
type Error struct {
	Code    int
	Errno   syscall.Errno
	Message string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s (code %d, errno %d)", e.Message, e.Code, e.Errno)
}

//export goSetMaxFiles
func goSetMaxFiles(pid C.pid_t, files C.uint, opaque unsafe.Pointer) C.int {
	handler := cgo.Handle(uintptr(opaque)).Value().(Handler)
	return C.int(handler.SetMaxFiles(int(pid), uint(files)))
}

//export goFree
func goFree(opaque unsafe.Pointer) {
	handle := cgo.Handle(uintptr(opaque))
	handle.Value().(Handler).Freed()
	handle.Delete()
}

// call keeps the goroutine on one thread: the last error is the thread's.
func call(f func() C.int) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	result := f()
	if result != -1 {
		return int(result), nil
	}
	last := C.virInternalGetLastError()
	return -1, &Error{
		Code:    int(last.code),
		Errno:   syscall.Errno(last.errnum),
		Message: C.GoString(last.message),
	}
}

// Set has handler called for conn from now on.
func Set(conn Conn, version uint, handler Handler) error {
	handle := cgo.NewHandle(handler)
	_, err := call(func() C.int {
		return C.setHandler(C.uintptr_t(conn), C.uint(version), C.uintptr_t(handle))
	})
	if err != nil {
		handle.Delete()
	}
	return err
}

// Unset has no handler called for conn any more.
func Unset(conn Conn) error {
	_, err := call(func() C.int { return C.unsetHandler(C.uintptr_t(conn)) })
	return err
}

// SetMaxFiles is virInternalProcessSetMaxFiles().
func SetMaxFiles(conn Conn, pid int, files uint, flags uint) (int, error) {
	return call(func() C.int {
		return C.setMaxFiles(C.uintptr_t(conn), C.pid_t(pid), C.uint(files), C.uint(flags))
	})
}

// ConnectDelegate has the delegate at address asked for conn from now on.
func ConnectDelegate(conn Conn, address string, flags uint) error {
	text := C.CString(address)
	defer C.free(unsafe.Pointer(text))
	_, err := call(func() C.int {
		return C.connectDelegate(C.uintptr_t(conn), text, C.uint(flags))
	})
	return err
}

// DisconnectDelegate has no delegate asked for conn any more.
func DisconnectDelegate(conn Conn) error {
	_, err := call(func() C.int { return C.disconnectDelegate(C.uintptr_t(conn)) })
	return err
}

// AskDelegate is virInternalAskDelegate().
func AskDelegate(conn Conn, request uint64) (int, error) {
	return call(func() C.int {
		return C.askDelegate(C.uintptr_t(conn), C.ulonglong(request))
	})
}
