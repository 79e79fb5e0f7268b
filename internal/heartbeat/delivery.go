package heartbeat

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Bounds of reliable delivery (§6).
const (
	historySize  = 500 // reliable messages kept for retransmission
	maxGap       = 250 // numbers missing at once above which tracking starts afresh
	maxMissing   = 499 // numbers missing in total
	maxResend    = 50  // messages sent again for one request
	ackEvery     = 10  // one acknowledgment for so many messages
	resendMargin = 10 * time.Millisecond
)

// ackGeneration says which life of the addressee an NS_ackmsg is about. The
// original does not say: what a node that was away acknowledges of an earlier
// life, its new life takes for its own, and never sends it again.
const ackGeneration = "ackgen"

// inbox tracks what one sender has sent: its life (generation), the highest
// sequence number and the ones missing below it.
type inbox struct {
	known      bool   // some life of the sender has been heard
	generation uint32 // highest heard; it survives the sender's death
	life       string // what a Batuta sender calls that life; "" for others
	tracking   bool   // last is valid
	last       uint32
	missing    []gap  // sorted by number
	residue    uint32 // numbers that leave it modulo ackEvery are acknowledged
	statusSeq  uint32 // of the newest status message of this life
	floor      uint32 // numbers of this life up to it were heard by an earlier life of ours
	doubt      uint32 // numbers of this life up to it may have been, and need a proof; 0: none do
}

// gap is one missing number and when to ask for it next.
type gap struct {
	seq uint32
	due time.Time
}

// verdict says what a sequence number means.
type verdict uint8

const (
	refuse  verdict = iota // stale: neither new nor missing
	fresh                  // the next, or one beyond a new gap
	late                   // was missing
	repeat                 // the newest once more
	restart                // too far ahead: tracking began afresh here
)

// accept enters one number. ask gives the delay until each newly missing
// number is asked for. opened is how many numbers are newly missing.
func (in *inbox) accept(seq uint32, now time.Time, ask func() time.Duration) (v verdict, opened int) {
	switch {
	case !in.tracking && seq <= in.floor:
		return refuse, 0
	case !in.tracking:
		in.tracking, in.last = true, seq
		return fresh, 0
	case seq == in.last:
		return repeat, 0
	case seq > in.last:
		lost := int64(seq) - int64(in.last) - 1
		if lost > maxGap || lost+int64(len(in.missing)) > maxMissing {
			in.missing, in.last = in.missing[:0], seq
			return restart, int(lost)
		}
		for n := in.last + 1; n < seq; n++ {
			in.missing = append(in.missing, gap{n, now.Add(ask())})
		}
		in.last = seq
		return fresh, int(lost)
	case in.fill(seq):
		return late, 0
	}
	return refuse, 0
}

// find returns where a number is, or would be, among the missing ones.
func (in *inbox) find(seq uint32) (int, bool) {
	return slices.BinarySearchFunc(in.missing, seq, func(g gap, s uint32) int { return cmp.Compare(g.seq, s) })
}

func (in *inbox) isMissing(seq uint32) bool {
	_, found := in.find(seq)
	return found
}

// fill takes a number off the missing ones and tells whether it was there.
func (in *inbox) fill(seq uint32) bool {
	i, found := in.find(seq)
	if found {
		in.missing = slices.Delete(in.missing, i, i+1)
	}
	return found
}

// ack returns the number to acknowledge after seq came in or was given up
// (§6.3): seq itself if it is the turn of its residue and nothing older is
// missing; after a gap closed, the highest number of that residue below the
// next missing one, unless it lies below the gap.
func (in *inbox) ack(seq uint32) (uint32, bool) {
	top := in.last
	if len(in.missing) > 0 {
		top = in.missing[0].seq - 1
	}
	if top < seq {
		return 0, false // something older is missing
	}
	n := top - (top+ackEvery-in.residue)%ackEvery
	if n < seq || n > top || n == 0 {
		return 0, false
	}
	return n, true
}

// forget drops the tracking of numbers, at death and at a new life. The
// generation stays: a lower one remains a replay (§7.4).
func (in *inbox) forget(r *rand.Rand) {
	in.tracking, in.last, in.missing = false, 0, in.missing[:0]
	in.residue = r.Uint32N(ackEvery)
}

// held is a message that waits for those before it.
type held struct {
	seq  uint32
	msg  model.Message
	size int // of its packet
}

// hold puts a message among those that are to be delivered.
func (p *peer) hold(seq uint32, m model.Message, size int) {
	i, _ := slices.BinarySearchFunc(p.held, seq, func(h held, s uint32) int { return cmp.Compare(h.seq, s) })
	p.held = slices.Insert(p.held, i, held{seq, m, size})
}

// release delivers what is held, in the order in which it was sent: up to the
// first missing message, or all of it. The original delivers as it comes, and
// its resource negotiation depends on no order; Batuta sends in order, asks for
// what is missing within milliseconds, and is spared the stories that begin
// with "but the answer came before".
func (c *Core) release(p *peer, all bool) {
	n := 0
	for ; n < len(p.held); n++ {
		if missing := p.in.missing; !all && len(missing) > 0 && missing[0].seq < p.held[n].seq {
			break
		}
		c.effects = append(c.effects, Deliver{p.held[n].msg})
	}
	p.held = slices.Delete(p.held, 0, n)
}

// outbox numbers one's own reliable messages and keeps the newest with their
// bytes, so that one asked for again is the identical packet (§6.4).
type outbox struct {
	seq   uint32 // highest sent; 0 before the first
	slots [historySize]sent
}

type sent struct {
	seq    uint32
	data   []byte
	key    int // that it is signed with
	resent time.Time
}

// keep stores the packet of the number just given out.
func (o *outbox) keep(data []byte, key int) {
	o.slots[o.seq%historySize] = sent{seq: o.seq, data: data, key: key}
}

// room returns memory for that packet: that of the one whose place it takes.
func (o *outbox) room() []byte { return o.slots[o.seq%historySize].data[:0] }

// latest tells whether these are the bytes of the newest packet.
func (o *outbox) latest(data []byte) bool {
	s := o.find(o.seq)
	return s != nil && bytes.Equal(s.data, data)
}

// find returns the stored packet of a number, or nil.
func (o *outbox) find(seq uint32) *sent {
	if s := &o.slots[seq%historySize]; seq != 0 && s.seq == seq {
		return s
	}
	return nil
}
