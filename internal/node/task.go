package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Task is one part of a running daemon.
type Task interface {
	// Run works until ctx ends, then cleans up and returns nil; it returns
	// early only when it cannot go on.
	Run(ctx context.Context) error
	// Ready is closed once the task does what it is there for.
	Ready() <-chan struct{}
	// String names the task in messages.
	String() string
}

// crew runs tasks together: when one ends, all end, because each is
// essential to what the daemon promises.
type crew struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	errs   []error
}

// newCrew makes a crew whose tasks end when ctx does.
func newCrew(ctx context.Context) *crew {
	ctx, cancel := context.WithCancelCause(ctx)
	return &crew{ctx: ctx, cancel: cancel}
}

// errEnded is the cause when a task returned without being asked to.
var errEnded = errors.New("ended by itself")

// start runs the task and gives back what ends this one task alone and waits
// for it, for an orderly stop.
func (c *crew) start(t Task) (stop func()) {
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan struct{})
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		defer close(done)
		err := t.Run(ctx)
		if ctx.Err() == nil && err == nil {
			err = errEnded
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			c.fail(fmt.Errorf("%s: %w", t, err))
		}
	}()
	return func() { cancel(); <-done }
}

// fail notes what went wrong and ends all tasks.
func (c *crew) fail(err error) {
	c.mu.Lock()
	c.errs = append(c.errs, err)
	c.mu.Unlock()
	c.cancel(err)
}

// wait ends all that still runs, waits, and returns what went wrong.
func (c *crew) wait() error {
	c.cancel(nil)
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.errs...)
}
