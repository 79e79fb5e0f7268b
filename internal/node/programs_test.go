package node

import (
	"context"
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// memo collects what is said.
type memo struct {
	mu    sync.Mutex
	kinds []string
}

func (m *memo) hear(e model.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kinds = append(m.kinds, e.Kind)
}

func (m *memo) count(kind string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, k := range m.kinds {
		if k == kind {
			n++
		}
	}
	return n
}

// until waits for what must come about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// beside makes a program of a shell script, and runs it.
func beside(t *testing.T, failfast bool, body string) (*memo, *program, chan error, context.CancelFunc) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProgram(model.Program{User: me.Username, Command: []string{file, "one"}, Failfast: failfast})
	if err != nil {
		t.Fatal(err)
	}
	said := &memo{}
	p.sink, p.talks, p.pause = said.hear, func() bool { return true }, time.Millisecond
	p.env = []string{"PATH=/usr/bin:/bin", "HA_CURHOST=lvs01"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(cancel)
	return said, p, done, cancel
}

func TestRespawn(t *testing.T) {
	// It ends at once, again and again: it is given up at the eleventh time.
	said, _, done, cancel := beside(t, false, "exit 1")
	until(t, "given up", func() bool { return said.count("program-given-up") == 1 })
	if n := said.count("program-start"); n != quickEnds+1 {
		t.Errorf("%d starts, want %d", n, quickEnds+1)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// Exit code 100 says that it has done its work.
	said, _, done, cancel = beside(t, false, "exit 100")
	until(t, "done", func() bool { return said.count("program-done") == 1 })
	if n := said.count("program-start"); n != 1 {
		t.Errorf("%d starts, want 1", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// It runs until the daemon ends, with what Heartbeat tells its programs.
	dir := t.TempDir()
	_, p, done, cancel := beside(t, false, `echo "$HA_CURHOST $1" > `+dir+`/told.new; mv `+dir+`/told.new `+dir+`/told
trap 'echo ended > `+dir+`/ended; exit 0' TERM
while :; do sleep 0.01; done`)
	until(t, "told", func() bool { _, err := os.Stat(filepath.Join(dir, "told")); return err == nil })
	if b, _ := os.ReadFile(filepath.Join(dir, "told")); string(b) != "lvs01 one\n" || !p.runs.Load() {
		t.Errorf("told %q, runs %v", b, p.runs.Load())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p.runs.Load() {
		t.Error("it runs after the end")
	}
}

// Without a failfast program the node does not go on. Heartbeat resets the
// machine; here the node hands over and ends.
func TestFailfast(t *testing.T) {
	_, _, done, _ := beside(t, true, "exit 3")
	if err := <-done; !errors.Is(err, errProgramGone) || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

func TestProgramsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ user, file, want string }{
		{"root", filepath.Join(dir, "gone"), "no such file"},
		{"root", plain, "it is no executable file"},
		{"nobody-of-that-name", "/bin/sh", `there is no user "nobody-of-that-name"`},
	} {
		_, err := newProgram(model.Program{User: c.user, Command: []string{c.file}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "ha.cf") {
			t.Errorf("%v: %v", c, err)
		}
	}
}
