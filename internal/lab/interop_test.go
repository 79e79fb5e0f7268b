package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// The two directors of these tests, on two switches:
//
//	ours 10.77.0.1 ── eth0 ──┬── eth0 ── theirs 10.77.0.2
//	                         └── gate 10.77.0.254, a host that answers pings
//	ours 10.78.0.1 ── eth1 ───── eth1 ── theirs 10.78.0.2
//	ours /dev/ttyS0 ──── null modem ──── theirs /dev/ttyS0
//
// ours runs Batuta, theirs the original Heartbeat. Each owns one group of
// haresources: an address and a script that keeps a file while it runs.
const (
	ours   = "ours"
	theirs = "theirs"
	gate   = "10.77.0.254"
)

// other is the other node of the two.
func other(node string) string {
	if node == ours {
		return theirs
	}
	return ours
}

const duetResources = `ours IPaddr::10.77.0.101/24/eth0 dummy::one
theirs IPaddr::10.77.0.102/24/eth0 dummy::two
`

// dummy is a resource whose state is a file that a reboot removes. It stops
// slowly while there is a file /run/slow.
const dummy = `#!/bin/sh
f=/run/dummy-$1
case $2 in
start) : >$f;;
stop) while [ -e /run/slow ]; do : >/run/slowed; sleep 0.1; done; rm -f $f;;
status) if [ -e $f ]; then echo running; else echo stopped; exit 3; fi;;
esac
echo "$(date +%s.%N) $*" >>/var/log/dummy.log
`

// duet is two nodes, mostly one with Batuta and one with the real Heartbeat.
type duet struct {
	*testing.T
	*lab.Lab
	duetOptions
	heartbeat []string          // the original's service
	runs      map[string]string // what a node runs: batuta or heartbeat
	patient   bool              // another attempt follows if this one proves nothing
	modem     *nullModem        // of the medium serial
}

// unfit is why an attempt says nothing about Batuta.
type unfit string

// unfit looks for what would spoil any story: the original loses, at times,
// what its own scripts write to its FIFO, and then waits for it forever; a node
// that got no processor for longer than its patience is dead to the other.
func (d *duet) unfit() unfit {
	for _, n := range []string{ours, theirs} {
		for _, phrase := range []string{"Message with zero fields", "this node was not running for"} {
			if d.Node(n).Run(context.Background(), "grep", "-qF", phrase, "/var/log/ha-log") == nil {
				return unfit(n + " logged: " + phrase)
			}
		}
	}
	return ""
}

// Fatalf ends the attempt, and the test unless the attempt was unfit.
func (d *duet) Fatalf(format string, args ...any) {
	d.Helper()
	if d.patient {
		if why := d.unfit(); why != "" {
			d.Logf(format, args...)
			panic(why)
		}
	}
	d.T.Fatalf(format, args...)
}

// Fatal is Fatalf without a format.
func (d *duet) Fatal(args ...any) {
	d.Helper()
	d.Fatalf("%s", fmt.Sprint(args...))
}

// attempts is how often a story is begun anew when an attempt was unfit.
const attempts = 3

// tell tells a story to a new duet, and again if that proved nothing.
func tell(t *testing.T, o duetOptions, story func(*duet)) {
	t.Helper()
	for i := 1; i <= attempts; i++ {
		d := newDuet(t, o)
		d.patient = i < attempts
		why := d.hear(story)
		if why == "" {
			return
		}
		t.Logf("attempt %d is not counted: %s", i, why)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// hear tells whether, and why, the attempt was unfit.
func (d *duet) hear(story func(*duet)) (why unfit) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case unfit:
			why = v
		default:
			panic(v)
		}
	}()
	story(d)
	return ""
}

// duetOptions are what differs from one duet to another.
type duetOptions struct {
	auth     string // a method of authkeys
	media    string // of duetMedia
	failback string // on, off, legacy
	first    string // the node that starts first
	extra    string // more lines of ha.cf
}

var duetAuth = map[string]string{"crc": "crc", "md5": "md5 secret", "sha1": "sha1 a#longer#secret"}

// duetMedia are lines of ha.cf; PEER is the other node's number.
// The multicast groups have ports of their own: the original hears a group that
// it has joined on one interface on every other one, too.
var duetMedia = map[string]string{
	"bcast": "bcast eth0 eth1",
	"mcast": "mcast eth0 225.0.0.1 694 1 0\nmcast eth1 225.0.0.2 695 1 0",
	"ucast": "ucast eth0 10.77.0.PEER\nucast eth1 10.78.0.PEER",

	"mcast6": "mcast6 eth0 ff02::77 694 1 0\nmcast6 eth1 ff02::78 695 1 0",
	"ucast6": "ucast6 eth0 fd77::PEER\nucast6 eth1 fd78::PEER",
	"serial": "baud 115200\nserial " + serialDevice,
}

// files are those of a node whose peer has that number.
func (o duetOptions) files(peer string) map[string]lab.File {
	cf := `logfile /var/log/ha-log
debugfile /var/log/ha-debug
keepalive 200ms
deadtime 5
warntime 2
initdead 8
` + strings.ReplaceAll(duetMedia[o.media], "PEER", peer) + `
ping ` + gate + `
auto_failback ` + o.failback + `
node ours
node theirs
` + o.extra
	return map[string]lab.File{
		"/etc/ha.d/ha.cf":            {Data: []byte(cf)},
		"/etc/ha.d/authkeys":         {Data: []byte("auth 1\n1 " + duetAuth[o.auth] + "\n"), Mode: 0o600},
		"/etc/ha.d/haresources":      {Data: []byte(duetResources)},
		"/etc/ha.d/resource.d/dummy": {Data: []byte(dummy), Mode: 0o755},
	}
}

// newDuet boots the two machines; their services wait for StartService.
func newDuet(t *testing.T, o duetOptions) *duet {
	t.Helper()
	tree := debianTree(t, lab.HeartbeatPackages...)
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	topology := lab.Topology{Bridges: []string{"wire0", "wire1"}, Machines: []lab.Machine{
		{Name: ours, Interfaces: []lab.Interface{nic("eth0", "wire0", "10.77.0.1/24", "fd77::1/64"), nic("eth1", "wire1", "10.78.0.1/24", "fd78::1/64")}},
		{Name: theirs, Interfaces: []lab.Interface{nic("eth0", "wire0", "10.77.0.2/24", "fd77::2/64"), nic("eth1", "wire1", "10.78.0.2/24", "fd78::2/64")}},
		{Name: "gate", Interfaces: []lab.Interface{nic("eth0", "wire0", gate+"/24")}},
	}}
	var heartbeat []string
	for node, peer := range map[string]string{ours: "2", theirs: "1"} {
		m := topology.Machine(node)
		m.RealHeartbeat(tree, o.files(peer))
		heartbeat, m.Service = m.Service, nil // not at the first boot
	}
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
	d := &duet{T: t, Lab: l, duetOptions: o, heartbeat: heartbeat, runs: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			mu.Lock()
			t.Logf("what the nodes printed:\n%s", log.String())
			mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			for _, n := range []string{ours, theirs} {
				text, _ := l.Node(n).Output(ctx, "tail", "-n", "150", "/var/log/ha-log")
				t.Logf("what %s logged:\n%s", n, text)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	d.use(ours, "batuta")
	d.use(theirs, "heartbeat")
	if o.media == "serial" {
		d.modem = newNullModem(d)
	}
	return d
}

// use says what the node runs from its next start on.
func (d *duet) use(node, program string) {
	d.runs[node] = program
	service := []string{"batuta", "run", "--ha.d", "/etc/ha.d"}
	if program != "batuta" {
		service = d.heartbeat
	}
	if d.media == "serial" {
		service = append([]string{"sh", "-c", "until [ -e " + serialDevice + ` ]; do sleep 0.1; done; exec "$@"`, "sh"}, service...)
	}
	d.Node(node).SetService(service...)
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

// settled waits until each node has what it should.
func (d *duet) settled(story, atOurs, atTheirs string) {
	d.Helper()
	want := fmt.Sprintf("ours %q theirs %q", atOurs, atTheirs)
	d.eventually(story, func() string {
		if got := fmt.Sprintf("ours %q theirs %q", d.holds(ours), d.holds(theirs)); got != want {
			return got + ", want " + want
		}
		return ""
	})
}

// agree waits until each daemon sees both nodes active and nothing is under
// way: only then is a hand-over accepted, or a clean stop prompt.
func (d *duet) agree() {
	d.Helper()
	d.eventually("they agree", func() string {
		for _, at := range []string{ours, theirs} {
			for _, n := range []string{ours, theirs} {
				if s, err := d.clStatus(at, "nodestatus", n); err != nil || s != "active" {
					return fmt.Sprintf("%s says that %s is %s, %v", at, n, s, err)
				}
			}
			if s, err := d.clStatus(at, "rscstatus"); err != nil || s == "transition" {
				return fmt.Sprintf("%s is in %s, %v", at, s, err)
			}
		}
		return ""
	})
}

// tool is how a tool of the original's is called on a node: Batuta has them all.
func (d *duet) tool(name, node string, args ...string) []string {
	switch {
	case d.runs[node] == "batuta":
		return append([]string{"batuta", name}, args...)
	case name == "cl_status":
		return append([]string{name}, args...)
	}
	return append([]string{"/usr/share/heartbeat/" + name}, args...)
}

// clStatus asks the daemon of a node.
func (d *duet) clStatus(node string, args ...string) (string, error) {
	out, err := d.Node(node).Output(d.Context(), d.tool("cl_status", node, args...)...)
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
