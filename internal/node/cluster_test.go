package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/crm"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
)

// flag is a resource that only keeps whether it runs.
type flag struct{ runs bool }

func (f *flag) Start(context.Context) error { f.runs = true; return nil }
func (f *flag) Stop(context.Context) error  { f.runs = false; return nil }
func (f *flag) Status(context.Context) (model.ResourceState, error) {
	if f.runs {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

// site is one node: messenger and resource manager as Run joins them.
type site struct {
	crm       *crm.Loop
	resources map[string]*flag
	end       func()
}

// pairOfNodes is two sites on one imaginary wire, in virtual time.
type pairOfNodes struct {
	*testing.T
	net      *link.Network
	failback model.FailbackMode
	life     uint32
	begin    time.Time
}

func (p *pairOfNodes) start(self model.NodeName) *site {
	p.Helper()
	p.life++
	hb := model.Heartbeat{Self: self, Nodes: []model.NodeName{"a", "b"}, Failback: p.failback,
		Keys:      model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthMD5, Secret: "x"}}},
		Keepalive: 100 * time.Millisecond, WarnTime: 500 * time.Millisecond, DeadTime: time.Second, InitDead: 3 * time.Second,
		DeadPing: time.Second, MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1}
	sink := func(e model.Event) {
		if e.Level > model.LevelDebug {
			p.Logf("%7.3f %s: %s", time.Since(p.begin).Seconds(), self, e)
		}
	}
	m, err := messenger.New(messenger.Config{Heartbeat: hb, Links: []link.Link{p.net.Join(string(self), "eth1")},
		Generation: 100 + p.life, UUID: [16]byte{self[0]}, Rand: rand.New(rand.NewPCG(uint64(p.life), 1)), Sink: sink})
	if err != nil {
		p.Fatal(err)
	}
	s := &site{resources: map[string]*flag{}}
	s.crm, err = crm.New(crm.Config{Self: self, Peer: peerOf(hb), Nodes: hb.Nodes, Failback: p.failback,
		Groups: []model.ResourceGroup{
			{Owner: "a", Resources: []model.Resource{{Agent: "one", Text: "one"}}},
			{Owner: "b", Resources: []model.Resource{{Agent: "two", Text: "two"}}}},
		Agents: func(r model.Resource) (agent.Agent, error) {
			s.resources[r.Text] = &flag{}
			return s.resources[r.Text], nil
		},
		Send: m.Send, Sink: sink})
	if err != nil {
		p.Fatal(err)
	}
	c := newCrew(context.Background())
	c.start(m)
	c.start(&feeder{loop: s.crm, events: m.Events(), ended: func() {}})
	s.end = func() {
		if err := c.stop(); err != nil {
			p.Error(err)
		}
	}
	return s
}

// settle lets time pass and compares who runs what: "one", "two", "one two", "".
func (p *pairOfNodes) settle(story string, want map[*site]string) {
	p.Helper()
	time.Sleep(8 * time.Second)
	synctest.Wait()
	for s, text := range want {
		got := ""
		for _, name := range []string{"one", "two"} {
			if s.resources[name].runs {
				got += " " + name
			}
		}
		if diff := cmp.Diff(" "+text, " "+got[min(1, len(got)):]); diff != "" {
			p.Errorf("%s (-want +got):\n%s", story, diff)
		}
	}
}

// Two nodes on a wire that loses, doubles and delays packets agree after
// every fault, and never for longer than the settling both run a resource.
func TestTwoNodesOnABadWire(t *testing.T) {
	for _, loss := range []float64{0, 0.1, 0.2, 0.3} {
		for _, failback := range []model.FailbackMode{model.FailbackOn, model.FailbackOff} {
			t.Run(fmt.Sprintf("loss %.1f failback %v", loss, failback), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := &pairOfNodes{T: t, net: link.NewNetwork(rand.New(rand.NewPCG(uint64(loss*1000), 2))),
						failback: failback, begin: time.Now()}
					p.net.SetFault(link.Fault{Loss: loss, Duplicate: 0.1, Jitter: 30 * time.Millisecond})
					// returns is what the nodes run when one of them came back
					// to another that held everything.
					returns := func(back, stayed *site, own, others string) map[*site]string {
						if failback == model.FailbackOn {
							return map[*site]string{back: own, stayed: others}
						}
						return map[*site]string{back: "", stayed: "one two"}
					}
					a, b := p.start("a"), p.start("b")
					p.settle("both start", map[*site]string{a: "one", b: "two"})
					a.end()
					p.settle("a is gone", map[*site]string{b: "one two"})
					a = p.start("a")
					p.settle("a is back", returns(a, b, "one", "two"))
					if err := a.crm.Stop(t.Context()); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Second)
					a.end()
					p.settle("a stopped cleanly", map[*site]string{b: "one two"})
					a = p.start("a")
					p.settle("a is back again", returns(a, b, "one", "two"))
					p.net.Cut("a", "b")
					p.net.Cut("b", "a")
					p.settle("the wire is cut", map[*site]string{a: "one two", b: "one two"})
					p.net.Heal("a", "b")
					p.net.Heal("b", "a")
					time.Sleep(8 * time.Second)
					synctest.Wait()
					for _, name := range []string{"one", "two"} {
						if a.resources[name].runs == b.resources[name].runs {
							t.Errorf("the wire is whole again: resource %s: on a %v, on b %v", name, a.resources[name].runs, b.resources[name].runs)
						}
					}
					a.end()
					b.end()
				})
			})
		}
	}
}
