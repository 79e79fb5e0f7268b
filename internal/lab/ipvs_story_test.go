package lab_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/lab"
)

// The stories of this file are played in a lab within a kernel that has IPVS;
// TestIPVS boots it and runs them there, with this variable set.
const inKernel = "BATUTA_IPVS_KERNEL"

// The tutorial's cluster, from NAT to direct routing to tunnels, with servers
// that die and come back, and the page that says sorry.
func TestStoryOfTheTutorial(t *testing.T) {
	l := startOnIPVS(t)
	webs := []string{"web1", "web2", "web3", "web4"}
	service := func(name string, running bool) {
		t.Helper()
		err := l.Node(name).StartService
		if !running {
			err = func() error { return l.Node(name).StopService(t.Context()) }
		}
		if err := err(); err != nil {
			t.Fatal(err)
		}
	}
	tableIs(t, l, "lvs01", "rr", rows("masq", 1, 1, 1, 1))
	visitsAre(t, l, 8, "web1 2, web2 2, web3 2, web4 2")
	listingsAgree(t, l, "lvs01")

	// The table is flushed behind the director's back, and is there again.
	output(t, l, "lvs01", "ipvsadm", "-C")
	tableIs(t, l, "lvs01", "rr", rows("masq", 1, 1, 1, 1))
	visitsAre(t, l, 8, "web1 2, web2 2, web3 2, web4 2")

	service("web2", false)
	tableIs(t, l, "lvs01", "rr", rows("masq", 1, 0, 1, 1))
	visitsAre(t, l, 6, "web1 2, web3 2, web4 2")
	service("web2", true)
	tableIs(t, l, "lvs01", "rr", rows("masq", 1, 1, 1, 1))

	for _, w := range webs {
		service(w, false)
	}
	tableIs(t, l, "lvs01", "rr", rows("masq", 0, 0, 0, 0)+"127.0.0.1:80 -g -w 1\n")
	visitsAre(t, l, 3, "lvs01 3")
	for _, w := range webs {
		service(w, true)
	}
	tableIs(t, l, "lvs01", "rr", rows("masq", 1, 1, 1, 1))

	// The servers get a way to the client past the director, and hold the
	// virtual address without telling anybody.
	for i, w := range webs {
		output(t, l, w, "sh", "-c", fmt.Sprintf(`set -e
			for f in all eth0 eth1; do
				echo 1 >/proc/sys/net/ipv4/conf/$f/arp_ignore
				echo 2 >/proc/sys/net/ipv4/conf/$f/arp_announce
			done
			ip addr add 10.1.0.%d/24 dev eth1
			ip addr add 10.1.0.100/32 dev lo`, 21+i))
	}
	forwardBy(t, l, "gate")
	tableIs(t, l, "lvs01", "rr", rows("gate", 1, 1, 1, 1))
	visitsAre(t, l, 8, "web1 2, web2 2, web3 2, web4 2")
	sent := passed(t, l, "lvs01", "eth0", "tx")
	visitsAre(t, l, 40, "web1 10, web2 10, web3 10, web4 10")
	if sent = passed(t, l, "lvs01", "eth0", "tx") - sent; sent > 40*100 { // an answer has more than 200 bytes
		t.Errorf("%d bytes went from the director to the client, whom gate lets the servers answer", sent)
	}

	for i, w := range webs {
		output(t, l, w, "sh", "-c", fmt.Sprintf(`set -e
			ip link add tun0 type ipip local 10.240.%d.%d
			echo 0 >/proc/sys/net/ipv4/conf/tun0/rp_filter
			ip link set tun0 up`, i/2, 20+i%2))
	}
	forwardBy(t, l, "ipip")
	tableIs(t, l, "lvs01", "rr", rows("ipip", 1, 1, 1, 1))
	before := passed(t, l, "web3", "tun0", "rx")
	visitsAre(t, l, 8, "web1 2, web2 2, web3 2, web4 2")
	if passed(t, l, "web3", "tun0", "rx") == before {
		t.Error("nothing came to web3 by its tunnel")
	}
}

// A director dies with open connections. Those of which the other one has
// learned go on there; the others it does not know.
func TestStoryOfConnectionsThatSurvive(t *testing.T) {
	const few, many = 20, 100
	l := startOnIPVS(t, "--ipvs-sync", "eth1,id=1")
	for _, director := range []string{"lvs01", "lvs02"} {
		tableIs(t, l, director, "rr", rows("masq", 1, 1, 1, 1))
	}
	eventually(t, "lvs01 holds the virtual address", func() bool { return holds(t, l, "lvs01") })
	daemons := output(t, l, "lvs01", "ipvsadm", "-L", "--daemon")
	if !strings.HasPrefix(daemons, "master sync daemon (mcast=eth1, syncid=1,") || !strings.Contains(daemons, "\nbackup sync daemon (mcast=eth1, syncid=1,") {
		t.Errorf("daemons:\n%s", daemons)
	}

	output(t, l, "lvs01", "ipvsadm", "--stop-daemon", "master")
	untold := holdConnections(t, l, few)
	output(t, l, "lvs01", "ipvsadm", "--start-daemon", "master", "--mcast-interface", "eth1", "--syncid", "1")
	told := holdConnections(t, l, many)
	eventually(t, "lvs02 has learned of the latter", func() bool {
		return strings.Count(output(t, l, "lvs02", "ipvsadm", "-L", "-n", "-c"), "ESTABLISHED") == many
	})

	if err := l.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "lvs02 holds the virtual address", func() bool { return holds(t, l, "lvs02") })
	for _, c := range []struct {
		name string
		hold func() string
		want string
	}{{"not synchronized", untold, "alive 0"}, {"synchronized", told, fmt.Sprint("alive ", many)}} {
		got := c.hold()
		t.Logf("connections %s when the active director died: %s", c.name, got)
		if got != c.want {
			t.Errorf("connections %s: %s, want %s", c.name, got, c.want)
		}
	}
	visitsAre(t, l, 8, "web1 2, web2 2, web3 2, web4 2")
}

// holdConnections opens n connections from the client, and returns a function
// that tells, once, how many of them still bring an answer.
func holdConnections(t *testing.T, l *lab.Lab, n int) (alive func() string) {
	t.Helper()
	return holdBy(t, l.Node("client").Command(t.Context(), testProgram(t), "lab", "hold", strconv.Itoa(n), "10.1.0.100:80"), n)
}

// holdBy is either way of it: the client is the program that opens them.
func holdBy(t *testing.T, client *lab.Cmd, n int) (alive func() string) {
	t.Helper()
	typed, in := io.Pipe()
	out, printed := io.Pipe()
	client.Stdin, client.Stdout, client.Stderr = typed, printed, os.Stderr
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if lines.Scan(); lines.Text() != fmt.Sprint("open ", n) {
		t.Fatalf("the client says %q, %v", lines.Text(), lines.Err())
	}
	return func() string {
		t.Helper()
		if _, err := io.WriteString(in, "again\n"); err != nil {
			t.Fatal(err)
		}
		lines.Scan()
		said := lines.Text()
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if err := client.Wait(); err != nil {
			t.Error(err)
		}
		return said
	}
}

// holds tells whether a director has the virtual address and both gateways.
func holds(t *testing.T, l *lab.Lab, node string) bool {
	t.Helper()
	have := output(t, l, node, "ip", "-4", "-o", "addr")
	return strings.Contains(have, " 10.1.0.100/") && strings.Contains(have, " 10.240.0.1/") && strings.Contains(have, " 10.240.1.1/")
}

// startOnIPVS builds the tutorial's cluster with a second card for each web
// server, and waits until lvs01 serves.
func startOnIPVS(t *testing.T, flags ...string) *lab.Lab {
	t.Helper()
	if os.Getenv(inKernel) == "" {
		t.Skip("needs a kernel with IPVS: TestIPVS runs this in one")
	}
	// A node of the lab may not load modules.
	if out, err := exec.Command("modprobe", "-a", "ip_vs", "ip_vs_rr", "ip_vs_wlc", "ipip").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := exec.LookPath("batuta")
	if err != nil {
		t.Fatal(err)
	}
	l := start(t, func(o *lab.Options) {
		o.Binary = program
		for i := range o.Topology.Machines {
			m := &o.Topology.Machines[i]
			switch m.Role {
			case lab.RoleDirector:
				m.Service = append([]string{"batuta", "run", "--ha.d", "/etc/ha.d"}, flags...)
			case lab.RoleRealServer:
				m.Interfaces = append(m.Interfaces, lab.Interface{Name: "eth1", Bridge: "outside"})
			case lab.RoleClient, lab.RoleUnset:
			}
		}
	})
	return l
}

// rows are the tutorial's real servers as ipvsadm -S writes them.
func rows(forward string, weights ...int) string {
	var b strings.Builder
	word := map[string]string{"masq": "-m", "gate": "-g", "ipip": "-i"}[forward]
	for i, w := range weights {
		fmt.Fprintf(&b, "10.240.%d.%d:80 %s -w %d", i/2, 20+i%2, word, w)
		if forward == "ipip" {
			b.WriteString(" --tun-type ipip")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// tableIs waits until ipvsadm shows the service with these rows.
func tableIs(t *testing.T, l *lab.Lab, node, scheduler, rows string) {
	t.Helper()
	const service = "-t 10.1.0.100:80"
	want := fmt.Sprintf("-A %s -s %s\n", service, scheduler)
	for row := range strings.Lines(rows) {
		want += "-a " + service + " -r " + row
	}
	var got string
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		got = output(t, l, node, "ipvsadm", "-S", "-n") + "\n"
		if got == want {
			return
		}
	}
	t.Fatalf("%s has not got this table within 90 s (-want +got):\n%s", node, cmp.Diff(want, got))
}

// visitsAre makes n requests over n connections, once there are answers at
// all, and compares who answered.
func visitsAre(t *testing.T, l *lab.Lab, n int, want string) {
	t.Helper()
	var got string
	eventually(t, "the service answers", func() bool {
		var err error
		got, err = l.Node("client").Output(t.Context(), testProgram(t), "lab", "visit", strconv.Itoa(n), "10.1.0.100:80")
		got = strings.TrimSpace(got)
		return err == nil
	})
	if got != want {
		t.Errorf("%d visits were answered by %s, want %s", n, got, want)
	}
}

func testProgram(t *testing.T) string {
	t.Helper()
	name, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// visit is the client's program for visitsAre.
func visit(n, addr string) error {
	count, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answered := map[string]int{}
	for range count {
		resp, err := client.Get("http://" + addr + "/")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		answered[resp.Header.Get("X-Real-Server")]++
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(answered)) {
		words = append(words, fmt.Sprint(name, " ", answered[name]))
	}
	fmt.Println(strings.Join(words, ", "))
	return nil
}

// listingsAgree compares what ipvsadm and the daemon say of a quiet table.
func listingsAgree(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	var theirs, ours string
	eventually(t, "ipvsadm and batuta print the same", func() bool {
		theirs = output(t, l, node, "ipvsadm", "-L", "-n")
		ours = output(t, l, node, "batuta", "table", "-n")
		return theirs == ours || theirs != output(t, l, node, "ipvsadm", "-L", "-n")
	})
}

// forwardBy changes the forwarding method in the directors' ldirectord.cf,
// which they read again by themselves.
func forwardBy(t *testing.T, l *lab.Lab, forward string) {
	t.Helper()
	for _, node := range []string{"lvs01", "lvs02"} {
		output(t, l, node, "sed", "-i", `s/^\(\treal=.*:80\) .*/\1 `+forward+"/", "/etc/ha.d/ldirectord.cf")
	}
}

// passed is how many bytes a card has received or sent.
func passed(t *testing.T, l *lab.Lab, node, card, direction string) int {
	t.Helper()
	n, err := strconv.Atoi(output(t, l, node, "cat", filepath.Join("/sys/class/net", card, "statistics", direction+"_bytes")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// hold is a client with many connections: it opens them, sends a request over
// each, says so, and after each line on standard input tells how many of them
// still bring an answer.
func hold(n, addr string) error {
	count, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	ask := func(c net.Conn, limit time.Duration) bool {
		_ = c.SetDeadline(time.Now().Add(limit))
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
			return false
		}
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return false
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK
	}
	var conns []net.Conn
	for range count {
		c, err := net.DialTimeout("tcp", addr, 30*time.Second)
		if err != nil {
			return err
		}
		if !ask(c, 30*time.Second) {
			return fmt.Errorf("no answer over a new connection")
		}
		conns = append(conns, c)
	}
	fmt.Println("open", count)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answers := make(chan bool)
		for _, c := range conns {
			go func() { answers <- ask(c, 60*time.Second) }()
		}
		alive := 0
		for range conns {
			if <-answers {
				alive++
			}
		}
		fmt.Println("alive", alive)
	}
	return nil
}
