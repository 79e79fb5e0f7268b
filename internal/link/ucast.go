package link

import (
	"net/netip"

	"github.com/batuta-ha/batuta/internal/model"
)

// ucast sends to one peer (§11.2). Several ucast lines, and bcast beside it,
// share the port on the receiving side: any of the sockets may get a packet,
// and it does not matter which.
func ucast(m model.Medium, opt Options) sockets {
	s := sockets{
		receive:   netip.AddrPortFrom(netip.IPv4Unspecified(), m.Peer.Port()),
		send:      netip.AddrPortFrom(netip.IPv4Unspecified(), 0),
		onSend:    []func(int) error{lowDelay},
		onReceive: []func(int) error{reuseAddr, reusePort},
	}
	if opt.Source.IsValid() {
		s.receive = netip.AddrPortFrom(opt.Source, m.Peer.Port())
		s.send = netip.AddrPortFrom(opt.Source, 0)
	}
	return s
}
