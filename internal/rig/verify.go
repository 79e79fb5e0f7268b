package rig

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// Verify has the kernel's verifier look at each program of an object by itself,
// and logs how many instructions that took: it gives up at a million, and how
// many it needs depends on the kernel. other, which may be nil, makes of a
// program that was refused one that is loaded in its place.
func Verify(t *testing.T, spec *ebpf.CollectionSpec, other func(*ebpf.ProgramSpec)) {
	t.Helper()
	if len(spec.Programs) == 0 {
		t.Fatal("an object without programs")
	}
	for name := range spec.Maps {
		spec.Maps[name].Pinning = ebpf.PinNone
	}
	for _, program := range slices.Sorted(maps.Keys(spec.Programs)) {
		one := spec.Copy()
		maps.DeleteFunc(one.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return name != program })
		c, err := ebpf.NewCollection(one)
		if err != nil && other != nil {
			other(one.Programs[program])
			c, err = ebpf.NewCollection(one)
		}
		if err != nil {
			var why *ebpf.VerifierError
			if errors.As(err, &why) && len(why.Log) > 30 {
				t.Errorf("%s: %v\n%s", program, err, why.Log[len(why.Log)-30:])
				continue
			}
			t.Errorf("%s: %v", program, err)
			continue
		}
		info, err := c.Programs[program].Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.VerifiedInstructions()
		t.Logf("%s: the verifier looked at %d instructions", program, n)
		c.Close()
	}
}
