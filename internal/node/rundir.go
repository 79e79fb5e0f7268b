package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runDir is the directory of the socket and the lock. One daemon at a time
// holds it, whatever files it was started with.
type runDir struct {
	path string
	lock *os.File
}

// ErrSecondInstance is wrapped when another daemon holds the run directory.
var ErrSecondInstance = errors.New("another instance holds the run directory")

// openRunDir creates the directory where needed and locks it. The lock goes
// with the process, so a crash leaves none behind.
func openRunDir(path string) (*runDir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make the run directory: %w%s", err, wayOut(err))
	}
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w%s", err, wayOut(err))
	}
	if err := lockFile(f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w %s (pid %s): stop it, or give this one its own --run-dir", ErrSecondInstance, path, lockHolder(f))
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid()) // a courtesy, as above
	}
	return &runDir{path: path, lock: f}, nil
}

// A killed process is gone for its parent a little before its files are closed.
const (
	lockPatience = 5 * time.Second
	lockPause    = 10 * time.Millisecond
)

// lockFile takes the lock. It waits only for a holder that is dying.
func lockFile(f *os.File) error {
	for begin := time.Now(); ; time.Sleep(lockPause) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || alive(lockHolder(f)) || time.Since(begin) > lockPatience {
			return err
		}
	}
}

// lockHolder is the pid that the lock's holder has written, "" if it has not yet.
func lockHolder(f *os.File) string {
	pid := make([]byte, 20)
	n, _ := f.ReadAt(pid, 0) // a courtesy: its absence changes nothing
	return strings.TrimSpace(string(pid[:n]))
}

// alive tells whether a process is there and not about to end: one that is
// has no command line any more (proc(5)).
func alive(pid string) bool {
	line, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	return pid == "" || err == nil && len(line) > 0
}

func wayOut(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "; run as root or choose another directory with --run-dir"
	}
	return ""
}

func (r *runDir) socket() string { return filepath.Join(r.path, "batuta.sock") }

// close gives the directory free for the next daemon.
func (r *runDir) close() error { return r.lock.Close() }
