package ebpf

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// crowded is a plane whose table is full of connections that no packet has opened.
func crowded(t testing.TB, n int) *Plane {
	t.Helper()
	requireRoot(t)
	o := testOptions()
	o.MaxFlows = n
	p := open(t, o)
	web := netip.MustParseAddrPort("10.1.0.100:80")
	apply(t, p, addService(model.TCP, web, "rr"), addReal(model.TCP, web, "10.240.0.20:80", 1))
	v := p.state.services[model.ServiceKey{Proto: model.TCP, Addr: web}]
	slot := v.reals[0].slot
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range n {
		p.t.flows[i] = tcFlow{Gen: 1, RealSlot: slot, RealGen: atomic.LoadUint32(&p.t.realCPUs[int(slot)*p.t.cpus].Gen), Seen: ticksNow(),
			Word: uint32(model.TCP.Number())<<16 | uint32(tcFlowStateFLOW_ESTABLISHED), Client: wireAddr(web.Addr()), Cport: uint16(i), Virt: wireAddr(web.Addr()), Vport: wirePort(80)}
	}
	atomic.StoreUint32(&p.t.control.NextSlot, uint32(n))
	return p
}

// A list of all connections is long: it ends with who asked for it, and lets
// others use the table meanwhile.
func TestFlowsEndWithTheirContext(t *testing.T) {
	p := crowded(t, 1<<15)
	if all, err := p.Flows(t.Context()); err != nil || len(all) != 1<<15 {
		t.Errorf("%d connections, %v; want %d", len(all), err, 1<<15)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := p.Flows(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%d connections, %v; want an end", len(all), err)
	}
}

// How long 262,144 connections take to list, and for how long others wait for
// the table meanwhile.
func BenchmarkFlows(b *testing.B) {
	const n = 1 << 18
	p := crowded(b, n)
	stop, longest := make(chan struct{}), make(chan time.Duration)
	go func() {
		most := time.Duration(0)
		for {
			select {
			case <-stop:
				longest <- most
				return
			case <-time.After(time.Millisecond):
				begin := time.Now()
				_, _ = p.Read(b.Context())
				most = max(most, time.Since(begin))
			}
		}
	}()
	for b.Loop() {
		if all, err := p.Flows(b.Context()); err != nil || len(all) != n {
			b.Fatalf("%d connections, %v; want %d", len(all), err, n)
		}
	}
	close(stop)
	b.ReportMetric(float64((<-longest).Microseconds())/1000, "ms-waited-at-most")
}
