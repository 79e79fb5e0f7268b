package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/model"
)

// eventScripts runs what an administrator has put into rc.d: the script of a
// message's type, with the message in its environment, one at a time. What
// Heartbeat's own scripts of these names do is built in: those are never run.
// Nothing waits for a script, neither beats nor resources.
type eventScripts struct {
	options agent.ScriptOptions
	sink    model.Sink
	queue   chan eventCall
	ready   chan struct{}
	limit   time.Duration

	states map[model.NodeName]model.NodeState // that were told; the caller's of hear
	full   bool                               // the same: that was told
}

// eventCall is one call to come.
type eventCall struct {
	model.Message
	self, lone string // own status before; "yes" when no other node is active
}

const (
	maxEvents  = 256         // that wait for a slow script; more are left out
	eventLimit = time.Minute // a script that takes longer is ended
)

func newEventScripts(o agent.ScriptOptions, sink model.Sink) *eventScripts {
	return &eventScripts{options: o, sink: sink, queue: make(chan eventCall, maxEvents), ready: make(chan struct{}), limit: eventLimit,
		states: map[model.NodeName]model.NodeState{}}
}

func (s *eventScripts) String() string         { return "event scripts" }
func (s *eventScripts) Ready() <-chan struct{} { return s.ready }

// hear notes what a cluster event calls for. It does not block.
func (s *eventScripts) hear(e model.ClusterEvent) {
	call := eventCall{lone: "yes"}
	for _, n := range e.View.Nodes {
		switch {
		case n.Name == e.View.Self:
			call.self = n.State.String()
		case n.State == model.NodeActive:
			call.lone = ""
		}
	}
	for _, n := range e.View.Nodes {
		before, known := s.states[n.Name]
		s.states[n.Name] = n.State
		if n.Name == e.View.Self || n.State == before || !known && n.State == model.NodeInit {
			continue
		}
		call.Message = model.Message{Type: "status", From: n.Name, Fields: []model.Field{{Name: "st", Value: n.State.String()}}}
		if n.Ping {
			call.Fields = append(call.Fields, model.Field{Name: "info", Value: "ping"})
		}
		s.put(call)
	}
	if e.Kind == model.MessageReceived && e.Message.Type != "status" {
		call.Message = e.Message
		s.put(call)
	}
}

func (s *eventScripts) put(c eventCall) {
	select {
	case s.queue <- c:
		s.full = false
	default:
		if !s.full {
			s.full = true
			s.say(model.LevelWarning, "event-left-out", c.Type, "a script of rc.d is so slow that %d events wait for it: more are left out", maxEvents)
		}
	}
}

// Run calls the scripts until ctx ends.
func (s *eventScripts) Run(ctx context.Context) error {
	close(s.ready)
	told := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-s.queue:
			file, ok := s.find(c.Type)
			switch {
			case !ok:
			case ofPackage(file):
				if !told[file] {
					told[file] = true
					s.say(model.LevelDebug, "event-script-idle", c.Type, "%s is Heartbeat's own: what it does is built in, it is not run", file)
				}
			default:
				s.call(ctx, file, c)
			}
		}
	}
}

// find returns the script of a type of message.
func (s *eventScripts) find(kind string) (string, bool) {
	if strings.ContainsAny(kind, "/.") {
		return "", false
	}
	file := filepath.Join(s.options.HaD, "rc.d", strings.ToLower(kind))
	st, err := os.Stat(file)
	return file, err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}

// packageScripts are the scripts of rc.d that Heartbeat brings, and what they
// call to move resources. A script of such a name that calls none of it is the
// administrator's.
var (
	packageScripts = []string{"status", "ip-request", "ip-request-resp", "ask_resources", "hb_takeover"}
	packageCalls   = []string{"mach_down", "req_resource", "ResourceManager", "hb_standby", "hb_takeover", "HA_FIFO", "ha_clustermsg", "takegroup", "IPaddr"}
)

func ofPackage(file string) bool {
	if !slices.Contains(packageScripts, filepath.Base(file)) {
		return false
	}
	text, err := os.ReadFile(file)
	return err != nil || slices.ContainsFunc(packageCalls, func(c string) bool { return bytes.Contains(text, []byte(c)) })
}

// call runs one script to its end.
func (s *eventScripts) call(ctx context.Context, file string, c eventCall) {
	limited, cancel := context.WithTimeoutCause(ctx, s.limit, fmt.Errorf("it took longer than %v", s.limit))
	defer cancel()
	o := s.options
	o.Environ = append(os.Environ(), messageEnvironment(c)...)
	cmd := exec.CommandContext(limited, file, c.Type)
	cmd.Env, cmd.Dir = agent.Environment(o), "/"
	cmd.Stdout, cmd.Stderr = o.Output, o.Output
	cmd.WaitDelay = time.Second // what it leaves running may hold its output open
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if cause := context.Cause(limited); cause != nil && err != nil {
		err = cause
	}
	if err != nil && ctx.Err() == nil { // else this daemon ends, and the script with it
		s.say(model.LevelWarning, "event-script-failed", c.Type, "%s: %v", file, err)
	}
}

// messageEnvironment is HA_<field> for each field of the message.
func messageEnvironment(c eventCall) []string {
	env := []string{"HA_t=" + c.Type, "HA_src=" + string(c.From), "HA_ts=" + strconv.FormatInt(time.Now().Unix(), 16), "HA_OSTATUS=" + c.self}
	if c.To != "" {
		env = append(env, "HA_dest="+string(c.To))
	}
	if c.Number > 0 {
		env = append(env, "HA_seq="+strconv.FormatUint(uint64(c.Number), 16))
	}
	if c.lone != "" {
		env = append(env, "HA_DONTASK="+c.lone)
	}
	for _, f := range c.Fields {
		if isVariable(f.Name) && !strings.ContainsRune(f.Value, 0) {
			env = append(env, "HA_"+f.Name+"="+f.Value)
		}
	}
	return env
}

// isVariable tells what can be part of a variable's name.
func isVariable(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

func (s *eventScripts) say(l model.Level, kind, subject, format string, args ...any) {
	s.sink(model.Event{At: time.Now(), Level: l, Source: "programs", Kind: kind, Subject: subject, Text: fmt.Sprintf(format, args...)})
}
