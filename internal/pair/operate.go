package pair

import (
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// reason is why an operation was begun: what its end leads to.
type reason uint8

const (
	forNothing  reason = iota
	forOwn             // acquire what is ours
	forTakeover        // acquire what the other has left
	forGift            // acquire what the other hands over
	forGiving          // release what we hand over
	forRejoin          // release everything after a lost split, then negotiate anew
	forCleaning        // release what an earlier life left, then settle
	forStuck           // release what could not be released before
	forStop            // release everything, then end
	forYielding        // release what the other node asks for as its own (legacy)
)

// operation is an Acquire or Release that has not been reported as Finished.
type operation struct {
	id      int
	set     Set
	release bool
	why     reason
}

// acquire claims a set and has it started.
func (c *Core) acquire(s Set, why reason) {
	c.hold |= s
	c.failed &^= s
	c.stuck &^= s
	c.begin(s, false, why)
}

// release has a set stopped. The claim is given up by the caller, who also reports it.
func (c *Core) release(s Set, why reason) {
	c.failed &^= s
	c.begin(s, true, why)
}

func (c *Core) begin(s Set, release bool, why reason) {
	c.lastOp++
	c.ops = append(c.ops, operation{c.lastOp, s, release, why})
	if release {
		c.out = append(c.out, Release{c.lastOp, s})
	} else {
		c.out = append(c.out, Acquire{c.lastOp, s})
	}
}

// forget lets operations of these reasons end without consequences.
func (c *Core) forget(why ...reason) {
	for i := range c.ops {
		if slices.Contains(why, c.ops[i].why) {
			c.ops[i].why = forNothing
		}
	}
}

// busy tells whether an operation of this reason has not ended.
func (c *Core) busy(why reason) bool {
	return slices.ContainsFunc(c.ops, func(o operation) bool { return o.why == why })
}

// finished goes on with what an operation was for.
func (c *Core) finished(f Finished) {
	at := slices.IndexFunc(c.ops, func(o operation) bool { return o.id == f.Op })
	if at < 0 {
		return
	}
	op := c.ops[at]
	c.ops = slices.Delete(c.ops, at, at+1)
	if !op.release && f.Failed&c.hold != None {
		c.failed |= f.Failed & c.hold
		c.giveUpAt = c.now.Add(giveUpDelay)
		next := "offering the set to " + string(c.cfg.Peer)
		if c.alone() || c.legacy() {
			next = "nobody else is there: trying again"
		}
		c.say(model.LevelError, "start-failed", "resources of the %v set did not start; %s in %v", f.Failed, next, giveUpDelay)
	}
	switch op.why {
	case forOwn:
		if c.state == stateStable && c.standby == standbyNot {
			c.report(true, infoOwn)
		}
	case forTakeover:
		c.say(model.LevelInfo, "takeover-complete", "mach_down takeover complete for node %s.", c.cfg.Peer)
	case forGift:
		c.sendAsk(c.standbySet, "done")
		c.endStandby()
		c.report(true, "")
	case forGiving:
		c.given(f.Failed)
	case forStuck:
		c.stuck &^= op.set
		if left := f.Failed &^ c.hold; left != None {
			c.stick(left)
			break
		}
		c.say(model.LevelNotice, "stop-late", "resources of the %v set are stopped here at last", op.set)
		c.report(false, infoCleaning) // so that the other announces its addresses again
		c.report(c.state == stateStable, "")
	case forRejoin:
		if f.Failed != None {
			c.stick(f.Failed)
		}
		c.rejoining = false
		c.state, c.takeoverAt = stateStarting, c.now.Add(takeoverDelay)
		c.sendStarting()
	case forCleaning:
		c.cleaning, c.found = false, c.found&^op.set
		c.keep(f.Failed)
		c.report(false, "")
	case forStop:
		// After a failed stop the other node must not believe that all is released.
		if f.Failed == None && c.up {
			for _, key := range c.asked {
				c.answer(key, "yes")
			}
			c.send("shutdone", model.Field{Name: "st", Value: "dead"})
		}
		c.out = append(c.out, Stopped{f.Failed})
	case forYielding:
		c.yielded(f.Failed)
	case forNothing:
		if op.release && c.state == stateStable {
			// A hand-over that was overtaken: the other waits to hear what became of it.
			c.keep(f.Failed)
			c.report(true, "")
		}
	}
}

// stop hands everything over and ends.
func (c *Core) stop() {
	if c.state == stateShutdown {
		return
	}
	c.endStandby()
	c.forget(forOwn, forTakeover, forRejoin, forCleaning)
	c.healing, c.rejoining, c.cleaning, c.found = false, false, false, None
	c.fencing, c.fenceAt = false, time.Time{}
	c.state, c.hold = stateShutdown, None
	if c.up {
		c.report(false, infoShutdown)
	}
	c.release(All, forStop)
}
