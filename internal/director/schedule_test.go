package director

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func probers(n int, interval, jitter time.Duration) []*prober {
	out := make([]*prober, n)
	for i := range out {
		out[i] = &prober{place: -1, probe: &probe{target: &model.Target{}, interval: interval, jitter: jitter}}
	}
	return out
}

// second is when the second checks come, if the first ones take no time.
func second(list []*prober) (at []time.Duration) {
	for _, w := range list {
		w.again(w.due, nil)
		at = append(at, w.at.Sub(began))
	}
	return at
}

// Few probers are spread evenly; many are in groups, so that the director
// wakes up for several at once; no moment has all of them.
func TestSpread(t *testing.T) {
	four := probers(4, time.Second, 0)
	spread(four, began)
	want := []time.Duration{125 * time.Millisecond, 375 * time.Millisecond, 625 * time.Millisecond, 875 * time.Millisecond}
	if d := cmp.Diff(want, second(four)); d != "" {
		t.Errorf("second checks of four (-want +got)\n%s", d)
	}
	for _, tc := range []struct{ n, groups, size int }{{20, 20, 1}, {100, 20, 5}, {500, 31, 17}, {5000, 312, 17}} {
		list := probers(tc.n, time.Second, 0)
		spread(list, began)
		if first := list[len(list)-1].at.Sub(began); first != time.Duration(tc.n-1)*startSpacing {
			t.Errorf("%d: the last first check comes after %v", tc.n, first)
		}
		size := map[time.Duration]int{}
		for _, at := range second(list) {
			size[at%time.Second]++
		}
		largest := 0
		for _, n := range size {
			largest = max(largest, n)
		}
		if len(size) != tc.groups || largest != tc.size {
			t.Errorf("%d: %d groups of up to %d, want %d of %d", tc.n, len(size), largest, tc.groups, tc.size)
		}
	}
}

// From then on a check is due each interval; one that took longer is followed
// by the next at once.
func TestAgain(t *testing.T) {
	w := probers(1, time.Second, 0)[0]
	spread([]*prober{w}, began)
	var due []time.Duration
	for _, took := range []time.Duration{0, 100, 999, 2500, 100} {
		w.again(w.at.Add(took*time.Millisecond), nil)
		due = append(due, w.at.Sub(began)/time.Millisecond)
	}
	if d := cmp.Diff([]time.Duration{500, 1500, 2500, 5000, 6000}, due); d != "" {
		t.Errorf("due, ms (-want +got)\n%s", d)
	}
}

// Jitter moves a check, but not those after it: on the whole the interval holds.
func TestJitter(t *testing.T) {
	const seed = 7
	w := probers(1, time.Second, 100*time.Millisecond)[0]
	spread([]*prober{w}, began)
	rnd := rand.New(rand.NewPCG(seed, seed))
	early, late := 0, 0
	for n := range 1000 {
		w.again(w.at, rnd)
		regular := began.Add(time.Second/2 + time.Duration(n)*time.Second)
		switch off := w.at.Sub(regular); {
		case off < -100*time.Millisecond || off > 100*time.Millisecond:
			t.Fatalf("seed %d: check %d is off by %v", seed, n, off)
		case off < 0:
			early++
		default:
			late++
		}
	}
	if early < 400 || late < 400 {
		t.Errorf("seed %d: %d early, %d late", seed, early, late)
	}
}

func TestPartsOfACombinedCheck(t *testing.T) {
	w := probers(1, time.Second, 0)[0]
	w.target = &model.Target{Kind: model.CheckCombined, Connects: 2}
	var parts []model.CheckType
	for n := range 7 {
		parts = append(parts, w.part().Kind)
		if n == 4 {
			w.connects = 0 // as hear does after a failure
		}
	}
	const negotiate, connect = model.CheckNegotiate, model.CheckConnect
	want := []model.CheckType{negotiate, connect, connect, negotiate, connect, negotiate, connect}
	if d := cmp.Diff(want, parts); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// The schedule gives out what is due, in order, and forgets what is removed.
func TestSchedule(t *testing.T) {
	const seed = 3
	rnd := rand.New(rand.NewPCG(seed, seed))
	var s schedule
	var want []time.Time
	for i, w := range probers(500, time.Second, 0) {
		w.at = began.Add(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		s.add(w)
		if i%3 == 0 {
			s.remove(w)
			s.remove(w)
		} else if !w.at.After(began.Add(700 * time.Millisecond)) {
			want = append(want, w.at)
		}
	}
	slices.SortFunc(want, time.Time.Compare)
	var got []time.Time
	for w := s.next(began.Add(700 * time.Millisecond)); w != nil; w = s.next(began.Add(700 * time.Millisecond)) {
		got = append(got, w.at)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("seed %d (-want +got)\n%s", seed, d)
	}
}
