package lab_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// serve puts a lab under a run directory, as `batuta lab up` does; the result
// ends it and returns Serve's error.
func serve(t *testing.T, l *lab.Lab, dir string) (stop func() error) {
	t.Helper()
	server, err := lab.NewServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := server.Serve(ctx, l)
		done <- errors.Join(err, l.Close(), server.Close())
	}()
	return func() error {
		cancel()
		return <-done
	}
}

func TestLabUnderARunDirectory(t *testing.T) {
	l := start(t)
	dir := filepath.Join(t.TempDir(), "run")
	stop := serve(t, l, dir)
	client := lab.Client{Dir: dir}

	if _, err := lab.NewServer(dir); !errors.Is(err, lab.ErrLabUp) {
		t.Errorf("a second lab on the same run directory: %v", err)
	}
	if err := client.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	if err := client.Cut("lvs02", "eth1"); err != nil {
		t.Fatal(err)
	}
	status, err := client.Status()
	if err != nil {
		t.Fatal(err)
	}
	if n := status.Nodes; len(n) != 7 || n[1].Up || !n[2].Up || n[2].Links[0].Cut || !n[2].Links[1].Cut {
		t.Errorf("status %+v", status)
	}
	if code, err := run(t, client, "lvs01", "true"); err == nil || err.Error() != "lab: lvs01: the node is down" {
		t.Errorf("exec on a node without power: %d, %v", code, err)
	}
	if err := client.Heal("lvs01"); err != nil { // power
		t.Fatal(err)
	}
	if code, err := run(t, client, "lvs01", "sh", "-c", "exit 5"); code != 5 || err != nil {
		t.Errorf("exec on the node that came back: %d, %v", code, err)
	}
	if err := client.Down(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run directory is still there: %v", err)
	}
	if err := client.Kill("lvs01"); !errors.Is(err, lab.ErrNoLab) || !strings.Contains(err.Error(), "batuta lab up") {
		t.Errorf("kill without a lab: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// run is exec with nothing to read and nobody to see the output.
func run(t *testing.T, client lab.Client, node string, args ...string) (int, error) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	return client.Exec(node, args, nil, false, [3]*os.File{null, null, null}, nil)
}

func TestSignalsReachTheCommand(t *testing.T) {
	l := start(t)
	dir := t.TempDir()
	stop := serve(t, l, dir)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	go func() {
		_, _ = r.Read(make([]byte, 8)) // the trap is set
		signals <- unix.SIGINT
	}()
	code, err := lab.Client{Dir: dir}.Exec("lvs01",
		[]string{"sh", "-c", `trap "exit $CODE" INT; echo ready; while :; do sleep 0.1; done`},
		[]string{"CODE=9"}, false, [3]*os.File{null, w, w}, signals)
	if code != 9 || err != nil {
		t.Errorf("interrupted: %d, %v, want 9", code, err)
	}
}

func TestLeftoversOfAKilledLabAreReplaced(t *testing.T) {
	l := start(t)
	dir := t.TempDir()
	// A socket file whose process is gone.
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "lab.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	client := lab.Client{Dir: dir}
	if _, err := client.Status(); !errors.Is(err, lab.ErrNoLab) {
		t.Errorf("status of a dead lab: %v", err)
	}
	stop := serve(t, l, dir)
	if _, err := client.Status(); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
