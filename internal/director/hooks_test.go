package director

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestShell(t *testing.T) {
	if err := shell(t.Context(), "exit 0"); err != nil {
		t.Error(err)
	}
	if err := shell(t.Context(), "exit 3"); err == nil || err.Error() != "exit status 3" {
		t.Errorf("error %v, want exit status 3", err)
	}
}

// A command that is killed takes its children along: they hold a pipe open
// that ends with the last of them.
func TestShellKillsTheWholeCommand(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- shell(ctx, "(echo began; sleep 3600) > "+pipe+" & wait") }()
	r, err := os.Open(pipe)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, len("began\n"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("after the kill: %q, %v", rest, err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error %v, want that it was killed", err)
	}
}

func TestCallbackMustBeExecutable(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	for name, mode := range map[string]os.FileMode{good: 0o755, bad: 0o644} {
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ callback, command, problem string }{
		{"", "", ""},
		{good, good + " /etc/ha.d/ldirectord.cf", ""},
		{bad, "", "it is not executable (chmod +x)"},
		{dir, "", "it is not executable (chmod +x)"},
		{dir + "/none", "", "no such file or directory"},
	} {
		command, err := callbackCommand(&model.Director{Callback: tc.callback, File: "/etc/ha.d/ldirectord.cf"})
		if command != tc.command || (err == nil) != (tc.problem == "") || (err != nil && !strings.Contains(err.Error(), tc.problem)) {
			t.Errorf("callback %q: command %q, error %v; want %q, %q", tc.callback, command, err, tc.command, tc.problem)
		}
	}
}

// The watcher speaks once for each new content that rests, and once for each
// time that the file is gone for longer than a moment.
func TestWatcher(t *testing.T) {
	name := filepath.Join(t.TempDir(), "ldirectord.cf")
	clock := time.Unix(1_700_000_000, 0)
	write := func(text string) {
		clock = clock.Add(time.Second)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, clock, clock); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	w := watcher{name: name}
	w.known, _ = lookAt(name, look{})
	for _, tc := range []struct {
		name           string
		before         func()
		changed, again bool
		failed         bool
	}{
		{"as it was", func() {}, false, false, false},
		{"touched", func() { write("one") }, false, false, false},
		{"new", func() { write("tw") }, false, true, false},
		{"still growing", func() { write("two") }, false, true, false},
		{"rests", func() {}, true, false, false},
		{"told", func() {}, false, false, false},
		{"new", func() { write("three") }, false, true, false},
		{"back again", func() { write("two") }, false, false, false},
		{"away", func() { _ = os.Remove(name) }, false, false, false},
		{"for long", func() {}, false, false, true},
		{"told", func() {}, false, false, false},
		{"back as it was", func() { write("two") }, false, false, false},
		{"away again", func() { _ = os.Remove(name) }, false, false, false},
		{"for a moment", func() { write("four") }, false, true, false},
		{"rests", func() {}, true, false, false},
	} {
		tc.before()
		changed, again, err := w.step()
		if changed != tc.changed || again != tc.again || (err != nil) != tc.failed {
			t.Fatalf("%s: changed %v, again %v, error %v; want %v, %v, %v", tc.name, changed, again, err, tc.changed, tc.again, tc.failed)
		}
	}
}
