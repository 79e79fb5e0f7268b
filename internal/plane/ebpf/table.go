package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Read returns the table as it lies in the pinned maps.
func (p *Plane) Read(context.Context) (model.Table, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return model.Table{}, plane.ErrClosed
	}
	var t model.Table
	// Only rows in use are looked at: the others' memory is better left untouched.
	for _, v := range p.state.services {
		if p.t.services[v.slot].Used == 0 {
			continue
		}
		row := serviceOf(&p.t.services[v.slot])
		for _, r := range v.reals {
			row.Reals = append(row.Reals, realOf(&p.t.reals[r.slot]).RealServer)
		}
		t.Services = append(t.Services, row)
	}
	t.Sort()
	return t, nil
}

// batch is one call of Apply: rings are published once for each service, then
// the connections of deleted real servers end. A packet sees the ring of
// before or that of after, never one between.
type batch struct {
	touched map[*service][]model.Change // changes that need a new ring
	ended   []ending
	local   map[netip.Addr]bool   // the director's own addresses; nil: not asked yet
	fresh   map[model.Family]bool // families of new services
}

type ending struct {
	slot  uint32
	owner *service
}

// Apply carries out changes as the contract says.
func (p *Plane) Apply(_ context.Context, changes []model.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	b := &batch{touched: map[*service][]model.Change{}, fresh: map[model.Family]bool{}}
	var errs []error
	refuse := func(c model.Change, err error) { errs = append(errs, &plane.RowError{Change: c, Err: err}) }
	for _, c := range changes {
		if err := p.change(b, c); err != nil {
			refuse(c, err)
		}
	}
	for _, v := range slices.SortedFunc(maps.Keys(b.touched), func(x, y *service) int { return cmp.Compare(x.slot, y.slot) }) {
		if err := p.state.publish(p.t, v); err != nil {
			for _, c := range b.touched[v] {
				refuse(c, err)
			}
		}
	}
	for _, e := range b.ended {
		p.t.end(e.slot, &p.t.services[e.owner.slot])
		p.state.realSpace.give(e.slot, 1)
	}
	for f := range b.fresh {
		p.warnForwarding(f)
	}
	return errors.Join(errs...)
}

// change carries out one change, up to the ring.
func (p *Plane) change(b *batch, c model.Change) error {
	v := p.state.services[c.Service.Key]
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		if err := acceptService(c.Service, v, p.state.marks); err != nil {
			return err
		}
		if v == nil {
			var err error
			if v, err = p.addService(c.Service.Key); err != nil {
				return err
			}
			b.fresh[v.Key.Family()] = true
		}
		v.VirtualService = c.Service
		v.Reals = nil
		b.touched[v] = append(b.touched[v], c)
	case model.ServiceDelete:
		if v == nil {
			return nil
		}
		delete(b.touched, v)
		b.ended = slices.DeleteFunc(b.ended, func(e ending) bool {
			if e.owner != v {
				return false
			}
			p.t.end(e.slot, nil)
			p.state.realSpace.give(e.slot, 1)
			return true
		})
		return p.deleteService(v)
	case model.RealAdd, model.RealEdit:
		if v == nil {
			return errors.New("no such service in the table")
		}
		local, err := p.acceptReal(b, v, c.Real)
		if err != nil {
			return err
		}
		return p.setReal(b, v, c, local)
	case model.RealDelete:
		if v == nil || v.reals[c.Real.Addr] == nil {
			return nil
		}
		b.ended = append(b.ended, ending{v.reals[c.Real.Addr].slot, v})
		delete(v.reals, c.Real.Addr)
		b.touched[v] = append(b.touched[v], c)
		return p.state.role(p.t, c.Real.Addr.Addr(), 1, -1)
	case model.ChangeNone:
	}
	return nil
}

func (p *Plane) addService(k model.ServiceKey) (*service, error) {
	slot, ok := p.state.serviceSpace.take(1)
	if !ok {
		return nil, fmt.Errorf("no room for more than %d services: open the plane with more", len(p.t.services))
	}
	v := &service{VirtualService: model.VirtualService{Key: k}, slot: slot, reals: map[netip.AddrPort]*real{}}
	row := &p.t.services[slot]
	*row = tcService{Key: wireKey(k)}
	p.state.services[k] = v
	if err := p.state.addressed(p.t, k, +1); err != nil {
		delete(p.state.services, k)
		p.state.serviceSpace.give(slot, 1)
		return nil, err
	}
	return v, nil
}

func (p *Plane) deleteService(v *service) error {
	if v.listed {
		if err := p.t.ServiceSlots.Delete(wireKey(v.Key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	row := &p.t.services[v.slot]
	ring := atomic.SwapUint64(&row.Ring, 0)
	row.Used = 0
	for _, r := range v.reals {
		p.t.end(r.slot, nil)
		p.state.realSpace.give(r.slot, 1)
		if err := p.state.role(p.t, r.Addr.Addr(), 1, -1); err != nil {
			return err
		}
	}
	p.state.ringSpace.give(uint32(ring>>32), uint32(ring))
	p.state.serviceSpace.give(v.slot, 1)
	delete(p.state.services, v.Key)
	return p.state.addressed(p.t, v.Key, -1)
}

// setReal adds or edits a row. A changed forwarding method is another way for
// new connections; those that are open keep theirs.
func (p *Plane) setReal(b *batch, v *service, c model.Change, local bool) error {
	r := v.reals[c.Real.Addr]
	fresh := r == nil
	if fresh {
		slot, ok := p.state.realSpace.take(1)
		if !ok {
			return fmt.Errorf("no room for more than %d real servers: open the plane with more", len(p.t.reals))
		}
		if err := p.state.role(p.t, c.Real.Addr.Addr(), 1, +1); err != nil {
			p.state.realSpace.give(slot, 1)
			return err
		}
		r = &real{slot: slot}
		v.reals[c.Real.Addr] = r
	}
	r.RealServer, r.local = c.Real, local
	row := &p.t.reals[r.slot]
	row.Addr, row.Port = wireAddr(r.Addr.Addr()), wirePort(r.Addr.Port())
	row.Forward, row.Flags = uint8(r.Forward), 0
	if local {
		row.Flags = uint8(tcRealFlagREAL_LOCAL)
	}
	row.Service, row.Upper, row.Lower = v.slot, r.Upper, r.Lower
	atomic.StoreInt32(&row.Weight, int32(r.Weight))
	if r.Forward == model.IPIP {
		p.findSource(row)
	}
	if fresh {
		p.t.begin(r.slot)
	}
	row.Used = 1
	b.touched[v] = append(b.touched[v], c)
	return nil
}

// publish gives a service its ring by one store, and enters its key once the
// row is complete.
func (s *state) publish(t *tables, v *service) error {
	order := v.order()
	turns := ring(v.Scheduler, order)

	row := &t.services[v.slot]
	writeService(row, v.VirtualService)
	if !t.ringIs(row, order, turns) {
		at := uint32(0)
		if len(turns) > 0 {
			var ok bool
			if at, ok = s.ringSpace.take(uint32(len(turns))); !ok {
				return fmt.Errorf("no room for a ring of %d turns among %d: open the plane with more", len(turns), len(t.rings))
			}
		}
		for i, n := range turns {
			t.rings[at+uint32(i)].Real = order[n].slot
		}
		before := atomic.SwapUint64(&row.Ring, uint64(at)<<32|uint64(len(turns)))
		s.ringSpace.give(uint32(before>>32), uint32(before))
	}
	if v.listed {
		return nil
	}
	row.Used = 1
	if err := t.ServiceSlots.Put(row.Key, v.slot); err != nil {
		row.Used = 0
		return fmt.Errorf("enter service: %w", err)
	}
	v.listed = true
	return nil
}

// order is the service's real servers as rings are made of them.
func (v *service) order() []*real {
	return slices.SortedFunc(maps.Values(v.reals), func(x, y *real) int { return x.Addr.Compare(y.Addr) })
}

// ringIs tells whether the published ring is already the one wanted.
func (t *tables) ringIs(row *tcService, order []*real, turns []int) bool {
	have := atomic.LoadUint64(&row.Ring)
	if int(uint32(have)) != len(turns) {
		return false
	}
	for i, n := range turns {
		if t.rings[uint32(have>>32)+uint32(i)].Real != order[n].slot {
			return false
		}
	}
	return true
}
