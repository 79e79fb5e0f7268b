package heartbeat

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A Batuta node whose kernel answers when it is asked says so in its status
// messages (cap=kr), with the identity of this run of the machine (boot). The
// others ask it when the daemon's beat is overdue, and go on asking until the
// daemon is heard again or declared dead.

// Ask asks to put the question to a node's kernel, by all links. What comes
// back is an Answered.
type Ask struct{ Node model.NodeName }

func (Ask) isEffect() {}

// Answered says that a node's kernel answered, when, and which run of the
// machine it was ("" if it did not say).
type Answered struct {
	Node model.NodeName
	At   time.Time
	Boot string
}

func (Answered) isInput() {}

// Late says by how much this node's loop was late. The worst since the latest
// status message goes out with the next.
type Late struct{ By time.Duration }

func (Late) isInput() {}

// capability words of the cap field.
const capKernel = "kr"

// announce adds to a status message what only Batuta nodes read.
func (c *Core) announce(f []Field) []Field {
	f = append(f, Field{Name: "life", Value: c.life}, Field{Name: "wd", Value: hex32(uint32(min(c.worst, time.Hour).Microseconds()))})
	c.worst = 0
	if c.echo != "" {
		f = append(f, Field{Name: "echo", Value: c.echo})
	}
	if c.cfg.Boot != "" {
		f = append(f, Field{Name: "cap", Value: capKernel}, Field{Name: "boot", Value: c.cfg.Boot})
	}
	return f
}

// overdue is when a node's kernel is asked first: half a keepalive after its
// beat was due.
func (p *peer) overdue(beat time.Time) time.Time {
	if p.boot == "" || p.keepalive == 0 {
		return time.Time{}
	}
	return beat.Add(p.keepalive + p.keepalive/2)
}

// tickKernels asks the kernels of those who are overdue.
func (c *Core) tickKernels(now time.Time) {
	if c.hb.SuspectTime == 0 {
		return
	}
	for _, n := range c.names {
		p := c.peers[n]
		if p.askAt.IsZero() || now.Before(p.askAt) {
			continue
		}
		if c.det.Silent(n) {
			p.askAt = time.Time{}
			continue
		}
		p.askAt = now.Add(max(p.keepalive/2, time.Millisecond))
		c.effects = append(c.effects, Ask{n})
	}
	for _, n := range c.det.Suspected(now) {
		c.note(now, model.LevelWarning, "node-suspect", string(n),
			"node %s: is suspect: its daemon is silent, its kernel answers; nothing is taken over for up to %v", n, c.hb.SuspectTime)
		c.sight(model.Sighting{Kind: model.SightingSuspect, Node: n, At: now})
	}
}

// answered takes a kernel's answer.
func (c *Core) answered(now time.Time, a Answered) {
	p := c.peers[a.Node]
	if p == nil || p.boot == "" {
		return
	}
	if a.At.IsZero() || a.At.After(now) {
		a.At = now
	}
	if a.Boot != "" && a.Boot != p.boot {
		if !c.det.Silent(a.Node) {
			c.note(now, model.LevelWarning, "node-rebooted", string(a.Node), "node %s: its kernel answers, but of another run of the machine: its daemon is gone, and all that it had", a.Node)
			c.det.Condemn(a.Node, now)
		}
		return
	}
	c.det.Answered(a.Node, a.At)
}
