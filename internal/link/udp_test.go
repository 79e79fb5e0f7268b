package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// freePort asks the kernel for a UDP port on that address.
func freePort(t *testing.T, addr string) uint16 {
	t.Helper()
	c, err := net.ListenPacket("udp4", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

func mustOpen(t *testing.T, m model.Medium, o Options) Link {
	t.Helper()
	l, err := Open(m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// exchange sends until a packet with that content arrives at the other link:
// an interface that has just been set up may lose the first ones.
func exchange(t *testing.T, from, to Link, content string) Packet {
	t.Helper()
	content = "###\n" + content // what does not begin so is no message
	got := make(chan Packet, 1)
	go func() {
		for {
			p, err := to.Receive()
			if errors.Is(err, ErrClosed) {
				return
			}
			if err == nil && string(p.Data) == content {
				got <- p
				return
			}
		}
	}()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	timeout := time.After(20 * time.Second)
	for {
		// Sending happens on the test's thread, which may be in a namespace of
		// its own; a link whose interface vanished comes back by sending.
		_ = from.Send([]byte(content))
		_ = to.Send([]byte("###\nbeat"))
		select {
		case p := <-got:
			return p
		case <-again.C:
		case <-timeout:
			t.Fatalf("%q did not arrive on %s", content, to.Name())
		}
	}
}

// Two nodes on one host's loopback, each with its own address.
func TestUnicastWithSource(t *testing.T) {
	port := freePort(t, "127.0.0.1")
	one, two := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	a := mustOpen(t, model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(two, port)}, Options{Source: one})
	b := mustOpen(t, model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(one, port)}, Options{Source: two})
	before := time.Now()
	p := exchange(t, a, b, "from a")
	if p.From.Addr() != one {
		t.Errorf("from %v", p.From)
	}
	if p.At.Before(before.Add(-time.Second)) || p.At.After(time.Now()) {
		t.Errorf("received at %v, between %v and now", p.At, before)
	}
	exchange(t, b, a, "from b")
	// Nobody listens there any more: what the kernel answers is no error of ours.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := a.Send([]byte("to nobody")); err != nil {
			t.Errorf("sending to a dead peer: %v", err)
		}
	}
	if _, err := b.Receive(); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
	if err := b.Send(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, m := range []model.Medium{
		{Kind: model.Unicast, Interface: "no-such-if", Peer: netip.MustParseAddrPort("127.0.0.1:694")},
		{Kind: model.Unicast, Interface: "lo"},
		{Kind: model.Broadcast, Interface: "lo", Peer: netip.MustParseAddrPort("[::1]:694")},
		{Kind: model.Serial, Interface: "/dev/null", Baud: 19200},
		{Kind: model.Serial, Interface: "/no/such/line", Baud: 1234},
		{Kind: model.Ping, Name: "nobody"},
	} {
		l, err := Open(m, Options{})
		if err == nil {
			_ = l.Close()
			t.Errorf("%+v was opened", m)
		}
		t.Log(err)
	}
}

// requireRoot skips where there is no root, or fails where the run demands it.
func requireRoot(t *testing.T) {
	t.Helper()
	rig.RequireRoot(t, "makes network namespaces, sockets of root")
}

// namespace puts the test into a network namespace of its own, with a veth
// pair hb0 (10.9.0.1) and hb1 (10.9.0.2) in it. The thread is given up at the end.
func namespace(t *testing.T) {
	t.Helper()
	requireRoot(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	up(t, "lo", "")
	// Both ends of the wire are here: their packets come from local addresses.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/accept_local", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	addVeth(t)
}

func addVeth(t *testing.T) {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hb0"}, PeerName: "hb1"}); err != nil {
		t.Fatal(err)
	}
	up(t, "hb0", "10.9.0.1/24")
	up(t, "hb1", "10.9.0.2/24")
}

// addresses6 gives both ends of the wire an IPv6 address each, fd00::1 and fd00::2.
func addresses6(t *testing.T) {
	t.Helper()
	for i, name := range []string{"hb0", "hb1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(fmt.Sprintf("fd00::%d/64", i+1))
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD // usable at once
		if err := netlink.AddrAdd(l, a); err != nil {
			t.Fatal(err)
		}
	}
}

func up(t *testing.T, name, addr string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

// A broadcast is heard by the other end of the wire and by its sender; when
// the interface is deleted and made again, the link comes back by itself.
func TestBroadcastSurvivesItsInterface(t *testing.T) {
	namespace(t)
	m := func(name string) model.Medium {
		return model.Medium{Kind: model.Broadcast, Interface: name, Name: name, Peer: netip.MustParseAddrPort("10.9.0.255:694")}
	}
	a, b := mustOpen(t, m("hb0"), Options{}), mustOpen(t, m("hb1"), Options{})
	exchange(t, a, b, "hello")
	exchange(t, a, a, "to all, and to oneself")

	l, err := netlink.LinkByName("hb0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	if err := a.Send([]byte("into the void")); err == nil {
		t.Error("sending on a deleted interface succeeded")
	} else {
		t.Log(err)
	}
	addVeth(t)
	exchange(t, a, b, "back")
}

// A group is heard by its members on the interface, by the sender only with
// LOOP; both families, and a group that is valid on one wire only.
func TestMulticast(t *testing.T) {
	namespace(t)
	for _, group := range []string{"225.0.0.7:694", "[ff05::7]:694", "[ff02::7]:695"} {
		m := func(name string, loop bool) model.Medium {
			return model.Medium{Kind: model.Multicast, Interface: name, Name: name, Peer: netip.MustParseAddrPort(group), TTL: 1, Loop: loop}
		}
		a, b := mustOpen(t, m("hb0", true), Options{}), mustOpen(t, m("hb1", false), Options{})
		exchange(t, a, b, "hello")
		exchange(t, a, a, "to all, and to oneself")
		exchange(t, b, a, "hello too")
	}
}

// Two IPv6 addresses on one wire.
func TestUnicast6(t *testing.T) {
	namespace(t)
	addresses6(t)
	m := func(name, peer string) model.Medium {
		return model.Medium{Kind: model.Unicast, Interface: name, Name: name, Peer: netip.MustParseAddrPort(peer)}
	}
	// Both ends are here, and what goes to an own address takes the loopback:
	// without the device's binding it is heard all the same.
	a, b := mustOpen(t, m("", "[fd00::2]:694"), Options{Source: netip.MustParseAddr("fd00::1")}), mustOpen(t, m("", "[fd00::1]:694"), Options{Source: netip.MustParseAddr("fd00::2")})
	if p := exchange(t, a, b, "hello"); p.From.Addr() != netip.MustParseAddr("fd00::1") {
		t.Errorf("from %v", p.From)
	}
	exchange(t, b, a, "hello too")
}

// A flood of what is no message fills no buffer: between any number of such
// packets, sent by another socket, what is one arrives.
func TestGarbageTakesNoRoom(t *testing.T) {
	port := freePort(t, "127.0.0.1")
	one, two := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	a := mustOpen(t, model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(two, port)}, Options{Source: one})
	b := mustOpen(t, model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(one, port)}, Options{Source: two})
	flood, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(two, port)))
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	garbage := make([]byte, 1200)
	for _, begin := range []string{"", "#", "##\n#", ">>>", "%%%\n", "<<<\n"} {
		copy(garbage, begin)
		// Nobody reads meanwhile; these alone are more than a socket's buffer holds.
		for range 2000 {
			_, _ = flood.Write(garbage)
		}
	}
	for _, m := range []string{"###\nfirst", ">>>\nsecond"} {
		if err := a.Send([]byte(m)); err != nil {
			t.Fatal(err)
		}
		if p, err := b.Receive(); err != nil || string(p.Data) != m {
			t.Errorf("received %.20q, %v; want %q", p.Data, err, m)
		}
	}
}

// A kernel time stamp in the future or of long ago is not believed.
func TestArrived(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		at   time.Time
		want time.Duration // age
	}{
		{now.Add(-30 * time.Millisecond), 30 * time.Millisecond},
		{now.Add(time.Hour), 0},
		{now.Add(-time.Hour), 0},
	} {
		oob := timespecMessage(unix.NsecToTimespec(c.at.UnixNano()))
		if got := now.Sub(new(stamps).arrived(now, oob)); got != c.want {
			t.Errorf("stamp %v: age %v, want %v", c.at, got, c.want)
		}
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, make([]byte, 16), make([]byte, 32)} {
		if got := new(stamps).arrived(now, bad); !got.Equal(now) {
			t.Errorf("%x: %v", bad, got)
		}
	}
}

// Whoever sets the wall clock moves no beat: what was received before has no
// known age then, what comes after has one again.
func TestArrivedOverAClockStep(t *testing.T) {
	const ms = time.Millisecond
	for name, step := range map[string]time.Duration{"forward": 10 * time.Second, "back": -10 * time.Second, "a little": 3 * ms, "a little back": -3 * ms} {
		wall := 1_800_000_000 * time.Second
		var s stamps
		if got := s.age(wall+100*ms, 100*ms, wall+98*ms); got != 2*ms {
			t.Errorf("%s: before the step: %v", name, got)
		}
		// Two packets of 150 and 160 ms wait; the clock is set at 170 ms.
		for _, c := range []struct{ read, received, want time.Duration }{
			{180 * ms, 150 * ms, 0},
			{181 * ms, 160 * ms, 0},
			{210 * ms, 205 * ms, 5 * ms}, // received and read after the step
		} {
			stamp := wall + c.received
			if c.received > 170*ms {
				stamp += step
			}
			want := c.want
			if step.Abs() < 10*ms { // too little to be told from an adjustment: it is the most that ages are wrong by
				want = c.read - c.received
			}
			if got := s.age(wall+step+c.read, c.read, stamp); (got - want).Abs() > 3*ms {
				t.Errorf("%s: received at %v, read at %v: age %v, want %v", name, c.received, c.read, got, want)
			}
		}
	}
	// A clock that is only adjusted, by the most that programs do, is believed.
	var s stamps
	for mono := time.Second; mono < 10*time.Second; mono += 100 * ms {
		wall := 1_800_000_000*time.Second + mono + mono/12
		if got := s.age(wall, mono, wall-5*ms); got != 5*ms {
			t.Fatalf("adjusted, at %v: %v", mono, got)
		}
	}
}

// timespecMessage is the control message that carries a kernel time stamp.
func timespecMessage(ts unix.Timespec) []byte {
	b := make([]byte, unix.CmsgSpace(16))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(16)))
	binary.NativeEndian.PutUint32(b[8:], unix.SOL_SOCKET)
	binary.NativeEndian.PutUint32(b[12:], unix.SO_TIMESTAMPNS)
	binary.NativeEndian.PutUint64(b[16:], uint64(ts.Sec))
	binary.NativeEndian.PutUint64(b[24:], uint64(ts.Nsec))
	return b
}
