package lab_test

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// Somebody follows what the eBPF plane does with a client's packets: a
// connection that is opened, then one that finds no real server, each with its
// reason, as it happens.
func TestTraceFollow(t *testing.T) {
	requireRoot(t)
	const config = `
service "tcp 10.1.0.100:80" {
  forward = "gate"
  check {
    type     = "http"
    interval = "200ms"
    timeout  = "2s"
    receive  = "web"
  }
  quiescent = false
  real_server "10.1.0.20" {}
}
`
	l := oneWire(t, map[string]string{"batuta.hcl": config}, "web")
	output(t, l, "web", "sh", "-c", quietly)
	defer direct(t, l, "batuta.hcl")()

	up := func() bool {
		out, _ := l.Node("director").Output(t.Context(), "batuta", "status")
		return strings.Contains(strings.Join(strings.Fields(out), " "), "10.1.0.20:80 up")
	}
	for end := time.Now().Add(time.Minute); !up(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the real server is not up")
		}
	}

	// follow asks for one packet, and the client tries until it is told.
	follow := func(want string, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		c := l.Node("director").Command(t.Context(), append([]string{"batuta", "trace", "--follow", "--count", "1", "10.1.0.10", "10.1.0.100:80"}, args...)...)
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		for end := time.Now().Add(2 * time.Minute); ; {
			select {
			case err := <-ended:
				if err != nil || !strings.Contains(out.String(), want) {
					t.Errorf("trace --follow %s: %v, told %q, want %q\n%s", args, err, out.String(), want, errs.String())
				}
				t.Logf("told: %s", out.String())
				return
			case <-time.After(200 * time.Millisecond):
			}
			if time.Now().After(end) {
				_ = c.Signal(15)
				t.Fatalf("trace --follow %s: nothing was told", args)
			}
			_, _ = l.Node("client").Output(t.Context(), "curl", "-s", "--max-time", "1", "http://10.1.0.100/")
		}
	}
	follow("10.1.0.20:80", "--reason", "opened")
	if err := l.Node("web").Service().Signal(15); err != nil {
		t.Fatal(err)
	}
	follow("no-real-server", "--reason", "no-real-server")
}
