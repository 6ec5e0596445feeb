// SPDX-License-Identifier: LGPL-2.1-or-later

package loaded

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestTheMainScenarioWithTheLibraryLoadedByDlopen(t *testing.T) {
	if err := Load("no-such-library.so.0"); err == nil {
		t.Fatal("loaded a library that is not there")
	}
	if err := Load("libvirt-internal.so.0"); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	Handler = func(pid int, files uint) int {
		calls.Add(1)
		if files == 2 {
			return -int(syscall.EXDEV)
		}
		return 0
	}
	if err := SetHandler(); err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	for i := 0; i < 8; i++ {
		done.Add(1)
		go func() {
			defer done.Done()
			// This process may open one file: that is so already.
			if err := SetMaxFiles(os.Getpid(), 1); err != nil {
				t.Errorf("failed: %v", err)
			}
			if err := SetMaxFiles(os.Getpid(), 2); err != syscall.EXDEV {
				t.Errorf("the error is %v, expected EXDEV", err)
			}
			// A handler that lies.
			if err := SetMaxFiles(os.Getpid(), 1<<31); err != syscall.EREMOTEIO {
				t.Errorf("the error is %v, expected EREMOTEIO", err)
			}
		}()
	}
	done.Wait()
	if calls.Load() != 8*3 {
		t.Errorf("the handler was called %d times, expected %d", calls.Load(), 8*3)
	}
}

// It comes after the other: the handler stays.
func TestADelegateIsAskedByTheLoadedLibrary(t *testing.T) {
	address := os.Getenv("DELEGATE_ADDRESS")
	if address == "" {
		t.Skip("the delegate's policy here is for root")
	}
	if err := Load("libvirt-internal.so.0"); err != nil {
		t.Fatal(err)
	}
	Handler = func(int, uint) int { return 1 }
	if err := ConnectDelegate("unix:"); err != syscall.EINVAL {
		t.Errorf("the error is %v, expected EINVAL", err)
	}
	if err := ConnectDelegate(address); err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	for i := 0; i < 8; i++ {
		done.Add(1)
		go func() {
			defer done.Done()
			if err := SetMaxFiles(os.Getpid(), 999); err != nil {
				t.Errorf("failed: %v", err)
			}
			if err := SetMaxFiles(os.Getpid(), 1001); err != syscall.EPERM {
				t.Errorf("the error is %v, expected EPERM", err)
			}
		}()
	}
	done.Wait()
}
