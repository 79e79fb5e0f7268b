package lab_test

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// TestReloadUnderAClient: a pair is reloaded, one node after the other, with a
// new address and another keepalive, and again without that address. Each
// daemon begins anew in its process; nothing else comes or goes, and a client
// keeps its connections. Then keys alone change: the kernels answer under the
// new one for a daemon that is paused.
func TestReloadUnderAClient(t *testing.T) {
	l := suspects(t, "600")
	nodes := []string{"lvs01", "lvs02"}
	alive := holdByShell(t, l, 10)
	// reload changes files on both nodes, in turn, and waits until each has said
	// so often what it does.
	reload := func(change, text string, times int) {
		for _, node := range nodes {
			output(t, l, node, "sh", "-c", change)
			if err := l.Node(node).Service().Signal(unix.SIGHUP); err != nil {
				t.Fatal(err)
			}
			eventually(t, node+" to say: "+text, func() bool {
				said, _ := l.Node(node).Output(t.Context(), "batuta", "events")
				return strings.Count(said, text) == times
			})
			settle(t, l, node, "local")
		}
		served(t, l, "lvs01")
	}

	noted := watchAddresses(t, l, "lvs01")
	reload(`sed -i 's/10\.1\.0\.100/10.1.0.100 10.1.0.101/' /etc/ha.d/haresources && sed -i 's/^keepalive.*/keepalive 100ms/' /etc/ha.d/ha.cf`, "starts anew in place", 1)
	reload(`sed -i 's/ 10\.1\.0\.101//' /etc/ha.d/haresources`, "starts anew in place", 2)
	changes := []string{}
	for line := range strings.Lines(noted()) {
		if words := strings.Fields(line); strings.Contains(line, " inet ") {
			changes = append(changes, strings.TrimSuffix(words[0], ":")+" "+words[slices.Index(words, "inet")+1])
		}
	}
	if len(changes) != 2 || !strings.HasSuffix(changes[0], " 10.1.0.101/24") || changes[1] != "Deleted 10.1.0.101/24" {
		t.Errorf("addresses that came to lvs01 and went: %q", changes)
	}

	reload(`sed -i '$a 2 sha256 another-and-longer' /etc/ha.d/authkeys`, "authkeys has changed", 1)
	reload(`sed -i 's/^auth .*/auth 2/' /etc/ha.d/authkeys`, "authkeys has changed", 2)
	reload(`sed -i '/^1 /d' /etc/ha.d/authkeys`, "authkeys has changed", 3)
	signalAll(t, l, "lvs01", "STOP")
	eventually(t, "lvs01 to be suspect, as its kernel answers", func() bool { p, _ := peer(t, l, "lvs02", "lvs01"); return p.Suspect })
	signalAll(t, l, "lvs01", "CONT")
	eventually(t, "lvs01 to be well", func() bool { p, ok := peer(t, l, "lvs02", "lvs01"); return ok && !p.Suspect && p.State == "active" })

	if got := alive(); got != "alive 10" {
		t.Errorf("of 10 connections that were open before: %s", got)
	}
	for _, node := range nodes {
		select {
		case <-l.Node(node).Service().Done():
			t.Errorf("%s: the process of before has ended", node)
		default:
		}
		events := output(t, l, node, "batuta", "events")
		for _, fault := range []string{"is dead", "Releasing resource group", "beat-process-ended"} {
			if strings.Contains(events, fault) {
				t.Errorf("%s: %q in its events:\n%s", node, fault, events)
			}
		}
	}
}

// watchAddresses notes what addresses come to a node and go. The function that
// it returns ends that, and tells.
func watchAddresses(t *testing.T, l *lab.Lab, node string) (noted func() string) {
	t.Helper()
	watch := l.Node(node).Command(t.Context(), "sh", "-c", "exec ip -o monitor address >/run/monitor")
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		said := output(t, l, node, "cat", "/run/monitor")
		if err := watch.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = watch.Wait() // ended by us
		return said
	}
}
