package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// icmpError reads the socket's error queue (ip(7), IP_RECVERR): the kernel puts
// an ICMP error there only if its sums are right and it quotes a packet of
// this socket.
type icmpError struct {
	Offender   netip.Addr
	Type, Code uint8
	MTU        uint32
}

func (u *udpPair) wantError(c *net.UDPConn, want icmpError) {
	u.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got, ok := readError(u.t, c)
		switch {
		case ok && got == want:
			return
		case ok:
			u.t.Fatalf("ICMP error %+v, want %+v", got, want)
		case time.Now().After(deadline):
			u.t.Fatalf("no ICMP error, want %+v; reasons %v", want, u.reasons())
		}
		time.Sleep(time.Millisecond)
	}
}

func recvErrors(t *testing.T, c *net.UDPConn) {
	t.Helper()
	socket(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1) })
}

func readError(t *testing.T, c *net.UDPConn) (e icmpError, ok bool) {
	t.Helper()
	socket(t, c, func(fd int) error {
		buf, oob := make([]byte, 2048), make([]byte, 512)
		_, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return err
		}
		for _, m := range msgs {
			// struct sock_extended_err (linux/errqueue.h), then the offender.
			if m.Header.Level != unix.SOL_IP || m.Header.Type != unix.IP_RECVERR || len(m.Data) < 24 || m.Data[4] != 2 {
				continue
			}
			e.Type, e.Code = m.Data[5], m.Data[6]
			e.MTU = uint32(m.Data[8]) | uint32(m.Data[9])<<8
			e.Offender = netip.AddrFrom4([4]byte(m.Data[20:24]))
			ok = true
		}
		return nil
	})
	return e, ok
}

// One that must not be is answered: with the MTU of the narrow place, and in
// the virtual address's name.
func TestPathMTUTowardsClient(t *testing.T) {
	requireRoot(t)
	t.Run("the director's own interface", func(t *testing.T) {
		director.mtu(t, "inside0", 1400)
		u := newUDPPair(t, udpReal, rack0)
		recvErrors(t, u.client)
		setIP(t, u.client, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		u.exchange(1372)
		if _, err := u.client.Write(payload(1450)); err != nil {
			t.Fatal(err)
		}
		u.wantError(u.client, icmpError{vip(0, 0).Addr(), 3, 4, 1400})
		flushRoutes(t, client)
	})
	t.Run("a router inside", func(t *testing.T) {
		router.mtu(t, "down", 1300)
		u := newUDPPair(t, "10.243.0.20:5300", far)
		recvErrors(t, u.client)
		setIP(t, u.client, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		u.exchange(1272)
		if _, err := u.client.Write(payload(1350)); err != nil {
			t.Fatal(err)
		}
		u.wantError(u.client, icmpError{vip(0, 0).Addr(), 3, 4, 1300})
		flushRoutes(t, client)
	})
}

func TestPathMTUTowardsReal(t *testing.T) {
	requireRoot(t)
	director.mtu(t, "outside", 1400)
	u := newUDPPair(t, udpReal, rack0)
	u.exchange(100)
	var err error
	real := u.real
	if err = real.Close(); err != nil {
		t.Fatal(err)
	}
	// A connected socket hears of errors.
	rack0.do(func() {
		u.real, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(udpReal)), u.client.LocalAddr().(*net.UDPAddr))
	})
	if err != nil {
		t.Fatal(err)
	}
	recvErrors(t, u.real)
	setIP(t, u.real, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	if _, err := u.real.Write(payload(1450)); err != nil {
		t.Fatal(err)
	}
	u.wantError(u.real, icmpError{netip.MustParseAddr("10.240.0.1"), 3, 4, 1400})
	flushRoutes(t, rack0)
}

// flushRoutes makes a host forget the path MTUs that it has learnt.
func flushRoutes(t *testing.T, h *host) {
	t.Helper()
	if err := h.sysctl("net/ipv4/route/flush", "1"); err != nil {
		t.Fatal(err)
	}
}

func TestHopLimit(t *testing.T) {
	requireRoot(t)
	u := newUDPPair(t, "10.243.0.20:5300", far)
	recvErrors(t, u.client)
	u.exchange(10)
	for _, c := range []struct {
		ttl int
		who string
	}{{1, "the director"}, {2, "a router inside"}} {
		setIP(t, u.client, unix.IP_TTL, c.ttl)
		if _, err := u.client.Write([]byte("far")); err != nil {
			t.Fatal(err)
		}
		// Whoever it was, the client hears the virtual address.
		u.wantError(u.client, icmpError{vip(0, 0).Addr(), 11, 0, 0})
	}
	setIP(t, u.client, unix.IP_TTL, 3)
	u.exchange(10)
}

func TestPortUnreachable(t *testing.T) {
	requireRoot(t)
	t.Run("towards the client", func(t *testing.T) {
		u := newUDPPair(t, udpReal, rack0)
		recvErrors(t, u.client)
		u.exchange(10)
		_ = u.real.Close()
		if _, err := u.client.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		u.wantError(u.client, icmpError{vip(0, 0).Addr(), 3, 3, 0})
	})
	t.Run("towards the real server", func(t *testing.T) {
		u := newUDPPair(t, udpReal, rack0)
		u.exchange(10)
		peer := u.client.LocalAddr().(*net.UDPAddr)
		_ = u.client.Close()
		_ = u.real.Close()
		var err error
		rack0.do(func() {
			u.real, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(udpReal)), peer)
		})
		if err != nil {
			t.Fatal(err)
		}
		recvErrors(t, u.real)
		if _, err := u.real.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		u.wantError(u.real, icmpError{netip.MustParseAddr("10.1.0.50"), 3, 3, 0})
	})
}
