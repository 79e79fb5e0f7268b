package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/memory"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

// listPlane is a table with connections that the test says.
type listPlane struct {
	plane.Plane
	flows  []model.Flow
	passed []model.Flow
	active map[model.ServiceKey]uint64
}

func (p *listPlane) Flows(context.Context) ([]model.Flow, error) { return slices.Clone(p.flows), nil }

func (p *listPlane) PassBy(_ context.Context, flows []model.Flow) error {
	p.passed = flows
	return nil
}

func (p *listPlane) Counters(context.Context) (out []model.ServiceCounters, err error) {
	for k, n := range p.active {
		out = append(out, model.ServiceCounters{Key: k, Reals: []model.RealCounters{{Active: n}}})
	}
	return out, nil
}

func tableOfText(t *testing.T, p plane.Plane) string {
	t.Helper()
	table, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return table.String()
}

// stubborn is a predecessor that cannot be removed at first.
type stubborn struct {
	log   []string
	fails int
}

func (s *stubborn) rows(context.Context) (model.Table, error) { return model.Table{}, nil }
func (s *stubborn) release(context.Context) (int, error) {
	s.log = append(s.log, "release")
	return 0, nil
}

func (s *stubborn) remove(context.Context) error {
	s.log = append(s.log, "remove")
	if s.fails--; s.fails >= 0 {
		return errors.New("device or resource busy")
	}
	return nil
}
func (s *stubborn) close()         { s.log = append(s.log, "close") }
func (s *stubborn) String() string { return "the old plane" }

// What cannot be taken away is tried again, and told once; what has gone is
// left in peace, and the task goes on, as its end would be the daemon's.
func TestOldPlaneIsRemovedInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := &stubborn{fails: 2}
		var told []string
		task := &swap{from: old, every: time.Second, sink: func(e model.Event) { told = append(told, e.Text) }}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- task.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"release", "remove", "release", "remove", "release", "remove", "close"}, old.log); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if d := cmp.Diff([]string{"end the old plane: device or resource busy; it is tried again each second", "the last connection of the old plane has ended; it is gone"}, told); d != "" {
			t.Errorf("told (-want +got):\n%s", d)
		}
	})
}

// What the configuration names goes over, weights of the old plane become 0, a
// service leaves it with its last connection, and what is others' stays.
func TestSwapFromIPVSStepByStep(t *testing.T) {
	ctx := t.Context()
	key := func(text string) model.ServiceKey {
		k, err := model.ParseServiceKey(text)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	web, dns, other := key("tcp 10.1.0.100:80"), key("udp 10.1.0.100:53"), key("tcp 10.9.9.9:443")
	fill := func(p plane.Plane, weight int, keys ...model.ServiceKey) {
		for _, k := range keys {
			v := model.VirtualService{Key: k, Scheduler: "rr"}
			r := model.RealServer{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.240.0.20"), k.Addr.Port()), Forward: model.Masq, Weight: weight}
			if err := p.Apply(ctx, []model.Change{{Op: model.ServiceAdd, Service: v}, {Op: model.RealAdd, Service: v, Real: r}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	fresh := func() *listPlane {
		p, err := memory.New(memory.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return &listPlane{Plane: p}
	}
	old, next := fresh(), fresh()
	fill(old, 3, web, dns, other)
	flow := func(p model.Protocol, port uint16, state string) model.Flow {
		return model.Flow{Proto: p, Client: netip.AddrPortFrom(netip.MustParseAddr("10.1.0.50"), port), State: state}
	}
	old.flows = []model.Flow{flow(model.TCP, 1, "ESTABLISHED"), flow(model.TCP, 2, "SYN_RECV"), flow(model.UDP, 3, "UDP"), flow(model.TCP, 0, "NONE")}
	old.active = map[model.ServiceKey]uint64{web: 1, dns: 1, other: 5}

	q, err := quiet(ctx, old, next, []model.Director{{Services: []model.Service{{Virtual: model.VirtualService{Key: web}}, {Virtual: model.VirtualService{Key: dns}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if open, err := takeOver(ctx, next, q); err != nil || open != 2 {
		t.Errorf("%d open, %v; want 2", open, err)
	}
	want := fresh()
	fill(want, 3, web, dns)
	if diff := cmp.Diff(tableOfText(t, want), tableOfText(t, next)); diff != "" {
		t.Errorf("the new plane (-want +got):\n%s", diff)
	}
	want = fresh()
	fill(want, 0, web, dns)
	fill(want, 3, other)
	if diff := cmp.Diff(tableOfText(t, want), tableOfText(t, old)); diff != "" {
		t.Errorf("the old plane (-want +got):\n%s", diff)
	}
	if len(next.passed) != 2 || next.passed[0].State != "SYN_RECV" || next.passed[1].Proto != model.UDP {
		t.Errorf("passes by: %+v; want the half-open and the UDP one", next.passed)
	}

	old.flows, old.active = nil, map[model.ServiceKey]uint64{other: 5}
	if open, err := q.release(ctx); err != nil || open != 0 {
		t.Errorf("%d open, %v; want 0", open, err)
	}
	want = fresh()
	fill(want, 3, other)
	if diff := cmp.Diff(tableOfText(t, want), tableOfText(t, old)); diff != "" {
		t.Errorf("the old plane at the end (-want +got):\n%s", diff)
	}

	// There, it is nobody's any more.
	if q, err := quiet(ctx, old, next, nil); q != nil || err != nil {
		t.Errorf("%v, %v; want nothing to end", q, err)
	}
}

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
	configured := []model.Director{{Services: []model.Service{{Virtual: changes[0].Service}, {Virtual: changes[3].Service}}}}

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
	leave := func(all []*held) {
		for _, h := range all {
			if c, ok := h.raw.(*net.TCPConn); ok {
				_ = c.SetLinger(0)
			}
			_ = h.raw.Close()
		}
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
			var err error
			if open, err = s.from.release(t.Context()); err == nil && open == 0 {
				err = s.from.remove(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
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
	p, ends = change(p, "ebpf", first)
	if len(ends) != 1 {
		t.Fatalf("%d planes to end, want IPVS", len(ends))
	}
	n := connections(p)
	second := gather()
	if got := connections(p) - n; got != uint64(tcp+udp) {
		t.Errorf("%d of %d new connections by eBPF", got, tcp+udp)
	}
	alive("IPVS beside eBPF", first)
	leave(first)
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
	leave(second[:tcp]) // the datagrams' time-out is long
	until("only datagrams are left in the eBPF table", func() bool { return step(ends[0]) <= udp })
	alive("IPVS", third)
	leave(third)
	if err := errors.Join(p.Close()); err != nil {
		t.Error(err)
	}
}
