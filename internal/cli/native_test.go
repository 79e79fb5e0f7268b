package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
)

// agent says its line to whoever connects, as HAProxy's agents do.
func agent(t *testing.T, line *atomic.Value) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, line.Load().(string)+"\n")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// A real server's agent changes its weight while the director runs, from the
// native file to what status shows.
func TestAgentEndToEnd(t *testing.T) {
	var line atomic.Value
	line.Store("50%")
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "alive") }))
	defer page.Close()
	dir := t.TempDir()
	file, run := filepath.Join(dir, "batuta.hcl"), filepath.Join(dir, "run")
	text := fmt.Sprintf(`
service "tcp 127.0.0.1:9" {
  check {
    type       = "http"
    receive    = "alive"
    interval   = "50ms"
    timeout    = "30s"
    agent_port = %d
  }
  real_server "%s" { weight = 40 }
}
`, agent(t, &line), page.Listener.Addr())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var log bytes.Buffer
	done := make(chan int)
	go func() {
		done <- Main(ctx, []string{"director", "--dry-run", "--run-dir", run, file}, nil, io.Discard, &log)
	}()
	defer func() {
		stop()
		if code := <-done; code != exitFine {
			t.Errorf("exit code %d", code)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	for _, step := range []struct {
		says   string
		weight int
		load   string
	}{{"50%", 20, "50%"}, {"up 100%", 40, "100% ready"}, {"drain", 0, "100% drain"}, {"ready 10%", 4, "10% ready"}} {
		line.Store(step.says)
		waitFor(t, func() bool {
			var out bytes.Buffer
			var st api.Status
			if Main(t.Context(), []string{"status", "--json", "--run-dir", run}, nil, &out, io.Discard) != exitFine || json.Unmarshal(out.Bytes(), &st) != nil {
				return false
			}
			r := st.Services[0].Reals[0]
			return r.InTable && r.Weight == step.weight && r.Load == step.load
		}, "weight %d after %q", step.weight, step.says)
	}
}

// waitFor waits until something is so.
func waitFor(t *testing.T, so func() bool, what string, args ...any) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if so() {
			return
		}
	}
	t.Fatalf("never: "+what, args...)
}
