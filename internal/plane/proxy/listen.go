package proxy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// listen opens the listener of a service. Its first clients wait in the
// socket until start, that is until the real servers of the same batch of
// changes are there. Called with Plane.change held.
func (p *Plane) listen(s *service) error {
	k := s.row.Key
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: early}
	lc.SetMultipathTCP(false) // splice works on plain TCP
	network := k.Proto.String() + family(k.Addr.Addr())
	stopped := make(chan struct{})
	if k.Proto == model.UDP {
		pc, err := lc.ListenPacket(p.ctx, network, k.Addr.String())
		if err != nil {
			return inTheWay(k, err)
		}
		u, _ := pc.(*net.UDPConn)
		p.starting = append(p.starting, func() { p.wg.Go(func() { defer close(stopped); p.receive(s, u) }) })
		s.listener, s.stopped = u, stopped
		return nil
	}
	l, err := lc.Listen(p.ctx, network, k.Addr.String())
	if err != nil {
		return inTheWay(k, err)
	}
	t, _ := l.(*net.TCPListener)
	p.starting = append(p.starting, func() { p.wg.Go(func() { defer close(stopped); p.accept(s, t) }) })
	s.listener, s.stopped = t, stopped
	return nil
}

// start begins to serve on new listeners. Called with Plane.change held.
func (p *Plane) start() {
	for _, run := range p.starting {
		run()
	}
	p.starting = nil
}

// early sets what must be set before bind(2): an address may be bound before
// it is on an interface, and while another director on this host still has it.
func early(network, _ string, c syscall.RawConn) error {
	options := [][2]int{{unix.SOL_SOCKET, unix.SO_REUSEADDR}, {unix.SOL_SOCKET, unix.SO_REUSEPORT}, {unix.SOL_IP, unix.IP_FREEBIND}}
	if strings.HasSuffix(network, "6") {
		options[2] = [2]int{unix.SOL_IPV6, unix.IPV6_FREEBIND}
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		for _, o := range options {
			failed = errors.Join(failed, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o[0], o[1], 1)))
		}
	})
	return errors.Join(err, failed)
}

// inTheWay explains why a service cannot be listened on, and what helps.
func inTheWay(k model.ServiceKey, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%s cannot be served: another program on this host listens on port %d of this address or of all addresses; "+
			"let it listen on an address of its own (a fallback server on 127.0.0.1 only), or stop it: %w", k, k.Addr.Port(), err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s cannot be served: port %d needs root, CAP_NET_BIND_SERVICE, or a lower sysctl "+
			"net.ipv4.ip_unprivileged_port_start: %w", k, k.Addr.Port(), err)
	}
	return fmt.Errorf("%s cannot be served: %w", k, err)
}

// silence closes the listener of a service and cuts its connections. When it
// returns none is left. Called with Plane.change held.
func (p *Plane) silence(s *service) {
	if s.listener != nil {
		p.start() // perhaps it has not begun
		_ = s.listener.Close()
		<-s.stopped // no connection is added after that
		s.listener = nil
	}
	p.mu.Lock()
	cut := s.detach(func(*flow) bool { return true })
	p.mu.Unlock()
	abort(cut)
}
