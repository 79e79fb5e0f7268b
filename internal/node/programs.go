package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	quickEnd     = 30 * time.Second // a program that lives shorter has failed to start
	quickEnds    = 10               // of them in a row, and it is given up
	programPause = time.Second      // between its end and its next start
	programGrace = 10 * time.Second // from TERM to KILL
	noRespawn    = 100              // exit code of a program that does not want to run again
)

// program is a respawn or failfast line as a task: it starts when the cluster
// can talk, is started again when it ends, and ends with the daemon. Without a
// failfast program the node does not go on; it hands over and ends, where
// Heartbeat resets the machine.
type program struct {
	model.Program
	env    []string
	output io.Writer
	sink   model.Sink
	talks  func() bool // the cluster can talk
	id     *syscall.Credential
	ready  chan struct{}
	runs   atomic.Bool
	pause  time.Duration
}

// errProgramGone is why a node ends that cannot do without a program.
var errProgramGone = errors.New("the failfast program has ended")

// newProgram checks that the program can be started.
func newProgram(p model.Program) (*program, error) {
	word := "respawn"
	if p.Failfast {
		word = "failfast"
	}
	i, err := os.Stat(p.Command[0])
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w; install it, or remove the line from ha.cf", word, p.Command[0], err)
	case !i.Mode().IsRegular() || i.Mode().Perm()&0o111 == 0:
		return nil, fmt.Errorf("%s %s: it is no executable file; chmod +x it, or remove the line from ha.cf", word, p.Command[0])
	}
	id, err := credential(p.User)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; name a user of this machine in ha.cf", word, p.Command[0], err)
	}
	return &program{Program: p, id: id, ready: make(chan struct{}), pause: programPause}, nil
}

// credential is a user with all of its groups; nil for who runs this daemon.
func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("there is no user %q", name)
		}
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	if int(uid) == os.Geteuid() {
		return nil, nil
	}
	id := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	list, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of user %s: %w", name, err)
	}
	for _, g := range list {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			id.Groups = append(id.Groups, uint32(n))
		}
	}
	return id, nil
}

func (p *program) String() string         { return strings.Join(p.Command, " ") }
func (p *program) Ready() <-chan struct{} { return p.ready }

// Run keeps the program alive until ctx ends, and ends it then.
func (p *program) Run(ctx context.Context) error {
	close(p.ready)
	for !p.talks() {
		if !rest(ctx, 100*time.Millisecond) {
			return nil
		}
	}
	for quick := 0; ; {
		began := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var exit *exec.ExitError
		switch {
		case p.Failfast:
			return fmt.Errorf("%w: %s: %s", errProgramGone, p, outcome(err))
		case errors.As(err, &exit) && exit.ExitCode() == noRespawn:
			p.say(model.LevelInfo, "program-done", "%s has ended with %d: it is not started again", p, noRespawn)
			<-ctx.Done()
			return nil
		case time.Since(began) >= quickEnd:
			quick = 0
		}
		if quick++; quick > quickEnds {
			p.say(model.LevelError, "program-given-up", "%s: %s; it has ended %d times at once and is given up: start it by hand to see why, then restart this daemon", p, outcome(err), quick)
			<-ctx.Done()
			return nil
		}
		p.say(model.LevelWarning, "program-ended", "%s: %s; starting it again", p, outcome(err))
		if !rest(ctx, p.pause) {
			return nil
		}
	}
}

// once runs the program to its end, or ends it with ctx.
func (p *program) once(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = p.env, p.output, p.output, "/"
	// It dies with this daemon, also with one that is killed: the next one
	// starts it anew. The signal is that of the thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.id, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = programGrace
	p.say(model.LevelInfo, "program-start", "starting %s as %s", p, p.User)
	p.runs.Store(true)
	defer p.runs.Store(false)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	return <-ended
}

func outcome(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (p *program) say(l model.Level, kind, format string, args ...any) {
	p.sink(model.Event{At: time.Now(), Level: l, Source: "programs", Kind: kind, Subject: p.Command[0], Text: fmt.Sprintf(format, args...)})
}

// rest waits, and tells whether ctx still lives.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
