package announce

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// wish is what haresources asks for. Members that were not given are zero and
// are found out when the address is started.
type wish struct {
	addr      netip.Addr
	bits      int    // -1: not given
	iface     string // "": not given
	label     string // "eth0:web" where one was given
	autoLabel bool   // IPaddr: eth0:0, or the next number that is free
	broadcast netip.Addr
}

const usage = "ADDRESS[/PREFIXLEN[/INTERFACE[:LABEL][/BROADCAST]]]"

// maxName is the longest name of an interface or label (linux/if.h IFNAMSIZ, less its zero).
const maxName = 15

// parse reads the argument of IPaddr, IPaddr2 and IPv6addr:
//
//	ADDRESS[/PREFIXLEN[/INTERFACE[:LABEL][/BROADCAST]]]
//
// where the part after the prefix length may also be the broadcast address.
func parse(res model.Resource) (wish, error) {
	w := wish{bits: -1, autoLabel: res.Agent == "IPaddr"}
	fail := func(format string, args ...any) (wish, error) {
		return wish{}, fmt.Errorf("resource %s: %s; write %s::%s", res.Text, fmt.Sprintf(format, args...), res.Agent, usage)
	}
	arg := strings.Join(res.Args, "::") // an IPv6 address may itself hold the separator
	if arg == "" {
		return fail("no address")
	}
	part := strings.Split(arg, "/")
	if len(part) > 4 {
		return fail("more than four parts")
	}
	var err error
	if w.addr, err = netip.ParseAddr(part[0]); err != nil || w.addr.Zone() != "" {
		return fail("%q is no address", part[0])
	}
	if w.addr.Is4In6() || w.addr.IsMulticast() || w.addr.IsUnspecified() {
		return fail("%s cannot be a service address", w.addr)
	}
	if len(part) > 1 {
		if w.bits, err = prefixLength(part[1], w.addr); err != nil {
			return fail("%v", err)
		}
	}
	rest := part[min(2, len(part)):]
	if len(rest) == 1 && rest[0] != "" && rest[0][0] >= '0' && rest[0][0] <= '9' {
		rest = []string{"", rest[0]}
	}
	if len(rest) > 0 && rest[0] != "" {
		name, label, labeled := strings.Cut(rest[0], ":")
		if name == "" || len(name) > maxName {
			return fail("%q is no name of an interface", name)
		}
		w.iface = name
		if labeled {
			w.label, w.autoLabel = name+":"+label, false
			if label == "" || len(w.label) > maxName {
				return fail("%q is no label: it must have 1 to %d characters, interface and colon included", w.label, maxName)
			}
		}
	}
	if len(rest) > 1 {
		if w.broadcast, err = netip.ParseAddr(rest[1]); err != nil || !w.broadcast.Is4() || !w.addr.Is4() {
			return fail("%q is no IPv4 broadcast address", rest[1])
		}
	}
	if w.addr.Is6() {
		w.autoLabel = false
		if w.label != "" {
			return fail("an IPv6 address has no label")
		}
	}
	return w, nil
}

// prefixLength reads a prefix length, or a netmask as ifconfig has it.
func prefixLength(s string, addr netip.Addr) (int, error) {
	if m, err := netip.ParseAddr(s); err == nil && m.Is4() && addr.Is4() {
		mask := m.As4()
		if ones, bits := net.IPMask(mask[:]).Size(); bits != 0 {
			return ones, nil
		}
		return 0, fmt.Errorf("%q is no netmask", s)
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > addr.BitLen() {
		return 0, fmt.Errorf("%q is no prefix length from 1 to %d", s, addr.BitLen())
	}
	return n, nil
}
