package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// machine is a node of the scripted year: a wall clock that is stepped now and
// then, an uptime that begins anew with each boot, and a recorder that crashes.
type machine struct {
	t    *testing.T
	name string
	now  *truth
	dir  string
	boot int
	j    *Journal

	// Of the clocks, under the truth's lock: the journal reads them, too.
	wrong time.Duration // by which the wall clock is wrong
	since time.Time     // of the boot
}

// truth is the time as it is.
type truth struct {
	mu  sync.Mutex
	now time.Time
}

func (c *truth) set(f func(now time.Time) time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = f(c.now)
}

func (c *truth) read() (now time.Time) {
	c.set(func(t time.Time) time.Time { now = t; return t })
	return now
}

func (m *machine) clock() (i Instant) {
	m.now.set(func(now time.Time) time.Time {
		i = Instant{now.Add(m.wrong), now.Sub(m.since)}
		return now
	})
	return i
}

// stepped has the wall clock wrong by that much.
func (m *machine) stepped(wrong time.Duration) {
	m.now.set(func(now time.Time) time.Time { m.wrong = wrong; return now })
}

// reboot begins another boot, a minute ago.
func (m *machine) reboot() {
	m.boot++
	m.now.set(func(now time.Time) time.Time { m.since = now.Add(-time.Minute); return now })
}

// hasty is a file that a test does not wait for.
type hasty struct{ *os.File }

func (hasty) Sync() error { return nil }

func openHasty(name string, flag int) (file, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	return hasty{f}, err
}

func (m *machine) begin() {
	m.j = start(m.t, Options{Dir: m.dir, Node: model.NodeName(m.name), clock: m.clock, boot: fmt.Sprintf("%s-%d", m.name, m.boot), SegmentBytes: 16 << 10, openFile: openHasty})
}

// A year of a service, accelerated: two nodes record what is so, through both
// changes of daylight saving time. Their recorders crash, the machines reboot,
// wall clocks are stepped and put right again; but one of the two is always
// there. What the journals tell together is the truth, month by month, to the
// millisecond.
func TestScriptedYear(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BATUTA_SEED"); text != "" { // of a year that failed
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			seed = n
		}
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	year := sla.PeriodAt(sla.PerYear, time.Date(2026, 7, 1, 0, 0, 0, 0, berlin))
	now := &truth{now: year.From.Add(-time.Hour)}
	thing := Thing{ThingService, "tcp 10.1.0.100:80"}
	state := sla.Up
	var happened []sla.Interval // the truth
	began := now.read()
	change := func(to sla.State) {
		happened = append(happened, sla.Interval{From: began, To: now.read(), State: state})
		state, began = to, now.read()
	}
	var nodes []*machine
	for i := range 2 {
		m := &machine{t: t, name: fmt.Sprintf("lvs0%d", i+1), now: now, dir: t.TempDir(), since: now.read().Add(-time.Duration(i+1) * time.Hour)}
		nodes = append(nodes, m)
	}
	see := func(m *machine) {
		m.j.States([]Change{{Thing: thing, State: state, Since: m.clock().Uptime, Where: "lvs01"}})
	}
	for _, m := range nodes {
		m.begin()
		see(m)
		m.j.tickNow()
	}
	pass := func(d time.Duration) {
		now.set(func(t time.Time) time.Time { return t.Add(d.Round(time.Millisecond)) })
	}
	for now.read().Before(year.To) {
		pass(time.Duration(r.ExpFloat64() * float64(4*time.Hour)))
		m, other := nodes[0], nodes[1]
		if r.IntN(2) == 0 {
			m, other = other, m
		}
		switch r.IntN(8) {
		case 0: // the recorder crashes, or all of the machine; the other one knows what happens meanwhile
			other.j.tickNow()
			m.j.tickNow()
			pass(time.Duration(r.IntN(1000)) * time.Millisecond)
			crash(t, m.j)
			pass(time.Duration(r.IntN(1000)) * time.Minute)
			if r.IntN(2) == 0 {
				change([]sla.State{sla.Up, sla.Degraded, sla.Down}[r.IntN(3)])
				see(other)
				pass(time.Duration(r.IntN(100)) * time.Minute)
			}
			if r.IntN(2) == 0 {
				m.reboot()
			}
			m.begin()
			see(m)
		case 1: // somebody sets a clock wrong, and time synchronization sets it right
			m.stepped(time.Duration(r.IntN(7200)-3600) * time.Second)
			m.j.tickNow()
			pass(time.Duration(r.IntN(100)) * time.Minute)
			see(m)
			m.stepped(0)
			m.j.tickNow()
		default:
			if next := []sla.State{sla.Up, sla.Degraded, sla.Down}[r.IntN(3)]; next != state {
				change(next)
				see(m)
				see(other)
			}
		}
	}
	pass(time.Hour)
	change(sla.Unknown)
	for _, m := range nodes {
		if err := m.j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	one, two := read(t, nodes[0].dir, nodes[1].dir), read(t, nodes[1].dir, nodes[0].dir)
	sheets, err := segments(nodes[0].dir, sheetSuffix)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d intervals happened; %d sheets, %d notes", len(happened), len(sheets), len(one.Notes()))
	if len(sheets) < 10 || len(one.Notes()) < 10 {
		t.Errorf("%d sheets, %d notes: nothing has been put to the test", len(sheets), len(one.Notes()))
	}
	figures := func(s sla.Statement) []string {
		ms := func(d sla.Span) string { return fmt.Sprintf("%.3f", float64(d)) }
		return []string{s.Period.Name, ms(s.Up), ms(s.Degraded), ms(s.Down), ms(s.Unknown), fmt.Sprint(s.Failures), fmt.Sprint(s.Unplanned)}
	}
	periods := []sla.Period{year}
	for month := time.January; month <= time.December; month++ {
		periods = append(periods, sla.PeriodAt(sla.PerMonth, time.Date(2026, month, 15, 12, 0, 0, 0, berlin)))
	}
	for _, p := range periods {
		want, err := sla.Account(sla.Merge(slices.Values(happened)), p, now.read(), sla.Agreement{})
		if err != nil {
			t.Fatal(err)
		}
		for _, story := range []*Story{one, two} {
			got, err := sla.Account(story.IntervalsIn(thing, p.From, p.To), p, now.read(), sla.Agreement{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(figures(want), figures(got)); d != "" {
				t.Errorf("-happened +told\n%s", d)
			}
		}
	}
}
