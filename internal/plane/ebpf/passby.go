package ebpf

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// PassBy leaves connections that another plane in the kernel carries to it:
// what would open one of flows anew passes by to the stack. Each call gives
// the whole set; nil is none.
func (p *Plane) PassBy(_ context.Context, flows []model.Flow) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	want := map[tcTuple]bool{}
	for _, f := range flows {
		want[tcTuple{Src: wireAddr(f.Client.Addr()), Sport: wirePort(f.Client.Port()),
			Dst: wireAddr(f.Virtual.Addr()), Dport: wirePort(f.Virtual.Port()), Proto: f.Proto.Number()}] = true
	}
	features := atomic.LoadUint32(&p.t.control.Features) &^ uint32(tcFeatureFEATURE_ELSEWHERE)
	if len(want) > 0 {
		features |= uint32(tcFeatureFEATURE_ELSEWHERE)
	}
	err := p.t.passBy(want)
	atomic.StoreUint32(&p.t.control.Features, features)
	if err != nil {
		return fmt.Errorf("leave connections to another plane: %w", err)
	}
	return nil
}

// passBy has the programs know this set of connections, by a map of its own
// while there are any.
func (t *tables) passBy(want map[tcTuple]bool) error {
	const only = uint32(0)
	var m *ebpf.Map
	switch err := t.Elsewhere.Lookup(only, &m); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
	case err != nil:
		return err
	default:
		defer func() { _ = m.Close() }()
	}
	if len(want) == 0 {
		if m == nil {
			return nil
		}
		return t.Elsewhere.Delete(only)
	}
	if m == nil || int(m.MaxEntries()) < len(want) {
		bigger, err := ebpf.NewMap(&ebpf.MapSpec{Name: "aside", Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(tcTuple{})), ValueSize: 4, MaxEntries: uint32(len(want)), Flags: unix.BPF_F_NO_PREALLOC})
		if err != nil {
			return err
		}
		defer func() { _ = bigger.Close() }()
		if err := putAll(bigger, want); err != nil {
			return err
		}
		return t.Elsewhere.Put(only, bigger)
	}
	var (
		key  tcTuple
		zero uint32
		gone []tcTuple
	)
	it := m.Iterate()
	for it.Next(&key, &zero) {
		if !want[key] {
			gone = append(gone, key)
		}
	}
	errs := []error{it.Err()}
	for _, k := range gone {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, putAll(m, want))...)
}

func putAll(m *ebpf.Map, want map[tcTuple]bool) error {
	for k := range want {
		if err := m.Put(k, uint32(0)); err != nil {
			return err
		}
	}
	return nil
}
