package pair

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// cluster takes a fact from the messenger.
func (c *Core) cluster(e model.ClusterEvent) {
	if v := e.View.Find(c.cfg.Peer); v != nil && c.cfg.Peer != "" {
		c.peer.batuta = v.Batuta
		c.quarantine = v.Quarantine
		if e.Kind == model.CommunicationUp {
			c.peer.alive = v.State == model.NodeActive || v.State == model.NodeUp
		}
	}
	defer c.look(e)
	switch e.Kind {
	case model.CommunicationUp:
		c.communicationUp(e.View)
		return
	case model.Renewed:
		c.renewed()
		return
	default:
	}
	if e.Node != c.cfg.Peer && e.Message.From != c.cfg.Peer || c.cfg.Peer == "" {
		return
	}
	switch e.Kind {
	case model.MessageReceived:
		c.message(e.Message)
	case model.NodeDied:
		c.died()
	case model.NodeRestarted:
		c.newLife()
	case model.NodeJoined:
		c.newLife()
		if v := e.View.Find(c.cfg.Peer); c.legacy() && v != nil && v.State == model.NodeActive {
			c.legacyHealed() // active at first sight: it has been there, and asks for nothing
		}
	case model.PartitionHealed:
		c.healed()
	case model.CommunicationUp, model.Renewed, model.LinkChanged, model.ClusterNone:
	}
}

// newLife begins to listen to the other node anew.
func (c *Core) newLife() {
	c.lives++
	c.endLife()
	c.spare()
}

// endLife forgets what the other node said before.
func (c *Core) endLife() {
	c.endStandby()
	c.other, c.otherStable, c.healing = None, false, false
	c.peer = peerState{alive: true, batuta: c.peer.batuta, pings: -1}
	if !c.legacy() {
		c.awaited, c.asked = nil, nil
	} else if c.won {
		c.won = false // after a split it began anew, and has released
		c.reannounce()
	}
}

// renewed: the other node has forgotten, or never heard, what we said.
func (c *Core) renewed() {
	if c.state == stateInit || c.state == stateShutdown {
		return
	}
	c.endStandby()
	c.otherStable = false
	if c.state != stateStable {
		c.takeoverAt = c.now.Add(takeoverDelay)
	}
	c.sendStarting()
}

func (c *Core) communicationUp(v model.View) {
	if c.state != stateInit {
		return
	}
	if c.legacy() {
		n := v.Find(c.cfg.Peer)
		c.legacyUp(n != nil && n.State == model.NodeActive)
		return
	}
	c.up, c.silences = true, 0
	c.sendStarting()
	c.state = stateStarting
	if c.alone() {
		c.takeFirst()
	} else {
		c.takeoverAt = c.now.Add(takeoverDelay)
	}
}

// takeFirst takes everything as nobody else was there when communication came up.
func (c *Core) takeFirst() {
	if c.cfg.Fencing && c.cfg.Peer != "" {
		c.fence()
	} else {
		c.takeAll()
	}
}

// died takes over from the other node, which was silent for its deadtime.
func (c *Core) died() {
	stopped, cleaning, harmless := c.peer.gone, c.peer.cleaning, c.harmless()
	c.endLife()
	c.peer.alive = false
	if c.state == stateInit || c.state == stateShutdown {
		return
	}
	if cleaning {
		c.reannounce() // how far it came is not known
	}
	c.needsFailback = true
	if c.state == stateStable && c.hold == All && c.failed == None {
		return
	}
	if c.cfg.Fencing && !harmless {
		c.fence()
		return
	}
	if !stopped {
		c.say(model.LevelWarning, "takeover", "Resources being acquired from %s", c.cfg.Peer)
	}
	c.takeAll()
}

// takeAll claims and starts everything that is not held: the other node holds nothing.
func (c *Core) takeAll() {
	c.endStandby()
	c.other, c.otherStable, c.healing = None, false, false
	c.forget(forRejoin, forCleaning)
	c.rejoining, c.cleaning, c.found = false, false, None
	c.needsFailback = true
	c.state, c.takeoverAt = stateStable, time.Time{}
	missing := All&^c.hold | c.failed
	c.hold = All
	c.epoch++
	c.report(true, infoOwn)
	if missing != None {
		c.acquire(missing, forTakeover)
	}
}

// message takes one message of the other node.
func (c *Core) message(m model.Message) {
	if c.legacy() {
		c.legacyMessage(m)
		return
	}
	switch m.Type {
	case "resource":
		c.onResource(m)
	case "starting":
		c.onStarting(m)
	case "ask_resources":
		c.onAsk(m)
	case "hb_takeover":
		c.onTakeover(m)
	case "shutdone":
		c.onShutdone()
	case pingCount, pingBehind, pingBalance:
		c.onIpfail(m)
	}
}

// onStarting answers a node that has come up, or that asks anew where we are.
func (c *Core) onStarting(m model.Message) {
	if c.state == stateInit {
		return
	}
	if n := number(m); n >= c.peer.report && !c.overtaken(m) { // else newer word has overtaken it
		c.otherStable = false
	}
	c.peer.stopping, c.peer.gone = false, false
	if c.won {
		c.won, c.peer.cleaning = false, false // the loser of a split has released
		c.reannounce()
	}
	if c.state == stateShutdown {
		c.report(false, infoShutdown)
		return
	}
	c.report(c.state == stateStable, "")
}

// reannounce is for when nobody else answers for our addresses any longer.
func (c *Core) reannounce() {
	if c.hold != None {
		c.out = append(c.out, Reannounce{c.hold})
	}
}

// onShutdone takes over from a node that has released everything.
func (c *Core) onShutdone() {
	c.peer.gone, c.peer.stopping = true, false
	c.other, c.otherStable = None, false
	if c.state == stateInit || c.state == stateShutdown {
		return
	}
	c.cleaned()
	c.say(model.LevelInfo, "takeover", "Received shutdown notice from %s. Resources being acquired from %s", c.cfg.Peer, c.cfg.Peer)
	c.takeAll()
}

// received is entered with the first report, sent or seen.
func (c *Core) received() {
	c.state = stateReceived
	if c.takeoverAt.IsZero() {
		c.takeoverAt = c.now.Add(takeoverDelay)
	}
}

// expire ends what has taken too long.
func (c *Core) expire() {
	if !c.due(c.standbyAt) || c.standby == standbyNot {
		return
	}
	c.say(model.LevelWarning, "standby-timeout", "%s did not go on with the hand-over of [%v] in time", c.cfg.Peer, c.standbySet)
	c.endStandby()
	c.otherStable = true
}

func (c *Core) due(t time.Time) bool { return !t.IsZero() && !t.After(c.now) }

// consider does what the state as a whole asks for, whatever led to it.
func (c *Core) consider() {
	if c.due(c.fenceAt) {
		c.tryFence()
	}
	if c.legacy() {
		c.legacyConsider()
		return
	}
	if c.state == stateStarting || c.state == stateReceived {
		c.settle()
	}
	if c.state != stateStable {
		if c.state != stateStarting && c.state != stateReceived {
			c.takeoverAt = time.Time{}
		}
		c.askAt, c.giveUpAt, c.orphanAt = time.Time{}, time.Time{}, time.Time{}
		return
	}
	c.takeoverAt = time.Time{}
	if c.alone() {
		c.startAgain()
	}
	c.unstick()
	settled := !c.alone() && c.otherStable && c.standby == standbyNot && !c.healing
	switch twice := c.hold & c.Other(); {
	case settled && twice != None:
		c.conflict()
		settled = !c.healing
	case settled:
		c.audited = false
	}
	if settled && len(c.ops) == 0 {
		c.move()
	}
	c.adopt(settled)
	c.yieldForPings()
	c.askAgain()
}

// startAgain tries again what did not start and cannot be offered to anybody.
func (c *Core) startAgain() {
	if c.due(c.giveUpAt) && len(c.ops) == 0 {
		c.giveUpAt = time.Time{}
		if again := c.failed & c.hold; again != None {
			c.acquire(again, forNothing)
		}
	}
}

// alone tells that nobody else can hold a resource.
func (c *Core) alone() bool { return !c.peer.alive || c.peer.gone }

// settle ends the negotiation when there is nothing more to wait for.
func (c *Core) settle() {
	if c.rejoining || c.cleaning || c.fencing {
		return
	}
	both := c.state == stateReceived && c.peer.batuta && c.peer.open
	if c.due(c.takeoverAt) && c.peer.batuta && !c.alone() && !c.peer.reported && c.silences < maxSilences {
		// It lives and has said nothing yet, or the network has lost it: what is
		// ours may still run there.
		c.silences++
		c.takeoverAt = c.now.Add(takeoverDelay)
		c.sendStarting()
	}
	late := c.due(c.takeoverAt) && !c.peer.stopping && !c.peer.cleaning
	agreed := c.otherStable || both || late
	own := Local &^ c.hold
	if c.other&Foreign != None {
		own = None
	}
	adopted := c.adoptable()
	own |= adopted
	if left := c.found &^ own; left != None && (agreed || c.peer.reported) {
		// What an earlier life left running must be gone before anyone may
		// take it: the other waits for that.
		c.cleaning = true
		c.release(left, forCleaning)
		return
	}
	if !agreed {
		return
	}
	c.found = None
	c.state, c.takeoverAt = stateStable, time.Time{}
	c.needsFailback = c.needsFailback || adopted != None // an earlier life owed it
	if own != None {
		c.acquire(own, forOwn)
	}
	c.report(true, "")
}

// adoptable is what the other node left to our earlier life and does not claim
// now either: our daemon came back before it was missed. It stays where it is,
// so that nothing moves because a process ended. The other will not start it
// as long as we have not reported that we are settled, and then we claim it.
func (c *Core) adoptable() Set {
	if !c.otherStable || !c.peer.reported || c.other&Local != None {
		return None
	}
	return c.found & Foreign
}

// askAgain makes sure that no lost word leaves us waiting for ever.
func (c *Core) askAgain() {
	unsure := !c.alone() && !c.peer.stopping && c.standby == standbyNot && (c.healing || !c.otherStable)
	switch {
	case !unsure:
		c.askAt = time.Time{}
	case c.askAt.IsZero():
		c.askAt = c.now.Add(askDelay)
	case c.due(c.askAt):
		c.askAt = c.now.Add(askDelay)
		if c.healing {
			c.report(false, infoHeal)
		} else {
			c.sendStarting()
		}
	}
}
