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

// crew runs tasks that are all essential: when one ends by itself, the whole
// daemon has to end, in good order. It ends nothing by itself, so that
// resources are released by parts that still work.
type crew struct {
	ctx    context.Context // of no task's end
	failed chan struct{}   // closed at the first failure
	once   sync.Once
	mu     sync.Mutex
	errs   []error
	stops  []func() // in the order of starts
}

// newCrew makes a crew. Its tasks keep ctx's values, not its end.
func newCrew(ctx context.Context) *crew {
	return &crew{ctx: context.WithoutCancel(ctx), failed: make(chan struct{})}
}

// errEnded is the reason when a task returned without being asked to.
var errEnded = errors.New("ended by itself")

// start runs a task.
func (c *crew) start(t Task) {
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := t.Run(ctx)
		if ctx.Err() == nil && err == nil {
			err = errEnded
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			c.fail(fmt.Errorf("%s: %w", t, err))
		}
	}()
	c.stops = append(c.stops, func() { cancel(); <-done })
}

// fail notes what went wrong.
func (c *crew) fail(err error) {
	c.mu.Lock()
	c.errs = append(c.errs, err)
	c.mu.Unlock()
	c.once.Do(func() { close(c.failed) })
}

// stopLast ends the task that was started last, and returns when it has.
func (c *crew) stopLast() {
	last := len(c.stops) - 1
	c.stops[last]()
	c.stops = c.stops[:last]
}

// stop ends all tasks that still run, last first, and returns what went wrong.
func (c *crew) stop() error {
	for len(c.stops) > 0 {
		c.stopLast()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.errs...)
}
