package crm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Heartbeat's hb_standby returns 0 whatever becomes of it. Here the answer
// comes when the hand-over has ended, and says how.
func TestAHandOverTellsTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.a, p.b)
		p.take()

		// Well: it returns when the other node has what it was given.
		p.b.agents["one"].takes = 3 * time.Second
		began := time.Now()
		if err := p.a.loop.Standby(t.Context(), "local", true); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 3*time.Second || !p.b.agents["one"].running {
			t.Errorf("it returned after %v, and one runs on b: %v", took, p.b.agents["one"].running)
		}
		synctest.Wait()
		if got := p.a.loop.Holding() + " " + p.b.loop.Holding(); got != "none all" {
			t.Errorf("a and b hold %s", got)
		}

		// Back again, from the other side.
		if err := p.a.loop.Takeover(t.Context(), "local", true); err != nil {
			t.Fatal(err)
		}
		if !p.a.agents["one"].running {
			t.Error("one does not run on a although takeover said so")
		}

		// A resource that cannot be stopped stays, and the answer says which.
		p.a.agents["one"].stop = errors.New("one: busy")
		err := p.a.loop.Standby(t.Context(), "local", true)
		if err == nil || !strings.HasPrefix(err.Error(), "this node still holds local: resources of the local set could not be stopped") {
			t.Errorf("got %v", err)
		}
		if got := p.a.loop.Holding(); got != "local" {
			t.Errorf("a holds %s", got)
		}
	})
}

// The other node may refuse by silence, as Heartbeat does: the protocol has no
// word for it. Then there is an answer all the same.
func TestTheOtherNodeIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.a, p.b)
		p.take()
		p.deaf = true
		began := time.Now()
		err := p.a.loop.Takeover(t.Context(), "foreign", true)
		if want := "node b did not offer foreign within 10s; its log says why"; err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
		if took := time.Since(began); took != beginPatience {
			t.Errorf("the answer took %v", took)
		}
		err = p.a.loop.Standby(t.Context(), "local", true)
		if want := "this node still holds local: b did not go on with the hand-over of [local] in time"; err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
		if !p.a.agents["one"].running {
			t.Error("one was stopped although nobody took it")
		}
	})
}

// Who no longer wants to wait need not, and the hand-over goes on.
func TestNotWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.a, p.b)
		p.take()
		p.b.agents["one"].takes = time.Minute
		if err := p.a.loop.Standby(t.Context(), "local", false); err != nil {
			t.Fatal(err)
		}
		if got := p.a.loop.Holding(); got != "transition" {
			t.Errorf("a holds %s", got)
		}
		err := p.a.loop.Standby(t.Context(), "local", false)
		if err == nil {
			t.Error("a second hand-over was begun during the first")
		}
		time.Sleep(time.Minute + time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p.a.agents["one"].takes = time.Hour
		err = p.a.loop.Takeover(ctx, "local", true)
		if err == nil || !strings.Contains(err.Error(), "no longer waiting") {
			t.Errorf("got %v", err)
		}
	})
}
