package ebpf

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Either way of waiting returns no sooner than a program ends that ran when it
// was called.
func TestWaitForRunningPrograms(t *testing.T) {
	requireRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	b, err := mapBytes(m, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	state := (*[2]uint64)(unsafe.Pointer(unsafe.SliceData(b))) // begun, ended
	slow := program(t, ebpf.SchedCLS, asm.Instructions{
		asm.LoadMapValue(asm.R6, m.FD(), 0),
		asm.Mov.Imm(asm.R7, 0),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.R6, 0, asm.R1, asm.DWord),
		asm.FnKtimeGetNs.Call().WithSymbol("again"),
		asm.Add.Imm(asm.R7, 1),
		asm.JLT.Imm(asm.R7, 100_000, "again"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.R6, 8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	})
	// Else both could share a processor, which the program has to itself.
	first, last := processors(t)
	stayOn(first)
	for name, wait := range map[string]func() error{"a barrier": waitByBarrier, "a map": waitByMap} {
		for range 5 {
			if err := wait(); err != nil { // also, so that nothing is done for the first time below
				t.Fatalf("wait by %s: %v", name, err)
			}
			atomic.StoreUint64(&state[0], 0)
			atomic.StoreUint64(&state[1], 0)
			done := make(chan error)
			go func() {
				stayOn(last)
				_, err := slow.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
				done <- err
			}()
			for atomic.LoadUint64(&state[0]) == 0 {
			}
			if err := wait(); err != nil {
				t.Errorf("wait by %s: %v", name, err)
			}
			if atomic.LoadUint64(&state[1]) == 0 {
				t.Errorf("wait by %s: a program that ran before still runs", name)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
}

// processors are the first and the last one that this process may use.
func processors(t *testing.T) (first, last int) {
	t.Helper()
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	first = -1
	for i := range 8 * int(unsafe.Sizeof(allowed)) {
		if allowed.IsSet(i) {
			if last = i; first < 0 {
				first = i
			}
		}
	}
	return first, last
}

// stayOn keeps the goroutine on a processor; its thread ends with it.
func stayOn(processor int) {
	runtime.LockOSThread()
	var only unix.CPUSet
	only.Set(processor)
	_ = unix.SchedSetaffinity(0, &only)
}

// Where the kernel refuses one way there is another.
func TestWaitAnotherWay(t *testing.T) {
	refused := func() error { return unix.EINVAL }
	if err := firstThatWorks(refused, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if err := firstThatWorks(refused, func() error { return unix.EPERM }); !errors.Is(err, unix.EINVAL) || !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want both reasons", err)
	}
}
