package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
	"github.com/batuta-ha/batuta/internal/plane/proxy"
)

// patience bounds waiting for what must happen.
const patience = 20 * time.Second

// rows are the changes that make one service with these real servers.
func rows(v model.VirtualService, reals ...netip.AddrPort) []model.Change {
	c := []model.Change{{Op: model.ServiceAdd, Service: v}}
	for _, a := range reals {
		c = append(c, model.Change{Op: model.RealAdd, Service: v, Real: model.RealServer{Addr: a, Forward: model.Masq, Weight: 1}})
	}
	return c
}

func tcp(a netip.AddrPort) model.VirtualService {
	return model.VirtualService{Key: model.ServiceKey{Proto: model.TCP, Addr: a}, Scheduler: "rr"}
}

func udp(a netip.AddrPort) model.VirtualService {
	return model.VirtualService{Key: model.ServiceKey{Proto: model.UDP, Addr: a}, Scheduler: "rr"}
}

func newPlane(t *testing.T, o proxy.Options, changes ...model.Change) *proxy.Plane {
	t.Helper()
	p := proxy.New(o)
	t.Cleanup(func() { _ = p.Close() })
	apply(t, p, changes...)
	return p
}

func apply(t *testing.T, p *proxy.Plane, changes ...model.Change) {
	t.Helper()
	if err := p.Apply(t.Context(), changes); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

func hold(t *testing.T, p *proxy.Plane, addrs ...netip.Addr) {
	t.Helper()
	if err := p.SetAddresses(t.Context(), addrs); err != nil {
		t.Fatalf("set addresses: %v", err)
	}
}

func dial(t *testing.T, v model.VirtualService) planetest.Conn {
	t.Helper()
	c, err := net.Dial(v.Key.Proto.String(), v.Key.Addr.String())
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return planetest.NewConn(c)
}

// ask returns the address of the real server that answers on a connection.
func ask(t *testing.T, c planetest.Conn) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	real, _, err := c.Exchange(ctx, []byte("who is there?"))
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return real
}

func refusesConnections(v model.VirtualService) bool {
	c, err := net.Dial("tcp", v.Key.Addr.String())
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

func TestAServiceIsServedOnlyWhileItsAddressIsHeld(t *testing.T) {
	v, u := tcp(freeAddr(t, false)), udp(freeAddr(t, false))
	real, realUDP := planetest.StartServer(t, model.TCP, freeAddr(t, false)), planetest.StartServer(t, model.UDP, freeAddr(t, false))
	p := newPlane(t, proxy.Options{}, append(rows(v, real), rows(u, realUDP)...)...)
	if !refusesConnections(v) {
		t.Fatal("served before any address was held")
	}
	hold(t, p, v.Key.Addr.Addr(), u.Key.Addr.Addr())
	c, d := dial(t, v), dial(t, u)
	ask(t, c)
	ask(t, d)

	hold(t, p, u.Key.Addr.Addr())
	if !refusesConnections(v) {
		t.Error("still listens on an address that was let go")
	}
	if f, err := p.Flows(t.Context()); err != nil || len(f) != 1 || f[0].Proto != model.UDP {
		t.Errorf("flows %v, %v: want that of the address that is held", f, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, _, err := c.Exchange(ctx, []byte("still there?")); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("the connection of the address that was let go: %v, want a reset", err)
	}
	ask(t, d)

	if table, err := p.Read(t.Context()); err != nil || len(table.Services) != 2 {
		t.Errorf("table %v, %v: addresses must not change it", table, err)
	}
	hold(t, p, v.Key.Addr.Addr())
	ask(t, dial(t, v))
}

func TestAnAddressMayBeHeldBeforeItIsOnAnInterface(t *testing.T) {
	absent := netip.MustParseAddrPort("192.0.2.77:18080") // RFC 5737: on nobody's interface
	p := newPlane(t, proxy.Options{}, append(rows(tcp(absent)), rows(udp(absent))...)...)
	hold(t, p, absent.Addr())
}

func TestANewOwnerListensBeforeTheOldOneLetsGo(t *testing.T) {
	v := tcp(freeAddr(t, false))
	oldReal, newReal := planetest.StartServer(t, model.TCP, freeAddr(t, false)), planetest.StartServer(t, model.TCP, freeAddr(t, false))
	from, to := newPlane(t, proxy.Options{}, rows(v, oldReal)...), newPlane(t, proxy.Options{}, rows(v, newReal)...)
	hold(t, from, v.Key.Addr.Addr())
	if got := ask(t, dial(t, v)); got != oldReal {
		t.Fatalf("answered by %v, want %v", got, oldReal)
	}
	hold(t, to, v.Key.Addr.Addr())
	hold(t, from)
	for range 20 {
		if got := ask(t, dial(t, v)); got != newReal {
			t.Fatalf("answered by %v, want %v", got, newReal)
		}
	}
}

func TestAProgramInTheWayIsNamedInTheRow(t *testing.T) {
	l, err := net.Listen("tcp4", "0.0.0.0:0") // a fallback server on all addresses
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	v, free := tcp(netip.AddrPortFrom(freeAddr(t, false).Addr(), port)), tcp(freeAddr(t, false))
	real := planetest.StartServer(t, model.TCP, freeAddr(t, false))

	p := newPlane(t, proxy.Options{HoldAll: true})
	err = p.Apply(t.Context(), append(rows(v), rows(free, real)...))
	var row *plane.RowError
	if !errors.As(err, &row) || row.Change.Service.Key != v.Key || !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("apply: %v; want a RowError for %s", err, v.Key)
	}
	if want := "another program on this host listens on port"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v: want %q in it", err, want)
	}
	ask(t, dial(t, free))
	if table, err := p.Read(t.Context()); err != nil || table.Find(v.Key) != nil {
		t.Errorf("table %v, %v: a refused row is not in it", table, err)
	}

	// With addresses that come later the table has the row, and the address
	// says what is wrong. When the other program has gone, the next change
	// finds that out.
	q := newPlane(t, proxy.Options{}, rows(v, real)...)
	if err := q.SetAddresses(t.Context(), []netip.Addr{v.Key.Addr.Addr()}); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("set addresses: %v, want %v", err, unix.EADDRINUSE)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	apply(t, q)
	ask(t, dial(t, v))
}

func TestWhatAProxyCannotCarryIsRefusedWithTheReason(t *testing.T) {
	v := tcp(freeAddr(t, false))
	p := newPlane(t, proxy.Options{HoldAll: true}, rows(v)...)
	own := rows(v, v.Key.Addr)[1]
	scheduler, ops := v, udp(v.Key.Addr)
	scheduler.Scheduler, ops.OnePacket = "lblcr", true
	for _, c := range []struct {
		change model.Change
		want   string
	}{
		{rows(scheduler)[0], `scheduler "lblcr": not supported by the proxy plane, which has rr, wrr, lc, wlc, sed, nq, fo, ovf, sh, mh`},
		{rows(ops)[0], "one-packet scheduling: not supported"},
		{rows(model.VirtualService{Key: model.ServiceKey{Mark: 1, MarkFamily: model.IPv4}, Scheduler: "rr"})[0], "firewall marks are known to the kernel only"},
		{rows(model.VirtualService{Key: model.ServiceKey{Proto: model.SCTP, Addr: v.Key.Addr}, Scheduler: "rr"})[0], "carries tcp and udp, not sctp"},
		{own, "the proxy would call itself"},
	} {
		err := p.Apply(t.Context(), []model.Change{c.change})
		if !errors.Is(err, plane.ErrNotSupported) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", c.change, err, c.want)
		}
	}
}

func TestARealServerThatRefusesIsPassedOver(t *testing.T) {
	v := tcp(freeAddr(t, false))
	real := planetest.StartServer(t, model.TCP, freeAddr(t, false))
	p := newPlane(t, proxy.Options{HoldAll: true}, rows(v, freeAddr(t, false), freeAddr(t, false), real)...)
	for range 9 {
		if got := ask(t, dial(t, v)); got != real {
			t.Fatalf("answered by %v, want %v", got, real)
		}
	}
	apply(t, p, model.Change{Op: model.RealDelete, Service: v, Real: model.RealServer{Addr: real}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := net.Dial("tcp", v.Key.Addr.String())
	if err == nil { // else the reset was faster
		_, _, err = planetest.NewConn(c).Exchange(ctx, []byte("anybody?"))
		_ = c.Close()
	}
	if err == nil || ctx.Err() != nil {
		t.Errorf("with dead real servers only: %v, want a quick refusal", err)
	}
}

// deafServer is an address where connections neither succeed nor fail: its
// queue is full and nobody accepts.
func deafServer(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	a := freeAddr(t, false)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		c, err := net.DialTimeout("tcp", a.String(), 200*time.Millisecond)
		if err != nil {
			return a
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the queue of a server that does not accept is never full")
	return a
}

func TestASilentRealServerIsPassedOverAfterItsTime(t *testing.T) {
	v := tcp(freeAddr(t, false))
	deaf, real := deafServer(t), planetest.StartServer(t, model.TCP, freeAddr(t, false))
	newPlane(t, proxy.Options{HoldAll: true, ConnectTimeout: 50 * time.Millisecond}, rows(v, deaf, real)...)
	for range 4 {
		if got := ask(t, dial(t, v)); got != real {
			t.Fatalf("answered by %v, want %v", got, real)
		}
	}
}

func TestDeletingARealServerEndsConnectionsThatAreOpening(t *testing.T) {
	v := tcp(freeAddr(t, false))
	deaf := deafServer(t)
	p := newPlane(t, proxy.Options{HoldAll: true, ConnectTimeout: time.Hour}, rows(v, deaf)...)
	c := dial(t, v)
	for { // until it is on its way
		k, err := p.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if k[0].Reals[0].Inactive == 1 {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		time.Sleep(time.Millisecond)
	}
	apply(t, p, model.Change{Op: model.RealDelete, Service: v, Real: model.RealServer{Addr: deaf}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, _, err := c.Exchange(ctx, []byte("hello?")); err == nil || ctx.Err() != nil {
		t.Errorf("exchange: %v, want a reset", err)
	}
	if err := p.Close(); err != nil { // does not wait for the hour
		t.Error(err)
	}
}

func TestAResetIsHandedOn(t *testing.T) {
	v := tcp(freeAddr(t, false))
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	newPlane(t, proxy.Options{HoldAll: true}, rows(v, netip.MustParseAddrPort(l.Addr().String()))...)
	for _, who := range []string{"client", "server"} {
		client, err := net.Dial("tcp", v.Key.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		first, second := client, server
		if who == "server" {
			first, second = server, client
		}
		tc, _ := first.(*net.TCPConn)
		if err := errors.Join(tc.SetLinger(0), tc.Close()); err != nil {
			t.Fatal(err)
		}
		_ = second.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(second); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the %s's reset reached the other side as %v, want %v", who, err, unix.ECONNRESET)
		}
		_ = second.Close()
	}
}

func TestGateAndTunnelServeLikeMasq(t *testing.T) {
	for _, method := range []model.Forward{model.Masq, model.Gate, model.IPIP} {
		v := tcp(freeAddr(t, false))
		real := planetest.StartServer(t, model.TCP, freeAddr(t, false)) // as in fallback=127.0.0.1:80 gate
		changes := rows(v, real)
		changes[1].Real.Forward = method
		newPlane(t, proxy.Options{HoldAll: true}, changes...)
		if got := ask(t, dial(t, v)); got != real {
			t.Errorf("%s: answered by %v, want %v", method, got, real)
		}
	}
}

func TestPersistenceKeepsAClientWithItsRealServer(t *testing.T) {
	v := tcp(freeAddr(t, false))
	v.Persistence = model.Persistence{Enabled: true, Timeout: time.Hour}
	a, b := planetest.StartServer(t, model.TCP, freeAddr(t, false)), planetest.StartServer(t, model.TCP, freeAddr(t, false))
	p := newPlane(t, proxy.Options{HoldAll: true}, rows(v, a, b)...)
	home := ask(t, dial(t, v))
	for range 4 {
		if got := ask(t, dial(t, v)); got != home {
			t.Fatalf("answered by %v, was %v before", got, home)
		}
	}
	apply(t, p, model.Change{Op: model.RealDelete, Service: v, Real: model.RealServer{Addr: home}})
	if got := ask(t, dial(t, v)); got == home {
		t.Errorf("answered by %v, which was deleted", got)
	}
}

func TestADatagramThatIsRefusedSendsItsClientElsewhere(t *testing.T) {
	v := udp(freeAddr(t, false))
	real := planetest.StartServer(t, model.UDP, freeAddr(t, false))
	newPlane(t, proxy.Options{HoldAll: true}, rows(v, freeAddr(t, false), real)...)
	for range 4 { // clients, half of which are sent to nobody at first
		c := dial(t, v)
		var err error
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			var got netip.AddrPort
			got, _, err = c.Exchange(ctx, []byte("again"))
			cancel()
			if err == nil && got != real {
				t.Fatalf("answered by %v, want %v", got, real)
			}
			if err == nil {
				break
			}
		}
		if err != nil {
			t.Fatalf("no answer in 100 attempts: %v", err)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestAThousandConnectionsAtOnceAndNothingLeftAfterwards(t *testing.T) {
	const total = 1000
	v := tcp(freeAddr(t, false))
	real := planetest.StartServer(t, model.TCP, freeAddr(t, false))
	before := openFiles(t)
	p := newPlane(t, proxy.Options{HoldAll: true}, rows(v, real)...)
	if size := p.Info().Size; size < total {
		t.Skipf("the limit on open files allows %d connections", size)
	}
	var (
		wg    sync.WaitGroup
		conns [total]net.Conn
		fails = make(chan error, total)
	)
	for i := range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", v.Key.Addr.String())
			if err != nil {
				fails <- err
				return
			}
			conns[i] = c
			if _, _, err := planetest.NewConn(c).Exchange(t.Context(), fmt.Appendf(nil, "client %d", i)); err != nil {
				fails <- err
			}
		})
	}
	wg.Wait()
	if len(fails) > 0 {
		t.Fatalf("%d of %d failed, the first with: %v", len(fails), total, <-fails)
	}
	k, err := p.Counters(t.Context())
	if err != nil || k[0].Reals[0].Active != total || k[0].Connections != total {
		t.Errorf("counters %+v, %v; want %d connections, all active", k, err, total)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	for n := 0; openFiles(t) > before; n++ { // the real server ends its side when it notices
		if n > 2000 {
			t.Fatalf("%d open files, %d before", openFiles(t), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// What a takeover costs here: listening on an address and letting it go.
func BenchmarkHoldAddress(b *testing.B) {
	p := proxy.New(proxy.Options{})
	defer func() { _ = p.Close() }()
	absent := netip.MustParseAddrPort("192.0.2.77:18080")
	if err := p.Apply(b.Context(), append(rows(tcp(absent)), rows(udp(absent))...)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, held := range [][]netip.Addr{{absent.Addr()}, nil} {
			if err := p.SetAddresses(b.Context(), held); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A whole client: connect through the proxy, one exchange, close.
func BenchmarkConnection(b *testing.B) {
	v := tcp(netip.MustParseAddrPort("127.64.1.1:18080"))
	l, err := net.Listen("tcp4", "127.64.1.2:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go planetest.ServeStream(l)
	p := proxy.New(proxy.Options{HoldAll: true})
	defer func() { _ = p.Close() }()
	if err := p.Apply(b.Context(), rows(v, netip.MustParseAddrPort(l.Addr().String()))); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := net.Dial("tcp", v.Key.Addr.String())
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := planetest.NewConn(c).Exchange(b.Context(), []byte("ping")); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}
