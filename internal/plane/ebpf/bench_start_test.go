package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestBenchStart measures what a start waits for: the kernel's verifier and
// compiler, for each eBPF program of Batuta's, and the plane as a whole: fresh,
// and again with the table that it finds; then a director's start up to the
// first connection. make bench-start.
func TestBenchStart(t *testing.T) {
	benchmark(t, "start")
	head(2, "program", "of", "instructions", "looked at by the verifier", "verifier, ms", "load as a whole, ms", "CPU, ms", "range")
	objects, err := filepath.Glob("../../*/*_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	more, _ := filepath.Glob("../../*/*/*_bpfel.o")
	for _, name := range append(objects, more...) {
		spec, err := ebpf.LoadCollectionSpec(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range spec.Maps {
			if m.Pinning = ebpf.PinNone; m.Type != ebpf.SkStorage {
				m.MaxEntries = max(m.MaxEntries, 1)
			}
		}
		for _, program := range sortedNames(spec) {
			loadTimes(t, spec, program, strings.TrimPrefix(filepath.Dir(name), "../../"))
		}
	}
	head(2, "the eBPF plane", "with", "ms: median", "CPU, ms", "range")
	for _, mode := range []XDPMode{XDPOff, XDPOn} {
		with := map[XDPMode]string{XDPOff: "tc", XDPOn: "tc and XDP"}[mode]
		var fresh, again, cpu, cpuAgain []float64
		for range 11 {
			o := testOptions()
			o.MaxFlows, o.MaxServices, o.MaxReals, o.MaxTurns, o.XDP = 0, 0, 0, 0, mode // as the daemon's
			one := func(took, used *[]float64) *Plane {
				began, before := time.Now(), cpuTime(t)
				p, err := Open(o)
				if err != nil {
					t.Fatal(err)
				}
				*took, *used = append(*took, time.Since(began).Seconds()*1e3), append(*used, (cpuTime(t)-before).Seconds()*1e3)
				return p
			}
			p := one(&fresh, &cpu)
			apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1))
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			p = one(&again, &cpuAgain)
			if err := p.Remove(); err != nil {
				t.Fatal(err)
			}
		}
		row("fresh, of 262,144 connections", with, fmt.Sprintf("%.1f", middle(fresh)), fmt.Sprintf("%.1f", middle(cpu)), rangeOf(cpu))
		row("again, with what is there", with, fmt.Sprintf("%.1f", middle(again)), fmt.Sprintf("%.1f", middle(cpuAgain)), rangeOf(cpuAgain))
	}
	program, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	echoServer(t, rack0, "10.240.0.20:8000")
	head(2, "batuta director", "from", "ms to the first connection", "CPU, ms", "range")
	for _, plane := range []string{"proxy", "ebpf"} {
		var took, used []float64
		for range 7 {
			d, cpu := startDirector(t, program, plane)
			took, used = append(took, d.Seconds()*1e3), append(used, cpu.Seconds()*1e3)
		}
		row("--plane "+plane, "its start", fmt.Sprintf("%.0f", middle(took)), fmt.Sprintf("%.0f", middle(used)), rangeOf(used))
	}
}

// startDirector runs a director of one service, whose server is checked, until
// a client's connection comes through; CPU is what it used up to then.
func startDirector(t *testing.T, program, plane string) (took, cpu time.Duration) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "ldirectord.cf")
	if err := os.WriteFile(config, []byte("checkinterval=1\nvirtual=10.1.0.100:80\n\treal=10.240.0.20:8000 masq\n\tscheduler=rr\n\tprotocol=tcp\n\tchecktype=connect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Its own clients are those of the tests' group alone.
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" "$2"; shift 2; exec "$@"`, "sh", os.Getenv(insideGroup), root,
		program, "director", config, "--plane", plane, "--run-dir", dir, "--state-dir", dir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	eventually(t, func() string { // the kernel takes programs away a moment after they were removed
		if dial() == nil {
			return "there is a service already"
		}
		return ""
	})
	began := time.Now()
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := Remove(DefaultDir); err != nil {
			t.Error(err)
		}
	}()
	for err = dial(); err != nil; err = dial() {
		if time.Since(began) > patience {
			t.Fatalf("no connection comes through: %v; it said:\n%s", err, said.String())
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began), rig.Ran(t, cmd.Process.Pid)
}

// dial makes a connection to the service, and ends it. It does not wait for a
// packet that was dropped before the server was in to be sent again.
func dial() (err error) {
	client.do(func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp4", "10.1.0.100:80", 20*time.Millisecond); err == nil {
			_ = c.Close()
		}
	})
	return err
}

func sortedNames(spec *ebpf.CollectionSpec) (names []string) {
	for name := range spec.Programs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

var verification = regexp.MustCompile(`verification time (\d+) usec`)

// loadTimes loads one program some times, with its maps there already.
func loadTimes(t *testing.T, spec *ebpf.CollectionSpec, program, of string) {
	t.Helper()
	maps, err := ebpf.NewCollection(&ebpf.CollectionSpec{Maps: spec.Copy().Maps, Types: spec.Types, ByteOrder: spec.ByteOrder})
	if err != nil {
		t.Fatalf("%s: maps: %v", of, err)
	}
	defer maps.Close()
	var took, cpu, verifier []float64
	var size, looked string
	for range 11 {
		one := spec.Copy()
		for other := range one.Programs {
			if other != program {
				delete(one.Programs, other)
			}
		}
		// Among global variables' maps there may be one that is frozen.
		replace := map[string]*ebpf.Map{}
		for name, m := range maps.Maps {
			if !strings.HasPrefix(name, ".") {
				replace[name] = m
			}
		}
		began, before := time.Now(), cpuTime(t)
		c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: replace,
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		if err != nil {
			t.Fatalf("%s of %s: %v", program, of, err)
		}
		took, cpu = append(took, time.Since(began).Seconds()*1e3), append(cpu, (cpuTime(t)-before).Seconds()*1e3)
		p := c.Programs[program]
		if m := verification.FindStringSubmatch(p.VerifierLog); m != nil {
			us, _ := strconv.ParseFloat(m[1], 64)
			verifier = append(verifier, us/1e3)
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := info.TranslatedSize(); err == nil {
			size = fmt.Sprint(n / 8)
		}
		if n, ok := info.VerifiedInstructions(); ok {
			looked = fmt.Sprint(n)
		}
		c.Close()
	}
	if len(verifier) == 0 {
		t.Fatalf("%s of %s: the kernel does not tell what its verifier took", program, of)
	}
	row(program, of, size, looked, fmt.Sprintf("%.1f", middle(verifier)), fmt.Sprintf("%.1f", middle(took)), fmt.Sprintf("%.1f", middle(cpu)), rangeOf(cpu))
}

// TestBenchMemory measures what a table of connections takes, by what the
// kernel says of its maps and by what it charges to the control group of the
// process that opens it: make bench-memory.
func TestBenchMemory(t *testing.T) {
	benchmark(t, "memory")
	const few, many = 1 << 12, 1 << 18
	group := newMemoryGroups(t)
	sizes := map[string][2]uint64{}
	var charged [2]int64
	for i, n := range []int{few, many} {
		o := testOptions()
		o.MaxFlows, o.XDP = n, XDPOff
		group.enter(t)
		before := group.kernel(t)
		p := open(t, o)
		charged[i] = group.kernel(t) - before
		for name, m := range p.t.replacements() {
			info, err := m.Info()
			if err != nil {
				t.Fatal(err)
			}
			bytes, ok := info.Memlock()
			if !ok {
				t.Fatalf("%s: the kernel does not tell its size", name)
			}
			both := sizes[name]
			both[i] = bytes
			sizes[name] = both
		}
		if n == few {
			if err := p.Remove(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		apply(t, p, addService(model.UDP, vip(0, 53), "rr"), addReal(model.UDP, vip(0, 53), udpReal, 1))
		head(2, "what", "of", "KB in all", "bytes a connection")
		var all uint64
		for _, name := range names(sizes) {
			b := sizes[name]
			if all += b[1]; b[1] > b[0] {
				row(name, "map", fmt.Sprint(b[1]/1024), fmt.Sprintf("%.1f", float64(b[1]-b[0])/(many-few)))
			}
		}
		var fewer uint64
		for _, b := range sizes {
			fewer += b[0]
		}
		row("all maps", "their own account (fdinfo)", fmt.Sprint(all/1024), fmt.Sprintf("%.1f", float64(all-fewer)/(many-few)))
		row("all", "charged to the control group", fmt.Sprint(charged[1]/1024), fmt.Sprintf("%.1f", float64(charged[1]-charged[0])/(many-few)))
		began := group.kernel(t)
		refused := fill(t, p, many)
		besides := group.kernel(t) - began
		row(fmt.Sprintf("besides, with %d connections", many-refused), "charged to the control group", fmt.Sprint(besides/1024), fmt.Sprintf("%.1f", float64(besides)/float64(many-refused)))
		fmt.Fprintf(os.Stdout, "\n%d of %d connections found no place in the index\n", refused, many)
	}
}

func names(sizes map[string][2]uint64) (all []string) {
	for name := range sizes {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// fill begins so many connections, and tells how many were refused as both
// places that an entry of theirs may have in the index were full (bpf/table.h).
func fill(t *testing.T, p *Plane, n int) (refused int) {
	t.Helper()
	in, err := parsePacket("udp 10.1.0.50:1024 > 10.1.0.100:53 len=18")
	if err != nil {
		t.Fatal(err)
	}
	l := linkOf(t, "outside")
	frame := append(ethernet(l.HardwareAddr, in.ip()), in.ip()...)
	for i := range n {
		frame[29], frame[34], frame[35] = byte(200+i>>14), byte(64+i>>8&63), byte(i) // sums are not looked at
		got, err := p.in.Run(&ebpf.RunOptions{Data: frame, Context: skbContext{Ifindex: uint32(l.Index)}})
		switch {
		case err == nil && got == redirected:
		case err == nil && got == dropped:
			refused++
		default:
			t.Fatalf("connection %d: verdict %d, %v", i, got, err)
		}
	}
	why, err := p.Reasons(t.Context())
	if err != nil || why[ReasonTableFull] != uint64(refused) {
		t.Fatalf("%d refused for %v, %v", refused, why, err)
	}
	flows, err := p.Flows(t.Context())
	if err != nil || len(flows) != n-refused {
		t.Fatalf("%d connections in the table, %v; want %d", len(flows), err, n-refused)
	}
	return refused
}

// memoryGroups makes control groups that this process moves through: what is
// charged to one stays there when the process has gone on.
type memoryGroups struct {
	root, now string
	made      int
	v1        bool
}

func newMemoryGroups(t *testing.T) *memoryGroups {
	t.Helper()
	g := &memoryGroups{}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		switch {
		case len(f) > 3 && f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "memory"):
			g.root, g.v1 = f[1], true
		case len(f) > 2 && f[2] == "cgroup2" && !g.v1:
			g.root = f[1]
		}
	}
	if g.root == "" {
		t.Fatal("no control groups that account for memory are mounted")
	}
	was := g.root
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (g.v1 && slices.Contains(strings.Split(f[1], ","), "memory") || !g.v1 && f[1] == "") {
			was = filepath.Join(g.root, f[2])
		}
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(was, "cgroup.procs"), []byte("0"), 0)
		made, _ := filepath.Glob(filepath.Join(g.root, fmt.Sprintf("batuta-memory-%d-*", os.Getpid())))
		for _, dir := range made {
			_ = os.Remove(dir)
		}
	})
	return g
}

// enter moves this process to a new group.
func (g *memoryGroups) enter(t *testing.T) {
	t.Helper()
	g.made++
	g.now = filepath.Join(g.root, fmt.Sprintf("batuta-memory-%d-%d", os.Getpid(), g.made))
	if err := errors.Join(os.Mkdir(g.now, 0o755), os.WriteFile(filepath.Join(g.now, "cgroup.procs"), []byte("0"), 0)); err != nil {
		t.Fatal(err)
	}
}

// kernel is what the kernel itself has for the group.
func (g *memoryGroups) kernel(t *testing.T) (n int64) {
	t.Helper()
	name, key := "memory.stat", "kernel "
	if g.v1 {
		name, key = "memory.kmem.usage_in_bytes", ""
	}
	text, err := os.ReadFile(filepath.Join(g.now, name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte(key)); ok {
			if n, err = strconv.ParseInt(string(rest), 10, 64); err == nil {
				return n
			}
		}
	}
	t.Fatalf("%s says %q", name, text)
	return 0
}
