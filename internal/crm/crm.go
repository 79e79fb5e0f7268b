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
	"errors"
	"fmt"
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
}

// New checks the resources and finds their agents. All errors are returned at once.
func New(cfg Config) (*Loop, error) {
	core, err := NewCore(cfg, clock{})
	return &Loop{core: core, ready: make(chan struct{}), calls: make(chan func()), ended: make(chan struct{}), gone: make(chan struct{})}, err
}

// String names the task.
func (l *Loop) String() string { return "resources " + string(l.core.cfg.Self) }

// Ready is closed once the loop takes part in the cluster's decisions.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

// Stable tells whether both nodes agree and nothing is under way.
func (l *Loop) Stable() bool { return l.core.Stable() }

// Resources shows every resource in file order, as far as this node knows.
func (l *Loop) Resources() []model.ResourceView { return l.core.Resources() }

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
	return l.wish(ctx, func() error { return l.core.pair.CanStandby(s) }, pair.Standby{Set: s})
}

// Takeover asks the other node for a set of resources, as hb_takeover has it.
// It returns once the request is made, or why it cannot be made.
func (l *Loop) Takeover(ctx context.Context, word string) error {
	s, err := pair.ParseTakeover(word)
	if err != nil {
		return err
	}
	return l.wish(ctx, func() error { return l.core.pair.CanTakeover(s) }, pair.Takeover{Set: s})
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
	if left, _ := l.core.Stopped(); left != pair.None {
		return fmt.Errorf("resources of the %v set could not be stopped and still run here; stop them by hand", left)
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
