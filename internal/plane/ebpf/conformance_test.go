package ebpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

func TestConformance(t *testing.T) {
	requireRoot(t)
	planetest.Run(t, planetest.Harness{New: newBench(testOptions)})
}

// As before Linux 6.6, and with transmit offload off: every packet carries its
// sum, and every receiver verifies it.
func TestConformanceClsact(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	planetest.Run(t, planetest.Harness{New: newBench(func() Options {
		o := testOptions()
		o.NoTCX = true
		return o
	})})
}

func withoutOffload(t *testing.T) {
	for _, e := range []struct {
		h    *host
		name string
	}{{client, "eth0"}, {director, "outside"}, {director, "inside0"}, {director, "inside1"}, {rack0, "eth0"}, {rack1, "eth0"}} {
		e.h.offload(t, e.name, txChecksum, false)
	}
}

// The same in IPv6.
func TestConformanceIPv6(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	planetest.Run(t, planetest.Harness{New: func(t *testing.T, o planetest.Options) planetest.Bench {
		return makeBench(t, testOptions(), o, six)
	}})
}

type bench struct {
	family func(string) string
	o      Options
	plane  *Plane
	reals  map[model.Protocol][planetest.Reals]netip.AddrPort
}

func newBench(options func() Options) func(*testing.T, planetest.Options) planetest.Bench {
	return func(t *testing.T, po planetest.Options) planetest.Bench {
		return makeBench(t, options(), po, func(a string) string { return a })
	}
}

func makeBench(t *testing.T, o Options, po planetest.Options, family func(string) string) planetest.Bench {
	o.Timeouts.UDP = po.UDPTimeout
	b := &bench{family: family, o: o, plane: open(t, o), reals: map[model.Protocol][planetest.Reals]netip.AddrPort{}}
	for _, p := range []model.Protocol{model.TCP, model.UDP} {
		var all [planetest.Reals]netip.AddrPort
		for i := range all {
			h := []*host{rack0, rack0, rack1, rack1}[i]
			a := netip.MustParseAddr(family([]string{"10.240.0.20", "10.240.0.21", "10.241.0.20", "10.241.0.21"}[i]))
			h.do(func() { all[i] = planetest.StartServer(t, p, netip.AddrPortFrom(a, uint16(8000+i))) })
		}
		b.reals[p] = all
	}
	return b
}

func (b *bench) Plane() plane.Plane { return b.plane }
func (b *bench) Virtual(i int) netip.AddrPort {
	return netip.MustParseAddrPort(b.family(vip(i, 80).String()))
}
func (b *bench) Real(p model.Protocol, i int) netip.AddrPort { return b.reals[p][i] }
func (b *bench) Advance(d time.Duration)                     { time.Sleep(d) } // the kernel's clock

func (b *bench) Reopen(t *testing.T) {
	if err := b.plane.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	b.plane = open(t, b.o)
}

func (b *bench) Dial(ctx context.Context, p model.Protocol, virtual netip.AddrPort) (planetest.Conn, error) {
	var (
		c   net.Conn
		err error
	)
	client.do(func() {
		var d net.Dialer
		c, err = d.DialContext(ctx, p.String(), virtual.String())
	})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return planetest.NewConn(c), nil
}
