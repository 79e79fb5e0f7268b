package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// TestMain makes the test executable itself the lab's: the launcher, the
// nodes' inits and the web servers of these tests run the code under test.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab" {
		if err := verb(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func verb(name string, args []string) error {
	switch name {
	case "launch":
		return lab.Launch()
	case "init":
		return lab.Init(args)
	case "serve":
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		w := lab.Web{Listen: ":80"}
		for i := 0; i+1 < len(args); i += 2 {
			switch args[i] {
			case "--listen":
				w.Listen = args[i+1]
			case "--name":
				w.Name = args[i+1]
			case "--body":
				w.Body = args[i+1]
			}
		}
		return w.Run(ctx)
	case "check": // see checkAll
		patience, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		return checkAll(patience)
	case "mail": // see sendMail
		return sendMail(args[0], args[1])
	case "fence": // see TestFencingByRealPrograms
		return fenceNode(args[0], args[1])
	case "visit": // see visitsAre
		return visit(args[0], args[1])
	case "hold": // see survivors
		return hold(args[0], args[1])
	case "probe": // see prober
		return runProbe(args[0], args[1])
	case "ask": // see TestBenchConnections
		return ask()
	case "answer":
		return serveAnswers(args)
	case "caller": // a program that builds a lab and is then killed
		return caller(args)
	}
	return fmt.Errorf("no verb %s", name)
}

// requireRoot skips a test that needs namespaces, and ping in them; in CI that is a failure.
func requireRoot(t *testing.T) {
	t.Helper()
	err := lab.Available()
	if err == nil {
		if _, err = exec.LookPath("ping"); err != nil {
			err = fmt.Errorf("%w: apt-get install iputils-ping", err)
		}
	}
	switch {
	case err == nil:
	case os.Getenv("BATUTA_REQUIRE_ROOT") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// start builds the tutorial's cluster, with directors that run nothing.
func start(t *testing.T, change ...func(*lab.Options)) *lab.Lab {
	t.Helper()
	requireRoot(t)
	o := lab.Options{
		Topology: lab.Tutorial(),
		Log:      func(node, line string) { t.Logf("%s: %s", node, line) },
	}
	for _, name := range []string{"lvs01", "lvs02"} {
		o.Topology.Machine(name).Service = nil
	}
	for _, f := range change {
		f(&o)
	}
	l, err := lab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// output runs a command that must succeed.
func output(t *testing.T, l *lab.Lab, node string, args ...string) string {
	t.Helper()
	out, err := l.Node(node).Output(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// reaches tells whether node gets an answer to a ping: to one of many.
func reaches(t *testing.T, l *lab.Lab, node, address string) bool {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		// An error about a neighbor that was asked for while the cable was out ends one ping.
		if ping(t, l, node, address, "-W", "1") {
			return true
		}
	}
	return false
}

// silent tells that node gets no answer: not to a single one, which a
// neighbor that is there answers at once.
func silent(t *testing.T, l *lab.Lab, node, address string) bool {
	t.Helper()
	return !ping(t, l, node, address, "-W", "1")
}

func ping(t *testing.T, l *lab.Lab, node, address string, limit ...string) bool {
	t.Helper()
	err := l.Node(node).Run(t.Context(), append([]string{"ping", "-n", "-c", "1", address}, limit...)...)
	var exit *lab.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return err == nil
}

func TestNeighborsReachEachOther(t *testing.T) {
	l := start(t)
	for _, path := range []struct{ from, to string }{
		{"client", "10.1.0.1"}, {"client", "10.1.0.2"},
		{"lvs01", "10.240.0.20"}, {"lvs01", "10.240.0.21"}, {"lvs01", "10.240.1.20"}, {"lvs01", "10.240.1.21"},
		{"lvs02", "10.240.1.21"}, {"lvs01", "10.240.0.3"}, {"lvs02", "10.1.0.10"},
	} {
		if !reaches(t, l, path.from, path.to) {
			t.Errorf("%s does not reach %s", path.from, path.to)
		}
	}
	if !silent(t, l, "client", "10.240.0.20") {
		t.Error("the client reaches a real server past the directors")
	}
}

func TestDirectorForwardsOnceItOwnsTheGateway(t *testing.T) {
	l := start(t)
	output(t, l, "lvs01", "ip", "addr", "add", "10.240.0.1/24", "dev", "eth1")
	output(t, l, "client", "ip", "route", "add", "10.240.0.0/16", "via", "10.1.0.1")
	if !reaches(t, l, "client", "10.240.0.20") {
		t.Error("the client does not reach web1 through lvs01")
	}
}

func TestRealServersServeTheTestPage(t *testing.T) {
	l := start(t)
	for name, address := range map[string]string{"web1": "10.240.0.20", "web4": "10.240.1.21"} {
		got := fetch(t, l, "lvs01", address, "/.testpage")
		if !strings.Contains(got, "test page\n"+name) || !strings.Contains(got, "X-Real-Server: "+name) {
			t.Errorf("%s answers\n%s", name, got)
		}
	}
	web := l.Node("web1")
	if err := web.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := web.Service().ExitCode(); code != 0 {
		t.Errorf("the stopped web server exited %d", code)
	}
	if err := web.StartService(); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, l, "lvs01", "10.240.0.20", "/.testpage"); !strings.Contains(got, "web1") {
		t.Errorf("restarted, web1 answers\n%s", got)
	}
}

// fetch asks for a page, with nothing but bash, until a server listens.
func fetch(t *testing.T, l *lab.Lab, node, address, path string) string {
	t.Helper()
	const script = `for i in $(seq 100); do
	if exec 3<>/dev/tcp/$0/80; then break; fi 2>/dev/null; sleep 0.05; done
	printf 'GET %s HTTP/1.0\r\nHost: lab\r\n\r\n' "$1" >&3; cat <&3`
	return output(t, l, node, "bash", "-c", script, address, path)
}

func TestCommandsBehaveAsInAShell(t *testing.T) {
	l := start(t)
	node := l.Node("lvs01")
	for _, tt := range []struct {
		name, stdin, script string
		stdout, stderr      string
		code                int
	}{
		{name: "output", script: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		{name: "input", stdin: "a\nb\n", script: "wc -l", stdout: "2\n"},
		{name: "exit status", script: "exit 7", code: 7},
		{name: "killed", script: "kill -9 $$", code: 137},
		{name: "not found", script: "/no/such/file 2>/dev/null", code: 127},
		{name: "orphans are reaped", script: "(true & exec true) & wait; ps -o stat= -A | grep -c Z", stdout: "0\n", code: 1},
		{name: "environment", script: "echo $HOME $(command -v batuta)", stdout: "/root /.lab/bin/batuta\n"},
		{name: "host name", script: "uname -n; cat /etc/hostname", stdout: "lvs01\nlvs01\n"},
		{name: "names", script: "getent hosts web3 | tr -s ' '", stdout: "10.240.1.20 web3\n"},
		{name: "authkeys", script: "stat -c %a:%U /etc/ha.d/authkeys", stdout: "600:root\n"},
		{name: "init.d", script: "ls /etc/init.d", stdout: "apache2\n"},
		{name: "own processes", script: "[ $(ps -A | wc -l) -lt 8 ] && ps -o args= 1", stdout: "batuta lab init serve-node\n"},
		{name: "root is read-only", script: "touch /usr/x 2>/dev/null || echo refused", stdout: "refused\n"},
		{name: "kernel settings", script: "echo 1 2>/dev/null >/proc/sys/kernel/sysrq || echo refused", stdout: "refused\n"},
		{name: "network settings", script: "cat /proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward", stdout: "1\n0\n"},
		{name: "devices", script: "echo x >/dev/null; head -c 4 /dev/zero | wc -c; ls /dev/vda 2>/dev/null || echo no disk", stdout: "4\nno disk\n"},
		{name: "large output", script: "head -c 1000000 /dev/zero | tr '\\0' x", stdout: strings.Repeat("x", 1000000)},
		{name: "left behind", script: "sleep 1000 & echo done", stdout: "done\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			cmd := node.Command(t.Context(), "sh", "-c", tt.script)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tt.stdin), &stdout, &stderr
			err := cmd.Run()
			var exit *lab.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.stdout, stdout.String()); diff != "" {
				t.Errorf("stdout (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.stderr, stderr.String()); diff != "" {
				t.Errorf("stderr (-want +got):\n%s", diff)
			}
			if cmd.ExitCode() != tt.code {
				t.Errorf("exit status %d, want %d", cmd.ExitCode(), tt.code)
			}
		})
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	l := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd := l.Node("client").Command(ctx, "sh", "-c", "echo ready; sleep 1000; echo not reached")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	if code := cmd.ExitCode(); code != 137 {
		t.Errorf("exit status %d, want 137", code)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	l := start(t)
	ctx := t.Context()
	if err := l.Kill("lvs02"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{l.Node("lvs03").Run(ctx, "true"), `lab: no node "lvs03"; there are client, lvs01, lvs02, web1, web2, web3, web4`},
		{l.Node("lvs02").Run(ctx, "true"), "lab: lvs02: the node is down"},
		{l.Kill("lvs02"), "lab: lvs02: the node is down"},
		{l.Boot(ctx, "lvs01"), "lab: lvs01 is up already"},
		{l.Cut("web1", "eth1"), `lab: web1 has no interface "eth1"; it has eth0`},
		{l.Node("lvs01").StartService(), "lab: lvs01 has no service"},
		{l.Node("lvs01").Run(ctx, "no-such-program"), `lab: lvs01: exec: "no-such-program": executable file not found in $PATH`},
		{l.Node("lvs01").Run(ctx, "sh", "-c", "echo why >&2; exit 3"), "lab: lvs01: sh -c echo why >&2; exit 3: exit status 3: why"},
	} {
		if tt.err == nil || tt.err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", tt.err, tt.want)
		}
	}
}

// eventually waits for what the kernel does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 3 minutes: %s", what)
		}
	}
}
