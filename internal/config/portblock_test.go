package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestParsePortBlock(t *testing.T) {
	prefix := netip.MustParsePrefix
	for text, want := range map[string]PortBlock{
		"tcp::80::block":                              {TCP: true, Ports: []uint16{80}},
		"udp::53,123::unblock":                        {Ports: []uint16{53, 123}, Unblock: true},
		"tcp::2049::block::10.0.0.1":                  {TCP: true, Ports: []uint16{2049}, To: prefix("10.0.0.1/32")},
		"tcp::2049::block::10.0.0.77/24":              {TCP: true, Ports: []uint16{2049}, To: prefix("10.0.0.0/24")},
		"tcp::2049::block::0.0.0.0/0":                 {TCP: true, Ports: []uint16{2049}, To: prefix("0.0.0.0/0")},
		"tcp::2049::block::2001:db8::1":               {TCP: true, Ports: []uint16{2049}, To: prefix("2001:db8::1/128")},
		"tcp::2049::unblock::2001:db8::/64":           {TCP: true, Ports: []uint16{2049}, Unblock: true, To: prefix("2001:db8::/64")},
		"tcp::2049::unblock::10.0.0.1::/srv/tickle":   {TCP: true, Ports: []uint16{2049}, Unblock: true, To: prefix("10.0.0.1/32"), Tickle: true},
		"tcp::2049::unblock::::/srv/tickle::csync2 x": {TCP: true, Ports: []uint16{2049}, Unblock: true, Tickle: true},
	} {
		got, err := ParsePortBlock(portBlock(text))
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); err != nil || d != "" {
			t.Errorf("%s: %v (-want +got)\n%s", text, err, d)
		}
	}
	for text, want := range map[string]string{
		"":                           "it takes a protocol, ports, and what to do",
		"tcp::80":                    "it takes a protocol, ports, and what to do",
		"sctp::80::block":            `"sctp" is neither tcp nor udp`,
		"tcp::http::block":           `"http" is no port from 1 to 65535`,
		"tcp::80,::block":            `"" is no port from 1 to 65535`,
		"tcp::70000::block":          `"70000" is no port from 1 to 65535`,
		"tcp::80::stop":              `"stop" is neither block nor unblock`,
		"tcp::80::block::10.0.0":     `"10.0.0" is no address`,
		"tcp::80::block::10.0.0.1/x": `"x" is no prefix length from 0 to 32`,
		"tcp::1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16::block": "16 ports are more than 15",
	} {
		r := portBlock(text)
		_, err := ParsePortBlock(r)
		if err == nil || err.Error() != "resource "+r.Text+": "+want+"; write "+PortBlockUsage {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func portBlock(args string) model.Resource {
	r := model.Resource{Agent: "portblock", Text: "portblock::" + args}
	if args != "" {
		r.Args = strings.Split(args, "::")
	}
	return r
}

func FuzzPortBlock(f *testing.F) {
	f.Add("tcp::80,443::block::10.0.0.1/24")
	f.Add("udp::53::unblock::2001:db8::1::/srv/x")
	f.Fuzz(func(t *testing.T, args string) {
		r := portBlock(args)
		b, at, err := parsePortBlock(r.Args)
		if err == nil && (len(b.Ports) == 0 || b.To != b.To.Masked()) || at < 0 || at > len(r.Args) {
			t.Errorf("%q gave %+v, %d, %v", args, b, at, err)
		}
	})
}
