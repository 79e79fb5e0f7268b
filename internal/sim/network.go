package sim

import (
	"strconv"
	"time"
)

// network carries datagrams between the two hosts, by each link on its own.
type network struct {
	w     *world
	cut   [2][]int // [sender][link]: how many faults forbid it
	noise float64  // part of the packets that is lost now, besides the usual
	names []string // of the links
}

func newNetwork(w *world) *network {
	n := &network{w: w}
	for i := range w.cfg.Links {
		n.names = append(n.names, "eth"+strconv.Itoa(i+1))
	}
	for i := range n.cut {
		n.cut[i] = make([]int, w.cfg.Links)
	}
	return n
}

// send takes what a daemon sends on all links.
func (n *network) send(from *host, data []byte) {
	beat := n.w.check.sent(from, data)
	for i, name := range n.names {
		if n.w.cfg.Echo {
			n.carry(from, from, name, data, false)
		}
		if n.cut[from.index][i] > 0 {
			n.w.seen.Lost++
			continue
		}
		n.carry(from, from.peer(), name, data, beat)
	}
}

func (n *network) carry(from, to *host, name string, data []byte, beat bool) {
	r, c := n.w.rng, n.w.cfg
	copies := 1
	if r.Float64() < c.Double {
		copies = 2
	}
	for range copies {
		if x := r.Float64(); from != to && (x < c.Loss || x < n.noise) {
			n.w.seen.Lost++
			continue
		}
		delay := c.DelayMin
		if c.DelayMax > c.DelayMin {
			delay += time.Duration(r.Int64N(int64(c.DelayMax - c.DelayMin)))
		}
		if r.Float64() < c.Straggle {
			delay *= 10
		}
		sent := n.w.now
		n.w.after(delay, func() {
			p := packet{link: name, data: data, at: n.w.now}
			if beat {
				p.beat = sent
			}
			to.arrive(p)
		})
	}
}

// block forbids, or allows again, what a host sends by a link; -1: by any.
func (n *network) block(from, link, by int) {
	for i := range n.cut[from] {
		if link < 0 || link == i {
			n.cut[from][i] += by
		}
	}
}

// whole tells that no link is cut and no noise is on.
func (n *network) whole() bool {
	for _, links := range n.cut {
		for _, c := range links {
			if c > 0 {
				return false
			}
		}
	}
	return n.noise == 0
}
