package ipvs

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// The kernel ends the connections of a deleted real server a moment after it
// is deleted. One that is added again within that moment would get them back,
// so the addition waits until they are gone.

// lingering is how long that may take at most.
const lingering = time.Second

// grave is a deleted real server, or a deleted service with all of its own.
type grave struct {
	service model.ServiceKey
	real    netip.AddrPort // zero: the service
}

// graveyard remembers what was deleted lately. The zero value is empty.
type graveyard struct {
	off   bool // the kernel does not end connections: waiting is of no use
	at    map[grave]time.Time
	purge int // how many there are when the old ones are looked for

	took     time.Duration // by the last list of connections
	believed time.Time     // until when the next one is expected to take as long
}

func (y *graveyard) note(g grave) {
	if y.off {
		return
	}
	if y.at == nil {
		y.at = map[grave]time.Time{}
	}
	now := time.Now()
	if len(y.at) >= y.purge {
		maps.DeleteFunc(y.at, func(_ grave, at time.Time) bool { return now.Sub(at) >= lingering })
		y.purge = max(64, 2*len(y.at))
	}
	y.at[g] = now
}

// left is how long connections of a real server may linger yet.
func (y *graveyard) left(k model.ServiceKey, real netip.AddrPort) time.Duration {
	if len(y.at) == 0 {
		return 0
	}
	return max(lingering-time.Since(y.at[grave{k, real}]), lingering-time.Since(y.at[grave{service: k}]))
}

// settle forgets what has no connections any more.
func (y *graveyard) settle(flows []model.Flow) {
	live := make(map[grave]bool, 4*len(flows))
	for _, f := range flows {
		if f.Client.Port() == 0 {
			continue // templates of persistence carry no packets
		}
		for _, port := range []uint16{f.Virtual.Port(), 0} { // 0: a service of all ports
			k := model.ServiceKey{Proto: f.Proto, Addr: netip.AddrPortFrom(f.Virtual.Addr(), port)}
			live[grave{service: k}] = true
			live[grave{k, f.Real}] = true
			live[grave{k, netip.AddrPortFrom(f.Real.Addr(), 0)}] = true
		}
		// The kernel does not say which mark a connection had.
		live[grave{real: f.Real}] = true
		live[grave{real: netip.AddrPortFrom(f.Real.Addr(), 0)}] = true
	}
	maps.DeleteFunc(y.at, func(g grave, _ time.Time) bool {
		if g.service.IsMark() {
			g.service = model.ServiceKey{}
			return len(flows) == 0 || g.real.IsValid() && !live[g]
		}
		return !live[g]
	})
}

// wait returns when the connections that a real server had before it was
// deleted are gone, or after the time that they may linger at most. list lists
// connections; what it has not done when that time is over is of no use.
func (y *graveyard) wait(ctx context.Context, k model.ServiceKey, real netip.AddrPort, list func(context.Context) ([]model.Flow, error)) error {
	for pause := time.Millisecond; ; pause *= 2 {
		left := y.left(k, real)
		if left <= 0 {
			return nil
		}
		if begin := time.Now(); y.took < left || begin.After(y.believed) {
			within, cancel := context.WithTimeout(ctx, left)
			flows, err := list(within)
			cancel()
			y.took = time.Since(begin)
			y.believed = time.Now().Add(plane.Pace(y.took))
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, context.DeadlineExceeded):
				continue
			case err != nil:
				return err
			}
			if y.settle(flows); y.left(k, real) <= 0 {
				return nil
			}
			pause = max(pause, y.took) // lists take half of the time at most
		} else {
			pause = left
		}
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bury waits until the connections that a real server had before it was
// deleted are gone.
func (p *Plane) bury(ctx context.Context, k model.ServiceKey, real netip.AddrPort) error {
	return p.gone.wait(ctx, k, real, func(ctx context.Context) ([]model.Flow, error) { return p.listFlows(ctx, everything) })
}
