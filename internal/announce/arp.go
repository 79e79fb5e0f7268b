package announce

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/vishvananda/netlink"
)

// ARP parses a SendArp resource, ADDRESS/INTERFACE: an address that is
// announced from that interface by bursts of its own, and that something else
// holds. Nothing is touched yet.
func (n *Network) ARP(res model.Resource) (*Address, error) {
	text := strings.Join(res.Args, "::")
	where, name, ok := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(where)
	if err != nil || !ok || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("resource %s: %q is no ADDRESS/INTERFACE; write SendArp::10.1.0.100/eth0", res.Text, text)
	}
	return &Address{network: n, wish: wish{Address: config.Address{Addr: addr, Interface: name}, told: true}, text: res.Text}, nil
}

// startTelling begins to announce an address that something else holds.
func (a *Address) startTelling() error {
	l, err := netlink.LinkByName(a.wish.Interface)
	if err != nil {
		return fmt.Errorf("resource %s: interface %s: %w", a.text, a.wish.Interface, err)
	}
	a.place = placeOf(l)
	a.announce()
	return nil
}

// tellingState tells whether it is announced.
func (a *Address) tellingState() model.ResourceState {
	if a.place.name != "" {
		return model.ResourceRunning
	}
	return model.ResourceStopped
}
