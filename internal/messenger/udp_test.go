package messenger

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
)

// overLoopback opens the links of two nodes to each other, on sockets of the
// loopback interface.
func overLoopback(t *testing.T) map[model.NodeName]link.Link {
	t.Helper()
	probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(probe.LocalAddr().String()).Port()
	_ = probe.Close()
	addr := map[model.NodeName]netip.Addr{"a": netip.MustParseAddr("127.0.0.1"), "b": netip.MustParseAddr("127.0.0.2")}
	links := map[model.NodeName]link.Link{}
	for self, peer := range map[model.NodeName]model.NodeName{"a": "b", "b": "a"} {
		k, err := link.Open(model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(addr[peer], port)}, link.Options{Source: addr[self]})
		if err != nil {
			t.Fatal(err)
		}
		links[self] = k
	}
	return links
}

// Two messengers on real sockets of the loopback interface become a cluster
// and hand each other a message. No clock decides: the test ends with the facts.
func TestLoopback(t *testing.T) {
	loops := map[model.NodeName]*Loop{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for self, k := range overLoopback(t) {
		hb := conf(self)
		hb.Keepalive, hb.InitDead = 50*time.Millisecond, time.Hour
		l, err := New(Config{Heartbeat: hb, Links: []link.Link{k}, Generation: 1, UUID: [16]byte{self[0]}, Rand: rand.New(rand.NewPCG(1, 1))})
		if err != nil {
			t.Fatal(err)
		}
		loops[self] = l
		go func() { ended <- l.Run(ctx) }()
	}
	next := func(l *Loop, kind model.ClusterEventKind) model.ClusterEvent {
		t.Helper()
		for {
			select {
			case e, ok := <-l.Events():
				if !ok {
					t.Fatal("events ended")
				}
				if e.Kind == kind && (kind != model.MessageReceived || e.Message.Type == "resource") {
					return e
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no event of kind %d", kind)
			}
		}
	}
	next(loops["a"], model.CommunicationUp)
	next(loops["b"], model.CommunicationUp)
	if err := loops["a"].Send(model.Message{Type: "resource", Fields: []model.Field{{Name: "rsc_hold", Value: "all"}}}); err != nil {
		t.Fatal(err)
	}
	if e := next(loops["b"], model.MessageReceived); e.Message.String() != "a: resource rsc_hold=all" {
		t.Errorf("received %s", e.Message)
	}
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// What a loop does at each beat takes no memory: it waits, reads the other's
// beat from its socket, checks, decides, signs and sends its own.
func TestABeatTakesNoMemory(t *testing.T) {
	var pair []*Loop
	for self, k := range overLoopback(t) {
		hb := conf(self)
		hb.Keepalive, hb.WarnTime, hb.DeadTime, hb.InitDead = time.Millisecond, time.Hour, time.Hour, time.Hour
		l, err := New(Config{Heartbeat: hb, Links: []link.Link{k}, Generation: 1, UUID: [16]byte{self[0]}, Rand: rand.New(rand.NewPCG(1, 1)),
			Event: func(model.ClusterEvent) {}, Mute: func(time.Time) bool { return false }, Alone: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(k.Close(), l.poller.close()); err != nil {
				t.Error(err)
			}
		})
		l.do(l.core.Start)
		pair = append(pair, l)
	}
	turn := func() {
		for _, l := range pair {
			l.poll(l.next())
			l.turn()
		}
	}
	for range 2000 { // the first moments of a cluster, and room for what is kept of each other
		turn()
	}
	const turns = 1000
	before := pair[0].Counters()
	allocs := testing.AllocsPerRun(turns, turn) // a floor to be stored, each floorPeriod, is rounded away
	heard := pair[0].Counters().Received - before.Received
	if allocs != 0 || heard < turns/10 {
		t.Errorf("%v allocations in each of %d turns of two nodes, in which one heard %d beats; want 0, and a beat in many turns", allocs, turns, heard)
	}
}
