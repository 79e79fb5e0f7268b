package planetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is one network namespace of a test's own building, for benches of
// planes that carry real packets. It needs root, and ends with the test.
type Host struct {
	*netlink.Handle
	name string
	ns   netns.NsHandle
	home netns.NsHandle // where threads come from and go back to
}

// NewHost makes a host with nothing but its loopback interface, which is up.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	h := &Host{name: name}
	err := func() (err error) {
		runtime.LockOSThread()
		if h.home, err = netns.Get(); err != nil {
			return err
		}
		if h.ns, err = netns.New(); err != nil { // and the thread is in it
			return err
		}
		if err := netns.Set(h.home); err != nil {
			return err // the thread stays locked and dies
		}
		runtime.UnlockOSThread()
		h.Handle, err = netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE)
		return err
	}()
	if err != nil {
		t.Fatalf("make host %s: %v", name, err)
	}
	t.Cleanup(func() {
		h.Close()
		if err := errors.Join(h.ns.Close(), h.home.Close()); err != nil {
			t.Errorf("end of host %s: %v", name, err)
		}
	})
	h.Up(t, "lo")
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		// No address is of use to others before its duplicates were looked for,
		// not even the link's own: nobody has any here.
		h.Sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
		h.Sysctl(t, "net/ipv6/conf/all/accept_dad", "0")
	}
	return h
}

func (h *Host) check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("host %s: %v", h.name, err)
	}
}

// Up switches an interface on.
func (h *Host) Up(t testing.TB, name string) {
	t.Helper()
	h.check(t, h.up(name))
}

func (h *Host) up(name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return h.LinkSetUp(l)
}

// Connect lays a cable between two hosts and gives each end an address.
func (h *Host) Connect(t testing.TB, name, addr string, peer *Host, peerName, peerAddr string) {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.ns)}
	h.check(t, h.LinkAdd(v))
	h.Address(t, name, addr)
	peer.Address(t, peerName, peerAddr)
	h.Up(t, name)
	peer.Up(t, peerName)
}

// Address puts an address, written with the length of its network, on an
// interface. IPv6 ones are usable at once.
func (h *Host) Address(t testing.TB, name, addr string) {
	t.Helper()
	l, err := h.LinkByName(name)
	h.check(t, err)
	a, err := netlink.ParseAddr(addr)
	h.check(t, err)
	if a.IP.To4() == nil {
		a.Flags = 0x02 // IFA_F_NODAD
	}
	if err := h.AddrAdd(l, a); err != nil {
		t.Fatalf("host %s: %s on %s: %v", h.name, addr, name, err)
	}
}

// Route sends packets for a network by way of a neighbor.
func (h *Host) Route(t testing.TB, to, via string) {
	t.Helper()
	_, dst, err := net.ParseCIDR(to)
	h.check(t, err)
	if err := h.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}); err != nil {
		t.Fatalf("host %s: route to %s via %s: %v", h.name, to, via, err)
	}
}

// Sysctl sets a switch of the kernel, named by its path below /proc/sys.
func (h *Host) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	var err error
	h.Do(t, func() { err = os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
	h.check(t, err)
}

// Do runs fn on a thread in the host's namespace; sockets made there stay there.
func (h *Host) Do(t testing.TB, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	if err := netns.Set(h.ns); err != nil {
		runtime.UnlockOSThread()
		t.Errorf("enter host %s: %v", h.name, err)
		return
	}
	defer func() {
		if netns.Set(h.home) == nil { // else the thread is not used again
			runtime.UnlockOSThread()
		}
	}()
	fn()
}
