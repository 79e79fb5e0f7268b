package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// requireGroup skips what needs control groups of version 2.
func requireGroup(t *testing.T) {
	t.Helper()
	requireRoot(t)
	if os.Getenv(insideGroup) != "" {
		return
	}
	if os.Getenv("BATUTA_REQUIRE_ROOT") == "1" {
		t.Fatal("needs control groups of version 2, and BATUTA_REQUIRE_ROOT=1 allows no skip")
	}
	t.Skip("needs control groups of version 2: clients on the director are led by them")
}

// of is an address of the drawing in the family wanted.
func of(v6 bool, text string) netip.AddrPort {
	if v6 {
		text = six(text)
	}
	return netip.MustParseAddrPort(text)
}

// answering is a TCP and a UDP server on one address of a host, which answer
// with who they are and whom they saw.
func answering(t *testing.T, at *host, where netip.AddrPort) {
	t.Helper()
	var (
		l   net.Listener
		u   *net.UDPConn
		err error
	)
	at.do(func() {
		if l, err = net.Listen("tcp", where.String()); err == nil {
			u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(where))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				b := make([]byte, 100)
				n, _ := c.Read(b)
				_, _ = c.Write(append(b[:n], " at "+where.String()...))
				_, _ = c.Read(b) // until the client ends
			}()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(append(b[:n:n], " at "+where.String()...), from)
		}
	}()
}

func askOnce(t *testing.T, network string, to netip.AddrPort) (said string, c net.Conn) {
	t.Helper()
	c, err := net.DialTimeout(network, to.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("who")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return string(b[:n]), c
}

// A client on the director is balanced as others are: its socket is led to a
// real server, and believes that it speaks to the virtual address.
func TestClientOnTheDirector(t *testing.T) {
	requireGroup(t)
	for _, v6 := range []bool{false, true} {
		for _, proto := range []model.Protocol{model.TCP, model.UDP} {
			t.Run(proto.String()+" v6="+strconv.FormatBool(v6), func(t *testing.T) {
				p := open(t, testOptions())
				virtual := of(v6, "10.1.0.100:80")
				reals := []netip.AddrPort{of(v6, "10.240.0.20:8000"), of(v6, "10.241.0.20:8000")}
				answering(t, rack0, reals[0])
				answering(t, rack1, reals[1])
				apply(t, p, addService(proto, virtual, "rr"), addReal(proto, virtual, reals[0].String(), 1), addReal(proto, virtual, reals[1].String(), 1))
				got := map[string]int{}
				var conns []net.Conn
				for range 4 {
					said, c := askOnce(t, proto.String(), virtual)
					got[said]++
					conns = append(conns, c)
					if peer := getpeername(t, c); peer != virtual {
						t.Errorf("the socket's peer is %s, want %s", peer, virtual)
					}
				}
				for _, r := range reals {
					if n := got["who at "+r.String()]; n != 2 {
						t.Errorf("%s answered %d times, want 2: %v", r, n, got)
					}
				}
				active, inactive, total := gauges(t, p)
				if want := map[model.Protocol][2]uint32{model.TCP: {4, 0}, model.UDP: {0, 4}}[proto]; active != want[0] || inactive != want[1] || total != 4 {
					t.Errorf("%d active and %d inactive connections of %d, want %d and %d of 4", active, inactive, total, want[0], want[1])
				}
				if flows, _ := p.Flows(t.Context()); len(flows) != 4 || flows[0].Virtual != virtual {
					t.Errorf("listed: %v, want 4 connections of %s", flows, virtual)
				}
				for _, c := range conns {
					_ = c.Close()
				}
				eventually(t, func() string {
					if a, i, _ := gauges(t, p); a+i != 0 {
						return "connections of closed sockets are still counted"
					}
					return ""
				})
			})
		}
	}
}

// In a full table a connection of the director's own takes the place of one that is
// half-open, and gives its record back like any other.
func TestClientOnTheDirectorInAFullTable(t *testing.T) {
	requireGroup(t)
	o := testOptions()
	o.MaxFlows = 16
	o.Timeouts.Young = time.Nanosecond
	p := open(t, o)
	virtual := vip(0, 80)
	answering(t, rack0, netip.MustParseAddrPort("10.240.0.20:8000"))
	apply(t, p, addService(model.TCP, virtual, "rr"), addReal(model.TCP, virtual, "10.240.0.20:8000", 1))
	for i := range o.MaxFlows {
		sendOne(t, p, "tcp 10.1.0.50:%d > 10.1.0.100:80 S", 40000+i)
	}
	for range 2 * o.MaxFlows {
		_, c := askOnce(t, "tcp", virtual)
		_ = c.Close()
	}
	if flows, err := p.Flows(t.Context()); err != nil || len(flows) < o.MaxFlows-2 {
		t.Errorf("%d connections, %v: want those of others", len(flows), err)
	}
}

// gauges sums the real servers' connections.
func gauges(t *testing.T, p *Plane) (active, inactive uint32, total uint64) {
	t.Helper()
	all, err := p.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		for _, r := range s.Reals {
			active, inactive, total = active+uint32(r.Active), inactive+uint32(r.Inactive), total+r.Connections
		}
	}
	return active, inactive, total
}

// getpeername asks the kernel, which Go does not do by itself.
func getpeername(t *testing.T, c net.Conn) (peer netip.AddrPort) {
	t.Helper()
	socket(t, c.(syscall.Conn), func(fd int) error {
		sa, err := unix.Getpeername(fd)
		switch a := sa.(type) {
		case *unix.SockaddrInet4:
			peer = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			peer = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
		}
		return err
	})
	return peer
}

// A socket that is not connected keeps its real server for each virtual
// address, hears answers from those addresses, and gets another real server
// when its own is deleted.
func TestUnconnectedSocketOnTheDirector(t *testing.T) {
	requireGroup(t)
	for _, v6 := range []bool{false, true} {
		t.Run("v6="+strconv.FormatBool(v6), func(t *testing.T) {
			p := open(t, testOptions())
			first, second := of(v6, "10.1.0.100:53"), of(v6, "10.1.0.101:53")
			reals := []netip.AddrPort{of(v6, "10.240.0.20:5300"), of(v6, "10.241.0.20:5300")}
			answering(t, rack0, reals[0])
			answering(t, rack1, reals[1])
			for i, v := range []netip.AddrPort{first, second} {
				apply(t, p, addService(model.UDP, v, "rr"), addReal(model.UDP, v, reals[i].String(), 1))
			}
			u, err := net.ListenUDP("udp", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = u.Close() }()
			_ = u.SetDeadline(time.Now().Add(patience))
			ask := func(to netip.AddrPort, want string) {
				t.Helper()
				if _, err := u.WriteToUDPAddrPort([]byte("who"), to); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 100)
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					t.Fatalf("no answer from %s: %v", to, err)
				}
				from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
				if from != to || string(b[:n]) != want {
					t.Errorf("%s said %q, want %s: %q", from, b[:n], to, want)
				}
			}
			for range 3 {
				ask(first, "who at "+reals[0].String())
				ask(second, "who at "+reals[1].String())
			}
			if _, _, total := gauges(t, p); total != 2 {
				t.Errorf("%d connections, want 2", total)
			}
			// The first service moves to the other real server.
			apply(t, p, addReal(model.UDP, first, reals[1].String(), 1), model.Change{Op: model.RealDelete,
				Service: model.VirtualService{Key: model.ServiceKey{Proto: model.UDP, Addr: first}}, Real: model.RealServer{Addr: reals[0]}})
			ask(first, "who at "+reals[1].String())
			// And is nobody's without one.
			apply(t, p, model.Change{Op: model.RealDelete,
				Service: model.VirtualService{Key: model.ServiceKey{Proto: model.UDP, Addr: first}}, Real: model.RealServer{Addr: reals[1]}})
			if _, err := u.WriteToUDPAddrPort([]byte("who"), first); !errors.Is(err, unix.EPERM) {
				t.Errorf("without a real server: %v, want %v", err, unix.EPERM)
			}
			if r, _ := p.Reasons(t.Context()); r[ReasonNoReal] != 1 {
				t.Errorf("reasons %v, want one no-real-server", r)
			}
			ask(second, "who at "+reals[1].String())
		})
	}
}

// What is forwarded as it is goes to the real server's own address and the
// virtual port; the fallback on the director is where it always was.
func TestForwardingForClientsOnTheDirector(t *testing.T) {
	requireGroup(t)
	virtual := of(false, "10.1.0.100:80")
	for _, c := range []struct {
		name    string
		forward model.Forward
		real    string
		at      *host
		listens string
	}{
		{"gate", model.Gate, "10.240.0.20:80", rack0, "10.240.0.20:80"},
		{"ipip", model.IPIP, "10.243.0.20:80", far, "10.243.0.20:80"},
		{"the director's own", model.Gate, "127.0.0.1:80", director, "10.1.0.100:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t, testOptions())
			answering(t, c.at, netip.MustParseAddrPort(c.listens))
			real := addReal(model.TCP, virtual, c.real, 1)
			real.Real.Forward = c.forward
			apply(t, p, addService(model.TCP, virtual, "rr"), real)
			said, conn := askOnce(t, "tcp", virtual)
			if want := "who at " + c.listens; said != want {
				t.Errorf("%q, want %q", said, want)
			}
			if peer := getpeername(t, conn); peer != virtual {
				t.Errorf("the socket's peer is %s, want %s", peer, virtual)
			}
		})
	}
	t.Run("ipip to the other family", func(t *testing.T) {
		p := open(t, testOptions())
		real := addReal(model.TCP, virtual, six("10.243.0.20:80"), 1)
		real.Real.Forward = model.IPIP
		apply(t, p, addService(model.TCP, virtual, "rr"), real)
		if _, err := net.DialTimeout("tcp", virtual.String(), patience); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, want %v", err, unix.EPERM)
		}
	})
}

// Programs leave with the plane, stay when it is closed, and the next one
// knows the open sockets.
func TestSocketsOutliveTheProcess(t *testing.T) {
	requireGroup(t)
	o := testOptions()
	virtual, real := of(false, "10.1.0.100:80"), of(false, "10.240.0.20:8000")
	answering(t, rack0, real)
	p := open(t, o)
	apply(t, p, addService(model.TCP, virtual, "rr"), addReal(model.TCP, virtual, real.String(), 1))
	_, c := askOnce(t, "tcp", virtual)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if said, _ := askOnce(t, "tcp", virtual); said != "who at "+real.String() {
		t.Errorf("while no plane is open: %q", said)
	}
	p = open(t, o)
	if active, _, _ := gauges(t, p); active != 2 {
		t.Errorf("%d active connections, want 2", active)
	}
	_ = c.Close()
	eventually(t, func() string {
		if active, _, _ := gauges(t, p); active != 1 {
			return "the closed socket is still counted"
		}
		return ""
	})
	p.sweepOnce()
	if active, _, _ := gauges(t, p); active != 1 {
		t.Error("a sweep ended an open socket's connection")
	}
	p.closeNow(t)
	if _, err := net.DialTimeout("tcp", virtual.String(), patience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the plane was removed: %v, want %v", err, unix.ECONNREFUSED)
	}
}

// Other namespaces' sockets are none of ours, though their processes are in
// the same control group.
func TestSocketsOfOtherNamespaces(t *testing.T) {
	requireGroup(t)
	p := open(t, testOptions())
	virtual, real := of(false, "10.1.0.100:80"), of(false, "10.240.0.20:8000")
	answering(t, rack0, real)
	apply(t, p, addService(model.TCP, virtual, "rr"), addReal(model.TCP, virtual, real.String(), 1))
	client.do(func() {
		if said, _ := askOnce(t, "tcp", virtual); said != "who at "+real.String() {
			t.Errorf("%q", said)
		}
	})
	flows, err := p.Flows(t.Context())
	if err != nil || len(flows) != 1 || flows[0].Client.Addr() != netip.MustParseAddr("10.1.0.50") {
		t.Errorf("connections %v %v, want one of the client's address", flows, err)
	}
}

// BenchmarkSocket is what the programs add to system calls of processes that
// have nothing to do with the plane, and to those that have.
func BenchmarkSocket(b *testing.B) {
	requireRoot(b)
	send := func(b *testing.B, to netip.AddrPort) {
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 240, 0, 1)})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = u.Close() }()
		for b.Loop() {
			if _, err := u.WriteToUDPAddrPort([]byte("x"), to); err != nil {
				b.Fatal(err)
			}
		}
	}
	other := netip.MustParseAddrPort("10.240.0.20:9") // whose refusals nobody hears
	p := open(b, testOptions())
	v := vip(0, 53)
	apply(b, p, addService(model.UDP, v, "rr"), addReal(model.UDP, v, other.String(), 1))
	b.Run("send=to-others", func(b *testing.B) { send(b, other) })
	b.Run("send=to-a-service", func(b *testing.B) { send(b, v) })
	p.sockets.close()
	if err := removeSockets(filepath.Join(p.o.Dir, "links")); err != nil {
		b.Fatal(err)
	}
	b.Run("send=without", func(b *testing.B) { send(b, other) })
}
