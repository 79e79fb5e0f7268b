package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/announce"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/memory"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
	"github.com/batuta-ha/batuta/internal/rig"
)

// listPlane is a table with connections that the test says.
type listPlane struct {
	plane.Plane
	flows  []model.Flow
	passed []model.Flow
	active map[model.ServiceKey]uint64
	broken error                      // of Counters
	listed int                        // how often Flows was asked
	refuse func([]model.Change) error // Apply; nil: nothing
}

func (p *listPlane) Flows(context.Context) ([]model.Flow, error) {
	p.listed++
	return slices.Clone(p.flows), nil
}

func (p *listPlane) Apply(ctx context.Context, changes []model.Change) error {
	if p.refuse != nil {
		if err := p.refuse(changes); err != nil {
			return err
		}
	}
	return p.Plane.Apply(ctx, changes)
}

func (p *listPlane) Unwrap() plane.Plane { return p.Plane }

func (p *listPlane) PassBy(_ context.Context, flows []model.Flow) error {
	p.passed = flows
	return nil
}

func (p *listPlane) Counters(context.Context) (out []model.ServiceCounters, err error) {
	for k, n := range p.active {
		out = append(out, model.ServiceCounters{Key: k, Reals: []model.RealCounters{{Active: n}}})
	}
	return out, p.broken
}

func tableOfText(t *testing.T, p plane.Plane) string {
	t.Helper()
	table, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return table.String()
}

// stubborn is a predecessor that cannot be removed at first.
type stubborn struct {
	log   []string
	fails int
}

func (s *stubborn) rows() model.Table                                 { return model.Table{} }
func (s *stubborn) bindings(context.Context) ([]model.Binding, error) { return nil, nil }
func (s *stubborn) release(context.Context) (left, error) {
	s.log = append(s.log, "release")
	return left{}, nil
}

func (s *stubborn) remove(context.Context) error {
	s.log = append(s.log, "remove")
	if s.fails--; s.fails >= 0 {
		return errors.New("device or resource busy")
	}
	return nil
}
func (s *stubborn) close()         { s.log = append(s.log, "close") }
func (s *stubborn) String() string { return "the old plane" }

// What cannot be taken away is tried again, and told once; what has gone is
// left in peace, and the task goes on, as its end would be the daemon's.
func TestOldPlaneIsRemovedInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := &stubborn{fails: 2}
		var told []string
		task := &swap{from: old, sink: func(e model.Event) { told = append(told, e.Text) }}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- task.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"release", "remove", "release", "remove", "release", "remove", "close"}, old.log); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if d := cmp.Diff([]string{"end the old plane: device or resource busy; it is tried again and again", "the last connection of the old plane has ended; it is gone"}, told); d != "" {
			t.Errorf("told (-want +got):\n%s", d)
		}
	})
}

// house is an old plane with a service for the web, one for names, and one that
// the configuration does not know, and a new plane without any.
type house struct {
	old, next       *listPlane
	web, dns, other model.ServiceKey
	directors       []model.Director
	told            []string
}

func newHouse(t *testing.T) *house {
	h := &house{old: newListPlane(t), next: newListPlane(t), web: serviceKey(t, "tcp 10.1.0.100:80"), dns: serviceKey(t, "udp 10.1.0.100:53"), other: serviceKey(t, "tcp 10.9.9.9:443")}
	fill(t, h.old, 3, h.web, h.dns, h.other)
	flow := func(p model.Protocol, port uint16, state string) model.Flow {
		return model.Flow{Proto: p, Client: netip.AddrPortFrom(netip.MustParseAddr("10.1.0.50"), port), State: state}
	}
	h.old.flows = []model.Flow{flow(model.TCP, 1, "ESTABLISHED"), flow(model.TCP, 2, "SYN_RECV"), flow(model.UDP, 3, "UDP"), flow(model.TCP, 0, "NONE")}
	h.old.active = map[model.ServiceKey]uint64{h.web: 1, h.dns: 1, h.other: 5}
	h.directors = []model.Director{{Services: []model.Service{{Virtual: model.VirtualService{Key: h.web}}, {Virtual: model.VirtualService{Key: h.dns}}}}}
	return h
}

func newListPlane(t *testing.T) *listPlane {
	t.Helper()
	p, err := memory.New(memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &listPlane{Plane: p}
}

func serviceKey(t *testing.T, text string) model.ServiceKey {
	t.Helper()
	k, err := model.ParseServiceKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// fill gives a plane persistent services with two real servers each.
func fill(t *testing.T, p plane.Plane, weight int, keys ...model.ServiceKey) {
	t.Helper()
	for _, k := range keys {
		v := model.VirtualService{Key: k, Scheduler: "rr", Persistence: model.Persistence{Enabled: true, Timeout: 5 * time.Minute}}
		changes := []model.Change{{Op: model.ServiceAdd, Service: v}}
		for _, a := range []string{"10.240.0.20", "10.240.0.21"} {
			changes = append(changes, model.Change{Op: model.RealAdd, Service: v,
				Real: model.RealServer{Addr: netip.AddrPortFrom(netip.MustParseAddr(a), k.Addr.Port()), Forward: model.Masq, Weight: weight}})
		}
		if err := p.Apply(t.Context(), changes); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *house) quiet(t *testing.T) *quietIPVS {
	t.Helper()
	l, err := whatIsLeft(t.Context(), h.old, h.next, h.directors)
	if err != nil || l == nil {
		t.Fatalf("%v, %v; want the old plane", l, err)
	}
	q := &quietIPVS{leftIPVS: *l, new: h.next, sink: func(e model.Event) { h.told = append(h.told, e.Text) }}
	if err := q.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	return q
}

func (h *house) release(t *testing.T, q *quietIPVS, want left) {
	t.Helper()
	if got, err := q.release(t.Context()); err != nil || got != want {
		t.Errorf("left %+v, %v; want %+v", got, err, want)
	}
}

// wantTable compares the table of p with services of these weights.
func wantTable(t *testing.T, what string, p plane.Plane, weights map[model.ServiceKey]int) {
	t.Helper()
	want := newListPlane(t)
	for k, w := range weights {
		fill(t, want, w, k)
	}
	if diff := cmp.Diff(tableOfText(t, want), tableOfText(t, p)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// What the configuration names goes over, weights of the old plane become 0, a
// service leaves it with its last connection, and what is others' stays.
func TestSwapFromIPVSStepByStep(t *testing.T) {
	h := newHouse(t)
	q := h.quiet(t)
	if text, err := takeOver(t.Context(), h.next, q); err != nil || !strings.Contains(text, "its 2 open connections") {
		t.Errorf("%q, %v", text, err)
	}
	wantTable(t, "the new plane", h.next, map[model.ServiceKey]int{h.web: 3, h.dns: 3})
	wantTable(t, "the old plane", h.old, map[model.ServiceKey]int{h.web: 0, h.dns: 0, h.other: 3})
	if p := h.next.passed; len(p) != 2 || p[0].State != "SYN_RECV" || p[1].Proto != model.UDP {
		t.Errorf("passes by: %+v; want the half-open and the UDP one", p)
	}

	h.old.flows, h.old.active = nil, map[model.ServiceKey]uint64{h.other: 5}
	h.release(t, q, left{})
	wantTable(t, "the old plane at the end", h.old, map[model.ServiceKey]int{h.other: 3})

	// There, it is nobody's any more.
	if q, err := whatIsLeft(t.Context(), h.old, h.next, nil); q != nil || err != nil {
		t.Errorf("%v, %v; want nothing to end", q, err)
	}
}

// Nothing goes over: the old plane carries everything as before, until the new
// one has the services by another way.
func TestOldPlaneGoesOnWhenTheNewTakesNothing(t *testing.T) {
	h := newHouse(t)
	h.next.refuse = func([]model.Change) error { return errors.New("cannot allocate memory") }
	q := h.quiet(t)
	if text, err := takeOver(t.Context(), h.next, q); text != "" || err == nil || !strings.Contains(err.Error(), "cannot allocate memory; the kernel's IPVS carries all as before") {
		t.Errorf("%q, %v", text, err)
	}
	before := map[model.ServiceKey]int{h.web: 3, h.dns: 3, h.other: 3}
	wantTable(t, "the old plane", h.old, before)
	h.release(t, q, left{kept: 2})
	wantTable(t, "the old plane a second later", h.old, before)

	h.next.refuse = nil
	fill(t, h.next, 3, h.web)
	h.release(t, q, left{open: 1, kept: 1})
	wantTable(t, "the old plane when the new one has a service", h.old, map[model.ServiceKey]int{h.web: 0, h.dns: 3, h.other: 3})
}

// IPVS would come before the proxy: its services go as soon as the proxy has
// them, and so do its connections, but not its clients' real servers.
func TestIPVSMakesWayForTheProxy(t *testing.T) {
	h := newHouse(t)
	binding := model.Binding{Service: h.web, Client: netip.MustParseAddr("10.1.0.50"), Real: netip.MustParseAddrPort("10.240.0.21:80"), Expires: time.Minute}
	if _, err := h.old.Plane.(*memory.Plane).Bind(t.Context(), []model.Binding{binding}); err != nil {
		t.Fatal(err)
	}
	l, err := whatIsLeft(t.Context(), h.old, h.next, h.directors)
	if err != nil || l == nil {
		t.Fatalf("%v, %v; want the old plane", l, err)
	}
	e := &endedIPVS{leftIPVS: *l, new: h.next}
	text, err := takeOver(t.Context(), h.next, e)
	if want := "plane memory takes the place of the kernel's IPVS; its 2 open connections end: it would come before the new plane and take all others, too; " +
		"1 of 1 clients of persistent services keep their real servers"; text != want || err != nil {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
	wantTable(t, "the new plane", h.next, map[model.ServiceKey]int{h.web: 3, h.dns: 3})
	wantTable(t, "the old plane", h.old, map[model.ServiceKey]int{h.other: 3})
	if again, err := e.release(t.Context()); again != (left{}) || err != nil {
		t.Errorf("left %+v, %v; want nothing", again, err)
	}
}

// One row is refused: its service stays where it was, and is told.
func TestRefusedServiceStaysWithTheOldPlane(t *testing.T) {
	h := newHouse(t)
	h.next.refuse = func(changes []model.Change) error {
		var rows []error
		for _, c := range changes {
			if c.Service.Key == h.dns {
				rows = append(rows, &plane.RowError{Change: c, Err: plane.ErrNotSupported})
				continue
			}
			if err := h.next.Plane.Apply(t.Context(), []model.Change{c}); err != nil {
				t.Error(err)
			}
		}
		return errors.Join(rows...)
	}
	q := h.quiet(t)
	if text, err := takeOver(t.Context(), h.next, q); !errors.Is(err, plane.ErrNotSupported) || !strings.Contains(fmt.Sprint(err), "1 services that plane memory has refused stay with the kernel's IPVS") {
		t.Errorf("%q, %v", text, err)
	}
	wantTable(t, "the old plane", h.old, map[model.ServiceKey]int{h.web: 0, h.dns: 3, h.other: 3})
}

// The list of connections is long: it is asked for only while there are some
// that the new plane has to let by, or when a service has come.
func TestConnectionsAreListedWhileItMatters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // by the clock of the test, no list takes long
		h := newHouse(t)
		q := h.quiet(t)
		if _, err := takeOver(t.Context(), h.next, q); err != nil {
			t.Fatal(err)
		}
		again := func() { h.release(t, q, left{open: 2}) }
		h.asked(t, "a half-open and a UDP connection", 1, again)
		h.old.flows = h.old.flows[:1]
		h.asked(t, "they have gone", 1, again)
		h.asked(t, "an established one is left", 0, again)
		fill(t, h.next, 3, h.other)
		h.asked(t, "a service has come", 1, func() { h.release(t, q, left{open: 7}) })
	})
}

// asked checks how often connections are listed.
func (h *house) asked(t *testing.T, during string, want int, do func()) {
	t.Helper()
	before := h.old.listed
	do()
	if n := h.old.listed - before; n != want {
		t.Errorf("%s: listed %d times, want %d", during, n, want)
	}
}

// Tens of thousands of connections are listed when the new plane has begun, so
// that nothing waits for it; hundreds of thousands are not.
func TestManyConnectionsAreListedLater(t *testing.T) {
	for _, c := range []struct {
		open  uint64
		early string // what takeOver says of the clients
		later int    // lists
		told  []string
	}{
		{open: listedAtOnce, later: 1},
		{open: listedAtOnce + 1, later: 1, told: []string{"1 of 1 clients of persistent services keep their real servers"}},
		{open: listedAtAll + 1, early: "its 200001 connections are more than the kernel can list in a minute: " +
			"the next datagrams of UDP clients, and the next connections of persistent ones, may come to another real server"},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHouse(t)
			h.old.active = map[model.ServiceKey]uint64{h.web: c.open}
			if _, err := h.old.Plane.(*memory.Plane).Bind(t.Context(), []model.Binding{{Service: h.web, Client: netip.MustParseAddr("10.1.0.50"),
				Real: netip.MustParseAddrPort("10.240.0.21:80"), Expires: 5 * time.Minute}}); err != nil {
				t.Fatal(err)
			}
			var q *quietIPVS
			early := 0
			if c.open <= listedAtOnce {
				early = 2
			}
			h.asked(t, "while nobody balances", early, func() {
				q = h.quiet(t)
				if _, err := takeOver(t.Context(), h.next, q); err != nil && err.Error() != c.early {
					t.Error(err)
				}
			})
			time.Sleep(plane.Pace(0))
			h.asked(t, "when the new plane balances", c.later, func() { h.release(t, q, left{open: int(c.open)}) })
			if diff := cmp.Diff(c.told, h.told); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

// What cannot be counted may be hundreds of thousands: nothing is listed before
// it was counted.
func TestUncountedConnectionsAreNotListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.old.broken = errors.New("interrupted system call")
		l, err := whatIsLeft(t.Context(), h.old, h.next, h.directors)
		if l == nil || !errors.Is(err, h.old.broken) {
			t.Fatalf("%v, %v; want the old plane, and why its connections are not counted", l, err)
		}
		q := &quietIPVS{leftIPVS: *l, new: h.next, sink: func(model.Event) {}}
		h.asked(t, "not counted", 0, func() {
			if err := q.begin(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := takeOver(t.Context(), h.next, q); !errors.Is(err, h.old.broken) {
				t.Errorf("%v, want %v", err, h.old.broken)
			}
		})
		h.old.broken = nil
		time.Sleep(plane.Pace(0))
		h.asked(t, "counted", 1, func() { h.release(t, q, left{open: 2}) })
	})
}

// A client of a persistent service keeps its real server when planes change.
func TestBindingsGoOverToTheNewPlane(t *testing.T) {
	h := newHouse(t)
	client := netip.MustParseAddr("10.1.0.50")
	open := func(p *listPlane, port uint16) netip.AddrPort {
		to, ok := p.Plane.(*memory.Plane).In(memory.Packet{Proto: model.TCP, Client: netip.AddrPortFrom(client, port), Virtual: h.web.Addr, Flags: memory.SYN})
		if !ok {
			t.Fatal("no real server")
		}
		return to
	}
	// The next in turn would be the first again; the client is the second's.
	home := netip.MustParseAddrPort("10.240.0.21:80")
	if n, err := h.old.Plane.(*memory.Plane).Bind(t.Context(), []model.Binding{{Service: h.web, Client: client, Real: home, Expires: time.Minute}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if to := open(h.old, 1); to != home {
		t.Fatalf("by %s before", to)
	}
	text, err := takeOver(t.Context(), h.next, h.quiet(t))
	if err != nil || !strings.HasSuffix(text, "; 1 of 1 clients of persistent services keep their real servers") {
		t.Errorf("%q, %v", text, err)
	}
	for port := range uint16(4) {
		if to := open(h.next, 2+port); to != home {
			t.Errorf("by %s, want %s", to, home)
		}
	}

	// A plane that takes none says so.
	text, err = bind(t.Context(), struct{ plane.Plane }{h.next}, []model.Binding{{}})
	if want := "1 clients of persistent services may get another real server: plane memory takes no bindings over"; text != want || err != nil {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
}

// asking is an old plane that, when it lets go of new connections, asks who
// would take them.
type asking struct {
	stubborn
	table model.Table
	ask   func()
}

func (a *asking) rows() model.Table { return a.table }
func (a *asking) release(context.Context) (left, error) {
	a.ask()
	return left{}, nil
}

// The address of a service is here already, from an earlier life, and its
// resource will be started later. The proxy serves it before the old plane lets
// go: nobody is refused in between.
func TestProxyServesWhatWasFoundBeforeTheOldPlaneLetsGo(t *testing.T) {
	rig.RequireRoot(t, "an address on an interface, in a namespace")
	director, client := planetest.NewHost(t, "director"), planetest.NewHost(t, "client")
	director.Connect(t, "outside", "10.1.0.1/24", client, "eth0", "10.1.0.50/24")
	director.Address(t, "outside", "10.1.0.100/24")
	k := serviceKey(t, "tcp 10.1.0.100:80")
	v := model.VirtualService{Key: k, Scheduler: "rr"}
	n := &clusterNode{Options: Options{Plane: "proxy"}, sink: func(e model.Event) { t.Logf("%s", e) }, cluster: &model.Cluster{
		Groups: []model.ResourceGroup{{Owner: "a", Resources: []model.Resource{
			{Agent: "IPaddr", Args: []string{"10.1.0.100"}, Text: "IPaddr::10.1.0.100"},
		}}},
		Directors: []model.Director{{Services: []model.Service{{Virtual: v}}}},
	}}
	defer n.closeAll()
	director.Do(t, func() {
		n.network = announce.New(announce.Options{Sink: n.sink})
		n.closers = append(n.closers, n.network)
		if err := n.buildDirectors(n.sink); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	v.Reals = []model.RealServer{{Addr: planetest.StartServer(t, model.TCP, netip.MustParseAddrPort("127.0.0.1:0")), Forward: model.Masq, Weight: 1}}
	old := &asking{table: model.Table{Services: []model.VirtualService{v}}, ask: func() {
		client.Do(t, func() {
			c, err := net.DialTimeout("tcp4", k.Addr.String(), 5*time.Second)
			if err != nil {
				t.Errorf("a client, when the old plane lets go: %v", err)
				return
			}
			_ = c.Close()
		})
	}}
	director.Do(t, func() {
		if _, err := takeOver(t.Context(), n.plane, old); err != nil {
			t.Error(err)
		}
	})
}
