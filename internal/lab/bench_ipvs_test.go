package lab_test

import (
	"cmp"
	"os"
	"testing"

	"github.com/batuta-ha/batuta/internal/lab"
)

// TestBenchIPVS measures the IPVS plane beside ipvsadm in one kernel: make bench-ipvs.
func TestBenchIPVS(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "ipvs" {
		t.Skip("a measurement: make bench-ipvs")
	}
	tree := ipvsKernel(t).Tree
	k := lab.Kernel{Tree: tree, Memory: 1024, Env: []string{inKernel + "=1", "BATUTA_BENCH=ipvs"},
		Files: map[string]string{"bin/tests": testBinary(t, "internal/plane/ipvs")}}
	out, status, err := k.Run(t.Context(), "tests", "-test.v", "-test.run="+cmp.Or(os.Getenv("BATUTA_RUN"), "^TestBench"), "-test.timeout=30m")
	t.Logf("in the kernel:\n%s", out)
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v", status, err)
	}
}
