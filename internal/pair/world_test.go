package pair

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// world is two cores, a simplified messenger and machines whose resources are
// two flags, in virtual time on one goroutine. Node a is listed first in ha.cf.
type world struct {
	now    time.Time
	begin  time.Time
	nodes  [2]*machine
	cut    [2]bool // cut[i]: what node i sends does not arrive
	real   [2]bool // node i is not a Batuta node
	queue  []event
	order  int
	rng    *rand.Rand // nil: a perfect network
	loss   float64
	log    strings.Builder
	double [2]time.Duration // how long the set of node i ran on both
	none   [2]time.Duration // how long it ran nowhere while a node was up

	fenceFor time.Duration // how long a reset takes
}

type event struct {
	at    time.Time
	order int
	do    func()
}

// machine is one node: a host with resources, and a daemon that may run on it.
type machine struct {
	w          *world
	index      int
	name       model.NodeName
	core       *Core // nil while the daemon does not run
	life       int   // of the daemon: stale events are dropped
	generation uint32
	failback   bool
	legacy     bool
	fencing    bool
	badFence   bool
	ipfail     time.Duration
	pings      int // ping nodes that it sees
	running    Set // resources that run on this host, in its own terms
	badStart   Set
	badStop    Set
	busy       bool
	work       []Effect
	up         bool
	started    time.Time

	heard      time.Time
	heardGen   uint32
	peerState  model.NodeState
	peerBatuta bool
	wake       int
}

const (
	beat     = 100 * time.Millisecond
	dead     = time.Second
	initDead = 3 * time.Second
	transit  = time.Millisecond
	startFor = 200 * time.Millisecond
	stopFor  = 100 * time.Millisecond
)

func newWorld(failback bool) *world {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &world{now: t0, begin: t0, fenceFor: time.Second}
	for i, n := range []model.NodeName{"a", "b"} {
		w.nodes[i] = &machine{w: w, index: i, name: n, failback: failback}
	}
	return w
}

func (w *world) node(name string) *machine { return w.nodes[slices.Index([]string{"a", "b"}, name)] }

func (m *machine) peer() *machine { return m.w.nodes[1-m.index] }

func (w *world) after(d time.Duration, do func()) {
	w.order++
	w.queue = append(w.queue, event{w.now.Add(d), w.order, do})
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for {
		next := -1
		for i, e := range w.queue {
			if !e.at.After(end) && (next < 0 || cmp.Or(e.at.Compare(w.queue[next].at), cmp.Compare(e.order, w.queue[next].order)) < 0) {
				next = i
			}
		}
		if next < 0 {
			w.pass(end)
			return
		}
		e := w.queue[next]
		w.queue = slices.Delete(w.queue, next, next+1)
		w.pass(e.at)
		e.do()
	}
}

// pass moves the clock and keeps count of who runs what.
func (w *world) pass(to time.Time) {
	d := to.Sub(w.now)
	w.now = to
	for set := range 2 {
		on := 0
		for _, m := range w.nodes {
			if m.running&m.mine(set) != None {
				on++
			}
		}
		switch {
		case on == 2:
			w.double[set] += d
		case on == 0 && (w.nodes[0].up || w.nodes[1].up):
			w.none[set] += d
		}
	}
}

// mine names the set of node i in m's terms.
func (m *machine) mine(i int) Set {
	if i == m.index {
		return Local
	}
	return Foreign
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(&w.log, "%7.3f %s\n", w.now.Sub(w.begin).Seconds(), fmt.Sprintf(format, args...))
}

// start begins a new life of the daemon.
func (m *machine) start() {
	if m.core != nil {
		return
	}
	m.life++
	m.generation++
	m.core = New(Config{Self: m.name, Peer: m.peer().name, First: m.index == 0, Failback: m.failback, Legacy: m.legacy, Fencing: m.fencing, Ipfail: m.ipfail,
		LocalResources: 2, ForeignResources: 2, LocalGroups: groupsOf(m.name), ForeignGroups: groupsOf(m.peer().name)})
	m.up, m.started, m.busy, m.work = false, m.w.now, false, nil
	m.heard, m.heardGen, m.peerState, m.peerBatuta = time.Time{}, 0, model.NodeInit, false
	if m.running != None {
		m.step(Found{m.running})
	}
	m.pulse(m.life)
}

func groupsOf(n model.NodeName) []string {
	return []string{"first-of-" + string(n), "second-of-" + string(n)}
}

// end ends the daemon; its resources stay.
func (m *machine) end() {
	m.core, m.up = nil, false
	m.life++
}

// kill is the loss of the whole machine.
func (m *machine) kill() {
	m.end()
	m.running = None
}

// pulse is the messenger: a beat, and the look-out for the other's silence.
func (m *machine) pulse(life int) {
	if m.life != life {
		return
	}
	gen, active, peer := m.generation, m.up, m.peer()
	if !m.w.cut[m.index] && !m.w.lost() {
		m.w.after(transit, func() { peer.hear(gen, active) })
	}
	m.lookOut()
	if m.life == life {
		m.w.after(beat, func() { m.pulse(life) })
	}
}

func (m *machine) lookOut() {
	if m.core == nil {
		return
	}
	limit := dead
	since := m.heard
	if !m.up {
		limit, since = initDead, m.started
		if m.peerState != model.NodeInit {
			since, limit = m.heard, dead
		}
	}
	if m.peerState != model.NodeDead && m.w.now.Sub(since) > limit {
		m.peerState = model.NodeDead
		m.tell(model.NodeDied, model.Message{})
	}
	if !m.up && m.core != nil && m.peerState != model.NodeInit && m.core.state != stateShutdown {
		m.up = true
		m.tell(model.CommunicationUp, model.Message{})
	}
}

func (m *machine) hear(gen uint32, active bool) {
	if m.core == nil || gen < m.heardGen {
		return
	}
	was, old := m.peerState, m.heardGen
	m.heard, m.heardGen, m.peerState = m.w.now, gen, model.NodeUp
	m.peerBatuta = !m.w.real[1-m.index]
	if active {
		m.peerState = model.NodeActive
	}
	switch {
	case old == gen && was == model.NodeDead:
		m.tell(model.PartitionHealed, model.Message{})
	case old == 0 || was == model.NodeDead:
		m.tell(model.NodeJoined, model.Message{})
	case old < gen:
		m.tell(model.NodeRestarted, model.Message{})
	}
	m.lookOut()
}

func (m *machine) tell(k model.ClusterEventKind, msg model.Message) {
	if k == model.NodeDied || k == model.NodeRestarted || k == model.PartitionHealed {
		m.w.say("%s: (%s %s)", m.name, m.peer().name, map[model.ClusterEventKind]string{
			model.NodeDied: "is dead", model.NodeRestarted: "restarted", model.PartitionHealed: "is back after a partition"}[k])
	}
	m.step(Cluster{model.ClusterEvent{At: m.w.now, Kind: k, Node: m.peer().name, Message: msg, View: m.view()}})
}

func (m *machine) view() model.View {
	v := model.View{Self: m.name, Nodes: []model.NodeView{{Name: m.peer().name, State: m.peerState, Batuta: m.peerBatuta}}}
	for range m.pings {
		v.Nodes = append(v.Nodes, model.NodeView{Name: "gate", Ping: true, State: model.NodePing})
	}
	return v
}

// see changes how many ping nodes the machine sees.
func (m *machine) see(pings int) {
	m.pings = pings
	m.step(Cluster{model.ClusterEvent{At: m.w.now, Kind: model.LinkChanged, Node: "gate", View: m.view()}})
}

func (w *world) lost() bool { return w.rng != nil && w.rng.Float64() < w.loss }

// deliver carries a message; a lost one is asked for again as the protocol
// does, unless the receiver has declared the sender dead in between.
func (m *machine) deliver(msg model.Message) {
	w, to, gen := m.w, m.peer(), m.generation
	delay := transit
	if w.rng != nil {
		delay += time.Duration(w.rng.IntN(20)) * time.Millisecond
	}
	if w.cut[m.index] || w.lost() {
		life := m.life
		w.after(250*time.Millisecond, func() {
			if m.life == life && to.peerState != model.NodeDead {
				m.deliver(msg)
			}
		})
		return
	}
	w.after(delay, func() {
		if to.core == nil || to.heardGen > gen || to.peerState == model.NodeDead && to.heardGen == gen && w.cut[m.index] {
			return
		}
		if to.heardGen < gen {
			to.hear(gen, true) // the beat of a new life comes before its messages
		}
		to.tell(model.MessageReceived, msg)
	})
}

func (m *machine) step(in Input) {
	if m.core == nil {
		return
	}
	for _, e := range m.core.Step(m.w.now, in) {
		switch e := e.(type) {
		case Send:
			m.w.say("%s: send %s", m.name, strings.TrimPrefix(e.Message.String(), string(m.name)+": "))
			m.deliver(e.Message)
		case Acquire, Release:
			m.w.say("%s: %v", m.name, e)
			m.work = append(m.work, e)
		case Fence:
			m.w.say("%s: %v", m.name, e)
			m.w.after(m.w.fenceFor, func() {
				if m.badFence {
					m.step(Fenced{"the switch does not answer"})
					return
				}
				m.peer().kill()
				m.step(Fenced{})
			})
		case Stopped:
			m.w.say("%s: %v", m.name, e)
			m.up = false
			life := m.life
			m.w.after(2*beat, func() {
				if m.life == life {
					m.end()
				}
			})
		default:
			m.w.say("%s: %v", m.name, e)
		}
	}
	m.carryOut()
	m.wake++
	wake, life := m.wake, m.life
	if next := m.core.Next(); !next.IsZero() {
		m.w.after(next.Sub(m.w.now), func() {
			if m.wake == wake && m.life == life {
				m.step(Tick{})
			}
		})
	}
}

// carryOut does one operation at a time.
func (m *machine) carryOut() {
	if m.busy || len(m.work) == 0 {
		return
	}
	e := m.work[0]
	m.work, m.busy = m.work[1:], true
	life := m.life
	take := startFor
	if _, ok := e.(Release); ok {
		take = stopFor
	}
	m.w.after(take, func() {
		if m.life != life {
			return
		}
		m.busy = false
		done := Finished{}
		switch e := e.(type) {
		case Acquire:
			done = Finished{e.Op, e.Set & m.badStart}
			m.running |= e.Set &^ m.badStart
		case Release:
			done = Finished{e.Op, e.Set & m.badStop & m.running}
			m.running &^= e.Set &^ m.badStop
		}
		m.step(done)
		m.carryOut()
	})
}

// state is the line that scripts and failures show.
func (w *world) state() string {
	var s []string
	for _, m := range w.nodes {
		t := "down"
		if m.core != nil {
			t = m.core.String()
		}
		s = append(s, fmt.Sprintf("%s: %s, runs %v", m.name, t, m.running))
	}
	return strings.Join(s, "\n") + "\n"
}
