package ebpf

import (
	"math"
	"slices"
	"sync"
)

// lot is how a real server draws: by the hash of its name, each number times
// what it must be multiplied with for its weight, the lightest's most; that
// leaves room for the index.
type lot struct{ name, times uint64 }

// indexBits of what is drawn are the index of who drew it: 36 bits of a number
// and 20 of a multiplier leave that many of 64, and they are enough for the real
// servers of tables below byTurnsFrom.
const indexBits = 8

// curve is what makes evenly distributed numbers of 32 bits exponential, by
// their first 10 bits: -ln(1-n) - n, of a full number as 1.
var curve = sync.OnceValue(func() *[1024]uint64 {
	var t [1024]uint64
	for i := range t {
		n := float64(i) / float64(len(t))
		t[i] = uint64(math.Round((-math.Log1p(-n)-n)*(1<<20))) << 12 // rounded enough for all machines
	}
	return &t
})

// contest is a place: the least number drawn for it, the next, and by whom.
type contest struct {
	least, next   float64
	winner, other uint8
}

// byDraw lets each real server draw a number for each place, and the least one
// wins (rendezvous hashing; Thaler and Ravishankar, "Using name-based mappings
// to increase hit rates", 1998). The numbers are exponentially distributed with
// m.weights as their rates, so shares are as the weights are, and who is deleted
// leaves its places to the others without moving any of theirs. By chance alone,
// however, the shares of 16 would be off by a tenth. So those who won too much
// multiply their numbers, a little, and the places that were won closest go to
// the next: that alone moves others' clients when a real server comes or goes.
func (m *ringMaker) byDraw(table []int, reals []*real) {
	if len(reals) == 1 {
		clear(table)
		return
	}
	lightest, sum := slices.Min(m.weights), 0
	m.lots = m.lots[:0]
	for i, r := range reals {
		m.lots = append(m.lots, lot{nameHash(r.Addr), max(1, uint64(lightest<<19/m.weights[i])) << indexBits})
		sum += m.weights[i]
	}
	m.contests = slices.Grow(m.contests[:0], len(table))[:len(table)]
	place, bend := uint64(0), curve()
	for at := range m.contests {
		place += 0x9e3779b97f4a7c15
		x := (place ^ place>>30) * 0xbf58476d1ce4e5b9
		least, next := draw(m.lots, bend, x^x>>31)
		m.contests[at] = contest{float64(least), float64(next), uint8(least & (1<<indexBits - 1)), uint8(next & (1<<indexBits - 1))}
	}
	m.price = slices.Grow(m.price[:0], len(reals))[:len(reals)]
	m.won = slices.Grow(m.won[:0], len(reals))[:len(reals)]
	for i := range m.price {
		m.price[i] = 1
	}
	// Further rounds do not make shares more even.
	for round := range 4 {
		clear(m.won)
		for at := range m.contests {
			c := &m.contests[at]
			i := c.winner
			if c.least*m.price[i] > c.next*m.price[c.other] {
				i = c.other
			}
			table[at] = int(i)
			m.won[i]++
		}
		if round == 3 {
			return
		}
		for i, won := range m.won {
			fair := float64(len(table)) * float64(m.weights[i]) / float64(sum)
			// Each conversion keeps machines from rounding once less than others do.
			over := float64(float64(won)/fair - 1)
			m.price[i] *= 1 + float64(0.8*over)
		}
	}
}

// draw gives the two least numbers that are drawn for a place, with who drew
// them. It is by itself to have few enough variables for the registers.
//
//go:noinline
func draw(lots []lot, bend *[1024]uint64, place uint64) (least, next uint64) {
	least, next = 1<<64-1, 1<<64-1
	for i := range lots {
		l := &lots[i]
		n := (l.name ^ place) * 0xd6e8feb86659fd93 >> 32
		n = (n+bend[n>>22])*l.times | uint64(i)
		more := max(least, n)
		least = min(least, n)
		next = min(next, more)
	}
	return least, next
}
