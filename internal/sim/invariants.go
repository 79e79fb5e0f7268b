package sim

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// checks holds the cluster to its promises:
//
//  1. Outside a split no resource runs on two nodes, not for an instant: the
//     new owner starts it after the old one has stopped it. A split is what
//     the classic mode permits: a node declares the other dead whose machine
//     lives on. It ends healBound after everything is whole again. Where the
//     other machine is reset before anything is taken over, there is none.
//  2. Nobody is declared dead who was heard within the dead time, not counting
//     the time during which the one who declares it did not run itself, unless
//     the machine has been reset since. What may be a recording that an earlier
//     life of the listener heard is not heard.
//  3. Where kernels answer, nobody is declared dead before the suspect time
//     whose machine runs and whose links work: not for a daemon that hangs or
//     was killed. The answer of another run of the machine is its death.
//  4. Within settleBound after the last fault every resource runs on exactly
//     one node, both sides agree that all is settled, and so it stays.
//  5. A node that sees fewer ping nodes ends without resources where ipfail is
//     on, unless the operator had a wish or a script failed; and no resource
//     moves more than maxMoves times after the last fault or reset.
//  6. The two never talk without end: in no second does a node say more than
//     maxWords.
//  8. With auto_failback on (or legacy, which is the same between two such
//     nodes) each set ends on the node that haresources names where both are
//     there, unless the operator had a wish, a script failed or ipfail has moved
//     it. With off it stays where it is unless for these reasons. Nobody is
//     given its set back in quarantine, or while it sees fewer ping nodes.
//  7. A node's generations never go back, its numbers go up by one in each, and
//     a number always means the same bytes.
//
// A resource whose stop has failed may run on: the operator must end it.
type checks struct {
	w       *world
	list    []string
	yielded bool // ipfail has moved everything once
	settled bool // all was well after the last fault
	endless bool // they talk without end: nothing more is to be seen

	split   bool
	trouble time.Time            // when not everything was whole
	double  map[string]time.Time // resources that run twice, since when
	pings   [2]int               // how many ping nodes each sees
	pinged  time.Time            // when one of them began to see more or fewer, or not everything was whole
	last    map[string]int       // node that a resource last started on
	moves   map[string]int       // how often it has moved since the last fault

	wire [2]sender
}

// maxMoves is how often a resource may move after the last fault: a death that
// is yet to be declared, the end of a split, and home.
const maxMoves = 3

// maxWords is how many messages a node may send within a second, beats and
// those of delivery not counted. A hand-over takes ten.
const maxWords = 200

// sender is what one node has sent in its present generation.
type sender struct {
	generation uint64
	seq        uint64
	packets    map[uint64][]byte
	forgot     bool // the stored generation was lost since
	highest    uint64
	life       string // the word of its daemon's life
	words      int    // messages in the present second, beats not counted
	second     int64
	heard      bool // the generation is above all before: others listen
}

func newChecks(w *world) *checks {
	c := &checks{w: w, double: map[string]time.Time{}, last: map[string]int{}, moves: map[string]int{}, trouble: w.now}
	for i := range c.wire {
		c.wire[i].packets = map[uint64][]byte{}
	}
	return c
}

func (c *checks) broken(format string, args ...any) {
	text := fmt.Sprintf("%.4f %s", c.w.now.Sub(c.w.begin).Seconds(), fmt.Sprintf(format, args...))
	c.w.say("*** %s", text)
	if len(c.list) < 20 {
		c.list = append(c.list, text)
	}
}

// watch looks at what only time can break.
func (c *checks) watch() {
	now := c.w.now
	if !c.whole() {
		c.trouble, c.pinged = now, now
	}
	for _, h := range c.w.hosts {
		c.countPings(h)
	}
	if c.split && now.Sub(c.trouble) > c.healBound() {
		c.split = false
		c.w.say("--- the split is over")
		for _, name := range sorted(c.double) {
			c.broken("%s still runs twice %v after everything is whole: %s", name, c.healBound(), c.w.state())
		}
	}
	c.w.after(max(c.w.cfg.Keepalive, 100*time.Millisecond), c.watch)
}

// countPings notices that a node sees more or fewer ping nodes than before.
func (c *checks) countPings(h *host) {
	if n := h.pings(); n != c.pings[h.index] || h.daemon == nil {
		c.pings[h.index], c.pinged = n, c.w.now
	}
}

// whole tells that nothing stands in the way of an end of a split.
func (c *checks) whole() bool {
	for _, h := range c.w.hosts {
		if !h.up {
			continue
		}
		if c.w.now.Before(h.idle()) || h.slow > 0 || h.badStart["local"]+h.badStart["foreign"]+h.badStop["local"]+h.badStop["foreign"] > 0 {
			return false
		}
		if h.daemon == nil && len(h.runs) > 0 || h.daemon != nil && !h.active() {
			return false
		}
	}
	return c.w.net.whole()
}

func (c *checks) healBound() time.Duration {
	return c.w.settleBound()
}

// changed is called when a resource has started or stopped.
func (c *checks) changed(name string) {
	a, b := c.w.hosts[0], c.w.hosts[1]
	for _, h := range c.w.hosts {
		if h.runs[name] && !h.peer().runs[name] {
			if c.last[name] == 1+h.peer().index {
				c.w.seen.Takeovers++
				c.moved(name)
			}
			c.last[name] = 1 + h.index
		}
	}
	if c.settled {
		c.broken("%s moved after all was well", name)
	}
	since, was := c.double[name]
	twice := a.runs[name] && b.runs[name] && !a.stuck[name] && !b.stuck[name]
	switch {
	case twice && !was:
		c.double[name] = c.w.now
		if !c.split || c.w.cfg.Fence > 0 {
			c.broken("%s runs twice outside a split: %s", name, c.w.state())
		}
	case !twice && was:
		delete(c.double, name)
		c.w.seen.Doubled += c.w.now.Sub(since)
	}
}

// moved counts moves that no fault is the cause of.
func (c *checks) moved(name string) {
	if c.w.now.Sub(c.w.begin) <= c.w.Quiet {
		return
	}
	if c.moves[name]++; c.moves[name] == maxMoves+1 {
		c.broken("%s has moved %d times since the last fault: %s", name, c.moves[name], c.w.state())
	}
}

// event is called with what a node's messenger tells its resource manager.
func (c *checks) event(h *host, e model.ClusterEvent) {
	c.countPings(h)
	if e.Kind != model.NodeDied || e.Node != h.peer().name {
		return
	}
	c.w.seen.Deaths++
	peer := h.peer()
	if peer.up && (peer.daemon != nil || len(peer.runs) > 0) {
		c.w.seen.Splits++
		c.split, c.trouble = true, c.w.now
	}
	if heard := h.daemon.heard; !heard.IsZero() && peer.booted.Before(heard) {
		silence := h.present(heard)
		if silence < c.w.cfg.DeadTime {
			c.broken("%s declares %s dead, whom it heard %v ago (not counting its own absence)", h.name, peer.name, silence)
		}
	}
	if heard := h.daemon.heard; c.w.cfg.SuspectTime > 0 && peer.up && !c.starting(h) {
		silence := c.w.now.Sub(heard)
		if silence < c.w.cfg.SuspectTime && c.w.net.lost.Before(heard) && peer.ran(heard) && peer.answered(heard) && h.ran(heard) {
			c.broken("%s declares %s dead after %v, although its kernel answers", h.name, peer.name, silence)
		}
	}
	if c.settled {
		c.broken("%s declares %s dead after all was well", h.name, peer.name)
	}
}

// starting tells that a node still waits for the others.
func (c *checks) starting(h *host) bool {
	return c.w.now.Sub(h.daemon.born) < c.w.cfg.InitDead+c.w.cfg.DeadTime
}

// answered is called when a node gets the answer of a kernel. The first of
// another run of the machine tells of its death.
func (c *checks) answered(h *host) {
	d, peer := h.daemon, h.peer()
	if d == nil || d.heard.IsZero() || !c.wire[peer.index].heard || !peer.booted.After(d.heard) || c.starting(h) || c.w.now.Before(h.idle()) {
		return
	}
	heard, booted := d.heard, peer.booted
	c.w.after(c.w.cfg.Keepalive+time.Second/10, func() {
		view := d.msgr.View()
		dead := view.Find(peer.name).State == model.NodeDead
		if h.daemon == d && !dead && c.wire[peer.index].heard && d.heard.Equal(heard) && peer.booted.Equal(booted) && h.present(booted) == c.w.now.Sub(booted) {
			c.broken("%s has the answer of another run of %s and does not declare it dead", h.name, peer.name)
		}
	})
}

// noted is called with what a node says for people.
func (c *checks) noted(h *host, e model.Event) {
	switch {
	case e.Kind == "fewer-ping-nodes":
		c.yielded = true
	case e.Kind == "standby" && e.Text == string(h.name)+" wants to go standby [foreign]" && !c.meddled():
		c.givesBack(h)
	}
}

// givesBack is called when a node offers the other its own set. What counts is
// what its resource manager has been told by then, which is an instant behind
// what its messenger knows.
func (c *checks) givesBack(h *host) {
	view := h.daemon.view
	switch mine, theirs := h.pings(), c.pings[h.peer().index]; {
	case c.w.cfg.Failback == model.FailbackOff:
		c.broken("%s gives a set back with auto_failback off", h.name)
	case c.w.now.Before(view.Find(h.peer().name).Quarantine):
		c.broken("%s gives a set back to %s, which is in quarantine", h.name, h.peer().name)
	case c.w.cfg.Ipfail && theirs < mine && theirs == h.peer().pings() && c.w.now.Sub(c.pinged) > time.Second+3*c.w.cfg.Keepalive:
		c.broken("%s, which sees %d ping nodes, gives a set back to %s, which sees %d", h.name, mine, h.peer().name, theirs)
	}
}

// meddled tells that sets may lie elsewhere than auto_failback says.
func (c *checks) meddled() bool {
	return c.yielded || c.w.has(Standby, Takeover, BadStart, BadStop)
}

// home tells that every set is where auto_failback wants it in the end.
func (c *checks) home() bool {
	blind := c.w.cfg.Ipfail && c.w.Blind > 0
	if c.meddled() || blind || c.w.cfg.Failback == model.FailbackOff || c.w.Down > 0 {
		return true
	}
	for name, owner := range c.w.owner {
		if !c.w.hosts[owner].runs[name] {
			return false
		}
	}
	return true
}

func (c *checks) amnesia(h *host) { c.wire[h.index].forgot = true }

// sent looks at a datagram as it leaves, and tells whether it is a fresh beat.
func (c *checks) sent(h *host, data []byte) (beat bool) {
	c.w.seen.Sent++
	p, err := heartbeat.Parse(data)
	if err != nil {
		c.broken("%s sends what is no packet: %v", h.name, err)
		return false
	}
	s := &c.wire[h.index]
	generation, err := strconv.ParseUint(p.Get("hg"), 16, 32)
	if err != nil {
		c.broken("%s sends no generation", h.name)
	}
	seq, _ := strconv.ParseUint(p.Get("seq"), 16, 32)
	if generation != s.generation || s.forgot && seq == 1 {
		if generation < s.generation && !s.forgot {
			c.broken("%s: generation %d after %d", h.name, generation, s.generation)
		}
		s.generation, s.seq, s.forgot = generation, 0, false
		s.heard = generation > s.highest
		s.highest = max(s.highest, generation)
		clear(s.packets)
	}
	if strings.HasPrefix(p.Get("t"), "NS_") {
		return false
	}
	switch old, known := s.packets[seq]; {
	case known && !bytes.Equal(old, data):
		c.broken("%s sends number %d with other content", h.name, seq)
		return false
	case known:
		return false
	case seq != s.seq+1:
		c.broken("%s sends number %d after %d", h.name, seq, s.seq)
	}
	s.seq = seq
	s.packets[seq] = data
	c.count(h, s, p.Get("t"))
	if p.Get("t") != "status" {
		return false
	}
	if life := p.Get("life"); life != "" {
		s.life = life
	}
	return s.heard && c.believed(h.peer(), uint32(generation), uint32(seq), p.Get("echo"))
}

// believed tells whether a node can know that a beat is no recording of what
// its earlier life has heard.
func (c *checks) believed(by *host, generation, seq uint32, echo string) bool {
	if by.daemon == nil {
		return false
	}
	f := by.daemon.floor
	return f.Generation != generation || seq > f.Ahead || slices.Contains(strings.Fields(echo), c.wire[by.index].life)
}

// count looks for talk without end.
func (c *checks) count(h *host, s *sender, kind string) {
	if second := c.w.now.Unix(); second != s.second {
		s.second, s.words = second, 0
	}
	if kind == "status" {
		return
	}
	if s.words++; s.words == maxWords+1 {
		c.broken("%s sends %d messages within a second, the latest is %s: %s", h.name, s.words, kind, c.w.state())
		c.endless = true
	}
}

// well tells that every resource runs on one node, and that both sides have
// settled and mean to do nothing more.
func (c *checks) well() bool {
	for _, h := range c.w.hosts {
		if h.off {
			continue
		}
		if h.daemon == nil || h.daemon.fences > 0 || !h.daemon.ready || h.daemon.told || !h.active() || !h.daemon.crm.Stable() || !h.daemon.crm.Next().IsZero() {
			return false
		}
		wanted := model.NodeActive
		if h.peer().off {
			wanted = model.NodeDead
		}
		v := h.daemon.msgr.View()
		for i, name := range c.w.net.pings {
			if seen := v.Find(model.NodeName(name)).State == model.NodePing; seen != (c.w.net.unseen[h.index][i] == 0) {
				return false
			}
		}
		if c.w.now.Before(v.Find(h.peer().name).Quarantine.Add(time.Second)) || v.Find(h.peer().name).State != wanted {
			return false
		}
	}
	for _, h := range c.w.hosts {
		// What has failed is offered to the other node before long.
		if h.up && slices.ContainsFunc(h.daemon.crm.Resources(), func(r model.ResourceView) bool { return r.Error != "" }) {
			return false
		}
	}
	if blind := c.w.Blind; blind > 0 && c.w.cfg.Ipfail && !c.w.has(Standby, Takeover, BadStart, BadStop) && len(c.w.hosts[blind-1].runs) > 0 {
		return false
	}
	for name := range c.w.owner {
		if c.w.hosts[0].runs[name] == c.w.hosts[1].runs[name] {
			return false
		}
	}
	return c.home()
}

// pings is how many ping nodes the host sees.
func (h *host) pings() (n int) {
	if h.w.cfg.Pings == 0 || h.daemon == nil {
		return 0
	}
	for _, node := range h.daemon.msgr.View().Nodes {
		if node.State == model.NodePing {
			n++
		}
	}
	return n
}

// active tells that the daemon takes part in the cluster.
func (h *host) active() bool {
	v := h.daemon.msgr.View()
	return v.Find(h.name).State == model.NodeActive
}

func sorted[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
