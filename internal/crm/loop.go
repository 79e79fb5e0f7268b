package crm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// Run manages resources until ctx ends, and returns nil then; what runs, runs
// on. Cluster events wait until it is known what an earlier life left running.
func (l *Loop) Run(ctx context.Context, events <-chan model.ClusterEvent) error {
	defer close(l.ended)
	var workers sync.WaitGroup
	defer workers.Wait()
	work, cancel := context.WithCancel(ctx)
	defer cancel()

	finished := make(chan pair.Finished)
	fenced := make(chan pair.Fenced)
	found := make(chan pair.Set)
	workers.Go(func() {
		probe, cancel := context.WithTimeout(work, probeTimeout)
		defer cancel()
		set := l.core.Probe(probe)
		select {
		case found <- set:
		case <-work.Done():
		}
	})
	var open <-chan model.ClusterEvent // events, once the probe has ended
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var turn <-chan time.Time
	if l.core.cfg.Decided != nil {
		every := time.NewTicker(DecidedEvery)
		defer every.Stop()
		turn = every.C
	}
	var held <-chan time.Time // words wait for it
	for {
		if turn != nil {
			l.core.cfg.Decided()
		}
		if l.core.Fence() {
			workers.Go(func() {
				f := l.fence(work)
				select {
				case fenced <- f:
				case <-work.Done():
				}
			})
		}
		if l.leaving != nil {
			l.rest()
		} else if j := l.core.Begin(); j != nil {
			after := time.Duration(0)
			switch {
			case !j.release:
				held = time.After(aside)
			case len(l.words) > 0:
				after = aside
			}
			workers.Go(func() {
				_ = clock{}.Pause(work, after) // ended: Perform sees it, too
				f := l.core.Perform(work, j)
				select {
				case finished <- f:
				case <-work.Done():
				}
			})
		}
		if held == nil {
			l.utter()
		}
		if next := l.core.Next(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			l.utter()
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
			if heard := l.core.cfg.Heard; heard != nil {
				heard(e)
			}
			l.step(pair.Cluster{ClusterEvent: e})
		case <-held:
			held = nil
		case f := <-finished:
			held = nil
			l.core.Finish(f)
			l.stepped()
		case f := <-fenced:
			l.step(f)
		case do := <-l.calls:
			do()
		case <-timer.C:
			l.step(pair.Tick{})
		case <-turn:
		}
	}
}

// aside is how far words and work that come of one decision are kept apart.
// What is said goes through two processes here and two there, and while it does
// an address would come later, or be gone for longer: a start is told when it
// has ended, or after that time; a release begins that much after its word.
const aside = 2 * time.Millisecond

// utter sends what is to be said.
func (l *Loop) utter() {
	for _, m := range l.words {
		l.core.sent(m, l.send(m))
	}
	l.words = nil
}

// fence resets the other node. It runs beside the loop and beside resource
// operations, which concern this node only.
func (l *Loop) fence(ctx context.Context) pair.Fenced {
	if err := l.core.cfg.Fence(ctx, l.core.cfg.Peer); err != nil {
		return pair.Fenced{Failure: err.Error()}
	}
	return pair.Fenced{}
}

// rest tells who waits to leave that nothing is under way.
func (l *Loop) rest() {
	if l.core.running != nil {
		return
	}
	select {
	case <-l.leaving:
	default:
		close(l.leaving)
	}
}

// step lets the core take an input.
func (l *Loop) step(in pair.Input) {
	l.core.Step(in)
	l.stepped()
}

// stepped wakes who waits for the end of a hand-over or of a stop.
func (l *Loop) stepped() {
	l.settleMovers()
	if _, ended := l.core.Stopped(); ended {
		select {
		case <-l.gone:
		default:
			close(l.gone)
		}
	}
}

// await returns the outcome of a hand-over. The other node's silence ends no
// step of the loop, so that it has to be looked for.
func (l *Loop) await(ctx context.Context, m *mover) error {
	look := time.NewTimer(beginPatience)
	defer look.Stop()
	for {
		select {
		case err := <-m.ended:
			return err
		case <-look.C:
			if err := l.wish(ctx, func() error { return nil }, l.settleMovers); err != nil {
				return err
			}
		case <-l.ended:
			return ErrNotRunning
		case <-ctx.Done():
			return fmt.Errorf("no longer waiting: %w; the hand-over goes on", context.Cause(ctx))
		}
	}
}

// clock is the Hand of real time.
type clock struct{}

func (clock) Now() time.Time { return time.Now() }

func (clock) Limit(ctx, begin context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(begin, func() { time.AfterFunc(StartGrace, func() { cancel(errOvertaken) }) })
	return ctx, func() { stop(); cancel(nil) }
}

func (clock) Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
