package pair

import (
	"strconv"

	"github.com/batuta-ha/batuta/internal/model"
)

// A report says what its sender claims, and whether it has settled. Between
// Batuta nodes reports are numbered, so that late copies do no harm.

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

// overtaken tells that a message of an original Heartbeat, which numbers no
// reports, had to be sent again while a later report came first.
func (c *Core) overtaken(m model.Message) bool {
	return !c.peer.batuta && m.Number > 0 && m.Number < c.peer.message
}

// onResource takes the other node's report of what it claims.
func (c *Core) onResource(m model.Message) {
	set, ok := ParseSet(m.Get("rsc_hold"))
	if c.state == stateInit || !ok || c.overtaken(m) {
		return
	}
	c.peer.message = max(c.peer.message, m.Number)
	c.peer.reported = true
	full, stable, info := m.Get("rtype") == "full", m.Get("isstable"), m.Get("info")
	if full && !c.latest(m) {
		return
	}
	if c.state == stateStarting {
		c.received()
	}
	if full || set == None {
		c.other = set
	} else {
		c.other |= set
	}
	c.agree(m)
	c.peer.empty = c.other == None && stable == "1" && c.standby == standbyNot
	switch info {
	case infoCleaning:
		c.peer.cleaning = true
	case infoShutdown:
		// Whatever was being handed over: all of it comes with the end of the stop.
		c.peer.stopping = true
		c.endStandby()
	}
	c.peerSettles(stable, full && info == "")
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

// latest tells that no newer report has come before this one, a retransmitted
// one. A node that numbers its reports begins with the first after it has
// recognized us, so that one without a number is older than any with.
func (c *Core) latest(m model.Message) bool {
	n := number(m)
	if c.peer.report == 0 || n > c.peer.report {
		c.peer.report = n
		return true
	}
	if m.Get("info") == infoHeal && (c.standby == standbyNot || n > c.standbyReport) {
		c.question() // overtaken, but it still wants an answer
	}
	return false
}

// peerSettles takes the word of a report on whether the other has settled;
// plain is a full one without a comment.
func (c *Core) peerSettles(stable string, plain bool) {
	switch stable {
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
		if c.peer.open = plain; plain {
			c.cleaned()
		}
	}
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
