package pair

import (
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// What runs here although it should not: left by an earlier life, being
// stopped, or not to be stopped.

// vacating tells whether something runs here that this node does not claim
// and will not: it is being released, or will be.
func (c *Core) vacating() bool {
	if c.found&Foreign != None || c.found != None && c.other&Foreign != None {
		return true
	}
	return slices.ContainsFunc(c.ops, func(o operation) bool { return o.release && o.set&^c.hold != None })
}

// keep claims what could not be released: it still runs here, and must not
// run twice. Heartbeat hands it over all the same, or reboots the machine.
// What the other claims already is left to it; here it is stopped again and
// again.
func (c *Core) keep(left Set) {
	left &^= c.hold
	if theirs := left & c.Other(); theirs != None {
		c.stick(theirs)
		left &^= theirs
	}
	if left == None {
		return
	}
	c.say(model.LevelCritical, "stop-failed", "resources of the %v set could not be stopped: the set stays here; stop them by hand, then hand over again", left)
	c.needsFailback = false
	c.acquire(left, forNothing)
}

// stick remembers what still runs here although the other has it.
func (c *Core) stick(theirs Set) {
	c.say(model.LevelCritical, "stop-failed", "resources of the %v set could not be stopped and may run on both nodes: stop them here by hand; trying again every %v", theirs, stuckDelay)
	c.stuck |= theirs
	c.stuckAt = c.now.Add(stuckDelay)
}

// unstick tries again to stop what is the other's.
func (c *Core) unstick() {
	if c.stuck &^= c.hold; c.stuck == None {
		c.stuckAt = time.Time{}
	} else if c.due(c.stuckAt) && len(c.ops) == 0 {
		c.stuckAt = time.Time{}
		c.release(c.stuck, forStuck)
	}
}

// cleaned is called when the other node has nothing left that it does not
// claim: its machine answered for our addresses until then, and who believed
// it must learn better.
func (c *Core) cleaned() {
	if c.peer.cleaning {
		c.peer.cleaning = false
		c.reannounce()
	}
}
