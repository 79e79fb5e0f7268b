package link

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// mcast sends to a multicast group, over IPv4 or IPv6, and hears what the
// group gets on its interface; with Loop, itself included (§11.3). The
// receiving socket is bound to the group: other traffic to the port is not ours.
func mcast(m model.Medium, opt Options) sockets {
	any := netip.IPv4Unspecified()
	group := func(fd int) error {
		mreq := &unix.IPMreqn{Multiaddr: m.Peer.Addr().As4(), Ifindex: int32(interfaceIndex(m.Interface))}
		return wrap("joining the group", unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq))
	}
	from := func(fd int) error {
		mreq := &unix.IPMreqn{Ifindex: int32(interfaceIndex(m.Interface))}
		return wrap("IP_MULTICAST_IF", unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, mreq))
	}
	ttl := setInt(unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, m.TTL, "IP_MULTICAST_TTL")
	loop := setInt(unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, number(m.Loop), "IP_MULTICAST_LOOP")
	receive := m.Peer
	if m.Peer.Addr().Is6() {
		any = netip.IPv6Unspecified()
		if m.Peer.Addr().IsLinkLocalMulticast() {
			receive = netip.AddrPortFrom(m.Peer.Addr().WithZone(m.Interface), m.Peer.Port())
		}
		group = func(fd int) error {
			mreq := &unix.IPv6Mreq{Multiaddr: m.Peer.Addr().As16(), Interface: uint32(interfaceIndex(m.Interface))}
			return wrap("joining the group", unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, mreq))
		}
		from = func(fd int) error {
			return wrap("IPV6_MULTICAST_IF", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, interfaceIndex(m.Interface)))
		}
		ttl = setInt(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, m.TTL, "IPV6_MULTICAST_HOPS")
		loop = setInt(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, number(m.Loop), "IPV6_MULTICAST_LOOP")
	}
	s := sockets{
		receive:   receive,
		send:      netip.AddrPortFrom(any, 0),
		onSend:    []func(int) error{from, ttl, loop},
		onReceive: []func(int) error{reuseAddr, group},
	}
	if opt.Source.IsValid() {
		s.send = netip.AddrPortFrom(opt.Source, 0)
	}
	return s
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
