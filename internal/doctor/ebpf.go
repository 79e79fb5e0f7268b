package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// EBPF is what is known of a machine that balances by the eBPF plane, which
// takes packets before netfilter and most else see them.
type EBPF struct {
	Services []model.VirtualService
	// Netfilter has the lines of its rules that name an address, from
	// `nft list ruleset` and `iptables-save`.
	Netfilter []string
	// First are programs that get packets before the plane's.
	First []Program
	// LRO are interfaces that put packets together for themselves alone.
	LRO []string
	// NoSockets says why clients on this machine are not balanced; "" if they are.
	NoSockets string
	JIT       string // net.core.bpf_jit_enable
}

// Program is an eBPF program on an interface.
type Program struct {
	Interface string
	Where     string // as bpftool says it: tcx_ingress, tcx_egress
	Name      string
	ID        uint32
}

// The rules of the plane: a director's.
var ebpfRules = []rule{
	{"EBP001", model.LevelError, planeForwardOff},
	{"EBP002", model.LevelWarning, bypassed},
	{"EBP003", model.LevelWarning, otherFirst},
	{"EBP004", model.LevelError, largeReceive},
	{"EBP005", model.LevelNotice, noSockets},
	{"EBP006", model.LevelWarning, interpreted},
}

// planeForwardOff: the stack does what the programs leave to it, and the
// kernel's routes are theirs, only where it forwards.
func planeForwardOff(f Facts) []Finding {
	f.Services = f.EBPF.Services
	found := forwardOff(f)
	for i := range found {
		found[i].Text = strings.Replace(found[i].Text, "answers of masq real servers are not passed on to the clients",
			"no packet of that family reaches a masq real server", 1)
	}
	return found
}

// bypassed: what netfilter is told of a virtual address does not happen.
func bypassed(f Facts) (found []Finding) {
	told := map[string]bool{}
	for _, v := range f.EBPF.Services {
		if v.Key.IsMark() || told[v.Key.Addr.Addr().String()] {
			continue
		}
		addr := v.Key.Addr.Addr().String()
		told[addr] = true
		for _, line := range f.EBPF.Netfilter {
			// Whole words: 10.1.0.1 is not 10.1.0.100.
			if !slices.Contains(strings.FieldsFunc(line, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef.:", r) }), addr) {
				continue
			}
			found = append(found, Finding{
				Text: fmt.Sprintf("netfilter has a rule for %s, but packets of services and their connections do not come by netfilter with the eBPF plane: %q does nothing to them; say it in the native file (match blocks of a service), before this machine, or use another plane", addr, strings.TrimSpace(line))})
			break
		}
	}
	return found
}

// otherFirst: the order of programs on an interface is that of their coming.
func otherFirst(f Facts) (found []Finding) {
	for _, p := range f.EBPF.First {
		found = append(found, Finding{Fix: fmt.Sprintf("bpftool net detach %s dev %s", p.Where, p.Interface),
			Text: fmt.Sprintf("%s: program %q (id %d) gets packets before the plane's at %s: what it takes or drops is not balanced; if it is wanted, start it after Batuta", p.Interface, p.Name, p.ID, p.Where)})
	}
	return found
}

// largeReceive: packets that were put together cannot be sent on (the kernel
// switches it off where it forwards and knows it; a redirect it does not know).
func largeReceive(f Facts) (found []Finding) {
	for _, name := range f.EBPF.LRO {
		found = append(found, Finding{Fix: "ethtool -K " + name + " lro off",
			Text: name + " puts received packets together (large-receive-offload): they are too large to be sent on, and connections hang; generic-receive-offload does no harm"})
	}
	return found
}

func noSockets(f Facts) []Finding {
	if f.EBPF.NoSockets == "" {
		return nil
	}
	return []Finding{{Fix: "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
		Text: "programs on this machine itself do not reach real servers by the virtual addresses: " + f.EBPF.NoSockets}}
}

func interpreted(f Facts) []Finding {
	if f.EBPF.JIT != "0" {
		return nil
	}
	return []Finding{{Fix: sysctl("net.core.bpf_jit_enable", 1),
		Text: "net.core.bpf_jit_enable is 0: the programs are interpreted, and each packet costs several times as much"}}
}
