package node

import (
	"context"
	"os/exec"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/doctor"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

// ebpfFacts looks at what goes with the eBPF plane, or against it.
func ebpfFacts(ctx context.Context, services []model.VirtualService) *doctor.EBPF {
	f := &doctor.EBPF{Services: services, JIT: setting("core/bpf_jit_enable")}
	s := ebpf.Look("")
	f.LRO, f.NoSockets = s.LRO, s.NoSockets
	for _, p := range s.First {
		f.First = append(f.First, doctor.Program(p))
	}
	for _, command := range [][]string{{"nft", "list", "ruleset"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}} {
		f.Netfilter = append(f.Netfilter, linesOf(ctx, command...)...)
	}
	return f
}

// linesOf is what a command prints; nothing where it is not there, or fails.
func linesOf(ctx context.Context, command ...string) (lines []string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).Output()
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}
