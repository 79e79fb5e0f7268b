package lab_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The eBPF plane on the oldest kernel that it is made for, Debian 12's: what
// its verifier says of all programs, and the plane's own tests (golden packets,
// the suite on clsact, a duel with the model); and there the filter of heartbeat sockets, and the verifier on the programs of
// the kernel's answers and of checks by the virtual address. make test-plane-kernel runs it.
func TestPlaneOnDebian12(t *testing.T) {
	if os.Getenv("BATUTA_KERNEL") != "plane" {
		t.Skip("BATUTA_KERNEL is not \"plane\": make test-plane-kernel runs it")
	}
	v := debianVM(t)
	v.Memory, v.Processors, v.Output = 2048, 2, os.Stderr
	v.Files = map[string]string{"bin/tests": testBinary(t, "internal/plane/ebpf"), "bin/link-tests": testBinary(t, "internal/link"),
		"bin/responder-tests": testBinary(t, "internal/link/responder"), "bin/via-tests": testBinary(t, "internal/check/via")}
	plane := filepath.Join("..", "plane", "ebpf")
	if err := fs.WalkDir(os.DirFS(plane), "testdata", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			v.Files[name] = filepath.Join(plane, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	v.Env = []string{"BATUTA_REQUIRE_ROOT=1", "BATUTA_SEED=1", "BATUTA_PACKETS=2000"}
	run := os.Getenv("BATUTA_RUN")
	if run == "" {
		run = "TestVerifier|TestGoldenPackets|TestAgainst|TestConformanceClsact|TestVLAN"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Minute)
	defer cancel()
	out, status, err := v.Run(ctx, "sh", "-c", "modprobe -a veth 8021q sch_ingress cls_bpf nfnetlink; uname -r; cp -r /mnt/testdata /tmp; cd /tmp; "+
		"ip link set lo up; link-tests -test.v -test.run='TestSieve|TestSiftedNumbers' && "+
		"responder-tests -test.v -test.run='^TestVerifier$' && via-tests -test.v -test.run='^TestVerifier$' && exec tests -test.v -test.timeout=45m -test.run='"+run+"'")
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v\n%s", status, err, out)
	}
}
