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
	tcFlowStateFLOW_CLOSE_WAIT:  "CLOSE_WAIT",
	tcFlowStateFLOW_TIME_WAIT:   "TIME_WAIT",
	tcFlowStateFLOW_CLOSE:       "CLOSE",
	tcFlowStateFLOW_UDP:         "UDP",
}

// Counters sums up what the processors have counted. It makes no system call,
// and takes no longer when there are more connections.
// A service's totals include those of real servers that have been deleted.
func (p *Plane) Counters(context.Context) ([]model.ServiceCounters, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	var out []model.ServiceCounters
	for _, v := range slices.SortedFunc(maps.Values(p.state.services), func(x, y *service) int { return x.Key.Compare(y.Key) }) {
		past := &p.t.services[v.slot].Past
		sc := model.ServiceCounters{Key: v.Key, Counters: model.Counters{
			Connections: past[0], PacketsIn: past[1], PacketsOut: past[2], BytesIn: past[3], BytesOut: past[4]}}
		for _, r := range v.reals {
			rc := model.RealCounters{Addr: r.Addr, Counters: p.t.realCounters(r.slot)}
			row := &p.t.reals[r.slot]
			rc.Active, rc.Inactive = uint64(atomic.LoadUint32(&row.Active)), uint64(atomic.LoadUint32(&row.Inactive))
			sc.Counters = sc.Add(rc.Counters)
			sc.Reals = append(sc.Reals, rc)
		}
		out = append(out, sc)
	}
	return out, nil
}

// eachFlow calls fn with a copy of each connection whose real server is there.
func (t *tables) eachFlow(fn func(*tcFlow)) {
	t.eachFlowOf(0, t.maxFlows, fn)
}

// eachFlowOf does so with those in a part of the table, and tells whether there
// may be more behind it.
func (t *tables) eachFlowOf(from, to int, fn func(*tcFlow)) (more bool) {
	high := min(int(atomic.LoadUint32(&t.control.NextSlot)), t.maxFlows)
	var f tcFlow // one for all: fn could keep it, as far as the compiler knows
	for i := from; i < min(to, high); i++ {
		at := &t.flows[i]
		gen := atomic.LoadUint32(&at.Gen)
		if gen&1 == 0 {
			continue
		}
		f = *at
		if atomic.LoadUint32(&at.Gen) != gen || int(f.RealSlot) >= len(t.reals) {
			continue // ended while it was read
		}
		if atomic.LoadUint32(&t.realCPUs[int(f.RealSlot)*t.cpus].Gen) == f.RealGen {
			fn(&f)
		}
	}
	return to < high
}

// Flows lists the connections. It makes no system call but for the clock. The
// table may change meanwhile, as it does under the programs' hands anyway.
func (p *Plane) Flows(ctx context.Context) ([]model.Flow, error) {
	const together = 4096 // others need the table, too
	var parts [][]model.Flow
	some := make([]model.Flow, 0, together)
	for from, more := 0, true; more; from += together {
		err := ctx.Err()
		if err == nil {
			some, more, err = p.someFlows(some[:0], from, from+together)
		}
		if err != nil {
			return nil, err
		}
		parts = append(parts, slices.Clone(some))
	}
	return slices.Concat(parts...), nil
}

// someFlows appends those in a part of the table.
func (p *Plane) someFlows(some []model.Flow, from, to int) (_ []model.Flow, more bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, false, plane.ErrClosed
	}
	now := ticksNow()
	more = p.t.eachFlowOf(from, to, func(f *tcFlow) {
		state := min(int(f.Word&0xff), len(stateText)-1)
		real := realOf(&p.t.reals[f.RealSlot]).Addr
		if real.Port() == 0 {
			real = netip.AddrPortFrom(real.Addr(), portOfWire(f.Rport))
		}
		left := int32(p.t.control.Timeout[state]) - int32(now-f.Seen)
		if f.Word&uint32(tcFlowFlagFLOW_SOCKET) != 0 { // its socket ends it
			left = int32(p.t.control.Timeout[state])
		}
		some = append(some, model.Flow{
			Proto:   protocolOf(uint8(f.Word >> 16)),
			Client:  netip.AddrPortFrom(addrOfWire(f.Client), portOfWire(f.Cport)),
			Virtual: netip.AddrPortFrom(addrOfWire(f.Virt), portOfWire(f.Vport)),
			Real:    real,
			State:   stateText[state],
			Expires: time.Duration(max(left, 0)) << tickShift,
		})
	})
	return some, more, nil
}

// Timeouts are those of ipvsadm --set.
func (p *Plane) Timeouts(context.Context) (model.Timeouts, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return model.Timeouts{}, plane.ErrClosed
	}
	return model.Timeouts{TCP: p.o.Timeouts.Established, TCPFin: p.o.Timeouts.FinWait, UDP: p.o.Timeouts.UDP}, nil
}

// ticksNow is the clock of the programs (bpf/maps.h).
func ticksNow() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0
	}
	return uint32(uint64(ts.Nano()) >> tickShift)
}
