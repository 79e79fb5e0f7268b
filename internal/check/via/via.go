// Package via leads health checks to a real server by way of the virtual
// address, as clients' packets go: with gate by the real server's link
// address, with ipip in a tunnel. What comes in is the socket of a check
// before it is connected; what goes out are two eBPF programs on the interface
// that leads to the real server, which translate that socket's packets and no
// others (bpf/viacheck.c). It never decides anything about a real server.
package via

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ways holds the programs and what they know. It is safe for use by many
// checks at once.
type Ways struct {
	objects viacheckObjects

	mu       sync.Mutex
	attached map[device][]link.Link // nil values with clsact
}

// device is an interface: numbers are those of a network namespace.
type device struct {
	namespace uint64
	index     int
}

// Open loads the programs. The error says what this machine or process lacks.
func Open() (*Ways, error) {
	_ = rlimit.RemoveMemlock() // matters to kernels before 5.11 only
	w := &Ways{attached: map[device][]link.Link{}}
	if err := loadViacheckObjects(&w.objects, nil); err != nil {
		return nil, fmt.Errorf("load the programs for checks by the virtual address (they need root, or CAP_BPF and CAP_NET_ADMIN): %w", err)
	}
	return w, nil
}

// Close takes the programs off all interfaces.
func (w *Ways) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for d, links := range w.attached {
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		if links == nil {
			removeFilters(d.index)
		}
	}
	w.attached = map[device][]link.Link{}
	return errors.Join(append(errs, w.objects.Close())...)
}

// Socket returns what prepares the sockets of a check of real: their packets
// to it go to vip, in a tunnel if that is so. Sockets to other addresses are
// left as they are. An error is a fault of this machine: it says nothing about
// the real server.
func (w *Ways) Socket(vip, real netip.Addr, tunnel bool) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || to.Addr() != real {
			return nil // a redirect to somebody else
		}
		if err := w.lead(real, tunnel); err != nil {
			return fmt.Errorf("lead the check by %s: %w", vip, err)
		}
		protocol := uint8(unix.IPPROTO_TCP)
		if strings.HasPrefix(network, "udp") {
			protocol = unix.IPPROTO_UDP
		}
		var inner error
		err = c.Control(func(fd uintptr) { inner = w.note(int(fd), protocol, vip, to, tunnel) })
		return errors.Join(err, inner)
	}
}

// note gives the socket a port that no other has, and tells the programs.
func (w *Ways) note(fd int, protocol uint8, vip netip.Addr, to netip.AddrPort, tunnel bool) error {
	var any unix.Sockaddr = &unix.SockaddrInet4{}
	if to.Addr().Is6() {
		any = &unix.SockaddrInet6{}
	}
	if err := unix.Bind(fd, any); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("SO_COOKIE: %w", err)
	}
	key := viacheckWayKey{Protocol: protocol}
	switch a := own.(type) {
	case *unix.SockaddrInet4:
		key.Port = order(uint16(a.Port))
	case *unix.SockaddrInet6:
		key.Port = order(uint16(a.Port))
	}
	v := viacheckWay{Cookie: cookie, Port: order(to.Port()), Family: 4}
	if to.Addr().Is6() {
		v.Family = 6
	}
	copy(v.Vip[:], vip.AsSlice())
	copy(v.Real[:], to.Addr().AsSlice())
	if tunnel {
		v.Tunnel = 1
	}
	if err := w.objects.Ways.Put(key, v); err != nil {
		return fmt.Errorf("note the socket: %w", err)
	}
	return nil
}

// order is a number in network order, as the programs see it.
func order(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

// lead attaches the programs to the interface by which a real server is
// reached.
func (w *Ways) lead(real netip.Addr, tunnel bool) error {
	routes, err := netlink.RouteGet(real.AsSlice())
	if err != nil {
		return fmt.Errorf("no route to %s: %w", real, err)
	}
	var here unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &here); err != nil {
		return fmt.Errorf("name the network namespace: %w", err)
	}
	d := device{here.Ino, routes[0].LinkIndex}
	if !tunnel && routes[0].Gw != nil {
		return fmt.Errorf("%s is reached by a router, and gate needs it on the same link: use ipip", real)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if links, done := w.attached[d]; done && stillThere(links) {
		return nil
	}
	l, err := netlink.LinkByIndex(d.index)
	if err != nil {
		return err
	}
	if a := l.Attrs(); a.EncapType != "ether" || a.Flags&unix.IFF_LOOPBACK != 0 {
		return fmt.Errorf("%s is reached by %s, which is no Ethernet interface", real, a.Name)
	}
	links, err := w.attach(d.index)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", l.Attrs().Name, err)
	}
	w.attached[d] = links
	return nil
}

// stillThere tells whether the interface of links has not been replaced by
// another one with its number.
func stillThere(links []link.Link) bool {
	for _, l := range links {
		info, err := l.Info()
		if err != nil || info.TCX() == nil || info.TCX().Ifindex == 0 {
			return false
		}
	}
	return true
}

// attach puts the programs before those of the eBPF plane on the way in, which
// would let the packets pass, and after them on the way out. Before Linux 6.6
// they are filters of the clsact qdisc.
func (w *Ways) attach(index int) ([]link.Link, error) {
	in, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: w.objects.ViaIngress, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, w.attachFilters(index)
	}
	if err != nil {
		return nil, err
	}
	out, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: w.objects.ViaEgress, Attach: ebpf.AttachTCXEgress, Anchor: link.Tail()})
	if err != nil {
		_ = in.Close()
		return nil, err
	}
	return []link.Link{in, out}, nil
}

// Filters of clsact: the eBPF plane's are at 0xba7a.
const (
	priorityIn  = 0xba79
	priorityOut = 0xba7b
)

func (w *Ways) attachFilters(index int) error {
	err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)},
		QdiscType:  "clsact",
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	for _, f := range filters(index) {
		f.Fd, f.DirectAction = w.objects.ViaIngress.FD(), true
		if f.Priority == priorityOut {
			f.Fd = w.objects.ViaEgress.FD()
		}
		if err := netlink.FilterReplace(f); err != nil {
			return fmt.Errorf("set filter %s: %w", f.Name, err)
		}
	}
	return nil
}

func filters(index int) []*netlink.BpfFilter {
	filter := func(parent uint32, priority uint16, name string) *netlink.BpfFilter {
		return &netlink.BpfFilter{Name: name, FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority}}
	}
	return []*netlink.BpfFilter{
		filter(netlink.HANDLE_MIN_INGRESS, priorityIn, "batuta_via_in"),
		filter(netlink.HANDLE_MIN_EGRESS, priorityOut, "batuta_via_out"),
	}
}

func removeFilters(index int) {
	for _, f := range filters(index) {
		_ = netlink.FilterDel(f) // an interface that has gone took them along
	}
}
