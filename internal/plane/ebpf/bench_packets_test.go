package ebpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestBenchPackets makes UDP packets of 64 bytes within the kernel, as many as
// one processor carries from the director's outer interface to rack0, where
// they are dropped: make bench-packets. They are made by a program at XDP that
// a test-run repeats (BPF_F_TEST_XDP_LIVE_FRAMES): each is written anew and
// passed to the stack as if it had just come to the interface.
//
// A thread bound to one processor does all of it, so its processor's time
// (and that of the processor's ksoftirqd) is what packets cost, whatever else
// the machine does.
func TestBenchPackets(t *testing.T) {
	benchmark(t, "packets")
	neighbors(t) // none is asked for among the packets
	columns, rows := []string{"way"}, map[string][]string{}
	for _, flows := range []struct {
		n    uint32
		text string
	}{{1, "1 flow"}, {1 << 10, "1,024 flows"}, {1 << 17, "131,072 flows"}} {
		columns = append(columns, flows.text+": ns (range)", "M packets/s", "of forwarding's, above drop")
		t.Run(flows.text, func(t *testing.T) { packets(t, flows.n, rows) })
	}
	head(1, columns...)
	for _, c := range courses(t) {
		if cells := rows[c.name]; len(cells) > 0 { // nft may not be there
			row(append([]string{c.name}, cells...)...)
		}
	}
}

// A course is one way of packets, of a generator of its own.
type course struct {
	name, packet string
	drop         bool // at the director
	quick        bool // goes on to the plane's program at XDP
	nft          bool
	service      model.Change // by the plane, where it is one of a service
}

func courses(t *testing.T) []course {
	plain, plain6 := "udp 10.1.0.50:1024 > 10.240.0.20:9 len=18", "udp [2001:db8:1::50]:1024 > [2001:db8:240::20]:9 len=18"
	virtual := func(port int) string { return fmt.Sprintf("udp 10.1.0.50:1024 > 10.1.0.100:%d len=18", port) }
	to := func(virtual string, forward model.Forward) model.Change {
		in, err := parsePacket(virtual)
		if err != nil {
			t.Fatal(err)
		}
		real := "10.240.0.20:9"
		if in.dst.Addr().Is6() {
			real = six(real)
		}
		c := addReal(model.UDP, in.dst, real, 1)
		c.Real.Forward = forward
		return c
	}
	virtual6 := "udp [2001:db8:1::50]:1024 > [2001:db8:1::100]:9 len=18"
	return []course{
		{name: "drop", packet: plain, drop: true},
		{name: "forwarding", packet: plain},
		{name: "nft", packet: virtual(9), nft: true},
		{name: "masq", packet: virtual(9), service: to(virtual(9), model.Masq)},
		{name: "gate", packet: virtual(10), service: to(virtual(10), model.Gate)},
		{name: "4in4", packet: virtual(11), service: to(virtual(11), model.IPIP)},
		{name: "masq at XDP", packet: virtual(9), service: to(virtual(9), model.Masq), quick: true},
		{name: "drop, IPv6", packet: plain6, drop: true},
		{name: "forwarding, IPv6", packet: plain6},
		{name: "masq, IPv6", packet: virtual6, service: to(virtual6, model.Masq)},
	}
}

// packets measures all courses by turns, and adds each one's cells to its row.
func packets(t *testing.T, flows uint32, rows map[string][]string) {
	rounds, all := int(number("ROUNDS", 5)), courses(t)
	took := make([][]float64, len(all))
	for range rounds {
		for i, c := range all {
			t.Run(c.name, func(t *testing.T) { took[i] = append(took[i], c.run(t, flows)) })
		}
	}
	drop, forward := 0.0, 0.0
	for i, c := range all {
		if len(took[i]) < rounds {
			continue // nft is not there
		}
		ns := middle(took[i])
		switch {
		case c.drop:
			drop = ns
		case c.service.Op == 0 && !c.nft:
			forward = ns
		}
		of := ""
		if !c.drop {
			of = fmt.Sprintf("%.2f", (ns-drop)/(forward-drop))
		}
		rows[c.name] = append(rows[c.name], fmt.Sprintf("%.0f (%s)", ns, rangeOf(took[i])), fmt.Sprintf("%.2f", 1000/ns), of)
	}
}

func rangeOf(all []float64) string {
	low, high := all[0], all[0]
	for _, x := range all {
		low, high = min(low, x), max(high, x)
	}
	return fmt.Sprintf("%.0f–%.0f", low, high)
}

// run puts a course into force, and gives the nanoseconds that a packet took.
func (c course) run(t *testing.T, flows uint32) float64 {
	// Native XDP, which a test-run wants of an interface to pretend with.
	outside := linkOf(t, "outside").Index
	var quick *ebpf.Program
	if c.service.Op != 0 {
		o := testOptions()
		o.MaxFlows, o.XDP = 1<<18, XDPOff
		if c.quick {
			o.XDP = XDPOn
			rack0.offload(t, "eth0", receiveMerge, true) // takes packets from XDP
		}
		p := open(t, o)
		key := c.service.Service.Key
		apply(t, p, addService(model.UDP, key.Addr, "rr"), c.service)
		if c.quick {
			quick = p.hooks.quick.prog
		}
	}
	if quick == nil {
		pretend := program(t, ebpf.XDP, asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()})
		eventually(t, func() string { // a plane's is gone a moment after the plane
			l, err := link.AttachXDP(link.XDPOptions{Program: pretend, Interface: outside, Flags: link.XDPDriverMode})
			if err != nil {
				return err.Error()
			}
			t.Cleanup(func() { _ = l.Close() })
			return ""
		})
	}
	if c.nft {
		if _, err := exec.LookPath("nft"); err != nil {
			t.Skip(err)
		}
		nft(t, "table ip lb {\nchain p {\ntype nat hook prerouting priority -100;\nip daddr 10.1.0.100 udp dport 9 dnat to 10.240.0.20\n}\n}\n")
		t.Cleanup(func() { nft(t, "delete table ip lb\n") })
	}
	shot := program(t, ebpf.SchedCLS, asm.Instructions{asm.Mov.Imm(asm.R0, dropped), asm.Return()})
	at, name := rack0, "eth0"
	if c.drop {
		at, name = director, "outside"
	}
	var err error
	at.do(func() {
		var eth *net.Interface
		if eth, err = net.InterfaceByName(name); err == nil {
			var l link.Link
			if l, err = link.AttachTCX(link.TCXOptions{Interface: eth.Index, Program: shot, Attach: ebpf.AttachTCXIngress}); err == nil {
				t.Cleanup(func() { _ = l.Close() })
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	prog, frame := generator(t, c.packet, flows, quick)
	send := func(n uint32) {
		o := &ebpf.RunOptions{Data: frame, Repeat: n, Flags: 1 << 1, // BPF_F_TEST_XDP_LIVE_FRAMES
			Context: xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(outside)}}
		if _, err := prog.Run(o); err != nil {
			t.Fatalf("test-run: %v", err)
		}
	}
	if flows > 1 {
		send(6 * flows) // nearly all of them, as they are drawn by lot
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		t.Fatal(err)
	}
	const cpu = 0
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &was) }()
	const n = 200_000
	send(n / 10)
	before, began := arrived(t), softTime(t, cpu)
	send(n)
	took := softTime(t, cpu) - began
	if !c.drop {
		eventually(t, func() string {
			if got := arrived(t) - before; got < n*999/1000 {
				return fmt.Sprintf("%d of %d packets came", got, n)
			}
			return ""
		})
	}
	return float64(took.Nanoseconds()) / n
}

// program loads a small one until the test ends.
func program(t testing.TB, typ ebpf.ProgramType, ins asm.Instructions) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: typ, License: "GPL", Instructions: ins})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// generator is a program that writes a packet anew each time, of one of many
// flows by lot: another port, or above 2^15 of them another address. What is
// added there is taken away from the payload, so that sums stay right; and from
// the identification, for the sum of the header of IPv4. With a next program
// the packet goes on there, else to the stack.
func generator(t *testing.T, packet string, flows uint32, next *ebpf.Program) (*ebpf.Program, []byte) {
	t.Helper()
	in, err := parsePacket(packet)
	if err != nil {
		t.Fatal(err)
	}
	frame := append(ethernet(linkOf(t, "outside").HardwareAddr, in.ip()), in.ip()...)
	udp, source := 34, 28 // offsets; source: the last two bytes of the address
	if in.src.Addr().Is6() {
		udp, source = 54, 36
	} else {
		set(frame, 18, 24, 0x8000)
	}
	set(frame, udp+8, udp+6, 0x8000) // enough to take from
	set(frame, udp+10, udp+6, 0x8000)
	word := func(at int) int32 { return int32(binary.BigEndian.Uint16(frame[at:])) }
	var ins asm.Instructions
	ins = append(ins, asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, int32(flows-1)),
		asm.Mov.Reg(asm.R7, asm.R0), asm.And.Imm(asm.R7, 0x7fff), // more of the port
		asm.Mov.Reg(asm.R8, asm.R0), asm.RSh.Imm(asm.R8, 15), // and of the address
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word), asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2), asm.Add.Imm(asm.R4, int32(len(frame))), asm.JGT.Reg(asm.R4, asm.R3, "end"))
	for at := 0; at < len(frame); at += 2 {
		ins = append(ins, asm.StoreImm(asm.R2, int16(at), int64(binary.LittleEndian.Uint16(frame[at:])), asm.Half))
	}
	put := func(at int, reg asm.Register, less bool) {
		ins = append(ins, asm.Mov.Imm(asm.R4, word(at)))
		if less {
			ins = append(ins, asm.Sub.Reg(asm.R4, reg))
		} else {
			ins = append(ins, asm.Add.Reg(asm.R4, reg))
		}
		ins = append(ins, asm.HostTo(asm.BE, asm.R4, asm.Half), asm.StoreMem(asm.R2, int16(at), asm.R4, asm.Half))
	}
	put(udp, asm.R7, false)
	put(udp+10, asm.R7, true)
	put(source, asm.R8, false)
	put(udp+8, asm.R8, true)
	if udp == 34 {
		put(18, asm.R8, true)
	}
	spec := &ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL"}
	if next != nil {
		list, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = list.Close() })
		defer func() {
			if err := list.Put(uint32(0), next); err != nil {
				t.Fatal(err)
			}
		}()
		ins = append(ins, asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, list.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call())
	}
	ins = append(ins, asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("end"), asm.Return())
	spec.Instructions = ins
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p, frame
}

// set sets a word of a frame, and corrects a sum for it.
func set(frame []byte, at, sum int, n uint16) {
	was := binary.BigEndian.Uint16(frame[at:])
	binary.BigEndian.PutUint16(frame[at:], n)
	s := uint32(^binary.BigEndian.Uint16(frame[sum:])) + uint32(^was) + uint32(n)
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	binary.BigEndian.PutUint16(frame[sum:], ^uint16(s))
}

// arrived counts the packets that came to rack0.
func arrived(t *testing.T) uint64 {
	t.Helper()
	l, err := rack0.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Statistics.RxPackets
}

// softTime is the time that this thread and a processor's ksoftirqd have run.
func softTime(t *testing.T, cpu int) time.Duration {
	t.Helper()
	var all unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &all); err != nil {
		t.Fatal(err)
	}
	return time.Duration(all.Nano()) + rig.Ran(t, rig.Named(t, fmt.Sprintf("ksoftirqd/%d", cpu))...)
}

func nft(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}
