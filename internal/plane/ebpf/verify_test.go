package ebpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
)

// The kernel's verifier looks at a million instructions of a program at most;
// how many it needs depends on the kernel. make test-plane-kernel asks that of
// the oldest one.
func TestVerifier(t *testing.T) {
	requireRoot(t)
	for _, x := range []struct {
		name   string
		load   func() (*ebpf.CollectionSpec, error)
		traced bool // as batuta trace loads it
	}{
		{name: "tc", load: loadTc},
		{name: "tc, traced", load: loadTc, traced: true},
		{name: "xdp", load: loadXdp},
		{name: "sweep", load: loadSweep},
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
			for name := range spec.Maps {
				spec.Maps[name].Pinning = ebpf.PinNone
			}
			for program := range spec.Programs {
				one := spec.Copy()
				for other := range one.Programs {
					if other != program {
						delete(one.Programs, other)
					}
				}
				c, err := ebpf.NewCollection(one)
				if err != nil && x.name == "sweep" { // as Plane.load
					asPacketProgram(one.Programs[program])
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
		})
	}
}
