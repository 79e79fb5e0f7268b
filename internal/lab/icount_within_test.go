package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

// What runs in the virtual machine of TestInstructions, twice: with veth pairs
// between network namespaces, and with virtio cards on hubs of QEMU's.
//
//	client ──── director ──── rack
//	10.1.0.10+  10.1.0.100    10.240.0.20+, as many as are asked for
//
// pktgen sends datagrams from client to a virtual service; they are dropped
// and counted as they come to the rack. There is one processor, and a
// nanosecond is an instruction.
//
// Between veth pairs, time per packet is what the whole way costs, with
// pktgen's own part and the rack's. "drop" is pktgen's part alone, and the way
// to the director's ingress hook, where it drops. A card's sender waits for the
// emulator, so there it is the time that the polls of the director's cards take
// (polls), less what they take if the packet is dropped: for XDP by a program
// that only drops, for all others at the ingress hook.

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

// softirqs is the thread that does what interrupts leave to it.
const softirqs = "$(grep -lx ksoftirqd/0 /proc/[0-9]*/comm | cut -d/ -f3)"

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
	sh(t, `for m in virtio_net veth pktgen nf_tables nft_nat nft_numgen nft_chain_nat sch_ingress cls_bpf; do modprobe $m; done
		modprobe ip_vs conn_tab_bits=20; modprobe nf_conntrack
		echo 1048576 >/sys/module/nf_conntrack/parameters/hashsize; echo 2000000 >/proc/sys/net/netfilter/nf_conntrack_max
		mkdir -p /run/bpf; mount -t bpf bpf /run/bpf`)
	// Servers and connections.
	few := [][2]int{{4, 1}, {4, 1000}, {4, 100_000}}
	many := [][2]int{{4, 1}, {100, 1}, {1000, 1}, {4, 1000}, {100, 1000}, {1000, 1000}, {4, 100_000}, {100, 100_000}, {1000, 100_000}, {4, 1_000_000}, {100, 1_000_000}}
	var all measurements
	defer func() { all.write(os.Stdout) }() // of a run that failed, too
	only := regexp.MustCompile(os.Getenv("BATUTA_CASES"))
	for _, by := range []struct {
		name  string
		cases [][2]int
		make  string
	}{
		// One processor sends and receives: the thread that receives what interrupts
		// leave to it comes first, or a queue is full before it has its turn.
		{"veth", few, "chrt -f -p 1 " + softirqs + "; ip link add c0 type veth peer name outside; ip link add inside type veth peer name r0"},
		{"card", many, "chrt -o -p 0 " + softirqs + `; for f in /sys/class/net/*; do case $(cat $f/address) in
			02:00:00:00:00:01) n=c0 ;; 02:00:00:00:00:02) n=outside ;; 02:00:00:00:00:03) n=inside ;; 02:00:00:00:00:04) n=r0 ;; *) continue ;; esac
			ip link set ${f##*/} down; ip link set ${f##*/} name $n; done`},
	} {
		g := newGuest(t, by.name, by.make)
		g.all = &all
		for _, c := range by.cases {
			if only.MatchString(fmt.Sprintf("%s/%d/%d", by.name, c[0], c[1])) {
				g.compare(c[0], c[1])
			}
		}
		if g.polls != nil && only.MatchString(by.name+"/syn") {
			g.compareSYN()
		}
		for _, node := range []string{"client", "director", "rack"} {
			sh(t, "ip netns del "+node)
		}
	}
}

type guest struct {
	*testing.T
	by    string
	mac   string // of the director, as the client sees it
	rack  string // its hardware address
	polls *polls // nil between veth pairs
	cards []uint32
	all   *measurements
}

// newGuest makes the network of links made by a script.
func newGuest(t *testing.T, by, links string) *guest {
	t.Helper()
	g := &guest{T: t, by: by}
	sh(t, links+`
		ip netns add client; ip netns add director; ip netns add rack
		ip link set c0 netns client; ip link set outside netns director; ip link set inside netns director; ip link set r0 netns rack
		ip -n client addr add 10.1.0.10/16 dev c0
		ip -n director addr add 10.1.0.1/16 dev outside; ip -n director addr add 10.1.0.100/32 dev outside
		ip -n director addr add 10.240.0.1/16 dev inside; ip -n rack addr add 10.240.255.1/16 dev r0
		for l in "client c0" "director outside" "director inside" "rack r0"; do set -- $l; ip -n $1 link set lo up; ip -n $1 link set $2 up; done
		ip netns exec director bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/outside/rp_filter'
		ip -n rack route add default via 10.240.0.1
		printf 'table netdev f {\nchain i {\ntype filter hook ingress device r0 priority 0;\nmeta l4proto { tcp, udp } drop\n}\n}\n' | ip netns exec rack nft -f -`)
	g.mac = strings.TrimSpace(sh(t, `ip netns exec director cat /sys/class/net/outside/address`))
	g.rack = strings.TrimSpace(sh(t, `ip netns exec rack cat /sys/class/net/r0/address`))
	var neighbors strings.Builder
	for _, a := range vmServers(1000) {
		fmt.Fprintf(&neighbors, "neigh replace %s lladdr %s dev inside nud permanent\n", a, g.rack)
	}
	for a := range 64 {
		fmt.Fprintf(&neighbors, "neigh replace 10.1.0.%d lladdr 02:00:00:00:00:aa dev outside nud permanent\n", 10+a)
	}
	g.write("/tmp/neighbors", neighbors.String())
	sh(t, "ip -n director -batch /tmp/neighbors")
	if by == "card" {
		// Cards that have much to do interrupt once for many packets. The emulated
		// ones have no moderation of their own, so the kernel's is used
		// (Documentation/networking/napi.rst): a poll each 200,000 instructions.
		sh(t, `for c in "client c0" "director outside" "director inside" "rack r0"; do set -- $c
			ip netns exec $1 bash -c "echo 1000 >/sys/class/net/$2/napi_defer_hard_irqs; echo 200000 >/sys/class/net/$2/gro_flush_timeout"; done`)
		g.polls = stampPolls(t)
		for f := range strings.FieldsSeq(sh(t, "ip netns exec director cat /sys/class/net/outside/ifindex /sys/class/net/inside/ifindex")) {
			n, err := strconv.Atoi(f)
			if err != nil || n >= maxIfindex {
				t.Fatalf("card's number %q: %v", f, err)
			}
			g.cards = append(g.cards, uint32(n))
		}
	}
	return g
}

func (v *guest) write(name, text string) {
	v.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		v.Fatal(err)
	}
}

// A rival is one way of carrying packets, and how to put it into force.
type rival struct {
	name, up, down string
	to             netip.AddrPort
}

const ingressDrop = `printf 'table netdev d {\nchain i {\ntype filter hook ingress device outside priority 0;\nmeta l4proto { tcp, udp } drop\n}\n}\n' | nft -f -`

func planeWithin(what string) string {
	return "BATUTA_PLANE=" + what + " tests -test.timeout=0 -test.run=^TestPlaneWithin$"
}

// standing is written by a plane's process, with its number, when it is in force,
// and removed when it has ended.
const standing = "/run/plane"

// planeUp leaves a plane's process behind: a director's goes on, too.
func planeUp(what string) string {
	return planeWithin(what) + ` >/run/plane.log 2>&1 &
		until [ -e ` + standing + ` ]; do kill -0 $! || { cat /run/plane.log; exit 1; }; sleep 0.1; done`
}

var planeDown = "kill $(cat " + standing + "); while [ -e " + standing + " ]; do sleep 0.1; done; " + planeWithin("none")

var rivals = []rival{
	{"drop", ingressDrop, "nft flush ruleset", vmForward},
	{"forward", "true", "true", vmForward},
	{"IPVS", "ipvsadm -R </tmp/ipvs", "ipvsadm -C", vmService},
	{"nft", "nft -f /tmp/nft", "nft flush ruleset; modprobe -r nf_conntrack_netlink 2>/dev/null || true", vmService},
	{"tc floor", planeWithin("floor-tc") + "; tc qdisc add dev outside clsact; tc filter add dev outside ingress bpf da object-pinned " + floorPin,
		"tc qdisc del dev outside clsact; " + planeWithin("none"), vmForward},
	{"tc", planeUp("tc"), planeDown, vmService},
	{"XDP drop", planeWithin("drop"), planeWithin("none"), vmForward},
	{"XDP floor", planeWithin("floor-xdp"), planeWithin("none"), vmForward},
	{"XDP", planeUp("xdp"), planeDown, vmService},
}

// director runs a script where the plane is.
func (v *guest) director(servers, flows int, script string) {
	v.Helper()
	sh(v, fmt.Sprintf("export BATUTA_RACK=%s BATUTA_SERVERS=%d BATUTA_FLOWS=%d\nip netns exec director bash -ec %s", v.rack, servers, flows, quoted(script)))
}

// tables writes IPVS's and nftables' tables for a protocol.
func (v *guest) tables(proto string, servers int) {
	v.Helper()
	var ipvs, nft strings.Builder
	fmt.Fprintf(&ipvs, "-A -%c %s -s rr\n", proto[0], vmService)
	for i, a := range vmServers(servers) {
		fmt.Fprintf(&ipvs, "-a -%c %s -r %s:9 -m\n", proto[0], vmService, a)
		fmt.Fprintf(&nft, "%d : %s, ", i, a)
	}
	v.write("/tmp/ipvs", ipvs.String())
	v.write("/tmp/nft", fmt.Sprintf("table ip lb {\nchain p {\ntype nat hook prerouting priority -100;\nip daddr %s %s dport 9 dnat to numgen inc mod %d map { %s }\n}\n}\n",
		vmService.Addr(), proto, servers, strings.TrimSuffix(nft.String(), ", ")))
}

// compare measures all planes at so many servers and connections.
func (v *guest) compare(servers, flows int) {
	v.Helper()
	v.tables("udp", servers)
	for _, p := range rivals {
		if v.polls == nil && strings.HasPrefix(p.name, "XDP") {
			continue // a veth pair makes another packet of each for it
		}
		if flows > 100_000 && (p.name == "forward" || p.name == "nft") {
			continue // minutes, for what the other rows tell
		}
		if strings.HasSuffix(p.name, "floor") && (servers > 4 || flows > 1) {
			continue // it knows neither
		}
		v.director(servers, flows, p.up)
		var first cost
		delivered, sent := 0, 0
		if isDrop := strings.HasSuffix(p.name, "drop"); !isDrop {
			first, delivered = v.flood(p.to.Addr(), flows, flows)
			sent = flows
		}
		// Of a million, the first ones again, twice: while all others were begun they
		// had no packet for longer than planes remember their way.
		packets, ways := min(max(flows, 20_000), 200_000), []string{p.name}
		if flows > packets {
			ways = []string{p.name + ", after a pause", p.name}
		}
		for _, way := range ways {
			known, more := v.flood(p.to.Addr(), flows, packets)
			v.add(measured{v.by, way, servers, flows, first.each, known.each, known.batch}, delivered+more, sent+packets)
			delivered, sent = 0, 0
		}
		v.director(servers, flows, p.down)
	}
}

// add keeps a measurement for the tables, and shows it to who waits for them.
func (v *guest) add(m measured, delivered, sent int) {
	v.Helper()
	*v.all = append(*v.all, m)
	fmt.Printf("%s, %d servers, %d connections, %s: first %.0f, known %.0f, %.1f a poll, %d of %d delivered\n",
		m.by, m.servers, m.size, m.way, m.first, m.known, m.batch, delivered, sent)
	if !m.isDrop() && delivered < sent*99/100 && !strings.Contains(m.way, "SYN") { // a full table may refuse these
		v.Errorf("%s: %d of %d packets came to the rack", m.way, delivered, sent)
	}
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

var pktgenOK = regexp.MustCompile(`OK: (\d+)\(`)

// cost is what packets took: instructions for each, and how many a poll of the
// director's receiving card found (0 between veth pairs).
type cost struct{ each, batch float64 }

// flood sends packets and gives what they cost, and how many came to the rack. Of a card, packets that the sender could not send are none.
func (v *guest) flood(to netip.Addr, flows, packets int) (c cost, delivered int) {
	spread := vmFlows[flows]
	var script strings.Builder
	script.WriteString("P=/proc/net/pktgen; echo rem_device_all >$P/kpktgend_0; echo add_device c0 >$P/kpktgend_0\n")
	for _, line := range []string{"count " + strconv.Itoa(packets), "clone_skb 0", "pkt_size 60", "delay 0", "dst " + to.String(), "dst_mac " + v.mac,
		"udp_dst_min 9", "udp_dst_max 9", "udp_src_min 1024", fmt.Sprintf("udp_src_max %d", 1024+spread[1]), // exclusive
		"src_min 10.1.0.10", fmt.Sprintf("src_max 10.1.0.%d", 10+spread[0]-1)} {
		fmt.Fprintf(&script, "echo '%s' >$P/c0\n", line)
	}
	script.WriteString("echo start >$P/pgctrl; cat $P/c0")
	before, begun := v.arrived(), v.taken()
	out := sh(v, "ip netns exec client bash -ec "+quoted(script.String()))
	m := pktgenOK.FindStringSubmatch(out)
	if m == nil {
		v.Fatalf("pktgen said:\n%s", out)
	}
	us, _ := strconv.Atoi(m[1])
	c.each = float64(us) * 1000 / float64(packets)
	sh(v, "sleep 0.1")
	if v.polls != nil {
		c = v.since(begun)
	}
	return c, v.arrived() - before
}

// taken is what the director's cards have taken up to now.
func (v *guest) taken() (all polled) {
	if v.polls != nil {
		all = v.polls.of(v, v.cards)
	}
	return all
}

// since gives the cost of what came to the director.
func (v *guest) since(begun polled) cost {
	now := v.taken()
	if now.Packets == begun.Packets {
		v.Fatal("no packet came to the director")
	}
	packets := float64(now.Packets - begun.Packets)
	return cost{float64(now.Nanoseconds-begun.Nanoseconds) / packets, packets / float64(now.Polls-begun.Polls)}
}

func (v *guest) arrived() int {
	n, err := strconv.Atoi(strings.TrimSpace(sh(v, "ip netns exec rack cat /sys/class/net/r0/statistics/rx_packets")))
	if err != nil {
		v.Fatal(err)
	}
	return n
}

// TestPlaneWithin puts Batuta's plane into force in its network namespace until it
// is ended by a signal, and the plane goes on by itself; or takes it away.
func TestPlaneWithin(t *testing.T) {
	if os.Getenv(inVM) == "" {
		t.Skip("runs in a virtual machine")
	}
	mode := ebpf.XDPOff
	switch what := os.Getenv("BATUTA_PLANE"); what {
	case "none":
		if err := errors.Join(ebpf.Remove(pins), os.RemoveAll(dropPin), os.RemoveAll(floorPin), os.RemoveAll(floorPin+"-in"), os.RemoveAll(floorPin+"-out")); err != nil {
			t.Fatal(err)
		}
		return
	case "drop":
		xdpPin(t, dropPin, "outside", asm.Instructions{asm.Mov.Imm(asm.R0, 1 /* XDP_DROP */), asm.Return()})
		return
	case "floor-tc":
		floorAtTC(t)
		return
	case "floor-xdp":
		rack, err := net.ParseMAC(os.Getenv("BATUTA_RACK"))
		if err != nil {
			t.Fatal(err)
		}
		floorAtXDP(t, rack)
		return
	case "xdp":
		mode = ebpf.XDPOn
	}
	servers, _ := strconv.Atoi(os.Getenv("BATUTA_SERVERS"))
	flows, _ := strconv.Atoi(os.Getenv("BATUTA_FLOWS"))
	p, err := ebpf.Open(ebpf.Options{Dir: pins, MaxFlows: max(flows*5/4, synTable), XDP: mode, Cgroup: os.Getenv("BATUTA_CGROUP")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if mode == ebpf.XDPOn && !strings.Contains(p.Info().Detail, "XDP on inside, outside") {
		t.Fatal(p.Info().Detail)
	}
	var changes []model.Change
	for _, proto := range []model.Protocol{model.UDP, model.TCP} {
		key := model.ServiceKey{Proto: proto, Addr: vmService}
		changes = append(changes, model.Change{Op: model.ServiceAdd, Service: model.VirtualService{Key: key, Scheduler: "rr"}})
		for _, a := range vmServers(servers) {
			changes = append(changes, model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: key},
				Real: model.RealServer{Addr: netip.AddrPortFrom(a, 9), Forward: model.Masq, Weight: 1}})
		}
	}
	if err := p.Apply(context.Background(), changes); err != nil {
		t.Fatal(err)
	}
	ended, stop := signal.NotifyContext(t.Context(), unix.SIGTERM)
	defer stop()
	if err := os.WriteFile(standing, strconv.AppendInt(nil, int64(os.Getpid()), 10), 0o600); err != nil {
		t.Fatal(err)
	}
	<-ended.Done()
	if err := os.Remove(standing); err != nil {
		t.Fatal(err)
	}
}

const dropPin = "/run/bpf/drop"
