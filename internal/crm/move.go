package crm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// How long the other node may take to begin with what it was asked for. It is
// silent when it refuses: the protocol has no word for that.
const beginPatience = 10 * time.Second

// mover waits for the end of a hand-over. The loop's goroutine alone uses it.
type mover struct {
	done  func() (ended bool, err error)
	ended chan error // receives once
}

// Standby hands a set of resources to the other node: all, local, foreign or
// failback, as hb_standby has it. It returns once the other node has them, or
// why it has not; with wait false once the offer is made.
func (l *Loop) Standby(ctx context.Context, word string, wait bool) error {
	s, err := pair.ParseStandby(word)
	if err != nil {
		return err
	}
	return l.move(ctx, pair.Standby{Set: s}, wait,
		func() error { return l.core.pair.CanStandby(s) },
		func() error {
			if kept := l.core.pair.Hold() & s; kept != pair.None {
				return fmt.Errorf("this node still holds %v", kept)
			}
			return nil
		}, func() bool { return true })
}

// Takeover gets a set of resources from the other node, as hb_takeover has it.
// It returns once they run here, or why they do not; with wait false once the
// other node is asked.
func (l *Loop) Takeover(ctx context.Context, word string, wait bool) error {
	s, err := pair.ParseTakeover(word)
	if err != nil {
		return err
	}
	var begun bool
	asked := time.Now()
	return l.move(ctx, pair.Takeover{Set: s}, wait,
		func() error { return l.core.pair.CanTakeover(s) },
		func() error {
			switch missing := s &^ l.core.pair.Hold(); {
			case missing == pair.None:
				return nil
			case !begun:
				return fmt.Errorf("node %s did not offer %v within %v; its log says why", l.core.cfg.Peer, missing, beginPatience)
			default:
				return fmt.Errorf("node %s still holds %v", l.core.cfg.Peer, missing)
			}
		},
		func() bool {
			begun = begun || !l.core.pair.Stable()
			return begun || s&^l.core.pair.Hold() == pair.None || time.Since(asked) >= beginPatience
		})
}

// move has the core take a wish if it may, and waits until both nodes have
// settled again. outcome then tells whether the wish has come true; begun,
// whether to look at all.
func (l *Loop) move(ctx context.Context, in pair.Input, wait bool, may, outcome func() error, begun func() bool) error {
	m := &mover{ended: make(chan error, 1)}
	m.done = func() (bool, error) {
		if !begun() || !l.core.pair.Stable() {
			return false, nil
		}
		err := outcome()
		if trouble := l.notice(model.Event{}); err != nil && trouble != "" {
			err = fmt.Errorf("%w: %s", err, trouble)
		}
		return true, err
	}
	err := l.wish(ctx, may, func() {
		l.mu.Lock()
		l.trouble = ""
		l.mu.Unlock()
		if wait {
			l.movers = append(l.movers, m)
		}
		l.step(in)
	})
	if err != nil || !wait {
		return err
	}
	return l.await(ctx, m)
}

// settleMovers tells those whose hand-over has ended.
func (l *Loop) settleMovers() {
	var left []*mover
	for _, m := range l.movers {
		if ended, err := m.done(); ended {
			m.ended <- err
		} else {
			left = append(left, m)
		}
	}
	l.movers = left
}

// notice keeps what may be the reason why a hand-over fails, and returns the
// last of it.
func (l *Loop) notice(e model.Event) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Level >= model.LevelWarning {
		l.trouble = e.Text
	}
	return l.trouble
}

// Alive returns once the loop has answered: it decides still. A watchdog asks.
func (l *Loop) Alive(ctx context.Context) error {
	return l.wish(ctx, func() error { return nil }, func() {})
}

// wish has the loop do something if it may.
func (l *Loop) wish(ctx context.Context, may func() error, do func()) error {
	answer := make(chan error, 1)
	call := func() {
		err := may()
		if err == nil {
			do()
		}
		answer <- err
	}
	select {
	case l.calls <- call:
		return <-answer
	case <-l.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ErrNotRunning is returned by wishes when Run has not begun or has ended.
var ErrNotRunning = errors.New("the resource manager is not running")
