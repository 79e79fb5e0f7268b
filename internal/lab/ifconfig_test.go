package lab_test

import (
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestIfconfigShowsTheAddress: administrators of Heartbeat look for the service
// address with ifconfig, which shows only addresses that have a label. The
// recording of the original's ifconfig has "eth0:0" there, too.
func TestIfconfigShowsTheAddress(t *testing.T) {
	tree := debianTree(t, lab.HeartbeatPackages...)
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	node := lab.Machine{Name: "alone", Root: tree, Interfaces: []lab.Interface{nic("eth1", "wire", "10.240.0.2/24")},
		Files: map[string]lab.File{
			"/etc/ha.d/ha.cf":       {Data: []byte("keepalive 100ms\ndeadtime 1\ninitdead 1\nbcast eth1\nauto_failback on\nnode alone\n")},
			"/etc/ha.d/authkeys":    {Data: []byte("auth 1\n1 sha1 sesame\n"), Mode: 0o600},
			"/etc/ha.d/haresources": {Data: []byte("alone 10.240.0.1 10.240.0.100\n")},
		}, Service: []string{"batuta", "run", "--ha.d", "/etc/ha.d"}}
	l, err := lab.Start(t.Context(), lab.Options{Topology: lab.Topology{Bridges: []string{"wire"}, Machines: []lab.Machine{node}},
		Binary: binary, Log: func(node, line string) { t.Logf("%s: %s", node, line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	settle(t, l, "alone", "all")
	for alias, address := range map[string]string{"eth1:0": "inet 10.240.0.100 ", "eth1:1": "inet 10.240.0.1 "} {
		if out := output(t, l, "alone", "ifconfig", alias); !strings.Contains(out, address+" netmask 255.255.255.0") {
			t.Errorf("ifconfig %s shows\n%s\nwant %s", alias, out, address)
		}
	}
}
