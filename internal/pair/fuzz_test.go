package pair

import (
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// FuzzMessage gives a settled core a message of any content, in the middle of
// anything: it must not panic, nor claim what it does not know.
func FuzzMessage(f *testing.F) {
	f.Add("resource", "all", "full", "1", "heal", "ff", true)
	f.Add("ask_resources", "all", "", "", "me", "", false)
	f.Add("hb_takeover", "failback", "", "", "", "", true)
	f.Add("shutdone", "", "", "", "", "", false)
	f.Add("starting", "", "", "", "", "", false)
	f.Fuzz(func(t *testing.T, kind, hold, rtype, stable, info, report string, batuta bool) {
		now := epoch
		c := New(Config{Self: "a", Peer: "b", First: true, Failback: true, LocalResources: 1, ForeignResources: 1})
		tell := func(k model.ClusterEventKind, m model.Message) {
			now = now.Add(time.Second)
			c.Step(now, Cluster{model.ClusterEvent{Kind: k, Node: "b", Message: m, View: model.View{
				Nodes: []model.NodeView{{Name: "b", State: model.NodeActive, Batuta: batuta}}}}})
			if c.Hold()&^All != None || c.Other()&^All != None {
				t.Fatalf("impossible: %v", c)
			}
		}
		m := model.Message{Type: kind, From: "b", Fields: []model.Field{{Name: "rsc_hold", Value: hold}, {Name: "rtype", Value: rtype},
			{Name: "isstable", Value: stable}, {Name: "info", Value: info}, {Name: "report", Value: report}}}
		for _, k := range []model.ClusterEventKind{model.NodeJoined, model.CommunicationUp, model.MessageReceived, model.NodeDied, model.PartitionHealed, model.NodeRestarted} {
			tell(k, m)
			tell(model.MessageReceived, m)
		}
		for range 20 {
			next := c.Next()
			if next.IsZero() {
				break
			}
			if !next.After(now) {
				t.Fatal("Next is not in the future")
			}
			now = next
			c.Step(now, Tick{})
		}
	})
}
