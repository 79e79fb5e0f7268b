package lab_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// The pairs of TestBenchFailover, each on a switch of its own:
//
//	client 10.1.0.10 ── eth0 ──┬── eth0 ── d1 10.1.0.1
//	                           └── eth0 ── d2 10.1.0.2
//
// One of d1 and d2 has 10.1.0.100, whose echo replies come from its kernel.
const benchVIP = "10.1.0.100"

// system is a program that keeps the address alive, with its configuration.
type system struct {
	name    string
	files   map[string]lab.File
	service []string // nil: the original Heartbeat's
	command []string // hands over, on the node that has the address; nil: it has none
	asked   bool     // it takes part only where SYSTEMS names it
}

const keepalivedConf = `global_defs {
	vrrp_version 3
	vrrp_rt_priority 50
	vrrp_no_swap
}
vrrp_instance vip {
	state BACKUP
	nopreempt
	interface eth0
	virtual_router_id 51
	priority PRIORITY
	advert_int 0.01
	garp_master_delay 1
	virtual_ipaddress {
		10.1.0.100/24 dev eth0
	}
}
`

func haFiles(keepalive, deadtime, initdead, extra string) map[string]lab.File {
	return map[string]lab.File{
		"/etc/ha.d/ha.cf": {Data: []byte("logfile /var/log/ha-log\nkeepalive " + keepalive + "\ndeadtime " + deadtime + "\ninitdead " + initdead +
			"\nbcast eth0\nauto_failback off\nnode d1\nnode d2\n" + extra)},
		"/etc/ha.d/authkeys":    {Data: []byte("auth 1\n1 sha1 a#longer#secret\n"), Mode: 0o600},
		"/etc/ha.d/haresources": {Data: []byte("d1 IPaddr2::10.1.0.100/24/eth0\n")},
	}
}

// benchSystems are the competitors. keepalived has the fastest settings that
// its manual allows, real-time priority and locked memory; its priorities are
// so high that the wait for the lower one is next to nothing.
func benchSystems() []system {
	batuta, standby := []string{"batuta", "run", "--ha.d", "/etc/ha.d"}, []string{"batuta", "standby", "--no-wait"}
	return []system{
		{name: "Batuta 10/25 ms", files: haFiles("10ms", "25ms", "3", "quarantine 0\n"), service: batuta, command: standby},
		{name: "keepalived 10 ms", service: []string{"keepalived", "-n", "-l", "-D", "-P"}},
		{name: "Batuta 50/250 ms", files: haFiles("50ms", "250ms", "3", "quarantine 0\n"), service: batuta, command: standby},
		{name: "Batuta 5/15 ms", files: haFiles("5ms", "15ms", "3", "quarantine 0\n"), service: batuta, command: standby, asked: true},
		{name: "Heartbeat 50/250 ms", files: haFiles("50ms", "250ms", "3", "warntime 100ms\n"),
			command: []string{"/usr/share/heartbeat/hb_standby", "all"}},
	}
}

// pairing is two directors of one system and their client.
type pairing struct {
	*testing.T
	*lab.Lab
	system
	macs   map[string]string // of a node's card, by node
	client int               // a process of the client machine, as this one's namespace numbers it

	mu  sync.Mutex
	log map[string][]string // of each node

	vrrp map[string]string // the last state that keepalived logged
}

// TestBenchFailover measures from the client's side how long nobody has the
// address, beside keepalived and the real Heartbeat: make bench-failover. No
// number decides it.
func TestBenchFailover(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "failover" {
		t.Skip("a measurement: make bench-failover")
	}
	rounds, pauses := benchCount(t, "ROUNDS", 30), benchCount(t, "PAUSES", 100)
	load := loadNow()
	var pairs []*pairing
	for _, s := range benchSystems() {
		if only := os.Getenv("SYSTEMS"); only == "" && !s.asked || only != "" && strings.Contains(s.name, only) {
			pairs = append(pairs, newPairing(t, s))
		}
	}
	gaps := map[string]map[string][]float64{} // by event and system, ms
	add := func(event, name string, gap time.Duration) {
		if gaps[event] == nil {
			gaps[event] = map[string][]float64{}
		}
		gaps[event][name] = append(gaps[event][name], float64(gap.Microseconds())/1000)
	}
	const hostLoss, cleanStop, byCommand = "host loss", "clean stop", "hand-over by command"
	wanted := func(event string) bool { return strings.Contains(event, os.Getenv("EVENTS")) }
	for range rounds {
		for _, p := range pairs {
			if wanted(hostLoss) {
				add(hostLoss, p.name, p.loseHost())
			}
		}
		for _, p := range pairs {
			if wanted(cleanStop) {
				add(cleanStop, p.name, p.stopCleanly())
			}
		}
		for _, p := range pairs {
			if p.command != nil && wanted(byCommand) {
				if gap, ok := p.handOver(); ok {
					add(byCommand, p.name, gap)
				}
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d rounds, %d pauses of each length, interleaved; load %s before, %s after\n\n", rounds, pauses, load, loadNow())
	fmt.Fprint(&b, "| event | system | n | p50 | p90 | p99 | max |\n|---|---|--:|--:|--:|--:|--:|\n")
	for _, event := range []string{hostLoss, cleanStop, byCommand} {
		for _, p := range pairs {
			if g := gaps[event][p.name]; g != nil {
				slices.Sort(g)
				fmt.Fprintf(&b, "| %s | %s | %d | %.1f | %.1f | %.1f | %.1f |\n", event, p.name, len(g), percentile(g, 0.5), percentile(g, 0.9), percentile(g, 0.99), g[len(g)-1])
			}
		}
	}
	t.Logf("\n%s", b.String()) // the rest takes long
	if pauses > 0 {
		fmt.Fprint(&b, "\n| paused for | system | n | really paused, ms: p50, max | false takeovers |\n|--:|---|--:|--:|--:|\n")
	}
	for _, length := range []time.Duration{30, 50, 100} {
		if pauses == 0 {
			break
		}
		type outcome struct {
			taken int
			real  []float64
		}
		outcomes := map[string]*outcome{}
		for _, p := range pairs {
			outcomes[p.name] = &outcome{}
		}
		for range pauses {
			for _, p := range pairs {
				took, real := p.pause(length * time.Millisecond)
				o := outcomes[p.name]
				o.real = append(o.real, float64(real.Microseconds())/1000)
				if took {
					o.taken++
				}
			}
		}
		for _, p := range pairs {
			o := outcomes[p.name]
			slices.Sort(o.real)
			fmt.Fprintf(&b, "| %d ms | %s | %d | %.1f, %.1f | %d |\n", length, p.name, pauses, percentile(o.real, 0.5), o.real[len(o.real)-1], o.taken)
		}
	}
	fmt.Fprint(&b, "\n| at rest, 10 s | active: packets/s sent, CPU | standby: packets/s sent, CPU |\n|---|--:|--:|\n")
	for _, p := range pairs {
		active, _ := p.settle()
		a, s := p.cost(active, otherDirector(active))
		fmt.Fprintf(&b, "| %s | %s | %s |\n", p.name, a, s)
	}
	t.Logf("\n%s", b.String())
	if name := os.Getenv("BATUTA_BENCH_OUT"); name != "" {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

func benchCount(t *testing.T, name string, preset int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return preset
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// percentile of sorted values, by nearest rank.
func percentile(sorted []float64, p float64) float64 {
	return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
}

func loadNow() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(text))[0]
}

func otherDirector(node string) string { return map[string]string{"d1": "d2", "d2": "d1"}[node] }

// newPairing boots the three machines and starts both daemons.
func newPairing(t *testing.T, s system) *pairing {
	t.Helper()
	tree := debianTree(t, append([]string{"keepalived"}, lab.HeartbeatPackages...)...)
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	topology := lab.Topology{Bridges: []string{"wire"}, Machines: []lab.Machine{
		{Name: "client", Interfaces: []lab.Interface{nic("eth0", "wire", "10.1.0.10/24")}},
		{Name: "d1", Interfaces: []lab.Interface{nic("eth0", "wire", "10.1.0.1/24")}},
		{Name: "d2", Interfaces: []lab.Interface{nic("eth0", "wire", "10.1.0.2/24")}},
	}}
	for node, priority := range map[string]string{"d1": "254", "d2": "253"} {
		m := topology.Machine(node)
		m.RealHeartbeat(tree, s.files)
		if s.service != nil {
			m.Service = s.service
		}
		if s.files == nil {
			m.Files["/etc/keepalived/keepalived.conf"] = lab.File{Data: []byte(strings.ReplaceAll(keepalivedConf, "PRIORITY", priority))}
		}
	}
	p := &pairing{T: t, system: s, log: map[string][]string{}, vrrp: map[string]string{},
		macs: map[string]string{"d1": "02:00:0a:01:00:01", "d2": "02:00:0a:01:00:02"}}
	p.Lab, err = lab.Start(t.Context(), lab.Options{Topology: topology, Binary: binary, Log: p.note})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p.mu.Lock()
			for node, lines := range p.log {
				t.Logf("%s, %s:\n%s", p.name, node, strings.Join(lines[max(0, len(lines)-60):], "\n"))
			}
			p.mu.Unlock()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	// The client's machine runs nothing: something has to hold its namespaces for nsenter.
	hold := p.Node("client").Command(t.Context(), "sleep", "infinity")
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	p.client = p.processes("client")[0]
	return p
}

// note keeps what the nodes print, and the states that keepalived tells.
func (p *pairing) note(node, line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log[node] = append(p.log[node], time.Now().Format("05.000 ")+line)
	if _, state, ok := strings.Cut(line, "Entering "); ok {
		p.vrrp[node], _, _ = strings.Cut(state, " ")
	}
}

// processes are the pids, as this process's namespace numbers them, of what
// runs on a node beside its init.
func (p *pairing) processes(node string) []int {
	p.Helper()
	own := p.on(node, "readlink", "/proc/self/ns/pid")
	links, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		p.Fatal(err)
	}
	var pids []int
	for _, link := range links {
		if ns, err := os.Readlink(link); err != nil || ns != own {
			continue
		}
		pid := strings.Split(link, "/")[2]
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if w := strings.Fields(line); w[0] == "NSpid:" && w[len(w)-1] != "1" {
				n, _ := strconv.Atoi(pid)
				pids = append(pids, n)
			}
		}
	}
	if len(pids) == 0 {
		p.Fatalf("%s: nothing runs on %s", p.name, node)
	}
	return pids
}

// on runs a command on a node that must succeed.
func (p *pairing) on(node string, args ...string) string {
	p.Helper()
	return output(p.T, p.Lab, node, args...)
}

// settle waits until one director has the address, and the other knows. It
// returns who has it, and the processes of that one's daemon.
func (p *pairing) settle() (active string, daemon []int) {
	p.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for calm := 0; ; time.Sleep(50 * time.Millisecond) {
		why := ""
		var has []string
		for _, node := range []string{"d1", "d2"} {
			if strings.Contains(p.on(node, "ip", "-o", "-4", "addr", "show", "dev", "eth0"), benchVIP) {
				has = append(has, node)
			}
			if s := p.ready(node); s != "" {
				why += node + " " + s + "; "
			}
		}
		if len(has) != 1 {
			why += fmt.Sprintf("the address is on %v", has)
		}
		if why != "" {
			calm = 0
		} else if calm++; calm == 3 {
			return has[0], p.processes(has[0])
		}
		if time.Now().After(deadline) {
			p.Fatalf("%s has not settled: %s", p.name, why)
		}
	}
}

// ready tells what a director's daemon still waits for; "" for nothing.
func (p *pairing) ready(node string) string {
	if p.files == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if s := p.vrrp[node]; s != "MASTER" && s != "BACKUP" {
			return "is in state " + s
		}
		return ""
	}
	status := []string{"cl_status"}
	if p.service != nil {
		status = []string{"batuta", "cl_status"}
	}
	out, err := p.Node(node).Output(p.Context(), append(status, "nodestatus", otherDirector(node))...)
	if s := strings.TrimSpace(out); err != nil || s != "active" {
		return "sees its peer " + s
	}
	out, err = p.Node(node).Output(p.Context(), append(status, "rscstatus")...)
	if s := strings.TrimSpace(out); err != nil || s == "transition" {
		return "is in " + s
	}
	return ""
}

// during probes while something happens to the director that has the address,
// until the other answers for it, and returns the client's gap.
// It is false if the other does not for a minute.
func (p *pairing) during(active string, happen func()) (gap time.Duration, ok bool) {
	p.Helper()
	client := startProber(p.T, p.client, benchVIP)
	time.Sleep(100 * time.Millisecond)
	happen()
	next := otherDirector(active)
	if !client.await(p.macs[next]) {
		p.Logf("%s: %s has not answered for a minute", p.name, next)
		return 0, false
	}
	time.Sleep(200 * time.Millisecond) // answers of the new one
	all := client.seen()
	var last time.Time
	for _, s := range all {
		switch {
		case !s.echo:
		case s.mac == p.macs[next]:
			if last.IsZero() {
				p.Fatalf("%s: %s never answered", p.name, active)
			}
			return s.at.Sub(last), true
		default:
			last = s.at
		}
	}
	p.Fatalf("%s: %s never answered after %s had gone", p.name, next, active)
	return 0, false
}

// loseHost cuts the active director off and freezes all its processes, then
// boots it anew.
func (p *pairing) loseHost() time.Duration {
	p.Helper()
	active, daemon := p.settle()
	gap, ok := p.during(active, func() {
		if err := p.Cut(active); err != nil {
			p.Fatal(err)
		}
		p.signal(daemon, unix.SIGSTOP)
	})
	if !ok {
		p.Fatal("nobody took over")
	}
	p.forget(active)
	for _, err := range []error{p.Kill(active), p.Heal(active), p.Boot(p.Context(), active)} {
		if err != nil {
			p.Fatal(err)
		}
	}
	return gap
}

// stopCleanly stops the active director's daemon, and starts it again.
func (p *pairing) stopCleanly() time.Duration {
	p.Helper()
	active, _ := p.settle()
	var stopping sync.WaitGroup
	gap, ok := p.during(active, func() {
		stopping.Go(func() {
			if err := p.Node(active).StopService(p.Context()); err != nil {
				p.Error(err)
			}
		})
	})
	stopping.Wait()
	if !ok {
		p.Fatal("nobody took over")
	}
	p.forget(active)
	if err := p.Node(active).StartService(); err != nil {
		p.Fatal(err)
	}
	return gap
}

// handOver lets an operator ask for it.
// Whatever the original's tools write to its FIFO it loses at times
// (docs/reference/interop.md): then nothing happens, which is not counted.
func (p *pairing) handOver() (gap time.Duration, ok bool) {
	p.Helper()
	active, _ := p.settle()
	return p.during(active, func() { p.on(active, p.command...) })
}

// pause stops the active director's daemon for a while and tells whether the
// other took the address.
func (p *pairing) pause(length time.Duration) (taken bool, real time.Duration) {
	p.Helper()
	active, daemon := p.settle()
	client := startProber(p.T, p.client, benchVIP)
	begin := time.Now()
	p.signal(daemon, unix.SIGSTOP)
	time.Sleep(time.Until(begin.Add(length)))
	p.signal(daemon, unix.SIGCONT)
	real = time.Since(begin)
	time.Sleep(300 * time.Millisecond)
	return slices.ContainsFunc(client.seen(), func(s sighting) bool { return s.mac == p.macs[otherDirector(active)] }), real
}

func (p *pairing) signal(pids []int, s unix.Signal) {
	p.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, s); err != nil && err != unix.ESRCH {
			p.Fatal(err)
		}
	}
}

// forget drops what a daemon that ends now has logged of its state.
func (p *pairing) forget(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.vrrp, node)
}

// cost is what a director at rest sends and uses, over ten seconds.
func (p *pairing) cost(nodes ...string) (a, b string) {
	p.Helper()
	const window = 10 * time.Second
	sent := func(node string) int {
		n, err := strconv.Atoi(p.on(node, "cat", "/sys/class/net/eth0/statistics/tx_packets"))
		if err != nil {
			p.Fatal(err)
		}
		return n
	}
	var packets, ticks [2]int
	var pids [2][]int
	for i, node := range nodes {
		pids[i] = p.processes(node)
		packets[i], ticks[i] = sent(node), cpuTicks(pids[i])
	}
	begin := time.Now()
	time.Sleep(window)
	var text [2]string
	for i, node := range nodes {
		used := float64(cpuTicks(pids[i])-ticks[i]) / 100
		took := time.Since(begin).Seconds()
		text[i] = fmt.Sprintf("%.0f, %.1f %%", float64(sent(node)-packets[i])/took, 100*used/took)
	}
	return text[0], text[1]
}

// cpuTicks are the hundredths of a second that processes have used.
func cpuTicks(pids []int) (sum int) {
	for _, pid := range pids {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue // a helper that has ended
		}
		w := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		user, _ := strconv.Atoi(w[11])
		system, _ := strconv.Atoi(w[12])
		sum += user + system
	}
	return sum
}
