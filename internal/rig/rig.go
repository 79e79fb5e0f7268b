// Package rig is what tests of other rooms stand on: the test binary in
// namespaces of its own, the demand for root, the program as it is shipped. A
// test's needs come in; the test run, or a skip with its reason, comes out. It
// never touches the namespaces that it was started in, and nothing but tests
// imports it.
package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
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
