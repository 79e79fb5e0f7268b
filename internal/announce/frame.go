package announce

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

var (
	toAll      = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	toAllNodes = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1} // ff02::1, RFC 2464 section 7
)

// send announces the address once on the interface.
func send(p place, addr netip.Addr) error {
	to, kind, frames := toAll, unix.ETH_P_ARP, [][]byte{arp(1, p.mac, addr), arp(2, p.mac, addr)}
	if addr.Is6() {
		to, kind, frames = toAllNodes, unix.ETH_P_IPV6, [][]byte{advertisement(p.mac, addr)}
	}
	c, err := packet.Listen(&net.Interface{Index: p.index, Name: p.name}, packet.Raw, kind, nil)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer c.Close()
	for _, f := range frames {
		if _, err := c.WriteTo(f, &packet.Addr{HardwareAddr: to}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
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

// advertisement is an unsolicited neighbor advertisement with the override
// flag (RFC 4861 section 7.2.6).
func advertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	src, dst := addr.As16(), netip.MustParseAddr("ff02::1").As16()
	body := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // type, code, checksum, override
	body = append(body, src[:]...)
	body = append(append(body, 2, 1), mac...) // option: target link-layer address
	binary.BigEndian.PutUint16(body[2:], checksum(src, dst, body))

	f := ethernet(toAllNodes, mac, unix.ETH_P_IPV6)
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
