package proxy_test

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
	"github.com/batuta-ha/batuta/internal/plane/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var lacks = map[planetest.Feature]string{
	planetest.KeepsTable:       "the table lives in the process",
	planetest.KeepsConnections: "connections live in the process",
}

func TestConformance(t *testing.T) {
	planetest.Run(t, planetest.Harness{
		New:     func(t *testing.T, o planetest.Options) planetest.Bench { return newBench(t, o, false) },
		Without: lacks,
	})
}

func TestConformanceIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		if os.Getenv("BATUTA_REQUIRE_ROOT") == "1" {
			t.Fatalf("no IPv6 on the loopback: %v", err)
		}
		t.Skipf("no IPv6 on the loopback: %v", err)
	}
	_ = l.Close()
	planetest.Run(t, planetest.Harness{
		New: func(t *testing.T, o planetest.Options) planetest.Bench { return newBench(t, o, true) },
		Without: map[planetest.Feature]string{
			planetest.KeepsTable:       lacks[planetest.KeepsTable],
			planetest.KeepsConnections: lacks[planetest.KeepsConnections],
			planetest.Gate:             "the IPv6 loopback has one address, so such a real server would be the service itself",
		},
	})
}

// bench is a proxy on the loopback, with real servers there too.
type bench struct {
	options  proxy.Options
	plane    *proxy.Plane
	virtuals [planetest.Virtuals]netip.AddrPort
	reals    map[model.Protocol][planetest.Reals]netip.AddrPort
}

func newBench(t *testing.T, o planetest.Options, v6 bool) *bench {
	t.Helper()
	b := &bench{options: proxy.Options{HoldAll: true, UDPTimeout: o.UDPTimeout}, reals: map[model.Protocol][planetest.Reals]netip.AddrPort{}}
	for i := range b.virtuals {
		b.virtuals[i] = freeAddr(t, v6)
	}
	for _, p := range []model.Protocol{model.TCP, model.UDP} {
		var addrs [planetest.Reals]netip.AddrPort
		for i := range addrs {
			addrs[i] = planetest.StartServer(t, p, freeAddr(t, v6))
		}
		b.reals[p] = addrs
	}
	b.plane = proxy.New(b.options)
	t.Cleanup(func() { _ = b.plane.Close() })
	return b
}

func (b *bench) Plane() plane.Plane                          { return b.plane }
func (b *bench) Advance(d time.Duration)                     { time.Sleep(d) }
func (b *bench) Virtual(i int) netip.AddrPort                { return b.virtuals[i] }
func (b *bench) Real(p model.Protocol, i int) netip.AddrPort { return b.reals[p][i] }

func (b *bench) Reopen(t *testing.T) {
	if err := b.plane.Close(); err != nil {
		t.Fatal(err)
	}
	b.plane = proxy.New(b.options)
	t.Cleanup(func() { _ = b.plane.Close() })
}

func (b *bench) Dial(ctx context.Context, p model.Protocol, virtual netip.AddrPort) (planetest.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, p.String(), virtual.String())
	if err != nil {
		return nil, err
	}
	return planetest.NewConn(c), nil
}

// freeAddr finds an address of the loopback that nobody uses for TCP or UDP.
// Ports stay below those that the kernel gives to clients.
func freeAddr(t *testing.T, v6 bool) netip.AddrPort {
	t.Helper()
	for range 100 {
		n := rand.Uint32()
		a := netip.AddrFrom4([4]byte{127, 64 | byte(n>>16)&63, byte(n >> 8), byte(n)&127 | 1})
		if v6 {
			a = netip.IPv6Loopback()
		}
		ap := netip.AddrPortFrom(a, uint16(10000+rand.IntN(20000)))
		l, err := net.Listen("tcp", ap.String())
		if err != nil {
			continue
		}
		pc, err := net.ListenPacket("udp", ap.String())
		_ = l.Close()
		if err != nil {
			continue
		}
		_ = pc.Close()
		return ap
	}
	t.Fatal("no free port on the loopback after 100 attempts")
	return netip.AddrPort{}
}
