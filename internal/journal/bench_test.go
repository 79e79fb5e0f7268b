package journal

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/sla"
)

// yearOf writes what a node has after a year in which its things changed
// n times in all: the sheets, as the writer makes them of 8,000 changes each,
// and the records of the last days.
func yearOf(tb testing.TB, dir string, n, things int) sla.Period {
	tb.Helper()
	p := sla.PeriodAt(sla.PerYear, time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC))
	open := func(name string, flag int) (file, error) { return os.OpenFile(name, flag, 0o600) }
	const boot = 1000 * time.Hour
	instant := func(i int) Instant {
		since := time.Duration(float64(p.Length()) * float64(i) / float64(n))
		return Instant{p.From.Add(since), boot + since + time.Duration(i*7919%100_000)}
	}
	names := make([]Thing, things)
	states := make([]Change, things)
	for k := range names {
		names[k] = Thing{ThingService, fmt.Sprintf("tcp 10.%d.%d.1:80", k/250, k%250)}
	}
	life := Opening{"lvs01", "boot-1", "run-1"}
	seq := uint64(1)
	const each = 8000
	tail := min(n/2, 4*each)
	for i := 0; i < n-tail; {
		m := newSheetMaker(seq, newNames())
		now := instant(i)
		m.add(&Record{At: now.Wall, Uptime: now.Uptime, Kind: KindOpen, Open: &life})
		for _, c := range states {
			if c.State != sla.StateUnset {
				c.Again = true
				m.add(&Record{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: &c})
			}
		}
		for end := min(i+each, n-tail); i < end; i++ {
			now := instant(i)
			m.add(&Record{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: yearChange(names, states, i, now.Uptime)})
		}
		if err := m.finish().write(dir, open); err != nil {
			tb.Fatal(err)
		}
		seq += each + uint64(things)
	}
	w := writer{o: Options{Dir: dir, SegmentBytes: 4 << 20, MaxBytes: 256 << 20, MaxAge: 1 << 62, openFile: open}, opening: life, seq: seq, current: map[Thing]Change{}, blind: map[Thing]missed{}}
	now := instant(n - tail)
	w.o.clock = func() Instant { return now }
	w.offset = offsetOf(now)
	for _, c := range states {
		w.current[c.Thing] = c
	}
	if err := w.roll(); err != nil {
		tb.Fatal(err)
	}
	for i := n - tail; i < n; i++ {
		now = instant(i)
		w.records([]Record{{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: yearChange(names, states, i, now.Uptime)}})
	}
	w.close()
	if w.end != nil {
		tb.Fatal(w.end)
	}
	return p
}

// yearChange is the i-th change: a service goes down or comes back.
func yearChange(names []Thing, states []Change, i int, uptime time.Duration) *Change {
	k := i % len(names)
	c := Change{Thing: names[k], State: sla.Down, Since: uptime - time.Millisecond, Why: "no real server is up"}
	if states[k].State != sla.Up {
		c.State, c.Where, c.Why = sla.Up, "lvs01", ""
		if states[k].State == sla.Down {
			c.Ended = &Repair{Detect: 700 * time.Millisecond, Decide: time.Millisecond, Switch: 20 * time.Millisecond, Verify: 80 * time.Millisecond}
		}
	}
	states[k] = c
	return &c
}

// TestBenchSLA measures batuta sla on ten million intervals: make bench-sla.
func TestBenchSLA(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "sla" {
		t.Skip("make bench-sla")
	}
	const n = 10_000_000
	for _, c := range []struct {
		things int
		flags  []string
	}{
		{1, nil},
		{1, []string{"--hours", "Mon-Fri 08:00-18:00"}},
		{100, []string{"--service", "10.0.7.1"}},
		{100, nil},
		{1000, []string{"--service", "10.0.7.1"}},
		{1000, nil},
	} {
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("batuta-bench-sla-%d", c.things))
		if _, err := os.Stat(dir); err != nil {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			yearOf(t, dir, n, c.things)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		var size int64
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				size += info.Size()
			}
		}
		args := append([]string{"sla", "--journal", dir, "--period", "2025", "--tz", "UTC", "--target", "99.9", "--format", "csv"}, c.flags...)
		for range 5 {
			cmd := exec.Command(os.Getenv("BATUTA_BIN"), args...)
			cmd.Stderr = os.Stderr
			began := time.Now()
			out, err := cmd.Output()
			took := time.Since(began)
			if err != nil {
				t.Fatalf("%v: %v", cmd, err)
			}
			usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
			if !ok {
				t.Fatal("no usage")
			}
			t.Logf("%d changes of %d services, %d MB in %d files, %v: %.2f s, CPU %.2f s, %d MB, %d bytes of output", n, c.things, size>>20, len(files), c.flags,
				took.Seconds(), (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(), usage.Maxrss>>10, len(out))
		}
	}
}

// BenchmarkYear reads a year of a million changes of one service.
func BenchmarkYear(b *testing.B) {
	dir := b.TempDir()
	p := yearOf(b, dir, 1_000_000, 1)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		st, err := sla.Account(s.IntervalsIn(s.Things()[0], p.From, p.To), p, p.To, sla.Agreement{Target: 1e-3})
		if err != nil {
			b.Fatal(err)
		}
		if st.Failures != 500_000 || len(s.Notes()) > 0 {
			b.Fatalf("%d failures; %q", st.Failures, s.Notes())
		}
	}
}
