package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
)

var (
	_ api.Planner = (*clusterNode)(nil)
	_ api.Planner = (*loneDirector)(nil)
)

// windowMessage is the type of the message that carries a maintenance window
// between Batuta nodes. Heartbeat ignores types that it does not know, but is
// never sent one.
const (
	windowMessage = "batuta-window"
	windowField   = "window" // its JSON
)

// windowKeeper keeps the maintenance windows of this node's journal, and has
// the nodes of a cluster know the same ones: each new one is sent, and all that
// are not over when a node joins.
type windowKeeper struct {
	dir   string // of the journal; "" for none
	sink  model.Sink
	send  func(model.Message) error // nil without a cluster
	view  func() model.View
	heard chan model.ClusterEvent // messages with windows; NodeJoined: a node can be told
	ready chan struct{}

	reached map[model.NodeName]bool // who can be told; the caller's of hear
}

func newWindowKeeper(stateDir string, sink model.Sink) *windowKeeper {
	k := &windowKeeper{sink: sink, heard: make(chan model.ClusterEvent, 64), ready: make(chan struct{})}
	if stateDir != "" {
		k.dir = journal.Dir(stateDir)
	}
	return k
}

// hear takes a cluster event; one goroutine calls it. It never blocks: what is
// left out in a flood comes again when the node joins the next time.
func (k *windowKeeper) hear(e model.ClusterEvent) {
	put := func(e model.ClusterEvent) {
		select {
		case k.heard <- e:
		default:
		}
	}
	now := map[model.NodeName]bool{}
	for _, n := range reachable(e.View) {
		now[n] = true
		if !k.reached[n] { // a node that joins says only then that it knows windows
			put(model.ClusterEvent{Kind: model.NodeJoined, Node: n})
		}
	}
	k.reached = now
	if e.Kind == model.MessageReceived && e.Message.Type == windowMessage {
		put(e)
	}
}

// reachable are the other nodes that know windows and can be told now.
func reachable(v model.View) (names []model.NodeName) {
	for _, n := range v.Nodes {
		if n.Name != v.Self && n.Batuta && (n.State == model.NodeUp || n.State == model.NodeActive) {
			names = append(names, n.Name)
		}
	}
	return names
}

// Run writes what other nodes tell, and tells them, until ctx ends.
func (k *windowKeeper) Run(ctx context.Context) error {
	close(k.ready)
	k.tellAll()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-k.heard:
			if e.Kind == model.NodeJoined {
				k.tellAll()
				continue
			}
			k.adopt(e.Message)
		}
	}
}

// Ready is closed at once: nobody waits for windows.
func (k *windowKeeper) Ready() <-chan struct{} { return k.ready }

func (k *windowKeeper) String() string { return "maintenance windows" }

func (k *windowKeeper) warn(err error) {
	k.sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "maintenance", Kind: "window-lost", Text: err.Error()})
}

// adopt records a window that another node has told.
func (k *windowKeeper) adopt(m model.Message) {
	var w journal.Window
	err := json.Unmarshal([]byte(m.Get(windowField)), &w)
	if err == nil && k.dir != "" {
		_, err = journal.Declare(k.dir, w)
	}
	if err != nil {
		k.warn(fmt.Errorf("a maintenance window of %s is not recorded here: %w", m.From, err))
	}
}

// tell sends a window to the other Batuta nodes that are there, and returns
// their names.
func (k *windowKeeper) tell(w journal.Window) []model.NodeName {
	if k.send == nil {
		return nil
	}
	told := reachable(k.view())
	if len(told) == 0 {
		return nil
	}
	text, err := json.Marshal(w)
	if err == nil {
		err = k.send(model.Message{Type: windowMessage, Fields: []model.Field{{Name: windowField, Value: string(text)}}})
	}
	if err != nil {
		k.warn(fmt.Errorf("window %s is not told to the other nodes: %w", w.ID, err))
		return nil
	}
	return told
}

// tellAll sends what is not over.
func (k *windowKeeper) tellAll() {
	if k.dir == "" || k.send == nil {
		return
	}
	all, err := journal.Windows(k.dir)
	if err != nil {
		k.warn(err)
		return
	}
	for _, w := range all {
		if w.To.After(time.Now()) {
			k.tell(w)
		}
	}
}

var errNoJournal = errors.New("this daemon keeps no journal: start it with --state-dir")

// plan declares a window here and tells it.
func (k *windowKeeper) plan(ctx context.Context, self model.NodeName, r api.PlanRequest) (api.PlanAnswer, error) {
	if k.dir == "" {
		return api.PlanAnswer{}, errNoJournal
	}
	w := journal.Window{ID: journal.NewWindowID(), Declared: time.Now(), From: r.From, To: r.To, About: r.About, Reason: r.Reason, By: api.CallerOf(ctx).Login}
	if _, err := journal.Declare(k.dir, w); err != nil {
		return api.PlanAnswer{}, err
	}
	return k.answer(self, w), nil
}

// unplan cancels a window here and tells it.
func (k *windowKeeper) unplan(ctx context.Context, self model.NodeName, r api.CancelRequest) (api.PlanAnswer, error) {
	if k.dir == "" {
		return api.PlanAnswer{}, errNoJournal
	}
	w, _, err := journal.Revoke(k.dir, journal.Cancel{Window: r.Window, At: time.Now(), By: api.CallerOf(ctx).Login, Reason: r.Reason})
	if err != nil {
		return api.PlanAnswer{}, err
	}
	return k.answer(self, w), nil
}

func (k *windowKeeper) answer(self model.NodeName, w journal.Window) api.PlanAnswer {
	return api.PlanAnswer{Version: api.Version, Window: w, Late: w.Late(), Nodes: append([]model.NodeName{self}, k.tell(w)...)}
}

// Plan declares a maintenance window on all nodes.
func (n *clusterNode) Plan(ctx context.Context, r api.PlanRequest) (api.PlanAnswer, error) {
	return n.windows.plan(ctx, n.hb.Self, r)
}

// Unplan cancels one.
func (n *clusterNode) Unplan(ctx context.Context, r api.CancelRequest) (api.PlanAnswer, error) {
	return n.windows.unplan(ctx, n.hb.Self, r)
}

// Plan declares a maintenance window.
func (d *loneDirector) Plan(ctx context.Context, r api.PlanRequest) (api.PlanAnswer, error) {
	return d.windows.plan(ctx, d.node, r)
}

// Unplan cancels one.
func (d *loneDirector) Unplan(ctx context.Context, r api.CancelRequest) (api.PlanAnswer, error) {
	return d.windows.unplan(ctx, d.node, r)
}
