package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
)

// pairOfKeepers are those of two nodes that hear each other while linked.
type pairOfKeepers struct {
	t      *testing.T
	a, b   *windowKeeper
	linked bool
}

func newPairOfKeepers(t *testing.T) *pairOfKeepers {
	p := &pairOfKeepers{t: t, linked: true}
	sink := func(e model.Event) { t.Errorf("%s", e) }
	p.a, p.b = newWindowKeeper(t.TempDir(), sink), newWindowKeeper(t.TempDir(), sink)
	for self, other := range map[*windowKeeper]*windowKeeper{p.a: p.b, p.b: p.a} {
		self.view = func() model.View {
			v := model.View{Self: "lvs01", Nodes: []model.NodeView{{Name: "lvs01", State: model.NodeActive, Batuta: true}}}
			if p.linked {
				v.Nodes = append(v.Nodes, model.NodeView{Name: "lvs02", State: model.NodeActive, Batuta: true})
			}
			return v
		}
		self.send = func(m model.Message) error {
			if p.linked {
				other.hear(model.ClusterEvent{Kind: model.MessageReceived, Message: m, View: other.view()})
			}
			return nil
		}
	}
	return p
}

// settle has both do what they have heard.
func (p *pairOfKeepers) settle() {
	for _, k := range []*windowKeeper{p.a, p.b} {
		for len(k.heard) > 0 {
			switch e := <-k.heard; e.Kind {
			case model.NodeJoined:
				k.tellAll()
			default:
				k.adopt(e.Message)
			}
		}
	}
}

// same tells what both nodes know, which must be the same.
func (p *pairOfKeepers) same() (known []string) {
	p.t.Helper()
	var each [2][]string
	for i, k := range []*windowKeeper{p.a, p.b} {
		list, err := journal.Windows(k.dir)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, w := range list {
			text := w.Reason
			if w.Canceled != nil {
				text += ", canceled: " + w.Canceled.Reason
			}
			each[i] = append(each[i], text)
		}
	}
	if d := cmp.Diff(each[0], each[1]); d != "" {
		p.t.Errorf("the nodes know different windows: -one +other\n%s", d)
	}
	return each[0]
}

// Both nodes know a window, also the one that was away.
func TestWindowsAreKnownToBothNodes(t *testing.T) {
	p := newPairOfKeepers(t)
	begin := time.Now().Add(time.Hour)
	plan := func(k *windowKeeper, reason string) api.PlanAnswer {
		begin = begin.Add(time.Hour)
		a, err := k.plan(context.Background(), "lvs01", api.PlanRequest{From: begin, To: begin.Add(time.Minute), Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		p.settle()
		return a
	}
	first := plan(p.a, "new cables")
	if d := cmp.Diff([]model.NodeName{"lvs01", "lvs02"}, first.Nodes); d != "" {
		t.Errorf("told: %s", d)
	}
	p.linked = false
	second := plan(p.a, "while the other was away")
	if d := cmp.Diff([]model.NodeName{"lvs01"}, second.Nodes); d != "" {
		t.Errorf("told: %s", d)
	}
	if _, err := p.b.unplan(context.Background(), "lvs02", api.CancelRequest{Window: first.Window.ID, Reason: "the cables did not come"}); err != nil {
		t.Fatal(err)
	}
	p.linked = true
	for _, k := range []*windowKeeper{p.a, p.b} {
		k.reached = nil
		k.hear(model.ClusterEvent{Kind: model.NodeJoined, Node: "lvs02", View: k.view()})
	}
	p.settle()
	p.settle()
	want := []string{"new cables, canceled: the cables did not come", "while the other was away"}
	if d := cmp.Diff(want, p.same()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

// What another node sends is not believed blindly, and never stops anything.
func TestAWindowThatMakesNoSenseIsRefused(t *testing.T) {
	var said []string
	k := newWindowKeeper(t.TempDir(), func(e model.Event) { said = append(said, e.Text) })
	for _, text := range []string{"", "{", `{"id":"w1"}`, `{"id":"w1","from":"2026-12-01T22:00:00Z","to":"2026-12-01T21:00:00Z","reason":"x"}`} {
		k.adopt(model.Message{From: "lvs02", Type: windowMessage, Fields: []model.Field{{Name: windowField, Value: text}}})
	}
	if len(said) != 4 || !strings.Contains(said[3], "of lvs02 is not recorded here: the window ends before it begins") {
		t.Errorf("said: %q", said)
	}
	if list, err := journal.Windows(k.dir); err != nil || len(list) > 0 {
		t.Errorf("windows: %v %v", list, err)
	}
}

// A node of the original Heartbeat is not sent what it does not know.
func TestHeartbeatIsSentNoWindow(t *testing.T) {
	k := newWindowKeeper(t.TempDir(), func(e model.Event) { t.Errorf("%s", e) })
	k.view = func() model.View {
		return model.View{Nodes: []model.NodeView{{Name: "lvs02", State: model.NodeActive}}}
	}
	k.send = func(m model.Message) error { t.Errorf("sent: %s", m); return nil }
	if _, err := k.plan(context.Background(), "lvs01", api.PlanRequest{From: time.Now().Add(time.Hour), To: time.Now().Add(2 * time.Hour), Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	k.tellAll()
}
