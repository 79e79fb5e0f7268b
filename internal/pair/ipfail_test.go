package pair

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// The node that sees fewer ping nodes hands everything over, after a moment in
// which the other may find that it sees no more of them either.
func TestFewerPingNodes(t *testing.T) {
	now := time.Unix(1795359877, 0)
	c := New(Config{Self: "a", Peer: "b", First: true, LocalResources: 1, ForeignResources: 1, Ipfail: time.Second})
	gate := model.NodePing
	view := func() model.View {
		return model.View{Self: "a", Nodes: []model.NodeView{{Name: "a", State: model.NodeActive}, {Name: "b", State: model.NodeActive}, {Name: "gate", Ping: true, State: gate}}}
	}
	var said []string
	step := func(in Input) {
		for _, e := range c.Step(now, in) {
			switch e := e.(type) {
			case Acquire:
				c.Step(now, Finished{Op: e.Op})
			case Send:
				if !strings.HasPrefix(e.Type, "resource") && e.Type != "starting" {
					said = append(said, e.Type+" "+e.Get("num_ping")+e.Get("rsc_hold"))
				}
			}
		}
	}
	event := func(kind model.ClusterEventKind, node model.NodeName, m model.Message) {
		step(Cluster{model.ClusterEvent{Kind: kind, Node: node, View: view(), Message: m}})
	}
	hear := func(kind, name, value string) {
		event(model.MessageReceived, "b", model.Message{Type: kind, From: "b", Fields: []model.Field{{Name: name, Value: value}}})
	}
	expect := func(story string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, said); diff != "" {
			t.Errorf("%s (-want +got):\n%s", story, diff)
		}
		said = nil
	}
	wait := func() {
		now = now.Add(5 * time.Second)
		step(Tick{})
	}
	event(model.CommunicationUp, "a", model.Message{})
	event(model.MessageReceived, "b", model.Message{Type: "resource", From: "b", Fields: []model.Field{{Name: "rsc_hold", Value: "local"}, {Name: "rtype", Value: "full"}, {Name: "isstable", Value: "1"}}})
	expect("both come up", "num_ping_nodes 1")
	hear("num_ping_nodes", "num_ping", "1")
	expect("they see the same", "abort_giveup 1")
	hear("num_ping_nodes", "num_ping", "0")
	expect("the other sees less", "you_are_dead 1")
	hear("num_ping_nodes", "num_ping", "x")
	expect("nonsense")

	gate = model.NodeDead
	event(model.NodeDied, "gate", model.Message{})
	expect("the ping node dies here", "num_ping_nodes 0")
	hear("you_are_dead", "from_id", "ipfail")
	hear("num_ping_nodes", "num_ping", "0")
	wait()
	expect("and then there, too", "abort_giveup 0")
	hear("you_are_dead", "from_id", "ipfail")
	expect("here only: not at once")
	wait()
	expect("but then", "ask_resources all")

	old := New(Config{Self: "a", Peer: "b"})
	old.Step(now, Cluster{model.ClusterEvent{Kind: model.CommunicationUp, Node: "a", View: view()}})
	for _, e := range old.Step(now, Cluster{model.ClusterEvent{Kind: model.MessageReceived, Node: "b", View: view(), Message: model.Message{Type: "num_ping_nodes", From: "b", Fields: []model.Field{{Name: "num_ping", Value: "5"}}}}}) {
		t.Errorf("without ipfail: %v", e)
	}
}
