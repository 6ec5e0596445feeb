// SPDX-License-Identifier: LGPL-2.1-or-later

package linked

import (
	"os"
	"sync"
	"syscall"
	"testing"
)

// connect connects a delegate until the test ends.
func connect(t *testing.T, conn Conn, address string, flags uint) {
	t.Helper()
	if err := ConnectDelegate(conn, address, flags); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := DisconnectDelegate(conn); err != nil {
			t.Error(err)
		}
	})
}

// connectReal connects the delegate that tests/with-delegate has started.
func connectReal(t *testing.T, conn Conn) {
	t.Helper()
	address := os.Getenv("DELEGATE_ADDRESS")
	if address == "" {
		t.Skip("the delegate's policy here is for root")
	}
	connect(t, conn, address, 0)
}

func TestADelegateDoesIt(t *testing.T) {
	connectReal(t, 0)
	pid := target(t)
	result, err := SetMaxFiles(conn, pid, 100, NoDirect)
	expectSuccess(t, result, err)
	expectFiles(t, pid, 101)
}

func TestWhatADelegateRefusesIsNotDone(t *testing.T) {
	connectReal(t, conn)
	pid := target(t)
	var before syscall.Rlimit
	prlimit(pid, nil, &before)
	_, err := SetMaxFiles(conn, pid, 2000, 0)
	expectError(t, err, ErrRefused, syscall.EPERM, "the delegate refused to ")
	var after syscall.Rlimit
	prlimit(pid, nil, &after)
	if before != after {
		t.Errorf("the limit is %+v, expected %+v", after, before)
	}
}

func TestGoroutinesAskADelegateAtOnce(t *testing.T) {
	connectReal(t, conn)
	var done sync.WaitGroup
	for i := uint(0); i < 16; i++ {
		pid, files := target(t), 100+i
		done.Add(1)
		go func() {
			defer done.Done()
			for n := uint(0); n < 50; n++ {
				if result, err := SetMaxFiles(conn, pid, files-n, NoDirect); result != 0 {
					t.Errorf("returned %d, %v", result, err)
				}
				expectFiles(t, pid, uint64(files-n+1))
				_, err := SetMaxFiles(conn, pid, 2000, 0)
				expectError(t, err, ErrRefused, syscall.EPERM, "refused")
			}
		}()
	}
	done.Wait()
}

func TestARequestThatThereWasNotIsNotKnown(t *testing.T) {
	connectReal(t, conn)
	_, err := AskDelegate(conn, 1)
	expectError(t, err, ErrUnknownOutcome, syscall.EINPROGRESS, "it does not know of that request")
}

func TestADelegateThatIsAwayIsAnErrorUnlessOptional(t *testing.T) {
	pid := target(t)
	connect(t, conn, "unix:/nowhere", 0)
	_, err := SetMaxFiles(conn, pid, 100, 0)
	expectError(t, err, ErrUnreachable, syscall.ECONNREFUSED, "the delegate at unix:/nowhere cannot be reached")
	connect(t, conn, "unix:/nowhere", Optional)
	result, err := SetMaxFiles(conn, pid, 100, NoDirect)
	if result != NotHandled || err != nil {
		t.Errorf("returned %d, %v, expected NotHandled", result, err)
	}
	result, err = SetMaxFiles(conn, pid, 100, 0)
	expectSuccess(t, result, err)
	expectFiles(t, pid, 101)
}
