package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func addressResource(text string) model.Resource {
	words := strings.Split(text, "::")
	return model.Resource{Agent: words[0], Args: words[1:], Text: text}
}

func TestParseAddress(t *testing.T) {
	addr := netip.MustParseAddr
	for text, want := range map[string]Address{
		"IPaddr::10.0.0.1":                         {Addr: addr("10.0.0.1")},
		"IPaddr::10.0.0.1/24":                      {Addr: addr("10.0.0.1"), Bits: 24},
		"IPaddr::10.0.0.1/255.255.255.0":           {Addr: addr("10.0.0.1"), Bits: 24},
		"IPaddr::10.0.0.1/255.0.0.0":               {Addr: addr("10.0.0.1"), Bits: 8},
		"IPaddr::10.0.0.1/255.255.255.255":         {Addr: addr("10.0.0.1"), Bits: 32},
		"IPaddr::10.0.0.1/24/eth1":                 {Addr: addr("10.0.0.1"), Bits: 24, Interface: "eth1"},
		"IPaddr::10.0.0.1/24/eth1:7":               {Addr: addr("10.0.0.1"), Bits: 24, Interface: "eth1", Label: "eth1:7"},
		"IPaddr::10.0.0.1/24/10.0.0.255":           {Addr: addr("10.0.0.1"), Bits: 24, Broadcast: addr("10.0.0.255")},
		"IPaddr2::10.0.0.1/24/eth1/10.0.0.255":     {Addr: addr("10.0.0.1"), Bits: 24, Interface: "eth1", Broadcast: addr("10.0.0.255")},
		"IPaddr2::10.0.0.1/24/eth1:web/10.0.0.255": {Addr: addr("10.0.0.1"), Bits: 24, Interface: "eth1", Label: "eth1:web", Broadcast: addr("10.0.0.255")},
		"IPv6addr::2001:db8::1/64/eth1":            {Addr: addr("2001:db8::1"), Bits: 64, Interface: "eth1"},
		"IPv6addr::2001:db8:1:2:3:4:5:6":           {Addr: addr("2001:db8:1:2:3:4:5:6")},
	} {
		got, err := ParseAddress(addressResource(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Errorf("%s (-want +got)\n%s", text, d)
		}
	}
}

// The places of these errors are in testdata/bad-lines.haresources.want.
func TestParseAddressRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"IPaddr":                                    "no address",
		"IPaddr::10.0.0":                            `"10.0.0" is no address`,
		"IPaddr::10.0.0.1/33":                       `"33" is no prefix length from 1 to 32`,
		"IPaddr::10.0.0.1/0":                        `"0" is no prefix length from 1 to 32`,
		"IPaddr::10.0.0.1/+8":                       `"+8" is no prefix length from 1 to 32`,
		"IPaddr::10.0.0.1/255.0.255.0":              `"255.0.255.0" is no netmask`,
		"IPaddr::10.0.0.1/0.0.0.0":                  `"0.0.0.0" is no netmask`,
		"IPaddr::224.0.0.1":                         "224.0.0.1 cannot be a service address",
		"IPaddr::10.0.0.1/24/an-interface-too-long": `"an-interface-too-long" is no name of an interface, which has 1 to 15 characters`,
		"IPaddr2::10.0.0.1/24/eth0:a-long-label":    `"eth0:a-long-label" is no label: it must have 1 to 15 characters, interface and colon included`,
		"IPaddr::10.0.0.1/24/eth0/x":                `"x" is no IPv4 broadcast address`,
		"IPaddr::10.0.0.1/24/eth0/10.0.0.255/1":     "more than four parts",
		"IPv6addr::zzz":                             `"zzz" is no address`,
		"IPv6addr::2001:db8::1/64/eth0:0":           "an IPv6 address has no label",
	} {
		_, err := ParseAddress(addressResource(text))
		if err == nil || !strings.HasPrefix(err.Error(), "resource "+text+": "+want+"; write ") {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("10.0.0.1/24/eth1:web/10.0.0.255")
	f.Add("2001:db8::1/64/eth1")
	f.Add("10.0.0.1/255.0.0.0")
	f.Fuzz(func(t *testing.T, arg string) {
		a, at, err := parseAddress(arg)
		if err != nil {
			if at < 0 || at > len(arg) {
				t.Errorf("%q: the error is at %d", arg, at)
			}
			return
		}
		if !a.Addr.IsValid() || a.Bits < 0 || a.Bits > a.Addr.BitLen() || len(a.Label) > MaxInterfaceName || len(a.Interface) > MaxInterfaceName {
			t.Errorf("%q gave %+v", arg, a)
		}
	})
}
