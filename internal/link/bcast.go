package link

import (
	"net/netip"

	"github.com/batuta-ha/batuta/internal/model"
)

// bcast sends to the broadcast address of an interface and hears all who do,
// itself included (§11.1). With a Source, the receiving socket is bound to the
// broadcast address: one bound to a host's address hears no broadcasts.
func bcast(m model.Medium, opt Options) sockets {
	s := sockets{
		receive:   netip.AddrPortFrom(netip.IPv4Unspecified(), m.Peer.Port()),
		send:      netip.AddrPortFrom(netip.IPv4Unspecified(), 0),
		onSend:    []func(int) error{broadcast, dontRoute},
		onReceive: []func(int) error{reuseAddr},
	}
	if opt.Source.IsValid() {
		s.receive = m.Peer
		s.send = netip.AddrPortFrom(opt.Source, 0)
	}
	return s
}
