package memory

import (
	"net/netip"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Flags are those of a TCP segment that matter to a director.
type Flags uint8

// TCP flags.
const (
	SYN Flags = 1 << iota
	FIN
	RST
)

// Packet is one packet between a client and a virtual address.
type Packet struct {
	Proto   model.Protocol
	Client  netip.AddrPort
	Virtual netip.AddrPort
	Bytes   int   // as the plane is to count them
	Flags   Flags // TCP
}

// service is what a service has besides its row.
type service struct {
	scheduler plane.Scheduler
	affinity  plane.Affinity
	total     model.Counters
	reals     map[netip.AddrPort]*realServer
}

type realServer struct {
	total      model.Counters
	overloaded bool
}

type flowKey struct {
	service model.ServiceKey
	client  netip.AddrPort
}

type flow struct {
	real    netip.AddrPort
	state   state
	expires time.Time
	closed  [2]bool // FIN seen from the client, from the server
}

// state is a connection's, in the words of ipvsadm -Lc.
type state uint8

const (
	stateNone state = iota
	opening
	established
	closing
	timeWait
	datagrams
)

func (s state) String() string {
	return [...]string{"NONE", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT", "UDP"}[s]
}

// adopt takes over a table that may differ from the one before.
func (p *Plane) adopt(t model.Table) {
	for _, v := range p.table.Services {
		now := t.Find(v.Key)
		if now == nil {
			p.carryOut(model.Change{Op: model.ServiceDelete, Service: v})
			continue
		}
		for _, r := range v.Reals {
			if now.Find(r.Addr) == nil {
				p.carryOut(model.Change{Op: model.RealDelete, Service: v, Real: r})
			}
		}
	}
	for _, v := range t.Services {
		p.carryOut(model.Change{Op: model.ServiceEdit, Service: v})
		for _, r := range v.Reals {
			p.carryOut(model.Change{Op: model.RealEdit, Service: v, Real: r})
		}
	}
}

// carryOut does what a change that was found good means for the table in
// force and for the connections.
func (p *Plane) carryOut(c model.Change) {
	_ = p.table.Perform(c) // it was tried on a copy before
	k := c.Service.Key
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		s := p.services[k]
		if s == nil {
			s = &service{reals: map[netip.AddrPort]*realServer{}}
			p.services[k] = s
		}
		s.scheduler.Name = c.Service.Scheduler
		if !c.Service.Persistence.Enabled {
			s.affinity.Forget(netip.AddrPort{})
		}
	case model.ServiceDelete:
		delete(p.services, k)
		p.end(func(f flowKey, _ *flow) bool { return f.service == k })
	case model.RealAdd, model.RealEdit:
		if s := p.services[k]; s.reals[c.Real.Addr] == nil {
			s.reals[c.Real.Addr] = &realServer{}
		}
	case model.RealDelete:
		if s := p.services[k]; s != nil {
			delete(s.reals, c.Real.Addr)
			s.affinity.Forget(c.Real.Addr)
		}
		p.end(func(f flowKey, to *flow) bool { return f.service == k && to.real == c.Real.Addr })
	case model.ChangeNone:
	}
}

func (p *Plane) end(which func(flowKey, *flow) bool) {
	for k, f := range p.flows {
		if which(k, f) {
			delete(p.flows, k)
		}
	}
}

func (p *Plane) expire() {
	now := p.options.Now()
	p.end(func(_ flowKey, f *flow) bool { return !now.Before(f.expires) })
}

type tally struct{ active, inactive uint64 }

func (p *Plane) connections() map[realKey]tally {
	n := map[realKey]tally{}
	for k, f := range p.flows {
		t := n[realKey{k.service, f.real}]
		if f.state == established {
			t.active++
		} else {
			t.inactive++
		}
		n[realKey{k.service, f.real}] = t
	}
	return n
}

// In carries a client's packet and returns the real server that gets it. It
// is not ok when the packet is dropped: no service, no real server, or a
// TCP segment that belongs to no connection and opens none.
func (p *Plane) In(pk Packet) (real netip.AddrPort, ok bool) {
	err := p.locked(func() error {
		p.expire()
		v := p.table.Find(model.ServiceKey{Proto: pk.Proto, Addr: pk.Virtual})
		if v == nil {
			return nil
		}
		k := flowKey{v.Key, pk.Client}
		f := p.flows[k]
		if f != nil && pk.Flags&SYN != 0 && f.state == timeWait {
			f = nil // the client's port is used again
		}
		if f == nil && (pk.Proto != model.TCP || pk.Flags&SYN != 0) {
			f = p.open(v, pk)
			if f != nil && !v.OnePacket {
				p.flows[k] = f
			}
		}
		if f == nil {
			return nil
		}
		p.moveOn(f, pk, 0)
		s := p.services[v.Key]
		for _, c := range []*model.Counters{&s.total, &s.reals[f.real].total} {
			c.PacketsIn++
			c.BytesIn += uint64(max(0, pk.Bytes))
		}
		real, ok = f.real, true
		return nil
	})
	return real, ok && err == nil
}

// Out carries the answer of the real server that has the connection.
func (p *Plane) Out(pk Packet) (ok bool) {
	err := p.locked(func() error {
		p.expire()
		k := flowKey{model.ServiceKey{Proto: pk.Proto, Addr: pk.Virtual}, pk.Client}
		f := p.flows[k]
		if f == nil {
			return nil
		}
		p.moveOn(f, pk, 1)
		s := p.services[k.service]
		for _, c := range []*model.Counters{&s.total, &s.reals[f.real].total} {
			c.PacketsOut++
			c.BytesOut += uint64(max(0, pk.Bytes))
		}
		ok = true
		return nil
	})
	return ok && err == nil
}

// open schedules a new connection; nil if there is nobody to take it.
func (p *Plane) open(v *model.VirtualService, pk Packet) *flow {
	s, now := p.services[v.Key], p.options.Now()
	to, stays := netip.AddrPort{}, false
	if v.Persistence.Enabled {
		to, stays = s.affinity.Find(v.Persistence, pk.Client.Addr(), now)
	}
	if !stays {
		n := p.connections()
		of := make([]plane.Candidate, len(v.Reals))
		for i, r := range v.Reals {
			t, mine := n[realKey{v.Key, r.Addr}], s.reals[r.Addr]
			mine.overloaded = plane.Overloaded(mine.overloaded, t.active+t.inactive, r)
			of[i] = plane.Candidate{Addr: r.Addr, Weight: r.Weight, Active: t.active, Inactive: t.inactive, Skip: mine.overloaded}
		}
		i := s.scheduler.Next(of, pk.Client.Addr())
		if i < 0 {
			return nil
		}
		to = v.Reals[i].Addr
	}
	if v.Persistence.Enabled {
		s.affinity.Remember(v.Persistence, pk.Client.Addr(), to, now)
	}
	s.total.Connections++
	s.reals[to].total.Connections++
	return &flow{real: to}
}

// moveOn follows a connection's state; from is 0 for the client, 1 for the server.
func (p *Plane) moveOn(f *flow, pk Packet, from int) {
	t, d := p.options.Timeouts, time.Duration(0)
	f.closed[from] = f.closed[from] || pk.Flags&FIN != 0
	switch {
	case pk.Proto != model.TCP:
		f.state, d = datagrams, t.UDP
	case pk.Flags&RST != 0, f.closed[0] && f.closed[1]:
		f.state, d = timeWait, t.Closing
	case f.closed[0] || f.closed[1]:
		f.state, d = closing, t.Closing
	case f.state == stateNone || f.state == opening && (from == 1 || pk.Flags&SYN != 0):
		f.state, d = opening, t.Opening
	default:
		f.state, d = established, t.Established
	}
	f.expires = p.options.Now().Add(d)
}
