package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// pidFile is a file that names the process of a daemon.
type pidFile struct {
	path    string
	program string // the daemon's name: another process of that number is not meant
}

func (f pidFile) String() string { return f.path }

// pidState is what a pid file says.
type pidState struct {
	exists bool
	pid    int  // 0 where the file names none
	runs   bool // the process lives, and is the program, ours or the old one
}

// read looks at the pid file and at the process that it names.
func (f pidFile) read() pidState {
	b, err := os.ReadFile(f.path)
	if err != nil {
		return pidState{}
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return pidState{exists: true}
	}
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty when there is no such process
	return pidState{true, pid, isProgram(cmdline, f.program)}
}

// isProgram tells a program by its command line: one of its words is the
// program's name. An editor that has an ldirectord.cf open is none.
func isProgram(cmdline []byte, name string) bool {
	words := bytes.FieldsFunc(cmdline, func(r rune) bool { return r == 0 || r == ' ' || r == ':' })
	return slices.ContainsFunc(words, func(w []byte) bool { return filepath.Base(string(w)) == name })
}

// write names this process. It replaces a file only: a device or a link in its
// place is somebody else's.
func (f pidFile) write() error {
	switch i, err := os.Lstat(f.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("look at the pid file: %w", err)
	case !i.Mode().IsRegular():
		return fmt.Errorf("the pid file %s is no file (%s): move it away", f, i.Mode().Type())
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.path), filepath.Base(f.path)+".*")
	if err != nil {
		return fmt.Errorf("make the pid file: %w", err)
	}
	_, err = fmt.Fprintln(tmp, os.Getpid())
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), f.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the pid file: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// remove takes the file away if it still names this process.
func (f pidFile) remove() {
	if f.read().pid == os.Getpid() {
		_ = os.Remove(f.path) // what stays is stale, and seen to be
	}
}

// reportFile is where a daemon tells the process that launched it how that went:
// text for people, and at the end launched if all is well.
const reportFile = 3

var launched = []byte{0}

// errNotLaunched is wrapped when a daemon has ended before it was ready. It has
// said why.
var errNotLaunched = errors.New("the daemon did not start")

// launch starts this program once more, as a daemon with these words for its
// command line, and waits until it has read its configuration and holds its
// lock, or has failed to: then code is its exit code. What it says goes to
// stderr.
func launch(argv []string, stderr io.Writer) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make a pipe to the daemon: %w", err)
	}
	defer r.Close()
	daemon := exec.Command(self)
	// By this name ps, and other programs that read the pid file, know it.
	daemon.Args = argv
	daemon.Dir = "/"
	daemon.ExtraFiles = []*os.File{w}
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The daemon must not keep open what its caller happens to have open: that
	// may wait for the end. Kernels before 5.11 leave it so.
	_ = unix.CloseRange(reportFile, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	err = daemon.Start()
	_ = w.Close() // the daemon has its own
	if err != nil {
		return 0, fmt.Errorf("start the daemon: %w", err)
	}
	said, err := io.ReadAll(r)
	if err != nil {
		return 0, fmt.Errorf("hear from the daemon (pid %d): %w", daemon.Process.Pid, err)
	}
	said, ok := bytes.CutSuffix(said, launched)
	_, _ = stderr.Write(said) // nobody to tell
	if ok {
		return 0, nil
	}
	if err := daemon.Wait(); err == nil || daemon.ProcessState.ExitCode() < 0 {
		return 0, fmt.Errorf("the daemon ended before it was ready (%s)", daemon.ProcessState)
	}
	return daemon.ProcessState.ExitCode(), errNotLaunched
}

// again replaces this process by a new life of it: the same number, the same
// command line, the program as it is on disk now. It returns only an error.
func again() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	// A program that was replaced by a newer one goes by its old name still.
	self = strings.TrimSuffix(self, " (deleted)")
	// The next life of a detached daemon finds a file to report to: nobody
	// listens any more.
	if err := unix.Dup3(2, reportFile, 0); err != nil {
		return fmt.Errorf("start %s anew in place: %w; start it again", self, err)
	}
	if err := unix.Exec(self, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("start %s anew in place: %w; start it again", self, err)
	}
	return nil
}

// launchReport is what the daemon says until it runs; then nobody listens.
type launchReport struct{ to *os.File }

func (r *launchReport) Write(p []byte) (int, error) {
	if r.to == nil {
		return len(p), nil
	}
	return r.to.Write(p)
}

// daemonReport takes over the file through which launch listens.
func daemonReport() *launchReport {
	unix.CloseOnExec(reportFile)
	return &launchReport{os.NewFile(reportFile, "report")}
}

// ready tells launch that all is well, and goes silent.
func (r *launchReport) ready() error {
	_, err := r.to.Write(launched)
	err = errors.Join(err, r.to.Close())
	r.to = nil
	return err
}
