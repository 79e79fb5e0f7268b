package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/lab"
)

// program is Batuta as it is shipped: $BATUTA_BIN, else built once.
var program = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("BATUTA_BIN"); b != "" {
		return b, nil
	}
	dir, err := os.MkdirTemp("", "batuta-bin-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "batuta")
	cmd := exec.Command("go", "build", "-o", out, "../../cmd/batuta")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, text)
	}
	return out, nil
})

// The two directors of these tests, on one switch:
//
//	ours 10.77.0.1 ── eth0 ──┬── eth0 ── theirs 10.77.0.2
//	                        gate 10.77.0.254, a host that answers pings
//
// ours runs Batuta, theirs the original Heartbeat. Each owns one group of
// haresources: an address and a script that keeps a file while it runs.
const (
	ours   = "ours"
	theirs = "theirs"
)

const duetResources = `ours IPaddr::10.77.0.101/24/eth0 dummy::one
theirs IPaddr::10.77.0.102/24/eth0 dummy::two
`

// dummy is a resource whose state is a file that a reboot removes.
const dummy = `#!/bin/sh
f=/run/dummy-$1
case $2 in
start) : >$f;;
stop) rm -f $f;;
status) if [ -e $f ]; then echo running; else echo stopped; exit 3; fi;;
esac
echo "$(date +%s.%N) $*" >>/var/log/dummy.log
`

// duet is one Batuta node and one real Heartbeat node.
type duet struct {
	*testing.T
	*lab.Lab
}

// duetOptions are what differs from one duet to another.
type duetOptions struct {
	auth     string // line of authkeys behind its number
	media    string // lines of ha.cf; NODE is the other node's address
	failback string
	extra    string // more lines of ha.cf
}

func (o duetOptions) files(peer string) map[string]lab.File {
	cf := `logfile /var/log/ha-log
debugfile /var/log/ha-debug
keepalive 200ms
deadtime 2
warntime 1
initdead 3
` + strings.ReplaceAll(o.media, "NODE", peer) + `
auto_failback ` + o.failback + `
node ours
node theirs
` + o.extra
	return map[string]lab.File{
		"/etc/ha.d/ha.cf":            {Data: []byte(cf)},
		"/etc/ha.d/authkeys":         {Data: []byte("auth 1\n1 " + o.auth + "\n"), Mode: 0o600},
		"/etc/ha.d/haresources":      {Data: []byte(duetResources)},
		"/etc/ha.d/resource.d/dummy": {Data: []byte(dummy), Mode: 0o755},
	}
}

// newDuet boots the two machines; their services wait for StartService.
func newDuet(t *testing.T, o duetOptions) *duet {
	t.Helper()
	tree := debianTree(t, lab.HeartbeatPackages...)
	binary, err := program()
	if err != nil {
		t.Fatal(err)
	}
	topology := lab.Topology{Bridges: []string{"wire"}, Machines: []lab.Machine{
		{Name: ours, Interfaces: []lab.Interface{nic("eth0", "wire", "10.77.0.1/24")}, Files: o.files("10.77.0.2")},
		{Name: theirs, Interfaces: []lab.Interface{nic("eth0", "wire", "10.77.0.2/24")}},
		{Name: "gate", Interfaces: []lab.Interface{nic("eth0", "wire", "10.77.0.254/24")}},
	}}
	real := topology.Machine(theirs)
	real.RealHeartbeat(tree, o.files("10.77.0.1"))
	heartbeat := real.Service
	real.Service = nil // not at the first boot
	var mu sync.Mutex
	var log strings.Builder
	begin := time.Now()
	l, err := lab.Start(t.Context(), lab.Options{Topology: topology, Binary: binary, PcapDir: os.Getenv("BATUTA_PCAP"), Log: func(node, line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&log, "%7.2f %s: %s\n", time.Since(begin).Seconds(), node, line)
	}})
	if err != nil {
		t.Fatal(err)
	}
	d := &duet{t, l}
	t.Cleanup(func() {
		if t.Failed() {
			mu.Lock()
			t.Logf("what ours printed:\n%s", log.String())
			mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			text, _ := l.Node(theirs).Output(ctx, "tail", "-n", "150", "/var/log/ha-log")
			t.Logf("what theirs logged:\n%s", text)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	l.Node(ours).SetService("batuta", "run", "--ha.d", "/etc/ha.d")
	l.Node(theirs).SetService(heartbeat...)
	return d
}

func nic(name, bridge string, addresses ...string) lab.Interface {
	i := lab.Interface{Name: name, Bridge: bridge}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
	}
	return i
}

func (d *duet) start(node string) {
	d.Helper()
	if err := d.Node(node).StartService(); err != nil {
		d.Fatal(err)
	}
}

// holds lists what a node has: "one two 101 102", as its kernel and its file
// system say.
func (d *duet) holds(node string) string {
	if !d.Node(node).Up() {
		return ""
	}
	out, err := d.Node(node).Output(d.Context(), "sh", "-c", `cd /run; for f in dummy-*; do [ -e $f ] && echo ${f#dummy-}; done; ip -o -4 addr show dev eth0`)
	if err != nil {
		return err.Error()
	}
	var has []string
	for line := range strings.Lines(out) {
		w := strings.Fields(line)
		switch {
		case len(w) == 1:
			has = append(has, w[0])
		case len(w) > 3 && strings.HasPrefix(w[3], "10.77.0.10"):
			has = append(has, strings.TrimSuffix(strings.TrimPrefix(w[3], "10.77.0."), "/24"))
		}
	}
	slices.Sort(has)
	return strings.Join(has, " ")
}

const (
	nothing = ""
	ourSet  = "101 one"
	theySet = "102 two"
	both    = "101 102 one two"
)

// settled waits until each node has what it should, and both daemons say so.
func (d *duet) settled(story, atOurs, atTheirs string) {
	d.Helper()
	d.eventually(story, func() string {
		got := fmt.Sprintf("ours %q theirs %q", d.holds(ours), d.holds(theirs))
		if want := fmt.Sprintf("ours %q theirs %q", atOurs, atTheirs); got != want {
			return got + ", want " + want
		}
		return ""
	})
}

// active waits until each daemon sees both nodes active and nothing is under way.
func (d *duet) active(story string) {
	d.Helper()
	d.eventually(story+": each sees the other", func() string {
		st, err := d.status()
		if err != nil {
			return "batuta status: " + err.Error()
		}
		for _, p := range st.Peers {
			if p.State != "active" {
				return fmt.Sprintf("ours says that %s is %s", p.Name, p.State)
			}
		}
		for _, n := range []string{ours, theirs} {
			if s, err := d.clStatus("nodestatus", n); err != nil || s != "active" {
				return fmt.Sprintf("theirs says that %s is %s, %v", n, s, err)
			}
		}
		if s, err := d.clStatus("rscstatus"); err != nil || s == "transition" {
			return fmt.Sprintf("theirs is in %s, %v", s, err)
		}
		return ""
	})
}

func (d *duet) status() (st api.Status, err error) {
	text, err := d.Node(ours).Output(d.Context(), "batuta", "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &st)
	}
	return st, err
}

func (d *duet) clStatus(args ...string) (string, error) {
	out, err := d.Node(theirs).Output(d.Context(), append([]string{"cl_status"}, args...)...)
	return strings.TrimSpace(out), err
}

// eventually waits until nothing is missing any more.
func (d *duet) eventually(story string, missing func() string) {
	d.Helper()
	begin := time.Now()
	deadline := begin.Add(90 * time.Second)
	for {
		m := missing()
		if m == "" {
			d.Logf("%s: after %.1f s", story, time.Since(begin).Seconds())
			return
		}
		if time.Now().After(deadline) || d.Context().Err() != nil {
			d.Fatalf("%s: not after %.0f s: %s", story, time.Since(begin).Seconds(), m)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// A Batuta node and a real Heartbeat 3.0.6 node are a cluster.
func TestInteropColdStart(t *testing.T) {
	for _, first := range []string{ours, theirs} {
		t.Run(first+" first", func(t *testing.T) {
			d := newDuet(t, duetOptions{auth: "md5 secret", media: "bcast eth0", failback: "on"})
			d.start(first)
			d.start(map[string]string{ours: theirs, theirs: ours}[first])
			d.settled("cold start", ourSet, theySet)
			d.active("cold start")
		})
	}
}
