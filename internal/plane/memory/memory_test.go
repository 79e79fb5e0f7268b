package memory_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/memory"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

func TestConformance(t *testing.T) {
	planetest.Run(t, planetest.Harness{
		New: newBench(func(*testing.T) string { return "" }),
		Without: map[planetest.Feature]string{
			planetest.KeepsTable:       "without a table file the table lives in the process",
			planetest.KeepsConnections: "connections live in the process",
		},
	})
}

func TestConformanceWithTableFile(t *testing.T) {
	planetest.Run(t, planetest.Harness{
		New:     newBench(func(t *testing.T) string { return filepath.Join(t.TempDir(), "table.json") }),
		Without: map[planetest.Feature]string{planetest.KeepsConnections: "connections live in the process"},
	})
}

// bench plays the clients and the real servers of a plane in memory.
type bench struct {
	options memory.Options
	plane   *memory.Plane
	clock   atomic.Int64 // nanoseconds
	port    atomic.Uint32
}

func newBench(file func(*testing.T) string) func(*testing.T, planetest.Options) planetest.Bench {
	return func(t *testing.T, o planetest.Options) planetest.Bench {
		b := &bench{}
		b.options = memory.Options{
			Now:       func() time.Time { return time.Unix(1_700_000_000, b.clock.Load()) },
			TableFile: file(t),
			Timeouts:  memory.Timeouts{UDP: o.UDPTimeout},
		}
		b.plane = open(t, b.options)
		return b
	}
}

func open(t *testing.T, o memory.Options) *memory.Plane {
	t.Helper()
	p, err := memory.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (b *bench) Plane() plane.Plane      { return b.plane }
func (b *bench) Advance(d time.Duration) { b.clock.Add(int64(d)) }

func (b *bench) Reopen(t *testing.T) {
	if err := b.plane.Close(); err != nil {
		t.Fatal(err)
	}
	b.plane = open(t, b.options)
}

func (b *bench) Virtual(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}), 80)
}

func (b *bench) Real(_ model.Protocol, i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}), 8080)
}

var errNoAnswer = errors.New("no answer")

func (b *bench) Dial(_ context.Context, p model.Protocol, virtual netip.AddrPort) (planetest.Conn, error) {
	n := b.port.Add(1)
	c := &conn{bench: b, sum: sha256.New(), Packet: memory.Packet{Proto: p, Virtual: virtual,
		Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n >> 14)}), uint16(1024+n%(1<<14)))}}
	if p == model.TCP {
		if _, _, err := c.in(0, memory.SYN); err != nil {
			return nil, err
		}
		if err := c.out(0, memory.SYN); err != nil {
			return nil, err
		}
		if _, _, err := c.in(0, 0); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// conn is a client's side of one connection; the real server's side is
// played by the same code.
type conn struct {
	bench *bench
	memory.Packet
	mu    sync.Mutex
	sum   hash.Hash
	total uint64
}

func (c *conn) in(n int, f memory.Flags) (real netip.AddrPort, ok bool, err error) {
	pk := c.Packet
	pk.Bytes, pk.Flags = n, f
	if real, ok = c.bench.plane.In(pk); !ok {
		err = errNoAnswer
	}
	return real, ok, err
}

func (c *conn) out(n int, f memory.Flags) error {
	pk := c.Packet
	pk.Bytes, pk.Flags = n, f
	if !c.bench.plane.Out(pk) {
		return errNoAnswer
	}
	return nil
}

func (c *conn) Local() netip.AddrPort { return c.Client }

func (c *conn) Exchange(_ context.Context, msg []byte) (netip.AddrPort, []byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	real, _, err := c.in(len(msg), 0)
	if err != nil {
		return real, nil, err
	}
	_, _ = c.sum.Write(msg)
	c.total += uint64(len(msg))
	return real, msg, c.out(len(msg), 0)
}

func (c *conn) Finish(context.Context) (s planetest.Summary, err error) {
	if _, _, err = c.in(0, memory.FIN); err != nil {
		return s, err
	}
	s.Bytes = c.total
	c.sum.Sum(s.SHA256[:0])
	return s, c.out(40, memory.FIN)
}

func (c *conn) Close() error {
	if c.Proto != model.TCP {
		return nil
	}
	_, _, err := c.in(0, memory.FIN)
	return errors.Join(err, c.out(0, memory.FIN))
}

var (
	web   = model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("192.0.2.1:80")}
	alpha = model.RealServer{Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Forward: model.Masq, Weight: 1}
	beta  = model.RealServer{Addr: netip.MustParseAddrPort("10.0.0.2:8080"), Forward: model.Masq, Weight: 1}
)

func addService(v model.VirtualService) model.Change {
	return model.Change{Op: model.ServiceAdd, Service: v}
}

func addReal(k model.ServiceKey, r model.RealServer) model.Change {
	return model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: k}, Real: r}
}

func TestEachApplyAddsOneLineWithWhatReallyChanged(t *testing.T) {
	events := filepath.Join(t.TempDir(), "events.jsonl")
	now := time.UnixMilli(1_700_000_000_250)
	p := open(t, memory.Options{Now: func() time.Time { return now }, EventsFile: events})
	sticky := model.VirtualService{Key: web, Scheduler: "wrr", SchedFlags: "sh-port",
		Persistence: model.Persistence{Enabled: true, Timeout: 600 * time.Second, Netmask: netip.MustParseAddr("255.255.255.0")}}
	local := model.RealServer{Addr: netip.MustParseAddrPort("127.0.0.1:8080"), Forward: model.Gate, Weight: 1, Upper: 9, Lower: 3}
	heavy := alpha
	heavy.Weight = 5
	for _, batch := range [][]model.Change{
		{addService(model.VirtualService{Key: web, Scheduler: "rr"}), addReal(web, alpha), addReal(web, beta)},
		{addReal(web, alpha), addService(model.VirtualService{Key: web, Scheduler: "rr"})}, // nothing new: no line
		{addService(sticky), addReal(web, heavy), addReal(web, local)},
		{{Op: model.RealDelete, Service: model.VirtualService{Key: web}, Real: beta}, {Op: model.RealDelete, Service: model.VirtualService{Key: web}, Real: beta}},
		{{Op: model.ServiceDelete, Service: model.VirtualService{Key: web}}},
	} {
		if err := p.Apply(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"at":1700000000.25,"kind":"table","changes":[{"op":"service-add","service":"tcp 192.0.2.1:80","scheduler":"rr"},{"op":"real-add","service":"tcp 192.0.2.1:80","real":"10.0.0.1:8080","forward":"masq","weight":1},{"op":"real-add","service":"tcp 192.0.2.1:80","real":"10.0.0.2:8080","forward":"masq","weight":1}]}
{"at":1700000000.25,"kind":"table","changes":[{"op":"service-edit","service":"tcp 192.0.2.1:80","scheduler":"wrr","persistent":600,"netmask":"255.255.255.0","schedflags":"sh-port"},{"op":"real-edit","service":"tcp 192.0.2.1:80","real":"10.0.0.1:8080","forward":"masq","weight":5},{"op":"real-add","service":"tcp 192.0.2.1:80","real":"127.0.0.1:80","forward":"gate","weight":1,"upper":9,"lower":3}]}
{"at":1700000000.25,"kind":"table","changes":[{"op":"real-del","service":"tcp 192.0.2.1:80","real":"10.0.0.2:8080"}]}
{"at":1700000000.25,"kind":"table","changes":[{"op":"service-del","service":"tcp 192.0.2.1:80"}]}
`
	got, err := os.ReadFile(events)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("events file (-want +got):\n%s", d)
	}
}

func TestTheTableFileIsTheTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "table.json")
	p := open(t, memory.Options{TableFile: file})
	if err := p.Apply(t.Context(), []model.Change{addService(model.VirtualService{Key: web, Scheduler: "rr"}), addReal(web, alpha)}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"tcp 192.0.2.1:80":{"key":"tcp 192.0.2.1:80","scheduler":"rr","persistent":null,"netmask":"","flags":"","ops":false,` +
		`"reals":{"10.0.0.1:8080":{"addr":"10.0.0.1:8080","forward":"masq","weight":1,"upper":0,"lower":0}}}}` + "\n"
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("table file (-want +got):\n%s", d)
	}

	// A connection, and then the administrator's own change behind our back.
	pk := memory.Packet{Proto: model.TCP, Client: netip.MustParseAddrPort("198.51.100.1:1024"), Virtual: web.Addr, Flags: memory.SYN}
	if _, ok := p.In(pk); !ok {
		t.Fatal("the first connection found nobody")
	}
	other := strings.ReplaceAll(string(got), "10.0.0.1", "10.0.0.7")
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := p.Read(t.Context())
	if want := "tcp 192.0.2.1:80 rr\n  10.0.0.7:8080 masq weight 1\n"; err != nil || table.String() != want {
		t.Errorf("table %q, %v; want %q", table, err, want)
	}
	if f, err := p.Flows(t.Context()); err != nil || len(f) != 0 {
		t.Errorf("flows %v, %v: their real server is gone", f, err)
	}
}

func TestABrokenTableFileIsAnError(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"empty":     {"", "is empty, want a JSON object"},
		"no JSON":   {"ipvsadm -A", "invalid character"},
		"key":       {`{"tcp 1.2.3.4":{"scheduler":"rr"}}`, "not a virtual service"},
		"other key": {`{"fwm 1":{"key":"fwm 2","scheduler":"rr"}}`, `its key says "fwm 2"`},
		"scheduler": {`{"fwm 1":{"scheduler":"best"}}`, `scheduler "best"`},
		"mask":      {`{"fwm 1":{"scheduler":"rr","persistent":1,"netmask":"64"}}`, `netmask "64": want four numbers`},
		"forward":   {`{"fwm 1":{"scheduler":"rr","reals":{"1.2.3.4:0":{"forward":"nat"}}}}`, "not a forwarding method"},
		"weight":    {`{"fwm 1":{"scheduler":"rr","reals":{"1.2.3.4:0":{"forward":"masq","weight":-1}}}}`, "weight -1"},
		"null":      {`{"fwm 1":null}`, "is null"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "table.json")
			if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := memory.New(memory.Options{TableFile: file})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
				t.Fatalf("error %v, want %q in it and the file's name", err, c.want)
			}
			if got, _ := os.ReadFile(file); string(got) != c.content {
				t.Errorf("the broken file was changed to %q", got)
			}
		})
	}
}

func TestATableFileThatCannotBeWrittenChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	if _, err := memory.New(memory.Options{TableFile: filepath.Join(dir, "table.json")}); err == nil {
		t.Fatal("want an error: there is no directory for the file")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := open(t, memory.Options{TableFile: filepath.Join(dir, "table.json")})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	err := p.Apply(t.Context(), []model.Change{addService(model.VirtualService{Key: web, Scheduler: "rr"})})
	var row *plane.RowError
	if err == nil || errors.As(err, &row) {
		t.Fatalf("error %v, want one that is of no single row", err)
	}
}

// send opens a connection from a client and returns who got it.
func send(t *testing.T, p *memory.Plane, client string) string {
	t.Helper()
	pk := memory.Packet{Proto: model.TCP, Client: netip.MustParseAddrPort(client), Virtual: web.Addr, Flags: memory.SYN, Bytes: 40}
	real, ok := p.In(pk)
	if !ok {
		return "nobody"
	}
	return real.Addr().String()
}

func TestPersistenceKeepsAClientWhereItWas(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	p := open(t, memory.Options{Now: func() time.Time { return now }})
	quiet := alpha
	quiet.Weight = 0
	err := p.Apply(t.Context(), []model.Change{
		addService(model.VirtualService{Key: web, Scheduler: "rr", Persistence: model.Persistence{Enabled: true, Timeout: time.Minute}}),
		addReal(web, alpha), addReal(web, beta),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	step := func(client string) { got = append(got, send(t, p, client)) }
	step("198.51.100.1:1001")
	step("198.51.100.1:1002")
	step("198.51.100.2:1003")
	if err := p.Apply(t.Context(), []model.Change{addReal(web, quiet)}); err != nil {
		t.Fatal(err)
	}
	step("198.51.100.1:1004") // weight 0 does not end persistence
	now = now.Add(time.Minute)
	step("198.51.100.1:1005") // its time does
	if d := cmp.Diff([]string{"10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"}, got); d != "" {
		t.Errorf("real servers (-want +got):\n%s", d)
	}
}

func TestThresholdsKeepNewConnectionsAway(t *testing.T) {
	p := open(t, memory.Options{})
	small := alpha
	small.Upper = 1
	if err := p.Apply(t.Context(), []model.Change{addService(model.VirtualService{Key: web, Scheduler: "fo"}), addReal(web, small), addReal(web, beta)}); err != nil {
		t.Fatal(err)
	}
	got := send(t, p, "198.51.100.1:1") + " " + send(t, p, "198.51.100.1:2") + " " + send(t, p, "198.51.100.1:3")
	if want := "10.0.0.1 10.0.0.2 10.0.0.2"; got != want {
		t.Errorf("real servers %s, want %s", got, want)
	}
}

func TestASegmentOfNoConnectionIsDropped(t *testing.T) {
	p := open(t, memory.Options{})
	if err := p.Apply(t.Context(), []model.Change{addService(model.VirtualService{Key: web, Scheduler: "rr"}), addReal(web, alpha)}); err != nil {
		t.Fatal(err)
	}
	pk := memory.Packet{Proto: model.TCP, Client: netip.MustParseAddrPort("198.51.100.1:1"), Virtual: web.Addr, Bytes: 40}
	if _, ok := p.In(pk); ok {
		t.Error("a segment without SYN opened a connection")
	}
	if p.Out(pk) {
		t.Error("an answer without a connection was carried")
	}
}

func TestAConnectionGoesThroughItsStates(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	p := open(t, memory.Options{Now: func() time.Time { return now }})
	if err := p.Apply(t.Context(), []model.Change{addService(model.VirtualService{Key: web, Scheduler: "rr"}), addReal(web, alpha)}); err != nil {
		t.Fatal(err)
	}
	pk := memory.Packet{Proto: model.TCP, Client: netip.MustParseAddrPort("198.51.100.1:1"), Virtual: web.Addr}
	var got []string
	step := func(from string, f memory.Flags) {
		pk.Flags = f
		ok := false
		if from == "client" {
			_, ok = p.In(pk)
		} else {
			ok = p.Out(pk)
		}
		flows, err := p.Flows(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			got = append(got, fmt.Sprint(from, " ", ok, " ", f.State, " ", f.Expires))
		}
	}
	step("client", memory.SYN)
	step("server", memory.SYN)
	step("client", 0)
	step("client", memory.FIN)
	step("server", 0)
	step("server", memory.FIN)
	now = now.Add(2 * time.Minute)
	step("client", 0)
	want := []string{
		"client true SYN_RECV 1m0s", "server true SYN_RECV 1m0s", "client true ESTABLISHED 15m0s",
		"client true FIN_WAIT 2m0s", "server true FIN_WAIT 2m0s", "server true TIME_WAIT 2m0s",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
}
