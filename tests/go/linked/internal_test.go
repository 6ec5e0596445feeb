// SPDX-License-Identifier: LGPL-2.1-or-later

package linked

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"
)

const conn Conn = 0x1000

// counted is a handler that counts its calls and its end.
type counted struct {
	work   func(pid int, files uint) int
	inside atomic.Int32
	calls  atomic.Int32
	freed  atomic.Int32
}

func (h *counted) SetMaxFiles(pid int, files uint) int {
	h.inside.Add(1)
	defer h.inside.Add(-1)
	h.calls.Add(1)
	return h.work(pid, files)
}

func (h *counted) Freed() {
	h.freed.Add(1)
}

func prlimit(pid int, change, old *syscall.Rlimit) int {
	_, _, errno := syscall.RawSyscall6(
		syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_NOFILE,
		uintptr(unsafe.Pointer(change)), uintptr(unsafe.Pointer(old)), 0, 0)
	return -int(errno)
}

// setFiles does the work.
func setFiles(pid int, files uint) int {
	return prlimit(pid, &syscall.Rlimit{Cur: uint64(files), Max: uint64(files)}, nil)
}

// target is a process to act on.
func target(t *testing.T) int {
	process := exec.Command("sleep", "600")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Process.Kill()
		process.Wait()
	})
	return process.Process.Pid
}

func expectFiles(t *testing.T, pid int, files uint64) {
	t.Helper()
	var found syscall.Rlimit
	if prlimit(pid, nil, &found) != 0 || found.Cur != files || found.Max != files {
		t.Errorf("the limit is %+v, expected %d", found, files)
	}
}

func expectSuccess(t *testing.T, result int, err error) {
	t.Helper()
	if result != 0 || err != nil {
		t.Fatalf("returned %d, %v, expected 0", result, err)
	}
}

func expectError(t *testing.T, err error, code int, errno syscall.Errno, text string) {
	t.Helper()
	found, ok := err.(*Error)
	if !ok || found.Code != code || found.Errno != errno || !strings.Contains(found.Message, text) {
		t.Errorf("the error is %v, expected code %d, errno %d, '...%s...'", err, code, errno, text)
	}
}

// set sets a handler until the test ends, and then wants it freed once.
func set(t *testing.T, conn Conn, work func(pid int, files uint) int) *counted {
	t.Helper()
	handler := &counted{work: work}
	if err := Set(conn, Version, handler); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unset(conn); err != nil {
			t.Error(err)
		}
		if freed := handler.freed.Load(); freed != 1 {
			t.Errorf("the handler was freed %d times, expected once", freed)
		}
	})
	return handler
}

func TestWithoutAHandlerTheKernelIsAsked(t *testing.T) {
	pid := target(t)
	result, err := SetMaxFiles(0, pid, 100, 0)
	expectSuccess(t, result, err)
	expectFiles(t, pid, 101)
}

func TestAGoFunctionDoesIt(t *testing.T) {
	pid := target(t)
	handler := set(t, conn, setFiles)
	result, err := SetMaxFiles(conn, pid, 100, 0)
	expectSuccess(t, result, err)
	expectFiles(t, pid, 100)
	if calls := handler.calls.Load(); calls != 1 {
		t.Errorf("the handler was called %d times, expected once", calls)
	}
}

func TestGoroutinesHaveItDoneAtOnce(t *testing.T) {
	handler := set(t, conn, setFiles)
	var done sync.WaitGroup
	for i := uint(0); i < 16; i++ {
		pid, files := target(t), 100+i
		done.Add(1)
		go func() {
			defer done.Done()
			for n := uint(0); n < 50; n++ {
				if result, err := SetMaxFiles(conn, pid, files-n, 0); result != 0 {
					t.Error(err)
				}
				expectFiles(t, pid, uint64(files-n))
			}
		}()
	}
	done.Wait()
	if calls := handler.calls.Load(); calls != 16*50 {
		t.Errorf("the handler was called %d times, expected %d", calls, 16*50)
	}
}

func TestGoroutinesSetAndUnsetMeanwhile(t *testing.T) {
	pid := target(t)
	end := make(chan struct{})
	var callers, changers sync.WaitGroup
	for i := 0; i < 4; i++ {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for {
				select {
				case <-end:
					return
				default:
				}
				if result, err := SetMaxFiles(conn, pid, 1, NoDirect); err != nil {
					t.Errorf("returned %d, %v", result, err)
					return
				}
			}
		}()
	}
	for i := 0; i < 2; i++ {
		changers.Add(1)
		go func() {
			defer changers.Done()
			for n := 0; n < 500; n++ {
				handler := &counted{work: func(int, uint) int { return Handled }}
				if err := Set(conn, Version, handler); err != nil {
					t.Error(err)
				}
				if err := Unset(conn); err != nil {
					t.Error(err)
				}
				inside, freed := handler.inside.Load(), handler.freed.Load()
				if inside != 0 || freed != 1 {
					t.Errorf("after an unset %d are inside and it was freed %d times, expected 0 and 1",
						inside, freed)
				}
			}
		}()
	}
	changers.Wait()
	close(end)
	callers.Wait()
}

func TestACallFromInsideSkipsTheHandler(t *testing.T) {
	pid := target(t)
	handler := set(t, conn, func(pid int, files uint) int {
		if result, err := SetMaxFiles(conn, pid, files+10, 0); result != 0 {
			t.Error(err)
		}
		return Handled
	})
	result, err := SetMaxFiles(conn, pid, 100, 0)
	expectSuccess(t, result, err)
	expectFiles(t, pid, 111)
	if calls := handler.calls.Load(); calls != 1 {
		t.Errorf("the handler was called %d times, expected once", calls)
	}
}

func TestAnUnsetFromInsideDoesNotWait(t *testing.T) {
	pid := target(t)
	var handler *counted
	handler = set(t, conn, func(int, uint) int {
		if err := Unset(conn); err != nil {
			t.Error(err)
		}
		if handler.freed.Load() != 0 {
			t.Error("freed while it was running")
		}
		return NotHandled
	})
	result, err := SetMaxFiles(conn, pid, 100, 0)
	expectSuccess(t, result, err)
	expectFiles(t, pid, 101)
}

func TestAnErrnoIsPassedOn(t *testing.T) {
	pid := target(t)
	set(t, conn, func(int, uint) int { return -int(syscall.EXDEV) })
	_, err := SetMaxFiles(conn, pid, 100, 0)
	expectError(t, err, ErrFailed, syscall.EXDEV,
		fmt.Sprintf("the handler could not limit number of open files of process %d to 100", pid))
}

func TestAHandlerThatLiesIsFoundOut(t *testing.T) {
	pid := target(t)
	set(t, conn, func(pid int, files uint) int { return setFiles(pid, files-1) })
	_, err := SetMaxFiles(conn, pid, 100, 0)
	expectError(t, err, ErrReadBack, syscall.EREMOTEIO, "the kernel says 99 (hard 99)")
}

func TestNoDirectIsNotHandled(t *testing.T) {
	pid := target(t)
	result, err := SetMaxFiles(conn, pid, 100, NoDirect)
	if result != NotHandled || err != nil {
		t.Errorf("returned %d, %v, expected NOT_HANDLED", result, err)
	}
}

func TestAnotherVersionFailsAtOnce(t *testing.T) {
	handler := &counted{work: setFiles}
	err := Set(conn, Version+1, handler)
	expectError(t, err, ErrVersion, syscall.EPROTONOSUPPORT,
		fmt.Sprintf("version %d of virInternalProcessSetMaxFiles", Version+1))
	if freed := handler.freed.Load(); freed != 0 {
		t.Errorf("freed %d times although it was not set", freed)
	}
}
