package ebpf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// Clients in a VLAN: tagged frames come by untagged on the VLAN's own interface,
// where the plane takes them, and replies leave with the tag. The service that
// has the same address and port for all who come untagged is asked nothing.
func TestVLAN(t *testing.T) {
	requireRoot(t)
	tag := func(h *host, parent string, addrs ...string) {
		t.Helper()
		l, err := h.LinkByName(parent)
		if err != nil {
			t.Fatal(err)
		}
		v := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "tag7", ParentIndex: l.Attrs().Index}, VlanId: 7}
		switch err := h.LinkAdd(v); {
		case errors.Is(err, unix.EOPNOTSUPP):
			t.Skip("this kernel has no VLANs (8021q); make test-plane-kernel has them")
		case err != nil:
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.LinkDel(v) })
		for _, a := range addrs {
			if err := h.address(v.Name, a); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.LinkSetUp(v); err != nil {
			t.Fatal(err)
		}
	}
	tag(director, "outside", "10.7.0.1/24", "10.7.0.100/32")
	tag(client, "eth0", "10.7.0.50/24")
	p := open(t, testOptions())
	eventually(t, func() string { return contains(p.Info().Detail, "tag7") })
	for _, c := range []struct{ virtual, real string }{
		{"10.7.0.100:80", "10.240.0.20:8000"},
		{six("10.7.0.100:80"), six("10.240.0.20:8000")},
	} {
		virtual := netip.MustParseAddrPort(c.virtual)
		apply(t, p, addService(model.TCP, virtual, "rr"), addReal(model.TCP, virtual, c.real, 1))
		echoStream(t, rack0, c.real, virtual, 1<<20)
		echoStream(t, rack0, c.real, virtual, 100) // by the way of the one before it
	}
	counters, err := p.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range counters {
		if s.Counters.Connections != 2 || s.Counters.BytesIn < 1<<20 || s.Counters.BytesOut < 1<<20 {
			t.Errorf("%s: %+v, want two connections with all that they carried", s.Key, s.Counters)
		}
	}
	if d := p.Info().Detail; !strings.Contains(d, "outside") {
		t.Errorf("the program is on %s", d)
	}
}
