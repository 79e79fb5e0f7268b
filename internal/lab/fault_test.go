package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/batuta-ha/batuta/internal/lab"
)

func TestKillIsAPowerLoss(t *testing.T) {
	l := start(t)
	node := l.Node("lvs01")
	output(t, l, "lvs01", "ip", "addr", "add", "10.1.0.100/24", "dev", "eth0")
	output(t, l, "lvs01", "sh", "-c", "echo lost >/run/flag; echo kept >/var/lib/flag; echo changed >>/etc/ha.d/ha.cf; mkdir /sys/fs/bpf/pins")
	if !reaches(t, l, "client", "10.1.0.100") {
		t.Fatal("the client does not reach the virtual address")
	}
	namespaces := namespacesOf(t, l, "lvs01")
	daemon := node.Command(t.Context(), "sh", "-c", "trap '' TERM HUP INT; sleep 1000")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	before := node.BootID()

	if err := l.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Wait(); !errors.Is(err, lab.ErrDown) {
		t.Errorf("a process of the killed node: %v", err)
	}
	if left := holders(t, namespaces); len(left) > 0 {
		t.Errorf("processes left in the node's namespaces: %v", left)
	}
	if node.Up() || node.BootID() != "" {
		t.Error("the node is up after a power loss")
	}
	if !silent(t, l, "client", "10.1.0.100") || !silent(t, l, "lvs02", "10.240.0.2") {
		t.Error("the dead node's kernel answers")
	}
	if !reaches(t, l, "client", "10.1.0.2") {
		t.Error("the other director is gone, too")
	}

	if err := l.Boot(t.Context(), "lvs01"); err != nil {
		t.Fatal(err)
	}
	if after := node.BootID(); after == before || output(t, l, "lvs01", "cat", "/proc/sys/kernel/random/boot_id") != after {
		t.Errorf("boot id %s after %s", after, before)
	}
	got := output(t, l, "lvs01", "sh", "-c", "cat /run/flag 2>/dev/null || echo gone; cat /var/lib/flag; tail -n 1 /etc/ha.d/ha.cf; ip -br addr show eth0 | grep -c 10.1.0.100; ls -d /sys/fs/bpf/pins 2>/dev/null || echo unpinned")
	if want := "gone\nkept\nchanged\n0\nunpinned"; got != want {
		t.Errorf("after the boot: %q, want %q", got, want)
	}
	if !reaches(t, l, "client", "10.1.0.1") {
		t.Error("the client does not reach the node that came back")
	}
}

// namespacesOf returns the node's namespaces as "net:[4026532001]".
func namespacesOf(t *testing.T, l *lab.Lab, node string) []string {
	t.Helper()
	return strings.Fields(output(t, l, node, "sh", "-c", "for n in net mnt pid uts ipc; do readlink /proc/self/ns/$n; done"))
}

// holders lists the processes of this machine that are in one of the namespaces.
func holders(t *testing.T, namespaces []string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && slices.Contains(namespaces, ns) {
			found = append(found, link)
		}
	}
	return found
}

func TestNamespacesAreTheNodesOwn(t *testing.T) {
	l := start(t)
	owner := map[string]string{}
	for _, name := range []string{"mnt", "net", "pid", "uts", "ipc"} {
		ns, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		owner[ns] = "the host"
	}
	boots := map[string]string{}
	for _, m := range l.Topology().Machines {
		for _, ns := range namespacesOf(t, l, m.Name) {
			if owner[ns] != "" {
				t.Errorf("%s shares %s with %s", m.Name, ns, owner[ns])
			}
			owner[ns] = m.Name
		}
		id := output(t, l, m.Name, "cat", "/proc/sys/kernel/random/boot_id")
		if boots[id] != "" || id != l.Node(m.Name).BootID() {
			t.Errorf("%s has boot id %s, as %s", m.Name, id, boots[id])
		}
		boots[id] = m.Name
	}
}

func TestCutAndHeal(t *testing.T) {
	l := start(t)
	carrier := func(device string) string {
		return output(t, l, "lvs01", "cat", "/sys/class/net/"+device+"/carrier")
	}
	if err := l.Cut("lvs01", "eth1"); err != nil {
		t.Fatal(err)
	}
	if got := carrier("eth0") + carrier("eth1"); got != "10" {
		t.Errorf("carriers of eth0 and eth1: %s, want 10", got)
	}
	if !silent(t, l, "lvs02", "10.240.0.2") || !reaches(t, l, "client", "10.1.0.1") {
		t.Error("cutting eth1 must cut eth1 and nothing else")
	}
	// A cable that is out stays out while the machine boots.
	if err := l.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	if err := l.Boot(t.Context(), "lvs01"); err != nil {
		t.Fatal(err)
	}
	if !silent(t, l, "lvs02", "10.240.0.2") {
		t.Error("the boot plugged a cable in")
	}
	if err := l.Cut("lvs01"); err != nil {
		t.Fatal(err)
	}
	if !silent(t, l, "client", "10.1.0.1") {
		t.Error("all cables are out, and the client reaches the node")
	}
	if err := l.Heal("lvs01"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both cables carry", func() bool { return carrier("eth0")+carrier("eth1") == "11" })
	if !reaches(t, l, "client", "10.1.0.1") || !reaches(t, l, "lvs02", "10.240.0.2") {
		t.Error("healed, the node is out of reach")
	}
}

func TestNodeThatPowersItselfOff(t *testing.T) {
	l := start(t)
	// reboot(2) in a PID namespace ends its init (man 2 reboot).
	err := l.Node("web1").Run(t.Context(), "sh", "-c", "kill -9 -1; reboot -f 2>/dev/null || echo o >/proc/sysrq-trigger; true")
	t.Log(err)
	if err := l.Kill("web1"); err != nil {
		t.Errorf("kill a node that went down by itself: %v", err)
	}
	if err := l.Boot(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(fetch(t, l, "lvs01", "10.240.0.20", "/.testpage"), "web1") {
		t.Error("after the boot the service does not run")
	}
}

func TestStatusShowsWhereTheVirtualAddressIs(t *testing.T) {
	l := start(t)
	output(t, l, "lvs02", "ip", "addr", "add", lab.TutorialVIP+"/24", "dev", "eth0")
	// Only a service that answers is known to end by itself when told to.
	fetch(t, l, "lvs01", "10.240.0.21", "/.testpage")
	if err := errors.Join(l.Kill("lvs01"), l.Cut("lvs02", "eth1"), l.Node("web2").StopService(t.Context())); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range l.Status().Nodes {
		line := fmt.Sprint(n.Name, " ", n.Up, " ", n.Service)
		for _, link := range n.Links {
			line += fmt.Sprint(" ", link.Device, link.Addresses)
			if link.Cut {
				line += "cut"
			}
		}
		got = append(got, line)
	}
	want := []string{
		"client true none eth0[10.1.0.10/24]",
		"lvs01 false none eth0[] eth1[]",
		"lvs02 true none eth0[10.1.0.2/24 10.1.0.100/24] eth1[10.240.0.3/24 10.240.1.3/24]cut",
		"web1 true running eth0[10.240.0.20/24]",
		"web2 true exited 0 eth0[10.240.0.21/24]",
		"web3 true running eth0[10.240.1.20/24]",
		"web4 true running eth0[10.240.1.21/24]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	one, two := start(t), start(t)
	output(t, one, "web1", "ip", "addr", "add", "10.240.0.99/24", "dev", "eth0")
	if !reaches(t, one, "lvs01", "10.240.0.99") || !silent(t, two, "lvs01", "10.240.0.99") {
		t.Error("the labs are not apart")
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, two, "client", "10.1.0.1") {
		t.Error("closing one lab broke the other")
	}
}

func TestCaptureOfABridge(t *testing.T) {
	dir := t.TempDir()
	l := start(t, func(o *lab.Options) { o.PcapDir = dir })
	if !reaches(t, l, "client", "10.1.0.1") {
		t.Fatal("no ping")
	}
	// An echo request from the client's to lvs01's card, and its addresses.
	want := string([]byte{2, 0, 10, 1, 0, 1, 2, 0, 10, 1, 0, 10, 8, 0, 0x45})
	eventually(t, "the ping is in the capture", func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "outside.pcap"))
		return err == nil && strings.HasPrefix(string(data), "\x4d\x3c\xb2\xa1") && strings.Contains(string(data), want)
	})
	if _, err := os.Stat(filepath.Join(dir, "inside.pcap")); err != nil {
		t.Error(err)
	}
}

func TestFallbackServerOfTheDirectors(t *testing.T) {
	l := start(t)
	output(t, l, "lvs01", "/etc/init.d/apache2", "start")
	if got := fetch(t, l, "client", "10.1.0.1", "/"); !strings.Contains(got, "sorry, back soon\nlvs01") {
		t.Errorf("the fallback server answers\n%s", got)
	}
	output(t, l, "lvs01", "/etc/init.d/apache2", "status")
	output(t, l, "lvs01", "/etc/init.d/apache2", "stop")
	eventually(t, "the fallback server stops", func() bool {
		var exit *lab.ExitError
		err := l.Node("lvs01").Run(t.Context(), "/etc/init.d/apache2", "status")
		return errors.As(err, &exit) && exit.Code == 3
	})
}

func TestStartThatIsCanceledLeavesNothing(t *testing.T) {
	requireRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := processes(t, self)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lab.Start(ctx, lab.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}
	if after := processes(t, self); len(after) != len(before) {
		t.Errorf("processes before %v, after %v", before, after)
	}
}

func TestTutorialFilesAreTheNodes(t *testing.T) {
	l := start(t)
	for _, node := range []string{"lvs01", "lvs02"} {
		for name, source := range map[string]string{
			"ha.cf": "ha.cf", "authkeys": "authkeys", "ldirectord.cf": "ldirectord.cf",
			"haresources": "haresources-with-gateways",
		} {
			want, err := lab.TutorialFiles.ReadFile("tutorial/" + source)
			if err != nil {
				t.Fatal(err)
			}
			got, err := l.Node(node).Output(t.Context(), "cat", "/etc/ha.d/"+name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", node, name, diff)
			}
		}
	}
}

func TestCloseEndsItsGoroutines(t *testing.T) {
	requireRoot(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l, err := lab.Start(t.Context(), lab.Options{Topology: lab.Tutorial()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Node("client").Output(t.Context(), "true"); err != nil {
		t.Error(err)
	}
	if err := errors.Join(l.Kill("web1"), l.Boot(t.Context(), "web1"), l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	select {
	case <-l.Done():
	default:
		t.Error("Close returned, and the lab is not done")
	}
}
