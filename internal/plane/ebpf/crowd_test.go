package ebpf

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

// crowd is many open connections to virtual addresses, a few of them busy at
// times. They are held by processes of their own, perProcess each: more would
// be more files than one may have.
type crowd struct {
	t         *testing.T
	n         int
	processes []*process
}

const perProcess = 10000

// process is one of them: a command a line, an answer a line.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

const insideCrowd = "BATUTA_EBPF_TEST_CROWD"

// gather opens connections: those of each process from an address of its own.
func gather(t *testing.T, n int, to ...netip.AddrPort) *crowd {
	t.Helper()
	c := &crowd{t: t, n: n}
	t.Cleanup(c.leave)
	for first := 0; first < n; first += perProcess {
		from := fmt.Sprintf("10.1.0.%d", 150+len(c.processes))
		if l, err := client.LinkByName("eth0"); err != nil {
			t.Fatal(err)
		} else if a, _ := netlink.ParseAddr(from + "/24"); client.AddrReplace(l, a) != nil {
			t.Fatalf("%s: no such address to be had", from)
		}
		words := []string{from, strconv.Itoa(min(n-first, perProcess))}
		for _, a := range to {
			words = append(words, a.String())
		}
		c.processes = append(c.processes, start(t, client, insideCrowd+"="+strings.Join(words, " ")))
	}
	c.hear("opening")
	c.survived("first exchange")
	return c
}

// start runs this program on a host in another role.
func start(t *testing.T, h *host, role string) *process {
	t.Helper()
	p := &process{cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), role)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	h.do(func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *process) end() {
	_ = p.in.Close() // which ends it
	_ = p.cmd.Wait()
}

// leave closes all connections.
func (c *crowd) leave() {
	for _, p := range c.processes {
		p.end()
	}
	c.processes = nil
}

func (c *crowd) say(command string) {
	c.t.Helper()
	for _, p := range c.processes {
		if _, err := fmt.Fprintln(p.in, command); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *crowd) hear(what string) {
	c.t.Helper()
	for _, p := range c.processes {
		if answer, err := p.out.ReadString('\n'); answer != "ok\n" {
			c.t.Fatalf("%s: %s %v", what, answer, err)
		}
	}
}

// survived asks each connection for an answer: none may be lost.
func (c *crowd) survived(what string) {
	c.t.Helper()
	c.say("ask")
	c.hear(what)
}

// survives does something while some connections are busy: none may be lost,
// neither of these nor of the others.
func (c *crowd) survives(what string, do func()) {
	c.t.Helper()
	c.say("busy")
	c.hear(what)
	began := time.Now()
	do()
	took := time.Since(began)
	c.say("rest")
	c.hear(what + ": busy connections")
	c.survived("after the " + what)
	c.t.Logf("| %s | %v | 0 of %d |", what, took.Round(time.Millisecond), c.n) // a row of docs/performance.md
}

// beCrowd is one of the processes: words are its own address, the number of
// connections, and where to. It ends with its standard input.
func beCrowd(words []string) error {
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	conns := make([]net.Conn, n)
	each := func(every int, fn func(i int) error) string {
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			fails []error
		)
		for w := range 8 {
			wg.Go(func() {
				for i := w * every; i < n; i += 8 * every {
					if err := fn(i); err != nil {
						mu.Lock()
						fails = append(fails, err)
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		if len(fails) > 0 {
			return fmt.Sprintf("%d of %d connections lost, the first: %v", len(fails), n, fails[0])
		}
		return "ok"
	}
	ask := func(i int) error {
		b := []byte{byte(i)}
		if err := conns[i].SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		if _, err := conns[i].Write(b); err != nil {
			return err
		}
		_, err := conns[i].Read(b)
		return err
	}
	d := net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{IP: net.ParseIP(words[0])}}
	fmt.Println(each(1, func(i int) (err error) {
		conns[i], err = d.Dial("tcp4", words[2+i%(len(words)-2)])
		return err
	}))
	var resting atomic.Bool
	busy := make(chan string, 1)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "ask":
			fmt.Println(each(1, ask))
		case "busy":
			resting.Store(false)
			go func() {
				busy <- each(max(n/8, 1), func(i int) error {
					for !resting.Load() {
						if err := ask(i); err != nil {
							return err
						}
					}
					return nil
				})
			}()
			fmt.Println("ok")
		case "rest":
			resting.Store(true)
			fmt.Println(<-busy)
		}
	}
	return nil
}

// Ten thousand open connections live through a reload, a restart, an update of
// the programs, both at once, and a version with other layouts, while some of
// them are busy all the time. BATUTA_CONNECTIONS is another number.
func TestNothingIsLost(t *testing.T) {
	requireRoot(t)
	connections := int(number("BATUTA_CONNECTIONS", 10000))
	o := testOptions()
	o.MaxFlows = 4 * connections
	p := open(t, o)
	to := vip(0, 80)
	apply(t, p, addService(model.TCP, to, "rr"))
	var reals []string
	for i := range 2 * (1 + connections/perProcess) {
		at := fmt.Sprintf("10.%d.0.20:%d", 240+i%2, 8000+i)
		echoServer(t, []*host{rack0, rack1}[i%2], at)
		apply(t, p, addReal(model.TCP, to, at, 1))
		reals = append(reals, at)
	}
	c := gather(t, connections, to)
	restart := func() {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p = open(t, o)
	}
	t.Log("| event | took | lost |")
	t.Log("|---|--:|--:|")
	c.survives("reload: a service comes and goes, another scheduler, other weights", func() {
		apply(t, p, addService(model.TCP, vip(1, 80), "wrr"), addReal(model.TCP, vip(1, 80), "10.240.0.21:80", 3),
			addService(model.TCP, to, "wlc"), addReal(model.TCP, to, reals[0], 0), addReal(model.TCP, to, reals[1], 7))
		gone := addService(model.TCP, vip(1, 80), "")
		gone.Op = model.ServiceDelete
		apply(t, p, gone)
	})
	c.survives("restart", restart)
	c.survives("update of the program", func() { mutate(t, p, func(ins asm.Instructions) int { return len(ins) }) })
	c.survives("restart of the updated program", restart)
	if f, err := p.Flows(t.Context()); err != nil || len(f) < connections {
		t.Errorf("%d connections in the table, %v; want %d", len(f), err, connections)
	}
	c.survives("update to another layout of the table", func() {
		ofAnotherVersion(p)
		restart()
	})
	p.mu.Lock()
	kept := len(p.retired) == 1 && p.retired[0].Connections() >= connections
	p.mu.Unlock()
	if !kept {
		t.Errorf("%s: want %d connections of the table before", p.Info().Detail, connections)
	}
}

// ofAnotherVersion makes the pinned table one of another version.
func ofAnotherVersion(p *Plane) { p.t.control.Abi ^= 1 << 40 }

// echoServer answers every byte, until the test ends. It is a process of its
// own: so many connections are more than one may have twice.
func echoServer(t *testing.T, h *host, at string) {
	t.Helper()
	p := start(t, h, insideEcho+"="+at)
	t.Cleanup(p.end)
	if _, err := p.out.ReadString('\n'); err != nil {
		t.Fatalf("echo server on %s: %v", at, err)
	}
}

const insideEcho = "BATUTA_EBPF_TEST_ECHO"

// serveEcho is that process. It ends with its standard input.
func serveEcho(at string) error {
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b := make([]byte, 16) // not io.Copy: it would take a pipe for each
				for {
					n, err := c.Read(b)
					if err != nil {
						_ = c.Close()
						return
					}
					_, _ = c.Write(b[:n])
				}
			}()
		}
	}()
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
