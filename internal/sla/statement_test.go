package sla

import (
	"encoding/json"
	"flag"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files again")

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// story is a record written as "STATE LENGTH" steps from an instant on; a
// length of "gap" is no record.
func story(t testing.TB, from time.Time, steps string) []Interval {
	t.Helper()
	names := map[string]State{"up": Up, "degraded": Degraded, "down": Down, "planned": Planned, "unknown": Unknown}
	var out []Interval
	at := from
	for step := range strings.SplitSeq(steps, ",") {
		words := strings.Fields(step)
		d, err := time.ParseDuration(words[1])
		if err != nil {
			t.Fatal(err)
		}
		if words[0] != "gap" {
			out = append(out, Interval{From: at, To: at.Add(d), State: names[words[0]]})
		}
		at = at.Add(d)
	}
	return out
}

// October 2026 in Berlin: 745 hours. A crash that was repaired in steps, a
// planned window, a night without a recorder, and a crash that goes on.
func october(t testing.TB) ([]Interval, Period, time.Time) {
	t.Helper()
	berlin := zone(t, "Europe/Berlin")
	now := time.Date(2026, 10, 25, 12, 0, 0, 0, berlin)
	p := PeriodAt(PerMonth, now)
	record := story(t, p.From.Add(-time.Hour), `up 101h, down 40s, up 99h59m20s, planned 30m, up 9h30m,
		gap 8h, up 200h, degraded 2h, down 4m, up 174h51m, down 5m`)
	record[1].Repair = Repair{Detect: 3 * time.Second, Decide: time.Second, Switch: 30 * time.Second, Verify: 2 * time.Second}
	record[7].Repair = Repair{Detect: 3 * time.Minute, Decide: 30 * time.Second, Switch: 20 * time.Second, Verify: 10 * time.Second}
	return record, p, now
}

func TestStatement(t *testing.T) {
	record, p, now := october(t)
	s, err := Account(slices.Values(record), p, now, Agreement{Target: 1e-3})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "october.txt", s.String())
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "october.json", string(b)+"\n")

	hours, err := ParseHours("Mon-Fri 08:00-18:00", p.From.Location())
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Account(slices.Values(record), p, now, Agreement{Target: 1e-3, Hours: hours}); err != nil {
		t.Fatal(err)
	}
	golden(t, "october-hours.txt", s.String())

	if s, err = Account(slices.Values(story(t, p.From, "up 300h")), p, now, Agreement{Target: 1e-3}); err != nil {
		t.Fatal(err)
	}
	golden(t, "october-without-failures.txt", s.String())
	if s, err = Account(slices.Values([]Interval{}), p, now, Agreement{Target: 1e-3}); err != nil {
		t.Fatal(err)
	}
	golden(t, "october-without-record.txt", s.String())
}

func TestFailuresAreCountedOnce(t *testing.T) {
	utc := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	p := Period{Name: "day", From: utc.Add(24 * time.Hour), To: utc.Add(48 * time.Hour)}
	for _, c := range []struct {
		name, record string
		failures     int
		down         Span
		longest      Span
	}{
		{"none", "up 48h", 0, 0, 0},
		{"two", "up 25h, down 1m, up 1h, down 2m, up 10h", 2, 180, 120},
		{"one in two records", "up 25h, down 1m, down 2m, up 10h", 1, 180, 180},
		{"began yesterday", "up 23h, down 2h, up 10h", 0, 3600, 3600},
		{"began yesterday, goes on in a new record", "up 23h, down 1h, down 1h, up 10h", 0, 3600, 3600},
		{"began with the period", "up 24h, down 1h, up 10h", 1, 3600, 3600},
		{"nothing is known of before", "gap 24h, down 1h, up 10h", 1, 3600, 3600},
		{"the recorder died in the middle", "up 25h, down 1m, unknown 1h, down 1m, up 1h", 1, 120, 120},
		{"repaired in a planned window", "up 25h, down 1m, planned 1h, up 1h", 1, 60, 60},
		{"a window that was too short", "up 25h, planned 1h, down 10m, up 1h", 1, 600, 600},
		{"degraded to down", "degraded 25h, down 1m, degraded 1h", 1, 60, 60},
		{"lasts until today's end and on", "up 47h, down 2h", 1, 3600, 3600},
		{"tomorrow's", "up 49h, down 2h", 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Account(slices.Values(story(t, utc, c.record)), p, p.To, Agreement{})
			if err != nil {
				t.Fatal(err)
			}
			var longest Span
			if s.Longest != nil {
				longest = s.Longest.Down
			}
			if s.Failures != c.failures || s.Down != c.down || longest != c.longest {
				t.Errorf("%d failures, %s down, longest %s; want %d, %s, %s", s.Failures, s.Down, longest, c.failures, c.down, c.longest)
			}
		})
	}
}

func TestBurnRates(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	p := PeriodAt(PerMonth, now)
	for _, c := range []struct {
		name, record string // until now
		want         string // rates long/short, ! = alert
	}{
		{"quiet", "up 100h", "0/0 0/0 0/0 0/0"},
		{"nothing known", "gap 100h", "?/? ?/? ?/? ?/?"},
		{"down since three minutes", "up 99h57m, down 3m", "50/600! 8.33/100! 2.08/25 0.694/8.33"},
		{"was down an hour ago", "up 98h50m, down 10m, up 1h", "0/0 27.8/0 6.94/83.3! 2.31/27.8!"},
		{"slow leak", "up 28h, down 10m, up 71h45m, down 5s, up 4m55s", "1.39/16.7 0.231/2.78 0.0579/0.694 2.33/0.231"},
		{"a planned window costs nothing", "up 99h, planned 1h", "?/? 0/? 0/0 0/0"},
		{"half of it is unknown", "up 99h, gap 30m, up 15m, down 15m", "500/1000! 45.5/500! 10.6/167! 3.5/45.5!"},
	} {
		t.Run(c.name, func(t *testing.T) {
			record := story(t, now.Add(-100*time.Hour), c.record)
			s, err := Account(slices.Values(record), p, now, Agreement{Target: 1e-3})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, b := range s.Burn {
				text := rateText(b.LongRate) + "/" + rateText(b.ShortRate)
				if b.Alert {
					text += "!"
				}
				got = append(got, strings.ReplaceAll(text, "unknown", "?"))
			}
			if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAccountRefuses(t *testing.T) {
	from := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	p := PeriodAt(PerMonth, from)
	at := func(h int) time.Time { return from.Add(time.Duration(h) * time.Hour) }
	for want, record := range map[string][]Interval{
		"overlaps the one before": {{From: at(0), To: at(2), State: Up}, {From: at(1), To: at(3), State: Up}},
		"ends before it begins":   {{From: at(2), To: at(1), State: Up}},
		"has no state":            {{From: at(1), To: at(2)}},
	} {
		if _, err := Account(slices.Values(record), p, at(9), Agreement{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := Account(slices.Values([]Interval{}), Period{From: at(1), To: at(1)}, at(9), Agreement{}); err == nil {
		t.Error("an empty period is accounted")
	}
}

// records draws a record of one thing.
func records(t *rapid.T, label string, from time.Time) []Interval {
	var out []Interval
	at := from.Add(time.Duration(rapid.Int64Range(0, 3600).Draw(t, label+" offset")) * time.Second)
	for range rapid.IntRange(0, 12).Draw(t, label) {
		to := at.Add(time.Duration(rapid.Int64Range(1, 40*3600).Draw(t, "length")) * time.Second)
		s := rapid.SampledFrom([]State{StateUnset, Unknown, Up, Up, Degraded, Down, Planned}).Draw(t, "state")
		iv := Interval{From: at, To: to, State: s}
		if s == Down {
			iv.Repair.Detect = time.Duration(rapid.Int64Range(0, 1000).Draw(t, "detect")) * time.Second
			iv.Repair.Switch = time.Duration(rapid.Int64Range(0, 1000).Draw(t, "switch")) * time.Second
		}
		if s != StateUnset { // a gap
			out = append(out, iv)
		}
		at = to
	}
	return out
}

// A period is the sum of its parts, nothing is negative or more than all, and
// the tutorial's formula holds: A = MTBF/(MTBF+MTTR).
func TestStatementsAddUp(t *testing.T) {
	from := time.Date(2026, 10, 20, 0, 0, 0, 0, time.UTC)
	hours, err := ParseHours("Mon-Sat 07:00-23:00", zone(t, "Europe/Berlin"))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		record := records(t, "record", from)
		agreed := Agreement{Hours: rapid.SampledFrom([]*Hours{nil, hours}).Draw(t, "hours")}
		cut := from.Add(time.Duration(rapid.Int64Range(1, 30*86400).Draw(t, "cut")) * time.Second)
		end := cut.Add(time.Duration(rapid.Int64Range(1, 30*86400).Draw(t, "end")) * time.Second)
		account := func(a, b time.Time) Statement {
			s, err := Account(slices.Values(record), Period{From: a, To: b}, end, agreed)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		first, second, all := account(from, cut), account(cut, end), account(from, end)
		same := func(what string, a, b, sum Span) {
			if math.Abs(float64(a+b-sum)) > 1e-6 || a < 0 || b < 0 {
				t.Fatalf("%s: %s and %s are not %s", what, a, b, sum)
			}
		}
		same("up", first.Up, second.Up, all.Up)
		same("degraded", first.Degraded, second.Degraded, all.Degraded)
		same("down", first.Down, second.Down, all.Down)
		same("planned", first.Planned, second.Planned, all.Planned)
		same("unknown", first.Unknown, second.Unknown, all.Unknown)
		same("service", first.Service, second.Service, all.Service)
		same("everything", all.Up+all.Degraded+all.Down+all.Planned, all.Unknown, all.Service)
		if first.Failures+second.Failures != all.Failures {
			t.Fatalf("%d and %d failures are not %d", first.Failures, second.Failures, all.Failures)
		}
		for _, u := range []*Unavailability{all.Unplanned, all.Total, all.Worst} {
			if u != nil && !(*u >= 0 && *u <= 1) {
				t.Fatalf("unavailability %g", float64(*u))
			}
		}
		if all.MTBF != nil {
			if a := *all.MTBF / (*all.MTBF + *all.MTTR); math.Abs(float64(a)-all.Unplanned.Availability()) > 1e-12 {
				t.Fatalf("MTBF/(MTBF+MTTR) = %g, availability %g", float64(a), all.Unplanned.Availability())
			}
			parts := all.Parts
			if sum := parts.Detect + parts.Decide + parts.Switch + parts.Verify + parts.Rest; math.Abs(float64(sum-*all.MTTR)) > 1e-6 {
				t.Fatalf("the parts are %s, MTTR %s", sum, *all.MTTR)
			}
		}
		_ = all.String()
	})
}

// The order in which records are merged does not matter, nor how; each instant
// has the strongest of its states.
func TestMerge(t *testing.T) {
	from := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	collect := func(seq iter.Seq[Interval]) []Interval {
		var out []Interval
		for iv := range seq {
			out = append(out, iv)
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := records(t, "a", from), records(t, "b", from), records(t, "c", from)
		got := collect(Merge(slices.Values(a), slices.Values(b), slices.Values(c)))
		if diff := cmp.Diff(got, collect(Merge(slices.Values(c), slices.Values(a), slices.Values(b)))); diff != "" {
			t.Fatalf("the order matters:\n%s", diff)
		}
		stateAt := func(record []Interval, at time.Time) State {
			for _, iv := range record {
				if !at.Before(iv.From) && at.Before(iv.To) {
					return iv.State
				}
			}
			return StateUnset
		}
		var last time.Time
		for _, iv := range got {
			if iv.From.Before(last) || !iv.From.Before(iv.To) {
				t.Fatalf("%v after %v", iv, last)
			}
			last = iv.To
		}
		for range 20 {
			at := from.Add(time.Duration(rapid.Int64Range(0, 20*86400).Draw(t, "at")) * time.Second)
			want := max(stateAt(a, at), stateAt(b, at), stateAt(c, at))
			if have := stateAt(got, at); have != want {
				t.Fatalf("at %s: %s, want %s", at, have, want)
			}
		}
		// Down time and its explanation survive.
		p := Period{From: from, To: from.AddDate(0, 1, 0)}
		x, err := Account(Merge(slices.Values(a)), p, p.To, Agreement{})
		if err != nil {
			t.Fatal(err)
		}
		y, err := Account(slices.Values(a), p, p.To, Agreement{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(y, x); diff != "" {
			t.Fatalf("merged alone it differs:\n%s", diff)
		}
	})
}

// A year as it was, in milliseconds, and two recorders of it that crash now and
// then, but never both at once: what they know together is the truth, month by
// month, through both changes of the clock.
func TestScriptedYear(t *testing.T) {
	seed := uint64(2026)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := PeriodAt(PerYear, time.Date(2026, 6, 1, 0, 0, 0, 0, zone(t, "Europe/Berlin")))
	var truth, first, second []Interval
	var total [states]time.Duration
	failures := 0
	last := StateUnset
	for at := p.From; at.Before(p.To); {
		s := []State{Up, Up, Up, Degraded, Down, Planned}[rng.IntN(6)]
		length := time.Duration(1+rng.Int64N(4*3600*1000)) * time.Millisecond
		iv := Interval{From: at, To: earlier(at.Add(length), p.To), State: s}
		at = iv.To
		truth = append(truth, iv)
		total[s] += iv.To.Sub(iv.From)
		if s == Down && last != Down {
			failures++
		}
		if s != Planned {
			last = s
		}
		// One recorder dies in the middle and comes back with the next
		// interval; sometimes it says that it does not know.
		whole, torn := &first, &second
		if rng.IntN(2) == 0 {
			whole, torn = torn, whole
		}
		*whole = append(*whole, iv)
		died := iv.From.Add(time.Duration(rng.Int64N(int64(iv.To.Sub(iv.From))))).Truncate(time.Millisecond)
		if died.After(iv.From) {
			*torn = append(*torn, Interval{From: iv.From, To: died, State: s})
		}
		if rng.IntN(2) == 0 {
			*torn = append(*torn, Interval{From: later(died, iv.From), To: iv.To, State: Unknown})
		}
	}
	var got [states]Span
	found := 0
	for m := PeriodAt(PerMonth, p.From); m.From.Before(p.To); m = PeriodAt(PerMonth, m.To) {
		s, err := Account(Merge(slices.Values(first), slices.Values(second)), m, p.To, Agreement{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Unknown != 0 || s.Service != SpanOf(m.Length()) {
			t.Errorf("%s: %s unknown, service %s", m.Name, s.Unknown, s.Service)
		}
		for st, d := range map[State]Span{Up: s.Up, Degraded: s.Degraded, Down: s.Down, Planned: s.Planned} {
			got[st] += d
		}
		found += s.Failures
	}
	for _, st := range []State{Up, Degraded, Down, Planned} {
		if math.Abs(float64(got[st]-SpanOf(total[st]))) >= 1e-3 {
			t.Errorf("%s: %s, in truth %s", st, got[st], total[st])
		}
	}
	if found != failures {
		t.Errorf("%d failures, in truth %d of %d intervals", found, failures, len(truth))
	}
}

// Merging stops when its reader does.
func TestMergeStops(t *testing.T) {
	from := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	record := story(t, from, "up 1h, down 1h, up 1h")
	for range Merge(slices.Values(record), slices.Values(record)) {
		break
	}
}

func TestChiSquare(t *testing.T) {
	// Abramowitz and Stegun, table 26.8.
	for _, c := range []struct{ p, degrees, want float64 }{
		{0.9, 2, 4.60517}, {0.95, 2, 5.99146}, {0.05, 2, 0.102587}, {0.95, 4, 9.48773}, {0.05, 4, 0.710721},
		{0.99, 10, 23.2093}, {0.01, 10, 2.55821}, {0.5, 1, 0.454936}, {0.95, 100, 124.342}, {0.05, 100, 77.9295},
	} {
		if got := ChiSquareQuantile(c.p, c.degrees); math.Abs(got-c.want) > 1e-5*c.want {
			t.Errorf("%g of %g degrees: %g, want %g", c.p, c.degrees, got, c.want)
		}
	}
	// Two degrees of freedom are an exponential distribution.
	for _, p := range []float64{1e-9, 0.1, 0.5, 0.9, 0.999999} {
		near(t, "two degrees", ChiSquareQuantile(p, 2), -2*math.Log1p(-p), 1e-9)
	}
	for _, bad := range [][2]float64{{0, 2}, {1, 2}, {0.5, 0}, {math.NaN(), 2}} {
		if got := ChiSquareQuantile(bad[0], bad[1]); !math.IsNaN(got) {
			t.Errorf("%v: %g", bad, got)
		}
	}
	// No failure in T: the MTBF is at least T/ln 10 with 90 %.
	b := MTBFBounds(1000*Hour, 0, 0.9)
	near(t, "no failure", float64(b.Low), float64(1000*Hour)/math.Ln10, 1e-9)
	if !math.IsInf(float64(b.High), 1) {
		t.Error("no failure, but an upper bound")
	}
	// What Few stands for.
	for n := range 10 {
		b := MTBFBounds(1000*Hour, n+1, 0.9)
		if wide := b.High/b.Low > 10; wide != (n+1 < Few) {
			t.Errorf("%d failures: bounds a factor of %.3g apart", n+1, float64(b.High/b.Low))
		}
	}
}

// year is a record of n intervals that fill a year, made up as it is read.
func year(n int) (iter.Seq[Interval], Period) {
	p := PeriodAt(PerYear, time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC))
	step := p.Length() / time.Duration(n)
	return func(yield func(Interval) bool) {
		at := p.From
		for i := range n {
			iv := Interval{From: at, To: at.Add(step), State: Up}
			switch {
			case i%1000 == 999:
				iv.State = Planned
			case i%2 == 1:
				iv.State = Down
				iv.Repair = Repair{Detect: step / 4, Switch: step / 2}
			}
			if !yield(iv) {
				return
			}
			at = iv.To
		}
	}, p
}

// BenchmarkYear is the yearly statement of ten million intervals: at most one
// second and 100 MB. The intervals are read once and not kept.
func BenchmarkYear(b *testing.B) {
	berlin := zone(b, "Europe/Berlin")
	hours, err := ParseHours("Mon-Fri 08:00-18:00", berlin)
	if err != nil {
		b.Fatal(err)
	}
	for name, h := range map[string]*Hours{"always": nil, "office hours": hours} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				record, p := year(10_000_000)
				if _, err := Account(record, p, p.To, Agreement{Target: 1e-3, Hours: h}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Memory does not grow with the number of intervals.
func TestAccountKeepsNothing(t *testing.T) {
	used := func(n int) uint64 {
		record, p := year(n)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := Account(record, p, p.To, Agreement{Target: 1e-3}); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	few, many := used(1000), used(300_000)
	if many > few+1<<20 {
		t.Errorf("%d bytes for 1000 intervals, %d for 300000", few, many)
	}
}
