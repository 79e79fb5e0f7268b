package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/rig"
)

// TestBenchConnections measures short TCP connections through a director, and
// requests on such as stay open, by turns: plain forwarding, IPVS where the
// kernel has it, nftables, the eBPF plane and HAProxy (mode tcp). First on this
// kernel, then on Debian's, in one boot of a machine whose clock counts
// instructions: make bench-connections.
//
//	client ──── director ──── rack       each a network namespace
//	10.1.0.10+  10.1.0.100    10.240.0.20 to .23
func TestBenchConnections(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "connections" {
		t.Skip("a measurement: make bench-connections")
	}
	v := debianVM(t, "haproxy")
	where := os.Getenv("WHERE") // "", host or vm
	if where != "vm" {
		t.Run("this kernel", func(t *testing.T) { connectionsHere(t, v.Tree) })
	}
	if where == "host" {
		return
	}
	t.Run("Debian's kernel", func(t *testing.T) {
		v.Counted, v.Memory, v.Output = true, 2048, os.Stderr
		v.Files = map[string]string{"bin/tests": testBinary(t, "internal/lab")}
		v.Env = []string{inVM + "=connections", "GOMAXPROCS=1", "BATUTA_COUNTED=1", "ROUNDS=" + os.Getenv("ROUNDS")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		out, status, err := v.Run(ctx, "tests", "-test.v", "-test.run=^TestConnectionsWithin$", "-test.timeout=0")
		if err != nil || status != 0 {
			t.Fatalf("exit status %d, %v\n%s", status, err, out)
		}
	})
}

// connectionsHere runs it in namespaces of its own, with HAProxy from a tree.
func connectionsHere(t *testing.T, tree string) {
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	haproxy := fmt.Sprintf("#!/bin/sh\nexec %[1]s/lib64/ld-linux-x86-64.so.2 --library-path %[1]s/lib/x86_64-linux-gnu:%[1]s/usr/lib/x86_64-linux-gnu %[1]s/usr/sbin/haproxy \"$@\"\n", tree)
	if err := errors.Join(os.Symlink(self, filepath.Join(bin, "tests")), os.WriteFile(filepath.Join(bin, "haproxy"), []byte(haproxy), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.v", "-test.run=^TestConnectionsWithin$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), inVM+"=connections", "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

const connectionsNetwork = `
	mount --make-rprivate /; mount -t tmpfs run /run; mkdir -p /run/netns /run/bpf; mount -t bpf bpf /run/bpf
	modprobe -a veth ip_vs ip_vs_rr nf_conntrack nf_tables nft_nat nft_numgen nft_chain_nat sch_ingress cls_bpf 2>/dev/null || true
	ip netns add client; ip netns add director; ip netns add rack
	ip link add c0 netns client type veth peer name outside netns director
	ip link add inside netns director type veth peer name r0 netns rack
	for i in $(seq 10 25); do ip -n client addr add 10.1.0.$i/16 dev c0; done
	ip -n director addr add 10.1.0.1/16 dev outside; ip -n director addr add 10.1.0.100/32 dev outside
	ip -n director addr add 10.240.0.1/16 dev inside
	for i in 20 21 22 23; do ip -n rack addr add 10.240.0.$i/16 dev r0; done
	for l in "client c0" "director outside" "director inside" "rack r0"; do set -- $l; ip -n $1 link set lo up; ip -n $1 link set $2 up; done
	ip -n client route add default via 10.1.0.1; ip -n rack route add default via 10.240.0.1
	for n in client director rack; do
		nsenter --net=/run/netns/$n sh -c 'cd /proc/sys/net/ipv4; echo 1024 65535 >ip_local_port_range; echo 1 >tcp_tw_reuse; echo 4096 >tcp_max_syn_backlog; echo 1 >ip_forward'
	done`

const haproxyConfig = `global
	maxconn 4000
	pidfile /run/haproxy.pid
defaults
	mode tcp
	timeout connect 5s
	timeout client 60s
	timeout server 60s
listen service
	bind 10.1.0.100:9
	balance roundrobin
`

// The rivals of connections: those of packets that make sense here, and HAProxy.
func connectionRivals() (all []rival) {
	for _, r := range rivals {
		if r.name == "forward" || r.name == "IPVS" || r.name == "nft" || r.name == "tc" {
			all = append(all, r)
		}
	}
	return append(all, rival{"HAProxy", "haproxy -D -f /run/haproxy.cfg", `pid=$(cat /run/haproxy.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done`, vmService})
}

// result is what one rival did in all rounds.
type result struct {
	perSecond, cpu []float64 // cpu: microseconds a connection, the whole rack's
	connection     []time.Duration
	request        []time.Duration
}

func TestConnectionsWithin(t *testing.T) {
	if os.Getenv(inVM) != "connections" {
		t.Skip("runs in the namespaces or the virtual machine of TestBenchConnections")
	}
	sh(t, connectionsNetwork)
	g := &guest{T: t}
	g.tables("tcp", 4)
	config := haproxyConfig
	for i, a := range vmServers(4) {
		config += fmt.Sprintf("\tserver s%d %s:9\n", i, a)
	}
	g.write("/run/haproxy.cfg", config)
	if root := unifiedGroups(); root != "" { // planes lead the sockets of no one else
		group := filepath.Join(root, fmt.Sprintf("batuta-bench-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(group) })
		t.Setenv("BATUTA_CGROUP", group)
	}
	// A second of a machine that counts instructions takes ten and more.
	rounds, seconds, rate, open := benchCount(t, "ROUNDS", 7), 2*time.Second, 2000, 1000
	if os.Getenv("BATUTA_COUNTED") != "" {
		rounds, seconds, rate, open = benchCount(t, "ROUNDS", 3), 300*time.Millisecond, 500, 100
	}
	servers := begin(t, "/run/netns/rack", "ready", append([]string{"answer"}, socketsOf(vmServers(4))...)...)
	t.Cleanup(func() { _ = servers.in.Close(); _ = servers.cmd.Wait() })
	var from []netip.AddrPort
	for i := range 16 {
		from = append(from, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(10 + i)}), 0))
	}
	all := map[string]*result{}
	for range rounds {
		for _, r := range connectionRivals() {
			if r.name == "IPVS" && exec.CommandContext(t.Context(), "ipvsadm", "-L").Run() != nil {
				continue // this kernel has none
			}
			if all[r.name] == nil {
				all[r.name] = &result{}
			}
			onDirector(t, r.up)
			to := []netip.AddrPort{r.to}
			if r.to == vmForward {
				to = nil
				for _, a := range vmServers(4) {
					to = append(to, netip.AddrPortFrom(a, vmForward.Port()))
				}
			}
			// Threads of the kernel that carry what nobody's own time did.
			pids := append(rig.Named(t, "ksoftirqd/*"), servers.cmd.Process.Pid)
			if r.name == "HAProxy" {
				pid, err := strconv.Atoi(strings.TrimSpace(sh(t, "cat /run/haproxy.pid")))
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			all[r.name].round(t, errand{To: to, From: from, Sockets: 32, For: seconds}, errand{To: to, From: from, Sockets: open, For: seconds, Rate: rate}, pids)
			onDirector(t, r.down)
		}
	}
	connectionTable(t, all, rounds)
}

// onDirector runs a script in its network namespace, and in nothing else of its
// own: ip netns exec would hide the control groups.
func onDirector(t *testing.T, script string) {
	t.Helper()
	sh(t, "export BATUTA_SERVERS=4\nnsenter --net=/run/netns/director bash -ec "+quoted(script))
}

// round adds one round's numbers.
func (r *result) round(t *testing.T, connections, requests errand, pids []int) {
	t.Helper()
	before := rig.Ran(t, pids...)
	got := carryOut(t, connections)
	others := float64(rig.Ran(t, pids...)-before) / float64(got.Made)
	n := len(got.Latency)
	for i, one := range got.By[:4] {
		if one < n/8 {
			t.Fatalf("server %d answered %d of %d requests: that is no balancing", i, one, n)
		}
	}
	r.perSecond = append(r.perSecond, float64(n)/got.Took.Seconds())
	r.cpu = append(r.cpu, (others+float64(got.CPU)/float64(n))/1000)
	r.connection = append(r.connection, got.Latency...)
	r.request = append(r.request, carryOut(t, requests).Latency...)
}

// carryOut has the client do something.
func carryOut(t *testing.T, e errand) (got asked) {
	t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "nsenter", "--net=/run/netns/client", "tests", "lab", "ask")
	var trouble bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &trouble
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil {
		t.Fatalf("client: %v: %s", err, trouble.String())
	}
	return got
}

func socketsOf(addrs []netip.Addr) (all []string) {
	for _, a := range addrs {
		all = append(all, netip.AddrPortFrom(a, vmService.Port()).String())
	}
	return all
}

// unifiedGroups is where control groups of version 2 are mounted; "" where they are not.
func unifiedGroups() string {
	text, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// connectionTable prints the results as rows of docs/performance.md.
func connectionTable(t *testing.T, all map[string]*result, rounds int) {
	counted := os.Getenv("BATUTA_COUNTED") != ""
	unit := "µs"
	if counted {
		unit = "thousand instructions"
	}
	fmt.Fprintf(os.Stdout, "Linux %s; medians of %d rounds (their range); CPU and times in %s\n", strings.TrimSpace(sh(t, "uname -r")), rounds, unit)
	fmt.Fprintf(os.Stdout, "| by way of | connections/s | CPU a connection, whole rack | above forwarding | connect to answer: p50 | p99 | request: p50 | p99 | p99.9 |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, p := range connectionRivals() {
		r := all[p.name]
		if r == nil {
			continue
		}
		var above string
		if p.name != "forward" {
			each := make([]float64, rounds)
			for i := range each {
				each[i] = r.cpu[i] - all["forward"].cpu[i]
			}
			above = spread(each, "%+.1f")
		}
		fmt.Fprintf(os.Stdout, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", p.name, spread(r.perSecond, "%.0f"), spread(r.cpu, "%.1f"), above,
			micros(r.connection, 500), micros(r.connection, 990), micros(r.request, 500), micros(r.request, 990), micros(r.request, 999))
	}
}

// spread writes the median of all rounds, and their range.
func spread(all []float64, format string) string {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	return fmt.Sprintf(format+" ("+format+"–"+format+")", sorted[n/2], sorted[0], sorted[n-1])
}

// micros sorts, and writes microseconds.
func micros(all []time.Duration, thousandth int) string {
	slices.Sort(all)
	return fmt.Sprintf("%.0f", float64(all[(len(all)-1)*thousandth/1000])/1000)
}
