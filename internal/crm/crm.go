// Package crm is the resource manager of a two-node cluster: the loop that
// turns facts of the cluster into running resources. Cluster events and the
// operator's wishes come in; messages to the other node, calls of resource
// agents and events go out. It decides nothing itself: package pair does. Core
// has no goroutine, clock or timer, so that simulations drive it too; Loop
// gives it those.
//
// Resources are started and stopped off the loop, one operation at a time in
// the order of the decisions, so that a slow script never delays an answer.
package crm

import (
	"context"
	"fmt"
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
	Ipfail     time.Duration // wait before the node that sees fewer ping nodes gives up; 0: it keeps what it has

	// Agents finds the agent of a resource. It is called once for each, by New.
	Agents func(model.Resource) (agent.Agent, error)
	// Fence has a node's machine reset, and returns nil once that is confirmed.
	// It may take its time. nil: nothing is fenced before it is taken over.
	Fence func(context.Context, model.NodeName) error
	// Send gives a message to all nodes. It does not block.
	Send func(model.Message) error
	// Reannounce tells the network again where the held addresses are; may be nil.
	Reannounce func()
	// Heard is told each cluster event before it is acted on. It does not
	// block; may be nil.
	Heard func(model.ClusterEvent)
	Sink  model.Sink // may be nil
	// Decided is called by the loop at each turn, and at least every
	// DecidedEvery: it runs. May be nil.
	Decided func()
}

// DecidedEvery is the longest time between two turns of a loop that is well.
const DecidedEvery = 100 * time.Millisecond

const (
	// A stop that fails is repeated this often, as Heartbeat does by default.
	stopRetries = 10
	// Between two attempts to stop.
	stopPause = time.Second
	// StartGrace is how long a start that the decisions have overtaken may go
	// on to finish.
	StartGrace = 10 * time.Second
	// How long may be looked at start for what an earlier life left running.
	probeTimeout = 20 * time.Second
)

// Loop is the resource manager. Make it with New, then call Run once.
type Loop struct {
	core *Core // the loop's goroutine alone, but for what shows state

	ready chan struct{}
	calls chan func() // run on the loop's goroutine
	ended chan struct{}
	gone  chan struct{} // closed when a stop has ended

	send  func(model.Message) error
	words []model.Message // the loop's goroutine alone: not sent yet; see aside

	movers  []*mover      // the loop's goroutine alone
	leaving chan struct{} // the same; not nil: nothing new is begun, closed when nothing is under way

	mu      sync.Mutex
	trouble string // the last warning since a hand-over began
}

// New checks the resources and finds their agents. All errors are returned at once.
func New(cfg Config) (*Loop, error) {
	l := &Loop{ready: make(chan struct{}), calls: make(chan func()), ended: make(chan struct{}), gone: make(chan struct{})}
	said := cfg.Sink
	cfg.Sink = func(e model.Event) {
		l.notice(e)
		if said != nil {
			said(e)
		}
	}
	l.send = cfg.Send
	cfg.Send = func(m model.Message) error { l.words = append(l.words, m); return nil }
	var err error
	l.core, err = NewCore(cfg, clock{})
	return l, err
}

// String names the task.
func (l *Loop) String() string { return "resources " + string(l.core.cfg.Self) }

// Ready is closed once the loop takes part in the cluster's decisions.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

// Stable tells whether both nodes agree and nothing is under way.
func (l *Loop) Stable() bool { return l.core.Stable() }

// Holding is what this node holds: none, local, foreign, all, or transition
// while something is under way or not agreed upon.
func (l *Loop) Holding() string { return l.core.Holding() }

// Resources shows every resource in file order, as far as this node knows.
func (l *Loop) Resources() []model.ResourceView { return l.core.Resources() }

// Leave lets the operation that is under way come to its end and begins no
// other: this life of the node is over, and what runs is left to the next one.
// It returns when nothing is under way.
func (l *Loop) Leave(ctx context.Context) error {
	idle := make(chan struct{})
	if err := l.wish(ctx, func() error { return nil }, func() {
		if l.leaving == nil {
			l.leaving = idle
		}
		idle = l.leaving
	}); err != nil {
		return err
	}
	select {
	case <-idle:
		return nil
	case <-l.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return fmt.Errorf("resources are still being started or stopped: %w", context.Cause(ctx))
	}
}

// Drop stops what runs here of the resources that groups no longer name. Only
// after Run has ended may it be called.
func (l *Loop) Drop(ctx context.Context, groups []model.ResourceGroup) error {
	return l.core.drop(ctx, groups)
}

// Stop hands all resources to the other node. It returns when everything is
// released and the other node knows; the messenger should live on for a second
// or two, so that the other can ask again for what it missed.
func (l *Loop) Stop(ctx context.Context) error {
	if err := l.wish(ctx, func() error { return nil }, func() { l.step(pair.Stop{}) }); err != nil {
		return err
	}
	select {
	case <-l.gone:
	case <-l.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return fmt.Errorf("resources are still being stopped: %w", context.Cause(ctx))
	}
	if left, _ := l.core.Stopped(); left != pair.None {
		return fmt.Errorf("resources of the %v set could not be stopped and still run here; stop them by hand", left)
	}
	return nil
}
