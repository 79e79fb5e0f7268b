package ipvs

import (
	"context"
	"net/netip"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
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
	off bool // the kernel does not end connections: waiting is of no use
	at  map[grave]time.Time
}

func (y *graveyard) note(g grave) {
	if y.off {
		return
	}
	if y.at == nil {
		y.at = map[grave]time.Time{}
	}
	now := time.Now()
	for old, at := range y.at {
		if now.Sub(at) >= lingering {
			delete(y.at, old)
		}
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

// bury waits until the connections that a real server had before it was
// deleted are gone.
func (p *Plane) bury(ctx context.Context, k model.ServiceKey, real netip.AddrPort) error {
	for pause := time.Millisecond; p.gone.left(k, real) > 0; pause *= 2 {
		flows, err := p.listFlows()
		if err != nil {
			return err
		}
		if !lingers(flows, k, real) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func lingers(flows []model.Flow, k model.ServiceKey, real netip.AddrPort) bool {
	for _, f := range flows {
		// Templates of persistence (client port 0) carry no packets.
		if f.Real == real && f.Client.Port() != 0 && (k.IsMark() || f.Proto == k.Proto && f.Virtual == k.Addr) {
			return true
		}
	}
	return false
}
