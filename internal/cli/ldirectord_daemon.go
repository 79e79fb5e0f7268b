package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/node"
)

// launch starts the director as a daemon.
func (l *ldirectordCall) launch() error {
	file, err := filepath.Abs(l.file)
	if err != nil {
		return fmt.Errorf("find %s: %w", l.file, err)
	}
	code, err := launch(slices.Concat([]string{"ldirectord", "--detached=" + l.instance}, l.flags, []string{"--", file, "start"}), l.stderr)
	switch {
	case errors.Is(err, errNotLaunched):
		return l.exit(code, "", err.Error())
	case err != nil:
		return l.exit(exitFailed, err.Error(), errNotLaunched.Error())
	}
	return nil
}

// daemon is the process that launch starts.
func (l *ldirectordCall) daemon(ctx context.Context) error {
	report := daemonReport()
	defer l.pid.remove()
	err := l.foreground(ctx, report, func() error {
		if err := l.pid.write(); err != nil {
			return err
		}
		return report.ready()
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
