package ebpf

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// oracle is the plane again, slow and obvious: it says what the programs must
// do with a packet. Only what a hash or chance decides it learns from the
// answer, and checks that it could be. Time stands still.
type oracle struct {
	services map[model.ServiceKey]*oService
	flows    map[ends]*oFlow // by both directions
	stays    map[stayKey]*oReal
	paths    map[netip.Addr]int // what fits into a tunnel's way, where an error has said so
	opened   netip.AddrPort     // the real server of the last new connection
	list     []*oFlow           // as flows, in the order of opening; some are over
	marks    []model.MarkRule
	room     int               // how many connections the table holds
	gone     func(*oFlow) bool // whether the programs have let go of one, where the table's order decides which
	madeRoom bool              // the last packet has ended another connection in a full table
	noRoom   bool              // when it was last asked for, none gave way
	notes    map[ends]note     // of half-open connections without a record, by both directions
	waiting  []*oFlow          // those, in the order of opening
	noted    bool              // whether the programs had a note of the packet's ends before it came
	waits    bool              // the last packet has opened a connection without a record
}

// note tells which real server a half-open connection has that has no record.
type note struct {
	f       *oFlow // over: it is in no table
	service model.ServiceKey
}

// ends are a packet's.
type ends struct {
	proto    string
	src, dst netip.AddrPort
}

type stayKey struct {
	service model.ServiceKey
	client  netip.Addr
}

type oService struct {
	model.VirtualService
	reals []*oReal // sorted
	next  int
}

type oReal struct {
	model.RealServer
	local, dead, overloaded bool
	active, inactive        int
	count                   model.Counters
}

type oFlow struct {
	to, back ends // back is zero where replies do not pass here
	real     *oReal
	forward  model.Forward
	local    bool
	state    string
	answered bool
	fin      [2]bool
	over     bool // ended: in no table
}

func newOracle() *oracle {
	return &oracle{services: map[model.ServiceKey]*oService{}, flows: map[ends]*oFlow{}, stays: map[stayKey]*oReal{}, paths: map[netip.Addr]int{}, notes: map[ends]note{}}
}

// change carries out what the plane has accepted. local tells own addresses.
func (o *oracle) change(c model.Change, local bool) {
	k := c.Service.Key
	s := o.services[k]
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		if s == nil {
			s = &oService{}
			o.services[k] = s
		}
		s.VirtualService = c.Service
	case model.ServiceDelete:
		if s != nil {
			for _, r := range s.reals {
				r.dead = true
			}
			delete(o.services, k)
		}
	case model.RealAdd, model.RealEdit:
		i, have := slices.BinarySearchFunc(s.reals, c.Real.Addr, func(r *oReal, a netip.AddrPort) int { return r.Addr.Compare(a) })
		if !have {
			s.reals = slices.Insert(s.reals, i, &oReal{})
		}
		s.reals[i].RealServer, s.reals[i].local = c.Real, local
	case model.RealDelete:
		if s != nil {
			s.reals = slices.DeleteFunc(s.reals, func(r *oReal) bool {
				if r.Addr == c.Real.Addr {
					r.dead = true
				}
				return r.dead
			})
		}
	case model.ChangeNone:
	}
}

func (o *oracle) find(e ends) *oService {
	key := func(port uint16) model.ServiceKey {
		p := map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP, "sctp": model.SCTP}[e.proto]
		return model.ServiceKey{Proto: p, Addr: netip.AddrPortFrom(e.dst.Addr(), port)}
	}
	for _, r := range o.marks {
		if s := o.services[r.Key()]; s != nil && o.fits(r, e) {
			return s
		}
	}
	if s := o.services[key(e.dst.Port())]; s != nil {
		return s
	}
	return o.services[key(0)]
}

// fits tells whether a rule is for a packet that came in by the interface outside.
func (o *oracle) fits(r model.MarkRule, e ends) bool {
	within := func(p netip.Prefix, a netip.Addr) bool { return !p.IsValid() || p.Contains(a) }
	port := e.dst.Port()
	return (r.Proto == model.ProtocolNone || r.Proto.String() == e.proto) && model.FamilyOf(e.dst.Addr()) == r.Family &&
		within(r.Source, e.src.Addr()) && within(r.Destination, e.dst.Addr()) &&
		port >= r.First && (r.Last == 0 || port <= r.Last) && (r.Interface == "" || r.Interface == "outside")
}

// full tells whether no record is free.
func (o *oracle) full() bool {
	live := 0
	for _, f := range o.list {
		if !f.over {
			live++
		}
	}
	return live >= o.room
}

// makeRoom finds a place in a full table: the oldest connection that is half-open or
// over gives way.
func (o *oracle) makeRoom(client, seen netip.AddrPort) bool {
	var gone []*oFlow
	for _, f := range o.list {
		if !f.over && (f.state == "SYN_RECV" || f.finished()) && o.gone(f) {
			gone = append(gone, f)
		}
	}
	o.noRoom = len(gone) == 0
	if o.noRoom {
		return false
	}
	// Another may have ended because its replies came from where the new one's do.
	it := slices.IndexFunc(gone, func(f *oFlow) bool { return f.back.src != seen || f.back.dst != client })
	o.end(gone[max(it, 0)])
	o.madeRoom = true
	return true
}

// replyEnd is where replies come from, given the real server of a masq row.
func replyEnd(real netip.AddrPort, e ends) netip.AddrPort {
	if real.Port() == 0 || e.proto == "sctp" {
		return netip.AddrPortFrom(real.Addr(), e.dst.Port())
	}
	return real
}

// verdict is what must happen to a packet.
type verdict struct {
	code   uint32 // pass, redirected, dropped
	reason Reason
	out    packet // what becomes of it, unless it is dropped
}

const dropped = 2

func dropFor(r Reason) verdict { return verdict{code: dropped, reason: r} }

// flow gives the connection of a packet and its direction (0 to the real server).
func (o *oracle) flow(e ends) (f *oFlow, dir int) {
	f = o.flows[e]
	if f != nil && f.to != e {
		dir = 1
	}
	return f, dir
}

func (o *oracle) end(f *oFlow) {
	if f.over {
		return
	}
	f.over = true
	delete(o.flows, f.to)
	if f.back != (ends{}) {
		delete(o.flows, f.back)
	}
	f.real.gauge(f.state, -1)
}

func (r *oReal) gauge(state string, by int) {
	if state == "ESTABLISHED" {
		r.active += by
	} else {
		r.inactive += by
	}
}

func (f *oFlow) finished() bool { return f.real.dead || f.state == "TIME_WAIT" || f.state == "CLOSE" }

func mayOpen(p packet) bool { return p.proto == "udp" || p.flags == "S" }

// ingress says what the ingress program must do. seen is the real server that
// the program has given a new connection to, for what chance or a hash decides.
func (o *oracle) ingress(p packet, seen netip.AddrPort) verdict {
	if p.proto == "icmp" {
		return o.fault(p, true)
	}
	e := ends{p.proto, p.src, p.dst}
	f, dir := o.flow(e)
	if f != nil && !(dir == 0 && mayOpen(p) && (f.real.dead || p.proto != "udp") && f.finished()) {
		if f.real.dead {
			return dropFor(ReasonDeadFlow)
		}
		return o.carry(p, f, dir)
	}
	s := o.find(e)
	switch {
	case s == nil && f != nil && f.real.dead:
		return dropFor(ReasonDeadFlow)
	case s == nil:
		if w := o.answered(p, e); w != nil && f == nil {
			return o.carry(p, w, 1)
		}
		return verdict{code: pass, out: p}
	case f != nil:
		o.end(f)
	}
	home := o.waitsFor(s, e)
	if home == nil && !mayOpen(p) {
		return verdict{code: pass, reason: ReasonNoFlow, out: p}
	}
	waits := false
	if !s.OnePacket && len(ringOf(s)) > 0 {
		switch {
		case home != nil && strings.Contains(p.flags, "R"):
			waits = true
		case !o.full():
		case mayOpen(p) && s.mayWait(e) && !o.noRoom:
			waits = true
		case !o.makeRoom(e.src, replyEnd(seen, e)):
			return dropFor(ReasonTableFull)
		}
	}
	f, why := o.open(s, e, seen, opening{home: home, only: !mayOpen(p), waits: waits})
	if f == nil {
		return dropFor(why)
	}
	return o.carry(p, f, 0)
}

// mayWait tells whether a service's SYNs may do without a record.
func (s *oService) mayWait(e ends) bool {
	return e.proto == "tcp" && s.Key.Addr.Port() != 0 && !s.Persistence.Enabled && !slices.Contains([]string{"lc", "wlc", "twos", "p2c"}, s.Scheduler)
}

// noteOf is the note of a packet's ends, if it is there yet and its real server is.
func (o *oracle) noteOf(e ends) (n note, ok bool) {
	n, ok = o.notes[e]
	if !ok {
		return n, false
	}
	if !o.noted { // another's took its place
		delete(o.notes, e)
	}
	return n, o.noted && !n.f.real.dead
}

// waitsFor is the real server that a client has had a SYN carried to without a record.
func (o *oracle) waitsFor(s *oService, e ends) *oReal {
	if n, ok := o.noteOf(e); ok && n.service == s.Key && n.f.to == e && s.mayWait(e) {
		return n.f.real
	}
	return nil
}

// answered is the connection without a record that a real server's packet belongs to.
func (o *oracle) answered(p packet, e ends) *oFlow {
	n, ok := o.noteOf(e)
	if !ok || n.f.back != e || mayOpen(p) {
		return nil
	}
	s := o.services[n.service]
	if r := n.f.real; s == nil || !s.mayWait(e) || r.Forward != model.Masq || r.local {
		return nil
	}
	if o.notes[n.f.to].f == n.f {
		n.f.answered = true
	}
	return &oFlow{to: n.f.to, back: e, real: n.f.real, forward: model.Masq, state: "SYN_RECV", over: true}
}

const reasonAny = Reason(1000)

func (s *oService) chancy() bool {
	return slices.Contains([]string{"sh", "mh", "dh", "twos", "p2c"}, s.Scheduler)
}

// opening says how a connection is opened.
type opening struct {
	home  *oReal // the real server that the client had a SYN carried to
	only  bool   // that one or none
	waits bool   // without a record
}

// open schedules a connection.
func (o *oracle) open(s *oService, e ends, seen netip.AddrPort, how opening) (*oFlow, Reason) {
	var ring []*oReal
	for _, i := range ringOf(s) {
		ring = append(ring, s.reals[i])
	}
	if len(ring) == 0 {
		return nil, ReasonNoReal
	}
	f := &oFlow{to: e, state: map[string]string{"udp": "UDP"}[e.proto], over: how.waits, answered: how.only && o.notes[e].f.answered}
	if f.state == "" {
		f.state = "SYN_RECV"
	}
	key := stayKey{s.Key, masked(s.Persistence, e.src.Addr())}
	why := ReasonNoReal
	if home := o.stays[key]; s.Persistence.Enabled && home != nil && !home.dead {
		why = o.try(s, f, home)
	}
	if how.home != nil {
		why = o.try(s, f, how.home)
	}
	if why != ReasonNone && !how.only {
		how.home = nil
		if s.chancy() && !seen.IsValid() {
			return nil, reasonAny // which of its tries it tells of, the oracle cannot know
		}
		at := o.place(s, ring, seen)
		why = ReasonNoReal
		for i := -1; i < min(len(ring), 64); i++ { // its place, then those after it
			step := max(i+1, 0)
			if i < 0 {
				step = 0
			}
			r := ring[(at+step)%len(ring)]
			if got := o.try(s, f, r); got == ReasonNone || why == ReasonNoReal {
				why = got
			}
			if why == ReasonNone {
				break
			}
		}
	}
	if why != ReasonNone {
		return nil, why
	}
	if s.Persistence.Enabled {
		o.stays[key] = f.real
	}
	if how.waits {
		if !how.only {
			o.waits = how.home == nil
			o.waiting = append(o.waiting, f)
			o.notes[f.to] = note{f, s.Key}
			if f.forward == model.Masq && !f.local {
				o.notes[f.back] = note{f, s.Key}
			}
		}
		if o.waits {
			o.opened = f.real.Addr
		}
		return f, ReasonNone
	}
	f.real.count.Connections++
	o.opened = f.real.Addr
	if s.OnePacket {
		return f, ReasonNone
	}
	o.flows[f.to] = f
	o.list = append(o.list, f)
	if f.back != (ends{}) {
		o.flows[f.back] = f
	}
	f.real.gauge(f.state, +1)
	return f, ReasonNone
}

func ringOf(s *oService) []int {
	var reals []*real
	for _, r := range s.reals {
		reals = append(reals, &real{RealServer: r.RealServer})
	}
	return ring(s.Scheduler, reals)
}

// place is where in the ring the search begins.
func (o *oracle) place(s *oService, ring []*oReal, seen netip.AddrPort) int {
	switch s.Scheduler {
	case "rr", "wrr":
		s.next++
		return (s.next - 1) % len(ring)
	case "sh", "mh", "dh", "twos", "p2c":
		return max(slices.IndexFunc(ring, func(r *oReal) bool { return r.Addr == seen }), 0)
	}
	of := make([]plane.Candidate, len(ring))
	for i, r := range ring {
		of[i] = plane.Candidate{Addr: r.Addr, Weight: r.Weight, Active: uint64(r.active), Inactive: uint64(r.inactive), Skip: r.full()}
	}
	return max((&plane.Scheduler{Name: s.Scheduler}).Next(of, netip.Addr{}), 0)
}

func (r *oReal) full() bool {
	r.overloaded = plane.Overloaded(r.overloaded, uint64(r.active+r.inactive), r.RealServer)
	return r.overloaded
}

func (o *oracle) try(s *oService, f *oFlow, r *oReal) Reason {
	if r.dead || r.Weight <= 0 {
		return ReasonNoReal
	}
	if r.full() {
		return ReasonOverloaded
	}
	f.forward, f.local = r.Forward, r.local
	f.back = ends{}
	back := ends{f.to.proto, f.to.dst, f.to.src}
	if r.Forward == model.Masq {
		back.src = replyEnd(r.Addr, f.to)
	}
	if (r.Forward == model.Masq || r.local) && f.over {
		f.back = back
	} else if (r.Forward == model.Masq || r.local) && !s.OnePacket {
		if old := o.flows[back]; old != nil {
			if !old.finished() {
				return ReasonCollision
			}
			o.end(old)
		}
		f.back = back
	}
	f.real = r
	return ReasonNone
}

// account follows a connection's state.
func (f *oFlow) account(p packet, dir int) {
	if dir == 0 {
		f.real.count.PacketsIn++
	} else {
		f.real.count.PacketsOut++
	}
	if p.proto == "udp" || f.over {
		return
	}
	has := func(flag byte) bool { return slices.Contains([]byte(p.flags), flag) }
	was := f.state
	if was == "ESTABLISHED" && !has('F') && !has('R') {
		return
	}
	f.answered = f.answered || dir == 1 || f.forward != model.Masq
	if has('F') {
		f.fin[dir] = true
	}
	switch {
	case has('R'):
		f.state = "CLOSE"
	case f.fin[0] && f.fin[1]:
		f.state = "TIME_WAIT"
	case f.fin[0]:
		f.state = "CLOSE_WAIT"
	case f.fin[1]:
		f.state = "FIN_WAIT"
	case was == "SYN_RECV" && dir == 0 && f.answered && !has('S'),
		was == "CLOSE" && (dir == 1 || f.forward != model.Masq):
		f.state = "ESTABLISHED"
	}
	f.real.gauge(was, -1)
	f.real.gauge(f.state, +1)
}

// mtu is that of every interface of the drawing.
const mtu = 1500

func (p packet) size() int { return len(p.ip()) }

// carry says what becomes of a packet of a connection.
func (o *oracle) carry(p packet, f *oFlow, dir int) verdict {
	if f.local {
		if dir == 0 {
			f.account(p, dir)
		}
		return verdict{code: pass, out: p}
	}
	room := 0
	if f.forward == model.IPIP {
		room = 20
		if f.real.Addr.Addr().Is6() {
			room = 40
		}
	}
	why := ReasonNone
	switch {
	case p.ttl <= 1:
		why = ReasonTTL
	case p.size()+room > o.wayMTU(f):
		why = ReasonTooBig
	}
	if dir == 1 && why != ReasonNone {
		return verdict{code: pass, reason: why, out: p}
	}
	f.account(p, dir)
	out := p
	if f.forward != model.Masq {
		if why == ReasonTTL {
			return verdict{code: redirected, reason: ReasonLastHop, out: refusal(p, 11, 3, 0, 0)}
		}
		if why == ReasonTooBig {
			return verdict{code: redirected, reason: ReasonOversize, out: refusal(p, 3, 2, 4, o.wayMTU(f)-room)}
		}
		out.ttl--
		return verdict{code: redirected, out: f.wrap(out)}
	}
	if dir == 0 {
		out.dst = f.back.src
	} else {
		out.src = f.to.dst
	}
	if why != ReasonNone {
		return verdict{code: pass, reason: why, out: out}
	}
	out.ttl--
	return verdict{code: redirected, out: out}
}

// wayMTU is what fits into the way of a connection's packets.
func (o *oracle) wayMTU(f *oFlow) int {
	if n := o.paths[f.real.Addr.Addr()]; f.forward == model.IPIP && n != 0 {
		return min(n, mtu)
	}
	return mtu
}

// learn hears an error about a packet in a tunnel.
func (o *oracle) learn(p packet) {
	q := *p.about
	v6 := p.src.Addr().Is6()
	if q.proto != "tunnel" || q.src.Addr() != p.dst.Addr() || v6 && (p.typ != 2 || p.mtu < 1280) || !v6 && (p.typ != 3 || p.code != 4) {
		return
	}
	size := p.mtu
	if !v6 {
		size = max(size&0xffff, 552)
	}
	real, virtual, marked := false, false, false
	for _, s := range o.services {
		virtual = virtual || !s.Key.IsMark() && s.Key.Addr.Addr() == q.about.dst.Addr()
		for _, r := range s.reals {
			real = real || r.Addr.Addr() == q.dst.Addr()
		}
	}
	for _, r := range o.marks { // a rule's single address counts, whether its service is there or not
		marked = marked || o.services[r.Key()] != nil
		virtual = virtual || r.Destination.IsSingleIP() && r.Destination.Addr() == q.about.dst.Addr()
	}
	if have := o.paths[q.dst.Addr()]; real && (virtual || marked) && (have == 0 || have > size) {
		o.paths[q.dst.Addr()] = size
	}
}

// wrap puts a packet into the tunnel, if there is one.
func (f *oFlow) wrap(p packet) packet {
	if f.forward != model.IPIP {
		return p
	}
	outer := packet{proto: "tunnel", ttl: 64, about: &p, dst: netip.AddrPortFrom(f.real.Addr.Addr(), 0)}
	outer.df = !f.real.Addr.Addr().Is6() && (p.df || p.src.Addr().Is6())
	// The director's end is its address on that network.
	if a := f.real.Addr.Addr(); a.Is6() {
		b := a.As16()
		b[15] = 1
		outer.src = netip.AddrPortFrom(netip.AddrFrom16(b), 0)
	} else {
		b := a.As4()
		b[3] = 1
		outer.src = netip.AddrPortFrom(netip.AddrFrom4(b), 0)
	}
	return outer
}

// refusal is the ICMP error that the plane makes itself.
func refusal(p packet, typ4, typ6, code4, size int) packet {
	q := p
	q.length = 0 // the headers alone are quoted
	if p.proto == "sctp" {
		q.flags = "" // its first eight bytes
	}
	out := packet{proto: "icmp", src: netip.AddrPortFrom(p.dst.Addr(), 0), dst: netip.AddrPortFrom(p.src.Addr(), 0),
		typ: typ4, code: code4, mtu: size, ttl: 64, df: true, about: &q}
	if p.src.Addr().Is6() {
		out.typ, out.code, out.df = typ6, 0, false
	}
	return out
}

// fault says what becomes of an ICMP error.
func (o *oracle) fault(p packet, in bool) verdict {
	q := *p.about
	if in {
		o.learn(p)
	}
	f, dir := o.flow(ends{q.proto, q.dst, q.src})
	if f == nil || f.local || q.src.Addr() != p.dst.Addr() {
		return verdict{code: pass, out: p}
	}
	if in && f.real.dead {
		return dropFor(ReasonDeadFlow)
	}
	out, about := p, q
	if f.forward != model.Masq {
		if !in {
			return verdict{code: pass, out: p}
		}
		if p.ttl <= 1 {
			return dropFor(ReasonUnreachable)
		}
		out.ttl--
		return verdict{code: redirected, out: f.wrap(out)}
	}
	if in && p.ttl <= 1 && dir == 1 {
		return verdict{code: pass, reason: ReasonTTL, out: p}
	}
	if dir == 0 {
		about.src = f.back.src
		out.dst = netip.AddrPortFrom(f.back.src.Addr(), 0)
	} else {
		about.dst = f.to.dst
		out.src = netip.AddrPortFrom(f.to.dst.Addr(), 0)
	}
	out.about = &about
	if !in {
		return verdict{code: pass, out: out}
	}
	if p.ttl <= 1 {
		return verdict{code: pass, reason: ReasonTTL, out: out}
	}
	out.ttl--
	return verdict{code: redirected, out: out}
}

// egress says what the egress program must do.
func (o *oracle) egress(p packet) verdict {
	if p.proto == "icmp" {
		return o.fault(p, false)
	}
	e := ends{p.proto, p.src, p.dst}
	f, dir := o.flow(e)
	if f == nil {
		f, dir = o.answered(p, e), 1
	}
	if f == nil || dir == 0 {
		return verdict{code: pass, out: p}
	}
	if f.real.dead {
		return dropFor(ReasonDeadFlow)
	}
	f.account(p, dir)
	out := p
	if !f.local {
		out.src = f.to.dst
	}
	return verdict{code: pass, out: out}
}

// masked is a client's network under a service's mask.
func masked(p model.Persistence, client netip.Addr) netip.Addr {
	if !p.Netmask.IsValid() {
		return client
	}
	b, m := client.AsSlice(), p.Netmask.AsSlice()
	for i := range b {
		b[i] &= m[i]
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
