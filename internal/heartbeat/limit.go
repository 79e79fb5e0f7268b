package heartbeat

import (
	"fmt"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// What one node may cost another. A key is enough to command a cluster; it
// should not be enough, nor should a fault of a node be, to fill the others'
// memory, disks or wires. What is beyond a limit counts as lost on the wire,
// which the protocol mends by itself when it was honest.
//
// New messages and messages of delivery are counted apart: the latter have no
// numbers, so anybody who recorded some can play them, and must not use up
// what the node's beats need.
const (
	freshPerSecond   = 2000 // new reliable messages of a node; ten times those of a keepalive of 5 ms
	controlPerSecond = 1000 // acknowledgments, requests, refusals of a node
	answerPerSecond  = 1000 // messages sent again or refused at a node's requests
	askPerSecond     = 1000 // requests to a node for what is missing
	burst            = 500  // how many more may come at once

	maxMessage = 16 << 10    // bytes of a packet; those of either program have some hundred
	maxHeld    = historySize // messages that wait for a missing one
	maxHeldLen = 1 << 20     // bytes of them
	maxWord    = 16          // bytes of a word that is kept of a node: life
)

// bucket gives out so many tokens a second, and burst more at once. The zero
// value is full.
type bucket struct {
	spent float64
	at    time.Time
}

// take takes a token, if there is one.
func (b *bucket) take(now time.Time, perSecond float64) bool {
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.spent, b.at = max(0, b.spent-d*perSecond), now
	}
	if b.spent+1 > burst {
		return false
	}
	b.spent++
	return true
}

// excessive tells of a packet that this peer sends more of than it may.
func (c *Core) excessive(now time.Time, p *peer, s *said) bool {
	ok := true
	switch seq := s.seq; {
	case strings.HasPrefix(s.typ, "NS_"):
		ok = p.control.take(now, controlPerSecond)
	case s.gen == p.in.generation && p.in.tracking && seq <= p.in.last && !p.in.isMissing(seq):
		// heard before: cheap, and normal with several links
	default:
		ok = p.fresh.take(now, freshPerSecond)
	}
	if ok {
		return false
	}
	c.count.Excess++
	if p.lastExcess.IsZero() || now.Sub(p.lastExcess) >= complaintPeriod {
		p.lastExcess = now
		c.note(now, model.LevelWarning, "node-floods", string(p.name),
			"node %s sends more than %d messages or %d of delivery a second (or somebody plays recordings of it): what is beyond is dropped", p.name, freshPerSecond, controlPerSecond)
	}
	return true
}

// relieve ends the wait for missing messages if too many are held for them.
func (c *Core) relieve(now time.Time, p *peer) {
	bytes := 0
	for i := range p.held {
		bytes += p.held[i].size
	}
	if len(p.held) <= maxHeld && bytes <= maxHeldLen {
		return
	}
	c.note(now, model.LevelWarning, "tracking-reset", string(p.name),
		"%d messages of %s are missing and do not come, and %d wait for them: going on without", len(p.in.missing), p.name, len(p.held))
	p.in.missing = p.in.missing[:0]
	c.release(p, true)
}

// word is the value of a field that is kept, "" if it is none to keep.
func word(pkt *Packet, name string) string {
	w := pkt.Get(name)
	if len(w) > maxWord || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return w
}

// clip shortens what a peer says for a log.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(s[:most], ""), len(s))
}
