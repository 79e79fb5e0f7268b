package member

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Bounds of a node's first moments (§7.2, §7.3).
const (
	youth       = 5 * time.Second // how long a new daemon asks for more patience
	youthBonus  = 2 * time.Second // and how much at most; twice its dead time if that is less
	askInterval = time.Second     // between two requests for the node list
)

// Input is one thing that happens to a Core: Start, Sighting, Received, Renewed or Tick.
type Input interface{ isInput() }

// Start begins the node's life; it comes first and once.
type Start struct{}

// Sighting is a finding of the failure detector.
type Sighting struct{ model.Sighting }

// Received is a new message of another node for this one.
type Received struct{ model.Message }

// Renewed says that the others see a new life of this node begin, which has
// that generation: nobody has heard what was said before.
type Renewed struct{ Generation uint32 }

// Tick says that time has passed; due at Next.
type Tick struct{}

func (Start) isInput()    {}
func (Sighting) isInput() {}
func (Received) isInput() {}
func (Renewed) isInput()  {}
func (Tick) isInput()     {}

// Effect is one thing that a Core wants done: Submit, Running, Event or Note.
type Effect interface{ isEffect() }

// Submit asks to send a message reliably. Nobody changes its fields.
type Submit struct{ model.Message }

// Running says that every node has been heard or declared dead: from now on
// each is judged by its own dead time instead of initdead.
type Running struct{}

// Event is for the resource manager.
type Event struct{ model.ClusterEvent }

// Note is worth logging.
type Note struct{ model.Event }

func (*Submit) isEffect() {}
func (Running) isEffect() {}
func (Event) isEffect()   {}
func (Note) isEffect()    {}

// phase is how far this node's own start has come (§7.3).
type phase uint8

const (
	unborn  phase = iota
	waiting       // for every node to be heard or declared dead
	asking        // for the node list of another node
	running       // communication is up
)

// Core is the membership as one node sees it.
type Core struct {
	hb    *model.Heartbeat
	gen   uint32
	born  time.Time
	phase phase
	nodes map[model.NodeName]*node
	names []model.NodeName // sorted, self among them

	nextBeat time.Time
	plainAt  time.Time // when the plain dead time is announced; zero once it was
	askAt    time.Time // when the node list is asked for again
	asked    model.NodeName

	status  []model.Field // those of the latest status message
	said    said          // what they say
	effects []Effect      // of the step in progress
	lists   [][]Effect    // given back; see Reuse
	submits []*Submit     // so are these
}

// said is what of a status message changes in a life.
type said struct {
	state model.NodeState
	dead  time.Duration
}

// node is one configured node.
type node struct {
	model.NodeView
	links map[string]bool

	healed  time.Time   // when the node last came back to us from a partition
	leaving bool        // it said that it stops: its end is no failure
	fell    []time.Time // its latest failures, as many as put it into quarantine
}

// typeReturned tells a Batuta node that the sender had declared it dead in
// its present life. A node that was paused, or could be heard by nobody for a
// while, does not notice: it saw all others alive. Both must know that both
// may hold the same resources.
const typeReturned = "batuta-returned"

// New makes a Core; nothing happens before Start.
func New(hb model.Heartbeat, generation uint32) (*Core, error) {
	switch {
	case !slices.Contains(hb.Nodes, hb.Self):
		return nil, fmt.Errorf("membership: node %q is not among the configured nodes %v", hb.Self, hb.Nodes)
	case hb.Keepalive <= 0:
		return nil, errors.New("membership: keepalive must be above 0")
	}
	c := &Core{hb: &hb, gen: generation, nodes: map[model.NodeName]*node{}}
	for _, n := range hb.Nodes {
		if c.nodes[n] == nil {
			c.nodes[n] = &node{NodeView: model.NodeView{Name: n, State: model.NodeInit, DeadTime: model.Millis(hb.DeadTime)}, links: map[string]bool{}}
			c.names = append(c.names, n)
		}
	}
	for _, m := range hb.Media {
		name := model.NodeName(strings.ToLower(m.Name))
		if m.Kind != model.Ping && m.Kind != model.PingGroup || c.nodes[name] != nil {
			continue
		}
		c.nodes[name] = &node{NodeView: model.NodeView{Name: name, State: model.NodeInit, DeadTime: model.Millis(hb.DeadPing), Ping: true}, links: map[string]bool{}}
		c.names = append(c.names, name)
	}
	slices.Sort(c.names)
	self := c.nodes[hb.Self]
	self.Generation, self.Batuta = generation, true
	return c, nil
}

// Step takes one input and returns what is to be done, in order.
func (c *Core) Step(now time.Time, in Input) []Effect {
	c.effects = nil
	if n := len(c.lists); n > 0 {
		c.effects, c.lists = c.lists[n-1], c.lists[:n-1]
	}
	switch in := in.(type) {
	case Start:
		c.start(now)
	case Sighting:
		c.sighted(now, in.Sighting)
	case Received:
		c.received(now, in.Message)
	case Renewed:
		c.nodes[c.hb.Self].Generation = in.Generation
		c.sendStatus(now)
		c.askAt = now
		c.advance(now)
		if c.phase == running {
			c.event(now, model.Renewed, c.hb.Self, model.Message{})
		}
	case Tick:
		c.tick(now)
	}
	return c.effects
}

// Reuse gives back what Step has returned, for later steps: nobody may look at
// it any more. A caller need not do it.
func (c *Core) Reuse(effects []Effect) {
	for _, e := range effects {
		if s, ok := e.(*Submit); ok {
			c.submits = append(c.submits, s)
		}
	}
	clear(effects)
	c.lists = append(c.lists, effects[:0])
}

// Next returns when Tick is due; the zero time before Start.
func (c *Core) Next() time.Time {
	next := c.nextBeat
	if !c.plainAt.IsZero() && c.plainAt.Before(next) {
		next = c.plainAt
	}
	if c.phase == asking && c.askAt.Before(next) {
		next = c.askAt
	}
	return next
}

// View returns a snapshot.
func (c *Core) View() model.View {
	v := model.View{Self: c.hb.Self, Nodes: make([]model.NodeView, 0, len(c.names))}
	for _, name := range c.names {
		n := c.nodes[name]
		w := n.NodeView
		w.Links = make([]model.LinkView, 0, len(n.links))
		for _, l := range slices.Sorted(maps.Keys(n.links)) {
			w.Links = append(w.Links, model.LinkView{Name: l, Up: n.links[l]})
		}
		v.Nodes = append(v.Nodes, w)
	}
	return v
}

// start sends the first three messages of a life (§7.2): it is here, it
// listens, and once more for those who missed the first.
func (c *Core) start(now time.Time) {
	self := c.nodes[c.hb.Self]
	c.born, c.phase = now, waiting
	c.plainAt = now.Add(youth)
	c.sendStatus(now)
	self.State = model.NodeUp
	c.sendStatus(now)
	c.sendStatus(now)
	c.nextBeat = now.Add(c.hb.Keepalive)
	c.advance(now)
}

func (c *Core) tick(now time.Time) {
	if c.phase == unborn {
		return
	}
	if !c.plainAt.IsZero() && !now.Before(c.plainAt) {
		c.plainAt = time.Time{}
		c.sendStatus(now)
	}
	if !now.Before(c.nextBeat) {
		c.sendStatus(now)
		// The cadence is kept; beats that were missed are not made up for.
		if c.nextBeat = c.nextBeat.Add(c.hb.Keepalive); !now.Before(c.nextBeat) {
			c.nextBeat = now.Add(c.hb.Keepalive)
		}
	}
	c.advance(now)
}

// sendStatus is the heartbeat: own state, the dead time to be judged by, and
// the promise to understand acknowledgments and node lists (protocol=1). What
// follows is Batuta's own; the original ignores it.
func (c *Core) sendStatus(now time.Time) {
	self := c.nodes[c.hb.Self]
	dead := c.hb.DeadTime
	if !c.plainAt.IsZero() {
		dead += min(youthBonus, 2*c.hb.DeadTime)
	}
	self.DeadTime, self.LastBeat = model.Millis(c.hb.DeadTime), now
	if now := (said{self.State, dead}); c.status == nil || c.said != now {
		c.said = now
		c.status = []model.Field{
			{Name: "st", Value: self.State.String()},
			{Name: "dt", Value: hexMillis(dead)},
			{Name: "protocol", Value: "1"},
			{Name: "batuta", Value: "1"},
			{Name: "ka", Value: hexMillis(c.hb.Keepalive)},
			{Name: "bd", Value: hexMillis(c.hb.DeadTime)},
		}
	}
	c.submit(model.Message{Type: "status", Fields: c.status})
}

// advance takes the own start as far as it goes now (§7.3).
func (c *Core) advance(now time.Time) {
	if c.phase == waiting {
		for _, n := range c.names {
			if n != c.hb.Self && c.nodes[n].State == model.NodeInit {
				return // not heard, or only its very first word: it listens in a moment
			}
		}
		c.phase = asking
		c.askAt = now
		c.effects = append(c.effects, Running{})
	}
	if c.phase != asking {
		return
	}
	target := c.hb.Self
	for _, n := range c.names {
		if v := c.nodes[n]; n != c.hb.Self && !v.Ping && v.State != model.NodeDead {
			target = n
			break
		}
	}
	switch {
	case target == c.hb.Self:
		c.up(now) // nobody to ask
	case target != c.asked || !now.Before(c.askAt):
		c.asked, c.askAt = target, now.Add(askInterval)
		c.submit(model.Message{Type: "reqnodes", To: target})
	}
}

// up ends the start: this node may hold resources from now on.
func (c *Core) up(now time.Time) {
	c.phase = running
	c.nodes[c.hb.Self].State = model.NodeActive
	c.note(now, model.LevelInfo, "communication-up", string(c.hb.Self), "Local status now set to: 'active'")
	c.sendStatus(now)
	c.event(now, model.CommunicationUp, c.hb.Self, model.Message{})
}

// sighted takes a finding of the failure detector.
func (c *Core) sighted(now time.Time, s model.Sighting) {
	n := c.nodes[s.Node]
	if n == nil || s.Node == c.hb.Self || c.phase == unborn {
		return
	}
	switch s.Kind {
	case model.SightingLinkUp, model.SightingLinkDown:
		n.links[s.Link] = s.Kind == model.SightingLinkUp
		c.event(now, model.LinkChanged, s.Node, model.Message{})
	case model.SightingSuspect:
		n.Suspect = true
		c.event(now, model.LinkChanged, s.Node, model.Message{})
	case model.SightingSilent:
		n.State, n.Suspect = model.NodeDead, false
		c.fall(now, n)
		c.event(now, model.NodeDied, s.Node, model.Message{})
	case model.SightingBeat, model.SightingJoined, model.SightingRestarted, model.SightingReturned:
		c.beat(now, n, s)
	case model.SightingNone:
	}
	c.advance(now)
}

// beat takes a status message of another node.
func (c *Core) beat(now time.Time, n *node, s model.Sighting) {
	before := n.State
	n.State, n.Generation, n.DeadTime = s.State, s.Generation, model.Millis(s.DeadTime)
	n.LastBeat, n.Batuta, n.Suspect, n.Kernel = s.At, s.Batuta, false, s.Kernel
	n.Delay, n.Margin, n.Key = model.Millis(s.Delay), s.Margin, s.Key
	if before != n.State {
		c.note(now, model.LevelInfo, "node-status", string(n.Name), "Status update for node %s: status %s", n.Name, n.State)
	}
	if s.Kind != model.SightingBeat && !n.Ping {
		c.sendStatus(now) // a newcomer need not wait for the next beat to hear us
	}
	switch s.Kind {
	case model.SightingJoined:
		n.leaving = false
		c.event(now, model.NodeJoined, n.Name, model.Message{})
	case model.SightingRestarted:
		c.fall(now, n)
		c.note(now, model.LevelWarning, "node-restarted", string(n.Name), "node %s has restarted within its dead time", n.Name)
		c.event(now, model.NodeRestarted, n.Name, model.Message{})
	case model.SightingReturned:
		c.note(now, model.LevelCritical, "partition-healed", string(n.Name),
			"node %s returning after partition: it was declared dead and lived on, both sides may hold the same resources", n.Name)
		n.healed = now
		if n.Batuta {
			c.submit(model.Message{Type: typeReturned, To: n.Name})
		}
		c.event(now, model.PartitionHealed, n.Name, model.Message{})
	default:
		// The resource manager is told of changes, not of each beat (§16.1).
		if before != n.State {
			c.event(now, model.MessageReceived, n.Name, model.Message{Type: "status", From: n.Name,
				Fields: []model.Field{{Name: "st", Value: n.State.String()}}})
		}
	}
}

// fall counts a failure of a node. Too many of them within a while put it into
// quarantine: what it lost it does not get back by itself until it has been
// well for some time. The operator may give it back before.
func (c *Core) fall(now time.Time, n *node) {
	planned := n.leaving
	n.leaving = false
	if c.hb.Flaps == 0 || n.Ping || planned || c.phase != running {
		return
	}
	n.fell = append(n.fell, now)
	n.fell = n.fell[max(0, len(n.fell)-c.hb.Flaps):]
	if now.Before(n.Quarantine) || len(n.fell) == c.hb.Flaps && now.Sub(n.fell[0]) <= c.hb.FlapWindow {
		if !now.Before(n.Quarantine) {
			c.note(now, model.LevelWarning, "quarantine", string(n.Name), "node %s has failed %d times within %v: it is given nothing back until it has been well for %v", n.Name, c.hb.Flaps, c.hb.FlapWindow, c.hb.FlapHold)
		}
		n.Quarantine = now.Add(c.hb.FlapHold)
	}
}

// received takes a message: node lists are membership's own, the rest is for
// the resource manager.
func (c *Core) received(now time.Time, m model.Message) {
	switch m.Type {
	case "reqnodes":
		// Answered at once and in any phase: the original does not become
		// active without it, and wedges if we die before it comes (§7.3).
		c.submit(model.Message{Type: "repnodes", To: m.From, Fields: []model.Field{
			{Name: "nodelist", Value: c.nodeList()}, {Name: "delnodelist", Value: " "}}})
	case "repnodes":
		if list := m.Get("nodelist"); !sameNodes(list, c.nodeList()) {
			c.note(now, model.LevelWarning, "node-list-differs", string(m.From),
				"node %s lists the nodes %.200q, ha.cf here says %q: make both files the same; going on with ours", m.From, strings.TrimSpace(list), strings.TrimSpace(c.nodeList()))
		}
		if c.phase == asking {
			c.up(now)
		}
	case typeReturned:
		c.missed(now, m.From)
	case "shutdone":
		if n := c.nodes[m.From]; n != nil {
			n.leaving = true
		}
		c.event(now, model.MessageReceived, m.From, m)
	default:
		c.event(now, model.MessageReceived, m.From, m)
	}
}

// missed is told that this node had been declared dead. After a partition
// that both sides noticed, each tells the other what it knows: the second
// word on the same partition comes within a dead time, one on the next cannot.
func (c *Core) missed(now time.Time, by model.NodeName) {
	n := c.nodes[by]
	if n == nil || !n.healed.IsZero() && now.Sub(n.healed) < c.hb.DeadTime {
		return
	}
	n.healed = now
	c.note(now, model.LevelCritical, "partition-healed", string(by),
		"node %s had declared this node dead (a pause, or a link that works in one direction only): both sides may hold the same resources", by)
	c.event(now, model.PartitionHealed, by, model.Message{})
}

// nodeList is the wire form of the configured nodes: a space after each name (§4).
func (c *Core) nodeList() string {
	var s strings.Builder
	for _, n := range c.names {
		if !c.nodes[n].Ping {
			s.WriteString(string(n) + " ")
		}
	}
	return s.String()
}

func sameNodes(a, b string) bool {
	x, y := strings.Fields(strings.ToLower(a)), strings.Fields(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

func (c *Core) submit(m model.Message) {
	m.From = c.hb.Self
	var s *Submit
	if n := len(c.submits); n > 0 {
		s, c.submits = c.submits[n-1], c.submits[:n-1]
	} else {
		s = new(Submit)
	}
	s.Message = m
	c.effects = append(c.effects, s)
}

func (c *Core) event(now time.Time, k model.ClusterEventKind, n model.NodeName, m model.Message) {
	c.effects = append(c.effects, Event{model.ClusterEvent{At: now, Kind: k, Node: n, Message: m, View: c.View()}})
}

func (c *Core) note(now time.Time, level model.Level, kind, subject, format string, args ...any) {
	c.effects = append(c.effects, Note{model.Event{At: now, Level: level, Source: "heartbeat", Kind: kind,
		Subject: subject, Text: fmt.Sprintf(format, args...)}})
}

// hexMillis is a duration as the wire has it: milliseconds in hexadecimal.
func hexMillis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 16) }
