package proxy

import (
	"context"
	"errors"
	"net"
	"time"
)

// accept takes connections until the listener is closed.
func (p *Plane) accept(s *service, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files or memory: clients wait in the backlog meanwhile
			select {
			case <-time.After(5 * time.Millisecond):
			case <-p.ctx.Done():
				return
			}
			continue
		}
		client, _ := c.RemoteAddr().(*net.TCPAddr)
		f := &flow{service: s, client: unmapped(client.AddrPort()), state: opening, sockets: []net.Conn{c}}
		select {
		case p.slots <- struct{}{}:
		default: // full
			abort([]*flow{f})
			continue
		}
		p.mu.Lock()
		s.flows[f] = true
		p.mu.Unlock()
		p.wg.Go(func() { p.carry(f, c) })
	}
}

// carry serves one client from its acceptance to its end.
func (p *Plane) carry(f *flow, down *net.TCPConn) {
	defer func() { <-p.slots }()
	up, err := p.connect(f)
	if err != nil {
		p.end(f)
		return
	}
	other := make(chan struct{})
	p.wg.Go(func() {
		defer close(other)
		p.oneWay(f, up, down, f.count.in)
	})
	p.oneWay(f, down, up, f.count.out)
	<-other
	p.mu.Lock()
	f.service.remove(f)
	p.mu.Unlock()
	_ = down.Close()
	_ = up.Close()
}

// oneWay carries bytes in one direction until its source ends, then tells the
// destination. A failure ends both directions.
func (p *Plane) oneWay(f *flow, dst, src *net.TCPConn, count func(int)) {
	if err := p.transfer(dst, src, count); err != nil {
		p.end(f)
		return
	}
	p.mu.Lock()
	if !f.ended && f.state == established {
		f.service.move(f, f.real, closing)
	}
	p.mu.Unlock()
	_ = dst.CloseWrite()
}

// end aborts a flow, whoever may have done so before.
func (p *Plane) end(f *flow) {
	p.mu.Lock()
	f.service.remove(f)
	p.mu.Unlock()
	abort([]*flow{f})
}

// connect finds a real server for a client and reaches it. One that fails is
// passed over, within bounds: the checks will take it out soon.
func (p *Plane) connect(f *flow) (*net.TCPConn, error) {
	s := f.service
	var tried []*realServer
	for range maxAttempts {
		p.mu.Lock()
		to := s.choose(f, tried)
		if to == nil || f.ended {
			p.mu.Unlock()
			return nil, errNobody
		}
		s.move(f, to, opening)
		addr := to.row.Addr
		p.mu.Unlock()

		ctx, cancel := context.WithTimeout(p.ctx, p.options.ConnectTimeout)
		d := net.Dialer{KeepAliveConfig: keepAlive}
		d.SetMultipathTCP(false)
		c, err := d.DialContext(ctx, "tcp"+family(addr.Addr()), addr.String())
		cancel()

		p.mu.Lock()
		if f.ended { // the real server or the address went away meanwhile
			p.mu.Unlock()
			if err == nil {
				_ = c.Close()
			}
			return nil, errNobody
		}
		if err == nil {
			up, _ := c.(*net.TCPConn)
			s.settled(f, up, established)
			p.mu.Unlock()
			return up, nil
		}
		s.move(f, nil, opening)
		p.mu.Unlock()
		tried = append(tried, to)
	}
	return nil, errNobody
}
