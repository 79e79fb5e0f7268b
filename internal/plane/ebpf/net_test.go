package ebpf

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// udpPair is a client's and a real server's UDP socket with the plane between.
type udpPair struct {
	t            *testing.T
	p            *Plane
	client, real *net.UDPConn
}

const udpReal = "10.240.0.20:5300"

func newUDPPair(t *testing.T, real string, at *host) *udpPair {
	p := open(t, testOptions())
	apply(t, p, addService(model.UDP, vip(0, 53), "rr"), addReal(model.UDP, vip(0, 53), real, 1))
	return udpBetween(t, p, 0, vip(0, 53), real, at)
}

// udpBetween makes the sockets of a service that the plane has already. The
// client's port is 0 for any.
func udpBetween(t *testing.T, p *Plane, port int, service netip.AddrPort, real string, at *host) *udpPair {
	t.Helper()
	u := &udpPair{t: t, p: p}
	var err error
	at.do(func() { u.real, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(real))) })
	if err != nil {
		t.Fatal(err)
	}
	client.do(func() { u.client, err = net.DialUDP("udp", &net.UDPAddr{Port: port}, net.UDPAddrFromAddrPort(service)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.client.Close(); _ = u.real.Close() })
	for _, c := range []*net.UDPConn{u.client, u.real} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// exchange sends there and back; the client's address is as it was.
func (u *udpPair) exchange(size int) {
	u.t.Helper()
	msg := payload(size)
	if _, err := u.client.Write(msg); err != nil {
		u.t.Fatalf("client: %v", err)
	}
	buf := make([]byte, 65536)
	n, from, err := u.real.ReadFromUDPAddrPort(buf)
	if err != nil {
		u.t.Fatalf("real server: %v; reasons %v", err, u.reasons())
	}
	if !bytes.Equal(buf[:n], msg) {
		u.t.Fatalf("real server got %d bytes that differ from the %d sent", n, size)
	}
	if want := u.client.LocalAddr().(*net.UDPAddr).AddrPort(); from != want {
		u.t.Fatalf("real server sees client %s, want %s", from, want)
	}
	if _, err := u.real.WriteToUDPAddrPort(msg, from); err != nil {
		u.t.Fatalf("real server: %v", err)
	}
	n, err = u.client.Read(buf)
	if err != nil {
		u.t.Fatalf("client: %v; reasons %v", err, u.reasons())
	}
	if !bytes.Equal(buf[:n], msg) {
		u.t.Fatalf("client got %d bytes that differ from the %d sent", n, size)
	}
}

func (u *udpPair) reasons() map[Reason]uint64 {
	r, err := u.p.Reasons(context.Background())
	if err != nil {
		u.t.Fatal(err)
	}
	return r
}

func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// socket runs setsockopt and the like on a connection's descriptor.
func socket(t *testing.T, c syscall.Conn, fn func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if inner != nil {
		t.Fatal(inner)
	}
}

func setIP(t *testing.T, c *net.UDPConn, option, value int) {
	t.Helper()
	socket(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_IP, option, value) })
}

// Sizes around every border, in both directions, fragments among them.
func TestDatagramSizes(t *testing.T) {
	requireRoot(t)
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload %v", offload), func(t *testing.T) {
			if !offload {
				withoutOffload(t)
			}
			u := newUDPPair(t, udpReal, rack0)
			for _, n := range []int{0, 1, 2, 3, 11, 12, 13, 64, 1471, 1472, 1473, 2959, 2960, 2961, 9000, 60000} {
				u.exchange(n)
			}
			if r := u.reasons(); len(r) != 0 {
				t.Errorf("reasons %v, want none", r)
			}
		})
	}
}

func TestZeroChecksumStaysZero(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	u := newUDPPair(t, udpReal, rack0)
	for _, c := range []*net.UDPConn{u.client, u.real} {
		socket(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
	}
	u.exchange(100)
	u.exchange(4000)
}

// A datagram that may be fragmented goes through narrow places on either side.
func TestNarrowPathWithoutDF(t *testing.T) {
	requireRoot(t)
	for _, dev := range []string{"inside0", "outside"} {
		t.Run(dev, func(t *testing.T) {
			withoutOffload(t)
			director.mtu(t, dev, 1000)
			u := newUDPPair(t, udpReal, rack0)
			setIP(t, u.client, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			setIP(t, u.real, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			u.exchange(900)
			u.exchange(1400)
			u.exchange(5000)
			if u.reasons()[ReasonTooBig] == 0 {
				t.Error("nothing was too big: the test tests nothing")
			}
		})
	}
}

// A stream finds its way through narrow places: segments learn their size
// from the errors.
func TestStreamThroughNarrowPath(t *testing.T) {
	requireRoot(t)
	for _, c := range []struct {
		name, real string
		at, narrow *host
		dev        string
	}{
		{"inside", "10.240.0.20:8000", rack0, director, "inside0"},
		{"outside", "10.240.0.20:8000", rack0, director, "outside"},
		{"a router inside", "10.243.0.20:8000", far, router, "down"},
	} {
		t.Run(c.name, func(t *testing.T) {
			withoutOffload(t)
			c.narrow.mtu(t, c.dev, 1280)
			p := open(t, testOptions())
			apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), c.real, 1))
			echoStream(t, c.at, c.real, vip(0, 80), 2<<20)
			flushRoutes(t, client)
			flushRoutes(t, c.at)
		})
	}
}

// echoStream sends size bytes through an echo server on another host, both
// ways at once, and compares.
func echoStream(t testing.TB, at *host, listen string, to netip.AddrPort, size int) {
	t.Helper()
	var (
		l   net.Listener
		c   net.Conn
		err error
		wg  sync.WaitGroup
	)
	at.do(func() { l, err = net.Listen("tcp", listen) })
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		s, err := l.Accept()
		if err != nil {
			return
		}
		_ = s.SetDeadline(time.Now().Add(patience))
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	defer func() { _ = l.Close(); wg.Wait() }()
	client.do(func() { c, err = net.DialTimeout("tcp", to.String(), patience) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	msg := payload(size)
	wg.Go(func() {
		_, _ = c.Write(msg)
		_ = c.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %d of %d bytes: %v", len(got), size, err)
	}
	if !bytes.Equal(got, msg) {
		t.Fatalf("%d bytes came back, which differ from the %d sent", len(got), size)
	}
}

// A program with broken checksums must be found out by the tests above: here
// is one, made from the real one by leaving out the store that corrects them.
func TestBrokenChecksumIsNoticed(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	u := newUDPPair(t, udpReal, rack0)
	u.exchange(100)
	mutate(t, u.p, func(ins asm.Instructions) int {
		n, line := 0, ""
		for i := range ins {
			if source := ins[i].Source(); source != nil { // of this and those that follow
				line = strings.TrimSpace(source.String())
			}
			if strings.HasPrefix(line, "*check = sum") && ins[i].OpCode.Class() == asm.StXClass && ins[i].OpCode.Size() == asm.Half {
				nowhere := asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Ja)}
				ins[i] = nowhere.WithMetadata(ins[i].Metadata)
				n++
			}
		}
		return n
	})
	if _, err := u.client.Write([]byte("broken")); err != nil {
		t.Fatal(err)
	}
	_ = u.real.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, _, err := u.real.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
		t.Fatalf("the real server accepted %d bytes with a broken checksum: the network of these tests hides such faults", n)
	}
}

// mutate replaces the ingress program on all interfaces by a changed one.
func mutate(t *testing.T, p *Plane, change func(asm.Instructions) int) {
	t.Helper()
	if !p.hooks.tcx {
		t.Skip("without tcx (before Linux 6.6) no program takes the place of one that runs at tc")
	}
	spec, err := loadTc()
	if err != nil {
		t.Fatal(err)
	}
	if n := change(spec.Programs[tcProgIngress].Instructions); n == 0 {
		t.Fatal("the mutation found nothing to change")
	}
	for name, m := range p.t.replacements() {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	if err := p.t.variables(spec, false); err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: p.t.replacements()})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(c.Close)
	for _, links := range p.hooks.links {
		if err := links[1].Update(c.Programs[tcProgIngress]); err != nil {
			t.Fatal(err)
		}
	}
}

// The fallback on the director listens on the virtual address, or on all.
func TestLocalServer(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	gate := addReal(model.TCP, vip(0, 80), "127.0.0.1:80", 1)
	gate.Real.Forward = model.Gate
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"), gate)
	echoStream(t, director, "0.0.0.0:80", vip(0, 80), 1<<20)
	c, err := p.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := c[0].Reals[0]; r.Connections != 1 || r.BytesIn < 1<<20 || r.BytesOut < 1<<20 {
		t.Errorf("counters %+v: want one connection with at least %d bytes each way", r, 1<<20)
	}
}

// masq to an address of the director itself: another port than the virtual one.
func TestMasqToTheDirectorItself(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	p := open(t, testOptions())
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.1:8080", 1))
	echoStream(t, director, "10.240.0.1:8080", vip(0, 80), 1<<20)
}

// An interface that comes later is served, one that goes is let go.
func TestInterfacesComeAndGo(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.250.0.20:8000", 1))
	if err := director.connect("late0", "10.250.0.1/24", rack0, "late0", "10.250.0.20/24"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if l, err := director.LinkByName("late0"); err == nil {
			_ = director.LinkDel(l)
		}
	}()
	eventually(t, func() string { return contains(p.Info().Detail, "late0") })
	if err := rack0.route("10.1.0.0/24", "10.250.0.1"); err != nil {
		t.Fatal(err)
	}
	_, dst, _ := net.ParseCIDR("10.1.0.0/24")
	defer func() { _ = rack0.RouteDel(&netlink.Route{Dst: dst}) }()
	echoStream(t, rack0, "10.250.0.20:8000", vip(0, 80), 1000)

	l, err := director.LinkByName("late0")
	if err != nil {
		t.Fatal(err)
	}
	if err := director.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if strings.Contains(p.Info().Detail, "late0") {
			return "still there: " + p.Info().Detail
		}
		return ""
	})
}

// Open connections follow a change of route.
func TestRouteChangeIsFollowed(t *testing.T) {
	requireRoot(t)
	u := newUDPPair(t, "10.243.0.20:5300", far)
	u.exchange(10)
	_, dst, _ := net.ParseCIDR("10.243.0.20/32")
	if err := director.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
		t.Fatal(err)
	}
	was := u.reasons()[ReasonNoRoute]
	eventually(t, func() string {
		if _, err := u.client.Write([]byte("x")); err != nil {
			return err.Error()
		}
		if u.reasons()[ReasonNoRoute] == was {
			return "packets still take the old route"
		}
		return ""
	})
	if err := director.RouteDel(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { // drain what came through meanwhile
		if _, err := u.client.Write([]byte("again")); err != nil {
			return err.Error()
		}
		_ = u.real.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		b := make([]byte, 100)
		n, _, err := u.real.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != "again" {
			return fmt.Sprintf("%q %v", b[:n], err)
		}
		return ""
	})
}

func contains(s, want string) string {
	if strings.Contains(s, want) {
		return ""
	}
	return fmt.Sprintf("%q has no %q", s, want)
}

func eventually(t testing.TB, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		said := ok()
		if said == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, said)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
