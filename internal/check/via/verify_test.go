package via

import (
	"testing"

	"github.com/batuta-ha/batuta/internal/rig"
)

// make test-plane-kernel asks that of the oldest kernel.
func TestVerifier(t *testing.T) {
	rig.RequireRoot(t, "eBPF programs")
	spec, err := loadViacheck()
	if err != nil {
		t.Fatal(err)
	}
	rig.Verify(t, spec, nil)
}
