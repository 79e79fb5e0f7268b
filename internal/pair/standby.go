package pair

import (
	"strconv"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A hand-over of a set X, always named in terms of the node S that gives it:
//
//	S  ask_resources X me        the offer
//	T  ask_resources X other     accepted
//	S  resource ... standby      X is no longer claimed; released; then
//	S  ask_resources X done      released
//	T  ask_resources X done      acquired
//
// and both report that they are settled. Between Batuta nodes each message of
// a hand-over bears its number, so that a late one is not taken for part of
// the next: its "done" would start a resource that is still being stopped.

// offer begins a hand-over to the other node.
func (c *Core) offer(s Set, failback bool) {
	c.say(model.LevelNotice, "standby", "%s wants to go standby [%v]", c.cfg.Self, s)
	c.otherStable, c.peer.empty = false, false
	c.standby, c.standbySet, c.standbyAt = standbyMe, s, c.now.Add(answerDelay)
	c.offered = failback
	c.offers++
	c.standbyReport = c.peer.report
	c.standbyID = string(c.cfg.Self) + "." + strconv.FormatUint(c.offers, 16)
	c.sendAsk(s, "me")
}

func (c *Core) sendAsk(s Set, info string) {
	f := []model.Field{{Name: "rsc_hold", Value: s.String()}, {Name: "info", Value: info}}
	if c.peer.batuta {
		f = append(f, model.Field{Name: "offer", Value: c.standbyID})
	}
	c.send("ask_resources", c.numbered(f...)...)
}

// endStandby ends a hand-over, finished or not. What was claimed stays claimed.
func (c *Core) endStandby() {
	if c.offered && c.standby == standbyMe && c.hold&Foreign != None {
		c.needsFailback = true // it was refused or overtaken: offer it again
	}
	if c.standby == standbyMe && c.failed&c.hold != None {
		c.giveUpAt = c.now.Add(giveUpDelay)
	}
	c.standby, c.standbySet, c.standbyAt, c.offered = standbyNot, None, time.Time{}, false
	c.forget(forGift, forGiving)
}

// releasing tells whether the accepted offer is being released now.
func (c *Core) releasing() bool { return c.busy(forGiving) }

// onAsk takes the other node's step of a hand-over.
func (c *Core) onAsk(m model.Message) {
	if c.state == stateInit || c.state == stateShutdown {
		return
	}
	set := All
	if w, ok := m.Lookup("rsc_hold"); ok {
		if set, ok = ParseSet(w); !ok || set == None {
			c.say(model.LevelError, "protocol", "%s: ask_resources names no set of resources: %q", c.cfg.Peer, w)
			return
		}
	}
	info := m.Get("info")
	id, numbered := m.Lookup("offer")
	stale := numbered && c.standby != standbyNot && info != "me" && id != c.standbyID
	if info == "done" {
		// It says more than any report sent before it that is still on its way.
		c.peer.report = max(c.peer.report, number(m))
	}
	switch {
	case info == "other" && (stale || c.standby == standbyNot):
		c.drop(id)
	case stale:
		c.say(model.LevelInfo, "protocol", "%s: ask_resources %v %q of an earlier hand-over: ignored", c.cfg.Peer, set, info)
	case info == "me":
		c.onOffer(set, id, number(m))
	case info == "other" && c.standby == standbyMe && !c.releasing():
		c.standbySet, c.standbyReport = set, number(m)
		c.standbyAt = c.now.Add(workDelay)
		c.giving = c.hold & set
		c.hold &^= set
		c.otherStable = false
		c.report(false, infoStandby)
		c.release(set, forGiving)
	case info == "done" && c.standby == standbyOther:
		c.standby, c.standbyAt = standbyDone, c.now.Add(workDelay)
		c.other &^= c.standbySet
		c.acquire(c.standbySet.Mirror(), forGift)
	case info == "done" && c.standby == standbyDone && !c.receiving():
		c.say(model.LevelNotice, "standby-complete", "Standby resource acquisition done [%v] by %s", c.standbySet, c.cfg.Peer)
		c.other |= c.standbySet.Mirror()
		c.endStandby()
		c.report(true, "")
	default:
		c.say(model.LevelWarning, "protocol", "%s: ask_resources %v %q is not expected now: ignored", c.cfg.Peer, set, info)
	}
}

// drop tells the other node that the offer which it has accepted was taken
// back meanwhile: it must not wait for what will not come.
func (c *Core) drop(offer string) {
	c.report(c.state == stateStable, infoKept, model.Field{Name: "dropped", Value: offer})
}

// dropped tells whether a report that something is kept is about the hand-over
// under way.
func (c *Core) dropped(m model.Message) bool {
	id, given := m.Lookup("dropped")
	return !given || id == c.standbyID
}

// receiving tells whether a gift is being acquired now.
func (c *Core) receiving() bool { return c.busy(forGift) }

// onOffer accepts a set from the other node, or ignores the offer as the protocol demands.
func (c *Core) onOffer(set Set, id string, report uint64) {
	c.say(model.LevelNotice, "standby", "%s wants to go standby [%v]", c.cfg.Peer, set)
	crossed := c.standby == standbyMe && !c.releasing() && c.peer.batuta && !c.cfg.First
	anew := c.standby == standbyOther && id != "" && id != c.standbyID
	switch {
	case crossed, anew:
		// Both offered at once: the node listed second takes the other's offer and drops
		// its own; Heartbeat ignores both, and both wait 10 s for nothing. Or the other
		// offers anew: our answer to its earlier offer came too late for it.
		c.endStandby()
	case c.state != stateStable || c.standby != standbyNot || !c.otherStable || c.healing:
		c.say(model.LevelWarning, "standby-ignored", "the offer of %s is ignored: %v, hand-over under way: %v, %s settled: %v",
			c.cfg.Peer, c.state, c.standby != standbyNot, c.cfg.Peer, c.otherStable)
		return
	}
	c.otherStable = false
	c.standby, c.standbySet, c.standbyAt, c.standbyID = standbyOther, set, c.now.Add(workDelay), id
	c.standbyReport = report
	c.sendAsk(set, "other")
}

// given ends the release of an offered set.
func (c *Core) given(failed Set) {
	if failed &= c.standbySet; failed != None {
		// Handing over what still runs here would make it run twice. Heartbeat does so,
		// or reboots the machine; we keep it, and say so.
		c.say(model.LevelCritical, "stop-failed", "resources of the %v set could not be stopped: the set stays here; stop them by hand, then hand over again", failed)
		back := c.giving
		c.endStandby()
		c.catchUp()
		c.needsFailback = false
		c.acquire(back, forOwn)
		c.report(true, infoKept)
		return
	}
	c.sendAsk(c.standbySet, "done")
	c.standby, c.standbyAt = standbyDone, c.now.Add(workDelay)
}

// onTakeover goes standby at the other node's request.
func (c *Core) onTakeover(m model.Message) {
	word := m.Get("rsc_hold")
	asked, err := ParseTakeover(word)
	if err != nil {
		c.say(model.LevelError, "protocol", "%s: hb_takeover: %v", c.cfg.Peer, err)
		return
	}
	give := asked.Mirror()
	if err := c.CanStandby(give); err != nil {
		c.say(model.LevelWarning, "standby-refused", "%s asks for [%v], refused: %v", c.cfg.Peer, give, err)
		return
	}
	c.offer(give, false)
}

// abandoned tells that a report means the end of the hand-over under way for
// the other node: it has settled, and does not speak of it. What it said of
// the end was overtaken by this report, or it was taken out of it by a split.
func (c *Core) abandoned(m model.Message) bool {
	accepted := c.standby == standbyOther || c.standby == standbyDone || c.standby == standbyMe && c.releasing()
	return accepted && c.peer.batuta && m.Get("rtype") == "full" && m.Get("isstable") == "1" &&
		number(m) > c.standbyReport && m.Get("offer") != c.standbyID
}
