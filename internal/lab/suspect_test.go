package lab_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// pairWith starts the tutorial's pair, patient but for its deadtime, with more
// lines in ha.cf; prepare is for what those need. lvs01 serves.
func pairWith(t *testing.T, deadtime string, prepare func(l *lab.Lab, node string), lines string) *lab.Lab {
	t.Helper()
	return pairOn(t, "", deadtime, prepare, lines)
}

// pairOn is pairWith, on directors with that Debian tree; "": on this machine's own.
func pairOn(t *testing.T, tree, deadtime string, prepare func(l *lab.Lab, node string), lines string) *lab.Lab {
	t.Helper()
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	l := start(t, func(o *lab.Options) {
		o.Binary = binary
		for _, node := range []string{"lvs01", "lvs02"} {
			o.Topology.Machine(node).Root = tree
		}
	})
	for _, node := range []string{"lvs01", "lvs02"} {
		output(t, l, node, "sh", "-c", `sed -i 's/^\(deadtime\|initdead\|warntime\|auto_failback\|keepalive\).*//' /etc/ha.d/ha.cf &&
			printf 'keepalive 200ms\ndeadtime `+deadtime+`\ninitdead 60\nwarntime 1\nauto_failback off\nquarantine 0\n' >>/etc/ha.d/ha.cf`)
		if prepare != nil {
			prepare(l, node)
		}
		output(t, l, node, "sh", "-c", fmt.Sprintf("printf '%s' >>/etc/ha.d/ha.cf", lines))
		l.Node(node).SetService("batuta", "run", "--ha.d", "/etc/ha.d")
		if err := l.Node(node).StartService(); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, l, "lvs01", "local")
	settle(t, l, "lvs02", "local") // no line is its own: it claims what there is none of
	served(t, l, "lvs01")
	return l
}

// suspects is the tutorial's cluster with that suspecttime, in which lvs01
// serves and what was taken over stays. lvs02 knows that lvs01's kernel answers.
func suspects(t *testing.T, suspecttime string) *lab.Lab {
	t.Helper()
	l := pairWith(t, "2", nil, `suspecttime `+suspecttime+`\n`)
	eventually(t, "lvs02 to have asked lvs01's kernel", func() bool { p, ok := peer(t, l, "lvs02", "lvs01"); return ok && p.Kernel })
	return l
}

// peer is what a node's status says of another one.
func peer(t *testing.T, l *lab.Lab, node, of string) (p api.Peer, ok bool) {
	t.Helper()
	out, err := l.Node(node).Output(t.Context(), "batuta", "status", "--json")
	var st api.Status
	if err != nil || json.Unmarshal([]byte(out), &st) != nil {
		return p, false
	}
	for _, p := range st.Peers {
		if string(p.Name) == of {
			return p, true
		}
	}
	return p, false
}

// signalAll gives one to every process of a node's daemon.
func signalAll(t *testing.T, l *lab.Lab, node, which string) {
	t.Helper()
	output(t, l, node, "sh", "-c", fmt.Sprintf("kill -%s $(pidof batuta)", which))
}

// said is what a node's journal has about another one, of that kind.
func said(t *testing.T, l *lab.Lab, node, kind string) (lines []string) {
	t.Helper()
	for line := range strings.Lines(output(t, l, node, "batuta", "events")) {
		if strings.Contains(line, " heartbeat "+kind+": ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// A daemon that is stopped for longer than its dead time is suspect: the other
// node says so and takes nothing. Back again, it goes on as if nothing had
// been. When its machine is gone, so that the kernel is silent, too, the other
// node does not wait for suspecttime.
func TestPausedDaemonIsNoDeadMachine(t *testing.T) {
	l := suspects(t, "600")
	for range 2 {
		signalAll(t, l, "lvs01", "STOP")
		eventually(t, "lvs01 to be suspect", func() bool { p, _ := peer(t, l, "lvs02", "lvs01"); return p.Suspect })
		if got := output(t, l, "lvs02", "batuta", "status"); !strings.Contains(got, "! node lvs01 is suspect: its daemon has been silent since ") {
			t.Errorf("the status of lvs02 does not tell:\n%s", got)
		}
		signalAll(t, l, "lvs01", "CONT")
		eventually(t, "lvs01 to be well", func() bool { p, ok := peer(t, l, "lvs02", "lvs01"); return ok && !p.Suspect && p.State == "active" })
	}
	if got := output(t, l, "lvs02", "batuta", "why", "lvs01"); !strings.Contains(got, "lvs01 was degraded for ") || !strings.Contains(got, "no longer suspect") {
		t.Errorf("lvs02 does not tell why lvs01 was suspect:\n%s", got)
	}
	for kind, want := range map[string]bool{"node-suspect": true, "node-unsuspected": true, "node-dead": false} {
		if got := said(t, l, "lvs02", kind); (len(got) > 0) != want {
			t.Errorf("lvs02 says of lvs01: %q", got)
		}
	}
	served(t, l, "lvs01")
	if !holds(t, l, "lvs01") || holds(t, l, "lvs02") || strings.Contains(output(t, l, "lvs02", "batuta", "events"), "Acquiring resource group") {
		t.Error("something has moved while lvs01's daemon was paused")
	}

	if err := l.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	served(t, l, "lvs02")
	for _, line := range said(t, l, "lvs02", "node-dead") {
		if strings.Contains(line, "suspecttime") {
			t.Errorf("a lost machine was waited for: %s", line)
		}
	}
}

// A daemon that is killed and does not come back is suspect first, and dead
// after suspecttime although its kernel answers.
func TestSuspectDies(t *testing.T) {
	l := suspects(t, "10")
	signalAll(t, l, "lvs01", "KILL")
	served(t, l, "lvs02")
	suspect, dead := said(t, l, "lvs02", "node-suspect"), said(t, l, "lvs02", "node-dead")
	if len(suspect) == 0 || len(dead) != 1 || !strings.HasSuffix(dead[0], "(suspecttime), although its kernel answers") {
		t.Errorf("lvs02 says of lvs01: %q, %q", suspect, dead)
	}
	if got := output(t, l, "lvs01", "sh", "-c", "ls /sys/fs/bpf/batuta-responder/*"); got == "" {
		t.Error("the kernel of lvs01 has nothing to answer with")
	}
}
