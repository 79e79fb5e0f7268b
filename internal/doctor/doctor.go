// Package doctor knows what is wrong with a machine that balances or serves,
// although each setting by itself is allowed. Facts about the machine come in,
// findings go out, each with a code that can be looked up, a sentence and the
// command that mends it. The package looks at nothing itself and changes
// nothing.
package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/batuta-ha/batuta/internal/model"
)

// Facts are what is known of a machine. What is not known is zero, and no rule
// says anything of it.
type Facts struct {
	Services   []model.VirtualService
	IPVS       map[string]string // settings below net.ipv4.vs, without that prefix
	Sync       []model.SyncDaemon
	Forward    map[model.Family]string // net.ipv4.ip_forward, net.ipv6.conf.all.forwarding
	All        map[string]string       // settings below net.ipv4.conf.all
	Interfaces []Interface
	Peers      []netip.Addr // addresses of the other directors
	Heartbeat  []string     // interfaces of the heartbeats
	Silent     string       // why the kernel does not answer other directors while the daemon is silent
	NoBPF      bool         // /sys/fs/bpf is no BPF file system
	EBPF       *EBPF        // nil where another plane balances, or none
}

// Interface is one interface of the machine.
type Interface struct {
	Name     string
	Loopback bool // lo, or a dummy: nobody is behind it
	Tunnel   bool // ends tunnels: ipip, gre, fou
	MTU      int  // bytes
	Addrs    []netip.Prefix
	Conf     map[string]string // settings below net.ipv4.conf.NAME
}

// Finding is one thing that is wrong, or worth knowing.
type Finding struct {
	Code  string      `json:"code"`  // "LVS101"
	Level model.Level `json:"level"` // error: something does not work; warning: it will not some day; notice: by the way
	Text  string      `json:"text"`
	Fix   string      `json:"fix"` // a command for a shell; "" where there is none
}

// Examine applies all rules. The most urgent findings come first, and the
// order is the same for the same facts.
func Examine(f Facts) []Finding {
	var found []Finding
	all := rules
	if f.EBPF != nil {
		all = slices.Concat(rules, ebpfRules)
	}
	for _, r := range all {
		for _, x := range r.find(f) {
			x.Code, x.Level = r.code, r.level
			found = append(found, x)
		}
	}
	slices.SortStableFunc(found, func(a, b Finding) int { return int(b.Level) - int(a.Level) })
	return found
}

// rule finds one kind of mistake.
type rule struct {
	code  string
	level model.Level
	find  func(Facts) []Finding
}

// number reads a setting; -1 where it is not known.
func number(settings map[string]string, name string) int {
	var n int
	if _, err := fmt.Sscanf(settings[name], "%d", &n); err != nil {
		return -1
	}
	return n
}

// effective is what an interface does: the greater of its own setting and
// that of all (Documentation/networking/ip-sysctl.rst, for rp_filter,
// arp_ignore and arp_announce); -1 where it is not known.
func (f Facts) effective(i Interface, name string) int {
	own := number(i.Conf, name)
	if own < 0 {
		return -1
	}
	return max(own, number(f.All, name))
}

// each calls do for every real server of the table.
func (f Facts) each(do func(model.VirtualService, model.RealServer)) {
	for _, v := range f.Services {
		for _, r := range v.Reals {
			do(v, r)
		}
	}
}

// uses tells whether a real server of that family is reached by the method.
// The machine's own fallback, which packets do not leave for, does not count.
func (f Facts) uses(method model.Forward, family model.Family) bool {
	used := false
	f.each(func(_ model.VirtualService, r model.RealServer) {
		used = used || r.Forward == method && model.FamilyOf(r.Addr.Addr()) == family && !f.own(r.Addr.Addr())
	})
	return used
}

// own tells whether an address is the machine's.
func (f Facts) own(a netip.Addr) bool {
	return a.IsLoopback() || slices.ContainsFunc(f.Interfaces, func(i Interface) bool { return i.has(a) })
}

func (i Interface) has(a netip.Addr) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// towards is the interface on whose network an address is; nil for none.
func (f Facts) towards(a netip.Addr) *Interface {
	for n, i := range f.Interfaces {
		if !i.Loopback && slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(a) && p.Bits() < a.BitLen() }) {
			return &f.Interfaces[n]
		}
	}
	return nil
}

// hidden are the virtual addresses of a real server: addresses on an
// interface that has nobody behind it.
func (f Facts) hidden() []netip.Prefix {
	var list []netip.Prefix
	for _, i := range f.Interfaces {
		for _, p := range i.Addrs {
			if i.Loopback && p.Addr().Is4() && !p.Addr().IsLoopback() {
				list = append(list, p)
			}
		}
	}
	return list
}
