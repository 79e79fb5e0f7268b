package ebpf

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// stateText names the states as ipvsadm -Lc does.
var stateText = [...]string{
	tcFlowStateFLOW_NONE:        "NONE",
	tcFlowStateFLOW_SYN_RECV:    "SYN_RECV",
	tcFlowStateFLOW_ESTABLISHED: "ESTABLISHED",
	tcFlowStateFLOW_FIN_WAIT:    "FIN_WAIT",
	tcFlowStateFLOW_TIME_WAIT:   "TIME_WAIT",
	tcFlowStateFLOW_CLOSE:       "CLOSE",
	tcFlowStateFLOW_UDP:         "UDP",
}

// Counters sums up what the processors have counted. It makes no system call.
// A service's totals include those of real servers that have been deleted.
func (p *Plane) Counters(context.Context) ([]model.ServiceCounters, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	type gauge struct{ active, inactive uint64 }
	open := map[uint32]*gauge{}
	p.t.eachFlow(func(f *tcFlow) {
		g := open[f.RealSlot]
		if g == nil {
			g = &gauge{}
			open[f.RealSlot] = g
		}
		if tcFlowState(f.State) == tcFlowStateFLOW_ESTABLISHED {
			g.active++
		} else {
			g.inactive++
		}
	})

	var out []model.ServiceCounters
	for _, v := range slices.SortedFunc(maps.Values(p.state.services), func(x, y *service) int { return x.key.Compare(y.key) }) {
		past := &p.t.services[v.slot].Past
		sc := model.ServiceCounters{Key: v.key, Counters: model.Counters{
			Connections: past[0], PacketsIn: past[1], PacketsOut: past[2], BytesIn: past[3], BytesOut: past[4]}}
		for _, r := range slices.SortedFunc(maps.Values(v.reals), func(x, y *real) int { return x.Addr.Compare(y.Addr) }) {
			rc := model.RealCounters{Addr: r.Addr, Counters: p.t.realCounters(r.slot)}
			if g := open[r.slot]; g != nil {
				rc.Active, rc.Inactive = g.active, g.inactive
			}
			sc.Counters = sc.Add(rc.Counters)
			sc.Reals = append(sc.Reals, rc)
		}
		out = append(out, sc)
	}
	return out, nil
}

// eachFlow calls fn with a copy of each connection whose real server is there.
func (t *tables) eachFlow(fn func(*tcFlow)) {
	high := min(int(atomic.LoadUint32(&t.control.NextSlot)), len(t.flows))
	for i := range high {
		at := &t.flows[i]
		gen := atomic.LoadUint32(&at.Gen)
		if gen&1 == 0 {
			continue
		}
		f := *at
		if atomic.LoadUint32(&at.Gen) != gen || int(f.RealSlot) >= len(t.reals) {
			continue // ended while it was read
		}
		if atomic.LoadUint32(&t.realCPUs[int(f.RealSlot)*t.cpus].Gen) == f.RealGen {
			fn(&f)
		}
	}
}

// Flows lists the connections. It makes no system call but for the clock.
func (p *Plane) Flows(context.Context) ([]model.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	now := ticksNow()
	var out []model.Flow
	p.t.eachFlow(func(f *tcFlow) {
		state := min(int(f.State), len(stateText)-1)
		r := &p.t.reals[f.RealSlot]
		left := int32(p.t.control.Timeout[state]) - int32(now-f.Seen)
		out = append(out, model.Flow{
			Proto:   protocolOf(f.Proto),
			Client:  netip.AddrPortFrom(addrOfWire(f.Client), portOfWire(f.Cport)),
			Virtual: netip.AddrPortFrom(addrOfWire(f.Virt), portOfWire(f.Vport)),
			Real:    netip.AddrPortFrom(addrOfWire(r.Addr), portOfWire(r.Port)),
			State:   stateText[state],
			Expires: time.Duration(max(left, 0)) << tickShift,
		})
	})
	return out, nil
}

// ticksNow is the clock of the programs (bpf/maps.h).
func ticksNow() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0
	}
	return uint32(uint64(ts.Nano()) >> tickShift)
}
