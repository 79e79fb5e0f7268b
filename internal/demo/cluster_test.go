package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

func program(t *testing.T) string {
	t.Helper()
	b, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// needRoot skips without root; where root is required a skip is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	err := lab.Available()
	switch {
	case err == nil:
	case os.Getenv("BATUTA_REQUIRE_ROOT") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// cluster is the tutorial's cluster in the lab, with the program in it.
type cluster struct {
	*testing.T
	*lab.Lab
}

func newCluster(t *testing.T, o lab.Options) *cluster {
	t.Helper()
	needRoot(t)
	o.Binary = program(t)
	var mu sync.Mutex
	var log strings.Builder
	o.Log = func(node, line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&log, "%s: %s\n", node, line)
	}
	l, err := lab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
		if t.Failed() {
			mu.Lock()
			defer mu.Unlock()
			t.Logf("what the nodes printed:\n%s", log.String())
		}
	})
	return &cluster{t, l}
}

func (c *cluster) out(node string, args ...string) string {
	c.Helper()
	text, err := c.Node(node).Output(c.Context(), args...)
	if err != nil {
		c.Fatalf("%s: %v: %v", node, args, err)
	}
	return text
}

// eventually waits for a fact; it decides nothing by time but that something
// never comes.
func (c *cluster) eventually(what string, fact func() (bool, string)) {
	c.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		ok, seen := fact()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("%s: never came true; last seen:\n%s", what, seen)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *cluster) status(node string) (st api.Status, err error) {
	text, err := c.Node(node).Output(c.Context(), "batuta", "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &st)
	}
	return st, err
}

// holder waits until exactly that node of the two has every resource.
func (c *cluster) holder(node string, alive ...string) {
	c.Helper()
	c.eventually(node+" alone holds every resource", func() (bool, string) {
		for _, n := range alive {
			st, err := c.status(n)
			if err != nil {
				return false, err.Error()
			}
			for _, r := range st.Resources {
				if (r.Here == model.ResourceRunning) != (n == node) || r.State != model.ResourceRunning || r.Node != model.NodeName(node) {
					return false, fmt.Sprintf("%s says: %+v", n, st.Resources)
				}
			}
			has := strings.Contains(c.out(n, "ip", "-4", "-o", "addr"), " "+lab.TutorialVIP+"/24 ")
			if has != (n == node) {
				return false, c.out(n, "ip", "-4", "-o", "addr")
			}
		}
		return true, ""
	})
}

// fetch asks for a page once and returns the name of who answered correctly,
// or "-".
func (c *cluster) fetch(path, want string) string {
	c.Helper()
	text := c.out("client", "batuta", "demo", "load", "--count", "1", "--url", "http://"+lab.TutorialVIP+path, "--want", want)
	_, server, _ := strings.Cut(strings.TrimSpace(text), " ")
	return server
}

// answers fetches n pages and counts who answered.
func (c *cluster) answers(n int) map[string]int {
	c.Helper()
	by := map[string]int{}
	for range n {
		by[c.fetch("/.testpage", lab.PageText)]++
	}
	return by
}

// reals waits until exactly these of the real servers take new connections.
func (c *cluster) reals(director string, want map[string]int) {
	c.Helper()
	c.eventually(fmt.Sprintf("new connections go to %v", want), func() (bool, string) {
		st, err := c.status(director)
		if err != nil {
			return false, err.Error()
		}
		up := 0
		for _, r := range st.Services[0].Reals {
			if r.Status == model.Up {
				up++
			}
		}
		if up != len(want) {
			return false, fmt.Sprintf("%+v", st.Services)
		}
		got := c.answers(4 * len(want))
		return maps.Equal(got, want), fmt.Sprint(got)
	})
}

// The whole story of the tutorial, with its own files.
func TestTutorial(t *testing.T) {
	c := newCluster(t, lab.Options{})
	t.Log("the nodes have the tutorial's files, byte for byte")
	for have, source := range map[string]string{"ha.cf": "ha.cf", "authkeys": "authkeys",
		"haresources": "haresources-with-gateways", "ldirectord.cf": "ldirectord.cf"} {
		want, err := lab.TutorialFiles.ReadFile("tutorial/" + source)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"lvs01", "lvs02"} {
			if got := c.out(n, "cat", "/etc/ha.d/"+have); got != string(want) {
				t.Errorf("%s on %s is not the tutorial's:\n%s", have, n, got)
			}
		}
	}

	t.Log("both start: lvs01 gets what haresources gives it, labels as ifconfig shows them")
	c.holder("lvs01", "lvs01", "lvs02")
	addrs := c.out("lvs01", "ip", "-4", "-o", "addr")
	for _, want := range []string{"10.1.0.100/24 brd 10.1.0.255 scope global secondary eth0:0",
		"10.240.0.1/24 brd 10.240.0.255 scope global secondary eth1:0", "10.240.1.1/24 brd 10.240.1.255 scope global secondary eth1:1"} {
		if !strings.Contains(addrs, want) {
			t.Errorf("lvs01 has no %q:\n%s", want, addrs)
		}
	}
	c.reals("lvs01", map[string]int{"web1": 4, "web2": 4, "web3": 4, "web4": 4})
	if table := c.out("lvs02", "batuta", "table", "--save"); table != c.out("lvs01", "batuta", "table", "--save") {
		t.Errorf("the standby is not warm:\n%s", table)
	}

	t.Log("a second daemon on the same run directory is refused")
	if text, err := c.Node("lvs01").Output(t.Context(), "batuta", "run", "--ha.d", "/etc/ha.d"); err == nil ||
		!strings.Contains(err.Error(), "another instance holds the run directory /run/batuta") {
		t.Errorf("a second instance: %v\n%s", err, text)
	}

	t.Log("a real server dies and returns")
	if err := c.Node("web2").StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.reals("lvs01", map[string]int{"web1": 4, "web3": 4, "web4": 4})
	if table := c.out("lvs01", "batuta", "table"); !strings.Contains(table, "  -> 10.240.0.21:80               Masq    0 ") {
		t.Errorf("web2 has no row with weight 0 (quiescent=yes):\n%s", table)
	}
	if err := c.Node("web2").StartService(); err != nil {
		t.Fatal(err)
	}
	c.reals("lvs01", map[string]int{"web1": 4, "web2": 4, "web3": 4, "web4": 4})

	t.Log("all real servers die: the fallback on the director answers, and leaves when one is back")
	for i := 1; i <= 4; i++ {
		if err := c.Node(fmt.Sprintf("web%d", i)).StopService(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("the page says sorry", func() (bool, string) {
		server := c.fetch("/", "sorry, back soon")
		return server == "lvs01", server
	})
	for i := 1; i <= 4; i++ {
		if err := c.Node(fmt.Sprintf("web%d", i)).StartService(); err != nil {
			t.Fatal(err)
		}
	}
	c.reals("lvs01", map[string]int{"web1": 4, "web2": 4, "web3": 4, "web4": 4})

	t.Log("heartbeat is stopped on lvs01: lvs02 takes over; it comes back with its resources")
	if err := c.Node("lvs01").StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := c.Node("lvs01").Service().ExitCode(); code != 0 {
		t.Errorf("batuta run ended with %d after TERM, not 0", code)
	}
	c.holder("lvs02", "lvs02")
	if addrs := c.out("lvs01", "ip", "-4", "-o", "addr"); strings.Contains(addrs, "10.1.0.100") || strings.Contains(addrs, "10.240.0.1/") {
		t.Errorf("addresses stayed on lvs01 after a clean stop:\n%s", addrs)
	}
	c.reals("lvs02", map[string]int{"web1": 4, "web2": 4, "web3": 4, "web4": 4})
	if err := c.Node("lvs01").StartService(); err != nil {
		t.Fatal(err)
	}
	c.holder("lvs01", "lvs01", "lvs02")

	t.Log("power loss on lvs01: lvs02 takes over after the deadtime; power returns, and so do the resources")
	boot := c.Node("lvs01").BootID()
	if err := c.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	c.holder("lvs02", "lvs02")
	c.reals("lvs02", map[string]int{"web1": 4, "web2": 4, "web3": 4, "web4": 4})
	if err := c.Boot(t.Context(), "lvs01"); err != nil {
		t.Fatal(err)
	}
	if c.Node("lvs01").BootID() == boot {
		t.Error("the boot id is that of before the power loss")
	}
	c.holder("lvs01", "lvs01", "lvs02")

	t.Log("the heartbeat link is cut: both hold; it heals: one of them lets go")
	if err := c.Cut("lvs02", "eth1"); err != nil {
		t.Fatal(err)
	}
	c.holder("lvs02", "lvs02")
	if err := c.Heal("lvs02"); err != nil {
		t.Fatal(err)
	}
	c.holder("lvs01", "lvs01", "lvs02")
	c.reals("lvs01", map[string]int{"web1": 4, "web2": 4, "web3": 4, "web4": 4})

	t.Log("the log files look like those of the programs before")
	for file, want := range map[string]string{
		"/var/log/ha-log":         " lvs01 heartbeat: [",
		"/var/log/ldirectord.log": "] Quiescent real server: 10.240.0.21:80 (10.1.0.100:80) (Weight set to 0)\n",
	} {
		if text := c.out("lvs01", "cat", file); !strings.Contains(text, want) {
			t.Errorf("%s has no %q:\n%s", file, want, text)
		}
	}
}

// A capture of the heartbeat link is what debug decode reads.
func TestHeartbeatsOfTheLabDecode(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(t, lab.Options{PcapDir: dir})
	c.holder("lvs01", "lvs01", "lvs02")
	keys := filepath.Join(dir, "authkeys")
	text, err := lab.TutorialFiles.ReadFile("tutorial/authkeys")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keys, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c.eventually("both nodes' messages are in the capture, signed and typed", func() (bool, string) {
		out, err := exec.CommandContext(t.Context(), program(t), "debug", "decode", "--authkeys", keys, filepath.Join(dir, "inside.pcap")).Output()
		if err != nil {
			return false, err.Error()
		}
		seen := map[string]bool{}
		for line := range strings.Lines(string(out)) {
			var m struct {
				OK     bool   `json:"auth_ok"`
				Type   string `json:"type"`
				Fields map[string]string
			}
			if err := json.Unmarshal([]byte(line), &m); err != nil || !m.OK {
				return false, line
			}
			seen[m.Fields["src"]+" "+m.Type] = true
		}
		return seen["lvs01 status"] && seen["lvs02 status"] && seen["lvs01 resource"], fmt.Sprint(seen)
	})
}

// The bare haresources of the tutorial is accepted; its flat ldirectord.cf too.
func TestTutorialVariantsAreAccepted(t *testing.T) {
	for _, c := range []struct{ haresources, ldirectord, warning string }{
		{"haresources-with-gateways", "ldirectord-flat.cf", "ldirectord.cf:"},
		{"haresources", "ldirectord.cf", "haresources:"},
	} {
		dir := t.TempDir()
		for have, source := range map[string]string{"ha.cf": "ha.cf", "authkeys": "authkeys", "haresources": c.haresources, "ldirectord.cf": c.ldirectord} {
			text, err := lab.TutorialFiles.ReadFile("tutorial/" + source)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, have), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.CommandContext(t.Context(), program(t), "check-config", dir).Output()
		if err != nil {
			t.Errorf("check-config of %s and %s: %v\n%s", c.haresources, c.ldirectord, err, out)
		}
		var warnings []string
		for line := range strings.Lines(string(out)) {
			// This machine need not be one of the tutorial's.
			if !strings.Contains(line, "/ha.cf:") {
				warnings = append(warnings, line)
			}
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], c.warning) || !strings.Contains(warnings[0], ": warning: ") {
			t.Errorf("%s and %s: want exactly one warning about %s, got %q", c.haresources, c.ldirectord, c.warning, warnings)
		}
	}
}

func runDemo(t *testing.T, args ...string) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t), append([]string{"demo", "--json"}, args...)...)
	var account strings.Builder
	cmd.Stderr = &account
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, account.String())
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil || strings.Count(string(out), "\n") != 1 {
		t.Fatalf("want one object on one line, got %q (%v)", out, err)
	}
	return r
}

func checkReport(t *testing.T, r Report, mode, plane string) {
	t.Helper()
	if r.Mode != mode || r.Plane != plane || r.RealServers != 4 || len(r.Distribution) != 4 {
		t.Errorf("report: %+v", r)
	}
	answered := 0
	for _, n := range r.Distribution {
		answered += n
	}
	if answered+r.Failed != r.Requests || answered == 0 {
		t.Errorf("%d answers and %d failures are not %d requests", answered, r.Failed, r.Requests)
	}
	if len(r.Failovers) != 2 || r.Failovers[0].Cause != "handover" || r.Failovers[1].Cause != "crash" {
		t.Fatalf("failovers: %+v", r.Failovers)
	}
	for _, f := range r.Failovers {
		if f.GapMS <= 0 || f.From != "lvs01" || f.To != "lvs02" {
			t.Errorf("failover: %+v", f)
		}
	}
}

func TestDemoOnLoopbackAddresses(t *testing.T) {
	checkReport(t, runDemo(t, "--loopback", "--duration", "12s"), "loopback", "proxy")
}

func TestDemoInNamespaces(t *testing.T) {
	needRoot(t)
	checkReport(t, runDemo(t, "--duration", "12s"), "netns", "ebpf")
}

// Ctrl-C in the middle takes everything down, too.
func TestDemoInterrupted(t *testing.T) {
	scratch := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program(t), "demo", "--loopback")
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	var seen strings.Builder
	for !strings.Contains(seen.String(), "load:") {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("the demo ended before its load began: %v\n%s", err, seen.String())
		}
		seen.Write(buf[:n])
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = out.Read(buf)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted demo says that all went well")
	}
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("left behind in the scratch directory: %v", left)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), scratch) {
			t.Errorf("left running: %q", b)
		}
	}
}

// quickHaD is the tutorial's /etc/ha.d with a deadtime of a second and other
// resources.
func quickHaD(t *testing.T, haresources string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"ha.cf", "authkeys", "ldirectord.cf"} {
		text, err := tutorialFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "ha.cf" {
			text = paced(text, 6*time.Second)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "haresources"), []byte(haresources), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// stubborn is a resource that stops only when it is allowed to.
const stubborn = `#!/bin/sh
case "$1" in
start) touch /run/stubborn ;;
stop) while [ -e /run/stubborn ] && [ ! -e /run/allowed ]; do sleep 0.05; done; rm -f /run/stubborn ;;
status) [ -e /run/stubborn ] && echo running || echo stopped ;;
esac
`

// A node that cannot stop a resource goes on beating: nothing starts twice.
func TestAStopThatTakesLong(t *testing.T) {
	top := lab.Tutorial()
	for _, n := range []string{"lvs01", "lvs02"} {
		top.Machine(n).Files = map[string]lab.File{"/etc/init.d/stubborn": {Data: []byte(stubborn), Mode: 0o755}}
	}
	c := newCluster(t, lab.Options{Topology: top, HaD: os.DirFS(quickHaD(t, "lvs01 10.1.0.100 10.240.0.1 10.240.1.1 ldirectord stubborn\n"))})
	c.holder("lvs01", "lvs01", "lvs02")
	first := c.Node("lvs01").Service()
	if err := first.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.eventually("lvs01 says what it is still stopping", func() (bool, string) {
		st, err := c.status("lvs01")
		if err != nil {
			return false, err.Error()
		}
		return st.State == "stopping" && st.Resources[len(st.Resources)-1].Here == model.ResourceStopping, fmt.Sprintf("%+v", st)
	})
	t.Log("several deadtimes later nothing runs on lvs02, and lvs01 still beats")
	time.Sleep(4 * time.Second)
	if st, err := c.status("lvs02"); err != nil || st.State != "standby" || st.Peers[0].State != "active" {
		t.Errorf("lvs02: %+v, %v", st, err)
	}
	c.out("lvs01", "touch", "/run/allowed")
	if err := first.Wait(); err != nil {
		t.Errorf("once allowed, the stop is clean: %v", err)
	}
	c.holder("lvs02", "lvs02")

	t.Log("a second TERM ends a node at once, whatever runs; the other takes over after the deadtime")
	second := c.Node("lvs02").Service()
	for range 2 {
		if err := second.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		c.eventually("lvs02 is stopping", func() (bool, string) {
			st, err := c.status("lvs02")
			return err != nil || st.State == "stopping", fmt.Sprintf("%+v %v", st, err)
		})
	}
	if err := second.Wait(); err == nil {
		t.Error("a forced end looks like a clean one")
	}
}

// A standard error that nobody reads costs lines, not the takeover.
func TestAFullPipeDoesNotStopANode(t *testing.T) {
	top := lab.Tutorial()
	top.Machine("lvs02").Service = []string{"sh", "-c",
		"sh -c 'echo $$ >/run/daemon; exec batuta run --ha.d /etc/ha.d' 2>&1 | { exec sleep 600; }"}
	c := newCluster(t, lab.Options{Topology: top, HaD: os.DirFS(quickHaD(t, "lvs01 10.1.0.100 10.240.0.1 10.240.1.1 ldirectord\n"))})
	c.holder("lvs01", "lvs01", "lvs02")
	t.Log("the pipe of 64 kB is filled, and its reader does not read")
	c.out("lvs02", "sh", "-c", "head -c 70000 /dev/zero >/proc/$(cat /run/daemon)/fd/2 & sleep 0.3; kill $!")
	if err := c.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	c.holder("lvs02", "lvs02")
}
