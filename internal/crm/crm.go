// Package crm is the resource manager of a two-node cluster: the loop that
// turns facts of the cluster into running resources. Cluster events and the
// operator's wishes come in; messages to the other node, calls of resource
// agents and events go out. It decides nothing itself: package pair does.
//
// Resources are started and stopped off the loop, one operation at a time in
// the order of the decisions, so that a slow script never delays an answer.
package crm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// Config is what a Loop needs.
type Config struct {
	Self, Peer model.NodeName   // Peer "" for a cluster of one
	Nodes      []model.NodeName // as ha.cf lists them: the first wins a tie after a split
	Groups     []model.ResourceGroup
	Failback   model.FailbackMode

	// Agents finds the agent of a resource. It is called once for each, by New.
	Agents func(model.Resource) (agent.Agent, error)
	// Send gives a message to all nodes. It does not block.
	Send func(model.Message) error
	// Reannounce tells the network again where the held addresses are; may be nil.
	Reannounce func()
	Sink       model.Sink // may be nil
}

const (
	// A stop that fails is repeated this often, as Heartbeat does by default.
	stopRetries = 10
	// Between two attempts to stop.
	stopPause = time.Second
	// A start that the decisions have overtaken may finish for this long.
	startGrace = 10 * time.Second
	// How long may be looked at start for what an earlier life left running.
	probeTimeout = 20 * time.Second
)

// Loop is the resource manager. Make it with New, then call Run once.
type Loop struct {
	cfg    Config
	groups []*group

	ready chan struct{}
	calls chan func() // run on the loop's goroutine
	ended chan struct{}
	gone  chan struct{} // closed when a stop has ended

	// The loop's goroutine alone.
	core    *pair.Core
	queue   []*job
	running *job
	failing bool // the last message could not be sent
	left    pair.Set

	mu     sync.Mutex // guards what status shows
	other  pair.Set   // what the other node claims, in this node's terms
	stable bool
}

// group is one line of haresources.
type group struct {
	model.ResourceGroup
	set     pair.Set
	members []*member // in start order
}

// member is one resource of a group. Members of several groups may share a unit.
type member struct {
	model.Resource
	unit  *unit
	state model.ResourceState // guarded by Loop.mu
	err   error               // guarded by Loop.mu
}

// unit is what an agent controls: a director that two groups name is one unit.
type unit struct {
	agent agent.Agent
	users map[*group]bool // groups that have it started
}

// New checks the resources and finds their agents. All errors are returned at once.
func New(cfg Config) (*Loop, error) {
	l := &Loop{cfg: cfg, ready: make(chan struct{}), calls: make(chan func()), ended: make(chan struct{}), gone: make(chan struct{})}
	if cfg.Sink == nil {
		l.cfg.Sink = func(model.Event) {}
	}
	pc := pair.Config{Self: cfg.Self, Peer: cfg.Peer, Failback: cfg.Failback == model.FailbackOn,
		First: cfg.Peer == "" || slices.Index(cfg.Nodes, cfg.Self) < slices.Index(cfg.Nodes, cfg.Peer)}
	units := map[string]*unit{}
	var errs []error
	for _, g := range cfg.Groups {
		added := &group{ResourceGroup: g, set: pair.Foreign}
		if g.Owner == cfg.Self {
			added.set = pair.Local
			pc.LocalResources += len(g.Resources)
		} else {
			pc.ForeignResources += len(g.Resources)
		}
		for _, r := range startOrder(g.Resources) {
			u := units[unitKey(r)]
			if u == nil {
				a, err := cfg.Agents(r)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				u = &unit{agent: a, users: map[*group]bool{}}
				units[unitKey(r)] = u
			}
			added.members = append(added.members, &member{Resource: r, unit: u})
		}
		l.groups = append(l.groups, added)
	}
	l.core = pair.New(pc)
	return l, errors.Join(errs...)
}

// unitKey is the same for resources that are one thing.
func unitKey(r model.Resource) string {
	if agent.KindOf(r) == agent.KindDirector && len(r.Args) == 0 {
		return r.Agent + "::ldirectord.cf"
	}
	return r.Text
}

// startOrder is the order in which a group starts; it stops in reverse. The
// written order holds, except for groups wholly of built-in resources: there
// the director comes first, so that it knows every connection before the first
// packet arrives, and the first address, which clients use, comes last.
func startOrder(rs []model.Resource) []model.Resource {
	var directors, addresses []model.Resource
	for _, r := range rs {
		switch agent.KindOf(r) {
		case agent.KindDirector:
			directors = append(directors, r)
		case agent.KindAddress:
			addresses = append(addresses, r)
		default:
			return slices.Clone(rs)
		}
	}
	if len(addresses) > 0 {
		addresses = append(addresses[1:], addresses[0])
	}
	return append(directors, addresses...)
}

// String names the task.
func (l *Loop) String() string { return "resources " + string(l.cfg.Self) }

// Ready is closed once the loop takes part in the cluster's decisions.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

// Stable tells whether both nodes agree and nothing is under way.
func (l *Loop) Stable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stable
}

// Resources shows every resource in file order, as far as this node knows.
func (l *Loop) Resources() []model.ResourceView {
	l.mu.Lock()
	defer l.mu.Unlock()
	views := []model.ResourceView{}
	for _, g := range l.groups {
		for _, r := range g.Resources {
			i := slices.IndexFunc(g.members, func(m *member) bool { return m.Text == r.Text })
			m := g.members[i]
			v := model.ResourceView{Name: m.Text, Group: g.Key(), Owner: g.Owner, State: m.state, Here: m.state}
			switch {
			case m.state == model.ResourceRunning || m.state == model.ResourceStopping:
				v.Node = l.cfg.Self
			case l.other&g.set != pair.None:
				v.Node, v.State = l.cfg.Peer, model.ResourceRunning
			}
			if m.err != nil {
				v.Error = m.err.Error()
			}
			views = append(views, v)
		}
	}
	return views
}

// ErrNotRunning is returned by wishes when Run has not begun or has ended.
var ErrNotRunning = errors.New("the resource manager is not running")

// Standby hands a set of resources to the other node: all, local, foreign or
// failback, as hb_standby has it. It returns once the offer is made, or why it
// cannot be made.
func (l *Loop) Standby(ctx context.Context, word string) error {
	s, err := pair.ParseStandby(word)
	if err != nil {
		return err
	}
	return l.wish(ctx, func() error { return l.core.CanStandby(s) }, pair.Standby{Set: s})
}

// Takeover asks the other node for a set of resources, as hb_takeover has it.
// It returns once the request is made, or why it cannot be made.
func (l *Loop) Takeover(ctx context.Context, word string) error {
	s, err := pair.ParseTakeover(word)
	if err != nil {
		return err
	}
	return l.wish(ctx, func() error { return l.core.CanTakeover(s) }, pair.Takeover{Set: s})
}

// Stop hands all resources to the other node. It returns when everything is
// released and the other node knows; the messenger should live on for a second
// or two, so that the other can ask again for what it missed.
func (l *Loop) Stop(ctx context.Context) error {
	if err := l.wish(ctx, func() error { return nil }, pair.Stop{}); err != nil {
		return err
	}
	select {
	case <-l.gone:
	case <-l.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return fmt.Errorf("resources are still being stopped: %w", context.Cause(ctx))
	}
	if l.left != pair.None {
		return fmt.Errorf("resources of the %v set could not be stopped and still run here; stop them by hand", l.left)
	}
	return nil
}

// wish has the core take an input if it may.
func (l *Loop) wish(ctx context.Context, may func() error, in pair.Input) error {
	answer := make(chan error, 1)
	do := func() {
		err := may()
		if err == nil {
			l.step(in)
		}
		answer <- err
	}
	select {
	case l.calls <- do:
		return <-answer
	case <-l.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Loop) say(level model.Level, kind, subject, format string, args ...any) {
	l.cfg.Sink(model.Event{At: time.Now(), Level: level, Source: "resources", Kind: kind, Subject: subject, Text: fmt.Sprintf(format, args...)})
}
