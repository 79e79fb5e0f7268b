package ebpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

var (
	_ plane.Bound  = (*Plane)(nil)
	_ plane.Binder = (*Plane)(nil)
)

// stays is the map of that name with what its rows refer to, in the layout of
// whoever made it.
type stays struct {
	m        *ebpf.Map
	keys     rows[tcStayKey]
	values   rows[tcStay]
	services rows[tcService]
	reals    rows[tcReal]
	realCPUs rows[tcRealCpu]
}

// rowsOf are rows of this version, as they lie in memory.
func rowsOf[T any](all []T) rows[T] {
	var zero T
	size := int(unsafe.Sizeof(zero))
	return rows[T]{raw: unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(all))), len(all)*size), size: size, columns: []column{{n: uint32(size)}}}
}

// bindings lists those in force: an entry whose time is over, or whose real
// server was deleted, is there until it is swept.
func (s stays) bindings() (all []model.Binding, err error) {
	cpus := s.realCPUs.len() / max(s.reals.len(), 1)
	now := ticksNow()
	rawKey, rawValue := make([]byte, s.keys.size), make([]byte, s.values.size)
	it := s.m.Iterate()
	for it.Next(&rawKey, &rawValue) {
		k, v := s.keys.read(rawKey), s.values.read(rawValue)
		if int(k.Service) >= s.services.len() || int(v.Real) >= s.reals.len() {
			continue
		}
		left := int32(v.Expires - now)
		if left <= 0 || s.realCPUs.at(int(v.Real)*cpus).Gen != v.RealGen {
			continue
		}
		of, to := s.services.at(int(k.Service)), s.reals.at(int(v.Real))
		all = append(all, model.Binding{Service: keyOfWire(of.Key), Client: addrOfWire(k.Client), Real: realOf(&to).Addr, Expires: ofTicks(left)})
	}
	if err := it.Err(); err != nil {
		return all, fmt.Errorf("list the clients of persistent services: %w", err)
	}
	return all, nil
}

// Bindings lists which client of a persistent service has which real server.
func (p *Plane) Bindings(context.Context) ([]model.Binding, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	return stays{m: p.t.Stays, keys: rowsOf([]tcStayKey{{}}), values: rowsOf([]tcStay{{}}),
		services: rowsOf(p.t.services), reals: rowsOf(p.t.reals), realCPUs: rowsOf(p.t.realCPUs)}.bindings()
}

// Bindings is what the table held of them when it was set aside, but for those
// that are over.
func (r *Retired) Bindings() ([]model.Binding, error) {
	spec, err := loadTc()
	if err != nil {
		return nil, err
	}
	m := r.maps[tcMapStays]
	keys, err1 := layoutOf[tcStayKey](m, spec.Types, "stay_key")
	values, err2 := layoutOf[tcStay](m, spec.Types, "stay")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if keys.size != int(m.KeySize()) || values.size != int(m.ValueSize()) {
		return nil, fmt.Errorf("%s: %w", m, ErrOtherVersion)
	}
	return stays{m: m, keys: keys, values: values, services: r.services, reals: r.reals, realCPUs: r.realCPUs}.bindings()
}

// Bind takes bindings over. A client that was bound here meanwhile stays where
// it is, and one whose service or real server is not in the table gets another.
func (p *Plane) Bind(_ context.Context, bindings []model.Binding) (bound int, err error) {
	const together = 4096 // others need the table, too
	for some := range slices.Chunk(bindings, together) {
		n, err := p.bind(some)
		if bound += n; errors.Is(err, unix.E2BIG) {
			return bound, fmt.Errorf("no room for more than %d clients of persistent services: %d of %d were taken over: batuta run --ebpf-table clients=N makes more", p.t.Stays.MaxEntries(), bound, len(bindings))
		}
		if err != nil {
			return bound, fmt.Errorf("take over clients of persistent services: %w", err)
		}
	}
	return bound, nil
}

// bind enters some bindings: one by one, since the kernel knows no batch that
// leaves alone what is there.
func (p *Plane) bind(bindings []model.Binding) (bound int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, plane.ErrClosed
	}
	now := ticksNow()
	for _, b := range bindings {
		v := p.state.services[b.Service]
		if v == nil || !v.Persistence.Enabled || b.Expires <= 0 {
			continue
		}
		at, ok := v.find(b.Real)
		if !ok {
			continue
		}
		mask, client := p.t.services[v.slot].Mask, wireAddr(b.Client)
		for i := range client.D {
			client.D[i] &= mask.D[i]
		}
		slot := v.reals[at].slot
		// However long the other plane was told to keep it.
		stay := tcStay{Real: slot, RealGen: atomic.LoadUint32(&p.t.realCPUs[int(slot)*p.t.cpus].Gen), Expires: now + toTicks(min(b.Expires, v.Persistence.Timeout))}
		switch err := p.t.Stays.Update(tcStayKey{Client: client, Service: v.slot}, stay, ebpf.UpdateNoExist); {
		case err == nil:
			bound++
		case !errors.Is(err, ebpf.ErrKeyExist):
			return bound, err
		}
	}
	return bound, nil
}
