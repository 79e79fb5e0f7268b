package ebpf

import (
	"math"
	"math/bits"
	"slices"
	"sort"
)

// Most of what is drawn for a place is too great to matter, and its hash alone
// tells: a sieve leaves few lots of many, by a third of the instructions of a
// draw. What it leaves out changes no result.

// sieveFrom so many lots: fewer draw in less time than the sieve takes.
const sieveFrom = 9

// sieveMean is the sieve's bound, in units of the mean of a place's least
// number: about so many lots are left. Both 3.5 and 4.5 take as long. It must be
// below 6.9, the greatest number of the lot that draws the least ones: so each
// lot can draw one that is not below the bound.
const sieveMean = 4

// four lots as sift looks at them: those whose hash is not below the limit draw
// a number that is not below the bound.
type four struct{ name, limit [4]uint64 }

// somePlaces are drawn for together.
type somePlaces struct {
	left        [256]uint64 // the lots that the sieve leaves, one bit each; there are 34 at most
	least, next [256]uint64

	// order is the places by how many lots are left, so that the processor
	// foresees where the loops over them end: that takes two fifths off their time.
	order [16][256]uint8
	n     [16]int
}

// sieve sets the limits, and tells the bound: of a few lots, which all draw, one
// that nobody reaches.
func (m *ringMaker) sieve(bend *[1024]uint64) (below uint64) {
	m.fours = m.fours[:0]
	if len(m.lots) < sieveFrom {
		return math.MaxUint64
	}
	rate := 0.0
	for _, l := range m.lots {
		rate += 1 / float64(l.times)
	}
	below = uint64(sieveMean / rate * (1 << 32)) // no result depends on how it is rounded
	m.fours = slices.Grow(m.fours, (len(m.lots)+3)/4)[:(len(m.lots)+3)/4]
	clear(m.fours) // of what is left over the limit is 0
	for i, l := range m.lots {
		need := (below + l.times - 1) / l.times // of n+bend[n>>22]
		step := uint64(sort.Search(len(bend)-1, func(i int) bool { return uint64(i)<<22+(1<<22-1)+bend[i] >= need }))
		f := &m.fours[i/4]
		f.name[i%4], f.limit[i%4] = l.name, max(step<<22, need-min(need, bend[step]))<<32
	}
	return below
}

// draw finds the two least numbers of the lots that are left of each place.
func (d *somePlaces) draw(fours []four, lots []lot, bend *[1024]uint64, names []uint64) {
	if len(fours) == 0 {
		for i, name := range names {
			d.least[i], d.next[i] = draw(lots, bend, name)
		}
		return
	}
	clear(d.n[:])
	for i, name := range names {
		d.left[i] = sift(fours, name)
	}
	for i, left := range d.left[:len(names)] {
		n := min(bits.OnesCount64(left), len(d.order)-1)
		d.order[n][d.n[n]] = uint8(i)
		d.n[n]++
	}
	for n := range d.order {
		for _, i := range d.order[n][:d.n[n]] {
			d.least[i], d.next[i] = drawLeft(lots, bend, names[i], d.left[i])
		}
	}
}

// sift gives the set of the lots that may draw a number below the bound.
//
//go:noinline
func sift(fours []four, place uint64) (left uint64) {
	for i := len(fours) - 1; i >= 0; i-- {
		f := &fours[i]
		_, below := bits.Sub64((f.name[3]^place)*drawTimes, f.limit[3], 0)
		left, _ = bits.Add64(left, left, below)
		_, below = bits.Sub64((f.name[2]^place)*drawTimes, f.limit[2], 0)
		left, _ = bits.Add64(left, left, below)
		_, below = bits.Sub64((f.name[1]^place)*drawTimes, f.limit[1], 0)
		left, _ = bits.Add64(left, left, below)
		_, below = bits.Sub64((f.name[0]^place)*drawTimes, f.limit[0], 0)
		left, _ = bits.Add64(left, left, below)
	}
	return left
}

// drawLeft is draw for the lots that are left.
//
//go:noinline
func drawLeft(lots []lot, bend *[1024]uint64, place, left uint64) (least, next uint64) {
	least, next = 1<<64-1, 1<<64-1
	for left != 0 {
		i := bits.TrailingZeros64(left)
		left &= left - 1
		n := lots[i].drawn(bend, place, i)
		more := max(least, n)
		least = min(least, n)
		next = min(next, more)
	}
	return least, next
}
