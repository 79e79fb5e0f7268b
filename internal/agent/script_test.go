package agent

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// write puts a shell script into a directory.
func write(t *testing.T, dir, name, body string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
}

func agentFor(t *testing.T, dir string, text string) Agent {
	t.Helper()
	words := strings.Split(text, "::")
	a, err := Script(model.Resource{Agent: words[0], Args: words[1:], Text: text}, ScriptOptions{
		HaD: dir, InitD: filepath.Join(dir, "init.d"), Self: "lvs01", Environ: []string{"PATH=/usr/bin:/bin"},
		Settings: []model.Setting{{Name: "keepalive", Value: "2"}, {Name: "logfile", Value: "/var/log/ha-log"}, {Name: "auto_failback", Value: "on"}}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestScriptIsCalledAsHeartbeatCallsIt(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	write(t, filepath.Join(dir, "resource.d"), "web", `echo "$@" >> `+log+`
case "$3" in
start) : > `+dir+`/flag ;;
stop) rm -f `+dir+`/flag ;;
status) test -f `+dir+`/flag && echo "web is running" || { echo "web is not running"; exit 3; } ;;
esac`)
	write(t, filepath.Join(dir, "init.d"), "web", "echo the wrong one; exit 1")
	a := agentFor(t, dir, "web::eth0::80")
	for _, step := range []struct {
		do   func(context.Context) error
		want model.ResourceState
	}{{nil, model.ResourceStopped}, {a.Start, model.ResourceRunning}, {a.Stop, model.ResourceStopped}} {
		if step.do != nil {
			if err := step.do(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := a.Status(t.Context()); err != nil || got != step.want {
			t.Fatalf("status %v, %v; want %v", got, err, step.want)
		}
	}
	got, _ := os.ReadFile(log)
	want := "eth0 80 status\neth0 80 start\neth0 80 status\neth0 80 stop\neth0 80 status\n"
	if string(got) != want {
		t.Errorf("calls:\n%swant:\n%s", got, want)
	}
}

func TestStatusOutput(t *testing.T) {
	for out, want := range map[string]model.ResourceState{
		"apache is running (pid 12)":       model.ResourceRunning,
		"INFO: Running OK":                 model.ResourceRunning,
		"OK":                               model.ResourceRunning,
		"apache is not running":            model.ResourceStopped,
		"apache is NOT currently\nRunning": model.ResourceStopped,
		"apache isn't running":             model.ResourceRunning, // as Heartbeat has it
		"stopped":                          model.ResourceStopped,
		"":                                 model.ResourceStopped,
		"INFO: Resource is stopped":        model.ResourceStopped,
	} {
		if got := statusOf([]byte(out)); got != want {
			t.Errorf("%q is %v, want %v", out, got, want)
		}
	}
}

func TestScriptFailureNamesTheReason(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "init.d"), "db", "echo starting; echo 'no space left on device' >&2; exit 5")
	err := agentFor(t, dir, "db").Start(t.Context())
	want := "resource db: " + dir + "/init.d/db start: exit status 5: no space left on device"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	err = agentFor(t, dir, "missing::x").Start(t.Context())
	want = "resource missing::x: no executable file missing in " + dir + "/resource.d or " + dir + "/init.d, and no systemd unit of that name; install it there"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := Script(model.Resource{Agent: "../../bin/sh", Text: "../../bin/sh"}, ScriptOptions{HaD: dir}); err == nil {
		t.Error("a path was taken for the name of a script")
	}
}

func TestScriptEnvironment(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "resource.d"), "env", "env | sort > "+dir+"/env")
	if err := agentFor(t, dir, "env").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(filepath.Join(dir, "env"))
	for _, want := range []string{"HA_CURHOST=lvs01", "HA_DIR=" + dir, "HA_RESOURCEDIR=" + dir + "/resource.d", "HA_keepalive=2",
		"HA_LOGFILE=/var/log/ha-log", "HA_NICEFAILBACK=yes", "OCF_ROOT=/usr/lib/ocf"} {
		if !strings.Contains(string(got), want+"\n") {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

// A script that hangs, and its children, end with the context.
func TestScriptThatHangs(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "resource.d"), "hang", "sleep 600 & echo $! > "+dir+"/child; wait")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := agentFor(t, dir, "hang").Start(ctx); err == nil || !strings.Contains(err.Error(), "was ended after") {
		t.Fatalf("got %v", err)
	}
	// The signal has been sent; when the scheduler lets the child die of it is
	// the kernel's business.
	pid := pidIn(t, filepath.Join(dir, "child"))
	for deadline := time.Now().Add(30 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("its child %d still runs", pid)
		}
	}
}

// A daemon that a script leaves behind with its output open does not hold the
// call.
func TestScriptLeavesADaemon(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "resource.d"), "daemon", "sleep 60 & echo $! > "+dir+"/child")
	if err := agentFor(t, dir, "daemon").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := pidIn(t, filepath.Join(dir, "child"))
	if !alive(pid) {
		t.Error("the daemon did not outlive its script")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

func pidIn(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
