package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// schedulers are those that a proxy can work with: all that need no more
// than the client's address and what the proxy itself has counted.
var schedulers = []string{"rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "sh", "mh"}

// service is one row with its real servers, its listener and its connections.
type service struct {
	listener io.Closer     // nil: not served now; guarded by Plane.change
	stopped  chan struct{} // closed when the listener's goroutine has ended

	// guarded by Plane.mu
	row       model.VirtualService // Reals is empty
	reals     []*realServer        // sorted by address
	scheduler plane.Scheduler
	affinity  plane.Affinity
	departed  model.Counters // of real servers that were deleted
	flows     map[*flow]bool
	sessions  map[netip.AddrPort]*flow // UDP: the same by client
}

// realServer is one real server of one service.
type realServer struct {
	count counters

	// guarded by Plane.mu
	row              model.RealServer
	active, inactive uint64
	overloaded       bool
}

// counters are written by the goroutines that carry bytes.
type counters struct {
	connections, packetsIn, packetsOut, bytesIn, bytesOut atomic.Uint64
}

func (c *counters) read() model.Counters {
	return model.Counters{Connections: c.connections.Load(), PacketsIn: c.packetsIn.Load(), PacketsOut: c.packetsOut.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load()}
}

func (c *counters) in(n int)  { c.packetsIn.Add(1); c.bytesIn.Add(uint64(max(0, n))) }
func (c *counters) out(n int) { c.packetsOut.Add(1); c.bytesOut.Add(uint64(max(0, n))) }

// flow is a TCP connection through the proxy, or a UDP session.
type flow struct {
	service *service
	client  netip.AddrPort
	heard   atomic.Int64 // UDP: when, in nanoseconds since 1970

	count *counters // of the real server; set once it is reached

	// guarded by Plane.mu
	real    *realServer // nil: not scheduled yet, or ended
	state   state
	ended   bool
	sockets []net.Conn // to close at the end
}

func (f *flow) idle() time.Duration { return time.Since(time.Unix(0, f.heard.Load())) }

// state is a flow's, in the words of ipvsadm -Lc.
type state uint8

const (
	stateNone state = iota
	opening
	established
	closing
	datagrams
)

func (s state) String() string {
	return [...]string{"NONE", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "UDP"}[s]
}

func (p *Plane) find(k model.ServiceKey) *service {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.services[k]
}

// carryOut does one change; its error is the reason of refusal.
func (p *Plane) carryOut(c model.Change) error {
	s := p.find(c.Service.Key)
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		return p.putService(s, c.Service)
	case model.ServiceDelete:
		if s != nil {
			p.silence(s)
			p.mu.Lock()
			delete(p.services, c.Service.Key)
			p.mu.Unlock()
		}
		return nil
	case model.RealAdd, model.RealEdit:
		if s == nil {
			return fmt.Errorf("no such service in the table")
		}
		return p.putReal(s, c.Real)
	case model.RealDelete:
		if s != nil {
			p.deleteReal(s, c.Real.Addr)
		}
		return nil
	case model.ChangeNone:
	}
	return fmt.Errorf("%w: a change that says nothing", plane.ErrNotSupported)
}

// refusal says why a proxy cannot serve a row; nil if it can.
func refusal(v model.VirtualService) error {
	switch k := v.Key; {
	case k.IsMark():
		return fmt.Errorf("%w: firewall marks are known to the kernel only; use plane ipvs, or name the address", plane.ErrNotSupported)
	case k.Proto != model.TCP && k.Proto != model.UDP:
		return fmt.Errorf("%w: the proxy plane carries tcp and udp, not %s", plane.ErrNotSupported, k.Proto)
	case !k.Addr.IsValid() || k.Addr.Port() == 0:
		return fmt.Errorf("%w: the proxy plane serves one port, and the service has none", plane.ErrNotSupported)
	case !slices.Contains(schedulers, v.Scheduler):
		return fmt.Errorf("scheduler %q: %w by the proxy plane, which has %s", v.Scheduler, plane.ErrNotSupported, strings.Join(schedulers, ", "))
	case v.OnePacket && k.Proto == model.UDP:
		return fmt.Errorf("one-packet scheduling: %w by the proxy plane, which needs sessions for the answers", plane.ErrNotSupported)
	}
	return nil
}

func (p *Plane) putService(s *service, v model.VirtualService) error {
	if err := refusal(v); err != nil {
		return err
	}
	v.Reals = nil
	fresh := s == nil
	if fresh {
		s = &service{row: v, flows: map[*flow]bool{}, sessions: map[netip.AddrPort]*flow{}}
		s.scheduler.Name = v.Scheduler
	}
	// A fresh service listens before it is in the table, so that a refused
	// row leaves nothing behind.
	var err error
	if p.holds(s) && s.listener == nil {
		err = p.listen(s)
	}
	if fresh && err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !v.Persistence.Enabled || v.Persistence.Netmask != s.row.Persistence.Netmask {
		s.affinity.Forget(netip.AddrPort{})
	}
	s.row, s.scheduler.Name = v, v.Scheduler
	p.services[v.Key] = s
	return err
}

func (s *service) search(a netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(s.reals, a, func(r *realServer, a netip.AddrPort) int { return r.row.Addr.Compare(a) })
}

func (p *Plane) putReal(s *service, row model.RealServer) error {
	switch {
	case !row.Addr.IsValid() || row.Addr.Port() == 0:
		return fmt.Errorf("%w: the proxy plane needs the real server's address and port", plane.ErrNotSupported)
	case row.Addr == s.row.Key.Addr:
		return fmt.Errorf("%w by the proxy plane: the real server has the service's own address, the proxy would call itself; "+
			"let the server listen on another address (127.0.0.1) and name that", plane.ErrNotSupported)
	case row.Weight < 0:
		return fmt.Errorf("weight %d: %w: a weight is 0 or more", row.Weight, plane.ErrNotSupported)
	case row.Forward == model.ForwardNone || row.Forward > model.IPIP:
		return fmt.Errorf("forwarding method %s: %w: known are masq, gate and ipip", row.Forward, plane.ErrNotSupported)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i, found := s.search(row.Addr)
	if !found {
		s.reals = slices.Insert(s.reals, i, &realServer{})
	}
	s.reals[i].row = row
	return nil
}

func (p *Plane) deleteReal(s *service, a netip.AddrPort) {
	p.mu.Lock()
	i, found := s.search(a)
	if !found {
		p.mu.Unlock()
		return
	}
	gone := s.reals[i]
	s.reals = slices.Delete(s.reals, i, i+1)
	s.affinity.Forget(a)
	cut := s.detach(func(f *flow) bool { return f.real == gone })
	s.departed = s.departed.Add(gone.count.read())
	p.mu.Unlock()
	abort(cut)
}

// detach takes flows out of the service; the caller aborts them.
func (s *service) detach(which func(*flow) bool) []*flow {
	var cut []*flow
	for f := range s.flows {
		if which(f) {
			s.remove(f)
			cut = append(cut, f)
		}
	}
	return cut
}

// remove forgets a flow, once.
func (s *service) remove(f *flow) {
	if f.ended {
		return
	}
	s.move(f, nil, f.state)
	f.ended = true
	delete(s.flows, f)
	if s.sessions[f.client] == f {
		delete(s.sessions, f.client)
	}
}

// move gives a flow a real server (or none) and a state, and keeps the counts
// of connections.
func (s *service) move(f *flow, to *realServer, now state) {
	if f.real != nil {
		*f.real.tally(f.state)--
	}
	f.real, f.state = to, now
	if to != nil {
		*to.tally(now)++
	}
}

func (r *realServer) tally(s state) *uint64 {
	if s == established {
		return &r.active
	}
	return &r.inactive
}

// abort closes both sides of flows that were removed, so that nobody mistakes the end for an
// orderly one: TCP peers get a reset.
func abort(flows []*flow) {
	for _, f := range flows {
		for _, c := range f.sockets {
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0)
			}
			_ = c.Close()
		}
	}
}

// choose schedules a flow among the real servers that were not tried; nil if
// none is left. Called with Plane.mu held.
func (s *service) choose(f *flow, tried []*realServer) *realServer {
	if s.row.Persistence.Enabled && len(tried) == 0 {
		if a, ok := s.affinity.Find(s.row.Persistence, f.client.Addr(), time.Now()); ok {
			if i, found := s.search(a); found {
				return s.reals[i]
			}
		}
	}
	of := make([]plane.Candidate, len(s.reals))
	for i, r := range s.reals {
		r.overloaded = plane.Overloaded(r.overloaded, r.active+r.inactive, r.row)
		of[i] = plane.Candidate{Addr: r.row.Addr, Weight: r.row.Weight, Active: r.active, Inactive: r.inactive,
			Skip: r.overloaded || slices.Contains(tried, r)}
	}
	i := s.scheduler.Next(of, f.client.Addr())
	if i < 0 {
		return nil
	}
	return s.reals[i]
}

// settled notes that a flow has reached its real server.
func (s *service) settled(f *flow, up net.Conn, now state) {
	f.sockets = append(f.sockets, up)
	s.move(f, f.real, now)
	f.count = &f.real.count
	f.count.connections.Add(1)
	if s.row.Persistence.Enabled {
		s.affinity.Remember(s.row.Persistence, f.client.Addr(), f.real.row.Addr, time.Now())
	}
}

// errNobody is why a connection is refused when no real server takes it.
var errNobody = errors.New("no real server takes the connection")

// unmapped is an address without the IPv4-in-IPv6 form that sockets use.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// family is the number at the end of a network's name.
func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}
