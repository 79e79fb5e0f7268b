package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// clocks are both clocks of a machine, moved by hand.
type clocks struct {
	mu  sync.Mutex
	now Instant
}

func newClocks() *clocks { return &clocks{now: Instant{epoch, time.Hour}} }

func (c *clocks) read() Instant { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clocks) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Wall, c.now.Uptime = c.now.Wall.Add(d), c.now.Uptime+d
}
func (c *clocks) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Wall = c.now.Wall.Add(d)
}

// start begins a journal that writes nothing by itself: the test is its goroutine.
func start(t *testing.T, o Options) *Journal {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Node == "" {
		o.Node = "lvs01"
	}
	if o.boot == "" {
		o.boot = "boot-1"
	}
	o.Sync = time.Hour // the ticks are the test's
	j, err := Begin(o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// crash ends a journal as a killed process does: nothing more is written.
func crash(t *testing.T, j *Journal) {
	t.Helper()
	j.flush()
	j.ask(func() { j.w.f = nil }) // neither a last record nor a sign of life
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// ask has the journal's goroutine do something now.
func (j *Journal) ask(f func()) {
	done := make(chan struct{})
	j.asks <- func() { f(); close(done) }
	<-done
}

// flush has it write the queue.
func (j *Journal) flush() { j.ask(func() { j.w.records(j.take()) }) }
func (j *Journal) tickNow() {
	j.ask(func() { j.w.records(j.take()); j.w.tick() })
}

func up(thing Thing, since time.Duration) Change {
	return Change{Thing: thing, State: sla.Up, Since: since, Where: "lvs01"}
}

var vip = Thing{ThingAddress, "10.1.0.100"}

func read(t *testing.T, dirs ...string) *Story {
	t.Helper()
	s, err := Open(dirs...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func entries(t *testing.T, s *Story) (all []Entry) {
	t.Helper()
	if err := s.Entries(never, forever, func(e Entry) bool { all = append(all, e); return true }); err != nil {
		t.Fatal(err)
	}
	return all
}

// tell is the text form of the intervals of a thing, in seconds since the epoch.
func tell(s *Story, thing Thing) []string {
	var out []string
	for iv := range s.Intervals(thing) {
		out = append(out, fmt.Sprintf("%g-%g %s", iv.From.Sub(epoch).Seconds(), iv.To.Sub(epoch).Seconds(), iv.State))
	}
	return out
}

func same(t *testing.T, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read})
	c.pass(10 * time.Second)
	j.Event(model.Event{At: c.read().Wall.Add(-2 * time.Second), Level: model.LevelWarning, Source: "heartbeat", Kind: "node-dead", Subject: "lvs02", Text: "node lvs02: is dead"})
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(50 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	same(t, []string{"10-60 up"}, tell(s, vip))
	var events []string
	for _, e := range entries(t, s) {
		if e.Kind == KindEvent {
			events = append(events, fmt.Sprintf("%s at %g: %s %s", e.ID, e.Time.Sub(epoch).Seconds(), e.Event.Level, e.Event.Text))
		}
	}
	same(t, []string{"lvs01:2 at 8: WARN node lvs02: is dead"}, events)
	same(t, []string(nil), s.Notes())
}

func TestATornTailIsCutAndReported(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read})
	j.States([]Change{up(vip, c.read().Uptime)})
	j.flush()
	c.pass(5 * time.Second)
	j.Event(model.Event{Source: "director", Kind: "reload", Text: "the last line"})
	crash(t, j)
	all, err := segments(j.o.Dir, suffix)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(all[0].path, all[0].size-7); err != nil {
		t.Fatal(err)
	}
	var reports []string
	c.pass(20 * time.Second)
	j = start(t, Options{Dir: j.o.Dir, clock: c.read, Report: func(e model.Event) { reports = append(reports, e.Kind) }})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	if len(reports) != 1 || reports[0] != "torn" || len(s.Notes()) != 1 || !strings.Contains(s.Notes()[0], "torn by a crash") {
		t.Errorf("reports %q, notes %q", reports, s.Notes())
	}
	for _, e := range entries(t, s) {
		if e.Kind == KindEvent {
			t.Errorf("a torn record was read: %+v", e)
		}
	}
}

// Between the last sign of life and the next start nobody was looking.
func TestTheTimeBetweenACrashAndTheNextStartIsUnknown(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read})
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(30 * time.Second)
	j.tickNow()
	c.pass(500 * time.Millisecond)
	crash(t, j)
	c.pass(60 * time.Second)
	j = start(t, Options{Dir: j.o.Dir, clock: c.read})
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(10 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, []string{"0-30 up", "90.5-100.5 up"}, tell(read(t, j.o.Dir), vip))
}

// A step corrects what was placed by the wrong clock; lengths stay.
func TestAStepOfTheClockChangesNoLength(t *testing.T) {
	c := newClocks()
	c.step(-time.Hour) // the machine started with a wrong clock
	j := start(t, Options{clock: c.read})
	j.States([]Change{up(vip, c.read().Uptime)})
	j.flush()
	c.pass(10 * time.Second)
	c.step(time.Hour)
	j.tickNow()
	c.pass(10 * time.Second)
	j.States([]Change{{Thing: vip, State: sla.Down, Since: c.read().Uptime}})
	c.pass(5 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	same(t, []string{"0-20 up", "20-25 down"}, tell(s, vip))
	if len(s.Notes()) != 1 || !strings.Contains(s.Notes()[0], "stepped by 1h0m0s") {
		t.Errorf("notes: %q", s.Notes())
	}
}

// The files stay within their bound, and each can be read without those before.
func TestOldFilesGoAndStatesStay(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read, MaxBytes: 64 << 10, SegmentBytes: 8 << 10})
	j.States([]Change{up(vip, c.read().Uptime)})
	for range 2000 {
		c.pass(time.Second)
		j.Event(model.Event{Source: "director", Kind: "check-failed", Text: strings.Repeat("x", 100)})
		j.flush()
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := segments(j.o.Dir, suffix)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, s := range all {
		total += s.size
	}
	if total > 64<<10 || len(all) < 4 {
		t.Errorf("%d files with %d bytes", len(all), total)
	}
	same(t, []string{"0-2000 up"}, tell(read(t, j.o.Dir), vip))
}

// brokenDisk is a disk that is full while told so.
type brokenDisk struct{ full bool }

type brokenFile struct {
	*os.File
	disk *brokenDisk
}

func (f brokenFile) Write(b []byte) (int, error) {
	if f.disk.full {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, syscall.ENOSPC
	}
	return f.File.Write(b)
}

func (d *brokenDisk) open(name string, flag int) (file, error) {
	if d.full && strings.HasSuffix(name, suffix) {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.ENOSPC}
	}
	f, err := os.OpenFile(name, flag, 0o600)
	return brokenFile{f, d}, err
}

func TestAFullDiskStopsTheJournalOnlyAndSaysSoOnce(t *testing.T) {
	c := newClocks()
	disk := &brokenDisk{}
	var reports []string
	j := start(t, Options{clock: c.read, openFile: disk.open, retry: 10 * time.Second, Report: func(e model.Event) { reports = append(reports, e.Text) }})
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(5 * time.Second)
	j.flush()
	j.ask(func() { disk.full = true })
	for range 5 {
		j.Event(model.Event{Source: "director", Kind: "reload", Text: "lost"})
		j.flush()
		c.pass(20 * time.Second)
		j.tickNow()
	}
	flap := Thing{ThingService, "tcp 10.1.0.100:80"} // known for sure again from its last change on
	for i, state := range []sla.State{sla.Up, sla.Down, sla.Up} {
		j.States([]Change{{Thing: flap, State: state, Since: time.Hour + time.Duration(60+10*i)*time.Second}})
	}
	j.States([]Change{{Thing: Thing{ThingNode, "lvs02"}, State: sla.Down, Since: time.Hour + 70*time.Second}})
	j.flush()
	j.ask(func() { disk.full = false })
	c.pass(20 * time.Second)
	j.tickNow()
	j.Event(model.Event{Source: "director", Kind: "reload", Text: "kept"})
	c.pass(5 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if len(reports) != 2 || !strings.Contains(reports[0], "no space left on device") || !strings.Contains(reports[1], "9 records were lost") {
		t.Errorf("reports: %q", reports)
	}
	s := read(t, j.o.Dir)
	if len(s.Notes()) != 1 || !strings.Contains(s.Notes()[0], "the journal could not be written (9)") {
		t.Errorf("notes: %q", s.Notes())
	}
	same(t, []string{"0-130 up"}, tell(s, vip))
	same(t, []string{"60-80 unknown", "80-130 up"}, tell(s, flap))
	same(t, []string{"70-130 down"}, tell(s, Thing{ThingNode, "lvs02"}))
}

// The survivor's journal tells what the dead node's cannot.
func TestTwoJournalsTellOneStory(t *testing.T) {
	c := newClocks()
	one := start(t, Options{clock: c.read, boot: "a"})
	two := start(t, Options{clock: c.read, boot: "b", Node: "lvs02"})
	one.States([]Change{up(vip, c.read().Uptime)})
	two.States([]Change{up(vip, c.read().Uptime)})
	c.pass(100 * time.Second)
	one.tickNow()
	crash(t, one)
	silent := c.read().Uptime
	c.pass(3 * time.Second)
	two.States([]Change{
		{Thing: vip, State: sla.Down, Since: silent},
		{Thing: vip, State: sla.Up, Since: c.read().Uptime, Where: "lvs02", Ended: &Repair{Detect: 2 * time.Second, Switch: time.Second}},
	})
	c.pass(10 * time.Second)
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"0-100 up", "100-103 down", "103-113 up"}
	same(t, want, tell(read(t, one.o.Dir, two.o.Dir), vip))
	same(t, want, tell(read(t, two.o.Dir, one.o.Dir), vip))
	for iv := range read(t, two.o.Dir).Intervals(vip) {
		if iv.State == sla.Down {
			same(t, sla.Repair{Detect: 2 * time.Second, Switch: time.Second}, iv.Repair)
		}
	}
}

// A window excuses what it was declared for before it began, and no more.
func TestWindowsCountWhenDeclaredBefore(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read})
	declare := func(declared, from, to int, about string) {
		at := func(s int) time.Time { return epoch.Add(time.Duration(s) * time.Second) }
		if _, err := Declare(j.o.Dir, Window{ID: NewWindowID(), Declared: at(declared), From: at(from), To: at(to), About: about, Reason: "new cables"}); err != nil {
			t.Fatal(err)
		}
	}
	declare(0, 20, 30, "vip")
	declare(36, 35, 40, "vip") // late
	declare(0, 10, 50, "service")
	j.States([]Change{up(vip, c.read().Uptime)})
	j.States([]Change{{Thing: vip, State: sla.Down, Since: c.read().Uptime + 10*time.Second}})
	c.pass(40 * time.Second)
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(10 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	same(t, []string{"0-10 up", "10-20 down", "20-30 planned", "30-40 down", "40-50 up"}, tell(s, vip))
	if late := s.LateWindows(); len(late) != 1 {
		t.Errorf("late windows: %+v", late)
	}
	for at, want := range map[int]sla.State{5: sla.Up, 15: sla.Down, 25: sla.Planned, 35: sla.Down, 45: sla.Up, 99: sla.Unknown} {
		if got := s.At(epoch.Add(time.Duration(at) * time.Second)); got[0].State != want {
			t.Errorf("at %d: %+v, want %v", at, got[0], want)
		}
	}
}

// What the disk cannot take is counted; the latest states come through.
func TestAFloodLosesEventsAndNoState(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read, Queue: 10})
	j.ask(func() { // the disk hangs
		for range 100 {
			j.Event(model.Event{Source: "director", Kind: "check-failed", Text: "flood"})
		}
		for i := range 1001 {
			j.States([]Change{{Thing: vip, State: []sla.State{sla.Down, sla.Up}[i%2], Since: c.read().Uptime + time.Duration(i)*time.Millisecond}})
		}
	})
	c.pass(10 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	if len(s.Notes()) != 1 || !strings.Contains(s.Notes()[0], "more happened than the journal could write (91)") {
		t.Errorf("notes: %q", s.Notes())
	}
	all := tell(s, vip)
	same(t, "1-10 down", all[len(all)-1])
}

func TestDamageInTheMiddleCostsOneLine(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read})
	for i := range 3 {
		j.Event(model.Event{Source: "director", Kind: "reload", Text: fmt.Sprint("event ", i)})
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	name := segmentName(j.o.Dir, 1)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(b), "event 1", "event X", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	if len(s.Notes()) != 1 || !strings.Contains(s.Notes()[0], "checksum does not fit") || len(entries(t, s)) != 4 {
		t.Errorf("notes %q, %d entries", s.Notes(), len(entries(t, s)))
	}
}

func TestNoJournalSaysWhereItLooked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := Open(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error: %v", err)
	}
}

func FuzzParseLine(f *testing.F) {
	line, err := appendLine(nil, &Record{Seq: 7, At: epoch, Uptime: time.Second, Kind: KindState, State: &Change{Thing: vip, State: sla.Up}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line[:len(line)-1])
	f.Add([]byte("00000000 {}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseLine(b)
		if err != nil {
			return
		}
		again, err := appendLine(nil, &r)
		if err != nil {
			t.Skip("not representable")
		}
		if _, err := parseLine(again[:len(again)-1]); err != nil {
			t.Errorf("%q does not survive writing and reading: %v", b, err)
		}
	})
}

// The caller's cost of a record; the disk's is the goroutine's.
func BenchmarkEvent(b *testing.B) {
	j, err := Begin(Options{Dir: b.TempDir(), Node: "lvs01"})
	if err != nil {
		b.Fatal(err)
	}
	e := model.Event{At: time.Now(), Level: model.LevelInfo, Source: "director", Kind: "check-failed", Subject: "10.2.0.1:80", Text: "Check failed"}
	for b.Loop() {
		j.Event(e)
	}
	b.StopTimer()
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}

func TestATailShowsWhatIsAdded(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read, SegmentBytes: 300})
	j.Event(model.Event{Source: "director", Kind: "reload", Text: "before"})
	j.flush()
	tail, err := NewTail(j.o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range 4 {
		j.Event(model.Event{Source: "director", Kind: "reload", Text: fmt.Sprint("event ", i)})
		j.flush()
		list, err := tail.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			got = append(got, e.Event.Text)
		}
	}
	same(t, []string{"event 0", "event 1", "event 2", "event 3"}, got)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// Reading 100,000 changes and giving them as intervals.
func BenchmarkRead(b *testing.B) {
	c := newClocks()
	j, err := Begin(Options{Dir: b.TempDir(), Node: "lvs01", clock: c.read, boot: "boot-1", Sync: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	const n = 100_000
	for i := range n {
		c.pass(time.Second)
		j.States([]Change{{Thing: vip, State: []sla.State{sla.Down, sla.Up}[i%2], Since: c.read().Uptime}})
		if i%1000 == 0 {
			j.ask(func() {})
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(j.o.Dir)
		if err != nil {
			b.Fatal(err)
		}
		intervals := 0
		for range s.Intervals(vip) {
			intervals++
		}
		if intervals < n/2 {
			b.Fatalf("%d intervals", intervals)
		}
	}
}
