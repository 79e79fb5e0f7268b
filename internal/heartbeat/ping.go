package heartbeat

import (
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A ping node is a host, or a group of hosts, that answers ICMP echo requests
// (§11.5). With each status message of its own a node sends it one that holds
// a complete, signed message as if from that host; what comes back is its
// beat. Ping nodes have no life, no numbers and no resources.

// Probe asks to send these bytes in echo requests to a ping node. They come
// back as a Datagram whose Link is the ping node's name.
type Probe struct {
	Node model.NodeName
	Data []byte
}

func (Probe) isEffect() {}

// pingNode is one of them.
type pingNode struct {
	name model.NodeName // the host or the group, in lower case
	info string         // "ping" or "ping_group"
}

// clockStep is how far the wall clock may be set while an echo is under way.
const clockStep = time.Second

// pingNodes are the ping nodes of ha.cf, sorted by name, each once.
func pingNodes(media []model.Medium) []pingNode {
	var all []pingNode
	for _, m := range media {
		if m.Kind == model.Ping || m.Kind == model.PingGroup {
			all = append(all, pingNode{model.NodeName(strings.ToLower(m.Name)), m.Kind.String()})
		}
	}
	slices.SortFunc(all, func(a, b pingNode) int { return strings.Compare(string(a.name), string(b.name)) })
	return slices.CompactFunc(all, func(a, b pingNode) bool { return a.name == b.name })
}

func pingNames(all []pingNode) []model.NodeName {
	var names []model.NodeName
	for _, p := range all {
		names = append(names, p.name)
	}
	return names
}

// isPing tells whether a name is a ping node's.
func (c *Core) isPing(n model.NodeName) bool {
	return slices.ContainsFunc(c.pings, func(p pingNode) bool { return p.name == n })
}

// probe asks all ping nodes. It goes with a status message, whose time the
// probe bears.
func (c *Core) probe(now time.Time) {
	for _, p := range c.pings {
		f := append(c.fields[:0],
			Field{Name: "t", Value: "NS_st"}, Field{Name: "st", Value: "ping"}, Field{Name: "info", Value: p.info},
			Field{Name: "src", Value: string(p.name)}, c.stamp(now))
		c.effects = append(c.effects, Probe{p.name, c.auth.Seal(make([]byte, 0, 256), Netstring, f, true, c.send)})
		c.fields = f
	}
}

// pong takes what came back. The host only returns bytes: that they are ours,
// and of now, is what makes them a sign of life.
func (c *Core) pong(now time.Time, d Datagram, name model.NodeName, pkt *Packet) {
	ts, ok := hexField(pkt, "ts")
	age := c.wall(now).Sub(time.Unix(int64(ts), 0))
	if pkt.Get("t") != "NS_st" || !ok || age < -clockStep || age > c.hb.DeadPing+time.Second+clockStep {
		c.count.Replayed++
		return
	}
	c.count.Received++
	c.voucher.Merit = Heeded
	kind := model.SightingBeat
	if !c.pingDet.HeardOnce(name) || c.pingDet.Silent(name) {
		kind = model.SightingJoined
		c.note(now, model.LevelInfo, "link-up", string(name)+":"+d.Link, "Link %s:%s up.", name, d.Link)
		c.sight(model.Sighting{Kind: model.SightingLinkUp, Node: name, At: d.At, Link: d.Link})
	}
	c.pingDet.Heard(name, d.At, 0)
	c.sight(model.Sighting{Kind: kind, Node: name, At: d.At, State: model.NodePing, DeadTime: c.hb.DeadPing})
}

// tickPings declares ping nodes dead.
func (c *Core) tickPings(now time.Time) {
	for _, d := range c.pingDet.Expired(now) {
		c.note(now, model.LevelWarning, "node-dead", string(d.Node), "node %s: is dead", d.Node)
		if d.Heard {
			c.note(now, model.LevelWarning, "link-dead", string(d.Node)+":"+string(d.Node), "Link %s:%s dead.", d.Node, d.Node)
			c.sight(model.Sighting{Kind: model.SightingLinkDown, Node: d.Node, At: d.At, Link: string(d.Node)})
		}
		c.sight(model.Sighting{Kind: model.SightingSilent, Node: d.Node, At: d.At})
	}
}
