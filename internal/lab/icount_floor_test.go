package lab_test

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	cebpf "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Floors: programs that send each packet on to the first real server and do
// nothing else. What they cost above a drop is the kernel's and the drivers'
// part of carrying a packet by that hook, which no plane can do without; what
// Batuta's program costs above its floor is Batuta's.

const floorPin = "/run/bpf/floor"

// floorAtTC pins a program for ingress that hands packets to the kernel's
// neighbor table; tc attaches it.
func floorAtTC(t *testing.T) {
	t.Helper()
	inside := cardNamed(t, "inside")
	real4 := vmForward.Addr().As4()
	prog, err := cebpf.NewProgram(&cebpf.ProgramSpec{Type: cebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		// struct bpf_redir_neigh: family, address, and what an IPv6 address has more.
		asm.StoreImm(asm.RFP, -24, 2 /* AF_INET */, asm.Word),
		asm.StoreImm(asm.RFP, -20, int64(binary.LittleEndian.Uint32(real4[:])), asm.Word),
		asm.StoreImm(asm.RFP, -16, 0, asm.Word), asm.StoreImm(asm.RFP, -12, 0, asm.Word), asm.StoreImm(asm.RFP, -8, 0, asm.Word),
		asm.Mov.Imm(asm.R1, int32(inside.Index)), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -24),
		asm.Mov.Imm(asm.R3, 20), asm.Mov.Imm(asm.R4, 0),
		asm.FnRedirectNeigh.Call(), asm.Return(),
	}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	if err := errors.Join(prog.Pin(floorPin), prog.Close()); err != nil {
		t.Fatal(err)
	}
}

// floorAtXDP attaches a program that gives packets the rack's hardware address
// and hands them to the card that leads there. That one has a program, too,
// or it would take none from XDP.
func floorAtXDP(t *testing.T, rack net.HardwareAddr) {
	t.Helper()
	inside := cardNamed(t, "inside")
	takers, err := cebpf.NewMap(&cebpf.MapSpec{Type: cebpf.DevMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = takers.Close() }()
	if err := takers.Put(uint32(0), uint32(inside.Index)); err != nil {
		t.Fatal(err)
	}
	const data, dataEnd = 0, 4 // of struct xdp_md
	xdpPin(t, floorPin+"-in", "outside", asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, data, asm.Word), asm.LoadMem(asm.R3, asm.R1, dataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2), asm.Add.Imm(asm.R4, 14),
		asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.JGT.Reg(asm.R4, asm.R3, "out"),
		asm.StoreImm(asm.R2, 0, int64(binary.LittleEndian.Uint32(rack)), asm.Word),
		asm.StoreImm(asm.R2, 4, int64(binary.LittleEndian.Uint16(rack[4:])), asm.Half),
		asm.LoadMapPtr(asm.R1, takers.FD()), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R3, 0),
		asm.FnRedirectMap.Call(),
		asm.Return().WithSymbol("out"),
	})
	xdpPin(t, floorPin+"-out", "inside", asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()})
}

// xdpPin attaches a program of a few instructions to a card, for good.
func xdpPin(t *testing.T, pin, card string, ins asm.Instructions) {
	t.Helper()
	prog, err := cebpf.NewProgram(&cebpf.ProgramSpec{Type: cebpf.XDP, License: "GPL", Instructions: ins})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer func() { _ = prog.Close() }()
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: cardNamed(t, card).Index, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Pin(pin), l.Close()); err != nil {
		t.Fatal(err)
	}
}

func cardNamed(t *testing.T, name string) *net.Interface {
	t.Helper()
	card, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return card
}
