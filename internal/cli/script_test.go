package cli

import (
	"context"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The program itself is a command of the scripts, under all its names.
func TestMain(m *testing.M) {
	if os.Getenv("BATUTA_IPVS_KERNEL") != "" { // no scripts there, and the real ipvsadm
		os.Exit(m.Run())
	}
	program := func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := Main(ctx, Arguments(os.Args), os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	programs := map[string]func(){"batuta": program}
	for name := range shims {
		programs[name] = program
	}
	testscript.Main(m, programs)
}

// raceOptions spare each call of a program that is built with -race most of
// the second that it waits at its end.
const raceOptions = "atexit_sleep_ms=50"

// The command line as stories: every verb, every refusal.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, UpdateScripts: os.Getenv("REWRITE") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", raceOptions)
			e.Setenv("UDPPORT", freeUDPPort(t))
			packaging, err := filepath.Abs("../../packaging")
			if err != nil {
				return err
			}
			e.Setenv("PACKAGING", packaging)
			for _, dir := range []string{"run", "a", "b"} {
				e.Defer(func() { endDaemons(t, filepath.Join(e.WorkDir, dir)) })
			}
			return nil
		}})
}

// freeUDPPort is a port for the heartbeats of a story.
func freeUDPPort(t *testing.T) string {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, port, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// endDaemons ends what a story that failed has left behind: the processes that
// the pid files in dir name.
func endDaemons(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		program, _, _ := strings.Cut(filepath.Base(f), ".")
		if p := (pidFile{f, program}).read(); p.runs {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
				t.Errorf("end the daemon of %s: %v", f, err)
			}
		}
	}
}
