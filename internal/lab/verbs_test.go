package lab_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// batuta is the program as it is shipped.
func batuta(t *testing.T) string {
	t.Helper()
	name, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// The verbs, in the order in which somebody tries them.
func TestVerbs(t *testing.T) {
	requireRoot(t)
	program, run := batuta(t), filepath.Join(t.TempDir(), "run")
	call := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		var out, errs bytes.Buffer
		cmd := exec.Command(program, append([]string{"lab", "--run-dir", run}, args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("typed\n"), &out, &errs
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() { call("down") })
	for _, step := range []struct {
		args           []string
		code           int
		stdout, stderr string // parts of it
	}{
		{args: []string{"status"}, code: 3, stderr: "no lab is up in " + run + ": start one with `batuta lab up`"},
		{args: []string{"up", "--ha.d", "/nowhere"}, code: 78, stderr: "--ha.d /nowhere is no directory"},
		{args: []string{"up", "--detach", "--ha.d", "/nowhere"}, code: 78, stderr: "--ha.d /nowhere is no directory"},
		{args: []string{"up", "--detach"}, stdout: "The lab is up: client, lvs01, lvs02, web1, web2, web3, web4."},
		{args: []string{"up"}, code: 1, stderr: "a lab is up already in " + run + ": end it with `batuta lab down`"},
		{args: []string{"status"}, stdout: "web4    real server  on     running"},
		{args: []string{"exec", "lvs01", "--", "sh", "-c", "cat; uname -n; exit 7"}, code: 7, stdout: "typed\nlvs01\n"},
		{args: []string{"exec", "client", "batuta", "lab", "--help"}, stdout: "Usage:"},
		{args: []string{"exec", "lvs01"}, code: 2, stderr: "see batuta lab exec --help"},
		{args: []string{"kill", "lvs01"}},
		{args: []string{"kill", "lvs01"}, code: 1, stderr: "lvs01: the node is down"},
		{args: []string{"exec", "lvs01", "--", "true"}, code: 1, stderr: "lvs01: the node is down"},
		{args: []string{"cut", "lvs02", "eth1"}},
		{args: []string{"status"}, stdout: "eth1 (cut)"},
		{args: []string{"heal", "lvs01"}},
		{args: []string{"exec", "lvs01", "--", "uname", "-n"}, stdout: "lvs01\n"},
		{args: []string{"cut", "lvs03"}, code: 1, stderr: `no node "lvs03"; there are client, lvs01,`},
		{args: []string{"kill"}, code: 2, stderr: "see batuta lab kill --help"},
	} {
		stdout, stderr, code := call(step.args...)
		if code != step.code || !strings.Contains(stdout, step.stdout) || !strings.Contains(stderr, step.stderr) {
			t.Fatalf("lab %s: exit status %d, want %d\nstdout: %s\nwith    %s\nstderr: %s\nwith    %s",
				strings.Join(step.args, " "), code, step.code, stdout, step.stdout, stderr, step.stderr)
		}
	}
	stdout, _, _ := call("status", "--json")
	var status lab.Status
	if err := json.Unmarshal([]byte(stdout), &status); err != nil || len(status.Nodes) != 7 || !status.Nodes[2].Links[1].Cut {
		t.Errorf("status --json: %v\n%s", err, stdout)
	}
	if _, stderr, code := call("down"); code != 0 {
		t.Errorf("down: exit status %d: %s", code, stderr)
	}
	if left, err := os.ReadDir(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after down the run directory holds %v", left)
	}
}

func TestUpEndsWithCtrlC(t *testing.T) {
	requireRoot(t)
	program, run := batuta(t), filepath.Join(t.TempDir(), "run")
	cmd := exec.Command(program, "lab", "up", "--run-dir", run)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	if line, err := in.ReadString('\n'); !strings.HasPrefix(line, "The lab is up") {
		t.Errorf("up says %q, %v", line, err)
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("up: %v", err)
	}
	if _, err := os.Stat(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run directory is left: %v", err)
	}
}
