package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// marks lowers the match blocks of a service.
func (l *nativeLower) marks(b *rawBlock, key model.ServiceKey) (rules []model.MarkRule) {
	for _, m := range b.all("match") {
		if !key.IsMark() {
			l.error(m.pos, "match says which packets have a firewall mark, and the service has none", `write service "fwm MARK", or remove the block`)
			continue
		}
		in := scope{m}
		r := model.MarkRule{Mark: key.Mark, Family: key.MarkFamily, Interface: in.text("interface", "")}
		r.Proto = map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP, "sctp": model.SCTP}[in.text("protocol", "")]
		r.Destination = l.network(in, "destination", r.Family)
		r.Source = l.network(in, "source", r.Family)
		r.First, r.Last = l.ports(in)
		if len(m.values) == 0 {
			l.error(m.pos, "match without anything fits every packet that comes to this machine", "give destination at least")
		}
		rules = append(rules, r)
	}
	return rules
}

// network reads an address or a network; zero where there is none.
func (l *nativeLower) network(in scope, name string, f model.Family) netip.Prefix {
	v, given := in.find(name)
	if !given {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(v.text)
	if a, alone := netip.ParseAddr(v.text); alone == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		l.error(v.pos, fmt.Sprintf("%s: %q is no address and no network", name, clip(v.text)), `write "10.1.0.100" or "10.1.0.0/24"`)
	case model.FamilyOf(p.Addr()) != f:
		l.error(v.pos, fmt.Sprintf("%s: %s is not of the service's address family, %s", name, clip(v.text), f), "fwm is for IPv4, fwm6 for IPv6")
	case p != p.Masked():
		l.error(v.pos, fmt.Sprintf("%s: %s has bits beyond its network", name, clip(v.text)), fmt.Sprintf("write %q", p.Masked()))
	default:
		return p
	}
	return netip.Prefix{}
}

// ports reads a port or a range of ports; 0 and 0 are all.
func (l *nativeLower) ports(in scope) (first, last uint16) {
	v, given := in.find("ports")
	if !given {
		return 0, 0
	}
	from, to, isRange := strings.Cut(v.text, "-")
	if !isRange {
		to = from
	}
	a, okA := number(from)
	b, okB := number(to)
	if !okA || !okB || a < 1 || b < a || b > 65535 {
		l.error(v.pos, fmt.Sprintf("ports: %q is no port and no range of ports", clip(v.text)), `write "80" or "5000-5100"`)
		return 0, 0
	}
	return uint16(a), uint16(b)
}
