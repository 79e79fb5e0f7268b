package ebpf

import (
	"context"
	"errors"
	"fmt"
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
	touched []*service            // those that need a new ring
	made    []made                // the changes for which they do
	ended   []*service            // those with real servers to end
	local   map[netip.Addr]bool   // the director's own addresses; nil: not asked yet
	fresh   map[model.Family]bool // families of new services
}

type made struct {
	v      *service
	change int // its place among those given to Apply
}

func (b *batch) touch(v *service, change int) {
	if !v.touched {
		v.touched = true
		b.touched = append(b.touched, v)
	}
	b.made = append(b.made, made{v, change})
}

// Apply carries out changes as the contract says.
func (p *Plane) Apply(_ context.Context, changes []model.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	b := &batch{fresh: map[model.Family]bool{}}
	var errs []error
	refuse := func(c model.Change, err error) { errs = append(errs, &plane.RowError{Change: c, Err: err}) }
	for i := range changes {
		if err := p.change(b, i, &changes[i]); err != nil {
			refuse(changes[i], err)
		}
	}
	if err := p.state.tellRoles(p.t); err != nil {
		errs = append(errs, err)
	}
	b.touched = slices.DeleteFunc(b.touched, func(v *service) bool { return !v.touched }) // deleted since
	slices.SortFunc(b.touched, bySlot)
	failed := map[*service]error{}
	for i, err := range p.state.publish(p.t, b.touched) {
		v := b.touched[i]
		v.touched = false
		if err != nil {
			failed[v] = err
		}
	}
	if len(failed) > 0 {
		for _, m := range b.made {
			if err := failed[m.v]; err != nil {
				refuse(changes[m.change], err)
			}
		}
	}
	for _, v := range b.ended {
		p.endReals(v, &p.t.services[v.slot])
	}
	for f := range b.fresh {
		p.warnForwarding(f)
	}
	return errors.Join(errs...)
}

// change carries out the i-th change, up to the ring.
func (p *Plane) change(b *batch, i int, c *model.Change) error {
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
		b.touch(v, i)
	case model.ServiceDelete:
		if v == nil {
			return nil
		}
		v.touched = false
		p.endReals(v, nil)
		return p.deleteService(v)
	case model.RealAdd, model.RealEdit:
		if v == nil {
			return errors.New("no such service in the table")
		}
		local, err := p.acceptReal(b, v, c.Real)
		if err != nil {
			return err
		}
		if err := p.setReal(v, c.Real, local); err != nil {
			return err
		}
		b.touch(v, i)
	case model.RealDelete:
		if v == nil {
			return nil
		}
		at, have := v.find(c.Real.Addr)
		if !have {
			return nil
		}
		if len(v.ended) == 0 {
			b.ended = append(b.ended, v)
		}
		v.ended = append(v.ended, v.reals[at].slot)
		v.reals = slices.Delete(v.reals, at, at+1)
		b.touch(v, i)
		p.state.role(c.Real.Addr.Addr(), roles{real: -1})
	case model.ChangeNone:
	}
	return nil
}

// endReals ends the connections of real servers that have left a service. Their
// counters go to owner, if that stays.
func (p *Plane) endReals(v *service, owner *tcService) {
	for _, slot := range v.ended {
		p.t.end(slot, owner)
		p.state.realSpace.give(slot, 1)
	}
	v.ended = nil
}

func (p *Plane) addService(k model.ServiceKey) (*service, error) {
	slot, ok := p.state.serviceSpace.take(1)
	if !ok {
		return nil, fmt.Errorf("no room for more than %d services: batuta run --ebpf-table services=N makes more", len(p.t.services))
	}
	v := &service{VirtualService: model.VirtualService{Key: k}, slot: slot}
	row := &p.t.services[slot]
	*row = tcService{Key: wireKey(k)}
	p.state.services[k] = v
	p.state.addressed(p.t, k, +1)
	return v, nil
}

func (p *Plane) deleteService(v *service) error {
	if v.listed {
		if err := p.t.ServiceSlots.Delete(wireKey(v.Key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	row := &p.t.services[v.slot]
	ring := entriesOf(atomic.SwapUint64(&row.Ring, 0))
	row.Used = 0
	for _, r := range v.reals {
		p.t.end(r.slot, nil)
		p.state.realSpace.give(r.slot, 1)
		p.state.role(r.Addr.Addr(), roles{real: -1})
	}
	p.state.ringSpace.give(ring.from, ring.n)
	p.state.serviceSpace.give(v.slot, 1)
	delete(p.state.services, v.Key)
	p.state.addressed(p.t, v.Key, -1)
	return nil
}

// setReal adds or edits a row. A changed forwarding method is another way for
// new connections; those that are open keep theirs.
func (p *Plane) setReal(v *service, want model.RealServer, local bool) error {
	at, have := v.find(want.Addr)
	if !have {
		slot, ok := p.state.realSpace.take(1)
		if !ok {
			return fmt.Errorf("no room for more than %d real servers: batuta run --ebpf-table reals=N makes more", len(p.t.reals))
		}
		v.reals = slices.Insert(v.reals, at, &real{slot: slot})
		p.state.role(want.Addr.Addr(), roles{real: +1})
	}
	r := v.reals[at]
	r.RealServer, r.local = want, local
	row := &p.t.reals[r.slot]
	if !have || row.Forward != uint8(r.Forward) {
		p.t.forgetRoute(r.slot)
	}
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
	if !have {
		p.t.begin(r.slot)
	}
	row.Used = 1
	return nil
}
