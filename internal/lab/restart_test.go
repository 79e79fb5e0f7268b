package lab_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestACrashedDaemonComesBack: a process that is killed is not a machine that
// is lost. Its successor adopts addresses, connections and table; nothing
// leaves the node, and the other one takes nothing. So it is for the node that
// owns the resources, and for one that has taken them over.
func TestACrashedDaemonComesBack(t *testing.T) {
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	l := start(t, func(o *lab.Options) { o.Binary = binary })
	for _, node := range []string{"lvs01", "lvs02"} {
		// Patient, so that a busy machine is never taken for a dead one; what was
		// taken over stays.
		output(t, l, node, "sh", "-c", `sed -i 's/^\(deadtime\|initdead\|warntime\|auto_failback\|keepalive\).*//' /etc/ha.d/ha.cf &&
			printf 'keepalive 200ms\ndeadtime 60\ninitdead 60\nwarntime 30\nauto_failback off\n' >>/etc/ha.d/ha.cf`)
		l.Node(node).SetService("batuta", "run", "--ha.d", "/etc/ha.d")
		if err := l.Node(node).StartService(); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, l, "lvs01", "local")
	settle(t, l, "lvs02", "local") // no line is its own: it claims what there is none of
	crash(t, l, "lvs01", "lvs02")

	output(t, l, "lvs02", "batuta", "takeover", "all")
	settle(t, l, "lvs01", "none")
	crash(t, l, "lvs02", "lvs01")
}

// holdScript opens connections and asks over each; asked for it, it asks over
// each once more.
const holdScript = `
ask() {
	printf 'GET / HTTP/1.1\r\nHost: lab\r\n\r\n' >&$1
	while read -r -t 60 line <&$1; do
		case $line in 'HTTP/1.1 200'*) return 0;; esac
	done
	return 1
}
fds=() alive=0
for i in $(seq $1); do
	exec {fd}<>/dev/tcp/10.1.0.100/80 && ask $fd || exit 1
	fds+=($fd)
done
echo open $1
read again
for fd in ${fds[@]}; do ask $fd && alive=$((alive+1)); done
echo alive $alive
`

// holdByShell is holdConnections where the client's machine has no more than a shell.
func holdByShell(t *testing.T, l *lab.Lab, n int) (alive func() string) {
	t.Helper()
	return holdBy(t, l.Node("client").Command(t.Context(), "bash", "-c", holdScript, "hold", strconv.Itoa(n)), n)
}

// crash kills the daemon of a node that serves, starts it again, and looks for
// what should not have happened.
func crash(t *testing.T, l *lab.Lab, node, peer string) {
	t.Helper()
	served(t, l, node)
	before := output(t, l, node, "batuta", "cl_status", "rscstatus")
	moves := strings.Count(output(t, l, peer, "batuta", "events"), "Acquiring resource group")
	alive := holdByShell(t, l, 10)
	addresses := watchAddresses(t, l, node)

	daemon := l.Node(node).Service()
	if err := daemon.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // killed: that is its outcome
	if !holds(t, l, node) {
		t.Errorf("%s: the addresses went with the daemon", node)
	}
	if err := l.Node(node).StartService(); err != nil {
		t.Fatal(err)
	}
	settle(t, l, node, before)
	served(t, l, node)

	if said := addresses(); strings.Contains(said, "Deleted") {
		t.Errorf("%s: an address left the machine:\n%s", node, said)
	}
	if now := strings.Count(output(t, l, peer, "batuta", "events"), "Acquiring resource group"); now != moves {
		t.Errorf("%s took something over from %s, whose machine never left", peer, node)
	}
	if got := alive(); got != "alive 10" {
		t.Errorf("%s: of 10 connections that were open at the crash: %s", node, got)
	}
}

// settle waits until a node holds what it should.
func settle(t *testing.T, l *lab.Lab, node, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(2 * time.Minute); got != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s holds %q, not %q", node, got, want)
		}
		out, _ := l.Node(node).Output(t.Context(), "batuta", "cl_status", "rscstatus") // fails while it starts
		got = strings.TrimSpace(out)
	}
}

// served waits until all resources run on a node and all real servers are up.
func served(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not serve: %s", node, last)
		}
		out, err := l.Node(node).Output(t.Context(), "batuta", "status", "--json")
		var st api.Status
		if last = out; err != nil || json.Unmarshal([]byte(out), &st) != nil {
			continue
		}
		ok := len(st.Resources) > 0 && len(st.Services) > 0
		for _, r := range st.Resources {
			ok = ok && r.Here.String() == "running"
		}
		for _, s := range st.Services {
			for _, r := range s.Reals {
				ok = ok && r.Status.String() == "up" && r.InTable
			}
		}
		if ok {
			return
		}
	}
}
