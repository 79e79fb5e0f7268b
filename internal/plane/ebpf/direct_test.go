package ebpf

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

// direct lays a cable from rack0 to the client, for replies that do not come
// back through the director, and gives rack0 the virtual addresses.
func direct(t *testing.T) {
	t.Helper()
	for name, err := range map[string]error{
		"cable": rack0.connect("direct", "10.251.0.20/24", client, "direct", "10.251.0.50/24"),
		"route": rack0.route("10.1.0.50/32", "10.251.0.50"),
		"vip":   rack0.address("lo", "10.1.0.100/32"),
	} {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	t.Cleanup(func() {
		if l, err := rack0.LinkByName("direct"); err == nil {
			_ = rack0.LinkDel(l)
		}
		lo, err := rack0.LinkByName("lo")
		if err != nil {
			t.Error(err)
			return
		}
		for _, text := range []string{"10.1.0.100/32", six("10.1.0.100/32")} {
			a, _ := netlink.ParseAddr(text)
			_ = rack0.AddrDel(lo, a)
		}
	})
}

// Direct routing and tunnels, with real stacks on both ends: a megabyte each
// way, whole and unchanged, and counters that see one direction only.
func TestRepliesGoStraightToTheClient(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	direct(t)
	decapsulate(t)
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

// decapsulate makes rack0 take tunnels apart, which this kernel may have no
// module for: a program that removes the outer header of what comes in.
func decapsulate(t *testing.T) {
	t.Helper()
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
	rack0.do(func() {
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

// Ten thousand open connections live through a reload, a restart, an update of
// the programs, and both at once, while some of them are busy all the time.
func TestNothingIsLost(t *testing.T) {
	requireRoot(t)
	const connections, busy = 10000, 16
	o := testOptions()
	o.MaxFlows = 4 * connections
	p := open(t, o)
	to := vip(0, 80)
	apply(t, p, addService(model.TCP, to, "rr"), addReal(model.TCP, to, "10.240.0.20:8000", 1), addReal(model.TCP, to, "10.241.0.20:8000", 1))
	for at, h := range map[string]*host{"10.240.0.20:8000": rack0, "10.241.0.20:8000": rack1} {
		echoServer(t, h, at)
	}

	conns := make([]net.Conn, connections)
	each := func(what string, from, to, workers int, fn func(i int) error) {
		t.Helper()
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			lost  int
			first error
		)
		for w := range workers {
			wg.Go(func() {
				for i := from + w; i < to; i += workers {
					if err := fn(i); err != nil {
						mu.Lock()
						lost++
						if first == nil {
							first = err
						}
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		if lost > 0 {
			t.Fatalf("%s: %d of %d connections lost, the first: %v", what, lost, to-from, first)
		}
	}
	each("opening", 0, connections, 8, func(i int) (err error) {
		client.do(func() { conns[i], err = net.Dial("tcp4", to.String()) })
		return err
	})
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	ask := func(i int) error {
		b := []byte{byte(i)}
		if _, err := conns[i].Write(b); err != nil {
			return err
		}
		_, err := conns[i].Read(b)
		return err
	}
	each("first exchange", 0, connections, 8, ask)

	for _, event := range []struct {
		name string
		do   func()
	}{
		{"reload", func() {
			apply(t, p, addService(model.TCP, vip(1, 80), "wrr"), addReal(model.TCP, vip(1, 80), "10.240.0.21:80", 3),
				addService(model.TCP, to, "wlc"), addReal(model.TCP, to, "10.240.0.20:8000", 0), addReal(model.TCP, to, "10.241.0.20:8000", 7))
			c := addService(model.TCP, vip(1, 80), "")
			c.Op = model.ServiceDelete
			apply(t, p, c)
		}},
		{"restart", func() {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			p = open(t, o)
		}},
		{"update of the program", func() { mutate(t, p, func(ins asm.Instructions) int { return len(ins) }) }},
		{"restart of an updated program", func() {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			p = open(t, o)
		}},
	} {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		fails := make(chan error, busy)
		for i := range busy {
			wg.Go(func() {
				for {
					if err := ask(i); err != nil {
						fails <- err
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		event.do()
		close(stop)
		wg.Wait()
		select {
		case err := <-fails:
			t.Fatalf("%s: a busy connection was lost: %v", event.name, err)
		default:
		}
		each("after the "+event.name, 0, connections, 8, ask)
	}
	if f, err := p.Flows(t.Context()); err != nil || len(f) < connections {
		t.Errorf("%d connections in the table, %v; want %d", len(f), err, connections)
	}
}

// echoServer answers every byte, until the test ends. It is a process of its
// own: so many connections are more than one may have twice.
func echoServer(t *testing.T, h *host, at string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), insideEcho+"="+at)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // which ends it
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("echo server on %s: %v", at, err)
	}
}

const insideEcho = "BATUTA_EBPF_TEST_ECHO"

// serveEcho is that process. It ends with its standard input.
func serveEcho(at string) error {
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
