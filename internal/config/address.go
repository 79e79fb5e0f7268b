package config

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// Address is the argument of IPaddr, IPaddr2 and IPv6addr:
//
//	ADDRESS[/PREFIXLEN[/INTERFACE[:LABEL][/BROADCAST]]]
//
// where the part after the prefix length may also be the broadcast address.
// What was not given is zero and is found out when the address is started.
type Address struct {
	Addr      netip.Addr
	Bits      int        // prefix length; 0 where it is not given
	Interface string     // without the label
	Label     string     // with the interface: "eth0:web"; IPv4 only
	Broadcast netip.Addr // IPv4 only
}

// AddressUsage is the form of an Address.
const AddressUsage = "ADDRESS[/PREFIXLEN[/INTERFACE[:LABEL][/BROADCAST]]]"

// MaxInterfaceName is the longest name of an interface or label, in bytes
// (linux/if.h IFNAMSIZ, less its zero).
const MaxInterfaceName = 15

// ParseAddress reads the argument of an address resource. Errors name the
// resource and the form to write.
func ParseAddress(r model.Resource) (Address, error) {
	a, _, err := parseAddress(addressArgument(r))
	if err != nil {
		return Address{}, fmt.Errorf("resource %s: %w; write %s::%s", r.Text, err, r.Agent, AddressUsage)
	}
	return a, nil
}

// isAddress tells whether a resource is one that Batuta itself puts on an interface.
func isAddress(r model.Resource) bool {
	return r.Agent == "IPaddr" || r.Agent == "IPaddr2" || r.Agent == "IPv6addr"
}

// addressArgument is the end of the resource's text: an IPv6 address may itself
// hold the separator of arguments.
func addressArgument(r model.Resource) string { return strings.Join(r.Args, "::") }

// parseAddress also tells at which byte of the argument the error is.
func parseAddress(s string) (a Address, at int, err error) {
	if s == "" {
		return a, 0, fmt.Errorf("no address")
	}
	part := strings.Split(s, "/")
	where := make([]int, len(part))
	for i := range part[1:] {
		where[i+1] = where[i] + len(part[i]) + 1
	}
	if len(part) > 4 {
		return a, where[4], fmt.Errorf("more than four parts")
	}
	if a.Addr, err = netip.ParseAddr(part[0]); err != nil || a.Addr.Zone() != "" {
		return a, 0, fmt.Errorf("%q is no address", clip(part[0]))
	}
	if a.Addr.Is4In6() || a.Addr.IsMulticast() || a.Addr.IsUnspecified() {
		return a, 0, fmt.Errorf("%s cannot be a service address", a.Addr)
	}
	if len(part) > 1 {
		if a.Bits, err = prefixLength(part[1], a.Addr); err != nil {
			return a, where[1], err
		}
	}
	broadcast := 3
	if len(part) == 3 && part[2] != "" && part[2][0] >= '0' && part[2][0] <= '9' {
		broadcast = 2
	}
	if len(part) > 2 && broadcast == 3 && part[2] != "" {
		if err = a.setInterface(part[2]); err != nil {
			return a, where[2], err
		}
	}
	if len(part) > broadcast {
		s := part[broadcast]
		if a.Broadcast, err = netip.ParseAddr(s); err != nil || !a.Broadcast.Is4() || !a.Addr.Is4() {
			return a, where[broadcast], fmt.Errorf("%q is no IPv4 broadcast address", clip(s))
		}
	}
	return a, 0, nil
}

// setInterface reads INTERFACE[:LABEL].
func (a *Address) setInterface(s string) error {
	name, label, labeled := strings.Cut(s, ":")
	if name == "" || name == "." || name == ".." || len(name) > MaxInterfaceName {
		return fmt.Errorf("%q is no name of an interface, which has 1 to %d characters", clip(name), MaxInterfaceName)
	}
	a.Interface = name
	if !labeled {
		return nil
	}
	a.Label = s
	switch {
	case a.Addr.Is6():
		return fmt.Errorf("an IPv6 address has no label")
	case label == "" || len(s) > MaxInterfaceName:
		return fmt.Errorf("%q is no label: it must have 1 to %d characters, interface and colon included", clip(s), MaxInterfaceName)
	}
	return nil
}

// prefixLength reads a prefix length, or a netmask as ifconfig has it.
func prefixLength(s string, a netip.Addr) (int, error) {
	if m, err := netip.ParseAddr(s); err == nil && m.Is4() && a.Is4() {
		b := m.As4()
		mask := binary.BigEndian.Uint32(b[:])
		if ones := bits.LeadingZeros32(^mask); ones > 0 && mask<<ones == 0 {
			return ones, nil
		}
		return 0, fmt.Errorf("%q is no netmask", s)
	}
	n, ok := number(s)
	if !digits(s) || !ok || n < 1 || n > a.BitLen() {
		return 0, fmt.Errorf("%q is no prefix length from 1 to %d", clip(s), a.BitLen())
	}
	return n, nil
}
