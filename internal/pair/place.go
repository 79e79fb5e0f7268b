package pair

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// move hands over, or takes, what lies in the wrong place while both sides are settled.
func (c *Core) move() {
	if c.failed&c.hold == None {
		c.giveUpAt = time.Time{}
	}
	switch {
	case c.hold&Local == None && c.other&Foreign == None:
		// Nobody has our set: the other held it, and restarted within its deadtime.
		c.acquire(Local, forOwn)
		c.report(true, "")
	case c.due(c.giveUpAt):
		c.giveUpAt = time.Time{}
		c.offer(c.failed&c.hold, false)
	case c.needsFailback && (!c.cfg.Failback || c.hold&Foreign == None):
		c.needsFailback = false
	case c.needsFailback && c.reservation() != "":
		if !c.held {
			c.held = true
			c.say(model.LevelNotice, "failback-held", "%s %s: its resources stay here; hb_standby foreign gives them back at once", c.cfg.Peer, c.reservation())
		}
	case c.needsFailback:
		c.needsFailback, c.held = false, false
		c.offer(Foreign, true)
	}
}

// reservation is what speaks against giving its set back to the other node now; "" if nothing does.
func (c *Core) reservation() string {
	switch {
	case c.aheadInPings():
		return "sees fewer ping nodes than this node"
	case c.now.Before(c.quarantine):
		return "is in quarantine until " + c.quarantine.Format(time.DateTime)
	}
	return ""
}

// adopt sees to a set of an original Heartbeat that nobody claims: it lost it
// by restarting within its dead time, or because we, who had it, saw a split
// that it did not see. It only logs that. The set is offered to it, and taken
// if it does not want it.
func (c *Core) adopt(settled bool) {
	switch orphan := !c.alone() && !c.peer.batuta && !c.peer.stopping && (c.hold|c.Other())&Foreign == None; {
	case !orphan:
		c.orphanAt, c.orphanOffered = time.Time{}, false
	case !settled || len(c.ops) > 0:
		c.orphanAt = time.Time{}
	case c.orphanAt.IsZero():
		c.orphanAt = c.now.Add(orphanDelay)
	case !c.due(c.orphanAt):
	case !c.orphanOffered:
		c.orphanAt, c.orphanOffered = time.Time{}, true
		c.say(model.LevelWarning, "orphan", "nobody holds the resources of %s: offering them to it", c.cfg.Peer)
		c.offer(Foreign, false)
	default:
		c.orphanAt = time.Time{}
		c.say(model.LevelWarning, "orphan", "%s does not take its resources, and nobody else holds them: taking them", c.cfg.Peer)
		c.acquire(Foreign, forNothing)
		c.report(true, "")
	}
}
