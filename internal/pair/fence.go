package pair

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Where there is a fencing device, a node that dies is reset before anything is
// taken over that may still run there; without the device's confirmation
// nothing is, however long that takes. A node that has settled and holds nothing,
// or that has stopped in order, needs no fencing. After a split each side tries
// to reset the other, and the one that is faster goes on; what comes back before
// it was fenced is negotiated with as with any node.
//
// An attempt under way cannot be called off, so that there is one at a time. Its
// confirmation counts for the life of the other node in which it was begun: a
// later one may have begun after the reset. Where a machine comes up between its
// death and the reset, the reset causes the next death, for which it would be
// reset again when it has just come up, and so on: the next attempt waits, twice
// as long each time, so that the machine can be back before.

// Times of fencing.
const (
	fenceDelay = 5 * time.Second  // between two attempts (heartbeat 3.0.6)
	vainMemory = 10 * time.Minute // how long it matters that an attempt hit, or will hit, a node that was back
	maxVain    = 6                // doublings of fenceDelay for that
)

// Fence is the effect of resetting the other node's machine; Fenced follows.
type Fence struct{ Node model.NodeName }

// Fenced reports the outcome of a Fence. Failure says why the node may still
// live; "" for a confirmed reset.
type Fenced struct{ Failure string }

func (Fence) effect() {}
func (Fenced) input() {}

func (e Fence) String() string { return "fence " + string(e.Node) }

// harmless tells that nothing can run on the other node, by its own word.
func (c *Core) harmless() bool { return c.peer.gone || c.peer.empty }

// fence has the other node reset. A takeover follows when that is confirmed.
func (c *Core) fence() {
	c.fencing = true
	if c.now.Sub(c.vainAt) > vainMemory {
		c.inVain = 0
	}
	if c.inVain > 0 {
		wait := fenceDelay << min(c.inVain, maxVain)
		c.fenceAt = c.now.Add(wait)
		c.say(model.LevelWarning, "fencing", "Resetting node %s in %v before its resources are taken over, unless it comes back: the last reset was for a node that was back already", c.cfg.Peer, wait)
		return
	}
	c.say(model.LevelWarning, "fencing", "Resetting node %s before its resources are taken over", c.cfg.Peer)
	c.tryFence()
}

func (c *Core) tryFence() {
	c.fenceAt = time.Time{}
	if !c.attempting {
		c.attempting, c.fenceLife = true, c.lives
		c.out = append(c.out, Fence{c.cfg.Peer})
	}
}

// fenced goes on with the takeover, or tries again.
func (c *Core) fenced(f Fenced) {
	c.attempting = false
	switch {
	case !c.fencing:
		return // it came back meanwhile, or this node is about to end
	case f.Failure == "" && c.fenceLife != c.lives:
		c.tryFence()
		return
	case f.Failure != "":
		c.fenceAt = c.now.Add(fenceDelay)
		c.say(model.LevelError, "fencing-failed", "%s; nothing is taken over from %s, trying again in %v", f.Failure, c.cfg.Peer, fenceDelay)
		c.sendFenced("bad")
		return
	}
	c.fencing, c.inVain = false, 0
	c.say(model.LevelNotice, "fenced", "node %s now reset.", c.cfg.Peer)
	c.sendFenced("OK")
	c.takeAll()
}

// sendFenced tells of the outcome; nobody acts upon it.
func (c *Core) sendFenced(result string) {
	c.send("stonith", model.Field{Name: "node", Value: string(c.cfg.Peer)}, model.Field{Name: "result", Value: result})
}

// spare gives fencing up: the other node is there again, and can be asked.
func (c *Core) spare() {
	if !c.fencing {
		return
	}
	c.fencing, c.fenceAt = false, time.Time{}
	if c.attempting {
		c.inVain++
		c.vainAt = c.now
	}
	c.say(model.LevelNotice, "fencing-ended", "%s is there again: nothing is taken over from it", c.cfg.Peer)
	switch {
	case c.legacy() && c.hold&Local == None:
		c.legacyUp(true)
	case c.state == stateStarting || c.state == stateReceived:
		c.takeoverAt = c.now.Add(takeoverDelay)
		c.sendStarting()
	}
}
