package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

// The tests of this file need a kernel with IPVS, as root. Few machines that
// build software have one, so internal/lab boots one and runs this package's
// test binary in it, with this variable set.
const inKernel = "BATUTA_IPVS_KERNEL"

func requireKernel(t testing.TB) {
	t.Helper()
	if os.Getenv(inKernel) == "" {
		t.Skip("needs a kernel with IPVS: go test ./internal/lab -run TestIPVS runs this in one")
	}
}

func TestConformance(t *testing.T) {
	requireKernel(t)
	planetest.Run(t, planetest.Harness{New: newBench(false), Without: lacks})
}

func TestConformanceIPv6(t *testing.T) {
	requireKernel(t)
	planetest.Run(t, planetest.Harness{New: newBench(true), Without: lacks})
}

// The kernel knows one spelling; a file may have another.
func TestServicesAreReadBackAsTheyWereWritten(t *testing.T) {
	requireKernel(t)
	b := newBench(false)(t, planetest.Options{})
	want := model.Table{Services: []model.VirtualService{{
		Key: model.ServiceKey{Proto: model.TCP, Addr: b.Virtual(0)}, Scheduler: "sh", SchedFlags: "flag-2,sh-fallback",
		Persistence: model.Persistence{Enabled: true, Timeout: time.Minute, Netmask: netip.MustParseAddr("255.255.255.255")}}}}
	if err := b.Plane().Apply(t.Context(), []model.Change{{Op: model.ServiceAdd, Service: want.Services[0]}}); err != nil {
		t.Fatal(err)
	}
	got, err := b.Plane().Read(t.Context())
	if diff := cmp.Diff(want.String(), got.String()); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	b.Reopen(t)
	want.Services[0].SchedFlags, want.Services[0].Persistence.Netmask = "sh-fallback,sh-port", netip.Addr{}
	got, err = b.Plane().Read(t.Context())
	if diff := cmp.Diff(want.String(), got.String()); err != nil || diff != "" {
		t.Errorf("as another program reads it: %v (-want +got):\n%s", err, diff)
	}
}

// With gate and ipip the real server answers the client itself: packets
// arrive there as they were, by Ethernet or in a tunnel.
func TestGateAndTunnelBringThePacketsThere(t *testing.T) {
	requireKernel(t)
	for forward, prepare := range map[model.Forward]func(t *testing.T, rack *planetest.Host){
		model.Gate: func(*testing.T, *planetest.Host) {},
		model.IPIP: func(t *testing.T, rack *planetest.Host) {
			if out, err := exec.Command("modprobe", "ipip").CombinedOutput(); err != nil {
				t.Fatalf("modprobe ipip: %v\n%s", err, out)
			}
			if err := rack.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "tun1"}, Local: net.ParseIP("10.240.0.20")}); err != nil {
				t.Fatal(err)
			}
			rack.Up(t, "tun1")
			rack.Sysctl(t, "net/ipv4/conf/tun1/rp_filter", "0")
			rack.Sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
		},
	} {
		t.Run(forward.String(), func(t *testing.T) {
			b := newBench(false)(t, planetest.Options{}).(*bench)
			vip := b.Virtual(0)
			prepare(t, b.racks[0])
			// The way back does not lead over the director, which would not
			// forward packets from its own address.
			b.racks[0].Connect(t, "back", "10.9.0.20/24", b.client, "side", "10.9.0.50/24")
			b.racks[0].Route(t, "10.1.0.50/32", "10.9.0.50")
			b.racks[0].Address(t, "lo", vip.Addr().String()+"/32") // and does not answer ARP for it there
			for _, p := range []model.Protocol{model.TCP, model.UDP} {
				b.racks[0].Do(t, func() { planetest.StartServer(t, p, vip) })
				service := model.VirtualService{Key: model.ServiceKey{Proto: p, Addr: vip}, Scheduler: "rr"}
				if err := b.plane.Apply(t.Context(), []model.Change{{Op: model.ServiceAdd, Service: service}, {Op: model.RealAdd, Service: service,
					Real: model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:80"), Forward: forward, Weight: 1}}}); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				c, err := b.Dial(ctx, p, vip)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close() //nolint:errcheck // the test is over
				if real, echo, err := c.Exchange(ctx, []byte("hello")); err != nil || string(echo) != "hello" || real != vip {
					t.Errorf("%s: %s says %q, %v", p, real, echo, err)
				}
				flows, err := b.plane.Flows(ctx)
				if err != nil || !slices.ContainsFunc(flows, func(f model.Flow) bool {
					return f.Proto == p && f.Client == c.Local() && f.Real == netip.MustParseAddrPort("10.240.0.20:80")
				}) {
					t.Errorf("%s: flows %+v, %v", p, flows, err)
				}
			}
		})
	}
}

// A fallback to the director itself is a gate row for 127.0.0.1, as
// ldirectord writes it: its own server answers on the virtual address.
func TestFallbackToTheDirectorItself(t *testing.T) {
	requireKernel(t)
	b := newBench(false)(t, planetest.Options{}).(*bench)
	vip := b.Virtual(0)
	b.director.Do(t, func() { planetest.StartServer(t, model.TCP, vip) })
	service := model.VirtualService{Key: model.ServiceKey{Proto: model.TCP, Addr: vip}, Scheduler: "wlc"}
	real := func(op model.ChangeOp, addr string, f model.Forward, weight int) model.Change {
		return model.Change{Op: op, Service: service, Real: model.RealServer{Addr: netip.MustParseAddrPort(addr), Forward: f, Weight: weight}}
	}
	rack := b.Real(model.TCP, 0)
	visit := func() netip.AddrPort {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := b.Dial(ctx, model.TCP, vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // the visit is over
		real, _, err := c.Exchange(ctx, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		return real
	}
	for _, step := range []struct {
		changes []model.Change
		want    netip.AddrPort
	}{
		{[]model.Change{{Op: model.ServiceAdd, Service: service}, real(model.RealAdd, rack.String(), model.Masq, 1)}, rack},
		{[]model.Change{real(model.RealEdit, rack.String(), model.Masq, 0), real(model.RealAdd, "127.0.0.1:80", model.Gate, 1)}, vip},
		{[]model.Change{real(model.RealEdit, rack.String(), model.Masq, 1), real(model.RealDelete, "127.0.0.1:80", model.Gate, 0)}, rack},
	} {
		if err := b.plane.Apply(t.Context(), step.changes); err != nil {
			t.Fatal(err)
		}
		if got := visit(); got != step.want {
			t.Errorf("after %s: answered by %s, want %s", step.changes, got, step.want)
		}
	}
}

// The templates of a service for all ports, and of whole networks, are
// understood as the kernel writes them.
func TestBindingsOfAllPortsAndNetworks(t *testing.T) {
	requireKernel(t)
	b := newBench(false)(t, planetest.Options{}).(*bench)
	vip := b.Virtual(0)
	b.racks[0].Do(t, func() { planetest.StartServer(t, model.TCP, netip.MustParseAddrPort("10.240.0.20:80")) })
	service := model.VirtualService{Key: model.ServiceKey{Proto: model.TCP, Addr: netip.AddrPortFrom(vip.Addr(), 0)}, Scheduler: "rr",
		Persistence: model.Persistence{Enabled: true, Timeout: 5 * time.Minute, Netmask: netip.MustParseAddr("255.255.255.0")}}
	real := netip.MustParseAddrPort("10.240.0.20:0")
	if err := b.plane.Apply(t.Context(), []model.Change{{Op: model.ServiceAdd, Service: service},
		{Op: model.RealAdd, Service: service, Real: model.RealServer{Addr: real, Forward: model.Masq, Weight: 1}}}); err != nil {
		t.Fatal(err)
	}
	c, err := b.Dial(t.Context(), model.TCP, vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test is over
	all, err := b.plane.Bindings(t.Context())
	if err != nil || len(all) != 1 || all[0].Expires <= time.Minute || all[0].Expires > 5*time.Minute {
		t.Fatalf("%v, %v; want one binding", all, err)
	}
	all[0].Expires = 0
	if want := (model.Binding{Service: service.Key, Client: netip.MustParseAddr("10.1.0.0"), Real: real}); all[0] != want {
		t.Errorf("%+v, want %+v", all[0], want)
	}
}

var lacks = map[planetest.Feature]string{}

// bench is a building of its own for each case, so that no connection of the
// case before is left:
//
//	client ───────── director ──┬── rack0   10.240.0.20, .21
//	10.1.0.50  10.1.0.1         └── rack1   10.241.0.20, .21
//	           VIPs: .100–.102
//
// or the same in IPv6.
type bench struct {
	t                *testing.T
	options          Options
	director, client *planetest.Host
	plane            *Plane
	racks            []*planetest.Host
	six              bool
	reals            map[model.Protocol][planetest.Reals]netip.AddrPort
}

// address writes 10.NET.0.HOST, or the IPv6 address that is like it.
func address(six bool, network, host int) string {
	if six {
		return fmt.Sprintf("2001:db8:%d::%d", network, host)
	}
	return fmt.Sprintf("10.%d.0.%d", network, host)
}

func newBench(six bool) func(*testing.T, planetest.Options) planetest.Bench {
	return func(t *testing.T, po planetest.Options) planetest.Bench {
		length, everywhere, forwarding := "/24", "0.0.0.0/0", "net/ipv4/ip_forward"
		if six {
			length, everywhere, forwarding = "/64", "::/0", "net/ipv6/conf/all/forwarding"
		}
		b := &bench{t: t, six: six, options: Options{IPVS: model.IPVS{Timeouts: model.Timeouts{UDP: po.UDPTimeout}}},
			director: planetest.NewHost(t, "director"), client: planetest.NewHost(t, "client"),
			reals: map[model.Protocol][planetest.Reals]netip.AddrPort{}}
		b.racks = []*planetest.Host{planetest.NewHost(t, "rack0"), planetest.NewHost(t, "rack1")}

		b.director.Connect(t, "outside", address(six, 1, 1)+length, b.client, "eth0", address(six, 1, 50)+length)
		b.client.Route(t, everywhere, address(six, 1, 1))
		for i := range planetest.Virtuals {
			host := "/32"
			if six {
				host = "/128"
			}
			b.director.Address(t, "outside", address(six, 1, 100+i)+host)
		}
		for i, rack := range b.racks {
			network := 240 + i
			b.director.Connect(t, fmt.Sprint("inside", i), address(six, network, 1)+length, rack, "eth0", address(six, network, 20)+length)
			rack.Address(t, "eth0", address(six, network, 21)+length)
			rack.Route(t, everywhere, address(six, network, 1))
		}
		b.director.Sysctl(t, forwarding, "1")
		b.open()
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			var all [planetest.Reals]netip.AddrPort
			for i := range all {
				a := netip.MustParseAddr(address(six, 240+i/2, 20+i%2))
				b.racks[i/2].Do(t, func() { all[i] = planetest.StartServer(t, p, netip.AddrPortFrom(a, uint16(8000+i))) })
			}
			b.reals[p] = all
		}
		t.Cleanup(func() {
			if err := b.plane.Close(); err != nil && !errors.Is(err, plane.ErrClosed) {
				t.Errorf("close: %v", err)
			}
		})
		return b
	}
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	b.director.Do(b.t, func() { b.plane, err = Open(b.options) })
	if err != nil {
		b.t.Fatalf("open: %v", err)
	}
}

func (b *bench) Plane() plane.Plane { return b.plane }

func (b *bench) Virtual(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(address(b.six, 1, 100+i)), 80)
}

func (b *bench) Real(p model.Protocol, i int) netip.AddrPort { return b.reals[p][i] }

func (b *bench) Advance(d time.Duration) { time.Sleep(d) } // the kernel's clock

func (b *bench) Reopen(t *testing.T) {
	if err := b.plane.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	b.open()
}

func (b *bench) Dial(ctx context.Context, p model.Protocol, virtual netip.AddrPort) (planetest.Conn, error) {
	var (
		c   net.Conn
		err error
	)
	b.client.Do(b.t, func() {
		var d net.Dialer
		c, err = d.DialContext(ctx, p.String(), virtual.String())
	})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return planetest.NewConn(c), nil
}
