package ebpf

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
)

// A packet has one text form, for what goes in and what comes out:
//
//	tcp 10.1.0.50:40000 > 10.1.0.100:80 SA ttl=64 len=10
//	udp 10.1.0.50:40000 > 10.1.0.100:53 ttl=64 len=10 nosum df
//	udp 10.1.0.50 > 10.1.0.100 frag=1480 id=7 len=100       a later fragment
//	icmp 10.240.0.20 > 10.1.0.50 type=3 code=3 about udp ...
//	tcp [2001:db8:1::50]:40000 > [2001:db8:1::100]:80 S
//	tunnel 10.1.0.1 > 10.240.0.20 about udp ...     one packet inside another
//
// len is the payload's length. Sums are computed when a packet is built, in
// full, and verified when it is read: by code that shares nothing with the
// programs under test.
type packet struct {
	proto    string
	src, dst netip.AddrPort
	flags    string // TCP
	ttl      int
	id       int
	length   int
	df, mf   bool
	frag     int // offset in bytes; > 0 is a later fragment
	options  int // words of IP options
	nosum    bool
	truncate int // bytes of the transport header that are there; 0: all
	typ      int
	code     int
	mtu      int
	about    *packet
	sums     string // read only
}

var tcpFlags = []struct {
	letter string
	bit    byte
}{{"F", 1}, {"S", 2}, {"R", 4}, {"P", 8}, {"A", 16}}

func parsePacket(s string) (p packet, err error) {
	s, about, quoted := strings.Cut(s, " about ")
	f := strings.Fields(s)
	if len(f) < 4 || f[2] != ">" {
		return p, fmt.Errorf("%q: want PROTO SRC > DST and so on", s)
	}
	end := func(s string) (netip.AddrPort, error) {
		if a, err := netip.ParseAddrPort(s); err == nil {
			return a, nil
		}
		a, err := netip.ParseAddr(s)
		return netip.AddrPortFrom(a, 0), err
	}
	p = packet{proto: f[0], ttl: 64, id: 0x1234}
	if p.src, err = end(f[1]); err != nil {
		return p, err
	}
	if p.dst, err = end(f[3]); err != nil {
		return p, err
	}
	for _, w := range f[4:] {
		key, value, _ := strings.Cut(w, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "ttl":
			p.ttl = n
		case "id":
			p.id = n
		case "len":
			p.length = n
		case "frag":
			p.frag = n
		case "options":
			p.options = n
		case "truncate":
			p.truncate = n
		case "type":
			p.typ = n
		case "code":
			p.code = n
		case "mtu":
			p.mtu = n
		case "df":
			p.df = true
		case "mf":
			p.mf = true
		case "nosum":
			p.nosum = true
		case "sums":
		default:
			if strings.Trim(key, "FSRPA") != "" {
				return p, fmt.Errorf("%q: what is %q?", s, w)
			}
			p.flags = key
		}
	}
	if quoted {
		q, err := parsePacket(about)
		p.about = &q
		return p, err
	}
	return p, nil
}

func (p packet) String() string {
	var b strings.Builder
	end := func(a netip.AddrPort) string {
		if p.frag > 0 || p.proto == "icmp" || p.proto == "tunnel" {
			return a.Addr().String()
		}
		return a.String()
	}
	fmt.Fprintf(&b, "%s %s > %s", p.proto, end(p.src), end(p.dst))
	if p.flags != "" {
		b.WriteString(" " + p.flags)
	}
	if p.proto == "icmp" {
		fmt.Fprintf(&b, " type=%d code=%d", p.typ, p.code)
		if p.mtu != 0 {
			fmt.Fprintf(&b, " mtu=%d", p.mtu)
		}
	}
	fmt.Fprintf(&b, " ttl=%d", p.ttl)
	for _, x := range []struct {
		name string
		n    int
	}{{"options", p.options}, {"frag", p.frag}, {"len", p.length}} {
		if x.n != 0 {
			fmt.Fprintf(&b, " %s=%d", x.name, x.n)
		}
	}
	for _, x := range []struct {
		name string
		on   bool
	}{{"df", p.df}, {"mf", p.mf}, {"nosum", p.nosum}} {
		if x.on {
			b.WriteString(" " + x.name)
		}
	}
	if p.sums != "" {
		b.WriteString(" sums=" + p.sums)
	}
	if p.about != nil {
		b.WriteString(" about " + p.about.String())
	}
	return b.String()
}

func sum16(b []byte, sum uint32) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

func pseudo(src, dst netip.Addr, proto byte, length int) uint32 {
	return sum16(src.AsSlice(), sum16(dst.AsSlice(), uint32(proto)+uint32(length)))
}

var protoNumber = map[string]byte{"tcp": 6, "udp": 17, "icmp": 1, "gre": 47, "sctp": 132, "tunnel": 4}

// number is the protocol's on the wire.
func (p packet) number() byte {
	switch {
	case p.proto == "icmp" && p.src.Addr().Is6():
		return 58
	case p.proto == "tunnel" && p.about != nil && p.about.src.Addr().Is6():
		return 41
	}
	return protoNumber[p.proto]
}

func nameOf(number byte) string {
	switch number {
	case 58:
		return "icmp"
	case 41:
		return "tunnel"
	}
	for name, n := range protoNumber {
		if n == number {
			return name
		}
	}
	return ""
}

// ip is the packet from its IP header on. A first fragment's transport sum
// covers what is to follow: bytes that the packet says nothing of, here zero.
func (p packet) ip() []byte {
	l4 := p.transport()
	if p.truncate > 0 {
		l4 = l4[:p.truncate]
	}
	if p.src.Addr().Is6() {
		return p.ip6(l4)
	}
	ihl := 20 + 4*p.options
	b := make([]byte, ihl, ihl+len(l4))
	b[0] = 0x40 | byte(ihl/4)
	binary.BigEndian.PutUint16(b[2:], uint16(ihl+len(l4)))
	binary.BigEndian.PutUint16(b[4:], uint16(p.id))
	frag := uint16(p.frag / 8)
	if p.df {
		frag |= 0x4000
	}
	if p.mf {
		frag |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], frag)
	b[8], b[9] = byte(p.ttl), p.number()
	s, d := p.src.Addr().As4(), p.dst.Addr().As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	for i := 20; i < ihl; i++ {
		b[i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum16(b, 0)))
	return append(b, l4...)
}

// ip6 is the same for IPv6: options are eight-byte units of destination
// options, fragments have their header.
func (p packet) ip6(l4 []byte) []byte {
	var more []byte
	next := p.number()
	if p.frag > 0 || p.mf {
		h := make([]byte, 8)
		h[0], next = next, 44
		off := uint16(p.frag)
		if p.mf {
			off |= 1
		}
		binary.BigEndian.PutUint16(h[2:], off)
		binary.BigEndian.PutUint32(h[4:], uint32(p.id))
		more = h
	}
	if p.options > 0 {
		h := make([]byte, 8*p.options)
		h[0], h[1], next = next, byte(p.options-1), 60
		h[2], h[3] = 1, byte(len(h)-4) // PadN
		more = append(h, more...)
	}
	b := make([]byte, 40, 40+len(more)+len(l4))
	b[0], b[6], b[7] = 0x60, next, byte(p.ttl)
	binary.BigEndian.PutUint16(b[4:], uint16(len(more)+len(l4)))
	copy(b[8:], p.src.Addr().AsSlice())
	copy(b[24:], p.dst.Addr().AsSlice())
	return append(append(b, more...), l4...)
}

func (p packet) transport() []byte {
	payload := make([]byte, p.length)
	for i := range payload {
		payload[i] = byte('a' + i%26)
	}
	if p.frag > 0 {
		return payload
	}
	var b []byte
	check := 0
	switch p.proto {
	case "tcp":
		b, check = make([]byte, 20), 16
		b[12] = 5 << 4
		for _, f := range tcpFlags {
			if strings.Contains(p.flags, f.letter) {
				b[13] |= f.bit
			}
		}
		binary.BigEndian.PutUint32(b[4:], 1000)
		binary.BigEndian.PutUint16(b[14:], 65535)
	case "udp":
		b, check = make([]byte, 8), 6
		binary.BigEndian.PutUint16(b[4:], uint16(8+p.length))
	case "icmp":
		b = make([]byte, 8)
		b[0], b[1] = byte(p.typ), byte(p.code)
		binary.BigEndian.PutUint32(b[4:], uint32(p.mtu))
		if p.about != nil {
			b = append(b, p.about.ip()...)
		}
		b = append(b, payload...)
		sum := uint32(0)
		if p.src.Addr().Is6() {
			sum = pseudo(p.src.Addr(), p.dst.Addr(), 58, len(b))
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum16(b, sum)))
		return b
	case "tunnel":
		return p.about.ip()
	case "sctp": // with an INIT chunk, or DATA
		b = make([]byte, 16)
		if p.flags != "S" {
			b[12] = 0
		} else {
			b[12] = 1
		}
		b = append(b, payload...)
		binary.BigEndian.PutUint16(b, p.src.Port())
		binary.BigEndian.PutUint16(b[2:], p.dst.Port())
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	default:
		return payload
	}
	binary.BigEndian.PutUint16(b, p.src.Port())
	binary.BigEndian.PutUint16(b[2:], p.dst.Port())
	b = append(b, payload...)
	if !p.nosum {
		sum := ^uint16(sum16(b, pseudo(p.src.Addr(), p.dst.Addr(), p.number(), len(b))))
		if sum == 0 && p.proto == "udp" {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(b[check:], sum)
	}
	return b
}

// readPacket reads what a program has made, from the IP header on.
func readPacket(b []byte, quoted bool) (p packet) {
	var bad []string
	l4, proto, src, dst, total := p.readIP(b, &bad)
	if l4 == nil {
		p.sums = "short"
		return p
	}
	p.proto = nameOf(proto)
	p.src, p.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	if len(b) != total && !quoted {
		bad = append(bad, "length")
	}
	whole := len(b) >= total
	switch {
	case p.frag > 0:
		p.length = len(l4)
	case p.proto == "tunnel":
		q := readPacket(l4, quoted)
		p.about = &q
	case p.proto == "icmp" && len(l4) >= 8:
		p.typ, p.code = int(l4[0]), int(l4[1])
		p.mtu = int(binary.BigEndian.Uint32(l4[4:]))
		sum := uint32(0)
		if src.Is6() {
			sum = pseudo(src, dst, proto, len(l4))
		}
		if sum16(l4, sum) != 0xffff {
			bad = append(bad, "icmp")
		}
		if len(l4) > 28 {
			q := readPacket(l4[8:], true)
			p.about = &q
		}
	case len(l4) >= 8:
		bad = append(bad, p.readPorts(l4, proto, whole)...)
	}
	p.sums = "ok"
	if len(bad) > 0 {
		p.sums = "BAD:" + strings.Join(bad, ",")
	}
	if quoted && p.sums == "ok" {
		p.sums = ""
	}
	return p
}

// readIP reads the network header. It returns what follows, nil if that is not there.
func (p *packet) readIP(b []byte, bad *[]string) (l4 []byte, proto byte, src, dst netip.Addr, total int) {
	if len(b) >= 40 && b[0]>>4 == 6 {
		p.ttl, proto, total = int(b[7]), b[6], 40+int(binary.BigEndian.Uint16(b[4:]))
		src, dst, l4 = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:]
		for (proto == 60 || proto == 44) && len(l4) >= 8 && p.frag == 0 {
			n := 8
			if proto == 44 {
				off := binary.BigEndian.Uint16(l4[2:])
				p.frag, p.mf, p.id = int(off&^7), off&1 != 0, int(binary.BigEndian.Uint32(l4[4:]))
			} else {
				n = min(8+8*int(l4[1]), len(l4))
				p.options = n / 8
			}
			proto, l4 = l4[0], l4[n:]
		}
		return l4, proto, src, dst, total
	}
	if len(b) < 20 {
		return nil, 0, src, dst, 0
	}
	ihl := int(b[0]&15) * 4
	if ihl < 20 || ihl > len(b) {
		return nil, 0, src, dst, 0
	}
	p.options = (ihl - 20) / 4
	p.id = int(binary.BigEndian.Uint16(b[4:]))
	frag := binary.BigEndian.Uint16(b[6:])
	p.df, p.mf, p.frag = frag&0x4000 != 0, frag&0x2000 != 0, int(frag&0x1fff)*8
	p.ttl = int(b[8])
	if sum16(b[:ihl], 0) != 0xffff {
		*bad = append(*bad, "ip")
	}
	return b[ihl:], b[9], netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), int(binary.BigEndian.Uint16(b[2:]))
}

// readPorts reads a transport header.
func (p *packet) readPorts(l4 []byte, proto byte, whole bool) (bad []string) {
	src, dst := p.src.Addr(), p.dst.Addr()
	p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(l4))
	p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:]))
	header := map[string]int{"tcp": 20, "sctp": 16}[p.proto]
	if header == 0 {
		header = 8
	}
	if p.proto == "tcp" && len(l4) >= 20 {
		header = int(l4[12]>>4) * 4
		for _, f := range tcpFlags {
			if l4[13]&f.bit != 0 {
				p.flags += f.letter
			}
		}
	}
	p.length = max(len(l4)-header, 0)
	switch {
	case p.proto == "sctp" && len(l4) >= 16:
		if l4[12] == 1 {
			p.flags = "S"
		}
		b := append([]byte(nil), l4...)
		copy(b[8:12], []byte{0, 0, 0, 0})
		if crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(l4[8:]) {
			bad = append(bad, "sctp")
		}
	case p.proto == "udp" && binary.BigEndian.Uint16(l4[6:]) == 0:
		p.nosum = true
	case whole && len(l4) >= header && !p.mf && sum16(l4, pseudo(src, dst, proto, len(l4))) != 0xffff:
		bad = append(bad, p.proto)
	}
	return bad
}

// hexLines is the packet's bytes, 32 to a line, and of a long one the first.
func hexLines(b []byte) string {
	var s strings.Builder
	if len(b) > 256 {
		return hexLines(b[:128]) + fmt.Sprintf("  and %d bytes\n", len(b)-128)
	}
	for len(b) > 0 {
		n := min(32, len(b))
		s.WriteString("  " + hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	return s.String()
}
