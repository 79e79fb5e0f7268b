package ebpf

import (
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/model"
)

// realsOf makes real servers with these weights.
func realsOf(weights []int) []*real {
	var out []*real
	for i, w := range weights {
		out = append(out, &real{RealServer: model.RealServer{
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80), Weight: w}})
	}
	return out
}

func TestRing(t *testing.T) {
	for _, c := range []struct {
		sched   string
		weights []int
		want    []int
	}{
		{"rr", nil, []int{}},
		{"rr", []int{0, 0}, []int{}},
		{"rr", []int{1, 1, 1}, []int{0, 1, 2}},
		{"rr", []int{5, 0, 1}, []int{0, 2}},
		{"wrr", []int{0}, []int{}},
		{"wrr", []int{1, 1}, []int{0, 1}},
		{"wrr", []int{300, 100}, []int{0, 0, 1, 0}},
		{"wrr", []int{4, 3, 2, 1}, []int{0, 1, 2, 0, 1, 3, 0, 2, 1, 0}},
		{"wrr", []int{5, 1, 1}, []int{0, 0, 0, 1, 2, 0, 0}},
	} {
		t.Run(fmt.Sprintf("%s %v", c.sched, c.weights), func(t *testing.T) {
			if d := cmp.Diff(c.want, ring(c.sched, realsOf(c.weights)), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRingShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(0, maxWeight), 1, 40).Draw(t, "weights")
		turns := ring("wrr", realsOf(weights))
		if len(turns) > max(minRing, 16*len(weights))+len(weights) {
			t.Fatalf("%d turns for %d servers", len(turns), len(weights))
		}
		got, sum := make([]int, len(weights)), 0
		for _, i := range turns {
			got[i]++
		}
		for _, w := range weights {
			sum += w
		}
		for i, w := range weights {
			switch {
			case w == 0 && got[i] != 0:
				t.Fatalf("weight 0 got %d turns", got[i])
			case w > 0 && got[i] == 0:
				t.Fatalf("weight %d of %d got no turn among %d", w, sum, len(turns))
			}
			// Off by one turn, or by what those with less than one turn were given.
			if want := float64(w) * float64(len(turns)) / float64(max(sum, 1)); w > 0 && got[i] > 1 &&
				(float64(got[i]) < want-1-float64(len(weights))/2 || float64(got[i]) > want+1+float64(len(weights))/2) {
				t.Fatalf("weight %d of %d got %d of %d turns, want %.1f", w, sum, got[i], len(turns), want)
			}
		}
		// Smooth: in the first n turns everyone has had about n's share of its turns.
		seen := make([]int, len(weights))
		for n, i := range turns {
			seen[i]++
			fair := float64(got[i]) * float64(n+1) / float64(len(turns))
			if d := float64(seen[i]) - fair; d > 2+float64(len(weights))/2 || d < -2-float64(len(weights))/2 {
				t.Fatalf("server %d has had %d of its %d turns after %d of %d", i, seen[i], got[i], n+1, len(turns))
			}
		}
	})
}

// slowMaglev is the paper's own loop, word for word, with weights.
func slowMaglev(reals []*real, size int) []int {
	table := make([]int, size)
	for i := range table {
		table[i] = -1
	}
	next, credit, heaviest := make([]int, len(reals)), make([]int, len(reals)), 0
	for _, r := range reals {
		heaviest = max(heaviest, r.Weight)
	}
	for filled := 0; filled < size; {
		for i, r := range reals {
			if credit[i] += r.Weight; credit[i] < heaviest || filled == size {
				continue
			}
			credit[i] -= heaviest
			h := nameHash(r.Addr)
			offset, skip := int(h%uint64(size)), int((h>>32)%uint64(size-1))+1
			for table[(offset+next[i]*skip)%size] >= 0 {
				next[i]++
			}
			table[(offset+next[i]*skip)%size] = i
			filled++
		}
	}
	return table
}

// One maker makes what the paper's loop makes, whatever it has made before.
func TestMaglevIsThePapers(t *testing.T) {
	var m ringMaker
	rapid.Check(t, func(t *rapid.T) {
		reals := realsOf(rapid.SliceOfN(rapid.IntRange(1, 300), 1, 40).Draw(t, "weights"))
		if d := cmp.Diff(slowMaglev(reals, maglevSize(len(reals))), m.ring("mh", reals)); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// Whichever real servers of one weight take no connections: the others' own
// places stay theirs, and what is lent moves only if the borrower goes.
func TestMaglevLends(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const usual = 7
		weights := rapid.SliceOfN(rapid.SampledFrom([]int{0, usual, usual}), 1, 40).Draw(t, "weights")
		before := slices.Clone(ring("mh", realsOf(weights)))
		gone := rapid.IntRange(0, len(weights)-1).Draw(t, "gone")
		back := slices.Clone(weights)
		back[gone] = usual - weights[gone]
		after := ring("mh", realsOf(back))
		if len(before) == 0 || len(after) == 0 { // nobody was there, or nobody is
			return
		}
		for at := range before {
			if before[at] != after[at] && before[at] != gone && after[at] != gone {
				t.Fatalf("weight %d of %d was %d before: place %d went from %d to %d", back[gone], gone, weights[gone], at, before[at], after[at])
			}
			if weights[before[at]] == 0 || back[after[at]] == 0 {
				t.Fatalf("place %d: weight 0 has it", at)
			}
		}
	})
}

// usualWeight is a matter of the table alone.
func TestUsualWeight(t *testing.T) {
	for _, c := range []struct {
		weights []int
		want    int
	}{
		{nil, 0}, {[]int{0, 0}, 0}, {[]int{0, 5}, 5}, {[]int{3, 0, 1, 3}, 3}, {[]int{4, 4, 2, 2, 0}, 2}, {[]int{9, 8, 7, 8}, 8},
	} {
		if got := new(ringMaker).usualWeight(realsOf(c.weights)); got != c.want {
			t.Errorf("%v: %d, want %d", c.weights, got, c.want)
		}
	}
}

// Directors of one pair may be of different versions, and must agree on whose
// client is whose: this number never changes.
func TestMaglevStays(t *testing.T) {
	h := fnv.New64a()
	for n := range 40 {
		var weights []int
		for i := range n {
			weights = append(weights, 1+i%4)
		}
		fmt.Fprintln(h, ring("mh", realsOf(weights)))
	}
	if got := h.Sum64(); got != 0xa05676bbd4e9ebaf {
		t.Errorf("the tables' hash is %#x", got)
	}
}

// What becomes of the clients of all others when one of n real servers takes no
// more connections, leaves, or comes; and how even the shares are, before and
// with one that takes none. The table is in docs/performance.md.
func TestMaglevDisruption(t *testing.T) {
	const worst = 4 // percent
	uneven := func(turns []int, n int) (percent float64) {
		count := make([]int, n)
		for _, i := range turns {
			count[i]++
		}
		for _, c := range count {
			if c > 0 {
				percent = max(percent, 100*math.Abs(float64(c*(n-countOf(count, 0)))/float64(len(turns))-1))
			}
		}
		return percent
	}
	for _, n := range []int{2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 17, 24, 50, 100, 200, 400} {
		all := realsOf(slices.Repeat([]int{1}, n))
		before := slices.Clone(ring("mh", all))
		even, lent, most, sum := uneven(before, n), 0.0, 0.0, 0.0
		gone := slices.Compact([]int{0, n / 4, n / 3, n / 2, n - 1})
		for _, g := range gone {
			quiet := slices.Clone(all)
			quiet[g] = &real{RealServer: model.RealServer{Addr: all[g].Addr}}
			after := ring("mh", quiet)
			for at, was := range before {
				if was != g && after[at] != was {
					t.Fatalf("%d real servers: %d is quiesced, and a place of %d moves", n, g, was)
				}
			}
			lent = max(lent, uneven(after, n))
			if maglevSize(n-1) != maglevSize(n) {
				continue // all is new then
			}
			without := slices.Delete(slices.Clone(all), g, g+1)
			after = ring("mh", without)
			moved := 0
			for at, was := range before {
				if was != g && without[after[at]] != all[was] {
					moved++
				}
			}
			percent := 100 * float64(moved) / float64(len(before))
			most, sum = max(most, percent), sum+percent
		}
		t.Logf("%d real servers, %d places: without one, or with one more, of all others' places %.2f %% move on average, %.2f %% at most; uneven by %.1f %%, with one quiesced %.1f %%",
			n, len(before), sum/float64(len(gone)), most, even, lent)
		if most > worst || even > 1 || lent > 10 {
			t.Errorf("%d real servers: %.2f %% of all others' places move; uneven by %.1f %%, with one quiesced %.1f %%", n, most, even, lent)
		}
	}
}

func countOf(all []int, one int) (n int) {
	for _, x := range all {
		if x == one {
			n++
		}
	}
	return n
}

func TestSpace(t *testing.T) {
	settled := 0
	s := newSpace(10)
	s.settle = func() error { settled++; return nil }
	take := func(n, want uint32) {
		t.Helper()
		if at, ok := s.take(n); !ok || at != want {
			t.Fatalf("take %d: %d, %v; want %d", n, at, ok, want)
		}
	}
	take(4, 0)
	take(4, 4)
	s.give(0, 4)
	take(2, 8) // what was given back is not handed out while programs may look at it
	if settled != 0 {
		t.Fatal("waited without need")
	}
	take(3, 0)
	if settled != 1 {
		t.Fatalf("waited %d times, want once before elements are used again", settled)
	}
	if _, ok := s.take(2); ok {
		t.Fatal("took what is not there")
	}
	take(1, 3)
	s.give(8, 2)
	s.give(4, 4)
	s.give(0, 4)
	take(10, 0) // pieces grow together again

	r := newSpace(10)
	if !r.reserve(3, 4) || r.reserve(6, 2) || !r.reserve(0, 3) || !r.reserve(7, 3) {
		t.Fatalf("reserve: %+v", r.free)
	}
}

// Any sequence of taking and giving back never hands out an element twice.
func TestSpaceAnySequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSpace(64)
		s.settle = func() error { return nil }
		var held []extent
		owner := [64]bool{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "give") {
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				e := held[i]
				held = slices.Delete(held, i, i+1)
				for k := range e.n {
					owner[e.from+k] = false
				}
				s.give(e.from, e.n)
				continue
			}
			n := rapid.Uint32Range(1, 9).Draw(t, "n")
			at, ok := s.take(n)
			if !ok {
				continue
			}
			for k := range n {
				if owner[at+k] {
					t.Fatalf("element %d handed out twice", at+k)
				}
				owner[at+k] = true
			}
			held = append(held, extent{at, n})
		}
	})
}
