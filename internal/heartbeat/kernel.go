package heartbeat

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A Batuta node whose kernel answers when it is asked says so in its status
// messages (cap=kr), with the identity of this run of the machine (boot). The
// others ask it when the daemon's beat is overdue, and go on asking until the
// daemon is heard again or declared dead.

// Ask asks to put a question to a node's kernel, by all links that can. What
// comes back is a Datagram like any other.
type Ask struct {
	Node model.NodeName
	Data []byte
}

func (Ask) isEffect() {}

// question is one that was asked.
type question struct {
	nonce uint64
	at    time.Time
}

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

// overdue is when a node's kernel is asked first: soon after its beat was due,
// and so that it is asked at least twice more before its dead time is over.
// A question or its answer may be lost, as beats may.
func (c *Core) overdue(p *peer, beat time.Time) time.Time {
	if p.boot == "" || p.keepalive == 0 {
		return time.Time{}
	}
	return beat.Add(p.keepalive + c.askPeriod(p))
}

// askPeriod is the time between two questions.
func (c *Core) askPeriod(p *peer) time.Duration {
	return max(min(p.keepalive/2, (c.det.DeadTime(p.name)-p.keepalive)/3), time.Millisecond)
}

// ask makes a question to a node's kernel.
func (c *Core) ask(now time.Time, p *peer) {
	c.asked++
	c.count.Questions++
	q := Question{Key: uint8(c.hb.Keys.Send), Nonce: uint64(c.cfg.Generation)<<32 | uint64(c.asked),
		Node: FingerprintOf(p.name), Asker: FingerprintOf(c.self)}
	p.asked[c.asked%uint32(len(p.asked))] = question{q.Nonce, now}
	c.effects = append(c.effects, Ask{p.name, q.Append(make([]byte, 0, QuestionSize), c.questionKeys[q.Key])})
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
		p.askAt = now.Add(c.askPeriod(p))
		c.ask(now, p)
	}
	for _, n := range c.det.Suspected(now) {
		c.note(now, model.LevelWarning, "node-suspect", string(n),
			"node %s: is suspect: its daemon is silent, its kernel answers; nothing is taken over for up to %v", n, c.hb.SuspectTime)
		c.sight(model.Sighting{Kind: model.SightingSuspect, Node: n, At: now})
	}
}

// answered takes a kernel's answer. What it proves is that the kernel ran when
// it was asked: when it answered, and how long the answer traveled, nobody knows.
func (c *Core) answered(now time.Time, b []byte) {
	q, err := ParseQuestion(b, c.questionKeys)
	if err != nil || q.Asker != FingerprintOf(c.self) {
		c.count.Bad++
		return
	}
	for _, n := range c.names {
		p := c.peers[n]
		i := slices.IndexFunc(p.asked[:], func(asked question) bool { return asked.nonce == q.Nonce && !asked.at.IsZero() })
		if i < 0 || q.Node != FingerprintOf(n) || p.boot == "" {
			continue
		}
		c.count.Answers++
		if q.Run.String() == p.boot {
			c.det.Answered(n, p.asked[i].at)
		} else if !c.det.Silent(n) {
			c.note(now, model.LevelWarning, "node-rebooted", string(n), "node %s: its kernel answers, but of another run of the machine: its daemon is gone, and all that it had", n)
			c.det.Condemn(n, now)
		}
		return
	}
	c.count.Replayed++
}

// runField is the run of the machine that a status message names; "" if it is
// none that a kernel could answer with.
func runField(p *Packet) string {
	boot := p.Get("boot")
	if b, err := hex.DecodeString(boot); err != nil || len(b) != len(Run{}) {
		return ""
	}
	return boot
}
