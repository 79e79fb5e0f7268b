package ebpf

import (
	"net"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

// direct lays a cable from a host to the client, for replies that do not come
// back through the director, and gives the host the virtual addresses.
func direct(t *testing.T, h *host) {
	t.Helper()
	for name, err := range map[string]error{
		"cable": h.connect("direct", "10.251.0.20/24", client, "direct", "10.251.0.50/24"),
		"route": h.route("10.1.0.50/32", "10.251.0.50"),
		"vip":   h.address("lo", "10.1.0.100/32"),
	} {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	t.Cleanup(func() {
		if l, err := h.LinkByName("direct"); err == nil {
			_ = h.LinkDel(l)
		}
		lo, err := h.LinkByName("lo")
		if err != nil {
			t.Error(err)
			return
		}
		for _, text := range []string{"10.1.0.100/32", six("10.1.0.100/32")} {
			a, _ := netlink.ParseAddr(text)
			_ = h.AddrDel(lo, a)
		}
	})
}

// Direct routing and tunnels, with real stacks on both ends: a megabyte each
// way, whole and unchanged, and counters that see one direction only.
func TestRepliesGoStraightToTheClient(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	direct(t, rack0)
	decapsulate(t, rack0)
	for _, c := range []struct {
		name, virtual, real string
		forward             model.Forward
	}{
		{"gate", "10.1.0.100:80", "10.240.0.20:80", model.Gate},
		{"gate, IPv6", six("10.1.0.100:80"), six("10.240.0.20:80"), model.Gate},
		{"4in4", "10.1.0.100:80", "10.240.0.20:80", model.IPIP},
		{"4in6", "10.1.0.100:80", six("10.240.0.20:80"), model.IPIP},
		{"6in6", six("10.1.0.100:80"), six("10.240.0.20:80"), model.IPIP},
		{"6in4", six("10.1.0.100:80"), "10.240.0.20:80", model.IPIP},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t, testOptions())
			virtual := netip.MustParseAddrPort(c.virtual)
			real := addReal(model.TCP, virtual, c.real, 1)
			real.Real.Forward = c.forward
			apply(t, p, addService(model.TCP, virtual, "rr"), real)
			// The tunnel's path is narrower than the client's: it is told so.
			echoStream(t, rack0, c.virtual, virtual, 1<<20)
			all, err := p.Counters(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r := all[0].Reals[0]; r.Connections != 1 || r.BytesIn < 1<<20 || r.PacketsOut != 0 {
				t.Errorf("counters %+v: want one connection, a megabyte in, and nothing seen of what goes out", r)
			}
			flushRoutes(t, client)
		})
	}
}

// A tunnel leads by a router to a narrow link: the router tells the director
// that the outer packets are too big, and the director tells the client. Without
// that the stream would stand still.
func TestTunnelThroughNarrowPath(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	direct(t, far)
	decapsulate(t, far)
	router.mtu(t, "down", 1400)
	for _, c := range []struct{ name, virtual, real string }{
		{"4in4", "10.1.0.100:80", "10.243.0.20:80"},
		{"4in6", "10.1.0.100:80", six("10.243.0.20:80")},
		{"6in4", six("10.1.0.100:80"), "10.243.0.20:80"},
		{"6in6", six("10.1.0.100:80"), six("10.243.0.20:80")}, // narrower, so that what the client has learned does not do
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t, testOptions())
			virtual := netip.MustParseAddrPort(c.virtual)
			real := addReal(model.TCP, virtual, c.real, 1)
			real.Real.Forward = model.IPIP
			apply(t, p, addService(model.TCP, virtual, "rr"), real)
			flushRoutes(t, client)
			flushRoutes(t, director)
			echoStream(t, far, c.virtual, virtual, 1<<20)
			if virtual.Addr().Is6() {
				return // the client may have learned a size in an earlier test, which nothing makes it forget
			}
			var learned tcPath
			if err := p.t.Paths.Lookup(wireAddr(netip.MustParseAddrPort(c.real).Addr()), &learned); err != nil || learned.Mtu != 1400 {
				t.Errorf("learned %+v (%v), want a way of 1400 bytes", learned, err)
			}
		})
	}
}

// decapsulate makes a host take tunnels apart: by the kernel's modules, where
// they were loaded before the host was made, and else by a program that removes
// the outer header of what comes in (Linux 6.6).
func decapsulate(t *testing.T, h *host) {
	t.Helper()
	if _, err := h.LinkByName("tunl0"); err == nil {
		// They take what no other tunnel does, ip6tnl0 at first only IPv6.
		const script = "ip link set tunl0 up && ip link set sit0 up && ip -6 tunnel change ip6tnl0 mode any && ip link set ip6tnl0 up"
		h.do(func() {
			if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", script, err, out)
			}
		})
		return
	}
	const toProtocol, toNext = 14 + 9, 14 + 6
	load := func(at int32) asm.Instructions { // r7 = the byte there
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, at), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 1), asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "pass"),
			asm.LoadMem(asm.R7, asm.R10, -8, asm.Byte),
		}
	}
	shrink := func(by int32, flags int64) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, -by), asm.Mov.Imm(asm.R3, 1), // BPF_ADJ_ROOM_MAC
			asm.LoadImm(asm.R4, flags, asm.DWord), asm.FnSkbAdjustRoom.Call(), asm.Ja.Label("pass"),
		}
	}
	const fixedGSO, toIPv4, toIPv6 = 1 << 0, 1 << 7, 1 << 8 // BPF_F_ADJ_ROOM_DECAP_L3_*
	var ins asm.Instructions
	add := func(more ...asm.Instructions) {
		for _, m := range more {
			ins = append(ins, m...)
		}
	}
	add(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.LoadMem(asm.R8, asm.R6, 16, asm.Word), // skb->protocol
		asm.JEq.Imm(asm.R8, 0xdd86, "six"), asm.JNE.Imm(asm.R8, 0x0008, "pass")},
		load(toProtocol), asm.Instructions{asm.JEq.Imm(asm.R7, 4, "4in4"), asm.JEq.Imm(asm.R7, 41, "6in4"), asm.Ja.Label("pass")})
	label := func(name string, i asm.Instructions) asm.Instructions {
		i[0] = i[0].WithSymbol(name)
		return i
	}
	add(label("six", load(toNext)), asm.Instructions{asm.JEq.Imm(asm.R7, 4, "4in6"), asm.JEq.Imm(asm.R7, 41, "6in6"), asm.Ja.Label("pass")},
		label("4in4", shrink(20, fixedGSO|toIPv4)), label("6in4", shrink(20, fixedGSO|toIPv6)),
		label("4in6", shrink(40, fixedGSO|toIPv4)), label("6in6", shrink(40, fixedGSO|toIPv6)),
		label("pass", asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}))
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	h.do(func() {
		eth, e := net.InterfaceByName("eth0")
		if e != nil {
			err = e
			return
		}
		var l link.Link
		if l, err = link.AttachTCX(link.TCXOptions{Interface: eth.Index, Program: prog, Attach: ebpf.AttachTCXIngress}); err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
