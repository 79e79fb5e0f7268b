package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// The tests' own building, made once in private namespaces of this process:
//
//	 client ──────────── director ─────────┬── rack0   10.240.0.20, .21
//	 10.1.0.50   10.1.0.1  │ 10.240.0.1    │                        each also in IPv6:
//	             VIPs:     │ 10.241.0.1    ├── rack1   10.241.0.20, .21      10.a.0.b is 2001:db8:a::b
//	       10.1.0.100–102  │ 10.242.0.1    │
//	                       │               └── router ── far   10.243.0.20
//
// The director is the process's own namespace.

// insideGroup names the control group of the tests: planes lead the sockets of
// these processes alone.
const insideGroup = "BATUTA_EBPF_TEST_GROUP"

// TestMain runs the tests again in namespaces of their own, where root may do
// as it likes without anyone noticing.
func TestMain(m *testing.M) {
	if at := os.Getenv(insideEcho); at != "" {
		if err := serveEcho(at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if words := os.Getenv(insideCrowd); words != "" {
		if err := beCrowd(strings.Fields(words)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	root, err := cgroupRoot()
	if os.Geteuid() != 0 || err != nil || os.Getenv(insideGroup) != "" {
		os.Exit(rig.Inside(m, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS, build))
	}
	group := filepath.Join(root, fmt.Sprintf("batuta-test-%d", os.Getpid()))
	if err := errors.Join(os.Mkdir(group, 0o755), os.Setenv(insideGroup, group)); err != nil {
		fmt.Fprintln(os.Stderr, "make a control group for the tests:", err)
		os.Exit(1)
	}
	code := rig.Inside(m, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS, build)
	_ = os.Remove(group)
	os.Exit(code)
}

// requireRoot skips what needs namespaces, or fails where a skip is a failure.
func requireRoot(t testing.TB) {
	t.Helper()
	rig.RequireRoot(t, "the eBPF plane, in namespaces")
}

// host is one network namespace.
type host struct {
	name string
	ns   netns.NsHandle
	*netlink.Handle
}

var director, client, rack0, rack1, router, far *host

// build makes the network of the drawing.
func build() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpf: %w", err)
	}
	if group := os.Getenv(insideGroup); group != "" {
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter the tests' control group: %w", err)
		}
	}
	own, err := netns.Get()
	if err != nil {
		return err
	}
	director = &host{name: "director", ns: own}
	if director.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	for _, x := range []struct {
		name string
		h    **host
	}{{"client", &client}, {"rack0", &rack0}, {"rack1", &rack1}, {"router", &router}, {"far", &far}} {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		h := &host{name: x.name, ns: ns}
		if h.Handle, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		if err := up(h, "lo"); err != nil {
			return err
		}
		// No address is of use to others before its duplicates were looked for,
		// not even the link's own: nobody has any here.
		for _, which := range []string{"default", "all"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0); err != nil {
				return err
			}
		}
		*x.h = h
	}
	if err := netns.Set(own); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return up(director, "lo") },
		func() error { return director.connect("outside", "10.1.0.1/24", client, "eth0", "10.1.0.50/24") },
		func() error { return director.connect("inside0", "10.240.0.1/24", rack0, "eth0", "10.240.0.20/24") },
		func() error { return director.connect("inside1", "10.241.0.1/24", rack1, "eth0", "10.241.0.20/24") },
		func() error { return director.connect("inside2", "10.242.0.1/24", router, "up", "10.242.0.2/24") },
		func() error { return router.connect("down", "10.243.0.1/24", far, "eth0", "10.243.0.20/24") },
		func() error { return rack0.address("eth0", "10.240.0.21/24") },
		func() error { return rack1.address("eth0", "10.241.0.21/24") },
		func() error { return director.address("outside", "10.1.0.100/32") },
		func() error { return director.address("outside", "10.1.0.101/32") },
		func() error { return director.address("outside", "10.1.0.102/32") },
		func() error { return client.gateway("10.1.0.1") },
		func() error { return rack0.gateway("10.240.0.1") },
		func() error { return rack1.gateway("10.241.0.1") },
		func() error { return router.gateway("10.242.0.1") },
		func() error { return far.gateway("10.243.0.1") },
		func() error { return director.route("10.243.0.0/24", "10.242.0.2") },
	}
	for _, h := range []*host{director, router} {
		steps = append(steps, func() error { return h.sysctl("net/ipv4/ip_forward", "1") },
			func() error { return h.sysctl("net/ipv6/conf/all/forwarding", "1") })
	}
	steps = append(steps, func() error { return director.sysctl("net/ipv6/conf/default/accept_dad", "0") })
	steps = append(steps[len(steps)-1:], steps[:len(steps)-1]...)
	for _, h := range []*host{director, client, rack0, rack1, router, far} {
		steps = append(steps,
			// ICMP errors are what is tested here: no rate limit.
			func() error { return h.sysctl("net/ipv4/icmp_ratelimit", "0") },
			func() error { return h.sysctl("net/ipv4/icmp_msgs_per_sec", "1000000") },
			func() error { return h.sysctl("net/ipv6/icmp/ratelimit", "0") })
	}
	for i, s := range steps {
		if err := s(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func up(h *host, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// connect makes a veth pair between two hosts and gives each end an address.
func (h *host) connect(name, addr string, peer *host, peerName, peerAddr string) error {
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Namespace: netlink.NsFd(h.ns)},
		PeerName: peerName, PeerNamespace: netlink.NsFd(peer.ns)}
	if err := director.LinkAdd(v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, e := range []struct {
		h          *host
		name, addr string
	}{{h, name, addr}, {peer, peerName, peerAddr}} {
		if err := e.h.address(e.name, e.addr); err != nil {
			return err
		}
		if err := up(e.h, e.name); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) address(name, addr string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, text := range []string{addr, six(addr)} {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = 0x02 // IFA_F_NODAD
		}
		if err := h.AddrAdd(l, a); err != nil {
			return fmt.Errorf("%s on %s: %w", text, name, err)
		}
	}
	return nil
}

// six is the IPv6 address, network or socket that goes with an IPv4 one of the
// drawing: 10.240.0.20:80 is [2001:db8:240::20]:80.
func six(text string) string {
	var a, b int
	var rest string
	_, _ = fmt.Sscanf(text, "10.%d.0.%d%s", &a, &b, &rest)
	switch {
	case text == "0.0.0.0/0":
		return "::/0"
	case text == "0.0.0.0:80":
		return "[::]:80"
	case strings.HasPrefix(rest, ":"):
		return fmt.Sprintf("[2001:db8:%d::%d]%s", a, b, rest)
	case strings.HasPrefix(rest, "/24"):
		rest = "/64"
	case rest != "":
		rest = "/128"
	}
	return fmt.Sprintf("2001:db8:%d::%d%s", a, b, rest)
}

func (h *host) gateway(via string) error { return h.route("0.0.0.0/0", via) }

func (h *host) route(to, via string) error {
	for _, r := range [][2]string{{to, via}, {six(to), six(via)}} {
		_, dst, err := net.ParseCIDR(r[0])
		if err != nil {
			return err
		}
		if err := h.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(r[1])}); err != nil {
			return fmt.Errorf("route to %s via %s: %w", r[0], r[1], err)
		}
	}
	return nil
}

func (h *host) sysctl(key, value string) (err error) {
	h.do(func() { err = os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
	return err
}

// do runs fn on a thread in the host's namespace; sockets made there stay there.
func (h *host) do(fn func()) {
	runtime.LockOSThread()
	if err := netns.Set(h.ns); err != nil {
		panic(fmt.Sprintf("enter namespace %s: %v", h.name, err))
	}
	defer func() {
		if netns.Set(director.ns) == nil { // else the thread is not reused
			runtime.UnlockOSThread()
		}
	}()
	fn()
}

// mtu sets the MTU of an interface, and of the other end of its link, until
// the test ends: on veth a frame larger than the receiver's MTU is lost.
func (h *host) mtu(t *testing.T, name string, mtu int) {
	t.Helper()
	peer := map[string]struct {
		h    *host
		name string
	}{"outside": {client, "eth0"}, "inside0": {rack0, "eth0"}, "down": {far, "eth0"}}[name]
	for _, e := range []struct {
		h    *host
		name string
	}{{h, name}, peer} {
		l, err := e.h.LinkByName(e.name)
		if err != nil {
			t.Fatal(err)
		}
		was := l.Attrs().MTU
		// Below 1280 the kernel takes all of IPv6 from an interface.
		addrs, _ := e.h.AddrList(l, netlink.FAMILY_V6)
		routes, _ := e.h.RouteList(l, netlink.FAMILY_V6)
		if err := e.h.LinkSetMTU(l, mtu); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = e.h.LinkSetMTU(l, was)
			if mtu >= 1280 {
				return
			}
			for _, a := range addrs {
				_ = e.h.AddrReplace(l, &netlink.Addr{IPNet: a.IPNet, Flags: 0x02}) // IFA_F_NODAD
			}
			for _, r := range routes {
				if r.Gw != nil {
					_ = e.h.RouteReplace(&netlink.Route{Dst: r.Dst, Gw: r.Gw})
				}
			}
		})
	}
}

// Offloads of an interface, as commands that set them (linux/ethtool.h).
const (
	// txChecksum off means that every packet that leaves here carries its real
	// checksum, and that the receiver verifies it: on veth a wrong one passes
	// otherwise. Segments are made here, too.
	txChecksum = 0x17
	// receiveMerge (GRO) makes one of many segments that come in.
	receiveMerge = 0x2c
)

// offload switches one (ethtool -K) until the test ends.
func (h *host) offload(t testing.TB, name string, which uint32, on bool) {
	t.Helper()
	set := func(on bool) (err error) {
		h.do(func() { err = setOffload(name, which, on) })
		return err
	}
	if err := set(on); err != nil {
		t.Fatalf("%s: switch offload %#x to %v: %v", name, which, on, err)
	}
	t.Cleanup(func() { _ = set(!on) })
}

func setOffload(name string, which uint32, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ cmd, data uint32 }{cmd: which}
	if on {
		value.data = 1
	}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], name)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

var dirs atomic.Int32

// testOptions are small, and pinned in a directory of the test's own.
func testOptions() Options {
	return Options{
		Dir:      fmt.Sprintf("/sys/fs/bpf/test%d", dirs.Add(1)),
		MaxFlows: 4096, MaxServices: 64, MaxReals: 256, MaxTurns: 1 << 19,
		Cgroup: os.Getenv(insideGroup),
	}
}

// open opens a plane that is removed with the test.
func open(t testing.TB, o Options) *Plane {
	t.Helper()
	requireRoot(t)
	if o.Sink == nil {
		o.Sink = func(e model.Event) {
			if e.Level > model.LevelInfo {
				t.Logf("event: %s", e)
			}
		}
	}
	p, err := Open(o)
	if err != nil {
		t.Fatalf("open: %+v", err)
	}
	t.Cleanup(func() {
		_ = p.Close()
		if err := Remove(o.Dir); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	return p
}

// vip is virtual address n with a port.
func vip(n int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(100 + n)}), port)
}

func addService(p model.Protocol, a netip.AddrPort, scheduler string) model.Change {
	return model.Change{Op: model.ServiceAdd, Service: model.VirtualService{
		Key: model.ServiceKey{Proto: p, Addr: a}, Scheduler: scheduler}}
}

func addReal(p model.Protocol, a netip.AddrPort, real string, weight int) model.Change {
	return model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: model.ServiceKey{Proto: p, Addr: a}},
		Real: model.RealServer{Addr: netip.MustParseAddrPort(real), Forward: model.Masq, Weight: weight}}
}

func apply(t testing.TB, p *Plane, changes ...model.Change) {
	t.Helper()
	if err := p.Apply(t.Context(), changes); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// patience bounds waiting for what must happen; it never decides that
// something is right.
const patience = time.Minute
