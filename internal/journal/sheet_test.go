package journal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// flapping is a journal of many files: a state each second, up and down.
func flapping(t *testing.T, o Options, n int) *Journal {
	t.Helper()
	c := newClocks()
	o.clock = c.read
	j := start(t, o)
	for i := range n {
		j.States([]Change{{Thing: vip, State: []sla.State{sla.Up, sla.Down}[i%2], Since: c.read().Uptime, Where: "lvs01", Why: "because"}})
		j.Event(model.Event{Source: "director", Kind: "check-failed", Text: strings.Repeat("x", 200)})
		j.flush()
		c.pass(time.Second)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return j
}

func total(s *Story, thing Thing) (up, down time.Duration) {
	for iv := range s.Intervals(thing) {
		if iv.State == sla.Up {
			up += iv.To.Sub(iv.From)
		} else if iv.State == sla.Down {
			down += iv.To.Sub(iv.From)
		}
	}
	return up, down
}

func list(t *testing.T, dir, suffix string) []segment {
	t.Helper()
	all, err := segments(dir, suffix)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The records have to go because of their size; what was up and when stays.
func TestStatesOutliveTheirRecords(t *testing.T) {
	j := flapping(t, Options{MaxBytes: 256 << 10, SegmentBytes: 8 << 10}, 1000)
	logs, sheets := list(t, j.o.Dir, suffix), list(t, j.o.Dir, sheetSuffix)
	if len(logs) >= len(sheets) || logs[0].first <= sheets[0].first || sheets[0].first != 1 {
		t.Fatalf("%d files, %d sheets", len(logs), len(sheets))
	}
	s := read(t, j.o.Dir)
	up, down := total(s, vip)
	same(t, []time.Duration{500 * time.Second, 500 * time.Second}, []time.Duration{up, down})
	st := s.At(epoch.Add(11500 * time.Millisecond))[0]
	same(t, Standing{vip, sla.Down, epoch.Add(11 * time.Second).Local(), "lvs01", "because", "lvs01"}, st)
	if e := entries(t, s); len(e) == 0 || e[0].Time.Before(epoch.Add(time.Minute)) {
		t.Errorf("%d records, from %v", len(e), e[0].Time)
	}
	// Of both there is no more than agreed.
	var size int64
	for _, f := range append(logs, sheets...) {
		size += f.size
	}
	if size > 256<<10 {
		t.Errorf("%d bytes", size)
	}
}

// A damaged sheet is made again from the records; without them its time is
// unknown, and that is said.
func TestADamagedSheetIsUnknownTime(t *testing.T) {
	j := flapping(t, Options{SegmentBytes: 8 << 10}, 300)
	before, _ := total(read(t, j.o.Dir), vip)
	sheets := list(t, j.o.Dir, sheetSuffix)
	victim := sheets[len(sheets)/2]
	b, err := os.ReadFile(victim.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{3, sheetHead + 5, len(b) - 2} { // the magic, the header, a chunk
		bad := bytes.Clone(b)
		bad[at] ^= 0x40
		if err := os.WriteFile(victim.path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := read(t, j.o.Dir)
		up, _ := total(s, vip)
		if at < len(b)-2 && (up != before || len(s.Notes()) != 1) {
			t.Errorf("damage at %d: up %v, before %v; notes %q", at, up, before, s.Notes())
		}
		if at == len(b)-2 && (up >= before || up < before/2 || len(s.Notes()) != 1) {
			t.Errorf("a damaged chunk: up %v, before %v; notes %q", up, before, s.Notes())
		}
	}
	// The next start of the daemon makes what is missing.
	if err := os.Remove(victim.path); err != nil {
		t.Fatal(err)
	}
	if err := start(t, Options{Dir: j.o.Dir}).Close(); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(victim.path)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("the sheet was not made again: %v", err)
	}
	// A crash in the middle of writing one leaves a file of another name.
	if err := os.WriteFile(victim.path+".new", b[:40], 0o600); err != nil {
		t.Fatal(err)
	}
	if s := read(t, j.o.Dir); len(s.Notes()) > 0 {
		t.Errorf("notes: %q", s.Notes())
	}
	// Without the records the time is lost, and said.
	if err := os.WriteFile(victim.path, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(strings.TrimSuffix(victim.path, sheetSuffix) + suffix); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	up, down := total(s, vip)
	if up >= before || up+down > 300*time.Second || len(s.Notes()) != 1 {
		t.Errorf("up %v, down %v; notes %q", up, down, s.Notes())
	}
}

// Reading a part gives of that part what reading all gives.
func TestReadingAPart(t *testing.T) {
	j := flapping(t, Options{SegmentBytes: 8 << 10}, 300)
	s := read(t, j.o.Dir)
	cut := func(in func(Thing, time.Time, time.Time) []sla.Interval, from, to time.Time) (out []string) {
		for _, iv := range in(vip, from, to) {
			if iv.To.After(from) && iv.From.Before(to) {
				out = append(out, fmt.Sprint(iv.From.Sub(epoch), iv.To.Sub(epoch), iv.State))
			}
		}
		return out
	}
	all := func(t Thing, _, _ time.Time) (list []sla.Interval) {
		for iv := range s.Intervals(t) {
			list = append(list, iv)
		}
		return list
	}
	part := func(t Thing, from, to time.Time) (list []sla.Interval) {
		for iv := range s.IntervalsIn(t, from, to) {
			list = append(list, iv)
		}
		return list
	}
	for from := 0; from < 300; from += 37 {
		for _, length := range []int{1, 10, 100} {
			a, b := epoch.Add(time.Duration(from)*time.Second), epoch.Add(time.Duration(from+length)*time.Second)
			same(t, cut(all, a, b), cut(part, a, b))
		}
	}
	if len(part(vip, epoch.Add(100*time.Second), epoch.Add(110*time.Second))) > 150 {
		t.Error("a part is read with all the rest")
	}
}

// Several changes of a thing wait for the disk where a file ends: the next one
// begins with how it was before them.
func TestManyChangesWhereAFileEnds(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read, SegmentBytes: 200})
	j.States([]Change{up(vip, c.read().Uptime)})
	j.flush() // the file is full now
	j.ask(func() {
		for i := range 4 {
			c.pass(10 * time.Second)
			j.States([]Change{{Thing: vip, State: []sla.State{sla.Down, sla.Up}[i%2], Since: c.read().Uptime}})
		}
	})
	c.pass(10 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, []string{"0-10 up", "10-20 down", "20-30 up", "30-40 down", "40-50 up"}, tell(read(t, j.o.Dir), vip))
}

// Whatever a file holds, it is a sheet, or an error.
func FuzzSheet(f *testing.F) {
	m := newSheetMaker(1, newNames())
	m.add(&Record{At: epoch, Uptime: time.Hour, Kind: KindOpen, Open: &Opening{"lvs01", "boot", "run"}})
	m.add(&Record{At: epoch, Uptime: time.Hour, Kind: KindState, State: &Change{Thing: vip, State: sla.Down, Since: time.Hour - time.Second, Why: "no beat"}})
	m.add(&Record{At: epoch, Uptime: time.Hour + time.Second, Kind: KindState, State: &Change{Thing: vip, State: sla.Up, Since: time.Hour, Where: "lvs02", Ended: &Repair{Detect: 1, Decide: 2, Switch: 3, Verify: 4}}})
	m.add(&Record{At: epoch, Uptime: time.Hour + time.Second, Kind: KindStep, Step: time.Hour, Text: "stepped"})
	m.add(&Record{At: epoch, Uptime: time.Hour, Kind: KindAlive, Open: &Opening{"lvs01", "boot", "earlier"}})
	s := m.finish()
	file := s.encode()
	header := file[sheetHead : len(file)-len(s.body)]
	f.Add(header, s.body)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, header, body []byte) {
		s, err := decodeHeader(header, 0, int64(len(body)), newNames())
		if err == nil {
			s.body = body
			for _, c := range s.chunks {
				_, _ = s.bytes(s.names.things[c.thing], nil) // most have a bad checksum
			}
			again := s.encode()
			if _, err := decodeHeader(again[sheetHead:len(again)-len(body)], 0, int64(len(body)), newNames()); err != nil {
				t.Errorf("it does not survive being written: %v", err)
			}
		}
		var k mark
		for b, n := body, 0; len(b) > 0; n++ {
			rest := k.next(b, 0, 3)
			if rest == nil {
				break
			}
			if len(rest) >= len(b) || k.where > 2 || k.why > 2 {
				t.Fatalf("%d bytes of %d: %+v", len(rest), len(b), k)
			}
			b = rest
		}
	})
}

// requireRoot skips a test that mounts; in CI that is a failure.
func requireRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("BATUTA_REQUIRE_ROOT") == "1":
		t.Fatal("needs root")
	default:
		t.Skip("needs root")
	}
}

// A file system that is really full, and has room again.
func TestARealDiskThatIsFull(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("BATUTA_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err) // root without the right to mount
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := newClocks()
	var reports []string
	j := start(t, Options{Dir: filepath.Join(dir, "journal"), clock: c.read, SegmentBytes: 16 << 10, retry: time.Second,
		Report: func(e model.Event) { reports = append(reports, e.Kind+": "+e.Text) }})
	j.States([]Change{up(vip, c.read().Uptime)})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // far more than there is room for; nobody is held up
		c.pass(time.Second)
		j.Event(model.Event{Source: "director", Kind: "check-failed", Text: strings.Repeat("x", 200)})
		j.tickNow()
	}
	if len(reports) != 1 || !strings.Contains(reports[0], "journal-failed: ") || !strings.Contains(reports[0], "no space left on device") {
		t.Fatalf("reports: %q", reports)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	c.pass(time.Minute)
	j.tickNow()
	if len(reports) != 2 || !strings.Contains(reports[1], "journal-works: the journal is written again; ") {
		t.Fatalf("reports: %q", reports)
	}
	j.States([]Change{{Thing: vip, State: sla.Down, Since: c.read().Uptime}})
	c.pass(time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	same(t, []string{"0-1060 up", "1060-1061 down"}, tell(s, vip))
	if len(s.Notes()) != 1 || !strings.Contains(s.Notes()[0], "the journal could not be written") {
		t.Errorf("notes: %q", s.Notes())
	}
}
