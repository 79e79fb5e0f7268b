package lab_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestProgramInstructions counts the instructions of the eBPF plane's programs
// alone, at tc's ingress and at XDP, for each path that a packet may take
// (BenchmarkProgram of the plane, in a machine whose clock counts
// instructions): the same on any machine, however busy. make bench-program.
func TestProgramInstructions(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "program" {
		t.Skip("a measurement: make bench-program")
	}
	out := countedPlane(t, nil, "-test.run='^$' -test.bench='^BenchmarkProgram$' -test.benchtime=20x")
	var table strings.Builder
	fmt.Fprintf(&table, "Linux %s\n| path | at tc | at XDP |\n|---|--:|--:|\n", strings.TrimSpace(strings.SplitN(out, "\n", 2)[0]))
	tc := ""
	for _, m := range regexp.MustCompile(`BenchmarkProgram/(tc|XDP)/(\S+)\s+\d+\s+(\d+)(?:\.\d+)? ns/packet`).FindAllStringSubmatch(out, -1) {
		if m[1] == "tc" { // and the same path at XDP comes next
			tc = m[3]
			continue
		}
		fmt.Fprintf(&table, "| %s | %s | %s |\n", strings.ReplaceAll(m[2], "_", " "), tc, m[3])
	}
	t.Logf("\n%s", table.String())
}

// TestStreamCounted measures a TCP stream by each method of forwarding
// (TestBenchStream of the plane) in a machine of one processor whose clock counts
// instructions: make bench-stream.
func TestStreamCounted(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "stream" {
		t.Skip("a measurement: make bench-stream")
	}
	countedPlane(t, os.Stderr, "-test.v -test.run='^TestBenchStream$'", "BATUTA_BENCH=stream", "BATUTA_COUNTED=1", "ROUNDS=3")
}

// countedPlane runs tests of the eBPF plane in a machine whose clock counts
// instructions, and gives what they say; its first line is the kernel's name.
func countedPlane(t *testing.T, watch io.Writer, args string, env ...string) string {
	t.Helper()
	v := debianVM(t)
	v.Counted, v.Memory, v.Output = true, 2048, watch
	v.Files = map[string]string{"bin/tests": os.Getenv("BATUTA_TEST_BINARY")}
	if v.Files["bin/tests"] == "" {
		v.Files["bin/tests"] = testBinary(t, "internal/plane/ebpf")
	}
	v.Env = append(env, "BATUTA_REQUIRE_ROOT=1")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	out, status, err := v.Run(ctx, "sh", "-c", "modprobe -a veth sch_ingress cls_bpf ipip sit ip6_tunnel; uname -r; cd /tmp; exec tests "+args)
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v\n%s", status, err, out)
	}
	return string(out)
}
