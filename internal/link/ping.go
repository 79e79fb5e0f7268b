package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/batuta-ha/batuta/internal/model"
)

// ping is a ping node or a group of them: what is sent goes to each host as the
// content of an ICMP echo request, and what the hosts send back is received
// (§11.5; RFC 792, RFC 4443). The content is a signed message, so that nobody
// can answer in a host's place without having heard the question.
type ping struct {
	medium model.Medium
	conns  []*echoSocket
	in     chan Packet
	done   chan struct{}
	once   sync.Once
	ended  sync.WaitGroup
}

var _ Link = (*ping)(nil)

// echoSocket is the ICMP socket of one family of addresses.
type echoSocket struct {
	conn  *icmp.PacketConn
	hosts []netip.Addr
	raw   bool // sees every ICMP packet of the machine; else the kernel sorts them
	six   bool
	seq   int // under ping's one sender
}

// pingQueue is room for replies that are not yet looked at.
const pingQueue = 64

func openPing(m model.Medium, _ Options) (Link, error) {
	p := &ping{medium: m, in: make(chan Packet, pingQueue), done: make(chan struct{})}
	for _, six := range []bool{false, true} {
		s := &echoSocket{six: six}
		for _, h := range m.Hosts {
			if h.Is6() == six {
				s.hosts = append(s.hosts, h)
			}
		}
		if len(s.hosts) == 0 {
			continue
		}
		if err := s.open(); err != nil {
			_ = p.Close()
			return nil, fmt.Errorf("%s %s: %w", m.Kind, m.Name, err)
		}
		p.conns = append(p.conns, s)
		p.ended.Go(func() { p.read(s) })
	}
	if len(p.conns) == 0 {
		return nil, fmt.Errorf("%s %s: no host to ask", m.Kind, m.Name)
	}
	return p, nil
}

// open takes the socket that needs the least: a datagram ICMP socket, which
// the kernel gives to groups in net.ipv4.ping_group_range, or else a raw one.
func (s *echoSocket) open() error {
	datagram, raw, any := "udp4", "ip4:icmp", "0.0.0.0"
	if s.six {
		datagram, raw, any = "udp6", "ip6:ipv6-icmp", "::"
	}
	var err, rawErr error
	if s.conn, err = icmp.ListenPacket(datagram, any); err == nil {
		return nil
	}
	if s.conn, rawErr = icmp.ListenPacket(raw, any); rawErr == nil {
		s.raw = true
		return nil
	}
	return fmt.Errorf("cannot ping: run as root or with CAP_NET_RAW, or let this group ping with "+
		"sysctl net.ipv4.ping_group_range=\"0 2147483647\": %w", errors.Join(err, rawErr))
}

func (p *ping) Name() string { return p.medium.Name }

// Send asks every host. It fails only when none could be asked.
func (p *ping) Send(b []byte) error {
	select {
	case <-p.done:
		return fmt.Errorf("ping %s: %w", p.medium.Name, ErrClosed)
	default:
	}
	var errs []error
	asked := 0
	for _, s := range p.conns {
		n, err := s.send(b)
		asked += n
		errs = append(errs, err)
	}
	if asked > 0 {
		return nil
	}
	return errors.Join(errs...)
}

func (s *echoSocket) send(b []byte) (asked int, err error) {
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if s.six {
		kind = ipv6.ICMPTypeEchoRequest
	}
	packet, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: s.id(), Seq: s.seq, Data: b}}).Marshal(nil)
	s.seq = (s.seq + 1) & 0xffff
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, h := range s.hosts {
		var to net.Addr = &net.UDPAddr{IP: h.AsSlice(), Zone: h.Zone()}
		if s.raw {
			to = &net.IPAddr{IP: h.AsSlice(), Zone: h.Zone()}
		}
		if _, err := s.conn.WriteTo(packet, to); err != nil {
			errs = append(errs, err)
		} else {
			asked++
		}
	}
	return asked, errors.Join(errs...)
}

// id marks our requests on a raw socket; a datagram socket gets the kernel's mark.
func (*echoSocket) id() int { return os.Getpid() & 0xffff }

// read is the goroutine of one socket. Replies that nobody takes in time are dropped.
func (p *ping) read(s *echoSocket) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a host is unreachable, say: not for long, and not our fault
			select {
			case <-p.done:
				return
			case <-time.After(reopenAfter):
			}
			continue
		}
		data, ok := s.reply(buf[:n], from)
		if !ok {
			continue
		}
		select {
		case p.in <- Packet{Data: data, From: netip.AddrPortFrom(addrOf(from), 0), At: time.Now()}:
		default:
		}
	}
}

// reply is the content of an echo reply to one of our requests.
func (s *echoSocket) reply(b []byte, from net.Addr) ([]byte, bool) {
	protocol, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if s.six {
		protocol, want = 58, ipv6.ICMPTypeEchoReply
	}
	m, err := icmp.ParseMessage(protocol, b)
	if err != nil || m.Type != want || !slices.Contains(s.hosts, addrOf(from)) {
		return nil, false
	}
	e, ok := m.Body.(*icmp.Echo)
	if !ok || s.raw && e.ID != s.id() {
		return nil, false
	}
	return slices.Clone(e.Data), true
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	out, _ := netip.AddrFromSlice(ip)
	return out.Unmap()
}

func (p *ping) Receive() (Packet, error) {
	select {
	case pkt := <-p.in:
		return pkt, nil
	case <-p.done:
		return Packet{}, ErrClosed
	}
}

func (p *ping) Close() error {
	var errs []error
	p.once.Do(func() {
		close(p.done)
		for _, s := range p.conns {
			errs = append(errs, s.conn.Close())
		}
		p.ended.Wait()
	})
	return errors.Join(errs...)
}
