package ebpf

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Of all that the kernel tells of neighbors, routes are asked for again only
// when one has got another hardware address.
func TestNeighborHasMoved(t *testing.T) {
	heard := hardware{}
	for i, c := range []struct {
		kind uint16
		link int
		ip   string
		mac  string
		want bool
	}{
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "", false}, // still looked for
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:01", false},
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:01", false}, // stale, reachable ...
		{unix.RTM_NEWNEIGH, 3, "10.0.0.1", "02:00:00:00:00:02", false}, // another link's
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:03", true},
		{unix.RTM_NEWNEIGH, 2, "2001:db8::1", "02:00:00:00:00:01", false},
		{unix.RTM_DELNEIGH, 2, "10.0.0.1", "02:00:00:00:00:03", false},
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:04", false},
	} {
		mac, _ := net.ParseMAC(c.mac)
		u := netlink.NeighUpdate{Type: c.kind, Neigh: netlink.Neigh{LinkIndex: c.link, IP: net.ParseIP(c.ip), HardwareAddr: mac}}
		if got := heard.moved(u); got != c.want {
			t.Errorf("update %d (%s is %s): %v, want %v", i, c.ip, c.mac, got, c.want)
		}
	}
	if len(heard) != 3 {
		t.Errorf("%d neighbors remembered, want 3", len(heard))
	}
}
