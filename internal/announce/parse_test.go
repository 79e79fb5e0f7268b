package announce

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func resource(text string) model.Resource {
	words := strings.Split(text, "::")
	return model.Resource{Agent: words[0], Args: words[1:], Text: text}
}

func TestParse(t *testing.T) {
	addr := netip.MustParseAddr
	for text, want := range map[string]wish{
		"IPaddr::10.0.0.1":                         {addr: addr("10.0.0.1"), bits: -1, autoLabel: true},
		"IPaddr::10.0.0.1/24":                      {addr: addr("10.0.0.1"), bits: 24, autoLabel: true},
		"IPaddr::10.0.0.1/255.255.255.0":           {addr: addr("10.0.0.1"), bits: 24, autoLabel: true},
		"IPaddr::10.0.0.1/24/eth1":                 {addr: addr("10.0.0.1"), bits: 24, iface: "eth1", autoLabel: true},
		"IPaddr::10.0.0.1/24/eth1:7":               {addr: addr("10.0.0.1"), bits: 24, iface: "eth1", label: "eth1:7"},
		"IPaddr::10.0.0.1/24/10.0.0.255":           {addr: addr("10.0.0.1"), bits: 24, autoLabel: true, broadcast: addr("10.0.0.255")},
		"IPaddr2::10.0.0.1/24/eth1/10.0.0.255":     {addr: addr("10.0.0.1"), bits: 24, iface: "eth1", broadcast: addr("10.0.0.255")},
		"IPaddr2::10.0.0.1/24/eth1:web/10.0.0.255": {addr: addr("10.0.0.1"), bits: 24, iface: "eth1", label: "eth1:web", broadcast: addr("10.0.0.255")},
		"IPv6addr::2001:db8::1/64/eth1":            {addr: addr("2001:db8::1"), bits: 64, iface: "eth1"},
		"IPv6addr::2001:db8:1:2:3:4:5:6":           {addr: addr("2001:db8:1:2:3:4:5:6"), bits: -1},
	} {
		got, err := parse(resource(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(wish{}), cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Errorf("%s (-want +got)\n%s", text, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"IPaddr":                                    "no address",
		"IPaddr::10.0.0":                            `"10.0.0" is no address`,
		"IPaddr::10.0.0.1/33":                       `"33" is no prefix length from 1 to 32`,
		"IPaddr::10.0.0.1/0":                        `"0" is no prefix length from 1 to 32`,
		"IPaddr::10.0.0.1/255.0.255.0":              `"255.0.255.0" is no netmask`,
		"IPaddr::224.0.0.1":                         "224.0.0.1 cannot be a service address",
		"IPaddr::10.0.0.1/24/an-interface-too-long": `"an-interface-too-long" is no name of an interface`,
		"IPaddr2::10.0.0.1/24/eth0:a-long-label":    `"eth0:a-long-label" is no label: it must have 1 to 15 characters, interface and colon included`,
		"IPaddr::10.0.0.1/24/eth0/x":                `"x" is no IPv4 broadcast address`,
		"IPaddr::10.0.0.1/24/eth0/10.0.0.255/1":     "more than four parts",
		"IPv6addr::2001:db8::1/64/eth0:0":           "an IPv6 address has no label",
	} {
		_, err := parse(resource(text))
		if err == nil || !strings.HasPrefix(err.Error(), "resource "+text+": "+want+"; write ") {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("10.0.0.1/24/eth1:web/10.0.0.255")
	f.Add("2001:db8::1/64/eth1")
	f.Fuzz(func(t *testing.T, arg string) {
		for _, agent := range []string{"IPaddr", "IPaddr2", "IPv6addr"} {
			w, err := parse(resource(agent + "::" + arg))
			if err == nil && (!w.addr.IsValid() || w.bits > w.addr.BitLen() || len(w.label) > maxName || len(w.iface) > maxName) {
				t.Errorf("%q gave %+v", arg, w)
			}
		}
	})
}

func TestLoopbackNeedsNothing(t *testing.T) {
	n := New(Options{})
	defer n.Close()
	a, err := n.Address(resource("IPaddr::127.0.0.5/8/eth0"))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, a, model.ResourceStopped)
	for range 2 {
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, a, model.ResourceRunning)
	n.Reannounce()
	for range 2 {
		if err := a.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, a, model.ResourceStopped)
}

func expect(t *testing.T, a *Address, want model.ResourceState) {
	t.Helper()
	if got, err := a.Status(t.Context()); err != nil || got != want {
		t.Errorf("%s is %v, %v; want %v", a.Addr(), got, err, want)
	}
}
