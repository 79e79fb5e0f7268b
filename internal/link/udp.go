package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
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

// receiveLook is how often Receive looks whether its socket is still the same,
// in milliseconds.
const receiveLook = 50

// udp is a medium over UDP: one socket to send, one to receive.
type udp struct {
	medium model.Medium
	opt    Options
	how    sockets

	batch   *batch // of the one goroutine that receives
	dropped atomic.Uint64
	pace    atomic.Int64 // time.Duration; see Pace

	mu     sync.Mutex
	in     int // descriptors, -1 after Close; replaced when the interface comes back
	out    int
	to     unix.Sockaddr // where datagrams go
	sieve  *sieve        // nil at first, and where it cannot be had
	known  []Sender      // in a flood; nil: there is none
	shut   bool          // others than these get through in a share only
	tried  time.Time
	closed atomic.Bool
}

var (
	_ Guarded = (*udp)(nil)
	_ Polled  = (*udp)(nil)
)

func openUDP(m model.Medium, opt Options, how sockets) (Link, error) {
	if !m.Peer.IsValid() || m.Peer.Port() == 0 || m.Kind == model.Broadcast && !m.Peer.Addr().Is4() {
		return nil, fmt.Errorf("%s %s: %v is not an address with a port", m.Kind, m.Interface, m.Peer)
	}
	u := &udp{medium: m, opt: opt, how: how, batch: newBatch()}
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

// open makes the pair of sockets. They are not the runtime's, whose poller
// would be woken by each packet.
func (u *udp) open() (in, out int, err error) {
	if u.medium.Interface != "" {
		if _, err := net.InterfaceByName(u.medium.Interface); err != nil {
			return -1, -1, fmt.Errorf("no interface of that name: %w", err)
		}
	}
	u.to = u.peer()
	if u.how.asks {
		in, err = u.socket(u.how.send, append(u.how.onSend, answersOnly))
		return in, in, err
	}
	if in, err = u.socket(u.how.receive, append(u.how.onReceive, stamp, roomy, framesOnly)); err != nil {
		return -1, -1, fmt.Errorf("cannot receive on %v: %w", u.how.receive, err)
	}
	if out, err = u.socket(u.how.send, u.how.onSend); err != nil {
		_ = unix.Close(in)
		return -1, -1, fmt.Errorf("cannot send: %w", err)
	}
	return in, out, nil
}

// socket makes one socket, bound to the device where that is permitted.
func (u *udp) socket(at netip.AddrPort, options []func(fd int) error) (fd int, err error) {
	family := unix.AF_INET
	if u.medium.Peer.Addr().Is6() {
		family = unix.AF_INET6
		options = append([]func(int) error{only6}, options...)
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	for _, set := range options {
		if err := set(fd); err != nil {
			return -1, err
		}
	}
	if u.medium.Interface != "" {
		if err := unix.BindToDevice(fd, u.medium.Interface); errors.Is(err, unix.EPERM) {
			u.opt.warn("%s %s: not permitted to bind the socket to the interface (needs CAP_NET_RAW): packets of other interfaces are heard too", u.medium.Kind, u.medium.Interface)
		} else if err != nil {
			return -1, fmt.Errorf("binding to the interface: %w", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return -1, fmt.Errorf("bind %v: %w", at, err)
	}
	return fd, nil
}

// sockaddr is an address as the kernel takes it. A zone is an interface's name.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(interfaceIndex(a.Addr().Zone()))}
}

func (u *udp) Name() string { return u.medium.Name }

// Send does not wait: a full socket buffer drops the datagram, and the next
// beat or a retransmission makes up for it.
func (u *udp) Send(b []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() {
		return fmt.Errorf("link %s: %w", u.medium.Name, ErrClosed)
	}
	err := unix.Sendto(u.out, b, unix.MSG_DONTWAIT, u.to)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("sendto: %w", err)
	if gone(err) {
		u.reopen()
	}
	return err
}

// peer is where every datagram goes. An address that is valid on one wire only
// (fe80::/10, ff02::/16) needs no zone: the socket is bound to the interface,
// and where that is not permitted its number is given here.
func (u *udp) peer() unix.Sockaddr {
	addr := u.medium.Peer.Addr()
	if addr.Is6() && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast()) {
		addr = addr.WithZone(u.medium.Interface)
	}
	return sockaddr(netip.AddrPortFrom(addr, u.medium.Peer.Port()))
}

// interfaceIndex is the interface's number of the moment; 0 when it is gone.
func interfaceIndex(name string) int {
	if name == "" {
		return 0
	}
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

// reopen replaces both sockets if the interface is there, now and then. u.mu is held.
func (u *udp) reopen() {
	if time.Since(u.tried) < reopenAfter {
		return
	}
	u.tried = time.Now()
	in, out, err := u.open()
	if err != nil {
		return
	}
	_ = u.shutDown()
	u.in, u.out = in, out
	u.guard()
}

// shutDown closes both sockets. u.mu is held.
func (u *udp) shutDown() error {
	err := unix.Close(u.in)
	if u.out != u.in {
		err = errors.Join(err, unix.Close(u.out))
	}
	u.in, u.out = -1, -1
	return err
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
	switch {
	case u.how.asks:
	case u.known != nil && u.sieve != nil && u.sieve.know(u.known, u.shut) == nil && u.sieve.attach(u.in) == nil:
	case u.known != nil && u.shut:
		_ = preferring(u.in, u.known)
	default:
		_ = framesOnly(u.in)
	}
}

// Pace has the reader wait so long before it reads again, if it has read all there was.
func (u *udp) Pace(d time.Duration) { u.pace.Store(int64(d)) }

// Paced implements Polled.
func (u *udp) Paced() time.Duration { return time.Duration(u.pace.Load()) }

// Dropped counts what the kernel dropped of what came to the port.
func (u *udp) Dropped() uint64 { return u.dropped.Load() }

// Descriptors implements Polled.
func (u *udp) Descriptors(room []unix.PollFd) []unix.PollFd {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append(room, unix.PollFd{Fd: int32(u.in), Events: unix.POLLIN})
}

// Take implements Polled. It is for one goroutine.
func (u *udp) Take() (Packet, error) {
	for !u.closed.Load() {
		if p, dropped, ok := u.batch.take(); ok {
			u.dropped.Add(uint64(dropped))
			return p, nil
		}
		if have := u.batch.have; have > 0 && have < batchSize {
			u.batch.have, u.batch.next = 0, 0
			return Packet{}, ErrNone // that was all
		}
		u.mu.Lock()
		err := unix.EBADF
		if u.in >= 0 {
			err = u.batch.read(u.in)
		}
		u.mu.Unlock()
		switch err {
		case 0, unix.ECONNREFUSED: // a dead peer's kernel answered: look again
		case unix.EAGAIN, unix.EINTR:
			return Packet{}, ErrNone
		default:
			return Packet{}, fmt.Errorf("link %s: %w", u.medium.Name, err)
		}
	}
	return Packet{}, ErrClosed
}

// Receive reads from whatever socket is current. It is for one goroutine.
func (u *udp) Receive() (Packet, error) {
	for {
		p, err := u.Take()
		if !errors.Is(err, ErrNone) {
			return p, err
		}
		if pace := u.Paced(); pace > 0 {
			time.Sleep(pace)
		}
		var room [1]unix.PollFd
		_, _ = unix.Poll(u.Descriptors(room[:0]), receiveLook) // to be looked at anew in any case
	}
}

func (u *udp) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Swap(true) {
		return nil
	}
	err := u.shutDown()
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
	only6     = setInt(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY")
	lowDelay6 = setInt(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x10, "IPV6_TCLASS")
	// stamp asks the kernel when each packet came, so that a late reader still
	// knows. Without it the time of reading is used: no error.
	stamp = func(fd int) error {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		return nil
	}
)
