// Package pair is Heartbeat's negotiation of resources between two nodes: the
// haresources state machine, as a pure core.
//
// What comes in is facts of the cluster (the other node's messages, its death
// and return), the operator's wishes, and the outcome of resource operations.
// What goes out is messages to send, sets of resources to acquire or release,
// and sentences for people. The core never touches a resource, reads no clock
// and starts no goroutine: whoever runs it calls Step for each input, and again
// no later than Next.
//
// Two sets of resources exist: those listed in haresources under this node's
// name (local) and those under the other's (foreign). Ownership is an
// intention that is announced before it is acted upon; operations are carried
// out one after the other in the order given.
//
// Towards a real Heartbeat the core keeps to its protocol. Towards another
// Batuta node it is faster and safer: no 10 s wait when both start together,
// numbered reports so that late copies do no harm, an ordered end of a split.
package pair

import (
	"fmt"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Set is a set of resource sets, from the point of view of whoever speaks.
type Set uint8

// Sets of resources. All is both.
const (
	None    Set = 0
	Local   Set = 1 << 0
	Foreign Set = 1 << 1
	All         = Local | Foreign
)

// String is the word of the wire: none, local, foreign, all.
func (s Set) String() string { return [...]string{"none", "local", "foreign", "all"}[s&All] }

// Mirror is the same set from the other node's point of view.
func (s Set) Mirror() Set { return s&Local<<1 | s&Foreign>>1 }

// ParseSet reads a word of the wire.
func ParseSet(word string) (Set, bool) {
	for s := None; s <= All; s++ {
		if s.String() == word {
			return s, true
		}
	}
	return None, false
}

// ParseStandby reads the operator's word for "give away": failback means foreign, "" means all.
func ParseStandby(word string) (Set, error) { return parseWish(word, Foreign) }

// ParseTakeover reads the operator's word for "take": failback means local, "" means all.
func ParseTakeover(word string) (Set, error) { return parseWish(word, Local) }

func parseWish(word string, failback Set) (Set, error) {
	switch word {
	case "":
		return All, nil
	case "failback":
		return failback, nil
	}
	if s, ok := ParseSet(word); ok && s != None {
		return s, nil
	}
	return None, fmt.Errorf("unknown set of resources %q: use all, local, foreign or failback", word)
}

// Config says who the two nodes are.
type Config struct {
	Self, Peer model.NodeName // Peer "" for a cluster of one
	First      bool           // Self stands before Peer in ha.cf: decides a tie after a split
	Failback   bool           // auto_failback on: what was taken over is offered back
	Legacy     bool           // auto_failback legacy: see legacy.go. Towards a Batuta node it is Failback

	// Resources in each set: after a split the side that holds more of them keeps them.
	LocalResources, ForeignResources int

	// Ipfail makes the node that sees fewer ping nodes give everything to the
	// other, after this wait; 0: no. See ipfail.go.
	Ipfail time.Duration

	// Fencing makes this node have the other's machine reset before it takes
	// anything over that may still run there. See fence.go.
	Fencing bool

	// LocalGroups and ForeignGroups are the keys of both nodes' groups, which the
	// legacy mode asks and answers for.
	LocalGroups, ForeignGroups []string
}

// Input is one thing the core learns.
type Input interface{ input() }

// Cluster is a fact from the messenger.
type Cluster struct{ model.ClusterEvent }

// Finished reports the outcome of an Acquire or Release. Failed holds the
// sets of which a resource did not start, or still runs although stopped.
type Finished struct {
	Op     int
	Failed Set
}

// Found says before communication is up which sets have a resource that runs
// although nobody started it in this life.
type Found struct{ Set Set }

// Standby is the operator's wish to hand a set to the other node.
type Standby struct{ Set Set }

// Takeover is the operator's wish to get a set from the other node.
type Takeover struct{ Set Set }

// Stop is the operator's wish to hand over and end.
type Stop struct{}

// Tick says only that time has passed.
type Tick struct{}

func (Cluster) input()  {}
func (Finished) input() {}
func (Found) input()    {}
func (Standby) input()  {}
func (Takeover) input() {}
func (Stop) input()     {}
func (Tick) input()     {}

// Effect is one thing to do, in order.
type Effect interface{ effect() }

// Send is a message for the other node, complete but for transport fields.
type Send struct{ model.Message }

// Acquire starts every group of the set; Finished follows.
type Acquire struct {
	Op  int
	Set Set
}

// Release stops every group of the set; Finished follows.
type Release struct {
	Op  int
	Set Set
}

// Reannounce tells the network again where the set's addresses are.
type Reannounce struct{ Set Set }

// Say is for people and the journal.
type Say struct{ model.Event }

// Stopped ends a Stop: everything is released and the other node knows.
// Left holds sets of which something could not be stopped.
type Stopped struct{ Left Set }

func (Send) effect()       {}
func (Acquire) effect()    {}
func (Release) effect()    {}
func (Reannounce) effect() {}
func (Say) effect()        {}
func (Stopped) effect()    {}

func (e Send) String() string       { return "send " + e.Message.String() }
func (e Acquire) String() string    { return fmt.Sprintf("acquire %v (%d)", e.Set, e.Op) }
func (e Release) String() string    { return fmt.Sprintf("release %v (%d)", e.Set, e.Op) }
func (e Reannounce) String() string { return "reannounce " + e.Set.String() }
func (e Say) String() string        { return e.Level.String() + ": " + e.Text }
func (e Stopped) String() string    { return "stopped, left " + e.Left.String() }

// Times of the protocol (heartbeat 3.0.6).
const (
	takeoverDelay = 10 * time.Second // a report without agreement, until one's own set is taken
	answerDelay   = 10 * time.Second // an offer, until it counts as refused
	workDelay     = time.Hour        // the other node's scripts, until a hand-over is forgotten
	giveUpDelay   = 30 * time.Second // a failed start, until the set is offered to the other
	stuckDelay    = 30 * time.Second // a failed stop of what is the other's, until it is tried again
	maxSilences   = 5                // takeoverDelays more for a Batuta node that lives and says nothing
	askDelay      = 10 * time.Second // no word of the other's state, until it is asked again
	orphanDelay   = 2 * time.Second  // nobody claims the other's set, until it is offered to it; it reacts within 1 s
)

// state is where the negotiation stands.
type state uint8

const (
	stateInit     state = iota // communication is not up
	stateStarting              // up; no report seen or sent yet
	stateReceived              // a report was seen or sent; no agreement yet
	stateStable                // agreed
	stateShutdown              // handing over, to end
)

func (s state) String() string {
	return [...]string{"init", "starting", "received", "stable", "shutdown"}[s]
}

// standby is where a hand-over stands.
type standby uint8

const (
	standbyNot   standby = iota
	standbyMe            // we offered; from the answer on we release
	standbyOther         // we accepted; the other releases
	standbyDone          // released: the other acquires, or we do
)

// peerState is what is known of the other node in its present life.
type peerState struct {
	alive    bool
	batuta   bool
	open     bool   // its last report: not settled, and busy with nothing
	reported bool   // it has said what it claims
	stopping bool   // it announced its stop
	gone     bool   // it has released everything and ends
	empty    bool   // it has settled and holds nothing
	cleaning bool   // it releases what it does not claim
	report   uint64 // number of its last report
	epoch    uint64 // that it gave last
	pings    int    // how many ping nodes it says that it sees; -1: it has not said
	message  uint32 // that of the message with its last report, for a Heartbeat numbers nothing else
}

// Core is one node's half of the negotiation. Make it with New.
type Core struct {
	cfg Config
	now time.Time
	out []Effect

	// The negotiation.
	state       state
	up          bool // communication has come up
	hold        Set  // what we claim
	other       Set  // what the other claims, in its own terms
	otherStable bool // the other says that it has settled
	peer        peerState
	reports     uint64 // that we have numbered
	takeoverAt  time.Time
	silences    int // how often it was put off
	askAt       time.Time

	// Hand-overs.
	standby       standby
	standbySet    Set // in terms of the node that hands over
	standbyAt     time.Time
	standbyID     string // of the hand-over, given by the node that offers
	offers        uint64 // that this node has made
	standbyReport uint64 // number of the other's last report before its offer
	giving        Set    // what was held of the set that is being released
	offered       bool   // the running offer is a failback

	// What goes home.
	needsFailback bool
	quarantine    time.Time // the other is given nothing back before
	held          bool      // that was said
	orphanAt      time.Time // nobody claims the other's set: when to act
	orphanOffered bool      // once; it was not taken

	// Scripts.
	ops      []operation
	lastOp   int
	failed   Set // held, but a start failed
	giveUpAt time.Time
	stuck    Set       // the other's, but it could not be stopped here
	stuckAt  time.Time // when to try again
	found    Set       // left running by an earlier life
	cleaning bool      // that is being released

	// Splits.
	epoch     uint64 // counts takeovers, the other's that were agreed to among them
	healing   bool   // the other was asked what it holds
	won       bool   // the loser has not yet released
	rejoining bool   // we lost, and release everything
	audited   bool   // a double claim was reported

	// Fencing.
	lives      int       // of the other node that were seen
	fencing    bool      // the other node is to be reset before its resources are taken
	attempting bool      // that is under way
	fenceLife  int       // in which of its lives that began
	fenceAt    time.Time // when to try again
	inVain     int       // attempts that could not be called off when it was back
	vainAt     time.Time // the latest of these

	// Ping nodes.
	pingsSeen int
	behind    bool      // the other node sees more ping nodes, and has not got everything yet
	yieldAt   time.Time // when to give up then

	// auto_failback legacy.
	awaited map[string]bool // own groups that the other node was asked for
	asked   []string        // groups that it asked us for, and has not got yet
}

// New returns a core that waits for communication to come up.
func New(cfg Config) *Core {
	cfg.Failback = cfg.Failback || cfg.Legacy
	return &Core{cfg: cfg, peer: peerState{pings: -1}}
}

// Step takes one input and returns what to do, in order.
func (c *Core) Step(now time.Time, in Input) []Effect {
	c.now = now
	c.expire()
	switch in := in.(type) {
	case Cluster:
		c.cluster(in.ClusterEvent)
	case Finished:
		c.finished(in)
	case Found:
		if c.state == stateInit {
			c.found |= in.Set
		}
	case Standby:
		if err := c.CanStandby(in.Set); err != nil {
			c.say(model.LevelWarning, "standby-refused", "standby %v refused: %v", in.Set, err)
		} else {
			c.offer(in.Set, false)
		}
	case Takeover:
		if err := c.CanTakeover(in.Set); err != nil {
			c.say(model.LevelWarning, "takeover-refused", "takeover %v refused: %v", in.Set, err)
		} else {
			c.send("hb_takeover", model.Field{Name: "rsc_hold", Value: in.Set.String()})
		}
	case Stop:
		c.stop()
	case Fenced:
		c.fenced(in)
	case Tick:
	}
	c.consider()
	out := c.out
	c.out = nil
	return out
}

// Next is when Step must be called at the latest; zero for no time in sight.
func (c *Core) Next() time.Time {
	var next time.Time
	for _, t := range [...]time.Time{c.takeoverAt, c.standbyAt, c.giveUpAt, c.askAt, c.stuckAt, c.orphanAt, c.quarantine, c.yieldAt, c.fenceAt} {
		if !t.IsZero() && t.After(c.now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// Hold is what this node claims; Other what the other node claims, both in this node's terms.
func (c *Core) Hold() Set { return c.hold }

// Other is what the other node is known to claim, in this node's terms.
func (c *Core) Other() Set { return c.other.Mirror() }

// Stable tells whether both sides have settled and nothing is under way.
func (c *Core) Stable() bool {
	return c.state == stateStable && (c.otherStable || c.alone()) && c.standby == standbyNot && !c.healing && !c.fencing && len(c.ops) == 0 && len(c.awaited) == 0
}

// String is the canonical text of the state: "stable hold=local other=foreign", in this node's terms.
func (c *Core) String() string {
	return fmt.Sprintf("%v hold=%v other=%v", c.state, c.hold, c.Other())
}

// CanStandby tells why a set cannot be handed over now; nil if it can.
func (c *Core) CanStandby(s Set) error {
	if c.hold&s == None {
		return fmt.Errorf("this node holds %v, not %v", c.hold, s)
	}
	return c.canMove()
}

// CanTakeover tells why a set cannot be asked for now; nil if it can.
func (c *Core) CanTakeover(s Set) error {
	if s&^c.hold == None {
		return fmt.Errorf("this node already holds %v", c.hold)
	}
	return c.canMove()
}

func (c *Core) canMove() error {
	switch {
	case c.cfg.Peer == "":
		return fmt.Errorf("there is no other node")
	case c.legacy():
		return fmt.Errorf("auto_failback legacy knows no hand-over; write auto_failback on or off in ha.cf on both nodes")
	case c.state == stateShutdown:
		return fmt.Errorf("this node is stopping")
	case c.state != stateStable:
		return fmt.Errorf("this node has not settled yet; try again in a few seconds")
	case c.alone():
		return fmt.Errorf("node %s is not there to take part", c.cfg.Peer)
	case c.standby != standbyNot || c.healing:
		return fmt.Errorf("a hand-over is under way; try again when it has ended")
	case !c.otherStable:
		return fmt.Errorf("node %s has not settled yet; try again in a few seconds", c.cfg.Peer)
	case len(c.ops) > 0:
		return fmt.Errorf("resources are being started or stopped; try again when that has ended")
	}
	return nil
}

func (c *Core) send(kind string, fields ...model.Field) {
	if c.legacy() && slices.Contains(negotiation, kind) {
		return
	}
	c.out = append(c.out, Send{model.Message{Type: kind, From: c.cfg.Self, Fields: fields}})
}

func (c *Core) say(l model.Level, kind, format string, args ...any) {
	c.out = append(c.out, Say{model.Event{At: c.now, Level: l, Source: "resources", Kind: kind,
		Subject: string(c.cfg.Self), Text: fmt.Sprintf(format, args...)}})
}
