package sim

import (
	"slices"
	"strconv"
	"time"
)

// network carries datagrams between the two hosts, by each link on its own.
type network struct {
	w      *world
	cut    [2][]int  // [sender][link]: how many faults forbid it
	noise  float64   // part of the packets that is lost now, besides the usual
	lost   time.Time // when a packet was lost last
	names  []string  // of the links
	pings  []string  // the ping nodes
	unseen [2][]int  // [host][ping node]: how many faults are in the way
}

func newNetwork(w *world) *network {
	n := &network{w: w}
	for i := range w.cfg.Links {
		n.names = append(n.names, "eth"+strconv.Itoa(i+1))
	}
	for i := range w.cfg.Pings {
		n.pings = append(n.pings, "ping"+strconv.Itoa(i+1))
	}
	for i := range n.cut {
		n.cut[i], n.unseen[i] = make([]int, w.cfg.Links), make([]int, w.cfg.Pings)
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
			n.lost = n.w.now
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
		if x := r.Float64(); from != to && x < n.loss() {
			n.w.seen.Lost++
			n.lost = n.w.now
			continue
		}
		delay := n.delay()
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

// ask puts a question to the kernel of the other host, by each link; the
// answers come back by the same.
func (n *network) ask(from *host, question []byte) {
	for i, name := range n.names {
		if !n.passes(from.index, i) {
			continue
		}
		n.w.after(n.delay(), func() {
			to := from.peer()
			answer := to.reply(question)
			if answer == nil || !n.passes(to.index, i) {
				return
			}
			n.w.after(n.delay(), func() {
				from.arrive(packet{link: name, data: answer, at: n.w.now})
				n.w.check.answered(from)
			})
		})
	}
}

// probe sends an echo request to a ping node, which returns it.
func (n *network) probe(from *host, name string, data []byte) {
	if n.unseen[from.index][slices.Index(n.pings, name)] > 0 || n.w.rng.Float64() < n.loss() {
		return
	}
	n.w.after(n.delay()+n.delay(), func() { from.arrive(packet{link: name, data: data, at: n.w.now}) })
}

// hide takes a ping node, or all with -1, out of sight of a host, or of both with -1.
func (n *network) hide(from, ping, by int) {
	for h := range n.unseen {
		for i := range n.unseen[h] {
			if (from < 0 || from == h) && (ping < 0 || ping == i) {
				n.unseen[h][i] += by
			}
		}
	}
}

// passes tells whether a packet comes through.
func (n *network) passes(from, link int) bool {
	ok := n.cut[from][link] == 0 && n.w.rng.Float64() >= n.loss()
	if !ok {
		n.lost = n.w.now
	}
	return ok
}

// loss is the part of all packets that is lost now: none after the last fault.
func (n *network) loss() float64 {
	if n.w.now.Sub(n.w.begin) >= n.w.Quiet {
		return 0
	}
	return max(n.w.cfg.Loss, n.noise)
}

func (n *network) delay() time.Duration {
	d := n.w.cfg.DelayMin
	if span := n.w.cfg.DelayMax - d; span > 0 {
		d += time.Duration(n.w.rng.Int64N(int64(span)))
	}
	return d
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
