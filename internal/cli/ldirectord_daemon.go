package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/node"
)

// pidFile is the path of a file that names the process of a director.
type pidFile string

// pidState is what a pid file says.
type pidState struct {
	exists bool
	pid    int  // 0 where the file names none
	runs   bool // the process lives, and is an ldirectord, ours or the old one
}

// read looks at the pid file and at the process that it names.
func (f pidFile) read() pidState {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return pidState{}
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return pidState{exists: true}
	}
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty when there is no such process
	return pidState{true, pid, isLdirectord(cmdline)}
}

// isLdirectord tells an ldirectord by its command line: one of its words is the
// program's name. An editor that has an ldirectord.cf open is none.
func isLdirectord(cmdline []byte) bool {
	words := bytes.FieldsFunc(cmdline, func(r rune) bool { return r == 0 || r == ' ' })
	return slices.ContainsFunc(words, func(w []byte) bool { return filepath.Base(string(w)) == "ldirectord" })
}

// write names this process. It replaces a file only: a device or a link in its
// place is somebody else's.
func (f pidFile) write() error {
	switch i, err := os.Lstat(string(f)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("look at the pid file: %w", err)
	case !i.Mode().IsRegular():
		return fmt.Errorf("the pid file %s is no file (%s): move it away", f, i.Mode().Type())
	}
	tmp, err := os.CreateTemp(filepath.Dir(string(f)), filepath.Base(string(f))+".*")
	if err != nil {
		return fmt.Errorf("make the pid file: %w", err)
	}
	_, err = fmt.Fprintln(tmp, os.Getpid())
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), string(f))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the pid file: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// remove takes the file away if it still names this process.
func (f pidFile) remove() {
	if f.read().pid == os.Getpid() {
		_ = os.Remove(string(f)) // what stays is stale, and seen to be
	}
}

// reportFile is where a daemon tells the process that launched it how that went:
// text for people, and at the end launched if all is well.
const reportFile = 3

var launched = []byte{0}

// launch starts this program once more, as a daemon, and waits until it has
// read its configuration and holds its lock, or has failed to.
func (l *ldirectordCall) launch() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	file, err := filepath.Abs(l.file)
	if err != nil {
		return fmt.Errorf("find %s: %w", l.file, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe to the daemon: %w", err)
	}
	defer r.Close()
	daemon := exec.Command(self)
	// By this name ps, and other programs that read the pid file, know it.
	daemon.Args = slices.Concat([]string{"ldirectord", "--detached=" + l.instance}, l.flags, []string{"--", file, "start"})
	daemon.Dir = "/"
	daemon.ExtraFiles = []*os.File{w}
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The daemon must not keep open what its caller happens to have open: that
	// may wait for the end. Kernels before 5.11 leave it so.
	_ = unix.CloseRange(reportFile, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	err = daemon.Start()
	_ = w.Close() // the daemon has its own
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	said, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("hear from the daemon (pid %d): %w", daemon.Process.Pid, err)
	}
	said, ok := bytes.CutSuffix(said, launched)
	_, _ = l.stderr.Write(said) // nobody to tell
	if ok {
		return nil
	}
	if err := daemon.Wait(); err == nil || daemon.ProcessState.ExitCode() < 0 {
		return l.exit(exitFailed, fmt.Sprintf("the daemon ended before it was ready (%s)", daemon.ProcessState), "the daemon did not start")
	}
	return l.exit(daemon.ProcessState.ExitCode(), "", "the daemon did not start")
}

// launchReport is what the daemon says until it runs; then nobody listens.
type launchReport struct{ to *os.File }

func (r *launchReport) Write(p []byte) (int, error) {
	if r.to == nil {
		return len(p), nil
	}
	return r.to.Write(p)
}

// daemon is the process that launch starts.
func (l *ldirectordCall) daemon(ctx context.Context) error {
	unix.CloseOnExec(reportFile)
	report := &launchReport{os.NewFile(reportFile, "report")}
	defer l.pid.remove()
	err := l.foreground(ctx, report, func() error {
		if err := l.pid.write(); err != nil {
			return err
		}
		_, err := report.Write(launched)
		err = errors.Join(err, report.to.Close())
		report.to = nil
		return err
	})
	if err != nil {
		fmt.Fprintln(report, "ldirectord: "+err.Error())
	}
	return err
}

// foreground is the director in this process, until a signal ends it.
func (l *ldirectordCall) foreground(ctx context.Context, stderr io.Writer, ready func() error) error {
	ctx, hangup, done := ldirectordSignals(ctx)
	defer done()
	err := node.RunDirector(ctx, node.DirectorOptions{
		Config: l.file, Name: l.instance, Plane: l.plane, RunDir: l.runDir, StateDir: l.stateDir,
		Stdout: l.stdout, Stderr: stderr, Quiet: true, Debug: l.debug, Hangup: hangup, Ready: ready,
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, node.ErrBadConfig): // it became so since it was read
		return l.exit(exitLdirectordConfig, err.Error(), "Configuration Error")
	}
	return l.exit(exitFailed, err.Error(), err.Error())
}

// endings are the signals that stop ldirectord in good order.
var endings = []os.Signal{
	unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGILL, unix.SIGABRT, unix.SIGFPE,
	unix.SIGSEGV, unix.SIGBUS, unix.SIGSYS, unix.SIGXCPU, unix.SIGXFSZ,
}

// ldirectordSignals is a context that the first signal ends; a second one ends
// the process at once. SIGHUP comes through hangup, SIGPIPE is ignored.
func ldirectordSignals(parent context.Context) (_ context.Context, hangup <-chan struct{}, done func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent)) // parent knows two signals only
	sig := make(chan os.Signal, 4)
	again, over := make(chan struct{}, 1), make(chan struct{})
	signal.Notify(sig, append([]os.Signal{unix.SIGHUP}, endings...)...)
	signal.Ignore(unix.SIGPIPE)
	go func() {
		for {
			select {
			case <-over:
				return
			case s := <-sig:
				if s != unix.SIGHUP {
					signal.Reset(endings...)
					number, _ := s.(unix.Signal) // of what package syscall gives
					cancel(node.StoppedBy(number))
					continue
				}
			}
			select {
			case again <- struct{}{}:
			default: // one is waiting already: it will read the newest file
			}
		}
	}()
	return ctx, again, func() { signal.Stop(sig); close(over); cancel(nil) }
}
