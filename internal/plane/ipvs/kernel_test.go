package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

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
		b := &bench{t: t, six: six, options: Options{Timeouts: Timeouts{UDP: po.UDPTimeout}},
			director: planetest.NewHost(t, "director"), client: planetest.NewHost(t, "client"),
			reals: map[model.Protocol][planetest.Reals]netip.AddrPort{}}
		racks := []*planetest.Host{planetest.NewHost(t, "rack0"), planetest.NewHost(t, "rack1")}

		b.director.Connect(t, "outside", address(six, 1, 1)+length, b.client, "eth0", address(six, 1, 50)+length)
		b.client.Route(t, everywhere, address(six, 1, 1))
		for i := range planetest.Virtuals {
			host := "/32"
			if six {
				host = "/128"
			}
			b.director.Address(t, "outside", address(six, 1, 100+i)+host)
		}
		for i, rack := range racks {
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
				racks[i/2].Do(t, func() { all[i] = planetest.StartServer(t, p, netip.AddrPortFrom(a, uint16(8000+i))) })
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
