package cli

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The program itself is a command of the scripts, under all its names.
func TestMain(m *testing.M) {
	program := func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		code := Main(ctx, Arguments(os.Args), os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	testscript.Main(m, map[string]func(){"batuta": program, "ldirectord": program})
}

// raceOptions spare each call of a program that is built with -race most of
// the second that it waits at its end.
const raceOptions = "atexit_sleep_ms=50"

// The command line as stories: every verb, every refusal.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, UpdateScripts: os.Getenv("REWRITE") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", raceOptions)
			e.Defer(func() { endDaemons(t, filepath.Join(e.WorkDir, "run")) })
			return nil
		}})
}

// endDaemons ends what a story that failed has left behind: the processes that
// the pid files in dir name.
func endDaemons(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		if p := pidFile(f).read(); p.runs {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
				t.Errorf("end the daemon of %s: %v", f, err)
			}
		}
	}
}
