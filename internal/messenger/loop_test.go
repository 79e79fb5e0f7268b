package messenger

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
)

// The stories below run two whole messengers, goroutines and all, in virtual
// time on imaginary networks.

func conf(self model.NodeName) model.Heartbeat {
	return model.Heartbeat{
		Self: self, Nodes: []model.NodeName{"a", "b"},
		Keys:      model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "secret"}}},
		Keepalive: time.Second, WarnTime: 2500 * time.Millisecond, DeadTime: 5 * time.Second, InitDead: 10 * time.Second,
		MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1, InnerAuth: true, LogBadPackets: true,
	}
}

// station is one messenger of a story with everything it reported.
type station struct {
	*Loop
	t      *testing.T
	start  time.Time
	stop   func()
	stored atomic.Uint32 // generation

	mu    sync.Mutex
	lines []string // "<seconds>s <event>"
	raw   []model.ClusterEvent
	notes []string
}

// boot starts a messenger on the networks; it ends with the test.
func boot(t *testing.T, hb model.Heartbeat, generation uint32, nets ...*link.Network) *station {
	t.Helper()
	s := &station{t: t, start: time.Now()}
	var links []link.Link
	for i, n := range nets {
		links = append(links, n.Join(string(hb.Self), fmt.Sprintf("eth%d", i)))
	}
	l, err := New(Config{
		Heartbeat: hb, Links: links, Generation: generation, UUID: [16]byte{hb.Self[0]},
		Rand: rand.New(rand.NewPCG(uint64(generation), uint64(hb.Self[0]))),
		Sink: func(e model.Event) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.notes = append(s.notes, e.Text)
		},
		Renewed: func(g uint32) error { s.stored.Store(g); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Loop = l
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	go func() {
		for e := range l.Events() {
			s.mu.Lock()
			s.raw = append(s.raw, e)
			s.lines = append(s.lines, fmt.Sprintf("%v %s", time.Since(s.start).Round(time.Millisecond), eventText(e)))
			s.mu.Unlock()
		}
	}()
	s.stop = sync.OnceFunc(func() { cancel(); <-done; synctest.Wait() })
	t.Cleanup(s.stop)
	<-l.Ready()
	return s
}

var eventNames = map[model.ClusterEventKind]string{
	model.CommunicationUp: "communication-up", model.MessageReceived: "message", model.NodeDied: "died", model.NodeRestarted: "restarted",
	model.NodeJoined: "joined", model.PartitionHealed: "partition-healed", model.LinkChanged: "link",
}

func eventText(e model.ClusterEvent) string {
	switch e.Kind {
	case model.MessageReceived:
		return e.Message.String()
	case model.LinkChanged:
		text := "link"
		for _, l := range e.View.Find(e.Node).Links {
			text += " " + l.Name + "=" + map[bool]string{true: "up", false: "down"}[l.Up]
		}
		return text
	default:
		return eventNames[e.Kind] + " " + string(e.Node)
	}
}

// told returns the events so far without those of links, and forgets them.
func (s *station) told() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, l := range s.lines {
		if !strings.Contains(l, " link ") {
			out = append(out, l)
		}
	}
	s.lines = nil
	return out
}

func (s *station) wants(want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.told()); diff != "" {
		s.t.Errorf("events of %s (-want +got):\n%s", s.cfg.Heartbeat.Self, diff)
	}
}

func (s *station) state(of model.NodeName) string {
	v := s.View()
	return v.Find(of).State.String()
}

func (s *station) noted(text string) (n int) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.notes {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

func network(seed uint64) *link.Network { return link.NewNetwork(rand.New(rand.NewPCG(seed, 1))) }

// pass lets virtual time go by.
func pass(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestColdStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a := boot(t, conf("a"), 100, net)
		pass(500 * time.Millisecond)
		a.wants() // alone, within initdead: waiting
		b := boot(t, conf("b"), 200, net)
		pass(10 * time.Millisecond)
		// Between Batuta nodes nobody waits for anything but the network.
		a.wants("500ms joined b", "500ms b: status st=up", "500ms communication-up a", "500ms b: status st=active")
		b.wants("0s joined a", "0s communication-up b", "0s a: status st=active")
		for _, s := range []*station{a, b} {
			v := s.View()
			if s.state("a") != "active" || s.state("b") != "active" || !v.Find("a").Batuta || !v.Find("b").Batuta {
				t.Errorf("view: %+v", v)
			}
		}
		if got := a.View(); got.Find("b").Generation != 200 || got.Find("b").DeadTime != model.Millis(5*time.Second) {
			t.Errorf("b as a sees it: %+v; want generation 200 and no more patience for the young", got.Find("b"))
		}
		pass(6 * time.Second)
		if got := a.View(); got.Find("b").DeadTime != model.Millis(5*time.Second) {
			t.Errorf("b's dead time after its youth: %v", time.Duration(got.Find("b").DeadTime))
		}
	})
}

func TestAloneUntilInitdead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := boot(t, conf("a"), 100, network(1))
		pass(11 * time.Second)
		a.wants("10.002s died b", "10.002s communication-up a")
		if a.state("b") != "dead" || a.noted("node b: is dead") != 1 {
			t.Errorf("b is %s", a.state("b"))
		}
	})
}

// pair boots two nodes that know each other and are past their youth.
func pair(t *testing.T, nets ...*link.Network) (a, b *station) {
	t.Helper()
	a, b = boot(t, conf("a"), 100, nets...), boot(t, conf("b"), 200, nets...)
	pass(10500 * time.Millisecond)
	a.told()
	b.told()
	return a, b
}

func TestCrashIsNoticedAfterDeadtime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a, b := pair(t, net)
		b.stop() // its last beat was at 10 s
		pass(4500 * time.Millisecond)
		a.wants()
		pass(10 * time.Millisecond)
		a.wants("15.002s died b")
		pass(time.Second)
		b = boot(t, conf("b"), 201, net)
		pass(100 * time.Millisecond)
		a.wants("16.01s joined b", "16.01s b: status st=up", "16.01s b: status st=active")
		b.wants("0s joined a", "0s communication-up b")
	})
}

func TestRestartWithinDeadtime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a, b := pair(t, net)
		b.stop()
		pass(2 * time.Second)
		b = boot(t, conf("b"), 201, net)
		pass(100 * time.Millisecond)
		a.wants("12.5s restarted b", "12.5s b: status st=up", "12.5s b: status st=active")
		b.wants("0s joined a", "0s communication-up b")
		if err := b.Send(model.Message{Type: "starting"}); err != nil {
			t.Fatal(err)
		}
		pass(0)
		a.wants("12.6s b: starting")
	})
}

// A node that lost its stored generation begins with one that the others have
// heard. They drop what it says, but tell it; it goes on above, and stores that.
func TestLostGenerationIsMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a, b := pair(t, net)
		b.stop()
		b = boot(t, conf("b"), 199, net)
		pass(100 * time.Millisecond)
		a.wants("10.5s restarted b", "10.5s b: status st=active")
		if n := a.Counters().Replayed; n == 0 || b.stored.Load() != 201 {
			t.Errorf("%d packets refused, generation %d stored", n, b.stored.Load())
		}
	})
}

func TestPartitionAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a, b := pair(t, net)
		net.Cut("a", "b")
		net.Cut("b", "a")
		pass(6 * time.Second)
		a.wants("15.002s died b")
		b.wants("15.002s died a")
		net.Heal("a", "b")
		net.Heal("b", "a")
		pass(time.Second)
		a.wants("17s partition-healed b")
		b.wants("17s partition-healed a")
		if a.noted("returning after partition") != 1 {
			t.Error("no critical log line")
		}
	})
}

// A cable that works in one direction only: one side declares the other dead,
// which itself notices nothing.
func TestOneWayCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a, b := pair(t, net)
		net.Cut("a", "b")
		pass(6 * time.Second)
		a.wants()
		b.wants("15.002s died a")
		// When a is heard again, it is told: b may hold what a holds.
		net.Heal("a", "b")
		pass(time.Second)
		a.wants("17s partition-healed b")
		b.wants("17s partition-healed a")
	})
}

// With 30 % loss every message still arrives exactly once, and nobody dies.
func TestLossAndRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(7)
		a, b := pair(t, net)
		net.SetFault(link.Fault{Loss: 0.3, Delay: time.Millisecond, Jitter: 2 * time.Millisecond})
		const n = 200
		for i := range n {
			if err := a.Send(model.Message{Type: "resource", Fields: []model.Field{{Name: "info", Value: fmt.Sprint(i)}}}); err != nil {
				t.Fatal(err)
			}
			pass(137 * time.Millisecond)
		}
		net.SetFault(link.Fault{})
		pass(5 * time.Second)
		seen := map[string]int{}
		for _, e := range b.events() {
			if e.Kind == model.MessageReceived && e.Message.Type == "resource" {
				seen[e.Message.Get("info")]++
			}
			if e.Kind == model.NodeDied {
				t.Errorf("%s died", e.Node)
			}
		}
		for i := range n {
			if seen[fmt.Sprint(i)] != 1 {
				t.Errorf("message %d arrived %d times", i, seen[fmt.Sprint(i)])
			}
		}
		ca, cb := a.Counters(), b.Counters()
		if cb.Lost < n/5 || ca.Retransmitted < cb.Lost || b.noted("lost packet(s) for [a]") == 0 || b.noted("No pkts missing from a!") == 0 {
			t.Errorf("counters: a %+v b %+v", ca, cb)
		}
	})
}

func (s *station) events() []model.ClusterEvent {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]model.ClusterEvent(nil), s.raw...)
}

// Two links deliver everything twice; it counts once. One link may fall
// silent without anyone dying.
func TestTwoLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := network(1), network(2)
		a, b := pair(t, one, two)
		for range 20 {
			if err := a.Send(model.Message{Type: "resource"}); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Second)
		if got := len(b.told()); got != 20 {
			t.Errorf("b was told %d messages of 20", got)
		}
		if b.Counters().Duplicates < 20 {
			t.Errorf("duplicates: %+v", b.Counters())
		}
		one.Cut("a", "b")
		pass(7 * time.Second)
		b.wants()
		if b.noted("Link a:eth0 dead.") != 1 || b.noted("Link a:eth1 dead.") != 0 {
			t.Errorf("log: %q", b.notes)
		}
		v := b.View()
		if diff := cmp.Diff([]model.LinkView{{Name: "eth0"}, {Name: "eth1", Up: true}}, v.Find("a").Links); diff != "" {
			t.Errorf("links (-want +got):\n%s", diff)
		}
		one.Heal("a", "b")
		pass(time.Second)
		if b.noted("Link a:eth0 up.") != 2 {
			t.Errorf("log: %q", b.notes)
		}
	})
}

// Packets of strangers change nothing, are counted, and fill no log.
func TestWrongKeyIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		a, b := pair(t, net)
		b.stop()
		wrong := conf("b")
		wrong.Keys.Keys = map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "guess"}}
		boot(t, wrong, 300, net)
		pass(30 * time.Second)
		a.wants("15.002s died b")
		if a.Counters().Bad < 30 || a.noted("fail authentication") != 1 {
			t.Errorf("counters %+v, complaints %d", a.Counters(), a.noted("fail authentication"))
		}
	})
}

// Keepalive 50 ms and deadtime 250 ms, with a network that delays: no false
// alarm in a minute, and a crash is noticed on time.
func TestFastBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fast := func(n model.NodeName) model.Heartbeat {
			hb := conf(n)
			hb.Keepalive, hb.WarnTime, hb.DeadTime, hb.InitDead = 50*time.Millisecond, 125*time.Millisecond, 250*time.Millisecond, time.Second
			return hb
		}
		net := network(3)
		net.SetFault(link.Fault{Delay: 5 * time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.02})
		a, b := boot(t, fast("a"), 100, net), boot(t, fast("b"), 200, net)
		pass(time.Minute)
		for _, s := range []*station{a, b} {
			for _, e := range s.events() {
				if e.Kind == model.NodeDied {
					t.Errorf("false alarm on %s at %v", s.cfg.Heartbeat.Self, e.At.Sub(s.start))
				}
			}
		}
		b.stop()
		died := time.Now()
		a.told()
		pass(300 * time.Millisecond)
		var last model.ClusterEvent
		for _, e := range a.events() {
			if e.Kind == model.NodeDied {
				last = e
			}
		}
		if last.Kind != model.NodeDied || last.At.Sub(died) > 280*time.Millisecond || last.At.Sub(died) < 200*time.Millisecond {
			t.Errorf("latest event %s after %v", eventText(last), last.At.Sub(died))
		}
	})
}

// A reader of events that never reads holds up nobody.
func TestEventsWaitForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := network(1)
		b := boot(t, conf("b"), 200, net)
		lazy, err := New(Config{Heartbeat: conf("a"), Links: []link.Link{net.Join("a", "eth0")}, Generation: 1, Rand: rand.New(rand.NewPCG(1, 1))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- lazy.Run(ctx) }()
		for range 5000 {
			_ = b.Send(model.Message{Type: "resource"})
		}
		pass(time.Minute)
		if v := b.View(); v.Find("a").State != model.NodeActive {
			t.Errorf("a is %v", v.Find("a").State)
		}
		if err := lazy.Send(model.Message{Type: "shutdone", Fields: []model.Field{{Name: "st", Value: "dead"}}}); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := lazy.Send(model.Message{Type: "late"}); err == nil {
			t.Error("Send after the end succeeded")
		}
		synctest.Wait()
		if last := b.events()[len(b.events())-1]; eventText(last) != "a: shutdone st=dead" {
			t.Errorf("the last message was not sent: latest event is %s", eventText(last))
		}
	})
}
