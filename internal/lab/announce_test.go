package lab_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// trio is two directors that hold addresses of IPv4 and IPv6, and a machine on
// their wire that is none of theirs. Heartbeats go over a wire of their own.
type trio struct {
	*testing.T
	*lab.Lab
	mu  sync.Mutex
	log map[string]string
}

const (
	trioVIP  = "10.1.0.100"
	trioVIP6 = "2001:db8::100"
)

func newTrio(t *testing.T) *trio {
	t.Helper()
	requireRoot(t)
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	topology := lab.Topology{Bridges: []string{"wire", "beats"}, Machines: []lab.Machine{
		{Name: "third", Interfaces: []lab.Interface{nic("eth0", "wire", "10.1.0.10/24", "2001:db8::10/64")}},
	}}
	for i, name := range []string{"d1", "d2"} {
		topology.Machines = append(topology.Machines, lab.Machine{Name: name,
			Interfaces: []lab.Interface{nic("eth0", "wire", fmt.Sprintf("10.1.0.%d/24", i+1), fmt.Sprintf("2001:db8::%d/64", i+1)), nic("eth1", "beats", fmt.Sprintf("10.2.0.%d/24", i+1))},
			Service:    []string{"batuta", "run", "--ha.d", "/etc/ha.d"},
			Files: map[string]lab.File{
				"/etc/ha.d/ha.cf":       {Data: []byte("keepalive 100ms\ndeadtime 3\ninitdead 10\nbcast eth1\nauto_failback off\nquarantine 0\nnode d1\nnode d2\n")},
				"/etc/ha.d/authkeys":    {Data: []byte("auth 1\n1 sha1 secret\n"), Mode: 0o600},
				"/etc/ha.d/haresources": {Data: []byte("d1 IPaddr2::" + trioVIP + "/24/eth0 IPv6addr::" + trioVIP6 + "/64/eth0\n")},
			}})
	}
	d := &trio{T: t, log: map[string]string{}}
	d.Lab, err = lab.Start(t.Context(), lab.Options{Topology: topology, Binary: binary, Log: func(node, line string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.log[node] += line + "\n"
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			d.mu.Lock()
			t.Logf("d1:\n%s\nd2:\n%s", d.log["d1"], d.log["d2"])
			d.mu.Unlock()
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// on runs a command on a node that must succeed.
func (d *trio) on(node string, args ...string) string {
	d.Helper()
	return output(d.T, d.Lab, node, args...)
}

// holders are the directors that have both addresses, or one of them.
func (d *trio) holders() string {
	d.Helper()
	var all []string
	for _, node := range []string{"d1", "d2"} {
		text := d.on(node, "ip", "-o", "addr", "show", "dev", "eth0")
		switch four, six := strings.Contains(text, trioVIP+"/"), strings.Contains(text, trioVIP6+"/"); {
		case four && six:
			all = append(all, node)
		case four || six:
			all = append(all, node+" (one)")
		}
	}
	return strings.Join(all, " ")
}

// said tells whether the node's log has that phrase.
func (d *trio) said(node, phrase string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Contains(d.log[node], phrase)
}

// eventually waits until nothing is missing any more.
func (d *trio) eventually(story string, missing func() string) {
	d.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		m := missing()
		if m == "" {
			return
		}
		if time.Now().After(deadline) {
			d.Fatalf("%s: not after 90 s: %s", story, m)
		}
	}
}

func (d *trio) held(story, want string) {
	d.Helper()
	d.eventually(story, func() string {
		if got := d.holders(); got != want {
			return fmt.Sprintf("the addresses are on %q, not on %q", got, want)
		}
		return ""
	})
}

// hardware is where the third machine sends what is for an address.
func (d *trio) hardware(address string) string {
	d.Helper()
	w := strings.Fields(d.on("third", "ip", "neigh", "show", "to", address, "dev", "eth0"))
	for i := range w[:max(0, len(w)-1)] {
		if w[i] == "lladdr" {
			return w[i+1]
		}
	}
	return ""
}

var trioMAC = map[string]string{"d1": "02:00:0a:01:00:01", "d2": "02:00:0a:01:00:02"}

// After a split both directors have announced the addresses, and a third
// machine believes the one or the other. When it heals the one that keeps them
// announces them again, after the other has let go: what the third machine
// believed, it then reaches the right one, without waiting for its cache to
// age. (There is no black hole as after a split of keepalived.) Meanwhile each
// says that the other has the addresses, too.
func TestAfterASplitTheNetworkIsTold(t *testing.T) {
	t.Parallel()
	d := newTrio(t)
	d.held("start", "d1")
	for _, believed := range []string{"d2", "d1"} {
		d.eventually("they see each other", func() string {
			for _, node := range []string{"d1", "d2"} {
				if s, _ := d.Node(node).Output(d.Context(), "batuta", "cl_status", "rscstatus"); strings.TrimSpace(s) == "transition" {
					return node + " is in transition"
				}
				if s, _ := d.Node(node).Output(d.Context(), "batuta", "cl_status", "nodestatus", otherDirector(node)); strings.TrimSpace(s) != "active" {
					return node + " sees its peer " + s
				}
			}
			return ""
		})
		if err := d.Cut("d2", "eth1"); err != nil {
			d.Fatal(err)
		}
		d.held("the nodes lose each other", "d1 d2")
		d.eventually("both say that the other has the addresses", func() string {
			for node, mac := range trioMAC {
				for _, address := range []string{trioVIP, trioVIP6} {
					if phrase := "address " + address + " is on two machines: " + mac; !strings.Contains(d.on(otherDirector(node), "batuta", "status"), phrase) {
						return otherDirector(node) + " does not show: " + phrase
					}
				}
			}
			return ""
		})
		for _, address := range []string{trioVIP, trioVIP6} {
			d.on("third", "ip", "neigh", "replace", address, "lladdr", trioMAC[believed], "dev", "eth0", "nud", "reachable")
		}
		if err := d.Heal("d2", "eth1"); err != nil {
			d.Fatal(err)
		}
		d.eventually("one of them has let go", func() string {
			if got := d.holders(); got != "d1" && got != "d2" {
				return "the addresses are on " + got
			}
			return ""
		})
		winner := d.holders()
		d.eventually("the third machine knows "+winner, func() string {
			for _, address := range []string{trioVIP, trioVIP6} {
				if got := d.hardware(address); got != trioMAC[winner] {
					return fmt.Sprintf("it sends what is for %s to %s", address, got)
				}
			}
			return ""
		})
		if !reaches(t, d.Lab, "third", trioVIP) {
			t.Error("the third machine reaches nobody")
		}
		d.eventually("nobody speaks of two machines any more", func() string {
			if text := d.on(winner, "batuta", "status"); strings.Contains(text, "is on two machines") {
				return text
			}
			return ""
		})
	}
}

// A machine that is none of the cluster's has the addresses before the cluster
// takes them, or takes one later. The log and the status name it; the address
// stays where the configuration wants it.
func TestAnotherMachineHasTheAddress(t *testing.T) {
	t.Parallel()
	d := newTrio(t)
	const stranger = "02:00:0a:01:00:0a" // the third machine
	d.held("start", "d1")
	d.eventually("d2 is ready", func() string {
		if s, _ := d.Node("d2").Output(d.Context(), "batuta", "cl_status", "rscstatus"); strings.TrimSpace(s) == "transition" {
			return "in transition"
		}
		return ""
	})
	d.on("third", "ip", "addr", "add", trioVIP+"/24", "dev", "eth0")
	d.on("third", "ip", "addr", "add", trioVIP6+"/64", "dev", "eth0", "nodad")
	d.eventually("d1 hears the other machine", func() string {
		// Whoever has an address and talks asks for its neighbors from there.
		d.on("third", "ip", "neigh", "flush", "dev", "eth0")
		_ = d.Node("third").Run(d.Context(), "ping", "-n", "-c", "1", "-W", "1", "-I", trioVIP, "10.1.0.1")
		if phrase := "address " + trioVIP + " is on two machines: " + stranger; !d.said("d1", phrase) {
			return "d1 did not log: " + phrase
		}
		return ""
	})
	d.on("d1", "batuta", "standby")
	d.held("d1 hands over", "d2")
	d.eventually("d2 names the machine", func() string {
		status := d.on("d2", "batuta", "status")
		for _, address := range []string{trioVIP, trioVIP6} {
			if phrase := "address " + address + " is on two machines: " + stranger + " on eth0"; !d.said("d2", phrase) || !strings.Contains(status, phrase) {
				return "d2 did not say: " + phrase
			}
		}
		return ""
	})
	d.held("the addresses stay", "d2")
}
