package crm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A dead node is reset before its resources are taken over; a device that
// fails is tried again, and the loop goes on meanwhile.
func TestNothingIsTakenBeforeTheReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		tries := 0
		core, err := NewCore(func() Config {
			cfg := p.a.loop.core.cfg
			cfg.Fence = func(_ context.Context, n model.NodeName) error {
				p.note("a", "reset %s", n)
				time.Sleep(time.Second)
				if tries++; tries < 3 {
					return errors.New("the switch is silent")
				}
				return nil
			}
			return cfg
		}(), clock{})
		if err != nil {
			t.Fatal(err)
		}
		p.a.loop.core = core
		p.start(p.a, p.b)
		p.take()
		p.b.cancel()
		synctest.Wait()
		p.a.tell(model.NodeDied, model.Message{})
		time.Sleep(9 * time.Second)
		p.happened(
			"  0.0 a: Resetting node b before its resources are taken over", "  0.0 a: reset b",
			"  1.0 a: the switch is silent; nothing is taken over from b, trying again in 5s",
			"  6.0 a: reset b",
			"  7.0 a: the switch is silent; nothing is taken over from b, trying again in 5s")
		if err := p.a.loop.Alive(t.Context()); err != nil {
			t.Error(err)
		}
		if got := p.a.loop.Holding(); got != "transition" {
			t.Errorf("a holds %s", got)
		}
		time.Sleep(10 * time.Second)
		p.happened("  2.9 a: reset b", "  3.9 a: start two")
	})
}

// A node that is to begin a new life ends what is under way, begins nothing
// more, and stops only what is no longer configured.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one two", "a three", "b four")
		p.a.agents["two"].takes = 5 * time.Second
		p.start(p.a, p.b)
		began := time.Now()
		if err := p.a.loop.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 5*time.Second {
			t.Errorf("left after %v, in the middle of a start", took)
		}
		p.a.tell(model.NodeDied, model.Message{}) // too late to act upon
		synctest.Wait()
		p.a.cancel()
		synctest.Wait()
		p.take()
		if err := p.a.loop.Drop(t.Context(), haresources("a one", "a five", "b four")); err != nil {
			t.Fatal(err)
		}
		p.happened("  0.0 a: stop three", "  0.0 a: stop two")
	})
}
