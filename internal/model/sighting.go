package model

import (
	"strconv"
	"time"
)

// SightingKind says what a Sighting reports.
type SightingKind uint8

// What the failure detector finds out about a node.
const (
	SightingNone      SightingKind = iota
	SightingBeat                   // an ordinary beat of a node that was alive
	SightingJoined                 // the first beat ever, or the first of a new life after silence
	SightingRestarted              // a beat of a new life, before the old one was missed
	SightingReturned               // a beat of the same life, after silence
	SightingSilent                 // no beat for the node's deadtime
	SightingLinkUp                 // a packet of the node came in by Link, which was down
	SightingLinkDown               // none came in by Link for the node's deadtime
	SightingSuspect                // no beat for the node's deadtime, but its kernel answers
)

var sightingText = [...]string{"none", "beat", "joined", "restarted", "returned", "silent", "link-up", "link-down", "suspect"}

func (k SightingKind) String() string {
	if int(k) < len(sightingText) {
		return sightingText[k]
	}
	return "sighting(" + strconv.Itoa(int(k)) + ")"
}

// Sighting is one finding of the failure detector about another node: it
// goes from heartbeat to member. The members after At and Link describe the
// latest beat and are set for beats only.
type Sighting struct {
	Kind SightingKind
	Node NodeName
	At   time.Time // when it was received, or the moment it was missed
	Link string    // link sightings only

	State      NodeState     // the status word
	Generation uint32        // life of its daemon
	DeadTime   time.Duration // what the node asks to be judged by
	Batuta     bool          // it announced Batuta's extra fields
	Delay      time.Duration // by how much its own loop was late at worst since its beat before
	Margin     Margin        // what its beats of the last days would have allowed
	Key        KeyUse        // what it signs with
	Kernel     bool          // its kernel has answered: silence of its daemon alone is no death
}

// Margin is the shortest dead time that would have raised no false alarm, at
// the keepalive in use, and since when that is known.
type Margin struct {
	DeadTime Millis    `json:"deadtime_ms"` // 0: nothing known
	Since    time.Time `json:"since"`
}

// String is the canonical text: "lvs02 joined active".
func (s Sighting) String() string {
	t := string(s.Node) + " " + s.Kind.String()
	switch {
	case s.Link != "":
		t += " " + s.Link
	case s.State != NodeUnknown:
		t += " " + s.State.String()
	}
	return t
}
