package announce

import (
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// What IPsrcaddr does to the routes is what Heartbeat's own script was seen to
// do in the same place.
func TestSourceAddress(t *testing.T) {
	cable(t, "eth0", "far0")
	own(t, "eth0", "10.9.0.1/24")
	n := network(t)
	s, err := n.Source(resource("IPsrcaddr::10.9.0.100"))
	must(t, err)
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no default route") {
		t.Fatalf("without a default route: %v", err)
	}
	l, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.9.0.254")}))
	a := start(t, n, "IPaddr::10.9.0.100")
	state := func(want model.ResourceState) {
		t.Helper()
		if got, err := s.Status(t.Context()); err != nil || got != want {
			t.Errorf("status %v, %v; want %v", got, err, want)
		}
	}
	state(model.ResourceStopped)
	for range 2 { // twice is once
		must(t, s.Start(t.Context()))
		state(model.ResourceRunning)
		same(t, routes(t), "default via 10.9.0.254 dev eth0 src 10.9.0.100", "10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.100")
	}
	for range 2 {
		must(t, s.Stop(t.Context()))
		state(model.ResourceStopped)
		same(t, routes(t), "default via 10.9.0.254 dev eth0 src 10.9.0.1", "10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.1")
	}
	must(t, a.Stop(t.Context()))
	for _, bad := range []string{"IPsrcaddr", "IPsrcaddr::fe80::1", "IPsrcaddr::eth0"} {
		if _, err := n.Source(resource(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func routes(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("ip", "route").Output()
	must(t, err)
	var lines []string
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// SendArp tells of an address that something else holds, and stops telling.
func TestARPAlone(t *testing.T) {
	cable(t, "eth0", "far0")
	n := network(t)
	heard := listen(t, "far0", unix.ETH_P_ARP)
	a, err := n.ARP(resource("SendArp::10.9.0.100/eth0"))
	must(t, err)
	expect(t, a, model.ResourceStopped)
	must(t, a.Start(t.Context()))
	expect(t, a, model.ResourceRunning)
	if f := heard(1)[0]; !strings.Contains(f, "0a090064") {
		t.Errorf("heard %s", f)
	}
	must(t, a.Stop(t.Context()))
	expect(t, a, model.ResourceStopped)
	if have := shown(t, "eth0", netlink.FAMILY_V4); len(have) > 0 {
		t.Errorf("it put an address on the interface: %v", have)
	}
	for _, bad := range []string{"SendArp", "SendArp::10.9.0.100", "SendArp::10.9.0.100/", "SendArp::eth0/10.9.0.100"} {
		if _, err := n.ARP(resource(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
