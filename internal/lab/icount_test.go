package lab_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
)

// inVM is set in the environment of tests that run in the virtual machine.
const inVM = "BATUTA_VM"

// debianVM is a machine with Debian's kernel, and what the tests want in it;
// what few of them want is named, and makes it another machine.
func debianVM(t *testing.T, more ...string) lab.VM {
	t.Helper()
	requireRoot(t)
	tree, err := lab.DebianTree(t.Context(), slices.Concat([]string{"nftables", "ipvsadm", "ethtool"}, lab.VMPackages, more)...)
	if errors.Is(err, lab.ErrNoTree) && os.Getenv("BATUTA_REQUIRE_ROOT") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return lab.VM{Tree: tree}
}

// TestInstructions counts instructions per packet of the whole way through the
// director, of all planes in one boot: make bench-icount.
func TestInstructions(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "icount" {
		t.Skip("a measurement: make bench-icount")
	}
	v := debianVM(t)
	v.Counted, v.Memory, v.Output = true, 4096, os.Stderr
	v.Files = map[string]string{"bin/tests": testBinary(t, "internal/lab")}
	v.Env = []string{inVM + "=icount", "BATUTA_CASES=" + os.Getenv("BATUTA_CASES")}
	// Two networks within the machine, each between two cards of its own.
	for i, mac := range []string{"client", "outside", "inside", "rack"} {
		hub := string(rune('0' + i/2))
		v.Devices = append(v.Devices, "-netdev", "hubport,id="+mac+",hubid="+hub,
			"-device", "virtio-net-pci,netdev="+mac+",mac=02:00:00:00:00:0"+string(rune('1'+i))+",romfile=")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
	defer cancel()
	out, status, err := v.Run(ctx, "tests", "-test.v", "-test.run=^TestInstructionsWithin$", "-test.timeout=0")
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v\n%s", status, err, out)
	}
}
