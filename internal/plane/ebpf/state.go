package ebpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/batuta-ha/batuta/internal/model"
)

// state is the table in the plane's own words: which slot of which map holds
// what. It is rebuilt from the maps at a restart, and changed by Apply only.
type state struct {
	services map[model.ServiceKey]*service
	roles    map[netip.Addr]roles
	told     map[netip.Addr]uint32 // addresses whose role has changed: what the programs still believe
	anyPort  int                   // how many services are for all ports
	marks    []model.MarkRule      // what services by mark get, in order
	rules    []tcRule              // the same as rows

	serviceSpace *space
	realSpace    *space

	ringMu    sync.Mutex // guards ringSpace while several rings are made at once
	ringSpace *space
	makers    []ringMaker
}

// roles is how many services and real servers have an address.
type roles struct{ virtual, real int }

// service is one virtual service and its places in the maps.
type service struct {
	model.VirtualService // without its real servers
	slot                 uint32
	reals                []*real  // sorted by address, as rings are made of them
	listed               bool     // its key is in service_slots
	touched              bool     // by the present call of Apply
	ended                []uint32 // real servers that left by it
}

// find gives the place of a real server, and whether it is there.
func (v *service) find(a netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(v.reals, a, func(r *real, a netip.AddrPort) int { return r.Addr.Compare(a) })
}

type real struct {
	model.RealServer
	slot  uint32
	local bool
}

// Addresses and ports lie in the maps as they lie in packets: their bytes, in
// network order, whatever integer the type shows.
func wireAddr(a netip.Addr) (out tcAddr) {
	b := a.As16() // IPv4 as IPv4-mapped
	for i := range out.D {
		out.D[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return out
}

func addrOfWire(v tcAddr) netip.Addr {
	var b [16]byte
	for i := range v.D {
		binary.NativeEndian.PutUint64(b[8*i:], v.D[i])
	}
	return netip.AddrFrom16(b).Unmap()
}

func wirePort(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

func portOfWire(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

// A mark has no address: it is written in its place, where no protocol is.
func wireKey(k model.ServiceKey) tcServiceKey {
	if k.IsMark() {
		return tcServiceKey{Addr: tcAddr{D: [2]uint64{uint64(k.Mark), uint64(k.MarkFamily)}}}
	}
	return tcServiceKey{Addr: wireAddr(k.Addr.Addr()), Port: wirePort(k.Addr.Port()), Proto: k.Proto.Number()}
}

func protocolOf(number uint8) model.Protocol {
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		if p.Number() == number {
			return p
		}
	}
	return model.ProtocolNone
}

func keyOfWire(k tcServiceKey) model.ServiceKey {
	if k.Proto == 0 {
		return model.ServiceKey{Mark: uint32(k.Addr.D[0]), MarkFamily: model.Family(k.Addr.D[1])}
	}
	return model.ServiceKey{Proto: protocolOf(k.Proto), Addr: netip.AddrPortFrom(addrOfWire(k.Addr), portOfWire(k.Port))}
}

// readState rebuilds the state from the maps. What a crash left half done (a
// service without its entry, a real server of no service) is cleared away.
func (t *tables) readState() (*state, error) {
	s := &state{
		services:     map[model.ServiceKey]*service{},
		roles:        map[netip.Addr]roles{},
		told:         map[netip.Addr]uint32{},
		serviceSpace: newSpace(uint32(len(t.services))),
		realSpace:    newSpace(uint32(len(t.reals))),
		ringSpace:    newSpace(uint32(len(t.rings))),
	}
	if !t.adopted {
		return s, nil
	}
	in := map[uint32]*service{} // by slot
	for i := range t.services {
		row := &t.services[i]
		if row.Used == 0 {
			continue
		}
		slot := uint32(i)
		var listed uint32
		err := t.ServiceSlots.Lookup(row.Key, &listed)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read services: %w", err)
		}
		if err != nil || listed != slot {
			atomic.StoreUint64(&row.Ring, 0)
			row.Used = 0
			continue
		}
		v := &service{VirtualService: serviceOf(row), slot: slot, listed: true}
		ring := entriesOf(atomic.LoadUint64(&row.Ring))
		if !s.serviceSpace.reserve(slot, 1) || !s.ringSpace.reserve(ring.from, ring.n) {
			return nil, fmt.Errorf("service %s: its ring lies in another's: the pinned table is damaged; remove it to start with an empty one", v.Key)
		}
		in[slot] = v
		s.services[v.Key] = v
		s.addressed(t, v.Key, +1)
	}
	for i := range t.reals {
		row := &t.reals[i]
		if row.Used == 0 {
			continue
		}
		slot := uint32(i)
		v := in[row.Service]
		if v == nil {
			t.end(slot, nil)
			continue
		}
		r := realOf(row)
		r.slot = slot
		s.realSpace.reserve(slot, 1)
		v.reals = append(v.reals, &r)
		s.role(r.Addr.Addr(), roles{real: +1})
	}
	all := slices.SortedFunc(maps.Values(s.services), bySlot)
	for _, v := range all {
		slices.SortFunc(v.reals, func(x, y *real) int { return x.Addr.Compare(y.Addr) })
	}
	// Rings name no real server that has gone, whatever was cut short.
	if err := errors.Join(s.publish(t, all)...); err != nil {
		return nil, err
	}
	s.adoptMarks(t, t.rules[:min(int(t.control.Rules), len(t.rules))])
	return s, s.tellRoles(t)
}

func bySlot(x, y *service) int { return cmp.Compare(x.slot, y.slot) }

func realOf(row *tcReal) real {
	return real{
		RealServer: model.RealServer{
			Addr:    netip.AddrPortFrom(addrOfWire(row.Addr), portOfWire(row.Port)),
			Forward: model.Forward(row.Forward),
			Weight:  int(row.Weight),
			Upper:   row.Upper,
			Lower:   row.Lower,
		},
		local: row.Flags&uint8(tcRealFlagREAL_LOCAL) != 0,
	}
}

// addressed notes that a service has come (by is 1) or gone (-1), for what the
// programs know of addresses and look at only where it is needed.
func (s *state) addressed(t *tables, k model.ServiceKey, by int) {
	if k.IsMark() {
		s.linkMarks(t)
		return
	}
	if k.Addr.Port() == 0 {
		s.anyPort += by
		s.setFeatures(t)
	}
	s.role(k.Addr.Addr(), roles{virtual: by})
}

// setFeatures tells the programs what there is to look at.
func (s *state) setFeatures(t *tables) {
	features := atomic.LoadUint32(&t.control.Features) & uint32(tcFeatureFEATURE_ELSEWHERE)
	if s.anyPort > 0 {
		features |= uint32(tcFeatureFEATURE_ANY_PORT)
	}
	if slices.ContainsFunc(s.rules, func(r tcRule) bool { return r.Service > 0 }) {
		features |= uint32(tcFeatureFEATURE_RULES)
	}
	atomic.StoreUint32(&t.control.Features, features)
}

// role counts the services and real servers of an address. The programs, which
// need it for fragments, are told by tellRoles.
func (s *state) role(a netip.Addr, by roles) {
	was := s.roles[a]
	is := roles{was.virtual + by.virtual, was.real + by.real}
	if is == (roles{}) {
		delete(s.roles, a)
	} else {
		s.roles[a] = is
	}
	if _, noted := s.told[a]; !noted && is.mask() != was.mask() {
		s.told[a] = was.mask()
	}
}

// mask is bits of enum address_role.
func (r roles) mask() (m uint32) {
	if r.virtual > 0 {
		m |= uint32(tcAddressRoleADDRESS_VIRTUAL)
	}
	if r.real > 0 {
		m |= uint32(tcAddressRoleADDRESS_REAL)
	}
	return m
}

// tellRoles writes what has changed: all that is new by one system call.
func (s *state) tellRoles(t *tables) error {
	var (
		keys  []tcAddr
		masks []uint32
		errs  []error
	)
	for a, was := range s.told {
		switch is := s.roles[a].mask(); {
		case is == was:
		case is != 0:
			keys, masks = append(keys, wireAddr(a)), append(masks, is)
		default:
			if err := t.Addresses.Delete(wireAddr(a)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if len(keys) > 0 {
		_, err := t.Addresses.BatchUpdate(keys, masks, nil)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tell the programs whose addresses these are: %w", err) // said again next time
	}
	clear(s.told)
	return nil
}

// end ends all connections of a real server and frees its row. Its counters
// go to the service, if that stays.
func (t *tables) end(slot uint32, owner *tcService) {
	per := t.realCPUs[int(slot)*t.cpus : (int(slot)+1)*t.cpus]
	for i := range per {
		if g := atomic.LoadUint32(&per[i].Gen); g&1 == 1 {
			atomic.StoreUint32(&per[i].Gen, g+1)
		}
	}
	if owner != nil {
		c := t.realCounters(slot)
		for i, n := range []uint64{c.Connections, c.PacketsIn, c.PacketsOut, c.BytesIn, c.BytesOut} {
			owner.Past[i] += n
		}
	}
	t.reals[slot].Used = 0
}

// begin makes a row alive for new connections.
func (t *tables) begin(slot uint32) {
	per := t.realCPUs[int(slot)*t.cpus : (int(slot)+1)*t.cpus]
	for i := range per {
		per[i].Count = tcCounters{}
	}
	row := &t.reals[slot]
	row.Active, row.Inactive, row.Overloaded = 0, 0, 0
	for i := range per {
		if g := atomic.LoadUint32(&per[i].Gen); g&1 == 0 {
			atomic.StoreUint32(&per[i].Gen, g+1)
		}
	}
}

// forgetRoute lets datagrams of one-packet services look for their way anew:
// that of the row's last real server, or of its last forwarding method, would
// hold for up to a second.
func (t *tables) forgetRoute(slot uint32) {
	per := t.realCPUs[int(slot)*t.cpus : (int(slot)+1)*t.cpus]
	for i := range per {
		per[i].Route.Stamp = 0
	}
}

// realCounters sums a row over the processors.
func (t *tables) realCounters(slot uint32) (c model.Counters) {
	for i := range t.cpus {
		n := &t.realCPUs[int(slot)*t.cpus+i].Count
		c.Connections += atomic.LoadUint64(&n.Connections)
		c.PacketsIn += atomic.LoadUint64(&n.PacketsIn)
		c.PacketsOut += atomic.LoadUint64(&n.PacketsOut)
		c.BytesIn += atomic.LoadUint64(&n.BytesIn)
		c.BytesOut += atomic.LoadUint64(&n.BytesOut)
	}
	return c
}
