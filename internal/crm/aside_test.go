package crm

import (
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// A stop says so before it releases anything, and releases a moment later; the
// other node takes over before it says so. Words and work do not meet, and the
// words keep their order.
func TestWordsAndWorkDoNotMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one")
		p.start(p.a, p.b)
		p.take()
		p.b.agents["one"].takes = 10 * time.Millisecond // a slow one is told before it has ended
		for _, s := range []*site{p.a, p.b} {
			send := s.loop.send
			s.loop.send = func(m model.Message) error {
				p.note(s.name, "%s", m.Type)
				return send(m)
			}
		}
		if err := p.a.loop.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		var got []string
		for _, e := range p.log {
			got = append(got, e.at.String()+" "+string(e.node)+" "+e.text)
		}
		want := []string{"0s a resource", "2ms a stop one", "3ms a shutdone", "3ms b start one", "5ms b resource"}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
