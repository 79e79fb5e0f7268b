package ebpf

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// crowd is many open connections to virtual addresses, a few of them busy.
type crowd struct {
	t     *testing.T
	conns []net.Conn
}

// perAddress is how many connections one client address has to one virtual one.
const perAddress = 20000

// gather opens connections. Beyond perAddress they come from further addresses.
func gather(t *testing.T, n int, to ...netip.AddrPort) *crowd {
	t.Helper()
	for i := 1; i*perAddress < n; i++ {
		if err := client.address("eth0", fmt.Sprintf("10.1.0.%d/24", 150+i)); err != nil {
			t.Fatal(err)
		}
	}
	c := &crowd{t, make([]net.Conn, n)}
	t.Cleanup(c.leave)
	c.each("opening", 8, func(i int) (err error) {
		d := net.Dialer{Timeout: patience}
		if k := i / perAddress; k > 0 {
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(10, 1, 0, byte(150+k))}
		}
		client.do(func() { c.conns[i], err = d.DialContext(context.Background(), "tcp4", to[i%len(to)].String()) })
		return err
	})
	c.each("first exchange", 8, c.ask)
	return c
}

// leave closes all connections.
func (c *crowd) leave() {
	for i := range c.conns {
		if c.conns[i] != nil {
			_ = c.conns[i].Close()
			c.conns[i] = nil
		}
	}
}

func (c *crowd) each(what string, workers int, fn func(i int) error) {
	c.t.Helper()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		lost  int
		first error
	)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(c.conns); i += workers {
				if err := fn(i); err != nil {
					mu.Lock()
					lost++
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if lost > 0 {
		c.t.Fatalf("%s: %d of %d connections lost, the first: %v", what, lost, len(c.conns), first)
	}
}

// ask sends a byte and waits for it to come back.
func (c *crowd) ask(i int) error {
	b := []byte{byte(i)}
	if err := c.conns[i].SetDeadline(time.Now().Add(3 * patience)); err != nil {
		return err
	}
	if _, err := c.conns[i].Write(b); err != nil {
		return err
	}
	_, err := c.conns[i].Read(b)
	return err
}

// survives does something while some connections are busy: none may be lost,
// neither of these nor of the others.
func (c *crowd) survives(what string, do func()) {
	c.t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	fails := make(chan error, 16)
	for i := range cap(fails) {
		wg.Go(func() {
			for {
				if err := c.ask(i); err != nil {
					fails <- err
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	began := time.Now()
	func() {
		defer func() { close(stop); wg.Wait() }()
		do()
	}()
	took := time.Since(began)
	select {
	case err := <-fails:
		c.t.Fatalf("%s: a busy connection was lost: %v", what, err)
	default:
	}
	c.each("after the "+what, 8, c.ask)
	c.t.Logf("%s: %v, 0 of %d connections lost", what, took.Round(time.Millisecond), len(c.conns))
}

// Ten thousand open connections live through a reload, a restart, an update of
// the programs, both at once, and a version with other layouts, while some of
// them are busy all the time. BATUTA_CONNECTIONS is another number.
func TestNothingIsLost(t *testing.T) {
	requireRoot(t)
	connections := int(number("BATUTA_CONNECTIONS", 10000))
	limit := unix.Rlimit{Cur: uint64(connections + 10000), Max: uint64(connections + 10000)}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.MaxFlows = 4 * connections
	p := open(t, o)
	to := vip(0, 80)
	apply(t, p, addService(model.TCP, to, "rr"), addReal(model.TCP, to, "10.240.0.20:8000", 1), addReal(model.TCP, to, "10.241.0.20:8000", 1))
	for at, h := range map[string]*host{"10.240.0.20:8000": rack0, "10.241.0.20:8000": rack1} {
		echoServer(t, h, at)
	}
	c := gather(t, connections, to)
	restart := func() {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p = open(t, o)
	}
	c.survives("reload", func() {
		apply(t, p, addService(model.TCP, vip(1, 80), "wrr"), addReal(model.TCP, vip(1, 80), "10.240.0.21:80", 3),
			addService(model.TCP, to, "wlc"), addReal(model.TCP, to, "10.240.0.20:8000", 0), addReal(model.TCP, to, "10.241.0.20:8000", 7))
		gone := addService(model.TCP, vip(1, 80), "")
		gone.Op = model.ServiceDelete
		apply(t, p, gone)
	})
	c.survives("restart", restart)
	c.survives("update of the program", func() { mutate(t, p, func(ins asm.Instructions) int { return len(ins) }) })
	c.survives("restart of an updated program", restart)
	if f, err := p.Flows(t.Context()); err != nil || len(f) < connections {
		t.Errorf("%d connections in the table, %v; want %d", len(f), err, connections)
	}
	c.survives("update to another layout", func() {
		ofAnotherVersion(p)
		restart()
	})
	if len(p.retired) != 1 || p.retired[0].Connections() < connections {
		t.Errorf("%s: want %d connections of the table before", p.Info().Detail, connections)
	}
}

// ofAnotherVersion makes the pinned table one of another version.
func ofAnotherVersion(p *Plane) { p.t.control.Abi ^= 1 << 40 }

// echoServer answers every byte, until the test ends. It is a process of its
// own: so many connections are more than one may have twice.
func echoServer(t *testing.T, h *host, at string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), insideEcho+"="+at)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // which ends it
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
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
