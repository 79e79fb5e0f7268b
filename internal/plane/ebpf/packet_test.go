package ebpf

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
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
		if strings.Contains(s, ":") {
			return netip.ParseAddrPort(s)
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
		if p.frag > 0 || p.proto == "icmp" {
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
	s, d := src.As4(), dst.As4()
	return sum16(s[:], sum16(d[:], uint32(proto)+uint32(length)))
}

var protoNumber = map[string]byte{"tcp": 6, "udp": 17, "icmp": 1, "gre": 47}

// ip is the packet from its IP header on. A first fragment's transport sum
// covers what is to follow: bytes that the packet says nothing of, here zero.
func (p packet) ip() []byte {
	l4 := p.transport()
	if p.truncate > 0 {
		l4 = l4[:p.truncate]
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
	b[8], b[9] = byte(p.ttl), protoNumber[p.proto]
	s, d := p.src.Addr().As4(), p.dst.Addr().As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	for i := 20; i < ihl; i++ {
		b[i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum16(b, 0)))
	return append(b, l4...)
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
		binary.BigEndian.PutUint16(b[6:], uint16(p.mtu))
		if p.about != nil {
			b = append(b, p.about.ip()...)
		}
		b = append(b, payload...)
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum16(b, 0)))
		return b
	default:
		return payload
	}
	binary.BigEndian.PutUint16(b, p.src.Port())
	binary.BigEndian.PutUint16(b[2:], p.dst.Port())
	b = append(b, payload...)
	if !p.nosum {
		sum := ^uint16(sum16(b, pseudo(p.src.Addr(), p.dst.Addr(), protoNumber[p.proto], len(b))))
		if sum == 0 && p.proto == "udp" {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(b[check:], sum)
	}
	return b
}

// readPacket reads what a program has made, from the IP header on.
func readPacket(b []byte, quoted bool) (p packet) {
	if len(b) < 20 {
		p.sums = "short"
		return p
	}
	ihl := int(b[0]&15) * 4
	if ihl < 20 || ihl > len(b) {
		p.sums = "short"
		return p
	}
	p.options = (ihl - 20) / 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	p.id = int(binary.BigEndian.Uint16(b[4:]))
	frag := binary.BigEndian.Uint16(b[6:])
	p.df, p.mf, p.frag = frag&0x4000 != 0, frag&0x2000 != 0, int(frag&0x1fff)*8
	p.ttl = int(b[8])
	for name, n := range protoNumber {
		if n == b[9] {
			p.proto = name
		}
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.src, p.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	var bad []string
	if sum16(b[:ihl], 0) != 0xffff {
		bad = append(bad, "ip")
	}
	if len(b) != total && !quoted {
		bad = append(bad, "length")
	}
	l4 := b[ihl:]
	whole := len(b) >= total
	switch {
	case p.frag > 0:
		p.length = len(l4)
	case p.proto == "icmp" && len(l4) >= 8:
		p.typ, p.code = int(l4[0]), int(l4[1])
		p.mtu = int(binary.BigEndian.Uint16(l4[6:]))
		if sum16(l4, 0) != 0xffff {
			bad = append(bad, "icmp")
		}
		if len(l4) > 28 {
			q := readPacket(l4[8:], true)
			p.about = &q
		}
	case len(l4) >= 8:
		p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(l4))
		p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:]))
		header := 8
		if p.proto == "tcp" {
			header = 20
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
		if p.proto == "udp" && binary.BigEndian.Uint16(l4[6:]) == 0 {
			p.nosum = true
		} else if whole && len(l4) >= header && sum16(l4, pseudo(src, dst, b[9], len(l4))) != 0xffff {
			bad = append(bad, p.proto)
		}
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

// hexLines is the packet's bytes, 32 to a line.
func hexLines(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		n := min(32, len(b))
		s.WriteString("  " + hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	return s.String()
}
