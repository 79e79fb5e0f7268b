// Package rig is what tests of other rooms stand on: the test binary in
// namespaces of its own, the demand for root, the program as it is shipped, what
// processes have used of processors. A test's needs come in; the test run, or a
// skip with its reason, comes out. It never touches the namespaces that it was
// started in, and nothing but tests imports it.
package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// inside is set in the environment of a test binary that runs in namespaces of
// its own.
const inside = "BATUTA_TEST_INSIDE"

// Inside runs the tests in fresh namespaces (CLONE_NEWNET and the like), by
// starting the whole process again inside: so no thread is left outside. There
// build, which may be nil, comes first. Without root it runs them where they
// are; what needs root skips itself. The result is for os.Exit.
func Inside(m *testing.M, namespaces uintptr, build func() error) int {
	switch {
	case os.Geteuid() != 0:
		return m.Run()
	case os.Getenv(inside) != "":
		_ = os.Unsetenv(inside) // a test binary that a test starts begins anew
		if build != nil {
			if err := build(); err != nil {
				fmt.Fprintln(os.Stderr, "prepare the tests:", err)
				return 1
			}
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig follows the thread
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

// RequireRoot skips a test that needs root, and fails it where
// BATUTA_REQUIRE_ROOT=1 says that a skip would hide something: why says
// what root is needed for.
func RequireRoot(t testing.TB, why string) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("BATUTA_REQUIRE_ROOT") == "1":
		t.Fatalf("needs root (%s), and BATUTA_REQUIRE_ROOT=1 allows no skip", why)
	default:
		t.Skipf("needs root: %s", why)
	}
}

// Program is Batuta as it is shipped, static and without the race detector:
// $BATUTA_BIN, else built once a test binary.
var Program = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("BATUTA_BIN"); b != "" {
		return b, nil
	}
	dir, err := os.MkdirTemp("", "batuta-bin-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "batuta")
	cmd := exec.Command("go", "build", "-o", out, "github.com/batuta-ha/batuta/cmd/batuta")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, text)
	}
	return out, nil
})

// Ran is how long the threads of processes have run, to the nanosecond
// (/proc/PID/task/*/schedstat); those that have ended are not in it.
func Ran(t testing.TB, pids ...int) (all time.Duration) {
	t.Helper()
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("process %d: gone, or a kernel without schedstat (%v)", pid, err)
		}
		for _, name := range threads {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // a thread that has ended
			}
			var ns int64
			if _, err := fmt.Sscan(string(text), &ns); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			all += time.Duration(ns)
		}
	}
	return all
}

// Named is the processes and threads of the kernel of a name, which may be a
// pattern of path.Match: ksoftirqd/0.
func Named(t testing.TB, pattern string) (pids []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		comm, _ := os.ReadFile(name)
		if is, err := path.Match(pattern, strings.TrimSpace(string(comm))); err != nil {
			t.Fatal(err)
		} else if is {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}
