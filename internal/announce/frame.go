package announce

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	toAll      = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	toAllNodes = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1} // ff02::1, RFC 2464 section 7
)

// sendBuffer has room for the frames of hundreds of addresses, in bytes.
const sendBuffer = 4 << 20

// wire is the packet socket through which all announcements leave, over
// whatever interface. It is opened by the first and kept: the kernel lets close
// wait until no packet can be on its way to it, which takes longer than all
// else. It receives nothing.
type wire struct {
	mu     sync.Mutex
	isOpen bool
	closed bool
	fd     int
}

func (w *wire) open() error {
	switch {
	case w.closed:
		return net.ErrClosed
	case w.isOpen:
		return nil
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) // else what does not fit is left to later announcements
	w.fd, w.isOpen = fd, true
	return nil
}

func (w *wire) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if !w.isOpen {
		return nil
	}
	w.isOpen = false
	if err := unix.Close(w.fd); err != nil {
		return fmt.Errorf("close the packet socket: %w", err)
	}
	return nil
}

// send announces the address once on its interface. It does not block.
func (w *wire) send(p place, addr netip.Addr) error {
	if addr.Is6() {
		return w.transmit(p, unix.ETH_P_IPV6, advertisement(p.mac, addr))
	}
	return w.transmit(p, unix.ETH_P_ARP, arp(1, p.mac, addr), arp(2, p.mac, addr))
}

// ask asks who has the address. It does not block.
func (w *wire) ask(p place, addr netip.Addr) error {
	if addr.Is6() {
		return w.transmit(p, unix.ETH_P_IPV6, solicitation(p.mac, addr))
	}
	return w.transmit(p, unix.ETH_P_ARP, question(p.mac, addr))
}

func (w *wire) transmit(p place, kind uint16, frames ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.open(); err != nil {
		return err
	}
	out := &unix.SockaddrLinklayer{Ifindex: p.index, Protocol: networkOrder(kind)}
	for _, f := range frames {
		out.Halen = uint8(copy(out.Addr[:], f[:6]))
		if err := unix.Sendto(w.fd, f, 0, out); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// networkOrder is a number whose bytes here are those that it has on the wire.
func networkOrder(kind uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], kind)
	return binary.NativeEndian.Uint16(b[:])
}

// arp is a gratuitous ARP frame: sender and target are both the address
// (RFC 5227 section 3). Operation 1 is a request, which all hosts act upon; 2 a
// reply, for those that learn from replies only. In a reply the target is the
// sender's hardware, as Heartbeat has it.
func arp(operation uint16, mac net.HardwareAddr, addr netip.Addr) []byte {
	ip := addr.AsSlice()
	f := ethernet(toAll, mac, unix.ETH_P_ARP)
	f = append(f, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, lengths of their addresses
	f = binary.BigEndian.AppendUint16(f, operation)
	f = append(append(f, mac...), ip...)
	if operation == 2 {
		f = append(f, mac...)
	} else {
		f = append(f, 0, 0, 0, 0, 0, 0)
	}
	return append(f, ip...)
}

// question asks who has the address without telling anyone anything: its
// sender has no address (RFC 5227 section 2.1.1).
func question(mac net.HardwareAddr, addr netip.Addr) []byte {
	f := ethernet(toAll, mac, unix.ETH_P_ARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, mac...), 0, 0, 0, 0)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return append(f, addr.AsSlice()...)
}

// advertisement is an unsolicited neighbor advertisement with the override
// flag (RFC 4861 section 7.2.6).
func advertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	src := addr.As16()
	body := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // type, code, checksum, override
	body = append(body, src[:]...)
	body = append(append(body, 2, 1), mac...) // option: target link-layer address
	return neighbor(toAllNodes, mac, addr, netip.MustParseAddr("ff02::1"), body)
}

// solicitation asks as one does for duplicates: from no address, to the group
// of those whose addresses end alike (RFC 4862 section 5.4.2).
func solicitation(mac net.HardwareAddr, addr netip.Addr) []byte {
	a, group := addr.As16(), netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], a[13:])
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
	to := net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
	return neighbor(to, mac, netip.IPv6Unspecified(), netip.AddrFrom16(group), body)
}

// neighbor is a frame of neighbor discovery.
func neighbor(to, mac net.HardwareAddr, from, group netip.Addr, body []byte) []byte {
	src, dst := from.As16(), group.As16()
	binary.BigEndian.PutUint16(body[2:], checksum(src, dst, body))
	f := ethernet(to, mac, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(body)))
	f = append(f, 58, 255) // ICMPv6; the hop limit proves that it is from this link
	f = append(append(f, src[:]...), dst[:]...)
	return append(f, body...)
}

func ethernet(dst, src net.HardwareAddr, kind uint16) []byte {
	f := make([]byte, 0, 96)
	f = append(append(f, dst...), src...)
	return binary.BigEndian.AppendUint16(f, kind)
}

// checksum is that of ICMPv6 with its pseudo-header (RFC 4443 section 2.3).
func checksum(src, dst [16]byte, body []byte) uint16 {
	sum := uint32(len(body)) + 58
	for _, part := range [][]byte{src[:], dst[:], body} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
