package ebpf

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// publish gives services their rings, each by one store, and enters the keys
// of new ones once their rows are complete. Rings are made by as many
// goroutines as there are processors: Maglev tables of a large configuration
// take longer than all else. It answers for each service.
func (s *state) publish(t *tables, of []*service) []error {
	errs := make([]error, len(of))
	workers := max(1, min(runtime.GOMAXPROCS(0), len(of)))
	for len(s.makers) < workers {
		s.makers = append(s.makers, ringMaker{})
	}
	var (
		next atomic.Int64
		all  sync.WaitGroup
	)
	work := func(m *ringMaker) {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(of) {
				return
			}
			errs[i] = s.publishRing(t, of[i], m)
		}
	}
	for i := 1; i < workers; i++ {
		all.Go(func() { work(&s.makers[i]) })
	}
	work(&s.makers[0])
	all.Wait()
	s.list(t, of, errs)
	return errs
}

// publishRing gives one service its ring.
func (s *state) publishRing(t *tables, v *service, m *ringMaker) error {
	turns := m.ring(v.Scheduler, v.reals)
	row := &t.services[v.slot]
	writeService(row, v.VirtualService)
	if t.ringIs(row, v.reals, turns) {
		return nil
	}
	at := uint32(0)
	if len(turns) > 0 {
		s.ringMu.Lock()
		var ok bool
		at, ok = s.ringSpace.take(entriesOf(uint64(len(turns))).n)
		s.ringMu.Unlock()
		if !ok {
			return fmt.Errorf("no room for a ring of %d turns among %d: batuta run --ebpf-table turns=N makes more", len(turns), 2*len(t.rings))
		}
	}
	for i, n := range turns {
		t.rings[at+uint32(i)>>1].Real[i&1] = v.reals[n].slot
	}
	before := entriesOf(atomic.SwapUint64(&row.Ring, uint64(at)<<32|uint64(len(turns))))
	s.ringMu.Lock()
	s.ringSpace.give(before.from, before.n)
	s.ringMu.Unlock()
	return nil
}

// entriesOf is where a published ring lies among the entries, each of which
// holds two turns.
func entriesOf(ring uint64) extent { return extent{uint32(ring >> 32), (uint32(ring) + 1) / 2} }

// ringIs tells whether the published ring is already the one wanted.
func (t *tables) ringIs(row *tcService, reals []*real, turns []int) bool {
	have := atomic.LoadUint64(&row.Ring)
	if int(uint32(have)) != len(turns) {
		return false
	}
	for i, n := range turns {
		if t.rings[uint32(have>>32)+uint32(i)>>1].Real[i&1] != reals[n].slot {
			return false
		}
	}
	return true
}

// list enters the keys of new services, all by one system call: from then on
// packets find them.
func (s *state) list(t *tables, of []*service, errs []error) {
	var (
		keys  []tcServiceKey
		slots []uint32
		fresh []int
	)
	for i, v := range of {
		if v.listed || errs[i] != nil {
			continue
		}
		row := &t.services[v.slot]
		row.Used = 1
		keys, slots, fresh = append(keys, row.Key), append(slots, v.slot), append(fresh, i)
	}
	if len(keys) == 0 {
		return
	}
	done, err := t.ServiceSlots.BatchUpdate(keys, slots, nil)
	for n, i := range fresh {
		if err == nil || n < done {
			of[i].listed = true
			continue
		}
		t.services[of[i].slot].Used = 0
		errs[i] = fmt.Errorf("enter service: %w", err)
	}
}
