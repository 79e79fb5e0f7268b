package proxy

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// receive takes datagrams until the listener is closed.
func (p *Plane) receive(s *service, pc *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		for range maxAttempts {
			f := p.session(s, pc, unmapped(from))
			if f == nil {
				break // nobody takes it: dropped, as any network may
			}
			f.heard.Store(time.Now().UnixNano())
			if _, err := f.sockets[0].Write(buf[:n]); err == nil || errors.Is(err, unix.EMSGSIZE) {
				f.count.in(n)
				break
			}
			p.end(f) // refused: the datagram goes to another
		}
	}
}

// session finds or opens the session of a client; nil if no real server
// takes it. Only the service's own goroutine opens sessions.
func (p *Plane) session(s *service, pc *net.UDPConn, client netip.AddrPort) *flow {
	p.mu.Lock()
	if f := s.sessions[client]; f != nil {
		p.mu.Unlock()
		return f
	}
	f := &flow{service: s, client: client, state: datagrams}
	f.heard.Store(time.Now().UnixNano())
	to := s.choose(f, nil)
	if to == nil {
		p.mu.Unlock()
		return nil
	}
	s.flows[f] = true
	s.move(f, to, datagrams)
	addr := to.row.Addr
	p.mu.Unlock()

	select {
	case p.slots <- struct{}{}:
	default: // full
		p.end(f)
		return nil
	}
	// Connecting a datagram socket sends nothing and does not wait.
	up, err := net.DialUDP("udp"+family(addr.Addr()), nil, net.UDPAddrFromAddrPort(addr))
	p.mu.Lock()
	if err != nil || f.ended {
		s.remove(f)
		p.mu.Unlock()
		if err == nil {
			_ = up.Close()
		}
		<-p.slots
		return nil
	}
	s.sessions[client] = f
	s.settled(f, up, datagrams)
	p.mu.Unlock()
	p.wg.Go(func() {
		p.answer(f, up, pc)
		p.end(f)
		<-p.slots
	})
	return f
}

// answer carries a real server's datagrams to the client, from the virtual
// address, until the session's socket is closed or refused.
func (p *Plane) answer(f *flow, up, pc *net.UDPConn) {
	raw, err := up.SyscallConn()
	if err != nil {
		return
	}
	for {
		var (
			b   *[]byte
			n   int
			err error
		)
		// A session that waits holds no buffer.
		waited := raw.Read(func(fd uintptr) bool {
			b, _ = buffers.Get().(*[]byte)
			n, err = unix.Read(int(fd), *b)
			if errors.Is(err, unix.EAGAIN) {
				buffers.Put(b)
				b = nil
				return false
			}
			return true
		})
		if waited == nil && err == nil {
			f.heard.Store(time.Now().UnixNano())
			if _, err := pc.WriteToUDPAddrPort((*b)[:n], f.client); err == nil {
				f.count.out(n)
			}
		}
		if b != nil {
			buffers.Put(b)
		}
		if waited != nil || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// sweep ends sessions that have been idle for too long, until the plane ends.
func (p *Plane) sweep() {
	t := time.NewTicker(max(p.options.UDPTimeout/4, 10*time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-t.C:
		}
		p.mu.Lock()
		var idle []*flow
		for _, s := range p.services {
			for _, f := range s.sessions {
				if f.idle() > p.options.UDPTimeout {
					idle = append(idle, f)
				}
			}
		}
		for _, f := range idle {
			f.service.remove(f)
		}
		p.mu.Unlock()
		abort(idle)
	}
}
