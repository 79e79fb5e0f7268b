package check

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// far is a real server in a network namespace of its own, at the other end of
// a cable. A goroutine that never leaves its thread does what is to be done there.
type far struct {
	t    *testing.T
	do   chan func()
	fd   netns.NsHandle
	near string // interface here
}

// newFar plugs a cable: addresses near, with their networks, are this end's.
func newFar(t *testing.T, name string, near, there []string) *far {
	t.Helper()
	f := &far{t: t, do: make(chan func()), near: name}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f.fd, err = netns.Get()
		}
		failed <- err
		for g := range f.do {
			g()
		}
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(f.do); f.fd.Close() })
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0"}))
	peer, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, int(f.fd)))
	setUp(t, name, near)
	f.in(func() error {
		setUp(t, "lo", nil)
		setUp(t, "eth0", there)
		for _, s := range []string{"arp_ignore=1", "arp_announce=2", "rp_filter=0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/"+s[:len(s)-2], []byte(s[len(s)-1:]), 0); err != nil {
				return err
			}
		}
		return nil
	})
	return f
}

// in does something at the real server.
func (f *far) in(g func() error) {
	f.t.Helper()
	ended := make(chan error)
	f.do <- func() { ended <- g() }
	if err := <-ended; err != nil {
		f.t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setUp brings an interface up with addresses. IPv6 ones can be used at once.
func setUp(t *testing.T, name string, addresses []string) {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	for _, a := range addresses {
		if err == nil {
			p := netip.MustParsePrefix(a)
			err = netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD})
		}
	}
	if err != nil {
		t.Errorf("set up %s: %v", name, err)
	}
}

// serve answers pages by TCP and lines by UDP, on all addresses of a real server.
func (f *far) serve() {
	f.in(func() error {
		l, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", ":80")
		if err != nil {
			return err
		}
		f.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					readHead(c)
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nat "+c.LocalAddr().String())
					c.Close()
				}()
			}
		}()
		go answerDatagrams(u.(*net.UDPConn))
		return nil
	})
}

// answerDatagrams answers from the address that was asked, which a socket on
// all addresses has to be told.
func answerDatagrams(u *net.UDPConn) {
	buf, control := make([]byte, 512), make([]byte, 512)
	if c, err := u.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
	}
	for {
		_, n, _, from, err := u.ReadMsgUDP(buf, control)
		if err != nil {
			return
		}
		_, _, _ = u.WriteMsgUDP([]byte("pong\n"), control[:n], from)
	}
}

const (
	vip4, vip6 = "10.9.9.9", "fd09::9"
)

// A check by the virtual address reaches the real server as a client's packet
// does. One that lacks the address is well by the plain check, and down by
// this one. The director has the address itself.
func TestViaVirtualAddress(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	setUp(t, "lo", []string{vip4 + "/32", vip6 + "/128"})
	with := newFar(t, "with", []string{"10.9.1.1/24", "fd09:1::1/64"}, []string{"10.9.1.2/24", "fd09:1::2/64"})
	without := newFar(t, "without", []string{"10.9.2.1/24", "fd09:2::1/64"}, []string{"10.9.2.2/24", "fd09:2::2/64"})
	with.in(func() error { setUp(t, "lo", []string{vip4 + "/32", vip6 + "/128"}); return nil })
	with.serve()
	without.serve()

	page := func(tg *model.Target) { tg.Application, tg.Receive = "http", "at" }
	line := func(tg *model.Target) {
		tg.Application, tg.Proto, tg.Request, tg.Receive = "simpletcp", model.UDP, "/ping", "pong"
	}
	accepts := func(tg *model.Target) { tg.Kind = model.CheckConnect }
	for range 3 { // from ports that are used again, beside each other
		for _, c := range []struct {
			name, real, vip string
			alter           func(*model.Target)
			patient         bool
			plain, byVIP    model.Status
		}{
			{"http", "10.9.1.2", vip4, page, true, model.Up, model.Up},
			{"http by IPv6", "fd09:1::2", vip6, page, true, model.Up, model.Up},
			{"a datagram", "10.9.1.2", vip4, line, true, model.Up, model.Up},
			{"a datagram by IPv6", "fd09:1::2", vip6, line, true, model.Up, model.Up},
			{"connect", "10.9.1.2", vip4, accepts, true, model.Up, model.Up},
			{"http, the address is lacking", "10.9.2.2", vip4, page, false, model.Up, model.Down},
			{"http by IPv6, the address is lacking", "fd09:2::2", vip6, page, false, model.Up, model.Down},
			{"connect, the address is lacking", "10.9.2.2", vip4, accepts, false, model.Up, model.Down},
			{"a datagram, the address is lacking", "10.9.2.2", vip4, line, false, model.Up, model.Down},
		} {
			tg := target(netip.AddrPortFrom(netip.MustParseAddr(c.real), 80).String(), c.alter)
			tg.CheckTimeout, tg.NegotiateTimeout = 30*time.Second, 30*time.Second
			if v := Perform(t.Context(), For(tg), tg); v.Status != c.plain {
				t.Errorf("%s, plain: %v", c.name, v)
			}
			tg.Via, tg.VirtualAddr = model.ViaVirtual, netip.AddrPortFrom(netip.MustParseAddr(c.vip), 80)
			if !c.patient {
				tg.CheckTimeout, tg.NegotiateTimeout = 300*time.Millisecond, 300*time.Millisecond
			}
			if tg.Application == "http" {
				tg.Receive = regexp.QuoteMeta("at " + tg.VirtualAddr.String()) // where it was received
			}
			v := Perform(t.Context(), For(tg), tg)
			if v.Status != c.byVIP {
				t.Errorf("%s, by the virtual address: %v", c.name, v)
			}
		}
	}

	// A tunnel: the real server takes the packet out of it and finds the
	// virtual address inside.
	with.tunnelEnd()
	transmitsPlainly(t, "with")
	tg := target("10.9.1.2:80", page)
	tg.CheckTimeout, tg.NegotiateTimeout = 30*time.Second, 30*time.Second
	tg.Via, tg.VirtualAddr = model.ViaTunnel, netip.MustParseAddrPort(vip4+":80")
	if v := Perform(t.Context(), For(tg), tg); v.Status != model.Up {
		t.Errorf("by a tunnel: %v", v)
	}
	tg.Addr = netip.MustParseAddrPort("10.9.2.2:80") // has no end of a tunnel
	tg.NegotiateTimeout = 300 * time.Millisecond
	if v := Perform(t.Context(), For(tg), tg); v.Status != model.Down {
		t.Errorf("by a tunnel without an end: %v", v)
	}

	// What is wrong here says nothing of the real server.
	tg.Addr, tg.Via = netip.MustParseAddrPort("127.0.0.1:80"), model.ViaVirtual
	if v := Perform(t.Context(), For(tg), tg); v.Status != model.Unknown {
		t.Errorf("by an interface without link addresses: %v", v)
	}
}

// tunnelEnd is an ipip device made of a raw socket and a tun device: the
// kernels that tests run on need not have ipip.
func (f *far) tunnelEnd() {
	f.in(func() error {
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_IPIP)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("tun: %w", err)
		}
		ifreq := struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}{flags: unix.IFF_TUN | unix.IFF_NO_PI}
		copy(ifreq.name[:], "tunnel")
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(tun), unix.TUNSETIFF, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
			return fmt.Errorf("TUNSETIFF: %w", errno)
		}
		setUp(f.t, "tunnel", nil)
		f.t.Cleanup(func() { _ = unix.Shutdown(raw, unix.SHUT_RD); unix.Close(raw); unix.Close(tun) })
		go func() {
			buf := make([]byte, 2048)
			for {
				n, _, err := unix.Recvfrom(raw, buf, 0)
				if err != nil || n < 40 {
					return
				}
				outer := int(buf[0]&15) * 4
				if int(binary.BigEndian.Uint16(buf[2:])) != n || buf[6] != 0x40 { // its length; DF
					f.t.Errorf("outer header % x", buf[:outer])
				}
				_, _ = unix.Write(tun, buf[outer:n])
			}
		}()
		return nil
	})
}

// transmitsPlainly has an interface fill in all checksums: a real card does it
// for packets in tunnels, too (linux/ethtool.h, ETHTOOL_STXCSUM).
func transmitsPlainly(t *testing.T, name string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	value := struct{ cmd, value uint32 }{unix.ETHTOOL_STXCSUM, 0}
	ifreq := struct {
		name [16]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(ifreq.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		t.Fatal(errno)
	}
}
