package ebpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// The cost of one packet in the programs alone, at tc and at XDP, as BPF
// test-run measures it: parsing, look-ups, routing, translation, checksums. What the
// kernel does with the verdict is not in it. A program that only returns is the
// cost of the measurement itself, to be subtracted. What comes last is the
// table of docs/performance.md.
//
// A repeated test-run works on the packet that the run before has left. So
// the virtual address is the real server's own here: all the work is done, and
// the packet is the same afterwards but for its hop count, which bounds a run
// to 200 packets. Nor does Program.Benchmark say by which interface it came: at
// XDP that is the loopback, which is told here to have the real server's
// hardware address, so that what was sent there is taken in again.
func BenchmarkProgram(b *testing.B) {
	requireRoot(b)
	rack0.offload(b, "eth0", receiveMerge, true) // takes packets from XDP
	p := openXDP(b, testOptions())
	names := map[string]netip.AddrPort{}
	for name, text := range map[string]string{"udp": "10.240.0.20:53", "tcp": "10.240.0.20:80", "gate": "10.240.0.21:53", "ring": "10.240.0.21:54", "udp6": six("10.240.0.20:53"), "tcp6": six("10.240.0.20:80")} {
		names[name] = netip.MustParseAddrPort(text)
	}
	for _, name := range []string{"udp", "udp6"} {
		apply(b, p, addService(model.UDP, names[name], "rr"), addReal(model.UDP, names[name], names[name].String(), 1))
	}
	for _, name := range []string{"tcp", "tcp6"} {
		apply(b, p, addService(model.TCP, names[name], "rr"), addReal(model.TCP, names[name], names[name].String(), 1))
	}
	for _, name := range []string{"gate", "ring"} {
		service, real := addService(model.UDP, names[name], "mh"), addReal(model.UDP, names[name], names[name].String(), 1)
		service.Service.OnePacket, real.Real.Forward = name == "ring", model.Gate
		apply(b, p, service, real)
	}
	// Known neighbors, so that connections remember their routes.
	for _, a := range []string{"10.240.0.20:8000", "10.240.0.21:8000", six("10.240.0.20:8000")} {
		echoStream(b, rack0, a, netip.MustParseAddrPort(a), 1)
	}
	peer, err := rack0.LinkByName("eth0")
	if err != nil {
		b.Fatal(err)
	}
	there := peer.Attrs().HardwareAddr
	lo := uint32(linkOf(b, "lo").Index)
	returns := func(verdict uint32) asm.Instructions {
		return asm.Instructions{asm.Mov.Imm(asm.R0, int32(verdict)), asm.Return()}
	}
	hooks := []*struct {
		name             string
		prog, empty      *ebpf.Program
		to               net.HardwareAddr
		pass, redirected uint32
		nothing          float64 // what the empty one costs
	}{
		{name: "tc", prog: p.in, empty: program(b, ebpf.SchedCLS, returns(pass)), to: make(net.HardwareAddr, 6), pass: pass, redirected: redirected},
		{name: "XDP", prog: p.hooks.quick.prog, empty: program(b, ebpf.XDP, returns(xdpPass)), to: there, pass: xdpPass, redirected: xdpRedirect},
	}
	const nothing = "a program that only returns"
	var table [][]string
	for _, c := range []struct {
		name   string
		before []string // packets that make it so
		packet string
		kind   int  // of the frame, 0: the packet's
		passed bool // on to the kernel; else redirected
		renew  bool
		fresh  bool   // each packet has another source port
		budget string // nanoseconds, net, at tc
	}{
		{name: nothing, packet: "gre 10.1.0.50 > 10.1.0.7 len=40", passed: true},
		// Early exits.
		{name: "not IP", packet: "gre 10.1.0.50 > 10.1.0.7 len=40", kind: unix.ETH_P_ARP, passed: true},
		{name: "other protocol", packet: "gre 10.1.0.50 > 10.1.0.7 len=40", passed: true},
		{name: "other protocol, IPv6", packet: "gre 2001:db8:1::50 > 2001:db8:1::7 len=40", passed: true},
		{name: "a later fragment of nobody's", packet: "udp 10.1.0.50:40000 > 10.1.0.7:99 ttl=255 len=18 frag=1480", passed: true},
		{name: "no service", packet: "udp 10.1.0.50:40000 > 10.1.0.7:99 ttl=255 len=18", passed: true},
		{name: "no service, IPv6", packet: "udp [2001:db8:1::50]:40000 > [2001:db8:1::7]:99 ttl=255 len=18", passed: true},
		{name: "no service, TCP", packet: "tcp 10.1.0.50:40000 > 10.1.0.7:99 S ttl=255", passed: true},
		{name: "no service, TCP, IPv6", packet: "tcp [2001:db8:1::50]:40000 > [2001:db8:1::7]:99 S ttl=255", passed: true},
		{name: "miss: a service, no connection, TCP", packet: "tcp 10.1.0.50:39999 > 10.240.0.20:80 A ttl=255", passed: true},
		{name: "miss: a service, no connection, TCP, IPv6", packet: "tcp [2001:db8:1::50]:39999 > [2001:db8:240::20]:80 A ttl=255", passed: true},
		{name: "known connection, UDP, masq", budget: "60", packet: "udp 10.1.0.50:40000 > 10.240.0.20:53 ttl=255 len=18"},
		{name: "known connection, TCP, masq", budget: "60", packet: "tcp 10.1.0.50:40000 > 10.240.0.20:80 A ttl=255", before: []string{
			"tcp 10.1.0.50:40000 > 10.240.0.20:80 S", "tcp 10.240.0.20:80 > 10.1.0.50:40000 SA"}},
		{name: "known connection, UDP, masq, IPv6", packet: "udp [2001:db8:1::50]:40000 > [2001:db8:240::20]:53 ttl=255 len=18"},
		{name: "known connection, TCP, masq, IPv6", packet: "tcp [2001:db8:1::50]:40000 > [2001:db8:240::20]:80 A ttl=255", before: []string{
			"tcp [2001:db8:1::50]:40000 > [2001:db8:240::20]:80 S", "tcp [2001:db8:240::20]:80 > [2001:db8:1::50]:40000 SA"}},
		{name: "at its last hop, UDP", packet: "udp 10.1.0.50:40000 > 10.240.0.20:53 ttl=1 len=18", passed: true},
		{name: "at its last hop, UDP, IPv6", packet: "udp [2001:db8:1::50]:40000 > [2001:db8:240::20]:53 ttl=1 len=18", passed: true},
		{name: "known connection, gate", packet: "udp 10.1.0.50:40000 > 10.240.0.21:53 ttl=255 len=18"},
		{name: "no connection at all (one packet, Maglev), gate", budget: "90", packet: "udp 10.1.0.50:40000 > 10.240.0.21:54 ttl=255 len=18"},
		// Warm-up.
		{name: "open a connection, UDP, masq", budget: "500", packet: "udp 10.1.0.50:40000 > 10.240.0.20:53 ttl=255 len=18", fresh: true},
		{name: "open a connection, TCP, masq", budget: "500", packet: "tcp 10.1.0.50:40000 > 10.240.0.20:80 S ttl=255", fresh: true},
		{name: "open a connection, UDP, masq, IPv6", budget: "500", packet: "udp [2001:db8:1::50]:40000 > [2001:db8:240::20]:53 ttl=255 len=18", fresh: true},
		{name: "open a connection, TCP, masq, IPv6", budget: "500", packet: "tcp [2001:db8:1::50]:40000 > [2001:db8:240::20]:80 S ttl=255", fresh: true},
		// Each packet ends the connection of the one before and opens another.
		{name: "end one connection and open another", packet: "tcp 10.1.0.50:40001 > 10.240.0.20:80 S ttl=255", renew: true},
		{name: "the same, IPv6", packet: "tcp [2001:db8:1::50]:40001 > [2001:db8:240::20]:80 S ttl=255", renew: true},
	} {
		for _, text := range c.before {
			in, err := parsePacket(text)
			if err != nil {
				b.Fatal(err)
			}
			testRun(b, p, "ingress", "outside", in.ip(), 1)
		}
		in, err := parsePacket(c.packet)
		if err != nil {
			b.Fatal(err)
		}
		for _, at := range hooks {
			b.Run(at.name+"/"+c.name, func(b *testing.B) {
				if c.fresh {
					p.t.control.Timeout[tcFlowStateFLOW_SYN_RECV], p.t.control.Timeout[tcFlowStateFLOW_UDP] = 1, 1
					defer p.setTimeouts()
				}
				if c.renew {
					p.t.control.Timeout[tcFlowStateFLOW_SYN_RECV] = 1<<32 - 1
					defer p.setTimeouts()
				}
				prog, want, budget := at.prog, at.redirected, ""
				if c.name == nothing {
					prog = at.empty
				}
				if c.passed {
					want = at.pass
				}
				if at.name == "tc" {
					budget = c.budget
				}
				frame := append(ethernet(at.to, in.ip()), in.ip()...)
				if c.kind != 0 {
					binary.BigEndian.PutUint16(frame[12:], uint16(c.kind))
				}
				ask := append(ethernet(make([]byte, 6), in.ip()), in.ip()...)
				home := func() { // a look at the interfaces takes it away again
					if err := p.hooks.quick.ports.Put(lo, macOf(there)); err != nil {
						b.Fatal(err)
					}
				}
				run := func(prog *ebpf.Program, frame []byte, times int, want uint32) time.Duration {
					got, each, err := prog.Benchmark(frame, times, func() {})
					// XDP leaves packets to tc whose next hop was not asked for within a second.
					for tries := 0; err == nil && got != want && tries < 3; tries++ {
						if _, err := p.in.Run(&ebpf.RunOptions{Data: ask}); err != nil {
							b.Fatal(err)
						}
						home()
						got, each, err = prog.Benchmark(frame, times, func() {})
					}
					if err != nil || got != want {
						b.Fatalf("verdict %d, %v; want %d", int32(got), err, int32(want))
					}
					return each
				}
				// Half of the runs are disturbed on a busy machine: the median of the
				// rest is what the program costs.
				cost := func(all []time.Duration) float64 {
					slices.Sort(all)
					return float64(all[len(all)/4].Nanoseconds())
				}
				var all, empty []time.Duration
				for b.Loop() {
					home()
					if !c.fresh {
						all = append(all, run(prog, frame, 200, want))
						continue
					}
					// One run at a time costs more to measure: so much more for the empty one.
					for port := range uint16(64) {
						in.src = netip.AddrPortFrom(in.src.Addr(), 50000+port)
						empty = append(empty, run(at.empty, frame, 1, at.pass))
						all = append(all, run(prog, append(ethernet(at.to, in.ip()), in.ip()...), 1, want))
					}
					time.Sleep(5 * time.Millisecond) // and these have been silent for too long
					p.sweepOnce()
				}
				each := cost(all)
				if c.fresh {
					each += at.nothing - cost(empty)
				}
				b.ReportMetric(each, "ns/packet")
				b.ReportMetric(0, "ns/op")
				if c.name == nothing {
					at.nothing = each
				}
				table = append(table, []string{c.name, at.name, fmt.Sprintf("%.0f", each), fmt.Sprintf("%.0f", each-at.nothing), budget})
			})
		}
	}
	if hooks[0].nothing == 0 || hooks[1].nothing == 0 {
		return // only some were asked for
	}
	head(2, "path", "at", "as measured, ns", "net, ns", "budget, net")
	for _, cells := range table {
		row(cells...)
	}
}

const (
	pass       = 0xffffffff
	redirected = 7
)

// benchmark skips a measurement that was not asked for.
func benchmark(t *testing.T, name string) {
	t.Helper()
	if os.Getenv("BATUTA_BENCH") != name {
		t.Skipf("a measurement: make bench-%s", name)
	}
	requireRoot(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(os.Stdout, "Linux %s\n", unix.ByteSliceToString(u.Release[:]))
}

// head and row write a table of docs/performance.md: the first columns are
// words, all others numbers.
func head(words int, cells ...string) {
	row(cells...)
	fmt.Fprintln(os.Stdout, "|"+strings.Repeat("---|", words)+strings.Repeat("--:|", len(cells)-words))
}

func row(cells ...string) {
	line := "|"
	for _, c := range cells {
		line += " " + c + " |"
	}
	fmt.Fprintln(os.Stdout, line)
}

func middle(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
