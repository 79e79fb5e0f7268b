package pair

import (
	"strconv"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Comments of reports that carry meaning. The first three are Heartbeat's;
// the others are understood by Batuta only and ignored by the original.
const (
	infoShutdown = "shutdown"
	infoStandby  = "standby"
	infoOwn      = "req_our_resources()"
	infoHeal     = "heal"     // after a split: this is what I hold; what do you?
	infoHealed   = "healed"   // the answer to that
	infoLeaving  = "leaving"  // a split was lost, everything is being released
	infoCleaning = "cleaning" // what is not claimed is still being released
	infoKept     = "kept"     // what was offered is not, or could not be, released
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

// newLife forgets what the other node said before.
func (c *Core) newLife() {
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
		c.takeAll()
		return
	}
	c.takeoverAt = c.now.Add(takeoverDelay)
}

// died takes over from the other node, which was silent for its deadtime.
func (c *Core) died() {
	stopped, cleaning := c.peer.gone, c.peer.cleaning
	c.newLife()
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

// overtaken tells that a message of an original Heartbeat, which numbers no
// reports, had to be sent again while a later report came first.
func (c *Core) overtaken(m model.Message) bool {
	return !c.peer.batuta && m.Number > 0 && m.Number < c.peer.message
}

// onResource takes the other node's report of what it claims.
func (c *Core) onResource(m model.Message) {
	set, ok := ParseSet(m.Get("rsc_hold"))
	if c.state == stateInit || !ok {
		return
	}
	if c.overtaken(m) {
		return
	}
	c.peer.message = max(c.peer.message, m.Number)
	c.peer.reported = true
	full := m.Get("rtype") == "full"
	if full {
		// A retransmitted report may come after newer ones. A node that numbers its
		// reports begins with the first after it has recognized us, so that one
		// without a number is older than any with.
		n := number(m)
		if c.peer.report > 0 && n <= c.peer.report {
			if m.Get("info") == infoHeal && (c.standby == standbyNot || n > c.standbyReport) {
				c.question() // overtaken, but it still wants an answer
			}
			return
		}
		c.peer.report = n
	}
	if c.state == stateStarting {
		c.received()
	}
	switch {
	case full || set == None:
		c.other = set
	default:
		c.other |= set
	}
	c.agree(m)
	info := m.Get("info")
	if info == infoCleaning {
		c.peer.cleaning = true
	}
	if info == infoShutdown {
		// Whatever was being handed over: all of it comes with the end of the stop.
		c.peer.stopping = true
		c.endStandby()
	}
	switch m.Get("isstable") {
	case "1":
		c.peer.open = false
		c.cleaned()
		if !c.otherStable {
			c.otherStable = true
			if c.state != stateShutdown {
				c.report(c.state == stateStable, "")
			}
		}
	case "0":
		c.otherStable = false
		c.peer.open = full && info == ""
		if c.peer.open {
			c.cleaned()
		}
	}
	switch {
	case info == infoKept && c.standby == standbyOther && c.dropped(m):
		c.say(model.LevelError, "standby-failed", "%s could not release [%v] and keeps it", c.cfg.Peer, c.standbySet.Mirror())
		c.endStandby()
	case c.abandoned(m):
		c.endStandby()
	case info == infoHeal:
		c.question()
	case c.healing && full:
		c.decide()
	}
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

// report tells the other node what we claim, and whether we have settled.
func (c *Core) report(stable bool, info string, more ...model.Field) {
	if info == "" && c.vacating() {
		// Nobody may take what still runs here, although it is not claimed.
		stable, info = false, infoCleaning
	}
	f := []model.Field{{Name: "rsc_hold", Value: c.hold.String()}, {Name: "rtype", Value: "full"},
		{Name: "isstable", Value: map[bool]string{true: "1", false: "0"}[stable]}}
	if info != "" {
		f = append(f, model.Field{Name: "info", Value: info})
	}
	if c.peer.batuta {
		c.reports++
		if c.standby != standbyNot {
			f = append(f, model.Field{Name: "offer", Value: c.standbyID})
		}
		f = append(f, more...)
	}
	c.send("resource", c.numbered(f...)...)
	if c.state == stateStarting {
		c.received()
	}
}

// sendStarting asks the other node for its report.
func (c *Core) sendStarting() { c.send("starting", c.numbered()...) }

// numbered adds the number of the last report, which tells a Batuta node
// whether it has heard newer word. The original ignores fields it does not know.
func (c *Core) numbered(f ...model.Field) []model.Field {
	if c.peer.batuta && c.reports > 0 {
		f = append(f, model.Field{Name: "report", Value: strconv.FormatUint(c.reports, 16)})
	}
	if c.peer.batuta && c.epoch > 0 {
		f = append(f, model.Field{Name: "epoch", Value: strconv.FormatUint(c.epoch, 16)})
	}
	return f
}

// agree takes over the higher epoch of the other node, unless both claim the
// same: then it is what decides between them.
func (c *Core) agree(m model.Message) {
	if n, err := strconv.ParseUint(m.Get("epoch"), 16, 64); err == nil {
		c.peer.epoch = n
	}
	if m.Get("isstable") == "1" && c.hold&c.Other() == None {
		c.epoch = max(c.epoch, c.peer.epoch)
	}
}

// number is the number of the sender's last report, 0 where it gives none.
func number(m model.Message) uint64 {
	n, err := strconv.ParseUint(m.Get("report"), 16, 64)
	if err != nil {
		return 0
	}
	return n
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
	if c.alone() && c.due(c.giveUpAt) && len(c.ops) == 0 {
		c.giveUpAt = time.Time{}
		if again := c.failed & c.hold; again != None {
			c.acquire(again, forNothing)
		}
	}
	c.unstick()
	settled := !c.alone() && c.otherStable && c.standby == standbyNot && !c.healing
	if settled && c.hold&c.Other() != None {
		c.conflict()
	} else if settled {
		c.audited = false
	}
	if c.healing {
		settled = false
	}
	if settled && len(c.ops) == 0 {
		c.move()
	}
	c.adopt(settled)
	c.yieldForPings()
	c.askAgain()
}

// alone tells that nobody else can hold a resource.
func (c *Core) alone() bool { return !c.peer.alive || c.peer.gone }

// settle ends the negotiation when there is nothing more to wait for.
func (c *Core) settle() {
	if c.rejoining || c.cleaning {
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
	own |= c.adoptable()
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
	case c.needsFailback && c.aheadInPings():
		if !c.held {
			c.held = true
			c.say(model.LevelNotice, "failback-held", "%s sees fewer ping nodes than this node: its resources stay here until it sees as many", c.cfg.Peer)
		}
	case c.needsFailback && c.now.Before(c.quarantine):
		if !c.held {
			c.held = true
			c.say(model.LevelNotice, "failback-held", "%s is in quarantine until %s: its resources stay here; hb_standby foreign gives them back at once", c.cfg.Peer, c.quarantine.Format(time.DateTime))
		}
	case c.needsFailback:
		c.needsFailback, c.held = false, false
		c.offer(Foreign, true)
	}
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

// finished goes on with what an operation was for.
func (c *Core) finished(f Finished) {
	at := -1
	for i, op := range c.ops {
		if op.id == f.Op {
			at = i
		}
	}
	if at < 0 {
		return
	}
	op := c.ops[at]
	c.ops = append(c.ops[:at], c.ops[at+1:]...)
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
	c.state, c.hold = stateShutdown, None
	if c.up {
		c.report(false, infoShutdown)
	}
	c.release(All, forStop)
}
