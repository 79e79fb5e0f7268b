package announce

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain runs the tests of root in a network namespace of their own.
func TestMain(m *testing.M) { os.Exit(rig.Inside(m, syscall.CLONE_NEWNET, nil)) }

func needRoot(t testing.TB) {
	t.Helper()
	rig.RequireRoot(t, "addresses and ARP in a network namespace")
}

// cable makes a veth pair: near has 10.1.0.2/24 and 10.1.0.0/16's neighbor far is the wire's other end.
func cable(t testing.TB, near, far string) {
	t.Helper()
	needRoot(t)
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: far}
	must(t, netlink.LinkAdd(l))
	t.Cleanup(func() { must(t, netlink.LinkDel(l)) })
	for _, name := range []string{near, far} {
		end, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(end))
	}
	// The kernel lets a device send a moment after it is up; what comes before is lost.
	deadline := time.Now().Add(time.Minute)
	for _, name := range []string{near, far} {
		for {
			end, err := netlink.LinkByName(name)
			must(t, err)
			if end.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is %v", name, end.Attrs().OperState)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func own(t testing.TB, name, cidr string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	must(t, netlink.AddrAdd(l, a))
}

// shown is what `ip addr` shows of the addresses of one family.
func shown(t *testing.T, name string, family int) []string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	addrs, err := netlink.AddrList(l, family)
	must(t, err)
	var s []string
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		s = append(s, strings.TrimSpace(fmt.Sprintf("%s brd %v %s", a.IPNet, a.Broadcast, a.Label)))
	}
	return s
}

func network(t testing.TB) *Network {
	n := New(Options{Sink: func(e model.Event) { t.Log(e) }})
	t.Cleanup(func() { must(t, n.Close()) })
	return n
}

func address(t testing.TB, n *Network, text string) *Address {
	t.Helper()
	a, err := n.Address(resource(text))
	must(t, err)
	return a
}

func start(t *testing.T, n *Network, text string) *Address {
	t.Helper()
	a := address(t, n, text)
	must(t, a.Start(t.Context()))
	expect(t, a, model.ResourceRunning)
	return a
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestAddressesComeAndGo(t *testing.T) {
	cable(t, "eth0", "far0")
	cable(t, "eth1", "far1")
	own(t, "eth0", "10.1.0.2/16")
	own(t, "eth1", "10.1.2.2/24")
	n := network(t)

	// The interface and prefix length of the most specific network; the label of IPaddr.
	a := start(t, n, "IPaddr::10.1.2.100")
	b := start(t, n, "IPaddr::10.1.2.101")
	c := start(t, n, "IPaddr2::10.1.3.100")
	start(t, n, "IPaddr2::10.9.0.1/24/eth0:web/10.9.0.200")
	same(t, shown(t, "eth0", unix.AF_INET), "10.1.0.2/16 brd 10.1.255.255 eth0", "10.9.0.1/24 brd 10.9.0.200 eth0:web", "10.1.3.100/16 brd 10.1.255.255 eth0")
	same(t, shown(t, "eth1", unix.AF_INET), "10.1.2.2/24 brd 10.1.2.255 eth1", "10.1.2.100/24 brd 10.1.2.255 eth1:0", "10.1.2.101/24 brd 10.1.2.255 eth1:1")

	// Starting again changes nothing; stopping twice is no error.
	must(t, a.Start(t.Context()))
	must(t, a.Stop(t.Context()))
	must(t, a.Stop(t.Context()))
	expect(t, a, model.ResourceStopped)
	must(t, a.Start(t.Context()))
	must(t, b.Stop(t.Context()))
	must(t, c.Stop(t.Context()))
	same(t, shown(t, "eth1", unix.AF_INET), "10.1.2.2/24 brd 10.1.2.255 eth1", "10.1.2.100/24 brd 10.1.2.255 eth1:0")

	// A new life of the daemon finds what the old one left, and removes it.
	later := network(t)
	left, err := later.Address(resource("IPaddr::10.1.2.100"))
	must(t, err)
	expect(t, left, model.ResourceRunning)
	must(t, left.Start(t.Context()))
	must(t, left.Stop(t.Context()))
	same(t, shown(t, "eth1", unix.AF_INET), "10.1.2.2/24 brd 10.1.2.255 eth1")
}

// With the first address of a network the kernel takes all others of it away,
// or makes the next one the first. Ours stay as they were; what others have
// put there is not ours to put back.
func TestOthersSurviveTheFirstOfTheirNetwork(t *testing.T) {
	for _, promote := range []string{"0", "1"} {
		t.Run("promote_secondaries="+promote, func(t *testing.T) {
			cable(t, "eth0", "far0")
			must(t, os.WriteFile("/proc/sys/net/ipv4/conf/eth0/promote_secondaries", []byte(promote), 0))
			n := network(t)
			first := start(t, n, "IPaddr2::10.5.0.1/24/eth0")
			second := start(t, n, "IPaddr2::10.5.0.2/24/eth0:web/10.5.0.200")
			own(t, "eth0", "10.5.0.3/24")
			start(t, n, "IPaddr2::10.5.0.4/25/eth0")
			must(t, first.Stop(t.Context()))
			expect(t, second, model.ResourceRunning)
			left := []string{"10.5.0.4/25 brd 10.5.0.127 eth0", "10.5.0.2/24 brd 10.5.0.200 eth0:web"}
			if promote == "1" {
				left = append(left, "10.5.0.3/24 brd 10.5.0.255 eth0")
			}
			same(t, shown(t, "eth0", unix.AF_INET), left...)
			must(t, second.Stop(t.Context()))
			must(t, second.Stop(t.Context()))
		})
	}
}

func TestConflictsAreNamed(t *testing.T) {
	cable(t, "eth0", "far0")
	cable(t, "eth1", "far1")
	own(t, "eth1", "10.1.2.100/24")
	n := network(t)
	for text, want := range map[string]string{
		"IPaddr2::10.1.2.100/24/eth0": "resource IPaddr2::10.1.2.100/24/eth0: address 10.1.2.100 is on eth1, not on eth0: remove it there (ip addr del 10.1.2.100/24 dev eth1) or name that interface in haresources",
		"IPaddr2::10.7.7.7":           "resource IPaddr2::10.7.7.7: no interface has a network that contains 10.7.7.7: name one, 10.7.7.7/PREFIXLEN/INTERFACE",
		"IPaddr2::10.7.7.7/24/eth9":   "resource IPaddr2::10.7.7.7/24/eth9: there is no interface eth9: haresources names it for 10.7.7.7",
	} {
		a, err := n.Address(resource(text))
		must(t, err)
		if err := a.Start(t.Context()); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// listen collects frames of one kind that arrive at the wire's other end.
func listen(t *testing.T, name string, kind int) func(count int) []string {
	t.Helper()
	l, err := net.InterfaceByName(name)
	must(t, err)
	c, err := packet.Listen(l, packet.Raw, kind, nil)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return func(count int) []string {
		var got []string
		must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		for b := make([]byte, 2000); len(got) < count; {
			size, _, err := c.ReadFrom(b)
			if err != nil {
				t.Fatalf("%v after %d frames", err, len(got))
			}
			if kind == unix.ETH_P_IPV6 && (size < 55 || b[20] != 58 || b[54] != 136) {
				continue
			}
			got = append(got, hex.EncodeToString(b[:size]))
		}
		return got
	}
}

func TestGratuitousARP(t *testing.T) {
	cable(t, "eth0", "far0")
	heard := listen(t, "far0", unix.ETH_P_ARP)
	n := network(t)
	a := start(t, n, "IPaddr2::10.1.2.100/24/eth0")
	l, err := net.InterfaceByName("eth0")
	must(t, err)
	mac := hex.EncodeToString(l.HardwareAddr)
	head := "ffffffffffff" + mac + "0806" + "0001080006040001"
	request := head + mac + "0a010264" + "000000000000" + "0a010264"
	reply := strings.Replace(head, "06040001", "06040002", 1) + mac + "0a010264" + mac + "0a010264"
	question := head + mac + "00000000" + "000000000000" + "0a010264"                               // of nobody: does another have it?
	same(t, heard(9), request, reply, question, question, request, reply, question, request, reply) // at 0, 0.2 and 1 s
	n.Reannounce()
	same(t, heard(2), request, reply)
	must(t, a.Stop(t.Context()))
}

func TestUnsolicitedNeighborAdvertisement(t *testing.T) {
	cable(t, "eth0", "far0")
	heard := listen(t, "far0", unix.ETH_P_IPV6)
	start(t, network(t), "IPv6addr::2001:db8::1/64/eth0")
	l, err := net.InterfaceByName("eth0")
	must(t, err)
	mac := hex.EncodeToString(l.HardwareAddr)
	f := heard(1)[0]
	src := hex.EncodeToString(netip.MustParseAddr("2001:db8::1").AsSlice())
	want := "333300000001" + mac + "86dd" + "60000000" + "0020" + "3aff" + src + "ff020000000000000000000000000001" +
		"8800" + f[112:116] + "20000000" + src + "0201" + mac
	same(t, []string{f}, want)
	b, err := hex.DecodeString(f)
	must(t, err)
	if sum := checksum([16]byte(b[22:38]), [16]byte(b[38:54]), b[54:]); sum != 0 {
		t.Errorf("bad checksum: rest %#x", sum)
	}
	same(t, shown(t, "eth0", unix.AF_INET6), "2001:db8::1/64 brd <nil>")
}

func TestEndOfContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a, err := network(t).Address(resource("IPaddr::127.0.0.9"))
	must(t, err)
	if err := a.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
