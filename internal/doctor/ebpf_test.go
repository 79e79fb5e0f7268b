package doctor_test

import (
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/doctor"
	"github.com/batuta-ha/batuta/internal/model"
)

// Rules of the eBPF plane: the mistake that each finds, and beside it what is right.
func TestRulesOfTheEBPFPlane(t *testing.T) {
	masq := real(model.Masq, "10.240.0.20:80", 1)
	facts := func(e doctor.EBPF) doctor.Facts {
		e.Services = service(masq)
		return doctor.Facts{EBPF: &e}
	}
	forwarding := func(value string) doctor.Facts {
		f := facts(doctor.EBPF{})
		f.Forward = map[model.Family]string{model.IPv4: value}
		return f
	}
	for _, c := range []struct {
		name         string
		wrong, right doctor.Facts
		code         string
		text, fix    string
	}{
		{"the stack does not forward", forwarding("0"), forwarding("1"),
			"EBP001", "no packet of that family reaches a masq real server", "sysctl -w net.ipv4.ip_forward=1"},
		{"a rule that is bypassed",
			facts(doctor.EBPF{Netfilter: []string{"ip daddr 10.1.0.1 accept", "  ip daddr 10.1.0.100 tcp dport 80 drop"}}),
			facts(doctor.EBPF{Netfilter: []string{"ip daddr 10.1.0.1 accept", "ip daddr 110.1.0.100 drop", "-A INPUT -d 10.1.0.10/32 -j DROP"}}),
			"EBP002", `"ip daddr 10.1.0.100 tcp dport 80 drop" does nothing`, ""},
		{"the same by iptables", facts(doctor.EBPF{Netfilter: []string{"-A INPUT -d 10.1.0.100/32 -j DROP"}}), facts(doctor.EBPF{}),
			"EBP002", "-j DROP", ""},
		{"another program comes first", facts(doctor.EBPF{First: []doctor.Program{{Interface: "eth0", Where: "tcx_ingress", Name: "cil_from_netdev", ID: 7}}}),
			facts(doctor.EBPF{}), "EBP003", `eth0: program "cil_from_netdev" (id 7) gets packets before`, "bpftool net detach tcx_ingress dev eth0"},
		{"packets put together", facts(doctor.EBPF{LRO: []string{"eth0"}}), facts(doctor.EBPF{}),
			"EBP004", "eth0 puts received packets together", "ethtool -K eth0 lro off"},
		{"no control groups", facts(doctor.EBPF{NoSockets: "no control groups of version 2 are mounted"}), facts(doctor.EBPF{}),
			"EBP005", "no control groups", "mount -t cgroup2"},
		{"no compiler", facts(doctor.EBPF{JIT: "0"}), facts(doctor.EBPF{JIT: "1"}),
			"EBP006", "interpreted", "sysctl -w net.core.bpf_jit_enable=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wrong := doctor.Examine(c.wrong)
			if len(wrong) != 1 || wrong[0].Code != c.code || !strings.Contains(wrong[0].Text, c.text) ||
				!strings.Contains(wrong[0].Fix, c.fix) || (c.fix == "") != (wrong[0].Fix == "") {
				t.Errorf("wrong: %+v, want %s %q with %q", wrong, c.code, c.text, c.fix)
			}
			if right := doctor.Examine(c.right); len(right) != 0 {
				t.Errorf("right: %+v, want nothing", right)
			}
		})
	}
}
