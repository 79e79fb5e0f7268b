package journal

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// Before is the life of the daemon before this one, as its journal ends.
type Before struct {
	Known    bool
	SameBoot bool          // as this life: End is on the same line of uptimes
	InOrder  bool          // it ended in good order, after it had handed over
	End      time.Duration // uptime of its last sign of life, in its boot
	States   map[Thing]Change
}

// Before tells of the life before this one.
func (j *Journal) Before() Before { return j.before }

// Evidence is what the kernel shows of a thing before a new life has touched
// anything.
type Evidence uint8

// Evidence of what was so while no daemon ran.
const (
	EvidenceNone Evidence = iota
	EvidenceHeld          // the kernel has it: nobody but the daemon would have put it back
	EvidenceGone          // it cannot have been there without the daemon
)

// Resume tells the tracker of the life before. What closes the gap between the
// two:
//
//   - The same boot, and the kernel still has the address, and for a service
//     its table: what served here goes on serving, without a daemon. After
//     an end in good order nothing does: it was handed over.
//   - The same boot, and a plane that lives in the daemon, on a director without
//     a cluster: the service was down.
//   - Another boot: this node was down from the boot on, and with it all that
//     only it can serve. Of the time before the boot nobody knows.
//
// Whatever else was so is for the journals of other nodes to tell; where none
// does, it is unknown.
func (t *Tracker) Resume(b Before, evidence func(Thing) Evidence) {
	t.before, t.evidence = b, evidence
}

// closeGap decides what is known of a thing between two lives, given the first
// that the new one finds. It changes the finding, or returns what comes before.
func (t *Tracker) closeGap(f *finding, now Instant) []Change {
	was, known := t.before.States[f.Thing]
	if !t.before.Known || !known {
		return nil
	}
	serves := func(s sla.State) bool { return s == sla.Up || s == sla.Degraded }
	served := serves(was.State) && was.Where == string(t.self)
	down := func(since time.Duration, why string) []Change {
		t.outages[f.Thing] = outage{since, t.began}
		return []Change{{Thing: f.Thing, State: sla.Down, Since: since, Why: why}}
	}
	switch {
	case !t.before.SameBoot:
		self := f.Thing == Thing{ThingNode, string(t.self)}
		if self || t.alone && served && f.Thing.Kind == ThingService {
			return down(0, "the machine was restarted")
		}
	case t.before.InOrder || t.evidence == nil || !served:
	case t.evidence(f.Thing) == EvidenceGone && t.alone:
		return down(t.before.End, "the daemon had died, and its plane with it")
	case t.evidence(f.Thing) == EvidenceHeld && serves(f.State) && f.Where == was.Where:
		if _, removed := t.heard["address-removed "+f.address]; !removed {
			f.Since, f.Why = min(t.before.End, now.Uptime), "found in force when the daemon was back, in the same boot"
		}
	}
	return nil
}

// soleNode tells whether a snapshot knows of no other node.
func soleNode(s Snapshot) bool {
	for _, n := range s.Nodes {
		if n.Name != s.Self && !n.Ping && n.State != model.NodePing {
			return false
		}
	}
	return true
}
