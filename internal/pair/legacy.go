package pair

import (
	"maps"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// auto_failback legacy is the negotiation before there was one: a node claims
// its own groups as soon as it is up, and asks for each of them where another
// node is active; the other releases what it runs and answers, and on the
// answers the asker starts. There are no reports, no agreement and no
// hand-overs. The death or the stop of the other makes a node take all.
//
//	A  ip-request      ipaddr=KEY                    for each group of A's own
//	B  ip-request-resp ipaddr=KEY weown=yes ok=OK    when it has released it
//
// Heartbeat asks once and waits for ever; we ask again. What it asked an
// earlier life of ours, or one that was just ending, is answered unasked: as
// soon as we are up, or it is, and whenever we have released something. An
// answer that it does not wait for makes it look whether the group runs, and
// nothing more. That it lacks a group for any other reason (its script failed,
// its operator stopped it) nobody can see: in this mode it never says.
//
// It was meant for clusters in which not all nodes know the negotiation
// (ha.cf manual). Two Batuta nodes do: between them legacy is on.

// legacy tells whether the other node is to be spoken to in this way. As long
// as it has not been heard, it might be.
func (c *Core) legacy() bool { return c.cfg.Legacy && !c.peer.batuta }

// negotiation are the messages that this mode does without.
var negotiation = []string{"starting", "resource", "ask_resources", "hb_takeover"}

// legacyUp claims what is ours; communication has come up.
func (c *Core) legacyUp(peerActive bool) {
	c.up = true
	if c.alone() {
		c.state = stateStarting // while the other is being reset
		c.takeFirst()
		return
	}
	c.state = stateStable
	if left := c.found & Foreign; left != None {
		c.release(left, forYielding) // the other is answered when it is gone
	} else if peerActive {
		c.answerAll()
	}
	c.found = None
	if !peerActive || len(c.cfg.LocalGroups) == 0 {
		c.acquire(Local, forOwn)
		return
	}
	c.awaited = map[string]bool{}
	for _, key := range c.cfg.LocalGroups {
		c.awaited[key] = true
	}
	c.askGroups()
}

// askGroups asks for every group that was not answered for.
func (c *Core) askGroups() {
	for _, key := range slices.Sorted(maps.Keys(c.awaited)) {
		c.send("ip-request", model.Field{Name: "ipaddr", Value: key})
	}
	c.askAt = c.now.Add(askDelay)
}

// legacyMessage takes what this mode knows of messages.
func (c *Core) legacyMessage(m model.Message) {
	key := m.Get("ipaddr")
	switch m.Type {
	case "ip-request":
		c.onRequest(key)
	case "ip-request-resp":
		if !c.awaited[key] || m.Get("ok") != "OK" {
			return
		}
		if delete(c.awaited, key); len(c.awaited) == 0 {
			c.askAt = time.Time{}
			c.acquire(Local, forOwn)
		}
	case "status":
		if m.Get("st") == model.NodeActive.String() && c.state == stateStable {
			c.answerAll()
			if len(c.awaited) > 0 {
				c.askGroups() // now it can answer
			}
		}
	case "shutdone":
		c.onShutdone()
	}
}

// onRequest gives the other node what is its own. All of it: it asks for each
// of its groups at the same time.
func (c *Core) onRequest(key string) {
	switch {
	case c.state == stateInit:
		// It is answered when we are up.
	case c.yielding() || c.state == stateShutdown:
		c.asked = append(c.asked, key)
	case c.hold&Foreign != None:
		c.asked = append(c.asked, key)
		c.hold &^= Foreign
		c.release(Foreign, forYielding)
	default:
		c.answer(key, "no")
	}
}

func (c *Core) answer(key, held string) {
	c.out = append(c.out, Send{model.Message{Type: "ip-request-resp", From: c.cfg.Self, To: c.cfg.Peer, Fields: []model.Field{
		{Name: "ipaddr", Value: key}, {Name: "weown", Value: held}, {Name: "ok", Value: "OK"}}}})
}

// answerAll tells the other node that nothing of its own runs here, if so.
func (c *Core) answerAll() {
	if (c.hold|c.stuck)&Foreign == None && !c.yielding() {
		for _, key := range c.cfg.ForeignGroups {
			c.answer(key, "no")
		}
	}
}

func (c *Core) yielding() bool { return c.busy(forYielding) }

// yielded answers once the set is released. Without an answer the other does
// not start it, so that what could not be stopped does not run twice.
func (c *Core) yielded(failed Set) {
	asked := c.asked
	c.asked = nil
	if failed&Foreign != None {
		c.say(model.LevelCritical, "stop-failed", "resources that %s asks for could not be stopped: they stay here; stop them by hand (it asks again; an original Heartbeat must be restarted)", c.cfg.Peer)
		c.hold |= Foreign
		return
	}
	for _, key := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(asked, c.cfg.ForeignGroups)))) {
		c.answer(key, "yes")
	}
}

// legacyHealed ends a split: without words, each side keeps what is its own.
func (c *Core) legacyHealed() {
	c.peer.alive, c.peer.gone = true, false
	if c.state != stateStable || c.hold&Foreign == None {
		return
	}
	c.say(model.LevelCritical, "split-healed", "%s and %s both held resources: each keeps its own", c.cfg.Self, c.cfg.Peer)
	c.hold &^= Foreign
	c.release(Foreign, forNothing)
	c.won = true
	c.reannounce()
}

// legacyConsider does what is due, and draws from who is there what the other
// side, which never says, must be holding.
func (c *Core) legacyConsider() {
	if negotiating := c.state == stateStarting || c.state == stateReceived; negotiating && !c.rejoining && !c.cleaning && !c.fencing {
		c.takeoverAt = time.Time{}
		c.legacyUp(true) // a Batuta node was there until now
	}
	if c.state == stateStable {
		c.startAgain()
	}
	if c.alone() {
		c.asked = nil
	}
	switch {
	case c.alone() || c.state != stateStable:
		c.awaited, c.askAt = nil, time.Time{}
	case len(c.awaited) > 0 && c.due(c.askAt):
		c.askGroups()
	}
	c.other, c.otherStable = None, true
	if !c.alone() {
		c.other = (All &^ c.hold).Mirror()
	}
}
