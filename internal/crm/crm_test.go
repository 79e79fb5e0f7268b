package crm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/model"
	gocmp "github.com/google/go-cmp/cmp"
)

// pairOf is two nodes on a perfect wire, with resources that only keep a flag.
type pairOf struct {
	t     *testing.T
	began time.Time
	a, b  *site
	deaf  bool // messages are lost

	mu  sync.Mutex
	log []entry
}

type entry struct {
	at   time.Duration
	node model.NodeName
	text string
}

type site struct {
	p      *pairOf
	name   model.NodeName
	loop   *Loop
	events chan model.ClusterEvent
	cancel context.CancelFunc
	agents map[string]*fake
}

// fake is a resource that keeps a flag and says when it is called.
type fake struct {
	s       *site
	name    string
	running bool
	takes   time.Duration
	start   error
	stop    error
}

func (f *fake) note(what string) {
	f.s.p.note(f.s.name, "%s %s", what, f.name)
}

func (f *fake) Start(ctx context.Context) error {
	f.note("start")
	select {
	case <-ctx.Done():
		f.note("killed start of")
		return context.Cause(ctx)
	case <-time.After(f.takes):
	}
	if f.start == nil {
		f.running = true
	}
	return f.start
}

func (f *fake) Stop(context.Context) error {
	f.note("stop")
	time.Sleep(time.Millisecond)
	if f.stop == nil {
		f.running = false
	}
	return f.stop
}

func (f *fake) Status(context.Context) (model.ResourceState, error) {
	if f.running {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

func (p *pairOf) note(node model.NodeName, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, entry{time.Since(p.began), node, fmt.Sprintf(format, args...)})
}

// take returns what was noted since the last call, in order of time and then
// of node, and begins to count time anew.
func (p *pairOf) take() (lines []string) {
	time.Sleep(100 * time.Millisecond)
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortStableFunc(p.log, func(x, y entry) int {
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.node, y.node))
	})
	for _, e := range p.log {
		lines = append(lines, fmt.Sprintf("%5.1f %s: %s", e.at.Seconds(), e.node, e.text))
	}
	p.log, p.began = nil, time.Now()
	return lines
}

func (p *pairOf) happened(want ...string) {
	p.t.Helper()
	if d := gocmp.Diff(want, p.take()); d != "" {
		p.t.Errorf("(-want +got)\n%s", d)
	}
}

func haresources(lines ...string) (groups []model.ResourceGroup) {
	for _, l := range lines {
		words := strings.Fields(l)
		g := model.ResourceGroup{Owner: model.NodeName(words[0])}
		for _, w := range words[1:] {
			part := strings.Split(w, "::")
			g.Resources = append(g.Resources, model.Resource{Agent: part[0], Args: part[1:], Text: w})
		}
		groups = append(groups, g)
	}
	return groups
}

func newPair(t *testing.T, failback model.FailbackMode, lines ...string) *pairOf {
	p := &pairOf{t: t, began: time.Now()}
	for _, name := range []model.NodeName{"a", "b"} {
		s := &site{p: p, name: name, events: make(chan model.ClusterEvent, 1000), agents: map[string]*fake{}}
		peer := model.NodeName("b")
		if name == "b" {
			peer = "a"
			p.b = s
		} else {
			p.a = s
		}
		var err error
		s.loop, err = New(Config{Self: name, Peer: peer, Nodes: []model.NodeName{"a", "b"}, Groups: haresources(lines...), Failback: failback,
			Agents: func(r model.Resource) (agent.Agent, error) {
				s.agents[r.Text] = &fake{s: s, name: r.Text, takes: time.Millisecond}
				return s.agents[r.Text], nil
			},
			Send: func(m model.Message) error {
				if p.deaf {
					return nil
				}
				other := p.a
				if s == p.a {
					other = p.b
				}
				other.tell(model.MessageReceived, m)
				return nil
			},
			Reannounce: func() { p.note(name, "reannounce") },
			Sink: func(e model.Event) {
				if e.Level >= model.LevelWarning {
					p.note(name, "%s", e.Text)
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// tell is what the messenger says to this node.
func (s *site) tell(k model.ClusterEventKind, m model.Message) {
	peer := model.NodeName("b")
	if s == s.p.b {
		peer = "a"
	}
	s.events <- model.ClusterEvent{At: time.Now(), Kind: k, Node: peer, Message: m,
		View: model.View{Self: s.name, Nodes: []model.NodeView{{Name: peer, State: model.NodeActive, Batuta: true}}}}
}

// start runs the loops and brings communication up.
func (p *pairOf) start(sites ...*site) {
	for _, s := range sites {
		ctx, cancel := context.WithCancel(context.Background())
		s.cancel = cancel
		done := make(chan error, 1)
		go func() { done <- s.loop.Run(ctx, s.events) }()
		p.t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				p.t.Error(err)
			}
		})
		s.tell(model.NodeJoined, model.Message{})
	}
	for _, s := range sites {
		s.tell(model.CommunicationUp, model.Message{})
	}
	synctest.Wait()
}

const tutorial = "a IPaddr::VIP IPaddr::gw1 IPaddr::gw2 ldirectord::ldirectord.cf"

func TestHandOverOrder(t *testing.T) {
	for line, want := range map[string]string{
		tutorial: "ldirectord::ldirectord.cf IPaddr::gw1 IPaddr::gw2 IPaddr::VIP",
		"a ldirectord::ldirectord.cf IPaddr2::VIP":    "ldirectord::ldirectord.cf IPaddr2::VIP",
		"a IPaddr::VIP Filesystem::/dev/sdb1 apache2": "IPaddr::VIP Filesystem::/dev/sdb1 apache2",
		"a apache2": "apache2",
	} {
		g := haresources(line)[0]
		if got := (model.ResourceGroup{Resources: startOrder(g.Resources)}).String(); got != want {
			t.Errorf("%s\nstarts as %s\nwant      %s", line, got, want)
		}
	}
}

// The tutorial's cluster: one group, the other node stands by.
func TestCleanStopHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOn, tutorial)
		p.start(p.a, p.b)
		p.happened("  0.0 a: start ldirectord::ldirectord.cf", "  0.0 a: start IPaddr::gw1", "  0.0 a: start IPaddr::gw2", "  0.0 a: start IPaddr::VIP")
		if got := p.b.loop.Resources()[0]; got.Node != "a" || got.State != model.ResourceRunning || got.Here != model.ResourceStopped || got.Name != "IPaddr::VIP" || got.Group != "IPaddr::VIP" {
			t.Errorf("b sees %+v", got)
		}
		if err := p.a.loop.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.happened(
			"  0.0 a: stop IPaddr::VIP", "  0.0 a: stop IPaddr::gw2", "  0.0 a: stop IPaddr::gw1", "  0.0 a: stop ldirectord::ldirectord.cf",
			"  0.0 b: start ldirectord::ldirectord.cf", "  0.0 b: start IPaddr::gw1", "  0.0 b: start IPaddr::gw2", "  0.0 b: start IPaddr::VIP")
		for _, v := range p.b.loop.Resources() {
			if v.Node != "b" || v.State != model.ResourceRunning || v.Here != model.ResourceRunning {
				t.Errorf("b sees %+v", v)
			}
		}
	})
}

func TestDeathOfTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.a, p.b)
		p.happened("  0.0 a: start one", "  0.0 b: start two")
		p.b.cancel()
		synctest.Wait()
		p.a.tell(model.NodeDied, model.Message{})
		p.happened("  0.0 a: Resources being acquired from b", "  0.0 a: start two")
	})
}

// A resource that does not start takes its group with it, and after 30 s the
// set goes to the other node: this set, not the other one.
func TestStartFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one two three", "a four", "b five")
		p.a.agents["two"].start = errors.New("two: exit status 1")
		p.start(p.a)
		p.a.tell(model.NodeDied, model.Message{})
		p.happened(
			"  0.0 a: Resources being acquired from b",
			"  0.0 a: start one", "  0.0 a: start two", "  0.0 a: two: exit status 1; releasing its group",
			"  0.0 a: stop three", "  0.0 a: stop two", "  0.0 a: stop one", "  0.0 a: start four", "  0.0 a: start five",
			"  0.0 a: resources of the local set did not start; nobody else is there: trying again in 30s")
		if v := p.a.loop.Resources()[1]; v.State != model.ResourceFailed || v.Error != "two: exit status 1" || v.Node != "" {
			t.Errorf("a sees %+v", v)
		}
		p.start(p.b)
		p.a.tell(model.NodeJoined, model.Message{})
		p.take()
		time.Sleep(31 * time.Second)
		p.happened(" 29.8 a: stop three", " 29.8 a: stop two", " 29.8 a: stop one", " 29.8 a: stop four",
			" 29.8 b: start one", " 29.8 b: start two", " 29.8 b: start three", " 29.8 b: start four")
	})
}

// A stop is tried eleven times; a set that cannot be stopped is not handed over.
func TestStopFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one two", "b three")
		p.start(p.a, p.b)
		p.happened("  0.0 a: start one", "  0.0 b: start three", "  0.0 a: start two")
		p.a.agents["two"].stop = errors.New("two: busy")
		if err := p.a.loop.Standby(t.Context(), "local", false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		stops := 0
		noted := p.take()
		for _, l := range noted {
			if strings.Contains(l, "stop two") {
				stops++
			}
			if strings.Contains(l, "stop one") || strings.Contains(l, "b: start") {
				t.Errorf("what the running resource needs was stopped, or it was handed over: %s", l)
			}
		}
		if stops != 11 {
			t.Errorf("%d calls of stop, want 11", stops)
		}
		if last := noted[len(noted)-1]; !strings.Contains(last, "a could not release [foreign] and keeps it") {
			t.Errorf("the other node was told: %s", last)
		}
		if !p.a.loop.Stable() || !p.b.loop.Stable() {
			t.Error("the two have not settled again")
		}
	})
}

// A daemon that comes back finds its own resources running and leaves them be;
// what is not its own is released before the other may take it.
func TestLeftoversOfAnEarlierLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.a.agents["one"].running, p.a.agents["two"].running = true, true
		p.start(p.a, p.b)
		p.happened("  0.0 a: stop two", "  0.0 b: start two")
		if v := p.a.loop.Resources()[0]; v.State != model.ResourceRunning || v.Node != "a" {
			t.Errorf("a sees %+v", v)
		}
	})
}

// The machine of a dead daemon went on answering for what the other has taken
// over: once it has released that, the other tells the network anew.
func TestLeftoversOfWhatTheOtherHasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.b)
		p.b.tell(model.NodeDied, model.Message{})
		p.happened("  0.0 b: Resources being acquired from a", "  0.0 b: start one", "  0.0 b: start two")
		p.a.agents["one"].running = true
		p.b.tell(model.NodeJoined, model.Message{})
		p.start(p.a)
		p.happened("  0.0 a: stop one", "  0.0 b: reannounce")
	})
}

// A start that hangs does not hold up a stop for ever: it has 10 s to end.
func TestStopOvertakesAHangingStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a slow after")
		p.a.agents["slow"].takes = time.Hour
		p.start(p.a)
		p.a.tell(model.NodeDied, model.Message{})
		time.Sleep(5 * time.Second)
		if err := p.a.loop.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.happened("  0.0 a: Resources being acquired from b", "  0.0 a: start slow", " 15.0 a: killed start of slow",
			" 15.0 a: stop after", " 15.0 a: stop slow")
	})
}

func TestWishesAreAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.a, p.b)
		for _, try := range []struct {
			do   func(context.Context, string, bool) error
			word string
			want string
		}{
			{p.a.loop.Standby, "foreign", "this node holds local, not foreign"},
			{p.a.loop.Takeover, "local", "this node already holds local"},
			{p.a.loop.Standby, "everything", `unknown set of resources "everything": use all, local, foreign or failback`},
		} {
			if err := try.do(t.Context(), try.word, true); err == nil || err.Error() != try.want {
				t.Errorf("got %v, want %s", err, try.want)
			}
		}
		p.happened("  0.0 a: start one", "  0.0 b: start two")
		if err := p.a.loop.Takeover(t.Context(), "all", false); err != nil {
			t.Fatal(err)
		}
		p.happened("  0.0 b: stop one", "  0.0 b: stop two", "  0.0 a: start two")
		p.a.cancel()
		synctest.Wait()
		if err := p.a.loop.Standby(t.Context(), "all", false); !errors.Is(err, ErrNotRunning) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Two groups that name one director share it.
func TestSharedDirector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a IPaddr::one ldirectord", "b IPaddr::two ldirectord::ldirectord.cf")
		p.start(p.a, p.b)
		p.happened("  0.0 a: start ldirectord", "  0.0 b: start ldirectord", "  0.0 a: start IPaddr::one", "  0.0 b: start IPaddr::two")
		if err := p.b.loop.Standby(t.Context(), "all", false); err != nil {
			t.Fatal(err)
		}
		p.happened("  0.0 b: stop IPaddr::one", "  0.0 b: stop IPaddr::two", "  0.0 b: stop ldirectord",
			"  0.0 a: start ldirectord", "  0.0 a: start IPaddr::one", // told again: idempotent
			"  0.0 a: start ldirectord", "  0.0 a: start IPaddr::two")
		if err := p.a.loop.Standby(t.Context(), "foreign", false); err != nil {
			t.Fatal(err)
		}
		p.happened("  0.0 a: stop IPaddr::two", "  0.0 b: start ldirectord", "  0.0 b: start IPaddr::two")
	})
}

func TestSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, model.FailbackOff, "a one", "b two")
		p.start(p.a, p.b)
		p.a.tell(model.NodeDied, model.Message{})
		p.b.tell(model.NodeDied, model.Message{})
		p.take()
		p.a.tell(model.PartitionHealed, model.Message{})
		p.b.tell(model.PartitionHealed, model.Message{})
		p.happened(
			"  0.0 a: a and b both held [all]: this node keeps its resources, b releases all of its own",
			"  0.0 a: reannounce",
			"  0.0 b: b and a both held [all]: a keeps its resources, this node releases all of its own",
			"  0.0 b: stop one",
			"  0.0 b: stop two",
			"  0.0 a: reannounce")
	})
}
