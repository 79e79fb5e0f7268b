package ebpf

import (
	"errors"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// extent is a piece of an array: elements from to from+n.
type extent struct{ from, n uint32 }

// space hands out pieces of an array that programs read without locks. What
// is given back may still be under a program's eyes, so it is kept aside
// until every program that could see it has ended.
type space struct {
	free   []extent // sorted, never adjacent
	aside  []extent
	settle func() error // returns when all programs running at the call have ended
}

func newSpace(n uint32) *space {
	return &space{free: []extent{{0, n}}, settle: gracePeriod}
}

// gracePeriod waits until every program that runs now has ended: programs run
// under RCU.
func gracePeriod() error { return firstThatWorks(waitByBarrier, waitByMap) }

func firstThatWorks(ways ...func() error) error {
	var errs []error
	for _, way := range ways {
		err := way()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// waitByBarrier has MEMBARRIER_CMD_GLOBAL wait, which kernels that were started
// with nohz_full refuse (membarrier(2)).
func waitByBarrier() error {
	const cmdGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0); errno != 0 {
		return os.NewSyscallError("membarrier", errno)
	}
	return nil
}

// waitByMap writes into a map of maps: before such a write returns the kernel
// waits for all programs that may still have the map of before.
func waitByMap() error {
	inner := &ebpf.MapSpec{Name: "wait_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	m, err := ebpf.NewMap(inner)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "wait", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return err
	}
	defer func() { _ = outer.Close() }()
	return outer.Put(uint32(0), m)
}

// take gives n elements, false if there is no such piece.
func (s *space) take(n uint32) (uint32, bool) {
	if at, ok := s.cut(n); ok || len(s.aside) == 0 {
		return at, ok
	}
	if s.settle() != nil {
		return 0, false
	}
	for _, e := range s.aside {
		s.merge(e)
	}
	s.aside = nil
	return s.cut(n)
}

func (s *space) cut(n uint32) (uint32, bool) {
	for i := range s.free {
		e := &s.free[i]
		if e.n < n {
			continue
		}
		at := e.from
		e.from, e.n = e.from+n, e.n-n
		if e.n == 0 {
			s.free = slices.Delete(s.free, i, i+1)
		}
		return at, true
	}
	return 0, false
}

// give returns elements.
func (s *space) give(from, n uint32) {
	if n > 0 {
		s.aside = append(s.aside, extent{from, n})
	}
}

// reserve takes exactly these elements, which must be free.
func (s *space) reserve(from, n uint32) bool {
	if n == 0 {
		return true
	}
	for i, e := range s.free {
		if from < e.from || from+n > e.from+e.n {
			continue
		}
		rest := []extent{}
		if from > e.from {
			rest = append(rest, extent{e.from, from - e.from})
		}
		if end := e.from + e.n; end > from+n {
			rest = append(rest, extent{from + n, end - from - n})
		}
		s.free = slices.Replace(s.free, i, i+1, rest...)
		return true
	}
	return false
}

func (s *space) merge(e extent) {
	i, _ := slices.BinarySearchFunc(s.free, e.from, func(f extent, from uint32) int { return int(int64(f.from) - int64(from)) })
	s.free = slices.Insert(s.free, i, e)
	if i+1 < len(s.free) && s.free[i].from+s.free[i].n == s.free[i+1].from {
		s.free[i].n += s.free[i+1].n
		s.free = slices.Delete(s.free, i+1, i+2)
	}
	if i > 0 && s.free[i-1].from+s.free[i-1].n == s.free[i].from {
		s.free[i-1].n += s.free[i].n
		s.free = slices.Delete(s.free, i, i+1)
	}
}
