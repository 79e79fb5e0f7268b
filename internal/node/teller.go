package node

import (
	"context"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	// tellAfter is how long an event waits to be told. A hand-over takes two
	// milliseconds on both machines together; lines of logs, and the journal's
	// look at the whole node, would take as much again, at that very moment.
	tellAfter = 5 * time.Millisecond
	// maxUntold are the events that may wait. With more, who has one to tell
	// tells them all, at the pace of the logs.
	maxUntold = 1000
)

// teller gives events to logs and journal in their order, a moment later than
// they come, so that nobody who is in a hurry tells anything. What is critical
// is told at once, with all before it: the machine may be about to go. It is
// so while its task runs; before and after, events are told as they come.
type teller struct {
	ready chan struct{}

	telling sync.Mutex // held while sinks are called, so that the order holds
	mu      sync.Mutex
	runs    bool
	untold  []untold
}

// untold is an event that waits, and for whom.
type untold struct {
	model.Event
	to model.Sink
}

func newTeller() *teller { return &teller{ready: make(chan struct{})} }

// sink is one that has its events from the teller. The moment of an event that
// has none is that of the call.
func (t *teller) sink(to model.Sink) model.Sink {
	return func(e model.Event) { t.hear(untold{e, to}) }
}

func (t *teller) String() string         { return "logs" }
func (t *teller) Ready() <-chan struct{} { return t.ready }

// Run has events wait until ctx ends.
func (t *teller) Run(ctx context.Context) error {
	t.wait(true)
	close(t.ready)
	<-ctx.Done()
	t.wait(false)
	t.tell()
	return nil
}

func (t *teller) wait(wait bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.runs = wait
}

func (t *teller) hear(e untold) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	t.mu.Lock()
	t.untold = append(t.untold, e)
	n := len(t.untold)
	now := !t.runs || e.Level >= model.LevelCritical || n >= maxUntold
	if n == 1 && !now {
		time.AfterFunc(tellAfter, t.tell)
	}
	t.mu.Unlock()
	if now {
		t.tell()
	}
}

// tell tells what waits, and returns when it is told.
func (t *teller) tell() {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	list := t.untold
	t.untold = nil
	t.mu.Unlock()
	for _, e := range list {
		e.to(e.Event)
	}
}
