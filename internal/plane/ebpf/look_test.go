package ebpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// What comes before the plane is found, what comes after it does not matter.
func TestLook(t *testing.T) {
	requireGroup(t)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "other", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	on := func(name string) {
		l, err := link.AttachTCX(link.TCXOptions{Interface: linkOf(t, name).Index, Program: other, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	on("outside")
	p := open(t, testOptions())
	on("inside0")
	s := Look(p.o.Dir)
	if len(s.First) != 1 || s.First[0].Interface != "outside" || s.First[0].Name != "other" || s.First[0].Where != "tcx_ingress" {
		t.Errorf("programs before the plane's: %+v, want other on outside", s.First)
	}
	if s.NoSockets != "" || len(s.LRO) != 0 {
		t.Errorf("%+v, want sockets and no LRO", s)
	}
	if err := removeSockets(p.o.Dir + "/links"); err != nil {
		t.Fatal(err)
	}
	if s := Look(p.o.Dir); s.NoSockets == "" {
		t.Error("nothing is said of sockets that are not led")
	}
	if none := Look(p.o.Dir + "-none"); len(none.First) != 0 || none.NoSockets != "" {
		t.Errorf("without a plane: %+v", none)
	}
}
