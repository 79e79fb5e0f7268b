package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wish is what haresources asks for. Members that were not given are zero and
// are found out when the address is started.
type wish struct {
	config.Address
	autoLabel bool // IPaddr: eth0:0, or the next number that is free
	told      bool // SendArp: announced only, held by something else
}

// place is where an address is.
type place struct {
	name   string // interface; "" for nowhere
	index  int
	label  string
	prefix netip.Prefix
	mac    net.HardwareAddr
	flags  net.Flags
	noarp  bool
	added  bool // by this call; otherwise it was there already
}

// where is the name that ifconfig shows.
func (p place) where() string {
	if p.label != "" {
		return p.label
	}
	return p.name
}

// announces tells whether anyone on the interface's network can be told.
func (p place) announces() bool { return len(p.mac) == 6 && !p.noarp && p.flags&net.FlagUp != 0 }

func placeOf(l netlink.Link) place {
	a := l.Attrs() // which lie in the buffer of the message
	return place{name: a.Name, index: a.Index, mac: slices.Clone(a.HardwareAddr), flags: a.Flags, noarp: a.RawFlags&unix.IFF_NOARP != 0}
}

// find returns where the address is, the zero place for nowhere. On another
// interface than the one that was asked for, it is an error.
func (p *picture) find(w wish) (place, error) {
	if len(p.entries[w.Addr]) == 0 {
		return place{}, nil
	}
	e := p.entries[w.Addr][0]
	at, ok := p.links[e.index]
	if !ok {
		return place{}, fmt.Errorf("interface number %d, which has %s, is gone", e.index, w.Addr)
	}
	at.prefix = e.prefix
	if w.Interface != "" && at.name != w.Interface {
		return place{}, fmt.Errorf("address %s is on %s, not on %s: remove it there (ip addr del %s dev %s) or name that interface in haresources",
			w.Addr, at.name, w.Interface, at.prefix, at.name)
	}
	if e.label != at.name {
		at.label = e.label
	}
	return at, nil
}

// where finds an address that may have come or gone since the last look.
func (p *picture) where(w wish) (place, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.look(); err != nil {
		return place{}, err
	}
	return p.find(w)
}

// put adds the address unless it is there.
func (p *picture) put(w wish) (place, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.look(); err != nil {
		return place{}, err
	}
	if at, err := p.find(w); err != nil || at.name != "" {
		return at, err
	}
	at, bits, err := p.choose(w)
	if err != nil {
		return place{}, err
	}
	at.added, at.label = true, w.Label
	at.prefix = netip.PrefixFrom(w.Addr, bits)
	if w.autoLabel {
		at.label = p.freeLabel(at.name)
	}
	return at, p.place(w, at)
}

// again adds an address that was at its place before.
func (p *picture) again(w wish, at place) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.place(w, at)
}

// place adds the address at its place; one that is there is no error. The
// kernel tells of it, of an IPv6 address in a moment.
func (p *picture) place(w wish, at place) error {
	a := kernelAddr(at)
	if w.Broadcast.IsValid() {
		a.Broadcast = w.Broadcast.AsSlice()
	}
	if w.Addr.Is6() {
		a.Flags = unix.IFA_F_NODAD // a second's wait for a duplicate is a second without service
	}
	if err := p.kernel.AddrAdd(linkOf(at), a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %s to %s: %w", at.prefix, at.name, err)
	}
	e := entry{prefix: at.prefix, index: at.index, label: at.label}
	if e.label == "" && w.Addr.Is4() {
		e.label = at.name
	}
	p.drop(e)
	p.add(e)
	return nil
}

func kernelAddr(p place) *netlink.Addr {
	a := p.prefix.Addr()
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.prefix.Bits(), a.BitLen())}, Label: p.label}
}

func linkOf(p place) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.index, Name: p.name}}
}

// remove takes the address away and returns where it was, the zero place for
// nowhere, and the addresses that the kernel may have taken along: with the
// first of a network all later ones go, unless promote_secondaries is set. last
// is where this node has put it: of an IPv6 address that came a moment ago the
// kernel has not told yet.
func (p *picture) remove(w wish, last place) (at place, along []netip.Addr, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.look(); err != nil {
		return place{}, nil, err
	}
	if at, err = p.find(w); err != nil {
		return place{}, nil, err
	}
	gone := entry{prefix: last.prefix, index: last.index}
	if at.name != "" {
		gone = p.entries[w.Addr][0]
	} else if at = last; at.name == "" {
		return place{}, nil, nil
	}
	switch err := p.kernel.AddrDel(linkOf(at), kernelAddr(at)); {
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENODEV):
		return place{}, nil, nil
	case err != nil:
		return place{}, nil, fmt.Errorf("remove %s from %s: %w", at.prefix, at.name, err)
	}
	p.drop(gone)
	if gone.secondary {
		return at, nil, nil
	}
	for _, all := range p.entries {
		for _, e := range all {
			if e.secondary && e.index == at.index && e.prefix.Masked() == at.prefix.Masked() {
				along = append(along, e.prefix.Addr())
			}
		}
	}
	slices.SortFunc(along, netip.Addr.Compare)
	return at, along, nil
}

// choose finds the interface and prefix length that were not given: those of
// the most specific network that this machine is connected to.
func (p *picture) choose(w wish) (place, int, error) {
	bits, only := w.Bits, place{}
	if w.Interface != "" {
		for _, l := range p.links {
			if l.name == w.Interface {
				only = l
			}
		}
		if only.name == "" {
			return place{}, 0, fmt.Errorf("there is no interface %s: haresources names it for %s", w.Interface, w.Addr)
		}
		if bits > 0 {
			return only, bits, nil
		}
	}
	index, ones, err := p.connected(w.Addr, only.index)
	switch {
	case err != nil:
		return place{}, 0, err
	case only.name == "" && index == 0:
		return place{}, 0, fmt.Errorf("no interface has a network that contains %s: name one, %s/PREFIXLEN/INTERFACE", w.Addr, w.Addr)
	case only.name == "":
		if only = p.links[index]; only.name == "" {
			return place{}, 0, fmt.Errorf("interface number %d, which leads to %s, is gone", index, w.Addr)
		}
	case index == 0:
		ones = w.Addr.BitLen()
	}
	if bits == 0 {
		bits = ones
	}
	return only, bits, nil
}

// connected finds the most specific connected network that contains the
// address, on one interface if only is not 0: its interface, 0 for none, and
// its prefix length. The kernel's own answer comes without reading all routes,
// of which each address brings some; where it is another route's, they are read.
func (p *picture) connected(addr netip.Addr, only int) (index, bits int, err error) {
	suits := func(r netlink.Route) bool {
		if r.Gw != nil || len(r.MultiPath) > 0 || r.Dst == nil || r.LinkIndex == 0 || !r.Dst.Contains(addr.AsSlice()) {
			return false
		}
		ones, _ := r.Dst.Mask.Size()
		return ones > 0 && (only == 0 || only == r.LinkIndex)
	}
	if best, err := p.kernel.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true}); err == nil && len(best) == 1 &&
		best[0].Table == unix.RT_TABLE_MAIN && best[0].Type == unix.RTN_UNICAST && suits(best[0]) {
		ones, _ := best[0].Dst.Mask.Size()
		return best[0].LinkIndex, ones, nil
	}
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := p.kernel.RouteList(nil, family)
	if err != nil {
		return 0, 0, fmt.Errorf("list the routes: %w", err)
	}
	for _, r := range routes {
		if !suits(r) {
			continue
		}
		if ones, _ := r.Dst.Mask.Size(); ones > bits {
			index, bits = r.LinkIndex, ones
		}
	}
	return index, bits, nil
}

// freeLabel is eth0:0, or the next number that no address has.
func (p *picture) freeLabel(name string) string {
	for i := 0; ; i++ {
		label := name + ":" + strconv.Itoa(i)
		if len(label) > config.MaxInterfaceName {
			return "" // a label is for people's eyes; an address without one serves as well
		}
		if p.labels[label] == 0 {
			return label
		}
	}
}
