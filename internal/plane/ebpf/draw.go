package ebpf

import (
	"math"
	"math/bits"
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

func drawer(drawn uint64) uint64 { return drawn & (1<<indexBits - 1) }

// drawTimes makes a hash of the names of a real server and a place; what is
// drawn begins as its upper half.
const drawTimes = 0xd6e8feb86659fd93

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

// placeNames are the hashed numbers of places.
var placeNames = sync.OnceValue(func() []uint64 {
	out := make([]uint64, byTurnsFrom)
	place := uint64(0)
	for at := range out {
		place += 0x9e3779b97f4a7c15
		x := (place ^ place>>30) * 0xbf58476d1ce4e5b9
		out[at] = x ^ x>>31
	}
	return out
})

// contest is a place that prices may give to another: the two least numbers
// that were drawn for it.
type contest struct {
	least, next uint64
	at          int
}

// Of two places in three the winner is so far ahead that no price changes it.
// Contested are those whose next number is not half as much again as the least;
// they are enough while no price is pricesApart times another. Else, and from
// the beginning where the lightest has few places, all are: everyPlace is added
// to that half.
const (
	pricesApart = 1.49 // of 1.5: whatever is rounded does not matter
	everyPlace  = 1 << 63
	fewPlaces   = 150
)

// isContested tells it by 1 and 0, without a jump that nobody can foresee.
func isContested(least, next, more uint64) uint64 {
	_, yes := bits.Sub64(next-least, least>>1+1<<indexBits+more, 0)
	return yes
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
	if len(table)*lightest/sum >= fewPlaces {
		m.drawPlaces(table, 0)
		if m.settle(table, sum, pricesApart) {
			return
		}
	}
	m.drawPlaces(table, everyPlace)
	m.settle(table, sum, math.Inf(1))
}

// drawPlaces enters the winner of each place, and lists the contested ones.
func (m *ringMaker) drawPlaces(table []int, more uint64) {
	if m.some == nil {
		m.some = new(somePlaces)
	}
	d, bend, names := m.some, curve(), placeNames()
	below := m.sieve(bend)
	m.won = slices.Grow(m.won[:0], len(m.lots))[:len(m.lots)]
	clear(m.won)
	contests, n := slices.Grow(m.contests[:0], len(table)+1)[:len(table)+1], uint64(0)
	for from := 0; from < len(table); from += len(d.left) {
		part := table[from:min(from+len(d.left), len(table))]
		names := names[from : from+len(part)]
		d.draw(m.fours, m.lots, bend, names)
		for i := range part {
			least, next := d.least[i], d.next[i]
			// Whoever was left out drew no less than that.
			if next >= below && (least >= below || isContested(least, below, more) == 1) {
				least, next = draw(m.lots, bend, names[i])
			}
			winner := drawer(least)
			part[i] = int(winner)
			m.won[winner]++
			contests[n] = contest{least, next, from + i}
			n += isContested(least, next, more)
		}
	}
	m.contests = contests[:n]
}

// settle gives contested places to the next ones until shares are as even as
// that makes them. It does not if prices differ by more than apart.
func (m *ringMaker) settle(table []int, sum int, apart float64) bool {
	m.price = slices.Grow(m.price[:0], len(m.weights))[:len(m.weights)]
	for i := range m.price {
		m.price[i] = 1
	}
	m.wins = append(m.wins[:0], m.won...)
	// Further rounds do not make shares more even.
	for range 3 {
		for i, won := range m.wins {
			fair := float64(len(table)) * float64(m.weights[i]) / float64(sum)
			// Each conversion keeps machines from rounding once less than others do.
			over := float64(float64(won)/fair - 1)
			m.price[i] *= 1 + float64(0.8*over)
		}
		if slices.Max(m.price) > apart*slices.Min(m.price) {
			return false
		}
		copy(m.wins, m.won)
		for i := range m.contests {
			c := &m.contests[i]
			winner, other := drawer(c.least), drawer(c.next)
			to := winner
			// All that is drawn is below 1<<63, where signed numbers are converted sooner.
			if float64(int64(c.least))*m.price[winner] > float64(int64(c.next))*m.price[other] {
				to = other
				m.wins[winner]--
				m.wins[other]++
			}
			table[c.at] = int(to)
		}
	}
	return true
}

// drawn is the number that the i-th lot draws for a place.
func (l *lot) drawn(bend *[1024]uint64, place uint64, i int) uint64 {
	n := (l.name ^ place) * drawTimes >> 32
	return (n+bend[n>>22])*l.times | uint64(i)
}

// draw gives the two least numbers that are drawn for a place, with who drew
// them. It is by itself to have few enough variables for the registers.
//
//go:noinline
func draw(lots []lot, bend *[1024]uint64, place uint64) (least, next uint64) {
	least, next = 1<<64-1, 1<<64-1
	for i := range lots {
		n := lots[i].drawn(bend, place, i)
		more := max(least, n)
		least = min(least, n)
		next = min(next, more)
	}
	return least, next
}
