package ebpf

import (
	"context"
	"sync/atomic"

	"github.com/batuta-ha/batuta/internal/plane"
)

// Reason is why a packet did not simply go its way: enum reason of bpf/abi.h.
type Reason uint32

// Reasons up to ReasonLastHop are drops; those from ReasonNoFlow on were
// carried by the director's own stack instead.
const (
	ReasonNone         = Reason(tcReasonREASON_NONE)
	ReasonNoReal       = Reason(tcReasonREASON_NO_REAL)
	ReasonTableFull    = Reason(tcReasonREASON_TABLE_FULL)
	ReasonDeadFlow     = Reason(tcReasonREASON_DEAD_FLOW)
	ReasonCollision    = Reason(tcReasonREASON_COLLISION)
	ReasonRace         = Reason(tcReasonREASON_RACE)
	ReasonLateFragment = Reason(tcReasonREASON_LATE_FRAGMENT)
	ReasonBadPacket    = Reason(tcReasonREASON_BAD_PACKET)
	ReasonRewrite      = Reason(tcReasonREASON_REWRITE)
	ReasonOverloaded   = Reason(tcReasonREASON_OVERLOADED)
	ReasonUnreachable  = Reason(tcReasonREASON_UNREACHABLE)
	ReasonOversize     = Reason(tcReasonREASON_OVERSIZE)
	ReasonLastHop      = Reason(tcReasonREASON_LAST_HOP)
	ReasonNoFlow       = Reason(tcReasonREASON_NO_FLOW)
	ReasonTTL          = Reason(tcReasonREASON_TTL)
	ReasonTooBig       = Reason(tcReasonREASON_TOO_BIG)
	ReasonNoRoute      = Reason(tcReasonREASON_NO_ROUTE)
	ReasonStaysFull    = Reason(tcReasonREASON_STAYS_FULL)
	ReasonMadeRoom     = Reason(tcReasonREASON_MADE_ROOM)
	ReasonWaits        = Reason(tcReasonREASON_WAITS)

	reasons = int(tcReasonREASONS)
)

var reasonText = [reasons]string{
	ReasonNone:           "none",
	ReasonNoReal:         "no-real-server",
	ReasonTableFull:      "table-full",
	ReasonDeadFlow:       "deleted",
	ReasonCollision:      "collision",
	ReasonRace:           "race",
	ReasonLateFragment:   "late-fragment",
	ReasonBadPacket:      "bad-packet",
	ReasonRewrite:        "rewrite-failed",
	ReasonOverloaded:     "overloaded",
	ReasonUnreachable:    "unreachable",
	ReasonOversize:       "oversize",
	ReasonLastHop:        "last-hop",
	tcReasonREASON_STACK: "stack",
	ReasonNoFlow:         "no-connection",
	ReasonTTL:            "ttl-expired",
	ReasonTooBig:         "too-big",
	ReasonNoRoute:        "no-route",
	ReasonStaysFull:      "not-remembered",
	ReasonMadeRoom:       "made-room",
	ReasonWaits:          "waits",
}

func (r Reason) String() string {
	if int(r) < reasons {
		return reasonText[r]
	}
	return "unknown"
}

// Dropped tells drops from packets that the stack carried.
func (r Reason) Dropped() bool { return r != ReasonNone && r < Reason(tcReasonREASON_STACK) }

// Reasons returns how many packets did not simply go their way, by reason.
// Reasons that never occurred are left out. It makes no system call.
func (p *Plane) Reasons(context.Context) (map[Reason]uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	out := map[Reason]uint64{}
	for r := range Reason(reasons) {
		if n := p.t.count(r); n > 0 {
			out[r] = n
		}
	}
	return out, nil
}

// reasonsLine is REASONS_LINE of bpf/maps.h.
const reasonsLine = 32

// count sums one reason over the processors.
func (t *tables) count(r Reason) (sum uint64) {
	for i := int(r); i < len(t.reasons); i += reasonsLine {
		sum += atomic.LoadUint64(&t.reasons[i])
	}
	return sum
}
