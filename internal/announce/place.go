package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
	a := l.Attrs()
	return place{name: a.Name, index: a.Index, mac: a.HardwareAddr, flags: a.Flags, noarp: a.RawFlags&unix.IFF_NOARP != 0}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// find returns where the address is, the zero place for nowhere. On another
// interface than the one that was asked for, it is an error.
func find(w wish) (place, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return place{}, fmt.Errorf("list the interfaces: %w", err)
	}
	for _, l := range links {
		addrs, err := netlink.AddrList(l, family(w.addr))
		if err != nil {
			return place{}, fmt.Errorf("list the addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, have := range addrs {
			ip, ok := netip.AddrFromSlice(have.IP)
			if !ok || ip.Unmap() != w.addr {
				continue
			}
			p := placeOf(l)
			if w.iface != "" && p.name != w.iface {
				return place{}, fmt.Errorf("address %s is on %s, not on %s: remove it there (ip addr del %s dev %s) or name that interface in haresources",
					w.addr, p.name, w.iface, have.IPNet, p.name)
			}
			ones, _ := have.Mask.Size()
			p.prefix = netip.PrefixFrom(w.addr, ones)
			if have.Label != p.name {
				p.label = have.Label
			}
			return p, nil
		}
	}
	return place{}, nil
}

// put adds the address unless it is there.
func put(w wish) (place, error) {
	if p, err := find(w); err != nil || p.name != "" {
		return p, err
	}
	l, bits, err := choose(w)
	if err != nil {
		return place{}, err
	}
	p := placeOf(l)
	p.added, p.label = true, w.label
	p.prefix = netip.PrefixFrom(w.addr, bits)
	if w.autoLabel {
		if p.label, err = freeLabel(l); err != nil {
			return place{}, err
		}
	}
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: w.addr.AsSlice(), Mask: net.CIDRMask(bits, w.addr.BitLen())},
		Label: p.label,
	}
	if w.broadcast.IsValid() {
		a.Broadcast = w.broadcast.AsSlice()
	}
	if w.addr.Is6() {
		a.Flags = unix.IFA_F_NODAD // a second's wait for a duplicate is a second without service
	}
	if err := netlink.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return place{}, fmt.Errorf("add %s to %s: %w", p.prefix, p.name, err)
	}
	return p, nil
}

// remove takes the address away and returns where it was, the zero place for nowhere.
func remove(w wish) (place, error) {
	p, err := find(w)
	if err != nil || p.name == "" {
		return place{}, err
	}
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.index, Name: p.name}}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: w.addr.AsSlice(), Mask: net.CIDRMask(p.prefix.Bits(), w.addr.BitLen())}, Label: p.label}
	if err := netlink.AddrDel(l, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return place{}, fmt.Errorf("remove %s from %s: %w", p.prefix, p.name, err)
	}
	return p, nil
}

// choose finds the interface and prefix length that were not given: those of
// the most specific network that this machine is connected to.
func choose(w wish) (netlink.Link, int, error) {
	index, bits := 0, -1
	routes, err := netlink.RouteList(nil, family(w.addr))
	if err != nil {
		return nil, 0, fmt.Errorf("list the routes: %w", err)
	}
	for _, r := range routes {
		if r.Gw != nil || len(r.MultiPath) > 0 || r.Dst == nil || r.LinkIndex == 0 || !r.Dst.Contains(w.addr.AsSlice()) {
			continue
		}
		if ones, _ := r.Dst.Mask.Size(); ones > bits && ones > 0 {
			if w.iface != "" {
				l, err := netlink.LinkByIndex(r.LinkIndex)
				if err != nil || l.Attrs().Name != w.iface {
					continue
				}
			}
			index, bits = r.LinkIndex, ones
		}
	}
	var l netlink.Link
	switch {
	case w.iface != "":
		if l, err = netlink.LinkByName(w.iface); err != nil {
			return nil, 0, fmt.Errorf("interface %s: %w", w.iface, err)
		}
		if bits < 0 {
			bits = w.addr.BitLen()
		}
	case index != 0:
		if l, err = netlink.LinkByIndex(index); err != nil {
			return nil, 0, fmt.Errorf("interface number %d: %w", index, err)
		}
	default:
		return nil, 0, fmt.Errorf("no interface has a network that contains %s: name one, %s/PREFIXLEN/INTERFACE", w.addr, w.addr)
	}
	if w.bits >= 0 {
		bits = w.bits
	}
	return l, bits, nil
}

// freeLabel is eth0:0, or the next number that no address has.
func freeLabel(l netlink.Link) (string, error) {
	name := l.Attrs().Name
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return "", fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for i := 0; ; i++ {
		label := name + ":" + strconv.Itoa(i)
		if len(label) > maxName {
			return "", nil // a label is for people's eyes; an address without one serves as well
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Label == label }) {
			return label, nil
		}
	}
}
