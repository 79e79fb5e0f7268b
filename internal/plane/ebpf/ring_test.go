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

// byTurns makes what the paper's loop makes, whatever its maker has made before.
func TestTurnsAreMaglevs(t *testing.T) {
	var m ringMaker
	rapid.Check(t, func(t *rapid.T) {
		reals := realsOf(rapid.SliceOfN(rapid.IntRange(1, 300), 1, 40).Draw(t, "weights"))
		m.weights = m.weights[:0]
		for _, r := range reals {
			m.weights = append(m.weights, r.Weight)
		}
		got := make([]int, 4093)
		m.byTurns(got, reals)
		if d := cmp.Diff(slowMaglev(reals, len(got)), got); d != "" {
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
	if got := h.Sum64(); got != 0x5d002736c7534df {
		t.Errorf("the tables' hash is %#x", got)
	}
}

// The same of tables that are drawn, of both sizes: equal weights and unequal
// ones, up to the extremes, and real servers that take none at present.
func TestDrawnTablesStay(t *testing.T) {
	for _, c := range []struct {
		name   string
		weight func(int) int
		want   uint64
	}{
		{"equal", func(int) int { return 1 }, 0xace948ca5b9855df},
		{"equal and great", func(int) int { return maxWeight }, 0xace948ca5b9855df},
		{"1 to 4", func(i int) int { return 1 + i%4 }, 0x98c08d33e1c4705},
		{"4 to 1", func(i int) int { return 4 - i%4 }, 0xbebdebce1a5f3dc9},
		{"1 and 10", func(i int) int { return 1 + 9*(i%2) }, 0x30aa1b44bd558fd5},
		{"100 upwards", func(i int) int { return 100 + i }, 0x843eddfb55dec23a},
		{"1 and the greatest", func(i int) int { return 1 + (maxWeight-1)*(i%2) }, 0xc0c9aa4c77c68658},
		{"one of all", func(i int) int { return 1 + (maxWeight-1)/(i*i+1) }, 0x70479934b4b4e523},
		{"equal, some 0", func(i int) int { return min(1, i%5) }, 0x596a2daf39f88dc4},
		{"1 to 3, some 0", func(i int) int { return i % 4 }, 0x32efd63154688579},
		{"all but one 0", func(i int) int { return max(0, 1-i) }, 0xb4ab8d191d9a2095},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := fnv.New64a()
			sizes := map[int]bool{}
			for n := 1; n <= 34; n++ {
				var weights []int
				for i := range n {
					weights = append(weights, c.weight(i))
				}
				for rack := range byte(3) {
					turns := ring("mh", inRack(rack, weights))
					sizes[len(turns)] = true
					fmt.Fprintln(h, turns)
				}
			}
			if !sizes[8191] || !sizes[16381] || sizes[32749] {
				t.Fatalf("tables of sizes %v, want 8191 and 16381", sizes)
			}
			if got := h.Sum64(); got != c.want {
				t.Errorf("the tables' hash is %#x, want %#x", got, c.want)
			}
		})
	}
}

// slowDraw is byDraw without any shortcut: all draw for each place, and each
// round asks for each place again.
func slowDraw(reals []*real, size int) []int {
	weights, sum := []int{}, 0
	for _, r := range reals {
		weights = append(weights, r.Weight)
		sum += r.Weight
	}
	var lots []lot
	price := make([]float64, len(reals))
	for i, r := range reals {
		lots = append(lots, lot{nameHash(r.Addr), max(1, uint64(slices.Min(weights)<<19/weights[i])) << indexBits})
		price[i] = 1
	}
	table, place := make([]int, size), uint64(0)
	least, next := make([]uint64, size), make([]uint64, size)
	for at := range table {
		place += 0x9e3779b97f4a7c15
		x := (place ^ place>>30) * 0xbf58476d1ce4e5b9
		least[at], next[at] = draw(lots, curve(), x^x>>31)
	}
	for range 4 {
		won := make([]int, len(reals))
		for at := range table {
			i, other := least[at]&0xff, next[at]&0xff
			if float64(least[at])*price[i] > float64(next[at])*price[other] {
				i = other
			}
			table[at] = int(i)
			won[i]++
		}
		for i, won := range won {
			fair := float64(size) * float64(weights[i]) / float64(sum)
			price[i] *= 1 + float64(0.8*float64(float64(won)/fair-1))
		}
	}
	return table
}

// The shortcuts change nothing, whatever the weights and whatever the maker has
// made before.
func TestDrawsAreSlowOnes(t *testing.T) {
	var m ringMaker
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, 2, 4, 100, maxWeight}).Draw(t, "most")
		weights := rapid.SliceOfN(rapid.IntRange(1, most), 2, 34).Draw(t, "weights")
		reals := inRack(rapid.Byte().Draw(t, "rack"), weights)
		size := maglevSize(len(reals))
		if !slices.Equal(slowDraw(reals, size), m.maglev(reals, size)) {
			t.Fatal("the tables differ")
		}
	})
}

// inRack makes real servers with these weights; each rack has other addresses.
func inRack(rack byte, weights []int) []*real {
	reals := realsOf(weights)
	for _, r := range reals {
		a := r.Addr.Addr().As4()
		a[1] = rack
		r.Addr = netip.AddrPortFrom(netip.AddrFrom4(a), r.Addr.Port())
	}
	return reals
}

// What becomes of the clients of all others when one of n real servers takes no
// more connections, leaves, comes, or gets twice the weight; and how even the
// shares are, before and with one that takes none. The table is in
// docs/performance.md.
func TestMaglevDisruption(t *testing.T) {
	// uneven is by how much one's share is off at most.
	uneven := func(turns []int, n, quiet int) (percent float64) {
		count := make([]int, n)
		for _, i := range turns {
			count[i]++
		}
		for i, c := range count {
			if i != quiet {
				fair := float64(len(turns)) / float64(n)
				if quiet >= 0 {
					fair = float64(len(turns)) / float64(n-1)
				}
				percent = max(percent, 100*math.Abs(float64(c)/fair-1))
			}
		}
		return percent
	}
	row := func(cells ...any) string {
		return fmt.Sprintf("| %v | %v | %.2f | %.2f | %.2f | %.2f | %.1f | %.1f |", cells...)
	}
	t.Log("| real servers | places | one fewer or more: average, % | worst | twice the weight: average | worst | uneven by, % | with one quiesced |")
	for _, n := range []int{2, 3, 4, 5, 6, 8, 12, 16, 17, 24, 34, 36, 100, 400} {
		all := realsOf(slices.Repeat([]int{1}, n))
		before := slices.Clone(ring("mh", all))
		even, lent := uneven(before, n, -1), 0.0
		var fewer, heavier []float64
		for g := 0; g < n; g += max(1, n/8) {
			// others is how many places go from one of the others to another of them.
			others := func(then []*real) (percent float64) {
				after := ring("mh", then)
				for at, i := range before {
					is := then[after[at]].Addr
					if was := all[i].Addr; was != all[g].Addr && is != was && is != all[g].Addr {
						percent += 100 / float64(len(before))
					}
				}
				return percent
			}
			with := func(weight int) []*real {
				then := slices.Clone(all)
				then[g] = &real{RealServer: model.RealServer{Addr: all[g].Addr, Weight: weight}}
				return then
			}
			if moved := others(with(0)); moved > 0 {
				t.Errorf("%d real servers: one takes no more connections, and %.2f %% of all others' places move", n, moved)
			}
			lent = max(lent, uneven(ring("mh", with(0)), n, g))
			heavier = append(heavier, others(with(2)))
			if maglevSize(n-1) == maglevSize(n) { // else all is new
				fewer = append(fewer, others(slices.Delete(slices.Clone(all), g, g+1)))
			}
		}
		average := func(of []float64) (sum float64) {
			for _, x := range of {
				sum += x / float64(len(of))
			}
			return sum
		}
		if fewer == nil {
			fewer = []float64{math.NaN()}
		}
		t.Log(row(n, len(before), average(fewer), slices.Max(fewer), average(heavier), slices.Max(heavier), even, lent))
		if slices.Max(fewer) > 1 || slices.Max(heavier) > 1 || even > 2 || lent > 5 {
			t.Error("more than 1 % of all others' places move, or shares are uneven by more than 2 %, or 5 % with one quiesced")
		}
	}
}

// The same of real servers of unequal weights, in two racks.
func TestMaglevDisruptionWithWeights(t *testing.T) {
	for name, weight := range map[string]func(int) int{
		"1 to 4":      func(i int) int { return 1 + i%4 },
		"1 and 10":    func(i int) int { return 1 + 9*(i%2) },
		"100 upwards": func(i int) int { return 100 + i },
	} {
		for _, n := range []int{3, 5, 8, 12, 17, 34} {
			for rack := range byte(2) {
				var weights []int
				for i := range n {
					weights = append(weights, weight(i))
				}
				all := inRack(rack, weights)
				before := slices.Clone(ring("mh", all))
				for g := 0; g < n; g += max(1, n/4) {
					then, moved := slices.Delete(slices.Clone(all), g, g+1), 0
					if maglevSize(len(then)) != len(before) {
						continue
					}
					for at, i := range ring("mh", then) {
						if was := all[before[at]]; was != all[g] && then[i] != was {
							moved++
						}
					}
					if percent := 100 * float64(moved) / float64(len(before)); percent > 1 {
						t.Errorf("%d real servers of weights %s in rack %d: without %d %.2f %% of all others' places move", n, name, rack, g, percent)
					}
				}
			}
		}
	}
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
