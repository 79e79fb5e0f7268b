package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

func lacks(format string, a ...any) error {
	return fmt.Errorf("the eBPF plane has no "+format+": %w", append(a, plane.ErrNotSupported)...)
}

// acceptService says what this plane cannot carry. have is the service as it
// is now, nil for a new one.
func acceptService(v model.VirtualService, have *service, marks []model.MarkRule) error {
	switch {
	case v.Key.IsMark() && !slices.ContainsFunc(marks, func(r model.MarkRule) bool { return r.Key() == v.Key }):
		return fmt.Errorf("%s: netfilter sets marks after the eBPF plane has seen the packet; say which packets have it in the native file (match blocks of the service), or name addresses and ports: %w", v.Key, plane.ErrNotSupported)
	case v.Key.IsMark() && v.OnePacket:
		return lacks("one-packet scheduling by mark")
	case v.OnePacket && v.Key.Proto != model.UDP:
		return lacks("one-packet scheduling for %s: only UDP has single packets", v.Key.Proto)
	case v.Persistence.Enabled && (v.Persistence.Timeout < time.Second || v.Persistence.Timeout > maxPersistence):
		return fmt.Errorf("persistence of %v: must be between 1 s and %v", v.Persistence.Timeout, maxPersistence)
	case v.Persistence.Enabled && v.Persistence.Netmask.IsValid() && model.FamilyOf(v.Persistence.Netmask) != v.Key.Family():
		return fmt.Errorf("netmask %s is not of the service's address family", v.Persistence.Netmask)
	}
	if have != nil && v.OnePacket {
		for _, r := range have.reals {
			if r.Forward == model.Masq {
				return errOnePacketMasq
			}
		}
	}
	if _, err := flagsNumber(v.SchedFlags); err != nil {
		return err
	}
	_, err := schedulerNumber(v.Scheduler)
	return err
}

var errOnePacketMasq = lacks("one-packet scheduling with masq: without a connection nobody could tell whose a reply is; use gate or ipip")

// maxWeight is that of ipvsadm(8).
const maxWeight = 65535

// maxPersistence is what fits the programs' clock.
const maxPersistence = 20 * 24 * time.Hour

// acceptReal says what this plane cannot carry, and whether the real server
// is the director itself.
func (p *Plane) acceptReal(b *batch, v *service, r model.RealServer) (local bool, err error) {
	a := r.Addr.Addr()
	if r.Weight < 0 || r.Weight > maxWeight {
		return false, fmt.Errorf("weight %d: must be between 0 and %d", r.Weight, maxWeight)
	}
	if r.Forward != model.IPIP && model.FamilyOf(a) != v.Key.Family() {
		return false, lacks("%s from one address family to the other; only ipip carries %s to %s", r.Forward, v.Key.Family(), model.FamilyOf(a))
	}
	switch r.Forward {
	case model.Masq:
		port := r.Addr.Port()
		switch {
		case a.IsLoopback():
			return false, fmt.Errorf("masq to %s: clients' packets cannot be sent to a loopback address; use gate, with the server listening on the virtual address or on all: %w", a, plane.ErrNotSupported)
		case port == 0 && v.Key.Addr.Port() != 0:
			return false, errors.New("masq needs the real server's port")
		case v.Key.Proto == model.SCTP && port != 0 && port != v.Key.Addr.Port():
			return false, lacks("masq of SCTP to another port: its checksum would have to be computed anew over the whole packet; let the real server listen on port %d", v.Key.Addr.Port())
		case v.OnePacket:
			return false, errOnePacketMasq
		}
		return false, nil
	case model.Gate, model.IPIP:
		if a.IsLoopback() {
			return true, nil
		}
		return p.own(b, a)
	case model.ForwardNone:
	}
	return false, lacks("forwarding method %s", r.Forward)
}

// own tells whether an address is the director's.
func (p *Plane) own(b *batch, a netip.Addr) (bool, error) {
	if b.local == nil {
		have, err := p.net.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return false, fmt.Errorf("list own addresses: %w", err)
		}
		b.local = map[netip.Addr]bool{}
		for _, x := range have {
			if ip, ok := netip.AddrFromSlice(x.IP); ok {
				b.local[ip.Unmap()] = true
			}
		}
	}
	return b.local[a], nil
}

// findSource notes the director's own address towards an ipip real server:
// that of the route. Where there is no route the programs drop the packets
// and count them.
func (p *Plane) findSource(row *tcReal) {
	if src, ok := p.sourceTo(row.Addr); ok {
		row.Source = src
	}
}

func (p *Plane) sourceTo(a tcAddr) (tcAddr, bool) {
	routes, err := p.net.RouteGet(addrOfWire(a).AsSlice())
	if err != nil || len(routes) == 0 {
		return tcAddr{}, false
	}
	src, ok := netip.AddrFromSlice(routes[0].Src)
	return wireAddr(src.Unmap()), ok
}

// findSources does so again for all, after routes have changed: once for each
// address, however many services have it, while the table may be used.
func (p *Plane) findSources() {
	sources := map[tcAddr]tcAddr{}
	p.eachTunnel(func(row *tcReal) { sources[row.Addr] = row.Source })
	for a := range sources {
		if src, ok := p.sourceTo(a); ok {
			sources[a] = src
		}
	}
	p.eachTunnel(func(row *tcReal) {
		if src, asked := sources[row.Addr]; asked {
			row.Source = src
		}
	})
}

// eachTunnel calls fn with the row of each real server that is behind a tunnel.
func (p *Plane) eachTunnel(fn func(row *tcReal)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for _, v := range p.state.services {
		for _, r := range v.reals {
			if r.Forward == model.IPIP {
				fn(&p.t.reals[r.slot])
			}
		}
	}
}
