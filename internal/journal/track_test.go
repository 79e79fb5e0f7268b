package journal

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// world is what lvs02, the standby, knows, changed step by step.
type world struct {
	t       *testing.T
	tracker *Tracker
	clock   *clocks
	s       Snapshot
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, tracker: NewTracker(), clock: newClocks()}
	key := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	w.s = Snapshot{
		Self: "lvs02",
		Nodes: []model.NodeView{
			{Name: "lvs01", State: model.NodeInit, Links: []model.LinkView{{Name: "eth1"}}},
			{Name: "lvs02", State: model.NodeActive},
		},
		Resources: []Resource{{Address: "10.1.0.100", ResourceView: model.ResourceView{Name: "10.1.0.100", State: model.ResourceStopped}}},
		Services: []Service{{Needs: []string{"10.1.0.100"}, ServiceView: model.ServiceView{Key: key,
			Reals: []model.RealView{{Addr: "10.2.0.1:80"}, {Addr: "10.2.0.2:80"}}}}},
	}
	return w
}

// runsOn says where the resource runs.
func (w *world) runsOn(node model.NodeName, state model.ResourceState) {
	w.s.Resources[0].Node, w.s.Resources[0].State = node, state
}

// reals says how the real servers are.
func (w *world) reals(states ...model.Status) {
	for i, st := range states {
		w.s.Services[0].Reals[i].Status = st
	}
}

// beats says that lvs01 lives.
func (w *world) beats() {
	w.s.Nodes[0].State, w.s.Nodes[0].LastBeat, w.s.Nodes[0].Links[0].Up = model.NodeActive, w.clock.read().Wall, true
}

func (w *world) hear(kind, subject string) {
	w.tracker.Hear(model.Event{Kind: kind, Subject: subject}, w.clock.read().Uptime)
}

// expect looks, and compares the changes about addresses, services and nodes.
func (w *world) expect(want ...string) {
	w.t.Helper()
	var got []string
	for _, c := range w.tracker.Observe(w.s, w.clock.read()) {
		if c.Thing.Kind == ThingResource || c.Thing.Kind == ThingReal || c.Thing.Kind == ThingLink {
			continue
		}
		line := fmt.Sprintf("%v %s %s", (c.Since - time.Hour).Round(time.Millisecond), c.Thing, c.State)
		if c.Where != "" {
			line += " on " + c.Where
		}
		if e := c.Ended; e != nil {
			line += fmt.Sprintf(" after %v+%v+%v+%v", e.Detect, e.Decide, e.Switch, e.Verify)
		}
		got = append(got, line)
	}
	w.t.Helper()
	same(w.t, strings.Join(want, "\n"), strings.Join(got, "\n"))
}

// settle brings the world to where lvs01 serves.
func (w *world) settle() {
	w.t.Helper()
	w.expect("0s node lvs02 up")
	w.s.Ready = true
	w.beats()
	w.runsOn("lvs01", model.ResourceRunning)
	w.reals(model.Up, model.Up)
	w.expect("0s node lvs01 up", "0s service tcp 10.1.0.100:80 up on lvs01", "0s vip 10.1.0.100 up on lvs01")
}

func TestAnOutageBeginsWithTheLastBeat(t *testing.T) {
	w := newWorld(t)
	w.settle()
	w.clock.pass(10 * time.Second)
	w.beats()
	w.expect()
	w.clock.pass(2 * time.Second)
	w.s.Nodes[0].State = model.NodeDead
	w.hear("node-dead", "lvs01")
	w.expect("10s node lvs01 down", "10s service tcp 10.1.0.100:80 down", "10s vip 10.1.0.100 down")
	w.clock.pass(10 * time.Millisecond)
	w.hear("group-acquire", "10.1.0.100")
	w.runsOn("", model.ResourceStarting)
	w.expect()
	w.clock.pass(20 * time.Millisecond)
	w.hear("address-added", "10.1.0.100")
	w.clock.pass(5 * time.Millisecond)
	w.runsOn("lvs02", model.ResourceRunning)
	w.expect("12.035s service tcp 10.1.0.100:80 up on lvs02 after 2s+10ms+20ms+5ms",
		"12.035s vip 10.1.0.100 up on lvs02 after 2s+10ms+20ms+5ms")
}

// The whole takeover may lie between two snapshots.
func TestATakeoverBetweenTwoSnapshotsIsNotMissed(t *testing.T) {
	w := newWorld(t)
	w.settle()
	w.clock.pass(2 * time.Second)
	w.hear("node-dead", "lvs01")
	w.hear("group-acquire", "10.1.0.100")
	w.clock.pass(time.Millisecond)
	w.hear("address-added", "10.1.0.100")
	w.clock.pass(20 * time.Millisecond)
	w.s.Nodes[0].State = model.NodeDead
	w.runsOn("lvs02", model.ResourceRunning)
	w.expect("0s node lvs01 down", "0s service tcp 10.1.0.100:80 down", "0s vip 10.1.0.100 down",
		"2.021s service tcp 10.1.0.100:80 up on lvs02 after 2s+0s+1ms+20ms",
		"2.021s vip 10.1.0.100 up on lvs02 after 2s+0s+1ms+20ms")
}

func TestAHandOverHasItsGap(t *testing.T) {
	w := newWorld(t)
	w.settle()
	w.clock.pass(time.Second)
	w.runsOn("lvs02", model.ResourceRunning)
	w.expect("1s service tcp 10.1.0.100:80 up on lvs02", "1s vip 10.1.0.100 up on lvs02")
	w.clock.pass(time.Second)
	w.hear("address-removed", "10.1.0.100")
	w.clock.pass(8 * time.Millisecond)
	w.hear("standby-complete", "")
	w.clock.pass(5 * time.Millisecond)
	w.beats()
	w.runsOn("lvs01", model.ResourceRunning)
	w.expect("2s service tcp 10.1.0.100:80 down", "2s vip 10.1.0.100 down",
		"2.008s service tcp 10.1.0.100:80 up on lvs01 after 0s+0s+8ms+0s", "2.008s vip 10.1.0.100 up on lvs01 after 0s+0s+8ms+0s")
}

func TestAServiceIsAsGoodAsItsRealServers(t *testing.T) {
	w := newWorld(t)
	w.settle()
	for i, step := range []struct {
		reals []model.Status
		want  string
	}{
		{[]model.Status{model.Up, model.Down}, "degraded on lvs01"},
		{[]model.Status{model.Down, model.Down}, "down on lvs01"},
		{[]model.Status{model.Up, model.Up}, "up on lvs01 after 0s+0s+1s+0s"},
		{[]model.Status{model.Unknown, model.Unknown}, "unknown on lvs01"},
	} {
		w.clock.pass(time.Second)
		w.reals(step.reals...)
		w.expect(fmt.Sprintf("%ds service tcp 10.1.0.100:80 %s", i+1, step.want))
	}
}

// A node that has just joined does not know yet what the other holds; later it
// is down what runs nowhere.
func TestWhatRunsNowhereIsDownOnlyWhenThatIsSure(t *testing.T) {
	w := newWorld(t)
	w.expect("0s node lvs02 up")
	w.s.Ready = true
	w.beats()
	w.expect("0s node lvs01 up")
	w.clock.pass(settling)
	w.beats()
	w.expect("30s service tcp 10.1.0.100:80 down", "30s vip 10.1.0.100 down")
}

func TestWhatIsNoLongerConfiguredIsUnknown(t *testing.T) {
	w := newWorld(t)
	w.settle()
	w.s.Services = nil
	w.clock.pass(time.Second)
	w.expect("1s service tcp 10.1.0.100:80 unknown")
	w.expect()
}

func TestWhyTellsTheChain(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read, Node: "lvs02"})
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(10 * time.Second)
	silent := c.read().Uptime
	c.pass(2 * time.Second)
	j.Event(model.Event{Level: model.LevelWarning, Source: "heartbeat", Kind: "node-dead", Subject: "lvs01", Text: "node lvs01: is dead"})
	j.States([]Change{{Thing: vip, State: sla.Down, Since: silent, Why: "it was on lvs01, which is silent since then"}})
	c.pass(10 * time.Millisecond)
	j.Event(model.Event{Level: model.LevelInfo, Source: "announce", Kind: "address-added", Subject: vip.Name, Text: "address added"})
	j.States([]Change{{Thing: vip, State: sla.Up, Since: c.read().Uptime, Where: "lvs02", Ended: &Repair{Detect: 2 * time.Second, Switch: 10 * time.Millisecond}}})
	c.pass(10 * time.Second)
	j.Event(model.Event{Source: "director", Kind: "reload", Text: "much later"})
	c.pass(time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	for _, what := range []string{"10.1.0.100", "vip 10.1", "lvs02:3"} {
		chain, err := s.Why(what)
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		for _, st := range chain.Steps {
			steps = append(steps, fmt.Sprintf("%v %s %s", st.Offset, st.Part, st.ID))
		}
		same(t, []string{"2s detect lvs02:3", "2s detect lvs02:4", "2.01s switch lvs02:5", "2.01s switch lvs02:6"}, steps)
		same(t, "lvs01 lvs02", chain.Before+" "+chain.After)
	}
	if _, err := s.Why("lvs02:7"); err == nil || !strings.Contains(err.Error(), "no outage") {
		t.Errorf("error: %v", err)
	}
	if _, err := s.Why("nothing"); err == nil || !strings.Contains(err.Error(), "it knows: vip 10.1.0.100") {
		t.Errorf("error: %v", err)
	}
}

// A node that was suspect was not away: there is something to explain all the same.
func TestWhyTellsOfASuspect(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read, Node: "lvs02"})
	node := Thing{ThingNode, "lvs01"}
	j.States([]Change{up(node, c.read().Uptime)})
	say := func(kind, subject string) {
		j.Event(model.Event{Level: model.LevelWarning, Source: "heartbeat", Kind: kind, Subject: subject, Text: kind})
		c.pass(3 * time.Second)
	}
	c.pass(time.Second)
	say("node-suspect", "lvs01")
	say("node-unsuspected", "lvs01") // lvs02:4
	say("node-suspect", "lvs03")
	say("node-suspect", "lvs01")
	say("late-heartbeat", "lvs01")
	say("node-unsuspected", "lvs01")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	s := read(t, j.o.Dir)
	for what, want := range map[string]string{
		"lvs01":   "node lvs01 degraded 10s-16s false lvs02:6 lvs02:7 lvs02:8",
		"lvs02:8": "node lvs01 degraded 10s-16s false lvs02:6 lvs02:7 lvs02:8",
		"lvs02:4": "node lvs01 degraded 1s-4s false lvs02:3 lvs02:4",
	} {
		chain, err := s.Why(what)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		got := fmt.Sprintf("%s %s %v-%v %v", chain.Thing, chain.State, chain.From.Sub(epoch), chain.To.Sub(epoch), chain.Open)
		for _, st := range chain.Steps {
			got += " " + st.ID
		}
		if got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
		}
	}
}
