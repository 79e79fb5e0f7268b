package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// PortBlock is the argument of portblock (manual page
// ocf_heartbeat_portblock(7), its parameters in their order): ports that are
// closed while a group moves.
type PortBlock struct {
	TCP     bool // else UDP
	Ports   []uint16
	Unblock bool
	To      netip.Prefix // destination; the zero prefix for all
	Tickle  bool         // a tickle_dir is given
}

// PortBlockUsage is the form of a PortBlock.
const PortBlockUsage = "portblock::tcp|udp::PORT[,PORT...]::block|unblock[::ADDRESS[/PREFIXLEN]]"

// maxBlockedPorts is iptables' limit for one rule (multiport).
const maxBlockedPorts = 15

// ParsePortBlock reads the arguments of a portblock resource. Errors name the
// resource and the form to write.
func ParsePortBlock(r model.Resource) (PortBlock, error) {
	b, _, err := parsePortBlock(r.Args)
	if err != nil {
		return PortBlock{}, fmt.Errorf("resource %s: %w; write %s", r.Text, err, PortBlockUsage)
	}
	return b, nil
}

// parsePortBlock also tells which argument is wrong.
func parsePortBlock(args []string) (b PortBlock, at int, err error) {
	if len(args) < 3 {
		return b, max(len(args)-1, 0), fmt.Errorf("it takes a protocol, ports, and what to do")
	}
	switch args[0] {
	case "tcp", "udp":
		b.TCP = args[0] == "tcp"
	default:
		return b, 0, fmt.Errorf("%q is neither tcp nor udp", clip(args[0]))
	}
	ports := strings.Split(args[1], ",")
	for _, p := range ports {
		n, ok := number(p)
		if !ok || !digits(p) || n < 1 || n > 65535 {
			return b, 1, fmt.Errorf("%q is no port from 1 to 65535", clip(p))
		}
		b.Ports = append(b.Ports, uint16(n))
	}
	if len(ports) > maxBlockedPorts {
		return b, 1, fmt.Errorf("%d ports are more than %d", len(ports), maxBlockedPorts)
	}
	switch args[2] {
	case "block", "unblock":
		b.Unblock = args[2] == "unblock"
	default:
		return b, 2, fmt.Errorf("%q is neither block nor unblock", clip(args[2]))
	}
	// An IPv6 address may itself hold the separator of arguments; a tickle_dir
	// is an absolute path.
	rest := args[3:]
	if i := slices.IndexFunc(rest, func(s string) bool { return strings.HasPrefix(s, "/") && !digits(s[1:]) }); i >= 0 {
		b.Tickle, rest = true, rest[:i]
	}
	to := strings.Join(rest, "::")
	if to == "" {
		return b, 0, nil
	}
	a, bits, masked := strings.Cut(to, "/")
	addr, err := netip.ParseAddr(a)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return b, 3, fmt.Errorf("%q is no address", clip(a))
	}
	length := addr.BitLen()
	if masked {
		n, ok := number(bits)
		if !ok || !digits(bits) || n > length {
			return b, 3, fmt.Errorf("%q is no prefix length from 0 to %d", clip(bits), length)
		}
		length = n
	}
	b.To = netip.PrefixFrom(addr, length).Masked()
	return b, 0, nil
}

// reportPortBlock says what is wrong with a portblock resource, and what it
// will not do.
func reportPortBlock(p *problems, w word, r model.Resource) {
	b, at, err := parsePortBlock(r.Args)
	offset := len(r.Agent)
	for _, a := range r.Args[:min(at, len(r.Args))] {
		offset += len("::") + len(a)
	}
	switch {
	case err != nil:
		p.error(w.after(min(offset+len("::"), len(w.text))), "portblock: "+err.Error(), "write "+PortBlockUsage)
	case b.Tickle:
		p.warn(w.pos, "portblock: tickle_dir does nothing here: clients are not reminded of their connections after a move, and find out by their own retransmissions",
			"for balanced services the connections go on by themselves; else keep the original's script in resource.d, which is called then")
	}
}
