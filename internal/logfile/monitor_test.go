package logfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestMonitorLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "monitor.log")
	m := NewMonitor(path, 4711, func(e model.Event) { t.Error(e.Text) })
	at := time.Date(2024, 10, 2, 9, 1, 2, 0, time.Local)
	m.Line(at, `negotiate:http:tcp:10.0.0.1:8080:::1:masq:\/x:al\.ive`, model.Up, "200 OK")
	m.Line(at, "connect:tcp:10.0.0.1:8080:::1:masq::", model.Up, "")
	m.Line(at, "ping:10.0.0.1", model.Down, "50% | \r\n\x1b[2J")
	var got []string
	for len(got) < 3 { // written beside us, and at once
		m.Flush()
		b, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		got = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	want := []string{
		"[Wed Oct  2 09:01:02 2024] [4711] negotiate http tcp 10.0.0.1 8080 1 masq /x al.ive [up] 200 OK",
		"[Wed Oct  2 09:01:02 2024] [4711] connect tcp 10.0.0.1 8080 1 masq [up] -",
		"[Wed Oct  2 09:01:02 2024] [4711] ping 10.0.0.1 [down] 50%25 %7c %0d%0a?[2J",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestSupervised(t *testing.T) {
	var b strings.Builder
	log := Supervised(&b)
	log(at(model.LevelInfo, "Added virtual server: 10.0.0.1:80"))
	log(at(model.LevelDebug, "not for people"))
	if want := "[Wed Oct  2 09:01:02 2024] Added virtual server: 10.0.0.1:80\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
