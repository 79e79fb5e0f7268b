package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAnLdirectordIsToldByItsCommandLine(t *testing.T) {
	for cmdline, want := range map[string]bool{
		"ldirectord\x00--detached=web.cf\x00--\x00/etc/ha.d/web.cf\x00start\x00": true,
		"/usr/bin/perl\x00-w\x00/usr/sbin/ldirectord\x00web.cf\x00start\x00":     true, // the old one
		"ldirectord tcp:10.0.0.1:80":                                             true, // and its children
		"batuta\x00ldirectord\x00-d\x00start\x00":                                true,
		"vi\x00/etc/ha.d/ldirectord.cf\x00":                                      false,
		"":                                                                       false, // gone, or a zombie
	} {
		if got := isProgram([]byte(cmdline), "ldirectord"); got != want {
			t.Errorf("%q: ldirectord %v, want %v", cmdline, got, want)
		}
	}
}

func TestTheProgramAnswersToOldNames(t *testing.T) {
	for argv, want := range map[string]string{
		"batuta status":                   "status",
		"/usr/sbin/ldirectord web start":  "ldirectord web start",
		"batuta ldirectord web start":     "ldirectord web start",
		"ldirectord":                      "ldirectord",
		"/opt/ldirectord.old/batuta help": "help",
	} {
		if diff := cmp.Diff(want, strings.Join(Arguments(strings.Fields(argv)), " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", argv, diff)
		}
	}
	if got := Arguments(nil); got != nil {
		t.Errorf("without a name: %q", got)
	}
}

func TestPidFile(t *testing.T) {
	f := pidFile{filepath.Join(t.TempDir(), "ldirectord.web.cf.pid"), "ldirectord"}
	for content, want := range map[string]pidState{
		"":      {exists: true},
		"web\n": {exists: true},
		"-1\n":  {exists: true}, // kill(-1) would be everybody
		"0\n":   {exists: true},
		"1\n":   {exists: true, pid: 1}, // no ldirectord
	} {
		if err := os.WriteFile(f.path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := f.read(); got != want {
			t.Errorf("%q: %+v, want %+v", content, got, want)
		}
	}
	f.remove()
	if !f.read().exists {
		t.Error("the pid file of another process was removed")
	}
	if err := f.write(); err != nil {
		t.Fatal(err)
	}
	if got := f.read().pid; got != os.Getpid() {
		t.Errorf("the file names pid %d", got)
	}
	f.remove()
	if f.read().exists {
		t.Error("our own pid file stays")
	}
	if err := (pidFile{"/dev/null", "ldirectord"}).write(); err == nil || !strings.Contains(err.Error(), "is no file") {
		t.Errorf("a device as the pid file: %v", err)
	}
}

// verbCall is a call of a verb, as recorded.
type verbCall struct {
	Verb   string `json:"verb"`
	Code   int    `json:"rc"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

// TestRecordedVerbs makes the calls that two scenarios recorded from ldirectord
// 4.12.0, and compares exit codes and all that is printed.
func TestRecordedVerbs(t *testing.T) {
	t.Setenv("GORACE", raceOptions)
	for _, scenario := range []string{"24-verbs", "42-supervised"} {
		t.Run(scenario, func(t *testing.T) {
			recorded := filepath.Join("../director/testdata/scenarios", scenario)
			var expected struct {
				Start int        `json:"start_exit_code"`
				Verbs []verbCall `json:"verbs"`
			}
			readJSON(t, filepath.Join(recorded, "expected.json"), &expected)
			dir := t.TempDir()
			run, file := filepath.Join(dir, "run"), filepath.Join(dir, "ldirectord.cf")
			configure := func(from string) {
				text, err := os.ReadFile(filepath.Join(recorded, from))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, bytes.ReplaceAll(text, []byte("@DIR@"), []byte(dir)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			command := func(verb string) *exec.Cmd {
				return exec.Command("ldirectord", "--run-dir", run, "--state-dir", filepath.Join(dir, "state"), "--plane", "memory", file, verb)
			}
			if err := os.Mkdir(run, 0o755); err != nil {
				t.Fatal(err)
			}
			defer endDaemons(t, run)
			configure("ldirectord.cf")
			first := command("start")
			if scenario == "42-supervised" { // it stays in the foreground
				out, err := first.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := first.Start(); err != nil {
					t.Fatal(err)
				}
				untilLine(t, out, "Added virtual server")
				defer func() {
					if err := errors.Join(first.Process.Signal(syscall.SIGTERM), first.Wait()); err != nil {
						t.Error(err)
					}
				}()
			} else if _ = first.Run(); first.ProcessState.ExitCode() != expected.Start {
				t.Fatalf("start: %s", first.ProcessState)
			}
			pid := pidFile{filepath.Join(run, "ldirectord.ldirectord.cf.pid"), "ldirectord"}
			for _, want := range expected.Verbs {
				if want.Verb == "reload" {
					configure("ldirectord.cf.2")
				}
				cmd := command(want.Verb)
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				_ = cmd.Run() // the code tells
				got := verbCall{want.Verb, cmd.ProcessState.ExitCode(), sameWords(stdout.String(), dir), sameWords(stderr.String(), dir)}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", want.Verb, diff)
				}
				for want.Verb == "stop" && pid.read().runs {
					time.Sleep(10 * time.Millisecond) // stop does not wait
				}
			}
		})
	}
}

func readJSON(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// untilLine reads until a line with text in it; the rest is read and dropped.
func untilLine(t *testing.T, r io.Reader, text string) {
	t.Helper()
	for s := bufio.NewScanner(r); s.Scan(); {
		if strings.Contains(s.Text(), text) {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return
		}
	}
	t.Fatalf("it ended without a line with %q", text)
}

// sameWords puts the recording's placeholders in place of what differs from
// run to run.
func sameWords(s, dir string) string {
	s = strings.ReplaceAll(s, dir, "@DIR@")
	for pattern, word := range map[string]string{
		`(?m)^\[[A-Z][a-z]{2} [^]|]*\]`: "[TIME]",
		`with pid: \d+`:                 "with pid: N",
		`invoked as: \S+ .*@DIR@/l`:     "invoked as: /usr/sbin/ldirectord @DIR@/l",
	} {
		s = regexp.MustCompile(pattern).ReplaceAllString(s, word)
	}
	return s
}
