package lab_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestProgramInstructions counts the instructions of the eBPF plane's ingress
// program alone for each path that a packet may take (BenchmarkProgram of the
// plane, in a machine whose clock counts instructions): the same on any
// machine, however busy. make bench-program.
func TestProgramInstructions(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "program" {
		t.Skip("a measurement: make bench-program")
	}
	v := debianVM(t)
	v.Counted, v.Memory = true, 2048
	v.Files = map[string]string{"bin/tests": os.Getenv("BATUTA_TEST_BINARY")}
	if v.Files["bin/tests"] == "" {
		v.Files["bin/tests"] = testBinary(t, "internal/plane/ebpf")
	}
	v.Env = []string{"BATUTA_REQUIRE_ROOT=1"}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	out, status, err := v.Run(ctx, "sh", "-c", "modprobe -a veth sch_ingress cls_bpf; uname -r; cd /tmp; exec tests -test.run='^$' -test.bench='^BenchmarkProgram$' -test.benchtime=20x")
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v\n%s", status, err, out)
	}
	var table strings.Builder
	fmt.Fprintf(&table, "Linux %s\n| path | instructions |\n|---|--:|\n", strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0]))
	for _, m := range regexp.MustCompile(`BenchmarkProgram/(\S+)\s+\d+\s+([\d.]+) ns/packet`).FindAllStringSubmatch(string(out), -1) {
		fmt.Fprintf(&table, "| %s | %.5s |\n", strings.ReplaceAll(m[1], "_", " "), m[2])
	}
	t.Logf("\n%s", table.String())
}
