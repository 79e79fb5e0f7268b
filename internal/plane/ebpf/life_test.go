package ebpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// When the table is full, new connections are refused and counted, and open
// ones go on; when there is room again, it is used.
func TestFullTable(t *testing.T) {
	requireRoot(t)
	o := testOptions()
	o.MaxFlows = 16
	var (
		mu     sync.Mutex
		events []string
	)
	o.Sink = func(e model.Event) { mu.Lock(); defer mu.Unlock(); events = append(events, e.Kind) }
	told := func() bool { mu.Lock(); defer mu.Unlock(); return slices.Contains(events, "table-full") }
	p := open(t, o)
	apply(t, p, addService(model.UDP, vip(0, 53), "rr"), addReal(model.UDP, vip(0, 53), udpReal, 1))
	send := func(port int) uint32 {
		return sendOne(t, p, "udp 10.1.0.50:%d > 10.1.0.100:53 len=5", port)
	}
	for i := range 16 {
		if v := send(40000 + i); v != 7 {
			t.Fatalf("flow %d: verdict %d, want redirect", i, v)
		}
	}
	for i := range 3 {
		if v := send(41000 + i); v != 2 {
			t.Fatalf("flow %d beyond: verdict %d, want drop", i, v)
		}
	}
	if v := send(40003); v != 7 {
		t.Fatalf("an open flow: verdict %d, want redirect", v)
	}
	r, _ := p.Reasons(t.Context())
	if r[ReasonTableFull] != 3 {
		t.Errorf("reasons %v, want %v 3 times", r, ReasonTableFull)
	}
	flows, _ := p.Flows(t.Context())
	if len(flows) != 16 {
		t.Errorf("%d flows, want 16", len(flows))
	}
	if n := entries(t, p); n != 32 {
		t.Errorf("%d entries in the index, want 32: no half connections", n)
	}
	eventually(t, func() string {
		if !told() {
			return "nobody was told"
		}
		return ""
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	events = nil
	p = open(t, o)
	swept := atomic.LoadUint32(&p.t.control.Swept)
	eventually(t, func() string {
		if atomic.LoadUint32(&p.t.control.Swept) < swept+2 {
			return "no sweep"
		}
		return ""
	})
	if told() {
		t.Error("what the one before has refused is told again")
	}
	p.o.Timeouts.UDP = time.Millisecond
	p.setTimeouts()
	eventually(t, func() string {
		if send(42000) != 7 {
			return "no room after the old flows have gone"
		}
		return ""
	})
}

// A flood of SYNs that nobody follows fills the table and goes on: it ends no open
// connection and no half-open one, and clients that answer are served all the same.
func TestFlood(t *testing.T) {
	requireRoot(t)
	o := testOptions()
	o.MaxFlows = 256
	o.Timeouts.Young = time.Nanosecond // the flood waits for the clients here
	told := make(chan string, 100)
	o.Sink = func(e model.Event) {
		if e.Kind == "table-full" {
			told <- e.Text
		}
	}
	p := open(t, o)
	to := vip(0, 80)
	apply(t, p, addService(model.TCP, to, "rr"), addReal(model.TCP, to, "10.240.0.20:8000", 1))
	echoServer(t, rack0, "10.240.0.20:8000")
	before := gather(t, 100, to)
	next := uint32(0)
	send := func(n uint32, flags string) uint32 {
		return sendOne(t, p, "tcp 10.%d.%d.%d:%d > 10.1.0.100:80 %s", 60+n>>16&63, n>>8&255, n&255, 1024+n%60000, flags)
	}
	flood := func(n int) (refused int) {
		for range n {
			next++
			if send(next, "S") != redirected {
				refused++
			}
		}
		return refused
	}
	reasons := func() map[Reason]uint64 {
		r, err := p.Reasons(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	// Places of the index are many, but not endless (bpf/table.h).
	refused, r := flood(4*o.MaxFlows), map[Reason]uint64(nil)
	if r = reasons(); r[ReasonWaits] < uint64(3*o.MaxFlows) || r[ReasonMadeRoom] != 0 || refused > int(next)/50 {
		t.Fatalf("%d of %d refused, reasons %v: want %v for what is more than %d", refused, next, r, ReasonWaits, o.MaxFlows)
	}
	for range 10 {
		flood(100)
		gather(t, 1, to).leave()
	}
	if r = reasons(); r[ReasonMadeRoom] == 0 {
		t.Errorf("reasons %v: clients that answer have got no record", r)
	}
	eventually(t, func() string {
		for len(told) > 0 {
			if strings.Contains(<-told, "without a record") {
				return ""
			}
		}
		return "nobody was told"
	})
	before.survived("flood")

	// Where none gives way who answers gets no record, and others' SYNs are refused
	// rather than carried for nothing.
	p.o.Timeouts.Young = time.Hour
	p.setTimeouts()
	flood(2 * o.MaxFlows)
	r = reasons()
	if v := send(next, "A"); v != dropped {
		t.Errorf("an answer that no record is free for: verdict %d, want drop", v)
	}
	if refused := flood(10); refused != 10 {
		t.Errorf("%d of 10 SYNs refused after it", refused)
	}
	now := reasons()
	if now[ReasonMadeRoom] != r[ReasonMadeRoom] || now[ReasonTableFull] != r[ReasonTableFull]+11 {
		t.Errorf("reasons %v, then %v: young connections gave way", r, now)
	}
	p.o.Timeouts.Young = time.Nanosecond
	p.setTimeouts()
	if refused := flood(10); refused != 0 {
		t.Errorf("%d of 10 SYNs refused when there is room again", refused)
	}
	if then := reasons(); then[ReasonMadeRoom] != now[ReasonMadeRoom]+1 || then[ReasonWaits] != now[ReasonWaits]+9 {
		t.Errorf("reasons %v, then %v: want that one made room and 9 waited", now, then)
	}
	before.survived("flood")
}

// One who goes on within the time-out of a half-open connection gets a record, how
// long it was ago that the table was full; later it is nobody's.
func TestWaitingEnds(t *testing.T) {
	requireRoot(t)
	o := testOptions()
	o.MaxFlows = 16
	p := open(t, o)
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1))
	send := func(port int, flags string) uint32 {
		return sendOne(t, p, "tcp 10.1.0.50:%d > 10.1.0.100:80 %s", port, flags)
	}
	for i := range 20 {
		send(40000+i, "S")
	}
	if v := send(40019, "R"); v != redirected {
		t.Errorf("a reset of one who waits: verdict %d, want redirect", v)
	}
	p.t.control.WaitsUntil -= 1 << 16 // a minute later
	if v := send(40019, "R"); v != pass {
		t.Errorf("a reset after that: verdict %d, want pass", v)
	}
}

func entries(t *testing.T, p *Plane) (n int) {
	t.Helper()
	var (
		k uint32
		b tcBucket
	)
	it := p.t.FlowIndex.Iterate()
	for it.Next(&k, &b) {
		for _, e := range b.Entry {
			if e != 0 {
				n++
			}
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// Both directions of a connection die together, and leave nothing behind.
func TestExpiry(t *testing.T) {
	requireRoot(t)
	o := testOptions()
	o.Timeouts = Timeouts{SynRecv: time.Millisecond, UDP: time.Hour}
	p := open(t, o)
	apply(t, p,
		addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:80", 1),
		addService(model.UDP, vip(0, 53), "rr"), addReal(model.UDP, vip(0, 53), udpReal, 1))
	for i := range 100 {
		for _, s := range []string{"tcp 10.1.0.50:%d > 10.1.0.100:80 S", "udp 10.1.0.50:%d > 10.1.0.100:53"} {
			sendOne(t, p, s, 40000+i)
		}
	}
	eventually(t, func() string {
		f, _ := p.Flows(t.Context())
		if n := entries(t, p); len(f) != 100 || n != 200 {
			return fmt.Sprintf("%d connections and %d entries, want 100 and 200: half-open ones end after a millisecond, UDP flows stay", len(f), n)
		}
		return ""
	})
	// The rest end early when the real server is deleted and there is a crowd;
	// otherwise they are kept as dead for a while.
	c := addReal(model.UDP, vip(0, 53), udpReal, 1)
	c.Op = model.RealDelete
	apply(t, p, c)
	if f, _ := p.Flows(t.Context()); len(f) != 0 {
		t.Errorf("%d connections of a deleted real server", len(f))
	}
}

// One client port towards two services with one real server: both cannot
// have the same reply, so the second gets another real server, or none.
func TestCollision(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	apply(t, p, addService(model.UDP, vip(0, 53), "rr"), addReal(model.UDP, vip(0, 53), udpReal, 1),
		addService(model.UDP, vip(1, 53), "rr"), addReal(model.UDP, vip(1, 53), udpReal, 1))
	send := func(to int) uint32 {
		return sendOne(t, p, "udp 10.1.0.50:40000 > 10.1.0.%d:53", to)
	}
	if v := send(100); v != 7 {
		t.Fatalf("first: verdict %d", v)
	}
	if v := send(101); v != 2 {
		t.Fatalf("second: verdict %d, want drop: its replies would be the first one's", v)
	}
	apply(t, p, addReal(model.UDP, vip(1, 53), "10.240.0.21:5300", 1))
	if v := send(101); v != 7 {
		t.Fatalf("second with another real server: verdict %d", v)
	}
	if n := entries(t, p); n != 4 {
		t.Errorf("%d entries, want 4", n)
	}
}

func TestAdoption(t *testing.T) {
	requireRoot(t)
	whole, o := t, testOptions()
	p := open(t, o)
	apply(t, p, addService(model.TCP, vip(0, 80), "wrr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 3))
	want, _ := p.Read(t.Context())

	t.Run("another namespace is refused", func(t *testing.T) {
		var err error
		client.do(func() { _, err = Open(o) })
		if !errors.Is(err, ErrOtherNamespace) {
			t.Errorf("open: %v", err)
		}
	})
	t.Run("packets flow while nobody is there, and counters go on", func(t *testing.T) {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		echoStream(t, rack0, "10.240.0.20:8000", vip(0, 80), 100000)
		o := o
		o.MaxFlows = 0 // sizes of an adopted table stay where none are asked for
		p = open(whole, o)
		got, err := p.Read(t.Context())
		if err != nil || got.String() != want.String() {
			t.Errorf("read: %v, %v; want %v", got, err, want)
		}
		c, err := p.Counters(t.Context())
		if err != nil || c[0].Connections != 1 || c[0].BytesIn < 100000 {
			t.Errorf("counters %+v, %v", c, err)
		}
		if i := p.Info(); i.Size != 4096 || !strings.Contains(i.Detail, "adopted") {
			t.Errorf("info %+v", i)
		}
	})
	t.Run("a start that was cut short is begun again", func(t *testing.T) {
		p.t.control.Abi = 0
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p = open(whole, o)
		if got, err := p.Read(t.Context()); err != nil || len(got.Services) != 0 {
			t.Errorf("read: %v, %v; want an empty table", got, err)
		}
	})
	t.Run("remove leaves nothing", func(t *testing.T) {
		if err := p.Remove(); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(o.Dir, &st); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s is still there: %v", o.Dir, err)
		}
	})
}

func TestNoBPFFileSystem(t *testing.T) {
	requireRoot(t)
	_, err := Open(Options{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("open: %v, want the way out", err)
	}
}

func TestSupported(t *testing.T) {
	requireRoot(t)
	if err := Supported(); err != nil {
		t.Errorf("this machine runs these tests, but: %v", err)
	}
}
