package ebpf

import "net/netip"

// maglevSizes are primes, about twice the one before.
var maglevSizes = []int{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139}

// maglevSize is the smallest size that has a hundred places for each real
// server, so that shares are off by less than a hundredth (Eisenbud and
// others, "Maglev", 2016, section 5.3).
func maglevSize(reals int) int {
	for _, n := range maglevSizes {
		if n >= 100*reals {
			return n
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// turnsOf is one real server while a Maglev table is filled: the place it
// wants next, the step to the one after, and what its weight has earned it.
type turnsOf struct{ at, skip, index, weight, credit int }

// maglev fills a table of that size, a prime, with indices into reals: each
// takes places in an order of its own until all are taken (same paper, section
// 3.4), and a greater weight takes more often. Which client finds which place
// is not changed by another's coming or going, except in the places that it
// takes or leaves. Both directors of a pair make the same table.
func (m *ringMaker) maglev(reals []*real, size int) []int {
	m.of = m.of[:0]
	heaviest := 0
	for i, r := range reals {
		if r.Weight <= 0 {
			continue
		}
		h := nameHash(r.Addr)
		m.of = append(m.of, turnsOf{at: int(h % uint64(size)), skip: int((h>>32)%uint64(size-1)) + 1, index: i, weight: r.Weight})
		heaviest = max(heaviest, r.Weight)
	}
	if len(m.of) == 0 {
		return nil
	}
	table := m.room(size)
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
				if at += skip; at >= len(table) {
					at -= len(table)
				}
			}
			table[at] = c.index
			c.at = at // taken now: the next search begins with the step after it
			if filled++; filled == size {
				return table
			}
		}
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
