package director

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
)

const (
	hookLimit = time.Minute     // a command that runs for longer is killed
	hookGrace = 2 * time.Second // and sooner when the director stops
)

// hook is the fallbackcommand of one service. Only the last state matters:
// one that came and went while the command ran is not told.
type hook struct {
	command string
	want    string // start, stop, or "" while that is open
	sent    string // the last that was run
	running bool
}

// fallbackCommand is the command line for one service (spec of ldirectord:
// COMMAND start|stop ADDRESS:PORT tcp|udp|fwm, ":0" for marks).
func fallbackCommand(svc *model.Service, word string) string {
	k := svc.Virtual.Key
	if k.IsMark() {
		return svc.FallbackCommand + " " + word + " :0 fwm"
	}
	return fmt.Sprintf("%s %s %s %s", svc.FallbackCommand, word, k.Addr, k.Proto)
}

// hookWord is what a service's fallbackcommand should have heard.
func (s *state) hookWord(i int) string {
	switch balance.Live(s.health[i]) {
	case model.Up:
		return "stop"
	case model.Down:
		return "start"
	case model.Unknown:
	}
	return ""
}

// callbackCommand is the command line to run after file has changed, or "":
// none is configured, or what is cannot be executed.
func callbackCommand(d *model.Director) (command string, problem error) {
	if d.Callback == "" {
		return "", nil
	}
	info, err := os.Stat(d.Callback)
	switch {
	case err != nil:
		return "", fmt.Errorf("callback=%q is not run: %w", d.Callback, err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return "", fmt.Errorf("callback=%q is not run: it is not executable (chmod +x)", d.Callback)
	}
	return d.Callback + " " + d.File, nil
}

// shell runs a command line with all its children, until ctx ends.
func shell(ctx context.Context, command string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return errors.New("it took too long and was killed")
	}
	return err
}

func hookFailed(command string, err error) model.Event {
	return event(model.LevelWarning, "hook-failed", "", "system(%s) failed: %s", command, strings.TrimSpace(err.Error()))
}

// runHooks runs each fallbackcommand that has not heard the present state,
// one at a time for a service, off this goroutine.
func (r *run) runHooks() {
	if !r.Active() {
		return
	}
	st := r.st
	for k, h := range r.hooks {
		if _, ok := st.index[k]; !ok && !h.running {
			delete(r.hooks, k)
		}
	}
	for i := range st.director.Services {
		svc := &st.director.Services[i]
		k := svc.Virtual.Key
		h := r.hooks[k]
		switch {
		case svc.FallbackCommand == "":
			continue
		case h == nil || (h.command != svc.FallbackCommand && !h.running):
			h = &hook{command: svc.FallbackCommand}
			r.hooks[k] = h
		}
		if h.want = st.hookWord(i); h.running || h.want == "" || h.want == h.sent {
			continue
		}
		h.running, h.sent = true, h.want
		r.shell(hookEnd{service: h, command: fallbackCommand(svc, h.want)})
	}
}

func (r *run) runCallback() {
	if !r.Active() {
		return
	}
	command, err := callbackCommand(&r.st.director)
	switch {
	case err != nil:
		r.emit(event(model.LevelWarning, "hook-failed", "", "%v", err))
	case command == "":
	case r.calling:
		r.callAgain = true
	default:
		r.calling = true
		r.shell(hookEnd{command: command})
	}
}

func (r *run) hookEnded(e hookEnd) {
	if e.err != nil {
		r.emit(hookFailed(e.command, e.err))
	}
	if e.service == nil {
		again := r.callAgain
		r.calling, r.callAgain = false, false
		if again {
			r.runCallback()
		}
		return
	}
	e.service.running = false
	r.runHooks()
}
