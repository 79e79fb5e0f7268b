package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// addressResource is the argument of IPaddr and IPaddr2:
// ADDRESS[/PREFIXLEN[/INTERFACE[:LABEL][/BROADCAST]]]. The part behind the
// prefix length may also be the broadcast address, which begins with a digit.
type addressResource struct {
	addr netip.Addr
	bits int // 0 where it is not given
}

// parseAddressResource reads as much of it as the configuration as a whole
// depends on.
func parseAddressResource(s string) (addressResource, error) {
	parts := strings.Split(s, "/")
	a, err := netip.ParseAddr(parts[0])
	if err != nil {
		return addressResource{}, fmt.Errorf("%q is no address", clip(parts[0]))
	}
	r := addressResource{addr: a}
	if len(parts) > 1 {
		n, ok := number(parts[1])
		if !digits(parts[1]) || !ok || n < 1 || n > a.BitLen() {
			return r, fmt.Errorf("%q is no prefix length", clip(parts[1]))
		}
		r.bits = n
	}
	if len(parts) > 4 {
		return r, fmt.Errorf("%q has too many parts", clip(s))
	}
	if last := parts[len(parts)-1]; len(parts) > 2 && (len(parts) == 4 || last != "" && last[0] >= '0' && last[0] <= '9') {
		if _, err := netip.ParseAddr(last); err != nil {
			return r, fmt.Errorf("%q is no broadcast address", clip(last))
		}
	}
	return r, nil
}
