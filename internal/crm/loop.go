package crm

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// job is one resource operation.
type job struct {
	op      int
	set     pair.Set
	release bool
	begin   context.Context // ends when the decisions have overtaken a start
	overrun context.CancelFunc
}

// errOvertaken ends a start that is no longer wanted.
var errOvertaken = errors.New("no longer wanted here")

// Run manages resources until ctx ends, and returns nil then; what runs, runs
// on. Cluster events wait until it is known what an earlier life left running.
func (l *Loop) Run(ctx context.Context, events <-chan model.ClusterEvent) error {
	defer close(l.ended)
	var workers sync.WaitGroup
	defer workers.Wait()
	work, cancel := context.WithCancel(ctx)
	defer cancel()

	finished := make(chan pair.Finished)
	found := make(chan pair.Set)
	workers.Go(func() {
		probe, cancel := context.WithTimeout(work, probeTimeout)
		defer cancel()
		set := l.probe(probe)
		select {
		case found <- set:
		case <-work.Done():
		}
	})
	var open <-chan model.ClusterEvent // events, once the probe has ended
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if l.running == nil && len(l.queue) > 0 {
			j := l.queue[0]
			l.queue, l.running = l.queue[1:], j
			workers.Go(func() {
				f := l.perform(work, j)
				select {
				case finished <- f:
				case <-work.Done():
				}
			})
		}
		if next := l.core.Next(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case set := <-found:
			l.step(pair.Found{Set: set})
			open, found = events, nil
			close(l.ready)
		case e, ok := <-open:
			if !ok {
				open = nil // the messenger has ended; so will we
				continue
			}
			l.step(pair.Cluster{ClusterEvent: e})
		case f := <-finished:
			l.running.overrun()
			l.running = nil
			l.step(f)
		case do := <-l.calls:
			do()
		case <-timer.C:
			l.step(pair.Tick{})
		}
	}
}

// step lets the core decide, and has it done.
func (l *Loop) step(in pair.Input) {
	for _, e := range l.core.Step(time.Now(), in) {
		switch e := e.(type) {
		case pair.Send:
			l.send(e.Message)
		case pair.Acquire:
			l.enqueue(&job{op: e.Op, set: e.Set})
		case pair.Release:
			l.enqueue(&job{op: e.Op, set: e.Set, release: true})
		case pair.Reannounce:
			if l.cfg.Reannounce != nil {
				l.cfg.Reannounce()
			}
		case pair.Say:
			l.cfg.Sink(e.Event)
		case pair.Stopped:
			l.left = e.Left
			close(l.gone)
		}
	}
	l.mu.Lock()
	l.other, l.stable = l.core.Other(), l.core.Stable()
	l.mu.Unlock()
}

// enqueue adds an operation. A release ends starts of the same set that have
// not come to their end.
func (l *Loop) enqueue(j *job) {
	var overrun context.CancelCauseFunc
	j.begin, overrun = context.WithCancelCause(context.Background())
	j.overrun = func() { overrun(errOvertaken) }
	if j.release {
		for _, other := range slices.Concat(l.queue, []*job{l.running}) {
			if other != nil && !other.release && other.set&j.set != pair.None {
				other.overrun()
			}
		}
	}
	l.queue = append(l.queue, j)
}

func (l *Loop) send(m model.Message) {
	err := l.cfg.Send(m)
	if err != nil && !l.failing {
		l.say(model.LevelError, "send-failed", m.Type, "message %s could not be sent: %v", m.Type, err)
	}
	l.failing = err != nil
}

// limit gives a start that has been overtaken a while to come to its end by
// itself: a script that is killed half way may leave more behind.
func limit(ctx context.Context, begin context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(begin, func() { time.AfterFunc(startGrace, func() { cancel(errOvertaken) }) })
	return ctx, func() { stop(); cancel(nil) }
}

// pause waits, and tells whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
