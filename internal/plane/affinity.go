package plane

import (
	"net/netip"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Affinity remembers which real server a client (or a network of clients) of
// one persistent service was sent to. The zero value is empty. It is not
// safe for concurrent use.
type Affinity struct {
	clients map[netip.Addr]stay
	sweep   int // how many clients may be remembered before the next cleaning
}

type stay struct {
	real    netip.AddrPort
	expires time.Time
}

// Find returns the real server of a client that is still remembered.
func (a *Affinity) Find(p model.Persistence, client netip.Addr, now time.Time) (netip.AddrPort, bool) {
	s, ok := a.clients[masked(p, client)]
	return s.real, ok && now.Before(s.expires)
}

// Remember notes a client's new connection: it stays with that real server
// for the service's timeout from now.
func (a *Affinity) Remember(p model.Persistence, client netip.Addr, real netip.AddrPort, now time.Time) {
	if a.clients == nil {
		a.clients = map[netip.Addr]stay{}
	}
	if len(a.clients) >= max(a.sweep, 1024) {
		for c, s := range a.clients {
			if !now.Before(s.expires) {
				delete(a.clients, c)
			}
		}
		a.sweep = 2 * len(a.clients)
	}
	a.clients[masked(p, client)] = stay{real: real, expires: now.Add(p.Timeout)}
}

// Bindings lists what a service remembers.
func (a *Affinity) Bindings(of model.ServiceKey, now time.Time) (all []model.Binding) {
	for c, s := range a.clients {
		if now.Before(s.expires) {
			all = append(all, model.Binding{Service: of, Client: c, Real: s.real, Expires: s.expires.Sub(now)})
		}
	}
	return all
}

// Bind takes over what another plane remembered of a client, and says whether
// it did: one that is remembered here stays where it is.
func (a *Affinity) Bind(p model.Persistence, b model.Binding, now time.Time) bool {
	if _, here := a.Find(p, b.Client, now); here || !p.Enabled || b.Expires <= 0 {
		return false
	}
	a.Remember(p, b.Client, b.Real, now.Add(min(b.Expires, p.Timeout)-p.Timeout))
	return true
}

// Forget drops every client of a real server, or all if none is named.
func (a *Affinity) Forget(real netip.AddrPort) {
	for c, s := range a.clients {
		if !real.IsValid() || s.real == real {
			delete(a.clients, c)
		}
	}
}

// masked is the client's network under the service's mask; masks need not be
// contiguous.
func masked(p model.Persistence, client netip.Addr) netip.Addr {
	if p.Netmask.BitLen() != client.BitLen() {
		return client
	}
	b, m := client.AsSlice(), p.Netmask.AsSlice()
	for i := range b {
		b[i] &= m[i]
	}
	network, _ := netip.AddrFromSlice(b)
	return network
}
