package ebpf

import (
	"cmp"
	"slices"
)

// minRing is the number of turns below which wrr keeps every ratio exactly: its
// shares are exact while the weights, divided by their common divisor, add up
// to at most that or 16 turns a server; above it each is off by less than one
// turn, and none is left out.
const minRing = 4096

// ring is the order of turns of a service: indices into reals, which are
// sorted by address. Those without weight get none.
func ring(scheduler string, reals []*real) []int {
	return new(ringMaker).ring(scheduler, reals)
}

// ringMaker makes one ring after another in the same memory.
type ringMaker struct {
	turns   []int
	weights []int
	of      []turnsOf

	// Those of byDraw.
	lots      []lot
	fours     []four
	some      *somePlaces
	contests  []contest
	price     []float64
	won, wins []int
}

// room is memory for n turns, with whatever was in it.
func (m *ringMaker) room(n int) []int {
	m.turns = slices.Grow(m.turns[:0], n)[:n]
	return m.turns
}

// ring is what the function ring makes; it holds until the next call.
func (m *ringMaker) ring(scheduler string, reals []*real) []int {
	n, err := schedulerNumber(scheduler)
	if err != nil {
		return nil
	}
	switch schedulers[n].ring {
	case ringEqual:
		turns := m.room(len(reals))[:0]
		for i, r := range reals {
			if r.Weight > 0 {
				turns = append(turns, i)
			}
		}
		return turns
	case ringShares:
		m.weights = m.weights[:0]
		for _, r := range reals {
			m.weights = append(m.weights, r.Weight)
		}
		return spread(shares(m.weights, max(minRing, 16*len(reals))))
	case ringMaglev:
		return m.maglev(reals, maglevSize(len(reals)))
	case ringUnset:
	}
	return nil
}

// spread gives so many turns to each, spread evenly: turn k of n falls at
// (k+1/2)/n of the ring.
func spread(turns []int) []int {
	type turn struct{ server, k int }
	var order []turn
	for i, n := range turns {
		for k := range n {
			order = append(order, turn{i, k})
		}
	}
	slices.SortStableFunc(order, func(a, b turn) int {
		// (2a.k+1)/(2*turns[a]) against the same of b.
		return cmp.Compare((2*a.k+1)*turns[b.server], (2*b.k+1)*turns[a.server])
	})
	out := make([]int, len(order))
	for i, t := range order {
		out[i] = t.server
	}
	return out
}

// shares divides at most limit turns in the ratio of the weights.
func shares(weights []int, limit int) []int {
	divisor, sum := 0, 0
	for _, w := range weights {
		divisor = gcd(divisor, w)
		sum += w
	}
	out := make([]int, len(weights))
	if sum == 0 {
		return out
	}
	if sum/divisor <= limit {
		for i, w := range weights {
			out[i] = w / divisor
		}
		return out
	}
	// Largest remainder; a positive weight gets one turn at least.
	left := limit
	for i, w := range weights {
		out[i] = w * limit / sum
		if w > 0 {
			out[i] = max(out[i], 1)
		}
		left -= out[i]
	}
	byRemainder := make([]int, len(weights))
	for i := range byRemainder {
		byRemainder[i] = i
	}
	slices.SortStableFunc(byRemainder, func(a, b int) int {
		return cmp.Compare(weights[b]*limit%sum, weights[a]*limit%sum)
	})
	for _, i := range byRemainder {
		if left <= 0 {
			break
		}
		if weights[i] > 0 && weights[i]*limit >= sum {
			out[i]++
			left--
		}
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
