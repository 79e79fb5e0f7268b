package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// `make bench-checks` measures what checks cost, beside ldirectord of Debian
// in the same run: both read the same file, check the same servers each second
// and are watched from outside. It prints a table; no number decides anything.
//
// All of it is in namespaces of its own: this test calls itself as the stage,
// where the web server is, and the directors are started one after the other.
const (
	benchSwitch = "BATUTA_BENCH"         // checks: run it
	benchStage  = "BATUTA_BENCH_TREE"    // we are on the stage; the tree with ldirectord
	benchSizes  = "BATUTA_BENCH_SERVERS" // other numbers of servers than "10 100 500 10000"

	benchWindow  = 10 * time.Second // over which CPU is measured
	benchSettle  = 3 * time.Second  // after all servers are in the table
	benchTrials  = 5                // deaths of a server
	benchTimeout = 3                // negotiatetimeout, seconds
	benchPort    = 8080             // where every address answers
	probeAddr    = "127.9.9.1:9001" // the server that dies
	hangAddr     = "127.9.9.2:9002" // the server that hangs
)

func TestBenchChecks(t *testing.T) {
	if os.Getenv(benchSwitch) != "checks" {
		t.Skip("a benchmark: make bench-checks")
	}
	if tree := os.Getenv(benchStage); tree != "" {
		if err := playBench(t, tree); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := lab.Available(); err != nil {
		t.Fatal(err)
	}
	tree, err := lab.DebianTree(t.Context(), "ldirectord")
	if err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(t.TempDir(), "ipvsadm")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", fake, "./testdata/bench-ipvsadm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in the tree
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestBenchChecks$", "-test.timeout=1h")
	cmd.Env = append(os.Environ(), benchStage+"="+tree, "BATUTA_BENCH_IPVSADM="+fake)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

// playBench is the stage.
func playBench(t *testing.T, tree string) error {
	if err := benchMounts(tree); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	servers := benchServers{}
	if err := servers.start(); err != nil {
		return err
	}
	fmt.Println("| servers | director | all up | CPU | memory RSS | PSS | checks/s | dead server out: median, max | beside one that hangs |")
	fmt.Println("|--:|---|--:|--:|--:|--:|--:|--:|--:|")
	sizes := strings.Fields(os.Getenv(benchSizes))
	if len(sizes) == 0 {
		sizes = []string{"10", "100", "500", "10000"}
	}
	for _, size := range sizes {
		n, err := strconv.Atoi(size)
		if err != nil || n < 10 {
			return fmt.Errorf("%s: %q is no number of servers, at least 10", benchSizes, size)
		}
		runs := []benchRun{{benchBatuta(t, n), 0}}
		if n <= 500 { // the original needs minutes to start with more
			runs = []benchRun{
				{benchBatuta(t, n), alone | besideHanging},
				{benchLdirectord(tree, n, "no"), alone | besideHanging},
				{benchLdirectord(tree, n, "yes"), alone}, // a process is for ten servers: the hanging one is among them
			}
		}
		for _, r := range runs {
			if err := measure(r.director, n, &servers, r.trials); err != nil {
				return fmt.Errorf("%s, %d servers: %w", r.director.name, n, err)
			}
		}
	}
	return nil
}

type benchRun struct {
	director *benched
	trials   trials
}

// trials are the deaths to be measured beside CPU and memory.
type trials int

const (
	alone         trials = 1 << iota // nothing else is wrong
	besideHanging                    // another server accepts connections and is silent
)

// benchMounts makes the tree habitable, for this namespace only.
func benchMounts(tree string) error {
	mount := func(source, target, kind, data string, flags uintptr) error {
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	in := func(name string) string { return filepath.Join(tree, name) }
	err := errors.Join(
		mount("proc", "/proc", "proc", "", 0),
		mount("proc", in("proc"), "proc", "", 0),
		mount("/dev", in("dev"), "", "", unix.MS_BIND|unix.MS_REC),
		mount("run", in("run"), "tmpfs", "", 0),
		mount("log", in("var/log"), "tmpfs", "", 0),
		mount("tmp", in("tmp"), "tmpfs", "", 0),
		mount("lock", in("var/lock"), "tmpfs", "", 0),
		mount(os.Getenv("BATUTA_BENCH_IPVSADM"), in("usr/sbin/ipvsadm"), "", "", unix.MS_BIND))
	return err
}

// benchConfig is the file that both directors read: services of ten servers,
// and among the last ones those that die and hang.
func benchConfig(n int, fork string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "checktimeout=%d\nnegotiatetimeout=%d\ncheckinterval=1\nquiescent=no\nfork=%s\n", benchTimeout, benchTimeout, fork)
	for i := range n {
		if i%10 == 0 {
			fmt.Fprintf(&b, "virtual=10.9.%d.%d:80\n\tprotocol=tcp\n\tscheduler=rr\n\tchecktype=negotiate\n\tservice=http\n\trequest=\"index.html\"\n\treceive=\"OK\"\n",
				i/10/250, i/10%250+1)
		}
		switch i {
		case n - 2:
			fmt.Fprintf(&b, "\treal=%s masq\n", hangAddr)
		case n - 1:
			fmt.Fprintf(&b, "\treal=%s masq\n", probeAddr)
		default:
			fmt.Fprintf(&b, "\treal=127.1.%d.%d:%d masq\n", i/250, i%250+1, benchPort)
		}
	}
	return b.String()
}

// benched is a director under measurement.
type benched struct {
	name, config, text, table string
	cmd                       *exec.Cmd
}

func benchLdirectord(tree string, n int, fork string) *benched {
	d := &benched{
		name: "ldirectord fork=" + fork, config: filepath.Join(tree, "tmp/bench.cf"), table: filepath.Join(tree, "tmp/table"),
		text: "logfile=\"/tmp/log\"\n" + benchConfig(n, fork),
	}
	d.cmd = exec.Command("/usr/sbin/ldirectord", "/tmp/bench.cf", "start")
	d.cmd.Dir = "/"
	d.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "BENCH_TABLE=/tmp/table"}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: tree, Setpgid: true}
	return d
}

func benchBatuta(t *testing.T, n int) *benched {
	dir := t.TempDir()
	program := os.Getenv("BATUTA_BIN")
	if program == "" {
		t.Fatal("BATUTA_BIN names no batuta: use make bench-checks")
	}
	d := &benched{name: "batuta", config: filepath.Join(dir, "bench.cf"), table: filepath.Join(dir, "table"), text: benchConfig(n, "no")}
	d.cmd = exec.Command(program, "director", "--dry-run", "--table", d.table,
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"), d.config)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return d
}

// has tells whether the table has a server.
func (d *benched) has(addr string) bool {
	b, _ := os.ReadFile(d.table) // none yet
	return strings.Contains(string(b), addr)
}

// until waits for the table to have a server, or not, and tells how long.
func (d *benched) until(addr string, there bool) (time.Duration, error) {
	start := time.Now()
	for d.has(addr) != there {
		if time.Since(start) > 2*time.Minute {
			return 0, fmt.Errorf("%s in the table is not %v after two minutes", addr, there)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start), nil
}

// measure runs one director and prints its row.
func measure(d *benched, n int, servers *benchServers, wanted trials) error {
	for _, old := range []string{d.table, filepath.Join(filepath.Dir(d.table), "log")} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	if err := os.WriteFile(d.config, []byte(d.text), 0o644); err != nil {
		return err
	}
	said := filepath.Join(filepath.Dir(d.table), "said")
	out, err := os.Create(said)
	if err != nil {
		return err
	}
	defer out.Close()
	d.cmd.Stdout, d.cmd.Stderr = out, out
	start := time.Now()
	if err := d.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	defer stopAll()
	for { // the last line's server may be among the first in the table: count
		b, _ := os.ReadFile(d.table)
		if strings.Count(string(b), ":"+strconv.Itoa(benchPort)) >= n-2 && d.has(probeAddr) && d.has(hangAddr) {
			break
		}
		if time.Since(start) > 3*time.Minute {
			text, _ := os.ReadFile(said)
			return fmt.Errorf("not all servers are in the table; it said:\n%s", text)
		}
		time.Sleep(2 * time.Millisecond)
	}
	allUp := time.Since(start)
	time.Sleep(benchSettle + time.Duration(n)*time.Millisecond) // ten thousand first checks make a queue

	before, checks, at := usage(), servers.answered.Load(), time.Now()
	time.Sleep(benchWindow)
	after, took := usage(), time.Since(at).Seconds()
	rate := float64(servers.answered.Load()-checks) / took
	row := fmt.Sprintf("| %d | %s | %.1f s | %.1f %% | %.0f MB | %.0f MB | %.0f |", n, d.name, allUp.Seconds(),
		100*(after.cpu-before.cpu)/took, after.rss, after.pss, rate)
	died, diedBeside := "–", "–"
	if wanted&alone != 0 {
		if died, err = d.deaths(servers); err != nil {
			return err
		}
	}
	if wanted&besideHanging != 0 {
		servers.hang.set(hanging)
		time.Sleep((benchTimeout + 2) * time.Second)
		diedBeside, err = d.deaths(servers)
		servers.hang.set(answering)
		if err != nil {
			return err
		}
	}
	fmt.Println(row, died, "|", diedBeside, "|")
	return nil
}

// deaths has a server die and live again, at moments that fall anywhere in
// the interval, and tells how long it stays in the table.
func (d *benched) deaths(servers *benchServers) (string, error) {
	var took []time.Duration
	for i := range benchTrials {
		time.Sleep(time.Duration(370*(i+1)) * time.Millisecond)
		servers.probe.set(refusing)
		lag, err := d.until(probeAddr, false)
		servers.probe.set(answering)
		if err != nil {
			return "", err
		}
		took = append(took, lag)
		if _, err := d.until(probeAddr, true); err != nil {
			return "", err
		}
	}
	slices.Sort(took)
	return fmt.Sprintf("%.2f s, %.2f s", took[len(took)/2].Seconds(), took[len(took)-1].Seconds()), nil
}

// others are the processes of this PID namespace but ourselves: the director's.
func others() []int {
	var pids []int
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stopAll ends the director: in this namespace there is nobody else.
func stopAll() {
	for range 100 {
		left := others()
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type used struct{ cpu, rss, pss float64 } // seconds, of children that ended, too; MB

// usage adds up what proc(5) tells of the director's processes.
func usage() (u used) {
	for _, pid := range others() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		for _, f := range strings.Fields(after)[11:15] { // utime stime cutime cstime, in 1/100 s
			ticks, _ := strconv.ParseFloat(f, 64)
			u.cpu += ticks / 100
		}
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); len(f) == 3 {
				kb, _ := strconv.ParseFloat(f[1], 64)
				switch f[0] {
				case "Rss:":
					u.rss += kb / 1000
				case "Pss:":
					u.pss += kb / 1000
				}
			}
		}
	}
	return u
}

// benchServers are the real servers: all addresses of 127.0.0.0/8 at one
// port, and two that can be told to fail.
type benchServers struct {
	answered    atomic.Int64
	probe, hang *failing
}

func (s *benchServers) start() error {
	lc := net.ListenConfig{}
	l, err := lc.Listen(context.Background(), "tcp4", fmt.Sprintf("0.0.0.0:%d", benchPort))
	if err != nil {
		return err
	}
	go s.serve(l, new(atomic.Int32))
	s.probe, s.hang = &failing{addr: probeAddr, servers: s}, &failing{addr: hangAddr, servers: s}
	s.probe.set(answering)
	s.hang.set(answering)
	return nil
}

const (
	answering int32 = iota
	refusing
	hanging // accepts, is silent
)

const benchPage = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nConnection: close\r\n\r\nalive and OK\n"

func (s *benchServers) serve(l net.Listener, state *atomic.Int32) {
	buffers := sync.Pool{New: func() any { return new([1024]byte) }}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := buffers.Get().(*[1024]byte)
			defer buffers.Put(b)
			if n, err := c.Read(b[:]); err != nil || n == 0 {
				return
			}
			if state.Load() == hanging {
				_, _ = io.Copy(io.Discard, c) // until they give up
				return
			}
			_, _ = io.WriteString(c, benchPage) // they may have given up
			s.answered.Add(1)
		}()
	}
}

type failing struct {
	addr    string
	servers *benchServers
	state   atomic.Int32
	l       net.Listener
}

func (f *failing) set(state int32) {
	f.state.Store(state)
	if f.l != nil && state == refusing {
		f.l.Close()
		f.l = nil
	}
	for f.l == nil && state != refusing {
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp4", f.addr)
		if err == nil {
			f.l = l
			go f.servers.serve(l, &f.state)
		}
	}
}
