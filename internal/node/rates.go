package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// How often counters are read for the rates; ipvsadm's are over two seconds.
const rateInterval = 2 * time.Second

// rateMeter reads the plane's counters now and then and keeps the difference
// as rates per second.
type rateMeter struct {
	plane plane.Plane
	ready chan struct{}
	mu    sync.Mutex
	rates []model.ServiceCounters
}

func newRateMeter(p plane.Plane) *rateMeter { return &rateMeter{plane: p, ready: make(chan struct{})} }

// needed tells whether anybody asks: not where the plane has rates of its own,
// and reading all of its counters would be for nothing.
func (m *rateMeter) needed() bool {
	_, own := plane.As[plane.RateKeeper](m.plane)
	return !own
}

func (m *rateMeter) String() string         { return "rates" }
func (m *rateMeter) Ready() <-chan struct{} { return m.ready }

// Run measures until ctx ends. A plane that cannot count for a moment loses
// one measurement, nothing else.
func (m *rateMeter) Run(ctx context.Context) error {
	close(m.ready)
	tick := time.NewTicker(rateInterval)
	defer tick.Stop()
	var last []model.ServiceCounters
	var at time.Time
	for {
		if now, err := m.plane.Counters(ctx); err == nil {
			t := time.Now()
			if last != nil {
				m.set(perSecond(last, now, t.Sub(at)))
			}
			last, at = now, t
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *rateMeter) set(r []model.ServiceCounters) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rates = r
}

func (m *rateMeter) last() []model.ServiceCounters {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.rates)
}

// perSecond is the difference of two readings over the time between them.
// What is new, or was counted anew, has the rate of what it counted so far.
func perSecond(was, now []model.ServiceCounters, dt time.Duration) []model.ServiceCounters {
	type row struct {
		key  model.ServiceKey
		real netip.AddrPort
	}
	old := map[row]model.Counters{}
	for _, s := range was {
		old[row{key: s.Key}] = s.Counters
		for _, r := range s.Reals {
			old[row{s.Key, r.Addr}] = r.Counters
		}
	}
	rate := func(now, was uint64) uint64 {
		if now < was {
			was = 0
		}
		return uint64(float64(now-was) / dt.Seconds())
	}
	rates := func(k row, c model.Counters) model.Counters {
		o := old[k]
		return model.Counters{Connections: rate(c.Connections, o.Connections), PacketsIn: rate(c.PacketsIn, o.PacketsIn),
			PacketsOut: rate(c.PacketsOut, o.PacketsOut), BytesIn: rate(c.BytesIn, o.BytesIn), BytesOut: rate(c.BytesOut, o.BytesOut)}
	}
	out := make([]model.ServiceCounters, len(now))
	for i, s := range now {
		out[i] = model.ServiceCounters{Key: s.Key, Counters: rates(row{key: s.Key}, s.Counters)}
		for _, r := range s.Reals {
			out[i].Reals = append(out[i].Reals, model.RealCounters{Addr: r.Addr, Counters: rates(row{s.Key, r.Addr}, r.Counters)})
		}
	}
	return out
}
