package lab_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// Direct routing on one wire, by the eBPF plane, with a real server on which
// somebody forgot the virtual address: it answers at its own, and clients that
// are sent to it hear nothing. The check by way of the virtual address finds
// it, beside the plane's own programs, and the check by its own address does
// not. Given the address, the real server is up again.
func TestCheckByTheVirtualAddress(t *testing.T) {
	requireRoot(t)
	const config = `
service "tcp 10.1.0.100:80" {
  forward = "gate"
  check {
    type     = "http"
    interval = "200ms"
    timeout  = "2s"
    via      = "%s"
    receive  = "web"
  }
  real_server "10.1.0.20" {}
  real_server "10.1.0.21" {}
}
`
	l := oneWire(t, map[string]string{"vip.hcl": fmt.Sprintf(config, "vip"), "real.hcl": fmt.Sprintf(config, "real")}, "web1", "web2")
	output(t, l, "web1", "sh", "-c", quietly)
	status := func(want ...string) {
		t.Helper()
		var out string
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			out, _ = l.Node("director").Output(t.Context(), "batuta", "status")
			found := 0
			for _, w := range want {
				if strings.Contains(strings.Join(strings.Fields(out), " "), w) {
					found++
				}
			}
			if found == len(want) {
				return
			}
		}
		t.Errorf("status lacks one of %q:\n%s", want, out)
	}

	stop := direct(t, l, "real.hcl")
	status("10.1.0.20:80 up weight 1", "10.1.0.21:80 up weight 1")
	stop()

	stop = direct(t, l, "vip.hcl")
	status("10.1.0.20:80 up weight 1", "10.1.0.21:80 down weight -")
	for range 6 {
		if got := output(t, l, "client", "curl", "-s", "--max-time", "30", "http://10.1.0.100/"); !strings.HasPrefix(got, "web1") {
			t.Errorf("the client got %q", got)
		}
	}
	output(t, l, "web2", "sh", "-c", quietly)
	status("10.1.0.20:80 up weight 1", "10.1.0.21:80 up weight 1")
	stop()
}

// quietly gives a real server by gate the virtual address of oneWire.
const quietly = "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 && ip addr add 10.1.0.100/32 dev lo"

// oneWire starts a client (10.1.0.10), a director (10.1.0.11) with files in
// /etc/batuta and the virtual address 10.1.0.100, and web servers (10.1.0.20 and
// on) that say their names, all on one bridge.
func oneWire(t *testing.T, files map[string]string, webs ...string) *lab.Lab {
	t.Helper()
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	eth0 := func(host int) []lab.Interface {
		return []lab.Interface{{Name: "eth0", Bridge: "lan", Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.1.0.%d/24", host))}}}
	}
	director := lab.Machine{Name: "director", Role: lab.RoleClient, Interfaces: eth0(11), Files: map[string]lab.File{}}
	for name, text := range files {
		director.Files["/etc/batuta/"+name] = lab.File{Data: []byte(text)}
	}
	machines := []lab.Machine{{Name: "client", Role: lab.RoleClient, Interfaces: eth0(10)}, director}
	for i, name := range webs {
		machines = append(machines, lab.Machine{Name: name, Role: lab.RoleRealServer, Interfaces: eth0(20 + i),
			Service: []string{"batuta", "lab", "serve", "--name", name, "--body", name + "\n"}})
	}
	l, err := lab.Start(t.Context(), lab.Options{Binary: binary, Topology: lab.Topology{Bridges: []string{"lan"}, Machines: machines}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	output(t, l, "director", "sh", "-c", "sysctl -qw net.ipv4.ip_forward=1 && ip addr add 10.1.0.100/32 dev eth0")
	return l
}

// direct runs the director of oneWire with one of its files, by the eBPF plane.
func direct(t *testing.T, l *lab.Lab, file string) (stop func()) {
	t.Helper()
	var said strings.Builder
	c := l.Node("director").Command(t.Context(), "batuta", "director", "--plane", "ebpf", "/etc/batuta/"+file)
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = c.Signal(15)
		if err := c.Wait(); err != nil || t.Failed() {
			t.Errorf("director %s: %v\n%s", file, err, said.String())
		}
	}
}
