package pair

import (
	"strconv"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Heartbeat's ipfail, built in: when the other node sees more of the ping
// nodes, this one hands everything to it. The words are those of the original,
// as recorded from it, so that either side may be one:
//
//	A  num_ping_nodes num_ping=N   I see N; sent when it, or whom B is, may have changed
//	B  you_are_dead                if B sees more
//	B  abort_giveup                if B sees as many: nothing is to be moved
//
// and if B sees fewer, it is B that gives up (a Batuta node answers with its own
// num_ping_nodes then). A ping node that dies is missed by
// one node a little earlier than by the other; so who is to give up waits a
// moment for the other to miss it, too.

// Messages of ipfail.
const (
	pingCount   = "num_ping_nodes"
	pingBehind  = "you_are_dead"
	pingBalance = "abort_giveup"
)

// toIpfail are the fields that make an original hand a message to its ipfail.
var toIpfail = []model.Field{{Name: "from_id", Value: "ipfail"}, {Name: "to_id", Value: "ipfail"}, {Name: "client_gen", Value: "0"}}

// look counts the ping nodes that are seen, and tells the other node when the
// count or what it goes by has changed.
func (c *Core) look(e model.ClusterEvent) {
	if c.cfg.Ipfail == 0 || c.legacy() || c.cfg.Peer == "" {
		return
	}
	seen := 0
	for _, n := range e.View.Nodes {
		if n.Ping && n.State == model.NodePing {
			seen++
		}
	}
	changed := seen != c.pingsSeen
	c.pingsSeen = seen
	if c.state == stateInit || c.state == stateShutdown || c.alone() {
		return
	}
	peer := e.Node == c.cfg.Peer && e.Kind != model.MessageReceived && e.Kind != model.LinkChanged
	if changed || peer || e.Kind == model.CommunicationUp || e.Kind == model.Renewed {
		c.tellIpfail(pingCount)
	}
}

func (c *Core) tellIpfail(kind string) {
	c.out = append(c.out, Send{model.Message{Type: kind, From: c.cfg.Self, To: c.cfg.Peer,
		Fields: append([]model.Field{{Name: "num_ping", Value: strconv.Itoa(c.pingsSeen)}}, toIpfail...)}})
}

// onIpfail takes the other node's word about the ping nodes. A Batuta node says
// with each how many it sees: what an answer compares with may be old by the
// time it arrives.
func (c *Core) onIpfail(m model.Message) {
	if c.cfg.Ipfail == 0 || c.legacy() {
		return
	}
	switch n, err := strconv.Atoi(m.Get("num_ping")); {
	case err == nil:
		c.peer.pings = n
	case m.Type == pingBalance:
		c.peer.pings = c.pingsSeen
	case m.Type == pingBehind:
		c.fallBehind()
		return
	default:
		return
	}
	answer := ""
	switch {
	case c.peer.pings > c.pingsSeen:
		c.fallBehind()
		if c.peer.batuta {
			answer = pingCount // it may never have heard it, and must not give us anything back
		}
	case c.peer.pings < c.pingsSeen:
		c.catchUp()
		answer = pingBehind
	default:
		c.catchUp()
		answer = pingBalance
	}
	if m.Type == pingCount && answer != "" {
		c.tellIpfail(answer)
	}
}

// aheadInPings tells whether the other node would hand back what it is given.
func (c *Core) aheadInPings() bool { return c.peer.pings >= 0 && c.peer.pings < c.pingsSeen }

// fallBehind begins the wait, unless it runs.
func (c *Core) fallBehind() {
	if !c.behind {
		c.behind, c.yieldAt = true, c.now.Add(c.cfg.Ipfail)
	}
}

// catchUp ends it.
func (c *Core) catchUp() { c.behind, c.yieldAt = false, time.Time{} }

// yieldForPings hands everything over once the wait is over. That is done once:
// what the operator then takes back stays.
func (c *Core) yieldForPings() {
	switch {
	case !c.behind:
	case c.alone() || c.state == stateShutdown || c.hold == None && c.Stable():
		c.catchUp()
	case !c.due(c.yieldAt):
	case c.hold == None || c.CanStandby(All) != nil:
		c.yieldAt = c.now.Add(c.cfg.Ipfail) // not yet
	default:
		c.yieldAt = c.now.Add(c.cfg.Ipfail) // if it is refused
		c.say(model.LevelWarning, "fewer-ping-nodes", "%s sees more ping nodes than this node, which sees %d: handing all resources to it", c.cfg.Peer, c.pingsSeen)
		c.offer(All, false)
	}
}
