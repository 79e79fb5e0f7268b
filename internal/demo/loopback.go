package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/model"
)

// Port of the service in the loopback stage: open to everyone, unlike 80.
const loopbackPort = "8080"

// loopback stages the cluster on addresses of 127.0.0.0/8, without root: all
// of them are on every Linux machine already. The two directors are two
// processes, the address is held by whoever listens on it (plane proxy), and a
// crash is a kill -9.
type loopback struct {
	Options
	net     string // the first two bytes of all addresses: "127.103"
	udpPort int
	web     []string // addresses of the real servers
	procs   map[string]*exec.Cmd
	output  *os.File
}

func newLoopback(_ context.Context, o Options) (stage, error) {
	l := &loopback{Options: o, procs: map[string]*exec.Cmd{}}
	if err := l.choose(); err != nil {
		return nil, err
	}
	var err error
	if l.output, err = os.Create(filepath.Join(o.Dir, "output.log")); err != nil {
		return nil, fmt.Errorf("keep the programs' output: %w", err)
	}
	l.web = []string{l.net + ".240.20", l.net + ".240.21", l.net + ".241.20", l.net + ".241.21"}
	if err := l.configure(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	for _, w := range l.web {
		if err := l.spawn(w, "lab", "serve", "--listen", w+":"+loopbackPort, "--name", w); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	return l, nil
}

// choose finds a corner of 127.0.0.0/8 and a UDP port that nobody uses, so
// that several demos can run at once.
func (l *loopback) choose() error {
	for range 100 {
		prefix := fmt.Sprintf("127.%d", 100+rand.IntN(100))
		tcp, err := net.Listen("tcp", prefix+".0.100:"+loopbackPort)
		if err != nil {
			continue
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", prefix+".0.1:0")
		if err != nil {
			continue
		}
		udp.Close()
		l.net, l.udpPort = prefix, udp.LocalAddr().(*net.UDPAddr).Port
		return nil
	}
	return fmt.Errorf("no free loopback address with port %s found: is another program listening on all of them?", loopbackPort)
}

func (l *loopback) vip() string { return l.net + ".0.100" }

// nodeAddr is where a node's heartbeats come from and go to.
func (l *loopback) nodeAddr(n model.NodeName) string {
	if n == first {
		return l.net + ".0.1"
	}
	return l.net + ".0.2"
}

// configure writes the tutorial's files with loopback addresses.
func (l *loopback) configure() error {
	hacf, err := tutorialFile("ha.cf")
	if err != nil {
		return err
	}
	cf, err := tutorialFile("ldirectord.cf")
	if err != nil {
		return err
	}
	keys, err := tutorialFile("authkeys")
	if err != nil {
		return err
	}
	cf = strings.NewReplacer("10.1.0.100:80", l.vip()+":"+loopbackPort,
		"10.240.0.20:80", l.web[0]+":"+loopbackPort, "10.240.0.21:80", l.web[1]+":"+loopbackPort,
		"10.240.1.20:80", l.web[2]+":"+loopbackPort, "10.240.1.21:80", l.web[3]+":"+loopbackPort,
		"127.0.0.1:80 gate", l.net+".0.9:"+loopbackPort+" masq",
		`fallbackcommand="/etc/init.d/apache2"`, `fallbackcommand="/bin/true"`).Replace(cf)
	for _, n := range []model.NodeName{first, second} {
		dir := l.dir(n)
		log := `logfile="` + filepath.Join(dir, "ldirectord.log") + `"`
		err := writeHaD(filepath.Join(dir, "ha.d"), map[string]string{
			"ha.cf": rewrite(paced(hacf, l.Duration), map[string][]string{
				"bcast": {fmt.Sprintf("udpport %d", l.udpPort),
					"ucast lo " + l.nodeAddr(first), "ucast lo " + l.nodeAddr(second)},
				"logfile":   {"logfile " + filepath.Join(dir, "ha-log")},
				"debugfile": {"debugfile " + filepath.Join(dir, "ha-debug")},
			}),
			"authkeys":      keys,
			"haresources":   string(first) + " " + l.vip() + " ldirectord\n",
			"ldirectord.cf": log + "\n" + cf,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *loopback) dir(n model.NodeName) string { return filepath.Join(l.Dir, string(n)) }

// spawn starts the batuta binary with arguments, under a name of ours.
func (l *loopback) spawn(name string, args ...string) error {
	cmd := exec.Command(l.Binary, args...)
	cmd.Stdout, cmd.Stderr = l.output, l.output
	// A killed demo takes its programs along; a Ctrl-C is ours alone to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	l.procs[name] = cmd
	return nil
}

// end signals a program and waits for its end.
func (l *loopback) end(name string, sig syscall.Signal) error {
	cmd := l.procs[name]
	if cmd == nil {
		return nil
	}
	delete(l.procs, name)
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && sig == syscall.SIGKILL {
		return nil // that is what the signal does
	}
	if err != nil {
		return fmt.Errorf("%s: %w (see %s)", name, err, l.output.Name())
	}
	return nil
}

func (l *loopback) mode() string { return "loopback" }
func (l *loopback) url() string {
	return "http://" + l.vip() + ":" + loopbackPort + "/.testpage"
}
func (l *loopback) reals() []string { return l.web }

func (l *loopback) describe() []string {
	return []string{
		"A cluster on loopback addresses, without root: two directors, four real servers.",
		"",
		fmt.Sprintf("  client ── %-18s ──┬── lvs01 (%s) ──┬── %s, %s", l.vip()+":"+loopbackPort, l.nodeAddr(first), l.web[0], l.web[1]),
		fmt.Sprintf("            %-18s   └── lvs02 (%s) ──┴── %s, %s", "service address", l.nodeAddr(second), l.web[2], l.web[3]),
		"",
	}
}

func (l *loopback) load(ctx context.Context, out io.Writer) (func() error, error) {
	done := make(chan error, 1)
	go func() { done <- Load(ctx, Probes{URL: l.url(), Want: lab.PageText}, out) }()
	return func() error { return <-done }, nil
}

func (l *loopback) status(ctx context.Context, n model.NodeName) (api.Status, error) {
	return api.NewClient(filepath.Join(l.dir(n), "run", "batuta.sock")).Status(ctx)
}

func (l *loopback) startNode(_ context.Context, n model.NodeName) error {
	dir := l.dir(n)
	return l.spawn(string(n), "run", "--ha.d", filepath.Join(dir, "ha.d"), "--node", string(n), "--plane", "proxy",
		"--heartbeat-address", l.nodeAddr(n), "--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"))
}

func (l *loopback) stopNode(_ context.Context, n model.NodeName) error {
	return l.end(string(n), syscall.SIGTERM)
}

func (l *loopback) crash(_ context.Context, n model.NodeName) error {
	return l.end(string(n), syscall.SIGKILL)
}

func (l *loopback) setReal(_ context.Context, name string, up bool) error {
	if !up {
		return l.end(name, syscall.SIGKILL)
	}
	return l.spawn(name, "lab", "serve", "--listen", name+":"+loopbackPort, "--name", name)
}

func (l *loopback) linger(ctx context.Context) error {
	fmt.Fprintf(l.Account, "\nThe cluster stays up until Ctrl-C. Its service: %s; its daemons:\n\n", l.url())
	for _, n := range []model.NodeName{first, second} {
		fmt.Fprintf(l.Account, "  batuta status --run-dir %s\n", filepath.Join(l.dir(n), "run"))
	}
	<-ctx.Done()
	return nil
}

// close ends every program that still runs, directors first.
func (l *loopback) close() error {
	var errs []error
	for _, n := range []model.NodeName{first, second} {
		if cmd := l.procs[string(n)]; cmd != nil {
			// A director that does not stop in time must not keep the demo.
			timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
			errs = append(errs, l.end(string(n), syscall.SIGTERM))
			timer.Stop()
		}
	}
	for name := range l.procs {
		errs = append(errs, l.end(name, syscall.SIGKILL))
	}
	return errors.Join(append(errs, l.output.Close())...)
}
