package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// resolver turns names into addresses and ports. It asks the host once for
// each name, so that a thousand lines with one dead name cost one look-up.
type resolver struct {
	host  model.Host
	names map[string]answer
	ports map[string]portAnswer
}

type answer struct {
	addrs []netip.Addr
	err   error
}

type portAnswer struct {
	port uint16
	err  error
}

func newResolver(h model.Host) *resolver {
	return &resolver{h, map[string]answer{}, map[string]portAnswer{}}
}

// addr gives the first address of a family that name has. An IPv6 address
// may stand in brackets. short tells an IPv4 address that is not written in
// full, as 10.0.2.
func (r *resolver) addr(name string, f model.Family) (a netip.Addr, short bool, err error) {
	if f == model.IPv6 && strings.HasPrefix(name, "[") {
		text := strings.Trim(name, "[]")
		a, err = netip.ParseAddr(text)
		switch {
		case err != nil || a.Zone() != "":
			return netip.Addr{}, false, fmt.Errorf("%s is no IPv6 address", clip(name))
		case a.Is4():
			return netip.Addr{}, false, fmt.Errorf("%s is an IPv4 address", clip(name))
		}
		return a, false, nil
	}
	if a, short, ok := inetAddr(name); ok {
		if f == model.IPv6 {
			return netip.Addr{}, false, fmt.Errorf("%s is an IPv4 address", clip(name))
		}
		return a, short, nil
	}
	if strings.Trim(name, "0123456789.") == "" {
		return netip.Addr{}, false, fmt.Errorf("%s is no IPv4 address", clip(name))
	}
	if r.host.LookupAddr == nil {
		return netip.Addr{}, false, fmt.Errorf("host name %s cannot be looked up here", clip(name))
	}
	got, asked := r.names[name]
	if !asked {
		got.addrs, got.err = r.host.LookupAddr(name)
		r.names[name] = got
	}
	if got.err != nil {
		return netip.Addr{}, false, fmt.Errorf("host name %s cannot be resolved: %w", clip(name), got.err)
	}
	for _, a := range got.addrs {
		if a = a.Unmap(); model.FamilyOf(a) == f {
			return a.WithZone(""), false, nil
		}
	}
	return netip.Addr{}, false, fmt.Errorf("host name %s has no %s address", clip(name), f)
}

// port reads a number below 65536 or looks a service name up, for the given
// transports in turn.
func (r *resolver) port(text string, networks ...string) (uint16, error) {
	if digits(text) {
		n, ok := number(text)
		if !ok || n > 65535 {
			return 0, fmt.Errorf("port %s is above 65535", clip(text))
		}
		return uint16(n), nil
	}
	if r.host.LookupPort == nil {
		return 0, fmt.Errorf("service name %s cannot be looked up here", clip(text))
	}
	for _, network := range networks {
		key := network + "/" + text
		got, asked := r.ports[key]
		if !asked {
			got.port, got.err = r.host.LookupPort(network, text)
			r.ports[key] = got
		}
		if got.err == nil {
			return got.port, nil
		}
	}
	return 0, fmt.Errorf("service name %s is not in /etc/services for %s", clip(text), strings.Join(networks, " or "))
}

// inetAddr reads an IPv4 address as the C library's inet_aton(3) does: one to
// four numbers, decimal, octal (leading 0) or hexadecimal (0x), the last of
// which fills the rest. short is true unless it is the usual form.
func inetAddr(s string) (a netip.Addr, short, ok bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
		return a, false, true
	}
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false, false
	}
	var sum uint64
	for i, p := range parts {
		if p == "" || p[0] < '0' || p[0] > '9' || strings.Contains(p, "_") {
			return netip.Addr{}, false, false
		}
		base := 10
		switch {
		case strings.HasPrefix(p, "0x") || strings.HasPrefix(p, "0X"):
			p, base = p[2:], 16
		case p[0] == '0' && len(p) > 1:
			base = 8
		}
		n, err := strconv.ParseUint(p, base, 32)
		width := 8
		if i == len(parts)-1 {
			width = 8 * (5 - len(parts))
		}
		if err != nil || n >= 1<<width {
			return netip.Addr{}, false, false
		}
		sum = sum<<width | n
	}
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}), true, true
}
