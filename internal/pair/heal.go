package pair

import (
	"cmp"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// healed: the other node is heard again after it was declared dead, and it
// never died. Both sides may hold everything.
func (c *Core) healed() {
	if c.peer.alive {
		// It took us for dead and asks, or has asked already. A hand-over is over.
		if c.standby != standbyNot && c.peer.batuta {
			c.endStandby()
			c.ask()
		}
		return
	}
	c.peer.alive, c.peer.gone, c.peer.stopping = true, false, false
	c.spare()
	if c.legacy() {
		c.legacyHealed()
		return
	}
	if c.state == stateInit || c.state == stateShutdown {
		return
	}
	c.endStandby()
	c.other, c.otherStable = None, false
	if !c.peer.batuta {
		// Heartbeat gives up everything within 2 s and starts anew. We give up everything,
		// too, and take over when it says that it has stopped.
		c.giveUpAll()
		return
	}
	c.ask()
}

// ask tells the other side what we hold, so that both can apply the rule.
func (c *Core) ask() {
	c.healing, c.otherStable = true, false
	c.askAt = c.now.Add(askDelay)
	c.report(false, infoHeal)
}

// question answers the other side's ask, and decides.
func (c *Core) question() {
	if c.state == stateShutdown {
		return
	}
	c.peer.alive = true
	c.endStandby()
	c.report(false, infoHealed)
	c.decide()
}

// decide applies the rule that both sides know: what is held once stays;
// if anything is held twice, the side of the higher epoch (the one that took
// over, where only one did) keeps all it has, then the side that holds more
// resources, then the one listed first in ha.cf; the other releases all it has.
func (c *Core) decide() {
	c.healing = false
	if c.hold&c.Other() == None {
		if c.state == stateStable {
			c.report(true, "")
		}
		return
	}
	first := 0
	if c.cfg.First {
		first = 1
	}
	if cmp.Or(cmp.Compare(c.epoch, c.peer.epoch), cmp.Compare(c.weight(c.hold), c.weight(c.Other())), 2*first-1) < 0 {
		c.say(model.LevelCritical, "split-lost", "%s and %s both held [%v]: %s keeps its resources, this node releases all of its own",
			c.cfg.Self, c.cfg.Peer, c.hold&c.Other(), c.cfg.Peer)
		c.giveUpAll()
		return
	}
	c.say(model.LevelCritical, "split-won", "%s and %s both held [%v]: this node keeps its resources, %s releases all of its own",
		c.cfg.Self, c.cfg.Peer, c.hold&c.Other(), c.cfg.Peer)
	c.other, c.otherStable, c.won = None, false, true
	c.needsFailback = true
	c.reannounce()
	c.report(true, "")
}

// weight is the number of resources in a set.
func (c *Core) weight(s Set) int {
	n := 0
	if s&Local != None {
		n += c.cfg.LocalResources
	}
	if s&Foreign != None {
		n += c.cfg.ForeignResources
	}
	return n
}

// giveUpAll releases everything and then negotiates like a node that has just come up.
func (c *Core) giveUpAll() {
	c.endStandby()
	c.forget(forOwn, forTakeover, forCleaning)
	c.hold, c.found, c.cleaning = None, None, false
	c.healing, c.otherStable, c.won, c.needsFailback = false, false, false, false
	c.peer.open = false
	c.rejoining = true
	c.report(false, infoLeaving)
	c.state, c.takeoverAt = stateStarting, time.Time{}
	c.release(All, forRejoin)
}

// conflict is found when both sides have settled and claim the same.
func (c *Core) conflict() {
	if c.peer.batuta {
		c.ask()
		return
	}
	if !c.audited {
		c.audited = true
		c.say(model.LevelError, "double-claim", "both %s and %s claim [%v]: stop heartbeat on one of them", c.cfg.Self, c.cfg.Peer, c.hold&c.Other())
	}
}
