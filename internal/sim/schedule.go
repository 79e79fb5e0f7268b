package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Schedule is one simulation, complete: what it says decides every step.
type Schedule struct {
	Seed   uint64 // of delays, losses and script times
	Config Config
	Faults []Fault       // in order of time
	Quiet  time.Duration // when the last fault has ended
	Down   int           // 1 or 2: that node is switched off at Quiet for good; 0: none
	Blind  int           `json:",omitempty"` // 1 or 2: that node loses the way to all ping nodes at Quiet for good; 0: none
}

// Config is the cluster and its network.
type Config struct {
	Keepalive, WarnTime, DeadTime, InitDead time.Duration
	SuspectTime                             time.Duration // 0: kernels do not answer
	Flaps                                   int
	Failback                                model.FailbackMode
	Links                                   int
	Pings                                   int           `json:",omitempty"` // ping nodes
	DeadPing                                time.Duration `json:",omitempty"`
	Ipfail                                  bool          `json:",omitempty"` // who sees fewer of them gives up
	Echo                                    bool          // broadcasts come back to their sender
	Auth                                    model.AuthMethod
	Groups                                  []Group
	Script                                  time.Duration // how long a script takes at most
	Fence, Boot                             time.Duration `json:",omitempty"` // how long a reset of the other machine takes at most, and a machine to come up again; 0: nobody is fenced

	DelayMin, DelayMax     time.Duration
	Loss, Double, Straggle float64 // of each packet; Straggle: ten times the delay
}

// ipfailWait is how long a node that sees fewer ping nodes waits before it
// gives up; as the program has it.
func (c *Config) ipfailWait() time.Duration {
	if !c.Ipfail {
		return 0
	}
	return 2*c.Keepalive + 500*time.Millisecond
}

// flapHold is how long a node is in quarantine.
const flapHold = 10 * time.Second

// has tells whether a schedule has a fault of one of these kinds.
func (s *Schedule) has(kinds ...FaultKind) bool {
	return slices.ContainsFunc(s.Faults, func(f Fault) bool { return slices.Contains(kinds, f.Kind) })
}

// Group is one line of haresources.
type Group struct {
	Owner     int // 0 or 1
	Resources []string
}

// FaultKind is what goes wrong, or what an operator does.
type FaultKind string

// Faults. Node, Link and For mean what they say where they are used.
const (
	Kill     FaultKind = "kill"     // the daemon dies alone, and is back after For
	Reset    FaultKind = "reset"    // the machine dies, and its daemon is back after For
	Hollow   FaultKind = "hollow"   // the same, but its kernel answers long before its daemon is back
	Stop     FaultKind = "stop"     // a clean stop; a new start For after its end
	Pause    FaultKind = "pause"    // the daemon does not run for For; its kernel does
	Freeze   FaultKind = "freeze"   // nor does its kernel
	Cut      FaultKind = "cut"      // nothing that Node sends by Link arrives; Link -1: by any
	Split    FaultKind = "split"    // neither way, by any link
	Noise    FaultKind = "noise"    // Part of all packets are lost
	Clock    FaultKind = "clock"    // the wall clock is set by For
	Amnesia  FaultKind = "amnesia"  // the stored generation is gone; and Kill
	BadStart FaultKind = "badstart" // scripts of the set Set do not start on Node
	BadStop  FaultKind = "badstop"  // nor stop
	Slow     FaultKind = "slow"     // scripts on Node take ten times as long
	PingCut  FaultKind = "pingcut"  // Node does not reach the ping node Link; -1: any; Node -1: neither node does
	Standby  FaultKind = "standby"  // the operator: hand Set over
	Takeover FaultKind = "takeover" // the operator: take Set
)

// Fault is one of them.
type Fault struct {
	At   time.Duration // since the beginning
	For  time.Duration
	Kind FaultKind
	Node int // 0 or 1
	Link int
	Set  string // local, foreign, all
	Part float64
}

func (f Fault) String() string {
	s := fmt.Sprintf("%v node %d for %v", f.Kind, f.Node, f.For)
	switch f.Kind {
	case Cut, PingCut:
		s += fmt.Sprintf(" link %d", f.Link)
	case Noise:
		s += fmt.Sprintf(" part %.2f", f.Part)
	case BadStart, BadStop, Standby, Takeover:
		s += " " + f.Set
	case Kill, Reset, Hollow, Stop, Pause, Freeze, Split, Clock, Amnesia, Slow:
	}
	return s
}

// one draws one of several.
func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// between draws a duration, small ones as likely as large ones.
func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	for hi > 2*lo && r.IntN(2) == 0 {
		hi /= 2
	}
	return lo + time.Duration(r.Int64N(int64(hi-lo)+1))
}

// NewSchedule draws a schedule.
func NewSchedule(seed uint64) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x6261747574610001))
	s := Schedule{Seed: seed, Config: newConfig(r)}
	c := &s.Config
	more := rand.New(rand.NewPCG(seed, 0x6261747574610003)) // so that what came later left the seeds as they were
	if more.IntN(8) == 0 {
		c.Failback = model.FailbackLegacy
	}
	at := 3*c.Keepalive + between(r, 0, c.InitDead+10*time.Second)
	for range 1 + r.IntN(6) {
		f := newFault(r, c, at)
		s.Faults = append(s.Faults, f)
		s.Quiet = max(s.Quiet, f.end())
		at += between(r, 0, one(r, c.DeadTime, 2*c.DeadTime, 15*time.Second))
	}
	slices.SortStableFunc(s.Faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	if r.IntN(6) == 0 {
		s.Down = 1 + r.IntN(2)
	}
	if more.IntN(4) == 0 {
		addPings(more, &s)
	}
	extra := rand.New(rand.NewPCG(seed, 0x6261747574610004))
	if extra.IntN(6) == 0 {
		c.Fence, c.Boot = one(extra, 100*time.Millisecond, 3*time.Second, 20*time.Second), one(extra, time.Second, 20*time.Second)
	}
	if c.SuspectTime > 0 && extra.IntN(6) == 0 {
		s.add(Fault{At: time.Duration(extra.Int64N(int64(s.Quiet + time.Second))), For: between(extra, c.Keepalive, 4*c.DeadTime), Kind: Hollow, Node: extra.IntN(2)})
	}
	return s
}

// add puts a fault in its place.
func (s *Schedule) add(f Fault) {
	s.Faults = append(s.Faults, f)
	s.Quiet = max(s.Quiet, f.end())
	slices.SortStableFunc(s.Faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
}

// addPings adds ping nodes to a schedule, mostly with ipfail, and cuts ways to them.
func addPings(r *rand.Rand, s *Schedule) {
	c := &s.Config
	c.Pings, c.DeadPing = 1+r.IntN(3), max(c.DeadTime, 3*c.Keepalive)*one[time.Duration](r, 1, 1, 2)
	c.Ipfail = r.IntN(4) > 0
	for range r.IntN(4) {
		f := Fault{At: time.Duration(r.Int64N(int64(s.Quiet + time.Second))), For: between(r, c.Keepalive, 3*c.DeadPing+10*time.Second),
			Kind: PingCut, Node: one(r, 0, 1, 0, 1, -1), Link: one(r, -1, r.IntN(c.Pings))}
		s.add(f)
	}
	if s.Down == 0 && r.IntN(2) == 0 {
		s.Blind = 1 + r.IntN(2)
	}
}

func newConfig(r *rand.Rand) Config {
	c := Config{Links: one(r, 1, 1, 2, 2, 3), Echo: r.IntN(4) == 0, Auth: model.AuthCRC}
	c.Keepalive = one[time.Duration](r, 200, 500, 500, 1000, 1000, 2000) * time.Millisecond
	if r.IntN(30) == 0 {
		c.Keepalive = one[time.Duration](r, 5, 10, 20, 50, 100) * time.Millisecond
	}
	c.DeadTime = time.Duration(float64(c.Keepalive) * one(r, 2.2, 3, 5, 10))
	c.WarnTime = c.DeadTime / 2
	c.InitDead = c.DeadTime * one[time.Duration](r, 1, 2, 3)
	c.Failback = one(r, model.FailbackOn, model.FailbackOn, model.FailbackOff)
	if r.IntN(8) == 0 {
		c.Auth = one(r, model.AuthMD5, model.AuthSHA1, model.AuthSHA256)
	}
	c.Script = one(r, 0, 20*time.Millisecond, 200*time.Millisecond, time.Second)
	for owner := range 2 {
		for g := range one(r, 1, 1, 1, 2, 0) {
			group := Group{Owner: owner}
			for i := range 1 + r.IntN(3) {
				kind := one(r, "IPaddr", "service")
				group.Resources = append(group.Resources, fmt.Sprintf("%s::%d.%d.%d", kind, owner, g, i))
			}
			c.Groups = append(c.Groups, group)
		}
	}
	if r.IntN(2) == 0 {
		c.SuspectTime = max(3*c.DeadTime, time.Second)
	}
	c.Flaps = one(r, 0, 2, 3)
	c.DelayMin = one(r, 20*time.Microsecond, 100*time.Microsecond)
	c.DelayMax = c.DelayMin + one(r, 0, c.Keepalive/100, c.Keepalive/10)
	c.Loss = one(r, 0, 0, 0, 0.001, 0.01)
	c.Double = one(r, 0, 0, 0.05)
	c.Straggle = one(r, 0, 0, 0.02)
	return c
}

func newFault(r *rand.Rand, c *Config, at time.Duration) Fault {
	kinds := []FaultKind{Kill, Kill, Reset, Reset, Reset, Stop, Stop, Pause, Pause, Freeze, Cut, Cut, Cut, Split, Noise, Clock, Amnesia,
		BadStart, BadStop, Slow, Standby, Standby, Takeover, Takeover}
	f := Fault{At: at, Kind: one(r, kinds...), Node: r.IntN(2), Set: one(r, "local", "foreign", "all")}
	short, long := c.Keepalive/2, 4*c.DeadTime
	switch f.Kind {
	case Kill, Reset, Stop, Amnesia:
		f.For = between(r, time.Millisecond, long)
	case Pause, Freeze, Split, Noise:
		f.For = between(r, short, long)
	case Cut:
		f.For, f.Link = between(r, short, long), one(r, -1, r.IntN(c.Links))
	case BadStart, BadStop, Slow:
		f.For = between(r, short, long+10*time.Second)
	case Clock:
		f.For = one[time.Duration](r, -1, 1) * between(r, time.Second, 100*time.Hour)
	case Standby, Takeover, PingCut, Hollow:
	}
	f.Part = one(r, 0.05, 0.2, 0.5)
	return f
}

// end is when a fault is over.
func (f Fault) end() time.Duration {
	if f.Kind == Clock {
		return f.At
	}
	return f.At + f.For
}
