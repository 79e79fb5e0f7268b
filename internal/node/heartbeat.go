package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

var (
	_ api.Clusterer = (*clusterNode)(nil)
	_ api.Mover     = (*clusterNode)(nil)
	_ api.Auditor   = (*clusterNode)(nil)
	_ api.Auditor   = (*loneDirector)(nil)
)

// nodeWeight is what Heartbeat tells of each node: no command of today sets another.
const nodeWeight = 100

// Heartbeat is the cluster in Heartbeat's words.
func (n *clusterNode) Heartbeat(context.Context) (api.Heartbeat, error) {
	h := api.Heartbeat{Version: api.Version, Self: n.hb.Self, PID: os.Getpid(), Holding: n.crm.Holding(), Clients: n.clients(), Parameters: map[string]string{}}
	for _, p := range config.Parameters(&n.hb) {
		h.Parameters[p.Name] = p.Value
	}
	h.Parameters["crm"] = h.Parameters["pacemaker"]
	view := n.messenger.View()
	add := func(name model.NodeName, kind string) {
		one := api.HeartbeatNode{Name: string(name), Type: kind, Status: model.NodeInit.String(), Weight: nodeWeight, Links: []model.LinkView{}}
		if v := view.Find(name); v != nil {
			one.Status = v.State.String()
			one.Links = append(one.Links, v.Links...)
		}
		if name == n.hb.Self && len(one.Links) == 0 {
			one.Links = n.ownLinks() // it does not listen to itself: Heartbeat does, and shows them so
		}
		h.Nodes = append(h.Nodes, one)
	}
	for _, name := range slices.Backward(n.hb.Nodes) { // its order: last configured first
		add(name, "normal")
	}
	for _, m := range slices.Backward(n.hb.Media) {
		if m.Kind == model.Ping || m.Kind == model.PingGroup {
			add(model.NodeName(m.Name), "ping")
		}
	}
	return h, nil
}

// ownLinks are the paths between the nodes, each once.
func (n *clusterNode) ownLinks() []model.LinkView {
	var links []model.LinkView
	for _, m := range n.hb.Media {
		l := model.LinkView{Name: m.Name, Up: true}
		if m.Kind != model.Ping && m.Kind != model.PingGroup && !slices.Contains(links, l) {
			links = append(links, l)
		}
	}
	return links
}

// Standby hands resources over to the other node.
func (n *clusterNode) Standby(ctx context.Context, r api.MoveRequest) (api.MoveAnswer, error) {
	return n.moved(r, peerOf(n.hb), func() error { return n.crm.Standby(ctx, r.Set, !r.NoWait) })
}

// Takeover takes resources from the other node.
func (n *clusterNode) Takeover(ctx context.Context, r api.MoveRequest) (api.MoveAnswer, error) {
	return n.moved(r, n.hb.Self, func() error { return n.crm.Takeover(ctx, r.Set, !r.NoWait) })
}

func (n *clusterNode) moved(r api.MoveRequest, to model.NodeName, move func() error) (api.MoveAnswer, error) {
	began := time.Now()
	if err := move(); err != nil {
		return api.MoveAnswer{}, err
	}
	return api.MoveAnswer{Version: api.Version, Moved: !r.NoWait, Took: time.Since(began), Holding: n.crm.Holding(), To: to}, nil
}

// Ordered notes what an operator asks for.
func (n *clusterNode) Ordered(o api.Order) {
	n.sink(ordered(o))
	n.teller.tell()
}

// Obeyed notes what became of it.
func (n *clusterNode) Obeyed(o api.Order, took time.Duration, err error) {
	n.sink(obeyed(o, took, err))
}

// Ordered notes what an operator asks for.
func (d *loneDirector) Ordered(o api.Order) { d.sink(ordered(o)) }

// Obeyed notes what became of it.
func (d *loneDirector) Obeyed(o api.Order, took time.Duration, err error) {
	d.sink(obeyed(o, took, err))
}

// ordered is an order in the journal, before it is obeyed: should the daemon
// die of it, it is known who asked.
func ordered(o api.Order) model.Event {
	return model.Event{At: time.Now(), Level: model.LevelNotice, Source: "operator", Kind: o.Verb, Subject: o.What,
		Text: fmt.Sprintf("%s: asked for by %s", o, o.By)}
}

func obeyed(o api.Order, took time.Duration, err error) model.Event {
	e := model.Event{At: time.Now(), Level: model.LevelNotice, Source: "operator", Kind: o.Verb + "-done", Subject: o.What,
		Text: fmt.Sprintf("%s, for %s: done after %v", o, o.By, took.Round(time.Millisecond))}
	if err != nil {
		e.Level, e.Kind, e.Text = model.LevelWarning, o.Verb+"-failed", fmt.Sprintf("%s, for %s: %v", o, o.By, err)
	}
	return e
}
