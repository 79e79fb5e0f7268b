package crm

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// bound is how long the decisions may stand still, as the beat process has it.
const bound = time.Second

// watcher counts decisions and tells, like the beat process, when beats stop.
type watcher struct {
	decisions atomic.Uint64
	seen      uint64
	moved     time.Time
}

// beats waits, looking every 10 ms, and tells for how much of the time beats went out.
func (w *watcher) beats(wait time.Duration) (sent time.Duration) {
	for range wait / (10 * time.Millisecond) {
		time.Sleep(10 * time.Millisecond)
		if n := w.decisions.Load(); n != w.seen {
			w.seen, w.moved = n, time.Now()
		}
		if time.Since(w.moved) <= bound {
			sent += 10 * time.Millisecond
		}
	}
	return sent
}

// Beats go out as long as the loop decides, whatever its scripts and its
// fencing device do; they end when the loop itself hangs, and go on with it.
func TestBeatsEndWithTheDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		var w watcher
		var sends atomic.Pointer[chan struct{}] // what the next message waits for
		cfg := p.a.loop.core.cfg
		send := cfg.Send
		cfg.Send = func(m model.Message) error {
			if c := sends.Load(); c != nil {
				<-*c
			}
			return send(m)
		}
		cfg.Decided = func() { w.decisions.Add(1) }
		cfg.Fence = func(ctx context.Context, _ model.NodeName) error {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(time.Minute):
				return errors.New("the switch is silent")
			}
		}
		core, err := NewCore(cfg, clock{})
		if err != nil {
			t.Fatal(err)
		}
		p.a.loop.core = core
		p.a.agents["one"].takes = 20 * time.Second
		p.start(p.a, p.b)
		expect := func(what string, wait, want time.Duration) {
			t.Helper()
			// The count is looked at every 10 ms, and the last decision may be DecidedEvery old.
			if got := w.beats(wait); got > want+10*time.Millisecond || got < want-DecidedEvery-10*time.Millisecond {
				t.Errorf("%s: beats for %v of %v, want %v", what, got, wait, want)
			}
		}
		expect("a script takes 20 s", 10*time.Second, 10*time.Second)
		expect("nothing happens", time.Minute, time.Minute)
		p.b.cancel()
		p.a.tell(model.NodeDied, model.Message{})
		expect("the device takes a minute", 30*time.Second, 30*time.Second)

		stuck := make(chan struct{})
		sends.Store(&stuck)
		p.a.tell(model.NodeJoined, model.Message{})
		p.a.tell(model.MessageReceived, model.Message{Type: "starting", From: "b"})
		expect("the loop hangs", 10*time.Second, bound)
		expect("and still does", 10*time.Second, 0)
		sends.Store(nil)
		close(stuck)
		expect("the loop goes on", 10*time.Second, 10*time.Second)
	})
}
