package logfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/google/go-cmp/cmp"
)

func at(level model.Level, text string) model.Event {
	return model.Event{At: time.Date(2024, 10, 2, 9, 1, 2, 0, time.Local), Level: level, Text: text}
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestLdirectordLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ldirectord.log")
	log := Ldirectord(LdirectordOptions{LogFile: path, Instance: "ldirectord.cf", PID: 4711})
	log(at(model.LevelInfo, "Added virtual server: 10.0.0.1:80"))
	log(at(model.LevelDebug, "not for people"))
	if err := os.Rename(path, path+".1"); err != nil { // rotation needs no signal
		t.Fatal(err)
	}
	log(at(model.LevelError, "a server said\n[forged line]\x1b[2J"))
	got := append(lines(t, path+".1"), lines(t, path)...)
	want := []string{
		"[Wed Oct  2 09:01:02 2024|ldirectord.cf|4711] Added virtual server: 10.0.0.1:80",
		"[Wed Oct  2 09:01:02 2024|ldirectord.cf|4711] a server said [forged line]?[2J",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestHeartbeatLines(t *testing.T) {
	dir := t.TempDir()
	log := Heartbeat(HeartbeatOptions{LogFile: dir + "/ha-log", DebugFile: dir + "/ha-debug", Host: "lvs01", PID: 4711})
	log(at(model.LevelWarning, "node lvs02: is dead"))
	log(at(model.LevelDebug, "beat"))
	want := []string{"Oct  2 09:01:02 lvs01 heartbeat: [4711]: WARN: node lvs02: is dead"}
	if d := cmp.Diff(want, lines(t, dir+"/ha-log")); d != "" {
		t.Errorf("logfile (-want +got)\n%s", d)
	}
	want = append(want, "Oct  2 09:01:02 lvs01 heartbeat: [4711]: debug: beat")
	if d := cmp.Diff(want, lines(t, dir+"/ha-debug")); d != "" {
		t.Errorf("debugfile (-want +got)\n%s", d)
	}
	Heartbeat(HeartbeatOptions{LogFile: dir + "/old", OldFormat: true, Host: "lvs01", PID: 4711})(at(model.LevelInfo, "Link lvs02:eth1 up."))
	want = []string{"heartbeat[4711]: 2024/10/02_09:01:02 info: Link lvs02:eth1 up."}
	if d := cmp.Diff(want, lines(t, dir+"/old")); d != "" {
		t.Errorf("syslogmsgfmt false (-want +got)\n%s", d)
	}
}

func TestFailureIsReportedOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	var reports atomic.Int32
	log := Ldirectord(LdirectordOptions{LogFile: dir + "/log", Sink: func(e model.Event) {
		reports.Add(1)
		if !strings.Contains(e.Text, dir) {
			t.Errorf("the report does not name the file: %s", e.Text)
		}
	}})
	log(at(model.LevelInfo, "one"))
	log(at(model.LevelInfo, "two"))
	if n := reports.Load(); n != 1 {
		t.Errorf("%d reports, want 1", n)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	log(at(model.LevelInfo, "three"))
	if got := lines(t, dir+"/log"); len(got) != 1 || !strings.HasSuffix(got[0], "three") {
		t.Errorf("after the disk is back: %q", got)
	}
	Ldirectord(LdirectordOptions{LogFile: "local9", Sink: func(model.Event) { reports.Add(1) }})(at(model.LevelInfo, "x"))
	if n := reports.Load(); n != 2 {
		t.Errorf("a facility that does not exist was not reported")
	}
}

// A disk that hangs costs its patience once, loses nothing up to maxWaiting
// lines, and says how many it lost above that.
func TestHangingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		var written []string
		var said []error
		a := &appender{
			write:  func(e entry) error { <-free; written = append(written, e.text); return nil },
			report: func(err error) { said = append(said, err) },
		}
		began := time.Now()
		for range maxWaiting + 11 {
			a.append(entry{text: "x"})
		}
		if d := time.Since(began); d != patience {
			t.Errorf("the caller was held up for %v, want %v", d, patience)
		}
		close(free)
		synctest.Wait()
		if len(written) != maxWaiting+1 {
			t.Errorf("%d lines written, want %d", len(written), maxWaiting+1)
		}
		if len(said) != 1 || !strings.HasPrefix(errors.Join(said...).Error(), "10 lines were lost") {
			t.Errorf("said %v", said)
		}
	})
}

// Nothing that an event says drives the terminal of who reads the log.
func TestOneLine(t *testing.T) {
	for said, want := range map[string]string{
		"plain, grüße":           "plain, grüße",
		"two\nlines\tand a tab":  "two lines and a tab",
		"\x1b]0;title\a \u009bm": "?]0;title? ?m",
		"turn \u202eround":       "turn ?round",
	} {
		if got := oneLine(said); got != want {
			t.Errorf("%q became %q, want %q", said, got, want)
		}
	}
}
