package ebpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/batuta-ha/batuta/internal/rig"
)

// make test-plane-kernel asks that of the oldest kernel.
func TestVerifier(t *testing.T) {
	requireRoot(t)
	for _, x := range []struct {
		name   string
		load   func() (*ebpf.CollectionSpec, error)
		other  func(*ebpf.ProgramSpec) // as Plane.load
		traced bool                    // as batuta trace loads it
	}{
		{name: "tc", load: loadTc},
		{name: "tc, traced", load: loadTc, traced: true},
		{name: "xdp", load: loadXdp},
		{name: "sweep", load: loadSweep, other: asPacketProgram},
		{name: "socket", load: loadSocket},
	} {
		t.Run(x.name, func(t *testing.T) {
			spec, err := x.load()
			if err != nil {
				t.Fatal(err)
			}
			if x.traced {
				if err := spec.Variables[tcVarTracing].Set(uint32(1)); err != nil {
					t.Fatal(err)
				}
			}
			rig.Verify(t, spec, x.other)
		})
	}
}
