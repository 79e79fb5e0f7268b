package messenger

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
)

// Two messengers on real sockets of the loopback interface become a cluster
// and hand each other a message. No clock decides: the test ends with the facts.
func TestLoopback(t *testing.T) {
	probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(probe.LocalAddr().String()).Port()
	_ = probe.Close()
	addr := map[model.NodeName]netip.Addr{"a": netip.MustParseAddr("127.0.0.1"), "b": netip.MustParseAddr("127.0.0.2")}
	loops := map[model.NodeName]*Loop{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for self, peer := range map[model.NodeName]model.NodeName{"a": "b", "b": "a"} {
		k, err := link.Open(model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(addr[peer], port)}, link.Options{Source: addr[self]})
		if err != nil {
			t.Fatal(err)
		}
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
