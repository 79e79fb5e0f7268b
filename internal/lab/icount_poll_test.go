package lab_test

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// polls counts what the director's cards cost: the time that the driver's poll
// functions take, with all that packets go through in them. What the sender
// and the rack do, and their waiting, is not in it.
type polls struct{ sums *ebpf.Map }

// polled is what a card's polls have taken. Layout as the programs write it.
type polled struct{ Nanoseconds, Polls, Packets uint64 }

const maxIfindex = 64

// Registers in struct pt_regs (x86-64).
const (
	regsDI = 112
	regsAX = 80
)

// stampPolls stamps the beginnings and ends of virtio_net's poll functions.
// There is one processor, and these do not nest.
func stampPolls(t testing.TB) *polls {
	t.Helper()
	dev, ifindex, err := napiOffsets()
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string, size uint32, entries uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: entries})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	begun, sums := open("begun", 16, 1), open("sums", 24, maxIfindex)
	// r7: the value of a map at the key at fp-16; the program ends without one.
	lookup := func(m *ebpf.Map) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -16), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "end"), asm.Mov.Reg(asm.R7, asm.R0),
		}
	}
	end := asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return()}
	read := func(size int32, offset int32) asm.Instructions { // of the pointer in r3 to fp-8
		return asm.Instructions{asm.Add.Imm(asm.R3, offset), asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, -8), asm.Mov.Imm(asm.R2, size), asm.FnProbeReadKernel.Call()}
	}
	var begin asm.Instructions
	for _, part := range []asm.Instructions{
		{asm.LoadMem(asm.R3, asm.R1, regsDI, asm.DWord)},
		read(8, dev),
		{asm.LoadMem(asm.R3, asm.RFP, -8, asm.DWord), asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord)},
		read(4, ifindex),
		{asm.LoadMem(asm.R6, asm.RFP, -8, asm.Word), asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord)},
		lookup(begun),
		{asm.StoreMem(asm.R7, 8, asm.R6, asm.DWord), asm.FnKtimeGetNs.Call(), asm.StoreMem(asm.R7, 0, asm.R0, asm.DWord)},
		end,
	} {
		begin = append(begin, part...)
	}
	var finish asm.Instructions
	for _, part := range []asm.Instructions{
		{asm.Mov.Reg(asm.R6, asm.R1), asm.FnKtimeGetNs.Call(), asm.Mov.Reg(asm.R8, asm.R0), asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord)},
		lookup(begun),
		{
			asm.LoadMem(asm.R1, asm.R7, 0, asm.DWord), asm.Sub.Reg(asm.R8, asm.R1),
			asm.LoadMem(asm.R1, asm.R7, 8, asm.DWord), asm.StoreMem(asm.RFP, -16, asm.R1, asm.Word),
		},
		lookup(sums),
	} {
		finish = append(finish, part...)
	}
	add := func(at int16, from asm.Register) asm.Instructions {
		return asm.Instructions{asm.LoadMem(asm.R1, asm.R7, at, asm.DWord), asm.Add.Reg(asm.R1, from), asm.StoreMem(asm.R7, at, asm.R1, asm.DWord)}
	}
	finish = append(finish, add(0, asm.R8)...)
	finish = append(finish, asm.Mov.Imm(asm.R8, 1))
	finish = append(finish, add(8, asm.R8)...)
	finish = append(finish, asm.LoadMem(asm.R8, asm.R6, regsAX, asm.Word))
	finish = append(finish, add(16, asm.R8)...)
	finish = append(finish, end...)

	for _, symbol := range []string{"virtnet_poll", "virtnet_poll_tx"} {
		for _, x := range []struct {
			ins    asm.Instructions
			attach func(string, *ebpf.Program, *link.KprobeOptions) (link.Link, error)
		}{{begin, link.Kprobe}, {finish, link.Kretprobe}} {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.Kprobe, Instructions: x.ins, License: "GPL"})
			if err != nil {
				t.Fatalf("%+v", err)
			}
			l, err := x.attach(symbol, prog, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = l.Close(), prog.Close() })
		}
	}
	return &polls{sums: sums}
}

// of is what the polls of all these interfaces have taken.
func (p *polls) of(t testing.TB, ifindexes []uint32) (all polled) {
	t.Helper()
	for _, i := range ifindexes {
		var one polled
		if err := p.sums.Lookup(i, &one); err != nil {
			t.Fatal(err)
		}
		all.Nanoseconds += one.Nanoseconds
		all.Polls += one.Polls
		all.Packets += one.Packets
	}
	return all
}

// napiOffsets tells where a poll function's argument has its card's number.
func napiOffsets() (dev, ifindex int32, err error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, 0, err
	}
	member := func(of, name string) (int32, error) {
		var s *btf.Struct
		if err := kernel.TypeByName(of, &s); err != nil {
			return 0, err
		}
		for _, m := range s.Members {
			if m.Name == name {
				return int32(m.Offset.Bytes()), nil
			}
		}
		return 0, errors.New("struct " + of + " has no " + name)
	}
	dev, err = member("napi_struct", "dev")
	if err == nil {
		ifindex, err = member("net_device", "ifindex")
	}
	return dev, ifindex, err
}
