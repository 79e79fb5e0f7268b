package link

import (
	"net/netip"

	"github.com/batuta-ha/batuta/internal/model"
)

// ucast sends to one peer, over IPv4 or IPv6 (§11.2). Several ucast lines, and bcast beside it,
// share the port on the receiving side: any of the sockets may get a packet,
// and it does not matter which.
func ucast(m model.Medium, opt Options) sockets {
	any, hurry := netip.IPv4Unspecified(), lowDelay
	if m.Peer.Addr().Is6() {
		any, hurry = netip.IPv6Unspecified(), lowDelay6
	}
	s := sockets{
		receive:   netip.AddrPortFrom(any, m.Peer.Port()),
		send:      netip.AddrPortFrom(any, 0),
		onSend:    []func(int) error{hurry},
		onReceive: []func(int) error{reuseAddr, reusePort},
	}
	if opt.Source.IsValid() {
		s.receive = netip.AddrPortFrom(opt.Source, m.Peer.Port())
		s.send = netip.AddrPortFrom(opt.Source, 0)
	}
	return s
}
