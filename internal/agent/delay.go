package agent

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// delay is a resource that only takes its time: what stands behind it in its
// group starts later.
type delay struct {
	res         model.Resource
	start, stop time.Duration

	mu   sync.Mutex
	runs bool
}

// Delay returns the agent of Delay::START[::STOP]: seconds, 30 where none are
// given, as Heartbeat's script has it. Its status takes no time.
func Delay(r model.Resource) (Agent, error) {
	d := &delay{res: r, start: 30 * time.Second}
	for i, where := range []*time.Duration{&d.start, &d.stop} {
		if i < len(r.Args) {
			n, err := strconv.ParseFloat(r.Args[i], 64)
			if err != nil || n < 0 || n > 86400 {
				return nil, fmt.Errorf("resource %s: %q is no number of seconds up to 86400; write Delay::START or Delay::START::STOP", r.Text, r.Args[i])
			}
			*where = time.Duration(n * float64(time.Second))
		}
		if i == 0 {
			d.stop = d.start
		}
	}
	return d, nil
}

// Start waits unless it has started before.
func (d *delay) Start(ctx context.Context) error { return d.take(ctx, d.start, true) }

// Stop waits if it has started.
func (d *delay) Stop(ctx context.Context) error { return d.take(ctx, d.stop, false) }

func (d *delay) take(ctx context.Context, long time.Duration, runs bool) error {
	if s, _ := d.Status(ctx); (s == model.ResourceRunning) == runs {
		return nil
	}
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return fmt.Errorf("resource %s: %w", d.res.Text, context.Cause(ctx))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.runs = runs
	return nil
}

// Status tells whether it has started.
func (d *delay) Status(context.Context) (model.ResourceState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runs {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}
