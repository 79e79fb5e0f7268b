package ebpf

import (
	"bytes"
	"context"
	"maps"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/model"
)

// Whatever comes: what is not balanced is left as it is, what was whole stays
// whole, and what is sent on has one hop less and the payload that it had.
func TestAnyPacket(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	apply(t, p,
		addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1), addReal(model.TCP, vip(0, 80), "10.241.0.20:80", 1),
		addService(model.UDP, vip(0, 53), "rr"), addReal(model.UDP, vip(0, 53), "10.240.0.20:53", 1))
	vip6 := netip.MustParseAddrPort("[2001:db8:1::100]:80")
	apply(t, p, addService(model.TCP, vip6, "rr"), addReal(model.TCP, vip6, "[2001:db8:240::20]:8000", 1), addReal(model.TCP, vip6, "[2001:db8:241::20]:80", 1))
	ends := []netip.AddrPort{
		netip.MustParseAddrPort("10.1.0.50:40000"), netip.MustParseAddrPort("10.1.0.50:40001"), vip(0, 80), vip(0, 53), vip(1, 80),
		netip.MustParseAddrPort("10.240.0.20:8000"), netip.MustParseAddrPort("10.240.0.20:53"), netip.MustParseAddrPort("10.241.0.20:80"),
	}
	end := rapid.SampledFrom(ends)
	any := func(t *rapid.T, proto string, v6 bool) packet {
		in := func(a netip.AddrPort) netip.AddrPort {
			if v6 {
				return netip.MustParseAddrPort(six(a.String()))
			}
			return a
		}
		return packet{
			proto: proto, src: in(end.Draw(t, "src")), dst: in(end.Draw(t, "dst")),
			flags:   rapid.SampledFrom([]string{"S", "SA", "A", "PA", "FA", "R", ""}).Draw(t, "flags"),
			ttl:     rapid.SampledFrom([]int{64, 1, 2, 0, 255}).Draw(t, "ttl"),
			id:      rapid.IntRange(0, 3).Draw(t, "id"),
			length:  rapid.SampledFrom([]int{0, 1, 7, 100, 1400, 2000}).Draw(t, "length"),
			options: rapid.SampledFrom([]int{0, 0, 0, 1, 10}).Draw(t, "options"),
			df:      rapid.Bool().Draw(t, "df"),
			mf:      rapid.SampledFrom([]bool{false, false, true}).Draw(t, "mf"),
			frag:    rapid.SampledFrom([]int{0, 0, 0, 8, 1480}).Draw(t, "frag"),
			nosum:   proto == "udp" && rapid.Bool().Draw(t, "nosum"),
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 20).Draw(rt, "packets") {
			v6 := rapid.Bool().Draw(rt, "v6")
			in := any(rt, rapid.SampledFrom([]string{"tcp", "udp", "icmp", "gre"}).Draw(rt, "protocol"), v6)
			if in.proto == "icmp" {
				in.typ, in.code = rapid.SampledFrom([]int{1, 2, 3, 8, 11, 5, 128}).Draw(rt, "type"), rapid.IntRange(0, 4).Draw(rt, "code")
				q := any(rt, rapid.SampledFrom([]string{"tcp", "udp"}).Draw(rt, "quoted"), v6)
				q.length = min(q.length, 100)
				in.about = &q
				in.frag, in.mf = 0, false
			}
			b := in.ip()
			least, hops, proto := 20, 8, 9
			if v6 {
				least, hops, proto = 40, 7, 6
			}
			for range rapid.SampledFrom([]int{0, 0, 0, 1, 3}).Draw(rt, "damage") {
				b[rapid.IntRange(0, min(len(b), 60)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
			}
			b = b[:rapid.SampledFrom([]int{len(b), len(b), len(b), max(len(b)/2, least), least}).Draw(rt, "kept")] // test-run takes no less
			hook := rapid.SampledFrom([]string{"ingress", "ingress", "egress"}).Draw(rt, "hook")
			dev := rapid.SampledFrom([]string{"outside", "inside0"}).Draw(rt, "device")

			before, _ := p.Reasons(context.Background())
			verdict, out := testRun(t, p, hook, dev, b, 1)
			after, _ := p.Reasons(context.Background())
			switch verdict {
			case 2:
				if maps.Equal(before, after) {
					rt.Fatalf("%s %s: dropped for no reason", hook, in)
				}
				continue
			case pass:
				if hook == "ingress" && maps.Equal(before, after) && !bytes.Equal(b, out) {
					rt.Fatalf("%s %s: passed, but changed to %s", hook, in, readPacket(out, false))
				}
			case redirected:
				if hook == "egress" || out[hops] != b[hops]-1 {
					rt.Fatalf("%s %s: redirected with ttl %d", hook, in, out[hops])
				}
			default:
				rt.Fatalf("%s %s: verdict %d", hook, in, int32(verdict))
			}
			if len(out) != len(b) {
				rt.Fatalf("%s %s: %d bytes became %d", hook, in, len(b), len(out))
			}
			was, is := readable(b), readable(out)
			if was == "ok" && is != "ok" {
				rt.Fatalf("%s %s: sums were right and are %s: %s", hook, in, is, readPacket(out, false))
			}
			// Behind IP header, ports and sums nothing changes, but in a quotation.
			at := int(b[0]&15)*4 + 20
			if v6 {
				at = 40 + 20 + 8*in.options + 8
			}
			if b[proto] != 1 && in.proto != "icmp" && len(b) > at && !bytes.Equal(b[at:], out[at:]) {
				rt.Fatalf("%s %s: payload changed", hook, in)
			}
		}
	})
}

// readable says whether the packet is whole and its sums are right.
func readable(b []byte) (sums string) {
	switch {
	case len(b) >= 48 && b[0]>>4 == 6:
	case len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 || len(b) < int(b[0]&15)*4+8:
		return "short"
	}
	return readPacket(b, false).sums
}
