package ebpf

import (
	"net/netip"
	"slices"
)

// maglevSizes are primes, about twice the one before; the smallest is enough
// for 17 real servers, so that few services ever change from one to the next,
// which moves all clients.
var maglevSizes = []int{8191, 16381, 32749, 65521, 131071, 262139}

// maglevSize is the smallest size that has 480 places for each real server: of
// the clients of all others less than a hundredth move when one is deleted,
// which goes with the square root of the number of places (TestMaglevDisruption).
func maglevSize(reals int) int {
	for _, n := range maglevSizes {
		if n >= 480*reals {
			return n
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// byTurnsFrom is the size from which places are taken by turns. Below, where
// more clients would move than above, they are drawn, which moves half as many
// and takes the longer the more real servers there are.
const byTurnsFrom = 32749

// turnsOf is one real server while a Maglev table is filled: the place it
// wants next, the step to the one after, and what its weight has earned it.
type turnsOf struct{ at, skip, weight, credit int }

// maglev makes a table of that size, a prime, of indices into reals, so that a
// client keeps its real server while others come, go, or stop taking
// connections. Both directors of a pair make the same table.
//
// All real servers have places of their own, also those with weight 0, which
// take no connections at present: those places are lent to the others, and
// which ones depends on nothing but the places. So if a real server fails its
// checks, or is quiesced, and comes back, no other's clients notice.
func (m *ringMaker) maglev(reals []*real, size int) []int {
	usual := m.usualWeight(reals)
	if usual == 0 {
		return nil
	}
	m.weights = m.weights[:0]
	for _, r := range reals {
		if r.Weight > 0 {
			m.weights = append(m.weights, r.Weight)
		} else {
			m.weights = append(m.weights, usual)
		}
	}
	table := m.room(size)
	if size < byTurnsFrom {
		m.byDraw(table, reals)
	} else {
		m.byTurns(table, reals)
	}
	lend(table, reals)
	return table
}

// usualWeight is the weight that most of the real servers that take connections
// have, of several the least; 0 if there are none. One with weight 0 has so
// many places of its own: its configured weight is not in the table, and a
// wrong guess moves no more clients than a change of its weight does.
func (m *ringMaker) usualWeight(reals []*real) int {
	m.weights = m.weights[:0]
	for _, r := range reals {
		if r.Weight > 0 {
			m.weights = append(m.weights, r.Weight)
		}
	}
	slices.Sort(m.weights)
	usual, most, same := 0, 0, 0
	for i, w := range m.weights {
		if i == 0 || w != m.weights[i-1] {
			same = 0
		}
		if same++; same > most {
			usual, most = w, same
		}
	}
	return usual
}

// byTurns lets each real server take places in an order of its own until all
// are taken (Eisenbud and others, "Maglev", 2016, section 3.4); a greater one
// of m.weights takes more often.
func (m *ringMaker) byTurns(table []int, reals []*real) {
	size := len(table)
	m.of = m.of[:0]
	for i, r := range reals {
		h := nameHash(r.Addr)
		m.of = append(m.of, turnsOf{at: int(h % uint64(size)), skip: int((h>>32)%uint64(size-1)) + 1, weight: m.weights[i]})
	}
	heaviest := slices.Max(m.weights)
	for i := range table {
		table[i] = -1
	}
	for filled := 0; ; {
		for i := range m.of {
			c := &m.of[i]
			if c.credit += c.weight; c.credit < heaviest {
				continue
			}
			c.credit -= heaviest
			at, skip := c.at, c.skip
			for table[at] >= 0 { // most of the time is spent here
				if at += skip; at >= size {
					at -= size
				}
			}
			table[at] = i
			c.at = at // taken now: the next search begins with the step after it
			if filled++; filled == size {
				return
			}
		}
	}
}

// lend gives each place of a real server with weight 0 to whoever has the place
// that its number draws, of several draws the first whose place is not free
// itself; one real server at least has a weight. A place that was lent before
// draws like any other, so a client moves only to one that comes back, or away
// from one that has gone, however many they are.
func lend(table []int, reals []*real) {
	free := func(at int) bool { return reals[table[at]].Weight <= 0 }
	for at := range table {
		if !free(at) {
			continue
		}
		lot, from := uint64(at), at
		for tries := 0; free(from); tries++ {
			if tries < 64 {
				lot = (lot + 0x9e3779b97f4a7c15) * 0xd6e8feb86659fd93
				lot ^= lot >> 32
				from = part(uint32(lot), len(table))
			} else if from++; from == len(table) { // few are left: chance would take long
				from = 0
			}
		}
		table[at] = table[from]
	}
}

// nameHash is FNV-1a over address and port, with the finalizer of MurmurHash3.
func nameHash(a netip.AddrPort) uint64 {
	h := uint64(14695981039346656037)
	b := a.Addr().As16()
	for _, x := range append(b[:], byte(a.Port()>>8), byte(a.Port())) {
		h = (h ^ uint64(x)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
