package pair

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// A Heartbeat in legacy mode asks once for its groups, starts them on the
// answer and has no timeout. What it asked a life of ours that ended, or ends,
// before it could answer is answered all the same.
func TestLegacyRequestThatWasLost(t *testing.T) {
	now := time.Unix(1795359877, 0)
	peer := model.NodeActive
	var c *Core
	var got []string
	var step func(Input)
	step = func(in Input) {
		for _, e := range c.Step(now, in) {
			switch e := e.(type) {
			case Send:
				if e.Type != "ip-request" {
					got = append(got, e.String())
				}
			case Acquire:
				got = append(got, e.String())
				step(Finished{Op: e.Op})
			case Release:
				got = append(got, e.String())
			case Stopped:
				got = append(got, e.String())
			case Fence, Reannounce, Say:
			}
		}
	}
	event := func(kind model.ClusterEventKind, fields ...model.Field) {
		m := model.Message{From: "a", Fields: fields}
		if len(fields) > 0 {
			m.Type = map[string]string{"st": "status", "ipaddr": "ip-request"}[fields[0].Name]
		}
		step(Cluster{model.ClusterEvent{Kind: kind, Node: "a", Message: m,
			View: model.View{Self: "b", Nodes: []model.NodeView{{Name: "a", State: peer}, {Name: "b", State: model.NodeActive}}}}})
	}
	asks := func(key string) { event(model.MessageReceived, model.Field{Name: "ipaddr", Value: key}) }
	life := func(found Set) {
		c = New(Config{Self: "b", Peer: "a", Legacy: true, ForeignGroups: []string{"10.0.0.1", "web"}})
		step(Found{found})
	}
	expect := func(story string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", story, diff)
		}
		got = nil
	}
	answer := func(key, held string) string {
		return "b: ip-request-resp ipaddr=" + key + " weown=" + held + " ok=OK -> a"
	}

	life(None)
	asks("10.0.0.1") // before communication is up
	event(model.CommunicationUp)
	expect("up again with nothing", "send "+answer("10.0.0.1", "no"), "send "+answer("web", "no"), "acquire local (1)")

	life(Foreign)
	event(model.CommunicationUp)
	expect("up again with what is a's", "release foreign (1)", "acquire local (2)")
	asks("web")
	expect("and it still runs")
	step(Finished{Op: 1})
	expect("and is stopped", "send "+answer("10.0.0.1", "yes"), "send "+answer("web", "yes"))

	life(Foreign)
	event(model.CommunicationUp)
	got = nil
	step(Finished{Op: 1, Failed: Foreign})
	event(model.MessageReceived, model.Field{Name: "st", Value: "active"})
	expect("and it does not stop: a must not start it")

	peer = model.NodeUp
	life(None)
	event(model.CommunicationUp)
	expect("a is not active yet: it asks, or takes all", "acquire local (1)")
	peer = model.NodeActive
	event(model.MessageReceived, model.Field{Name: "st", Value: "active"})
	expect("and now it is", "send "+answer("10.0.0.1", "no"), "send "+answer("web", "no"))

	step(Stop{})
	asks("web")
	expect("asked while it stops", "release all (2)")
	step(Finished{Op: 2})
	expect("when all has stopped", "send "+answer("web", "yes"), "send b: shutdone st=dead", "stopped, left none")
}
