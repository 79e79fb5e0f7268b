package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

// inSwapKernel is set where the kernel has IPVS and eBPF, by who runs the test there.
const inSwapKernel = "BATUTA_SWAP_KERNEL"

// Real connections, TCP and UDP, over both changes of planes in one kernel:
// each keeps its real server, and new ones are the new plane's.
func TestSwapOfPlanes(t *testing.T) {
	if os.Getenv(inSwapKernel) == "" {
		t.Skip("needs a machine of its own with IPVS and eBPF in its kernel: set " + inSwapKernel + "=1 there")
	}
	tcp, udp := 400, 100
	if n, err := strconv.Atoi(os.Getenv("BATUTA_CONNECTIONS")); err == nil {
		tcp, udp = n, 0 // to ask so many takes longer than datagrams' time-out
	}
	director, client, rack := planetest.NewHost(t, "director"), planetest.NewHost(t, "client"), planetest.NewHost(t, "rack")
	director.Connect(t, "outside", "10.1.0.1/24", client, "eth0", "10.1.0.50/24")
	director.Connect(t, "inside", "10.240.0.1/24", rack, "eth0", "10.240.0.20/24")
	director.Address(t, "outside", "10.1.0.100/32")
	rack.Address(t, "eth0", "10.240.0.21/24")
	client.Route(t, "0.0.0.0/0", "10.1.0.1")
	rack.Route(t, "0.0.0.0/0", "10.240.0.1")
	director.Sysctl(t, "net/ipv4/ip_forward", "1")

	web, dns := netip.MustParseAddrPort("10.1.0.100:80"), netip.MustParseAddrPort("10.1.0.100:53")
	var changes []model.Change
	for _, s := range []struct {
		p    model.Protocol
		at   netip.AddrPort
		port uint16
	}{{model.TCP, web, 8000}, {model.UDP, dns, 5300}} {
		v := model.VirtualService{Key: model.ServiceKey{Proto: s.p, Addr: s.at}, Scheduler: "rr"}
		changes = append(changes, model.Change{Op: model.ServiceAdd, Service: v})
		for _, a := range []string{"10.240.0.20", "10.240.0.21"} {
			at := netip.AddrPortFrom(netip.MustParseAddr(a), s.port)
			rack.Do(t, func() { at = planetest.StartServer(t, s.p, at) })
			changes = append(changes, model.Change{Op: model.RealAdd, Service: v, Real: model.RealServer{Addr: at, Forward: model.Masq, Weight: 1}})
		}
	}
	// The first two, once more, for a client that is to stay with one of them.
	sticky := changes[0].Service
	sticky.Key.Addr = netip.AddrPortFrom(web.Addr(), 81)
	sticky.Persistence = model.Persistence{Enabled: true, Timeout: time.Hour}
	changes = append(changes, model.Change{Op: model.ServiceAdd, Service: sticky})
	for _, c := range changes[1:3] {
		c.Service = sticky
		changes = append(changes, c)
	}
	configured := []model.Director{{Services: []model.Service{{Virtual: changes[0].Service}, {Virtual: changes[3].Service}, {Virtual: sticky}}}}

	open := func(name string) (p plane.Plane, ends []Task) {
		director.Do(t, func() {
			sink := func(e model.Event) { t.Logf("%s", e) }
			var err error
			if p, err = openPlane(planeOptions{name: name, sink: sink, ipvs: model.IPVS{Timeouts: model.Timeouts{UDP: time.Minute}}}); err == nil {
				ends = swapIn(t.Context(), p, sink, configured)
			} else {
				t.Errorf("open %s: %v", name, err)
			}
		})
		if t.Failed() {
			t.FailNow()
		}
		return p, ends
	}
	connections := func(p plane.Plane) (n uint64) {
		t.Helper()
		c, err := p.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c {
			n += s.Connections
		}
		return n
	}
	type held struct {
		raw  net.Conn
		conn planetest.Conn
		real netip.AddrPort
	}
	ask := func(h *held) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		real, echo, err := h.conn.Exchange(ctx, []byte("still there?"))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", h.raw.LocalAddr(), err)
		case string(echo) != "still there?" || h.real.IsValid() && real != h.real:
			return fmt.Errorf("%s: %q by %s, before by %s", h.raw.LocalAddr(), echo, real, h.real)
		}
		h.real = real
		return nil
	}
	part := func(all []*held) {
		for _, h := range all {
			if c, ok := h.raw.(*net.TCPConn); ok {
				_ = c.SetLinger(0)
			}
			_ = h.raw.Close()
		}
	}
	// stay is who answers the client of the persistent service, now and before. Its
	// ports are none that the system gives: two planes do not know that a port is in
	// use with the same real server in the other one.
	port := 20000
	stay := func(home netip.AddrPort) netip.AddrPort {
		t.Helper()
		for range 5 {
			var raw net.Conn
			var err error
			client.Do(t, func() {
				port++
				raw, err = (&net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{Port: port}}).Dial("tcp4", sticky.Key.Addr.String())
			})
			if err != nil {
				t.Fatal(err)
			}
			h := &held{raw: raw, conn: planetest.NewConn(raw), real: home}
			if err := ask(h); err != nil {
				t.Fatalf("a client of a persistent service: %v", err)
			}
			part([]*held{h})
			home = h.real
		}
		return home
	}
	gather := func() (all []*held) {
		for i := range tcp + udp {
			network, to := "tcp4", web
			if i >= tcp {
				network, to = "udp4", dns
			}
			var raw net.Conn
			var err error
			client.Do(t, func() { raw, err = net.DialTimeout(network, to.String(), time.Minute) })
			if err != nil {
				t.Fatal(err)
			}
			h := &held{raw: raw, conn: planetest.NewConn(raw)}
			if err := ask(h); err != nil {
				t.Fatal(err)
			}
			all = append(all, h)
		}
		return all
	}
	alive := func(when string, all []*held) {
		t.Helper()
		var errs []error
		for _, h := range all {
			if err := ask(h); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			t.Fatalf("%s: %d of %d connections lost, the first: %v", when, len(errs), len(all), errs[0])
		}
		t.Logf("%s: 0 of %d connections lost", when, len(all))
	}
	// change changes the plane while some of the connections are busy.
	change := func(from plane.Plane, to string, all []*held) (p plane.Plane, ends []Task) {
		t.Helper()
		var wg sync.WaitGroup
		stop, lost := make(chan struct{}), make(chan error, 20)
		for i := range cap(lost) {
			wg.Go(func() {
				for {
					if err := ask(all[i*len(all)/cap(lost)]); err != nil {
						lost <- err
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		if err := from.Close(); err != nil {
			t.Fatal(err)
		}
		p, ends = open(to)
		close(stop)
		wg.Wait()
		close(lost)
		if err := <-lost; err != nil {
			t.Fatalf("change to %s: a busy connection was lost: %v", to, err)
		}
		alive("after the change to "+to, all)
		return p, ends
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Minute); !is(); time.Sleep(time.Second) {
			if time.Now().After(end) {
				t.Fatalf("not within five minutes: %s", what)
			}
		}
	}
	step := func(task Task) (open int) {
		director.Do(t, func() {
			s := task.(*swap)
			now, err := s.from.release(t.Context())
			if err == nil && now == (left{}) {
				err = s.from.remove(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
			open = now.open
		})
		return open
	}

	p, ends := open("ipvs")
	if len(ends) > 0 {
		t.Fatalf("%v before anything was there", ends)
	}
	if err := p.Apply(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	first := gather()
	home := stay(netip.AddrPort{})
	p, ends = change(p, "ebpf", first)
	stay(home)
	if len(ends) != 1 {
		t.Fatalf("%d planes to end, want IPVS", len(ends))
	}
	n := connections(p)
	second := gather()
	if got := connections(p) - n; got != uint64(tcp+udp) {
		t.Errorf("%d of %d new connections by eBPF", got, tcp+udp)
	}
	alive("IPVS beside eBPF", first)
	part(first)
	until("IPVS is empty", func() bool { return step(ends[0]) == 0 })
	ends[0].(*swap).from.close()
	if out, err := os.ReadFile("/proc/thread-self/net/ip_vs"); err == nil {
		t.Logf("IPVS: %s", out)
	}
	alive("eBPF alone", second)

	p, ends = change(p, "ipvs", second)
	if len(ends) != 1 {
		t.Fatalf("%d planes to end, want the eBPF table", len(ends))
	}
	n = connections(p)
	third := gather()
	// What IPVS has counted may be told a moment late.
	until("all new connections are counted by IPVS", func() bool { return connections(p)-n == uint64(tcp+udp) })
	alive("eBPF beside IPVS", second)
	part(second[:tcp]) // the datagrams' time-out is long
	until("only datagrams are left in the eBPF table", func() bool { return step(ends[0]) <= udp })
	alive("IPVS", third)
	part(third)
	if err := p.Close(); err != nil {
		t.Error(err)
	}

	// IPVS would take all packets before the proxy does.
	p, _ = open("proxy")
	director.Do(t, func() {
		if out, err := os.ReadFile("/proc/thread-self/net/ip_vs"); err != nil || strings.Contains(string(out), "0A010064") {
			t.Errorf("beside the proxy IPVS has %s, %v", out, err)
		}
	})
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
