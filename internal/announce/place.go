package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
	a := l.Attrs()
	return place{name: a.Name, index: a.Index, mac: a.HardwareAddr, flags: a.Flags, noarp: a.RawFlags&unix.IFF_NOARP != 0}
}

// entry is one address of this machine.
type entry struct {
	prefix    netip.Prefix // the address with the length of its network
	index     int          // of its interface
	label     string       // IPv4; the interface's name where no other was given
	secondary bool         // IPv4: goes with the first address of its network
}

// survey is all addresses of one family, in the kernel's order. A hand-over
// makes one for each address, so it reads no more of them than is needed.
func survey(a netip.Addr) ([]entry, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	const tries = 10 // others may be changing addresses, too
	for i := 1; ; i++ {
		var all []entry
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(family))
		err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, func(m []byte) bool {
			if e, ok := readEntry(m); ok {
				all = append(all, e)
			}
			return true
		})
		if err == nil || errors.Is(err, netlink.ErrDumpInterrupted) && i == tries {
			return all, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list the addresses: %w", err)
		}
	}
}

// readEntry reads a struct ifaddrmsg and its attributes (linux/if_addr.h).
func readEntry(m []byte) (entry, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return entry{}, false
	}
	e := entry{index: int(binary.NativeEndian.Uint32(m[4:])), secondary: m[0] == unix.AF_INET && m[2]&unix.IFA_F_SECONDARY != 0}
	bits := int(m[1])
	var addr netip.Addr
	for rest := m[unix.SizeofIfAddrmsg:]; len(rest) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(rest))
		if size < unix.SizeofRtAttr || size > len(rest) {
			break
		}
		value := rest[unix.SizeofRtAttr:size]
		switch binary.NativeEndian.Uint16(rest[2:]) {
		case unix.IFA_LOCAL: // comes before or after IFA_ADDRESS, which may be the other end's
			addr, _ = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			if !addr.IsValid() {
				addr, _ = netip.AddrFromSlice(value)
			}
		case unix.IFA_LABEL:
			e.label = strings.TrimRight(string(value), "\x00")
		}
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	e.prefix = netip.PrefixFrom(addr, bits)
	return e, e.prefix.IsValid()
}

// find returns where the address is, the zero place for nowhere. On another
// interface than the one that was asked for, it is an error.
func find(w wish, all []entry) (place, error) {
	i := slices.IndexFunc(all, func(e entry) bool { return e.prefix.Addr() == w.Addr })
	if i < 0 {
		return place{}, nil
	}
	l, err := netlink.LinkByIndex(all[i].index)
	if err != nil {
		return place{}, fmt.Errorf("interface number %d: %w", all[i].index, err)
	}
	p := placeOf(l)
	p.prefix = all[i].prefix
	if w.Interface != "" && p.name != w.Interface {
		return place{}, fmt.Errorf("address %s is on %s, not on %s: remove it there (ip addr del %s dev %s) or name that interface in haresources",
			w.Addr, p.name, w.Interface, p.prefix, p.name)
	}
	if all[i].label != p.name {
		p.label = all[i].label
	}
	return p, nil
}

// put adds the address unless it is there.
func put(w wish) (place, error) {
	all, err := survey(w.Addr)
	if err != nil {
		return place{}, err
	}
	if p, err := find(w, all); err != nil || p.name != "" {
		return p, err
	}
	l, bits, err := choose(w)
	if err != nil {
		return place{}, err
	}
	p := placeOf(l)
	p.added, p.label = true, w.Label
	p.prefix = netip.PrefixFrom(w.Addr, bits)
	if w.autoLabel {
		p.label = freeLabel(p, all)
	}
	return p, add(w, p)
}

// add adds the address at its place; one that is there is no error.
func add(w wish, p place) error {
	a := kernelAddr(p)
	if w.Broadcast.IsValid() {
		a.Broadcast = w.Broadcast.AsSlice()
	}
	if w.Addr.Is6() {
		a.Flags = unix.IFA_F_NODAD // a second's wait for a duplicate is a second without service
	}
	if err := netlink.AddrAdd(linkOf(p), a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %s to %s: %w", p.prefix, p.name, err)
	}
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
// first of a network all later ones go, unless promote_secondaries is set.
func remove(w wish) (p place, along []netip.Addr, err error) {
	all, err := survey(w.Addr)
	if err != nil {
		return place{}, nil, err
	}
	if p, err = find(w, all); err != nil || p.name == "" {
		return place{}, nil, err
	}
	if err := netlink.AddrDel(linkOf(p), kernelAddr(p)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return place{}, nil, fmt.Errorf("remove %s from %s: %w", p.prefix, p.name, err)
	}
	if slices.ContainsFunc(all, func(e entry) bool { return e.prefix == p.prefix && e.index == p.index && e.secondary }) {
		return p, nil, nil
	}
	for _, e := range all {
		if e.secondary && e.index == p.index && e.prefix.Masked() == p.prefix.Masked() {
			along = append(along, e.prefix.Addr())
		}
	}
	return p, along, nil
}

// choose finds the interface and prefix length that were not given: those of
// the most specific network that this machine is connected to.
func choose(w wish) (netlink.Link, int, error) {
	bits := w.Bits
	var l netlink.Link
	var err error
	if w.Interface != "" {
		if l, err = netlink.LinkByName(w.Interface); err != nil {
			return nil, 0, fmt.Errorf("interface %s: %w", w.Interface, err)
		}
		if bits > 0 {
			return l, bits, nil
		}
	}
	index, ones, err := connected(w.Addr, l)
	switch {
	case err != nil:
		return nil, 0, err
	case l == nil && index == 0:
		return nil, 0, fmt.Errorf("no interface has a network that contains %s: name one, %s/PREFIXLEN/INTERFACE", w.Addr, w.Addr)
	case l == nil:
		if l, err = netlink.LinkByIndex(index); err != nil {
			return nil, 0, fmt.Errorf("interface number %d: %w", index, err)
		}
	case index == 0:
		ones = w.Addr.BitLen()
	}
	if bits == 0 {
		bits = ones
	}
	return l, bits, nil
}

// connected finds the most specific connected network that contains the
// address, on one interface if only is not nil: its interface, 0 for none, and
// its prefix length. The kernel's own answer comes without reading all routes,
// of which each address brings some; where it is another route's, they are read.
func connected(addr netip.Addr, only netlink.Link) (index, bits int, err error) {
	suits := func(r netlink.Route) bool {
		if r.Gw != nil || len(r.MultiPath) > 0 || r.Dst == nil || r.LinkIndex == 0 || !r.Dst.Contains(addr.AsSlice()) {
			return false
		}
		ones, _ := r.Dst.Mask.Size()
		return ones > 0 && (only == nil || only.Attrs().Index == r.LinkIndex)
	}
	if best, err := netlink.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true}); err == nil && len(best) == 1 &&
		best[0].Table == unix.RT_TABLE_MAIN && best[0].Type == unix.RTN_UNICAST && suits(best[0]) {
		ones, _ := best[0].Dst.Mask.Size()
		return best[0].LinkIndex, ones, nil
	}
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteList(nil, family)
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
func freeLabel(p place, all []entry) string {
	taken := map[string]bool{}
	for _, e := range all {
		taken[e.label] = true
	}
	for i := 0; ; i++ {
		label := p.name + ":" + strconv.Itoa(i)
		if len(label) > config.MaxInterfaceName {
			return "" // a label is for people's eyes; an address without one serves as well
		}
		if !taken[label] {
			return label
		}
	}
}
