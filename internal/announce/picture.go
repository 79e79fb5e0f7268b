package announce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// picture is what this machine's interfaces and addresses are. A hand-over has
// no time to ask the kernel for each address: the picture is drawn once, and
// kept by the kernel's own notifications (rtnetlink(7)), which are there when
// a change is made. Whoever looks takes in first what has not been read yet.
type picture struct {
	mu     sync.Mutex
	kernel *netlink.Handle // one socket for all changes
	news   *os.File        // notifications; nil before the first look
	raw    syscall.RawConn
	wait   sync.WaitGroup
	drawn  bool // all below is so, but for news that is not read yet
	closed bool

	links   map[int]place
	entries map[netip.Addr][]entry // an address may be on several interfaces
	labels  map[string]int         // how many addresses have it
}

// entry is one address of this machine.
type entry struct {
	prefix    netip.Prefix // the address with the length of its network
	index     int          // of its interface
	label     string       // IPv4; the interface's name where no other was given
	secondary bool         // IPv4: goes with the first address of its network
}

// newsBuffer has room for the notifications of thousands of changes, in bytes.
// When it overflows, the picture is drawn again.
const newsBuffer = 4 << 20

// look makes the picture true. p.mu is held.
func (p *picture) look() error {
	if err := p.open(); err != nil {
		return err
	}
	p.read()
	const tries = 10 // others may be changing addresses, too
	for i := 0; i < tries && !p.drawn; i++ {
		if err := p.draw(); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list the addresses: %w", err)
		}
		p.read() // may tell that something was missed meanwhile
	}
	return nil
}

// open opens both sockets. It is the first look, or one after close.
func (p *picture) open() error {
	if p.closed {
		return net.ErrClosed
	}
	if p.news != nil {
		return nil
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		kernel.Close()
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, newsBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, newsBuffer) // what does not fit is looked up
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	news := os.NewFile(uintptr(fd), "rtnetlink")
	if err == nil {
		p.raw, err = news.SyscallConn()
	}
	if err != nil {
		kernel.Close()
		return errors.Join(fmt.Errorf("hear of the kernel's addresses: %w", err), news.Close())
	}
	p.kernel, p.news = kernel, news
	p.wait.Go(p.follow)
	return nil
}

// follow takes news in as it comes, so that none is left for the moment of a
// hand-over. It ends with close.
func (p *picture) follow() {
	for {
		err := p.raw.Read(func(uintptr) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.read() || p.closed
		})
		if err != nil {
			return
		}
	}
}

func (p *picture) close() error {
	p.mu.Lock()
	opened, first := p.news != nil, !p.closed
	p.closed = true
	p.mu.Unlock()
	if !opened || !first {
		return nil
	}
	err := p.news.Close()
	p.wait.Wait()
	p.kernel.Close()
	if err != nil {
		return fmt.Errorf("close the netlink socket: %w", err)
	}
	return nil
}

// read takes in the news that is there, and tells whether there was any.
func (p *picture) read() (any bool) {
	var buf [32 << 10]byte
	_ = p.raw.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf[:])
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return
			case err != nil: // ENOBUFS: some was lost
				any, p.drawn = true, false
				if !errors.Is(err, unix.ENOBUFS) {
					return
				}
			default:
				any = true
				p.take(buf[:n])
			}
		}
	})
	return any
}

// take reads messages (linux/netlink.h, struct nlmsghdr).
func (p *picture) take(b []byte) {
	if !p.drawn {
		return // the drawing will show it
	}
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			p.drawn = false
			return
		}
		p.change(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// change takes one message in.
func (p *picture) change(kind uint16, m []byte) {
	switch kind {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if e, ok := readEntry(m); ok {
			p.drop(e)
			if kind == unix.RTM_NEWADDR {
				p.add(e)
			}
		}
	case unix.RTM_NEWLINK:
		if l, err := netlink.LinkDeserialize(nil, m); err == nil && m[0] == unix.AF_UNSPEC { // else of its part in a bridge
			p.links[l.Attrs().Index] = placeOf(l)
		}
	case unix.RTM_DELLINK:
		if len(m) >= unix.SizeofIfInfomsg && m[0] == unix.AF_UNSPEC {
			delete(p.links, int(int32(binary.NativeEndian.Uint32(m[4:]))))
		}
	}
}

func (p *picture) add(e entry) {
	a := e.prefix.Addr()
	p.entries[a] = append(p.entries[a], e)
	p.labels[e.label]++
}

// drop forgets the entry of that address on that interface.
func (p *picture) drop(e entry) {
	a := e.prefix.Addr()
	i := slices.IndexFunc(p.entries[a], func(o entry) bool { return o.index == e.index && o.prefix == e.prefix })
	if i < 0 {
		return
	}
	if label := p.entries[a][i].label; p.labels[label] > 1 {
		p.labels[label]--
	} else {
		delete(p.labels, label)
	}
	if p.entries[a] = slices.Delete(p.entries[a], i, i+1); len(p.entries[a]) == 0 {
		delete(p.entries, a)
	}
}

// owns tells whether one of the interfaces has that hardware address.
func (p *picture) owns(mac net.HardwareAddr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		if bytes.Equal(l.mac, mac) {
			return true
		}
	}
	return false
}

// primary is the interface's own address of the network that a is in, the zero
// address for none.
func (p *picture) primary(a netip.Addr, index int) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.look(); err != nil {
		return netip.Addr{}, err
	}
	for addr, all := range p.entries {
		if addr != a && slices.ContainsFunc(all, func(e entry) bool { return e.index == index && !e.secondary && e.prefix.Contains(a) }) {
			return addr, nil
		}
	}
	return netip.Addr{}, nil
}

// draw asks the kernel for everything.
func (p *picture) draw() error {
	p.links, p.entries, p.labels = map[int]place{}, map[netip.Addr][]entry{}, map[string]int{}
	links, err := p.kernel.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		p.links[l.Attrs().Index] = placeOf(l)
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	if err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, func(m []byte) bool {
		if e, ok := readEntry(m); ok {
			p.add(e)
		}
		return true
	}); err != nil {
		return err
	}
	p.drawn = true
	return nil
}

// readEntry reads a struct ifaddrmsg and its attributes (linux/if_addr.h).
func readEntry(m []byte) (entry, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return entry{}, false
	}
	e := entry{index: int(binary.NativeEndian.Uint32(m[4:])), secondary: m[0] == unix.AF_INET && m[2]&unix.IFA_F_SECONDARY != 0}
	bits := int(m[1])
	var addr netip.Addr
	for rest := m[unix.SizeofIfAddrmsg:]; len(rest) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(rest))
		if size < unix.SizeofRtAttr || size > len(rest) {
			break
		}
		value := rest[unix.SizeofRtAttr:size]
		switch binary.NativeEndian.Uint16(rest[2:]) {
		case unix.IFA_LOCAL: // comes before or after IFA_ADDRESS, which may be the other end's
			addr, _ = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			if !addr.IsValid() {
				addr, _ = netip.AddrFromSlice(value)
			}
		case unix.IFA_LABEL:
			e.label = strings.TrimRight(string(value), "\x00")
		}
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	e.prefix = netip.PrefixFrom(addr, bits)
	return e, e.prefix.IsValid()
}
