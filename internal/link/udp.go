package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// ErrNotSupported is wrapped by Open for what is no medium.
var ErrNotSupported = errors.New("heartbeat medium is not supported")

// Options changes how a medium is opened. The zero value is the original's way.
type Options struct {
	// Source, if valid, is the local address to send from and to receive on,
	// instead of any. Several nodes can then share one host's loopback.
	Source netip.Addr
	// Warn, if set, takes what did not work but is not needed.
	Warn func(error)
}

func (o Options) warn(format string, args ...any) {
	if o.Warn != nil {
		o.Warn(fmt.Errorf(format, args...))
	}
}

// Open opens one medium of ha.cf. It fails if the interface does not exist or
// the port cannot be had; an interface that vanishes later does not end the
// link, which returns with it.
func Open(m model.Medium, opt Options) (Link, error) {
	switch m.Kind {
	case model.Broadcast:
		return openUDP(m, opt, bcast(m, opt))
	case model.Unicast:
		return openUDP(m, opt, ucast(m, opt))
	case model.Multicast:
		return openUDP(m, opt, mcast(m, opt))
	case model.Serial:
		return openSerial(m, opt)
	case model.Ping, model.PingGroup:
		return openPing(m, opt)
	case model.MediumNone:
	}
	return nil, fmt.Errorf("%s %s: %w; use bcast, mcast, ucast or serial", m.Kind, m.Name, ErrNotSupported)
}

// sockets says how a medium's two sockets differ from plain ones (§11).
type sockets struct {
	receive   netip.AddrPort       // where the receiving socket is bound
	send      netip.AddrPort       // where the sending one is; port 0 for any
	onSend    []func(fd int) error // options of the sending socket
	onReceive []func(fd int) error // options of the receiving socket
	asks      bool                 // there is but the sending one, which answers come back to
}

// reopenAfter is the time between two attempts to get back sockets of an
// interface that vanished.
const reopenAfter = 250 * time.Millisecond

// udp is a medium over UDP: one socket to send, one to receive.
type udp struct {
	medium model.Medium
	opt    Options
	how    sockets

	batch   *batch // of the one goroutine that receives, and the socket that it is of
	reads   *net.UDPConn
	raw     syscall.RawConn
	dropped atomic.Uint64
	pace    atomic.Int64 // time.Duration; see Pace

	mu     sync.Mutex
	in     *net.UDPConn // replaced when the interface comes back
	out    *net.UDPConn
	sieve  *sieve   // nil at first, and where it cannot be had
	known  []Sender // in a flood; nil: there is none
	shut   bool     // others than these get through in a share only
	tried  time.Time
	closed atomic.Bool
}

var _ Guarded = (*udp)(nil)

func openUDP(m model.Medium, opt Options, how sockets) (Link, error) {
	if !m.Peer.IsValid() || m.Peer.Port() == 0 || m.Kind == model.Broadcast && !m.Peer.Addr().Is4() {
		return nil, fmt.Errorf("%s %s: %v is not an address with a port", m.Kind, m.Interface, m.Peer)
	}
	u := &udp{medium: m, opt: opt, how: how}
	var err error
	u.in, u.out, err = u.open()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", m.Kind, m.Interface, err)
	}
	if !how.asks {
		go u.load()
	}
	return u, nil
}

// open makes the pair of sockets.
func (u *udp) open() (in, out *net.UDPConn, err error) {
	if u.medium.Interface != "" {
		if _, err := net.InterfaceByName(u.medium.Interface); err != nil {
			return nil, nil, fmt.Errorf("no interface of that name: %w", err)
		}
	}
	if u.how.asks {
		in, err = u.socket(u.how.send, append(u.how.onSend, answersOnly))
		return in, in, err
	}
	if in, err = u.socket(u.how.receive, append(u.how.onReceive, stamp, roomy, framesOnly)); err != nil {
		return nil, nil, fmt.Errorf("cannot receive on %v: %w", u.how.receive, err)
	}
	if out, err = u.socket(u.how.send, u.how.onSend); err != nil {
		_ = in.Close()
		return nil, nil, fmt.Errorf("cannot send: %w", err)
	}
	return in, out, nil
}

// socket makes one socket, bound to the device where that is permitted.
func (u *udp) socket(at netip.AddrPort, options []func(fd int) error) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			for _, set := range options {
				if inner = set(int(fd)); inner != nil {
					return
				}
			}
			if u.medium.Interface == "" {
				return
			}
			if err := unix.BindToDevice(int(fd), u.medium.Interface); errors.Is(err, unix.EPERM) {
				u.opt.warn("%s %s: not permitted to bind the socket to the interface (needs CAP_NET_RAW): packets of other interfaces are heard too", u.medium.Kind, u.medium.Interface)
			} else if err != nil {
				inner = fmt.Errorf("binding to the interface: %w", err)
			}
		})
		return errors.Join(err, inner)
	}}
	network := "udp4"
	if u.medium.Peer.Addr().Is6() {
		network = "udp6"
	}
	pc, err := lc.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

func (u *udp) Name() string { return u.medium.Name }

// Send does not wait: a full socket buffer drops the datagram, and the next
// beat or a retransmission makes up for it.
func (u *udp) Send(b []byte) error {
	u.mu.Lock()
	out, closed := u.out, u.closed.Load()
	u.mu.Unlock()
	if closed {
		return fmt.Errorf("link %s: %w", u.medium.Name, ErrClosed)
	}
	raw, err := out.SyscallConn()
	if err == nil {
		to := u.peer()
		var sent error
		err = raw.Write(func(fd uintptr) bool {
			sent = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to)
			return true
		})
		err = errors.Join(err, sent)
	}
	if err != nil && gone(err) {
		u.reopen()
	}
	return err
}

// peer is where every datagram goes. An address that is valid on one wire only
// (fe80::/10, ff02::/16) needs no zone: the socket is bound to the interface,
// and where that is not permitted its number is given here.
func (u *udp) peer() unix.Sockaddr {
	addr, port := u.medium.Peer.Addr(), int(u.medium.Peer.Port())
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
	}
	to := &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
	if addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() {
		to.ZoneId = uint32(interfaceIndex(u.medium.Interface))
	}
	return to
}

// interfaceIndex is the interface's number of the moment; 0 when it is gone.
func interfaceIndex(name string) int {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return i.Index
}

// gone tells whether an error can mean that the interface was deleted. Its
// sockets stay bound to an index that no interface will have again.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// reopen replaces both sockets if the interface is there, now and then.
func (u *udp) reopen() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() || time.Since(u.tried) < reopenAfter {
		return
	}
	u.tried = time.Now()
	in, out, err := u.open()
	if err != nil {
		return
	}
	oldIn, oldOut := u.in, u.out
	u.in, u.out = in, out
	u.guard()
	_ = oldIn.Close() // wakes Receive, which goes on with the new one
	_ = oldOut.Close()
}

// Sift implements Guarded. Where the filter that looks at numbers cannot be
// had, the one does that looks at addresses, if others are to be shut out.
func (u *udp) Sift(senders []Sender, shut bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() || u.how.asks {
		return
	}
	u.known, u.shut = slices.Clone(senders), shut
	u.guard()
}

// load gets the filter for floods ready, which takes the kernel some 30 ms.
func (u *udp) load() {
	s, err := newSieve()
	if err != nil {
		return // one that looks at addresses only does it then
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() {
		_ = s.Close()
		return
	}
	u.sieve = s
	u.guard()
}

// Expect implements Guarded.
func (u *udp) Expect(k Sender) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sieve != nil && u.known != nil && !u.closed.Load() {
		_ = u.sieve.expect(k) // too little is refused then
	}
}

// guard attaches the filter of the moment to the receiving socket. u.mu is held.
func (u *udp) guard() {
	raw, err := u.in.SyscallConn()
	if err != nil || u.how.asks {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		switch {
		case u.known != nil && u.sieve != nil && u.sieve.know(u.known, u.shut) == nil && u.sieve.attach(int(fd)) == nil:
		case u.known != nil && u.shut:
			_ = preferring(int(fd), u.known)
		default:
			_ = framesOnly(int(fd))
		}
	})
}

// Pace has Receive wait so long before it reads again, if it has read all there was.
func (u *udp) Pace(d time.Duration) { u.pace.Store(int64(d)) }

// Dropped counts what the kernel dropped of what came to the port.
func (u *udp) Dropped() uint64 { return u.dropped.Load() }

// Receive reads from whatever socket is current. It is for one goroutine.
func (u *udp) Receive() (Packet, error) {
	for {
		if u.batch != nil && !u.closed.Load() {
			if p, dropped, ok := u.batch.take(); ok {
				u.dropped.Add(uint64(dropped))
				return p, nil
			}
		}
		u.mu.Lock()
		in, closed := u.in, u.closed.Load()
		u.mu.Unlock()
		if closed {
			return Packet{}, ErrClosed
		}
		if in != u.reads {
			raw, err := in.SyscallConn()
			if err != nil {
				return Packet{}, fmt.Errorf("link %s: %w", u.medium.Name, err)
			}
			u.batch, u.reads, u.raw = newBatch(), in, raw
		}
		if pace := time.Duration(u.pace.Load()); pace > 0 && u.batch.have < batchSize {
			time.Sleep(pace)
		}
		switch err := u.batch.read(u.raw); {
		case err == nil:
		case errors.Is(err, net.ErrClosed), errors.Is(err, unix.ECONNREFUSED):
			// Replaced, closed, or a dead peer's kernel answered: look again.
			continue
		default:
			return Packet{}, fmt.Errorf("link %s: %w", u.medium.Name, err)
		}
	}
}

func (u *udp) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() {
		return nil
	}
	u.closed.Store(true)
	if u.how.asks {
		return u.in.Close()
	}
	err := errors.Join(u.in.Close(), u.out.Close())
	if u.sieve != nil {
		err = errors.Join(err, u.sieve.Close())
	}
	return err
}

// setInt makes a socket option of an integer.
func setInt(level, name, value int, what string) func(fd int) error {
	return func(fd int) error {
		return wrap(what, unix.SetsockoptInt(fd, level, name, value))
	}
}

var (
	reuseAddr = setInt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR")
	reusePort = setInt(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT")
	broadcast = setInt(unix.SOL_SOCKET, unix.SO_BROADCAST, 1, "SO_BROADCAST")
	dontRoute = setInt(unix.SOL_SOCKET, unix.SO_DONTROUTE, 1, "SO_DONTROUTE")
	lowDelay  = setInt(unix.IPPROTO_IP, unix.IP_TOS, 0x10, "IP_TOS")
	lowDelay6 = setInt(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x10, "IPV6_TCLASS")
	// stamp asks the kernel when each packet came, so that a late reader still
	// knows. Without it the time of reading is used: no error.
	stamp = func(fd int) error {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		return nil
	}
)
