package member

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// A ping node must be heard or missed before communication is up, but it is no
// member: it is neither asked for the node list nor in it.
func TestPingNodeIsNoMember(t *testing.T) {
	now := time.Unix(1795359877, 0)
	c, err := New(model.Heartbeat{Self: "b", Nodes: []model.NodeName{"b", "c"}, Keepalive: time.Second, DeadTime: 5 * time.Second, DeadPing: 7 * time.Second,
		Media: []model.Medium{{Kind: model.Ping, Name: "A.Router"}}}, 100)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	step := func(in Input) {
		for _, e := range c.Step(now, in) {
			switch e := e.(type) {
			case *Submit:
				if e.Type != "status" {
					said = append(said, e.Type+" "+string(e.To)+" "+e.Get("nodelist"))
				}
			case Event:
				if e.Kind == model.CommunicationUp || e.Kind == model.NodeDied || e.Kind == model.NodeJoined {
					said = append(said, map[model.ClusterEventKind]string{model.CommunicationUp: "up", model.NodeDied: "died", model.NodeJoined: "joined"}[e.Kind]+" "+string(e.Node))
				}
			}
		}
	}
	step(Start{})
	step(Sighting{model.Sighting{Kind: model.SightingJoined, Node: "c", At: now, State: model.NodeActive, Generation: 7}})
	step(Sighting{model.Sighting{Kind: model.SightingJoined, Node: "a.router", At: now, State: model.NodePing}})
	step(Received{model.Message{Type: "reqnodes", From: "c"}})
	step(Received{model.Message{Type: "repnodes", From: "c", Fields: []model.Field{{Name: "nodelist", Value: "b c "}}}})
	step(Sighting{model.Sighting{Kind: model.SightingSilent, Node: "a.router", At: now}})
	want := []string{"joined c", "joined a.router", "reqnodes c ", "repnodes c b c ", "up b", "died a.router"}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	v := c.View()
	if n := v.Find("a.router"); n == nil || !n.Ping || n.State != model.NodeDead {
		t.Errorf("the ping node in the view: %+v", n)
	}
}
