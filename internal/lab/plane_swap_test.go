package lab_test

import (
	"cmp"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
)

// A change of planes needs a kernel that has IPVS and eBPF: Debian 12's, in a
// machine of its own. internal/node's TestSwapOfPlanes runs there, with real
// connections (BATUTA_CONNECTIONS, 10,000 unless told). make test-plane-swap
// runs it; it takes some minutes.
func TestSwapOnDebian12(t *testing.T) {
	if os.Getenv("BATUTA_KERNEL") != "swap" {
		t.Skip("BATUTA_KERNEL is not \"swap\": make test-plane-swap runs it")
	}
	requireRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Minute)
	defer cancel()
	tree, err := lab.DebianTree(ctx, lab.VMPackages...)
	if err != nil {
		t.Fatal(err)
	}
	vm := lab.VM{Tree: tree, Memory: 4096, Processors: 2, Output: os.Stderr,
		Env:   []string{"BATUTA_SWAP_KERNEL=1", "BATUTA_CONNECTIONS=" + cmp.Or(os.Getenv("BATUTA_CONNECTIONS"), "10000")},
		Files: map[string]string{"bin/tests": testBinary(t, "internal/node")}}
	out, status, err := vm.Run(ctx, "sh", "-c", "ulimit -n 1000000; modprobe -a ip_vs ip_vs_rr nf_conntrack veth sch_ingress cls_bpf && uname -r && exec tests -test.v -test.timeout 45m -test.run '^TestSwapOfPlanes$'")
	t.Logf("in the kernel:\n%s", out)
	if err != nil || status != 0 || !strings.Contains(string(out), "--- PASS: TestSwapOfPlanes") {
		t.Fatalf("exit status %d, %v", status, err)
	}
}
