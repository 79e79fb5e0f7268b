package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

// What runs in the virtual machine of TestInstructions:
//
//	client ──── director ──── rack
//	10.1.0.10+  10.1.0.100    10.240.0.20+, as many as are asked for
//
// pktgen sends datagrams from client to a virtual service; they are dropped
// and counted as they come to the rack. There is one processor, and a
// nanosecond is an instruction: time per packet is what the whole way costs,
// with pktgen's own part and the rack's. "drop" is that part alone.

// pins is where the plane of these tests is pinned: ip netns exec hides
// /sys/fs/bpf.
const pins = "/run/bpf/batuta"

var (
	vmService = netip.MustParseAddrPort("10.1.0.100:9")
	vmForward = netip.MustParseAddrPort("10.240.0.20:9")
)

// vmServers gives n servers: up to 200 in each /24.
func vmServers(n int) (s []netip.Addr) {
	for i := range n {
		s = append(s, netip.AddrFrom4([4]byte{10, 240, byte(i / 200), byte(20 + i%200)}))
	}
	return s
}

// flows that pktgen makes by counting addresses and ports up at each packet:
// numbers without a common divisor, so that all pairs come.
var vmFlows = map[int][2]int{1: {1, 1}, 1000: {1, 1000}, 100_000: {32, 3125}, 1_000_000: {64, 15625}}

func sh(t testing.TB, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-ec", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func TestInstructionsWithin(t *testing.T) {
	if os.Getenv(inVM) != "icount" {
		t.Skip("runs in the virtual machine of TestInstructions")
	}
	v := &guest{T: t}
	sh(t, `for m in veth pktgen ip_vs nft_nat nft_numgen nft_chain_nat sch_ingress cls_bpf; do modprobe $m; done
		mkdir -p /run/bpf; mount -t bpf bpf /run/bpf
		ip netns add client; ip netns add director; ip netns add rack
		ip link add c0 netns client type veth peer name outside netns director
		ip link add inside netns director type veth peer name r0 netns rack
		ip -n client addr add 10.1.0.10/16 dev c0
		ip -n director addr add 10.1.0.1/16 dev outside; ip -n director addr add 10.1.0.100/32 dev outside
		ip -n director addr add 10.240.0.1/16 dev inside; ip -n rack addr add 10.240.255.1/16 dev r0
		for l in "client c0" "director outside" "director inside" "rack r0"; do set -- $l; ip -n $1 link set lo up; ip -n $1 link set $2 up; done
		ip netns exec director bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/outside/rp_filter'
		ip -n rack route add default via 10.240.0.1
		printf 'table netdev f {\nchain i {\ntype filter hook ingress device r0 priority 0;\nudp dport 9 drop\n}\n}\n' | ip netns exec rack nft -f -`)
	v.mac = strings.TrimSpace(sh(t, `ip netns exec director cat /sys/class/net/outside/address`))
	rack := strings.TrimSpace(sh(t, `ip netns exec rack cat /sys/class/net/r0/address`))
	var neighbors strings.Builder
	for _, a := range vmServers(1000) {
		fmt.Fprintf(&neighbors, "neigh replace %s lladdr %s dev inside nud permanent\n", a, rack)
	}
	for a := range 64 {
		fmt.Fprintf(&neighbors, "neigh replace 10.1.0.%d lladdr 02:00:00:00:00:aa dev outside nud permanent\n", 10+a)
	}
	v.write("/tmp/neighbors", neighbors.String())
	sh(t, "ip -n director -batch /tmp/neighbors")

	fmt.Println("|      plane | servers |   flows |   first |  known | above drop | delivered |")
	cases := [][2]int{{4, 1}, {4, 1000}, {100, 1000}, {1000, 1000}, {4, 100_000}, {1000, 100_000}, {4, 1_000_000}}
	only := regexp.MustCompile(os.Getenv("BATUTA_CASES"))
	for _, c := range cases {
		if !only.MatchString(fmt.Sprintf("%d/%d", c[0], c[1])) {
			continue
		}
		v.compare(c[0], c[1])
	}
}

type guest struct {
	*testing.T
	mac string
}

func (v *guest) write(name, text string) {
	v.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		v.Fatal(err)
	}
}

// compare measures all planes at so many servers and connections.
func (v *guest) compare(servers, flows int) {
	var drop float64
	for _, p := range []struct {
		name, up, down string
		to             netip.AddrPort
	}{
		{"drop", `printf 'table netdev d {\nchain i {\ntype filter hook ingress device outside priority 0;\nudp dport 9 drop\n}\n}\n' | nft -f -`, "nft flush ruleset", vmForward},
		{"forward", "true", "true", vmForward},
		{"IPVS", "ipvsadm -R </tmp/ipvs", "ipvsadm -C", vmService},
		{"nft", "nft -f /tmp/nft", "nft flush ruleset; modprobe -r nf_conntrack_netlink 2>/dev/null || true", vmService},
		{"tc", "tests -test.run=^TestPlaneWithin$", "BATUTA_DOWN=1 tests -test.run=^TestPlaneWithin$", vmService},
	} {
		var ipvs, nft strings.Builder
		fmt.Fprintf(&ipvs, "-A -u %s -s rr\n", vmService)
		for i, a := range vmServers(servers) {
			fmt.Fprintf(&ipvs, "-a -u %s -r %s:9 -m\n", vmService, a)
			fmt.Fprintf(&nft, "%d : %s, ", i, a)
		}
		v.write("/tmp/ipvs", ipvs.String())
		v.write("/tmp/nft", fmt.Sprintf("table ip lb {\nchain p {\ntype nat hook prerouting priority -100;\nip daddr %s udp dport 9 dnat to numgen inc mod %d map { %s }\n}\n}\n",
			vmService.Addr(), servers, strings.TrimSuffix(nft.String(), ", ")))
		director := func(script string) {
			sh(v, "export BATUTA_SERVERS="+strconv.Itoa(servers)+"\nexport BATUTA_FLOWS="+strconv.Itoa(flows)+"\nip netns exec director bash -ec "+quoted(script))
		}
		director(p.up)
		first, _ := v.flood(p.to.Addr(), flows, flows)
		packets := max(flows, 20_000)
		known, delivered := v.flood(p.to.Addr(), flows, packets)
		director(p.down)
		if p.name == "drop" {
			drop = known
		}
		if flows < 1000 {
			first = 0
		}
		fmt.Printf("| %10s | %7d | %7d | %7.0f | %6.0f | %10.0f | %8.3f%% |\n", p.name, servers, flows, first, known, known-drop, 100*float64(delivered)/float64(packets))
	}
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

var pktgenOK = regexp.MustCompile(`OK: (\d+)\(`)

// flood sends packets and gives the instructions for each, and how many came
// to the rack.
func (v *guest) flood(to netip.Addr, flows, packets int) (each float64, delivered int) {
	spread := vmFlows[flows]
	var script strings.Builder
	script.WriteString("P=/proc/net/pktgen; echo rem_device_all >$P/kpktgend_0; echo add_device c0 >$P/kpktgend_0\n")
	for _, c := range []string{"count " + strconv.Itoa(packets), "clone_skb 0", "pkt_size 60", "delay 0", "dst " + to.String(), "dst_mac " + v.mac,
		"udp_dst_min 9", "udp_dst_max 9", "udp_src_min 1024", fmt.Sprintf("udp_src_max %d", 1024+spread[1]), // exclusive
		"src_min 10.1.0.10", fmt.Sprintf("src_max 10.1.0.%d", 10+spread[0]-1)} {
		fmt.Fprintf(&script, "echo '%s' >$P/c0\n", c)
	}
	script.WriteString("echo start >$P/pgctrl; cat $P/c0")
	before := v.arrived()
	out := sh(v, "ip netns exec client bash -ec "+quoted(script.String()))
	m := pktgenOK.FindStringSubmatch(out)
	if m == nil {
		v.Fatalf("pktgen said:\n%s", out)
	}
	us, _ := strconv.Atoi(m[1])
	sh(v, "sleep 0.1")
	return float64(us) * 1000 / float64(packets), v.arrived() - before
}

func (v *guest) arrived() int {
	n, err := strconv.Atoi(strings.TrimSpace(sh(v, "ip netns exec rack cat /sys/class/net/r0/statistics/rx_packets")))
	if err != nil {
		v.Fatal(err)
	}
	return n
}

// TestPlaneWithin puts Batuta's plane into force in its network namespace, or
// takes it away, and ends: the plane goes on by itself.
func TestPlaneWithin(t *testing.T) {
	if os.Getenv(inVM) == "" {
		t.Skip("runs in a virtual machine")
	}
	if os.Getenv("BATUTA_DOWN") != "" {
		if err := ebpf.Remove(pins); err != nil {
			t.Fatal(err)
		}
		return
	}
	servers, _ := strconv.Atoi(os.Getenv("BATUTA_SERVERS"))
	flows, _ := strconv.Atoi(os.Getenv("BATUTA_FLOWS"))
	p, err := ebpf.Open(ebpf.Options{Dir: pins, MaxFlows: max(flows*5/4, 262144)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	key := model.ServiceKey{Proto: model.UDP, Addr: vmService}
	changes := []model.Change{{Op: model.ServiceAdd, Service: model.VirtualService{Key: key, Scheduler: "rr"}}}
	for _, a := range vmServers(servers) {
		changes = append(changes, model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: key},
			Real: model.RealServer{Addr: netip.AddrPortFrom(a, 9), Forward: model.Masq, Weight: 1}})
	}
	if err := p.Apply(context.Background(), changes); err != nil {
		t.Fatal(err)
	}
}
