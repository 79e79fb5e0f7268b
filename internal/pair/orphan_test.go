package pair

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// An original Heartbeat that restarted within its dead time, or did not see a
// split that we saw, is left without its set and does not mind. We offer it,
// and take it when it is not wanted.
func TestSetThatNobodyHolds(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		now := time.Unix(1795359877, 0)
		c := New(Config{Self: "a", Peer: "b", First: true, LocalResources: 1, ForeignResources: 1})
		var got []string
		step := func(in Input) {
			for _, e := range c.Step(now, in) {
				switch e := e.(type) {
				case Acquire:
					got = append(got, e.String())
					for _, f := range c.Step(now, Finished{Op: e.Op}) {
						if s, ok := f.(Send); ok {
							got = append(got, s.String())
						}
					}
				case Release:
					got = append(got, e.String())
					for _, f := range c.Step(now, Finished{Op: e.Op}) {
						if s, ok := f.(Send); ok {
							got = append(got, s.String())
						}
					}
				case Send:
					got = append(got, e.String())
				}
			}
		}
		view := model.View{Self: "a", Nodes: []model.NodeView{{Name: "a", State: model.NodeActive}, {Name: "b", State: model.NodeActive}}}
		hear := func(kind string, fields ...model.Field) {
			step(Cluster{model.ClusterEvent{Kind: model.MessageReceived, Node: "b", View: view, Message: model.Message{Type: kind, From: "b", Fields: fields}}})
		}
		field := func(name, value string) model.Field { return model.Field{Name: name, Value: value} }
		step(Cluster{model.ClusterEvent{Kind: model.CommunicationUp, Node: "a", View: view}})
		hear("resource", field("rsc_hold", "none"), field("rtype", "full"), field("isstable", "1"))
		for next := c.Next(); !next.IsZero() && len(got) < 100; next = c.Next() {
			now = next
			step(Tick{})
			if wanted && strings.HasSuffix(got[len(got)-1], "info=me") {
				hear("ask_resources", field("rsc_hold", "foreign"), field("info", "other"))
				hear("ask_resources", field("rsc_hold", "foreign"), field("info", "done"))
				hear("resource", field("rsc_hold", "local"), field("rtype", "full"), field("isstable", "1"))
			}
		}
		end := map[bool]string{true: "stable hold=local other=foreign", false: "stable hold=all other=none"}[wanted]
		if c.String() != end {
			t.Errorf("wanted %v: %s, want %s\n%s", wanted, c, end, strings.Join(got, "\n"))
		}
		offers := 0
		for _, g := range got {
			if g == "send a: ask_resources rsc_hold=foreign info=me" {
				offers++
			}
		}
		if diff := cmp.Diff(1, offers); diff != "" {
			t.Errorf("wanted %v: offers (-want +got):\n%s\n%s", wanted, diff, strings.Join(got, "\n"))
		}
	}
}

// A report of an original Heartbeat that was lost and had to be sent again is
// old news when a later one came first.
func TestReportThatWasOvertaken(t *testing.T) {
	now := time.Unix(1795359877, 0)
	c := New(Config{Self: "a", Peer: "b", First: true, LocalResources: 1, ForeignResources: 1})
	view := model.View{Self: "a", Nodes: []model.NodeView{{Name: "a", State: model.NodeActive}, {Name: "b", State: model.NodeActive}}}
	report := func(number uint32, hold, stable string) {
		for _, e := range c.Step(now, Cluster{model.ClusterEvent{Kind: model.MessageReceived, Node: "b", View: view, Message: model.Message{
			Type: "resource", From: "b", Number: number, Fields: []model.Field{{Name: "rsc_hold", Value: hold}, {Name: "rtype", Value: "full"}, {Name: "isstable", Value: stable}}}}}) {
			if a, ok := e.(Acquire); ok {
				c.Step(now, Finished{Op: a.Op})
			}
		}
	}
	c.Step(now, Cluster{model.ClusterEvent{Kind: model.CommunicationUp, Node: "a", View: view}})
	report(7, "local", "1")
	report(6, "none", "0")
	if err := c.CanStandby(Local); err != nil || c.Other() != Foreign {
		t.Errorf("%s: %v", c, err)
	}
	report(8, "none", "0")
	if c.CanStandby(Local) == nil || c.Other() != None {
		t.Errorf("a newer report does not count: %s", c)
	}
}
