package heartbeat

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A Batuta node whose kernel answers when it is asked says so in its status
// messages (cap=kr), with the identity of this run of the machine (boot). The
// others ask it when the daemon's beat is overdue, and go on asking until the
// daemon is heard again or declared dead. They ask also once with each of its
// first beats, until it has answered: a promise that nobody has tried may fail
// when it is needed, by a packet filter for example.

// Ask asks to put a question to a node's kernel, by all links that can. What
// comes back is a Datagram like any other.
type Ask struct {
	Node model.NodeName
	Data []byte
}

func (Ask) isEffect() {}

// kernel is what a node knows of the kernel of another one.
type kernel struct {
	run    string       // of its machine; "" if its kernel does not answer
	proved bool         // it has answered
	trials int          // how often it was asked only to see whether it does
	due    time.Time    // when it is overdue; zero: never
	askAt  time.Time    // when it is asked; zero: not
	asked  [16]question // the latest questions, by number
}

// question is one that was asked.
type question struct {
	nonce uint64
	at    time.Time
	trial bool // nothing was overdue
}

// proofTries is how often a kernel is tried before somebody is told that no
// answer comes.
const proofTries = 5

// Late says by how much this node's loop was late. The worst since the latest
// status message goes out with the next.
type Late struct{ By time.Duration }

func (Late) isInput() {}

// capability words of the cap field.
const capKernel = "kr"

// announce adds to a status message what only Batuta nodes read.
func (c *Core) announce(f []Field) []Field {
	f = append(f, Field{Name: "life", Value: c.life}, Field{Name: "wd", Hex: true, Number: uint32(min(c.worst, time.Hour).Microseconds())})
	c.worst = 0
	if c.echo != "" {
		f = append(f, Field{Name: "echo", Value: c.echo})
	}
	if c.cfg.Boot != "" {
		f = append(f, Field{Name: "cap", Value: capKernel}, Field{Name: "boot", Value: c.cfg.Boot})
	}
	return f
}

// promised takes what a status message says of its sender's kernel, and arms
// the next question. It is asked first soon after the next beat is due, and so
// that it is asked five times more before the dead time is over: a question
// or its answer may be lost, as beats may.
func (c *Core) promised(now time.Time, p *peer, beat time.Time, run string) {
	k := &p.kernel
	if run != k.run {
		*k = kernel{run: run}
	}
	k.due, k.askAt = time.Time{}, time.Time{}
	if k.run == "" || p.keepalive == 0 || c.hb.SuspectTime == 0 {
		return
	}
	k.due = beat.Add(p.keepalive + c.askPeriod(p))
	k.askAt = k.due
	switch {
	case k.proved || k.trials > proofTries:
	case k.trials == proofTries:
		k.trials++
		c.note(now, model.LevelWarning, "kernel-unheard", string(p.name),
			"node %s: it says that its kernel answers when its daemon is silent, but no answer comes: it is judged by its dead time alone; does a packet filter drop UDP that comes from the heartbeat port?", p.name)
	default:
		k.askAt = now
	}
}

// askPeriod is the time between two questions.
func (c *Core) askPeriod(p *peer) time.Duration {
	return max(min(p.keepalive/4, (c.det.DeadTime(p.name)-p.keepalive)/6), time.Millisecond)
}

// ask makes a question to a node's kernel.
func (c *Core) ask(now time.Time, p *peer) {
	c.asked++
	c.count.Questions++
	q := Question{Key: uint8(c.hb.Keys.Send), Nonce: uint64(c.cfg.Generation)<<32 | uint64(c.asked),
		Node: FingerprintOf(p.name), Asker: FingerprintOf(c.self)}
	k := &p.kernel
	trial := now.Before(k.due)
	k.asked[c.asked%uint32(len(k.asked))] = question{q.Nonce, now, trial}
	if k.askAt = now.Add(c.askPeriod(p)); trial {
		k.trials++
		k.askAt = k.due
	}
	c.effects = append(c.effects, Ask{p.name, q.Append(make([]byte, 0, QuestionSize), c.questionKeys[q.Key])})
}

// tickKernels asks the kernels of those who are overdue.
func (c *Core) tickKernels(now time.Time) {
	for _, n := range c.names {
		p := c.peers[n]
		switch k := &p.kernel; {
		case k.askAt.IsZero() || now.Before(k.askAt):
		case c.det.Silent(n):
			k.askAt = time.Time{}
		default:
			c.ask(now, p)
		}
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
		k := &p.kernel
		i := slices.IndexFunc(k.asked[:], func(asked question) bool { return asked.nonce == q.Nonce && !asked.at.IsZero() })
		if i < 0 || q.Node != FingerprintOf(n) {
			continue
		}
		c.count.Answers++
		switch {
		case c.det.Silent(n):
		case q.Run.String() != k.run:
			c.note(now, model.LevelWarning, "node-rebooted", string(n), "node %s: its kernel answers, but of another run of the machine: its daemon is gone, and all that it had", n)
			c.det.Condemn(n, now)
		case k.asked[i].trial: // no silence was to be explained
			k.proved = true
		default:
			k.proved = true
			c.det.Answered(n, k.asked[i].at)
		}
		return
	}
	c.count.Replayed++
}

// cause says what a suspect has died of.
func (c *Core) cause(d Death) string {
	switch {
	case !d.Answered:
		return ""
	case d.At.Sub(d.Answer) < c.det.DeadTime(d.Node):
		return fmt.Sprintf(": its daemon has been silent for %v (suspecttime), although its kernel answers", d.Silence.Round(time.Millisecond))
	}
	return ": its daemon was silent, and now its kernel is, too"
}

// runField is the run of its machine that a status message promises answers
// of; "" if there will be none.
func runField(p *Packet) string {
	run := p.Get("boot")
	if b, err := hex.DecodeString(run); err != nil || len(b) != len(Run{}) || !slices.Contains(strings.Fields(p.Get("cap")), capKernel) {
		return ""
	}
	return run
}
