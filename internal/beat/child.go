package beat

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// child is one life.
type child struct {
	Life
	wire  *wire
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is no more
	how   error         // then: how it ended
}

// start starts the process. It dies with this one, whatever happens: by the
// socket's end and, should it hang, by the kernel's signal. That one comes at
// the end of the thread that started it, which therefore waits for it.
func (l *child) start(shared *os.File) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "beat"), os.NewFile(uintptr(pair[1]), "beat")
	defer theirs.Close()
	defer ours.Close()
	if l.wire, err = newWire(ours); err != nil {
		return err
	}
	// The program of this very process, even if its file was replaced since.
	l.cmd = exec.Command("/proc/self/exe")
	l.cmd.Args = []string{"batuta", Verb}
	l.cmd.Stderr = os.Stderr
	l.cmd.ExtraFiles = []*os.File{theirs, shared}
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		err := l.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if l.how = l.cmd.Wait(); l.how == nil {
			l.how = errEnded
		}
		close(l.ended)
	}()
	if err := <-started; err != nil {
		return errors.Join(err, l.wire.Close())
	}
	return nil
}

// errEnded is how a life ended that ended well.
var errEnded = errors.New("it ended by itself")

// kill ends the process, and returns when it has ended.
func (l *child) kill() {
	_ = l.cmd.Process.Kill() // it may have ended
	<-l.ended
}
