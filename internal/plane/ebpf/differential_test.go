package ebpf

import (
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

// Random changes of the table and random packets: the programs must do what
// the oracle says, to the packet, its counters and its connection. The same
// packets each time, or BATUTA_PACKETS from BATUTA_SEED on; a failure names its
// seed. (make fuzz-plane takes other ones each time.)
func TestAgainstOracle(t *testing.T) {
	requireRoot(t)
	total, round := number("BATUTA_PACKETS", 20000), 5000
	if total > 1000000 { // a new plane takes longer than a packet
		round = 50000
	}
	// A client whose MAC address is known beside others who are asked for: the
	// kernel looks closer at a way that is complete.
	for _, ip := range []string{"10.1.0.50", "2001:db8:1::50"} {
		l := linkOf(t, "outside")
		n := &netlink.Neigh{LinkIndex: l.Index, IP: net.ParseIP(ip), State: netlink.NUD_PERMANENT, HardwareAddr: l.HardwareAddr}
		if err := director.NeighSet(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = director.NeighDel(n) })
	}
	seed := number("BATUTA_SEED", 1)
	known(t)
	quickly, before := 0, quickRuns
	sent, began := 0, time.Now()
	for n := seed; uint64(sent) < total; n++ {
		d := newDuel(t, n)
		for i := 0; i < round && uint64(sent) < total; i++ {
			d.step()
			sent++
		}
		d.compare()
		d.plane.closeNow(t)
		if sent%1000000 == 0 {
			t.Logf("%d packets as the oracle said, after %v", sent, time.Since(began).Round(time.Second))
		}
	}
	quickly = quickRuns - before
	t.Logf("%d packets as the oracle said, %d of them carried at XDP, seeds from %d on, in %v", sent, quickly, seed, time.Since(began).Round(time.Second))
}

// number is a number in the environment.
func number(name string, otherwise uint64) uint64 {
	n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
	if err != nil {
		return otherwise
	}
	return n
}

// duel is one plane against one oracle.
type duel struct {
	t         *testing.T
	seed      uint64
	rand      *rand.Rand
	plane     *Plane
	oracle    *oracle
	notes     []uint64
	before    []uint64
	opened    map[[2]uint32]uint64 // connections of each real server so far, by slot and generation
	keys      []model.ServiceKey   // of the oracle's services, sorted
	protocols []model.Protocol     // of services
	last      []func() string
}

func newDuel(t *testing.T, seed uint64) *duel {
	o := testOptions()
	o.XDP = []XDPMode{XDPOff, XDPOn}[seed%2]
	day := 24 * time.Hour // nothing expires
	o.Timeouts = Timeouts{SynRecv: day, Established: day, CloseWait: day, FinWait: day, Closing: day, Closed: day, UDP: day}
	o.Timeouts.Young = time.Nanosecond
	o.MaxClients = 4096 // those of deleted services stay, since nothing is swept away
	if seed%3 == 0 {
		o.MaxFlows = 40 // which is soon full
		o.notes = 128   // which overwrite one another
	}
	protocols := []model.Protocol{model.TCP, model.TCP, model.UDP, model.SCTP}
	if seed%6 == 0 { // of full tables half are full of what may give way
		protocols = protocols[:2]
	}
	d := &duel{t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 6)), plane: open(t, o), oracle: newOracle(), protocols: protocols, opened: map[[2]uint32]uint64{}}
	d.plane.stop() // and nothing is swept away
	var err error
	if d.notes, err = mapArray[uint64](d.plane.t, d.plane.t.Notes); err != nil {
		t.Fatal(err)
	}
	d.oracle.room, d.oracle.gone = o.MaxFlows, d.gone
	for range d.rand.IntN(5) {
		d.oracle.marks = append(d.oracle.marks, d.rule())
	}
	if err := d.plane.SetMarks(t.Context(), d.oracle.marks); err != nil {
		t.Fatal(err)
	}
	d.before = slices.Clone(d.plane.t.reasons)
	for range 12 {
		d.configure()
	}
	return d
}

// closeNow ends a plane before its test does.
func (p *Plane) closeNow(t *testing.T) {
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Remove(p.o.Dir); err != nil {
		t.Fatal(err)
	}
}

func (d *duel) fatal(format string, a ...any) {
	d.t.Helper()
	for _, s := range d.last {
		d.t.Log(s())
	}
	d.t.Fatalf("BATUTA_SEED=%d: "+format, append([]any{d.seed}, a...)...)
}

func (d *duel) note(s func() string) {
	d.last = append(d.last, s)
	if len(d.last) > 25 {
		d.last = d.last[1:]
	}
}

func pick[T any](d *duel, of ...T) T { return of[d.rand.IntN(len(of))] }

func (d *duel) one(in int) bool { return d.rand.IntN(in) == 0 }

// rule is one that gives a mark, or two.
func (d *duel) rule() model.MarkRule {
	r := model.MarkRule{Mark: uint32(1 + d.rand.IntN(2)), Family: pick(d, model.IPv4, model.IPv6),
		Proto: pick(d, model.ProtocolNone, model.TCP, model.UDP, model.SCTP), Interface: pick(d, "", "", "outside", "inside1", "nowhere")}
	r.First = pick(d, uint16(0), 53, 80, 2000)
	r.Last = pick(d, uint16(0), r.First, r.First+200)
	six := r.Family == model.IPv6
	vips, clients := "10.1.0.100/31", "10.1.0.50/31"
	if six {
		vips, clients = "2001:db8:1::100/127", "2001:db8:1::50/127"
	}
	p := netip.MustParsePrefix(vips)
	r.Destination = pick(d, p, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	if d.one(3) {
		r.Source = netip.MustParsePrefix(clients)
	}
	return r
}

// gone tells whether the programs have let go of a connection.
func (d *duel) gone(f *oFlow) bool {
	for i := range d.plane.t.flows[:d.plane.t.maxFlows] {
		r := &d.plane.t.flows[i]
		if r.Gen&1 == 1 && r.Cport == wirePort(f.to.src.Port()) && r.Vport == wirePort(f.to.dst.Port()) &&
			r.Client == wireAddr(f.to.src.Addr()) && r.Virt == wireAddr(f.to.dst.Addr()) && protocolOf(uint8(r.Word>>16)).String() == f.to.proto {
			return false
		}
	}
	return true
}

// vips and reals of both families, clients that share networks.
func (d *duel) key() model.ServiceKey {
	if len(d.oracle.marks) > 0 && d.one(5) {
		return pick(d, d.oracle.marks...).Key()
	}
	text := fmt.Sprintf("10.1.0.%d:%d", 100+d.rand.IntN(2), pick(d, 80, 80, 53, 0))
	if d.one(2) {
		text = six(text)
	}
	return model.ServiceKey{Proto: pick(d, d.protocols...), Addr: netip.MustParseAddrPort(text)}
}

func (d *duel) existing() (model.ServiceKey, bool) {
	if len(d.keys) == 0 {
		return model.ServiceKey{}, false
	}
	return pick(d, d.keys...), true
}

// configure makes one random change, sensible or not.
func (d *duel) configure() {
	c := model.Change{Op: pick(d, model.ServiceAdd, model.RealAdd, model.RealAdd, model.RealAdd, model.RealEdit, model.RealEdit, model.RealDelete)}
	if d.one(20) {
		c.Op = model.ServiceDelete
	}
	k, ok := d.existing()
	if !ok || c.Op == model.ServiceAdd && d.one(2) {
		k, c.Op = d.key(), model.ServiceAdd
	}
	c.Service = model.VirtualService{Key: k}
	local := false
	switch c.Op {
	case model.ServiceAdd:
		v := &c.Service
		v.Scheduler = pick(d, "rr", "rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "sh", "mh", "dh", "twos")
		if d.one(4) {
			v.Persistence = model.Persistence{Enabled: true, Timeout: time.Hour}
			if d.one(2) && k.Family() == model.IPv4 {
				v.Persistence.Netmask = netip.MustParseAddr("255.255.255.0")
			} else if d.one(2) && k.Family() == model.IPv6 {
				v.Persistence.Netmask = model.MaskOf(64)
			}
		}
		v.OnePacket = k.Proto == model.UDP && d.one(5)
	case model.ServiceDelete, model.ServiceEdit, model.ChangeNone:
	default:
		text := fmt.Sprintf("%s:%d", pick(d, "10.240.0.20", "10.240.0.21", "10.241.0.20", "10.241.0.21"), pick(d, 80, 8000, int(k.Addr.Port())))
		fwd := pick(d, model.Masq, model.Masq, model.Masq, model.Gate, model.IPIP)
		if d.one(12) {
			text, fwd, local = "10.240.0.1:80", model.Gate, true
		}
		if (k.Family() == model.IPv6) != (fwd == model.IPIP && d.one(2)) {
			text = six(text)
		}
		c.Real = model.RealServer{Addr: netip.MustParseAddrPort(text), Forward: fwd, Weight: pick(d, 0, 1, 1, 2, 3)}
		if d.one(5) {
			c.Real.Upper = uint32(1 + d.rand.IntN(6))
			c.Real.Lower = uint32(d.rand.IntN(int(c.Real.Upper) + 1))
		}
	}
	err := d.plane.Apply(d.t.Context(), []model.Change{c})
	d.note(func() string { return fmt.Sprintf("%s: %v", c, err) })
	if err == nil {
		d.oracle.change(c, local)
		d.keys = slices.SortedFunc(maps.Keys(d.oracle.services), model.ServiceKey.Compare)
	}
}

func (d *duel) client(v6 bool) netip.AddrPort {
	text := fmt.Sprintf("10.1.0.%d:%d", 50+d.rand.IntN(4), 40000+d.rand.IntN(12))
	if v6 {
		text = six(text)
	}
	return netip.MustParseAddrPort(text)
}

// packet makes one: mostly of services and connections that exist.
func (d *duel) packet() (hook, dev string, p packet) {
	k, ok := d.existing()
	if !ok || d.one(10) {
		k = d.key()
	}
	virtual := k.Addr
	if k.IsMark() {
		text := fmt.Sprintf("10.1.0.%d:%d", 100+d.rand.IntN(2), pick(d, 80, 53, 2121))
		if k.MarkFamily == model.IPv6 {
			text = six(text)
		}
		virtual, k.Proto = netip.MustParseAddrPort(text), pick(d, model.TCP, model.UDP, model.SCTP)
	}
	if virtual.Port() == 0 || d.one(30) {
		virtual = netip.AddrPortFrom(virtual.Addr(), pick[uint16](d, 80, 53, 2121))
	}
	if d.one(100) {
		if f := d.anyFlow(); f != nil && f.real.Forward == model.IPIP {
			return "ingress", "inside0", d.tooBig(f)
		}
	}
	p = packet{proto: k.Proto.String(), src: d.client(virtual.Addr().Is6()), dst: virtual,
		ttl: pick(d, 64, 64, 64, 64, 2, 1), length: pick(d, 0, 1, 7, 100, 1200, 1441, 1460, 1461, 1500), df: d.one(2), id: d.rand.IntN(1 << 16)}
	switch p.proto {
	case "tcp":
		p.flags = pick(d, "S", "S", "A", "A", "PA", "FA", "R", "SA")
	case "udp":
		p.nosum = d.one(8)
	default:
		p.flags = pick(d, "S", "")
	}
	hook, dev = "ingress", "outside"
	if f := d.anyFlow(); f != nil && d.one(3) {
		e := f.to
		if f.back != (ends{}) && d.one(2) {
			e = f.back
			if f.local {
				hook, dev = "egress", "outside"
			} else {
				hook, dev = pick(d, "ingress", "ingress", "egress"), "inside0"
			}
		}
		p.proto, p.src, p.dst = e.proto, e.src, e.dst
		if p.proto == "tcp" && p.flags == "" {
			p.flags = "A"
		}
		if p.proto == "udp" || p.proto == "sctp" && p.flags != "S" {
			p.flags = ""
		}
		if p.proto != "udp" {
			p.nosum = false
		}
		if d.one(6) && p.proto != "sctp" { // an error about an answer to it
			q := p
			q.src, q.dst, q.length, q.ttl = p.dst, p.src, min(p.length, 100), 60
			p = packet{proto: "icmp", src: q.dst, dst: netip.AddrPortFrom(q.src.Addr(), 0), ttl: p.ttl, typ: 3, code: pick(d, 1, 3), about: &q, id: p.id}
			p.src = netip.AddrPortFrom(p.src.Addr(), 0)
			if p.src.Addr().Is6() {
				p.typ = pick(d, 1, 3)
			}
		}
	}
	if e, back := d.anyNote(); e.proto != "" && p.proto == "tcp" && d.one(4) {
		hook, dev, p.src, p.dst = "ingress", "outside", e.src, e.dst
		p.flags = pick(d, "S", "A", "A", "PA", "FA", "R", "SA")
		if back {
			hook, dev = pick(d, "ingress", "ingress", "egress"), "inside0"
		}
	}
	if p.src.Addr().Is6() {
		p.df, p.nosum = false, false
		p.id = 0
		if p.about != nil {
			p.about.df, p.about.nosum = false, false
		}
	}
	return hook, dev, p
}

// tooBig is an error of a router on a tunnel's way, mostly a true one.
func (d *duel) tooBig(f *oFlow) packet {
	inner := packet{proto: f.to.proto, src: f.to.src, dst: f.to.dst, ttl: 60, length: 100}
	if inner.proto == "tcp" {
		inner.flags = "A"
	}
	outer := f.wrap(inner)
	p := packet{proto: "icmp", src: outer.dst, dst: outer.src, ttl: 64, typ: 3, code: pick(d, 4, 4, 4, 1), about: &outer, mtu: pick(d, 0, 600, 1300, 1400, 1480, 1500, 9000)}
	if p.src.Addr().Is6() {
		p.typ, p.code, outer.id = pick(d, 2, 2, 2, 1), 0, 0
	}
	if inner.src.Addr().Is6() {
		inner.id = 0
	}
	switch same := outer.src.Addr().Is6() == inner.src.Addr().Is6(); {
	case d.one(10):
		inner.dst = inner.src
	case same && d.one(10):
		outer.src = f.to.dst
	case same && d.one(10):
		outer.dst = f.to.dst
	}
	return p
}

// anyFlow picks a connection of the table, nil if it finds none.
func (d *duel) anyFlow() *oFlow {
	for len(d.oracle.list) > 0 {
		i := d.rand.IntN(len(d.oracle.list))
		f := d.oracle.list[i]
		if !f.over {
			return f
		}
		last := len(d.oracle.list) - 1
		d.oracle.list[i] = d.oracle.list[last]
		d.oracle.list = d.oracle.list[:last]
	}
	return nil
}

// anyNote picks one end of a connection that waits for its record, or for nothing
// any more, and tells whether it is the real server's; its ends are empty if there is none.
func (d *duel) anyNote() (e ends, back bool) {
	all := d.oracle.waiting
	if len(all) == 0 {
		return ends{}, false
	}
	f := all[max(0, len(all)-1-d.rand.IntN(20))]
	if f.back != (ends{}) && d.one(2) {
		return f.back, true
	}
	return f.to, false
}

func (d *duel) step() {
	if d.one(40) {
		d.configure()
	}
	hook, dev, p := d.packet()
	e := ends{p.proto, p.src, p.dst}
	_, d.oracle.noted = d.noted(e)
	code, out := testRun(d.t, d.plane, hook, dev, p.ip(), 1)
	got, madeRoom := verdict{code: code}, false
	var waits bool
	got.reason, madeRoom, waits = d.reason()
	if code != dropped {
		got.out = readPacket(out, false)
	}
	seen := d.learn()
	if waits {
		real, _ := d.noted(e)
		for _, s := range d.plane.state.services {
			for _, r := range s.reals {
				if r.slot == real {
					seen = r.Addr
				}
			}
		}
	}
	d.oracle.opened, d.oracle.madeRoom, d.oracle.waits = netip.AddrPort{}, false, false
	var want verdict
	if hook == "egress" {
		want = d.oracle.egress(p)
	} else {
		want = d.oracle.ingress(p, seen)
	}
	answer := got
	d.note(func() string { return fmt.Sprintf("%s %s %s -> %s", hook, dev, p, answer) })
	if want.code != dropped {
		want.out = readPacket(want.out.ip(), false)
		want.out.id, got.out.id = 0, 0 // quotations have their own
	}
	if d.oracle.opened != seen {
		d.fatal("%s %s %s: opened a connection with %s, want %s\n%s", hook, dev, p, seen, d.oracle.opened, d.oracle.describe(p))
	}
	if want.reason == reasonAny && (got.reason == ReasonOverloaded || got.reason == ReasonCollision) {
		want.reason = got.reason
	}
	if d.oracle.madeRoom != madeRoom {
		d.fatal("%s %s %s: made room in the table: %v, want %v", hook, dev, p, madeRoom, d.oracle.madeRoom)
	}
	if d.oracle.waits != waits {
		d.fatal("%s %s %s: opened a connection without a record: %v, want %v", hook, dev, p, waits, d.oracle.waits)
	}
	if want.String() != got.String() {
		d.fatal("%s %s %s:\nwant %s\ngot  %s\n%s", hook, dev, p, want, got, d.oracle.describe(p))
	}
}

// learn finds the real server that has just got a connection, and takes over
// what the order of tries decides where the oracle does not know it.
func (d *duel) learn() (opened netip.AddrPort) {
	for k, s := range d.plane.state.services {
		for _, r := range s.reals {
			life := [2]uint32{r.slot, d.plane.t.realCPUs[int(r.slot)*d.plane.t.cpus].Gen}
			if n := d.plane.t.realCounters(r.slot).Connections; n != d.opened[life] {
				d.opened[life] = n
				opened = r.Addr
			}
		}
		o := d.oracle.services[k]
		if o == nil || len(o.reals) != len(s.reals) {
			d.fatal("%s: the plane has real servers %v; the oracle's service: %+v", k, s.reals, o)
		}
		if o.chancy() {
			for i, r := range o.reals { // both are sorted by address
				r.overloaded = d.plane.t.reals[s.reals[i].slot].Overloaded != 0
			}
		}
	}
	return opened
}

func (v verdict) String() string {
	return fmt.Sprintf("%d %s %s", int32(v.code), v.reason, v.out)
}

// reason is what has been counted since the last packet.
func (d *duel) reason() (r Reason, madeRoom, waits bool) {
	for i, n := range d.plane.t.reasons {
		if n != d.before[i] {
			d.before[i] = n
			switch why := Reason(i % reasonsLine); why {
			case ReasonMadeRoom:
				madeRoom = true
			case ReasonWaits:
				waits = true
			default:
				r = why
			}
		}
	}
	return r, madeRoom, waits
}

// noted gives the slot of the real server that a note about a packet's ends tells, and
// whether there is one: of a real server's packet if the oracle knows it as such.
func (d *duel) noted(e ends) (real uint32, ok bool) {
	if e.proto != "tcp" {
		return 0, false
	}
	hash := endsHash(d.plane.t.control.Seed, e)
	at := uint32(hash) & uint32(len(d.notes)/2-1) << 1
	if n := d.oracle.notes[e]; n.f != nil && n.f.back == e {
		at++
	}
	note := d.notes[at]
	return uint32(note & 0xffffff), note != 0 && (note^hash)>>40 == 0
}

// endsHash is ends_hash of bpf/table.h.
func endsHash(seed uint64, e ends) uint64 {
	mix := func(h, v uint64) uint64 {
		h = (h ^ v) * 0x9e3779b97f4a7c15
		return h ^ h>>32
	}
	src, dst := wireAddr(e.src.Addr()).D, wireAddr(e.dst.Addr()).D
	h := mix(seed^bits.RotateLeft64(src[1], 32), dst[1])
	if src[0]|dst[0] != 0 {
		h = mix(mix(mix(h, src[1]), src[0]), dst[0])
	}
	return mix(mix(h, 6<<32|uint64(wirePort(e.dst.Port()))<<16|uint64(wirePort(e.src.Port()))), 0)
}

// compare holds connections and counters against each other.
func (d *duel) compare() {
	flows, err := d.plane.Flows(d.t.Context())
	if err != nil {
		d.fatal("flows: %v", err)
	}
	var got, want []string
	for _, f := range flows {
		got = append(got, fmt.Sprintf("%s %s > %s %s", f.Proto, f.Client, f.Virtual, f.State))
	}
	for e, f := range d.oracle.flows {
		if e == f.to && !f.real.dead {
			want = append(want, fmt.Sprintf("%s %s > %s %s", e.proto, e.src, e.dst, f.state))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := gocmp.Diff(want, got); diff != "" {
		d.fatal("connections (-want +got):\n%s", diff)
	}
	all, err := d.plane.Counters(d.t.Context())
	if err != nil {
		d.fatal("counters: %v", err)
	}
	for _, s := range all {
		for i, r := range s.Reals {
			o := d.oracle.services[s.Key].reals[i]
			want := fmt.Sprintf("%s %s active %d inactive %d connections %d packets %d %d", s.Key, o.Addr, o.active, o.inactive, o.count.Connections, o.count.PacketsIn, o.count.PacketsOut)
			got := fmt.Sprintf("%s %s active %d inactive %d connections %d packets %d %d", s.Key, r.Addr, r.Active, r.Inactive, r.Connections, r.PacketsIn, r.PacketsOut)
			if want != got {
				d.fatal("counters:\nwant %s\ngot  %s", want, got)
			}
		}
	}
}

// describe is the service that a packet was for, as the oracle sees it.
func (o *oracle) describe(p packet) string {
	s := o.find(ends{p.proto, p.src, p.dst})
	if s == nil {
		return "no service"
	}
	text := fmt.Sprintf("%s next %d", model.Table{Services: []model.VirtualService{s.VirtualService}}, s.next)
	for _, r := range s.reals {
		text += fmt.Sprintf("  %v local %v active %d inactive %d overloaded %v\n", r.RealServer, r.local, r.active, r.inactive, r.overloaded)
	}
	return text
}
