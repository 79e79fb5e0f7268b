package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/batuta-ha/batuta/internal/model"
)

// startOlder brings the programs and maps of an earlier version (an object of
// testdata, as it was released) into force in o.Dir, with the rows that changes
// make, as that version's daemon would have left them.
func startOlder(t *testing.T, o Options, object string, changes ...model.Change) {
	t.Helper()
	nowhere := testOptions()
	nowhere.Interfaces = func(string) bool { return false }
	nowhere.Timeouts = o.Timeouts
	now := open(t, nowhere)
	apply(t, now, changes...)
	own, err := loadTc()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		t.Fatal(err)
	}
	newMaps := now.t.replacements()
	for name, m := range spec.Maps {
		if pinned(name) {
			m.MaxEntries = newMaps[name].MaxEntries()
		}
	}
	spec.Maps[tcMapRings].MaxEntries *= 2 // an entry was one turn
	old, err := create(o.Dir, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(old)
	t.Cleanup(func() { _ = Remove(o.Dir) })
	l := func(name string) []column { // backwards
		var was, is *btf.Struct
		if err := errors.Join(own.Types.TypeByName(name, &was), spec.Types.TypeByName(name, &is)); err != nil {
			t.Fatal(err)
		}
		return columns(was, is)
	}
	older(t, l("control"), old[tcMapControls], []tcControl{*now.t.control})
	services := slices.Clone(now.t.services)
	for i := range services {
		first := services[i].Ring >> 32
		services[i].Ring += first << 32 // twice as far
	}
	older(t, l("service"), old[tcMapServices], services)
	older(t, l("real"), old[tcMapReals], now.t.reals)
	older(t, l("real_cpu"), old[tcMapRealCpus], now.t.realCPUs)
	for i, e := range now.t.rings {
		for half, slot := range e.Real {
			if err := old[tcMapRings].Put(uint32(2*i+half), uint64(slot)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var (
		key  tcServiceKey
		slot uint32
	)
	for it := newMaps[tcMapServiceSlots].Iterate(); it.Next(&key, &slot); {
		if err := old[tcMapServiceSlots].Put(key, slot); err != nil {
			t.Fatal(err)
		}
	}
	abi := make([]byte, old[tcMapControls].ValueSize())
	if err := old[tcMapControls].Lookup(uint32(0), &abi); err != nil {
		t.Fatal(err)
	}
	copy(abi, "another") // its own hash of the layouts
	if err := old[tcMapControls].Put(uint32(0), abi); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{tcVarCpus: uint32(now.t.cpus), tcVarMaxFlows: uint32(now.t.maxFlows),
		tcVarIndexMask: old[tcMapFlowIndex].MaxEntries() - 1, tcVarHopMask: old[tcMapHops].MaxEntries() - 1, tcVarSeed: uint64(7), tcVarTracing: uint32(0)} {
		if err := spec.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: old})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer c.Close()
	now.closeNow(t) // before, since it takes all filters away
	h, err := openHooks(o, c.Programs["ingress"], c.Programs["egress"], &quick{mode: XDPOff}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.close()
}

func older[T any](t *testing.T, columns []column, m *ebpf.Map, from []T) {
	t.Helper()
	for i := range from {
		to := make([]byte, m.ValueSize())
		for _, c := range columns {
			copy(to[c.to:c.to+c.n], bytesOf(&from[i])[c.from:])
		}
		if err := m.Put(uint32(i), to); err != nil {
			t.Fatal(err)
		}
	}
}

// A table with other layouts, left by an earlier version: its services go over
// to the new table, its connections go on in the old one, and when they have
// ended nothing of it is left.
func TestUpgradeFromAnEarlierVersion(t *testing.T) {
	requireRoot(t)
	echoServer(t, rack0, "10.240.0.20:8000")
	echoServer(t, rack1, "10.241.0.20:8000")
	echoServer(t, rack1, "10.241.0.21:8000")
	to := vip(0, 80)
	persistent := addService(model.TCP, vip(1, 80), "wrr")
	persistent.Service.Persistence = model.Persistence{Enabled: true, Timeout: 5 * time.Minute, Netmask: netip.MustParseAddr("255.255.255.0")}
	changes := []model.Change{addService(model.TCP, to, "wlc"), addReal(model.TCP, to, "10.240.0.20:8000", 3), addReal(model.TCP, to, "10.241.0.20:8000", 1),
		persistent, addReal(model.TCP, vip(1, 80), "10.241.0.21:8000", 7), addService(model.UDP, vip(2, 0), "mh"), addReal(model.UDP, vip(2, 0), "10.241.0.20:0", 2)}
	for _, object := range []string{"testdata/abi2/tc.o"} {
		for _, clsact := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, clsact %v", filepath.Base(filepath.Dir(object)), clsact), func(t *testing.T) {
				o := testOptions()
				o.NoTCX = clsact
				o.Timeouts = Timeouts{SynRecv: time.Second, CloseWait: time.Millisecond, FinWait: time.Millisecond, Closing: time.Millisecond, Closed: time.Millisecond}
				startOlder(t, o, object, changes...)
				before := gather(t, 100, to)
				var p *Plane
				before.survives("upgrade", func() { p = open(t, o) })

				var want model.Table
				for _, c := range changes {
					if err := want.Perform(c); err != nil {
						t.Fatal(err)
					}
				}
				want.Sort()
				if got, err := p.Read(t.Context()); err != nil || got.String() != want.String() {
					t.Errorf("read: %v\n%s\nwant\n%s", err, got, want)
				}
				if f, err := p.Flows(t.Context()); err != nil || len(f) != 0 {
					t.Errorf("%d connections in the new table, %v; want none yet", len(f), err)
				}
				after := gather(t, 100, to, vip(1, 80))
				if f, err := p.Flows(t.Context()); err != nil || len(f) != 100 {
					t.Errorf("%d connections in the new table, %v; want 100", len(f), err)
				}
				before.survives("restart while it ends", func() {
					if err := p.Close(); err != nil {
						t.Fatal(err)
					}
					p = open(t, o)
				})
				if i := p.Info(); !strings.Contains(i.Detail, "100 open connections of an earlier table") {
					t.Errorf("info %+v", i)
				}
				before.leave()
				eventually(t, func() string {
					if i := p.Info(); strings.Contains(i.Detail, "earlier") {
						return i.Detail
					}
					return ""
				})
				if left, _ := filepath.Glob(o.Dir + "/" + retiredPrefix + "*"); len(left) > 0 {
					t.Errorf("%v is still there", left)
				}
				after.survived("end of the table before")
			})
		}
	}
}

// Clients of persistent services keep their real servers when the table gets
// another layout.
func TestBindingsSurviveAnotherLayout(t *testing.T) {
	requireRoot(t)
	o := testOptions()
	service := addService(model.TCP, vip(0, 80), "rr")
	service.Service.Persistence = model.Persistence{Enabled: true, Timeout: 5 * time.Minute}
	answering(t, rack0, netip.MustParseAddrPort("10.240.0.20:8000"))
	answering(t, rack1, netip.MustParseAddrPort("10.241.0.20:8000"))
	startOlder(t, o, "testdata/abi2/tc.o", service, addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1), addReal(model.TCP, vip(0, 80), "10.241.0.20:8000", 1))
	ask := func() (said string) {
		client.do(func() { said, _ = askOnce(t, "tcp", vip(0, 80)) })
		return said
	}
	before := ask()
	p := open(t, o)
	for range 4 { // in turn it would be the other's, at the latest with the second
		if said := ask(); said != before {
			t.Errorf("after the update %q, before it %q", said, before)
		}
	}
	if n := len(p.retired); n != 1 {
		t.Errorf("%d tables were set aside, want 1", n)
	}
}

// Another plane takes over: what is open goes on, what is new passes by to the
// director's own stack.
func TestRetire(t *testing.T) {
	requireRoot(t)
	echoServer(t, rack0, "10.240.0.20:8000")
	to := vip(0, 80)
	for _, clsact := range []bool{false, true} {
		t.Run(fmt.Sprintf("clsact %v", clsact), func(t *testing.T) {
			o := testOptions()
			o.NoTCX = clsact
			o.Timeouts = Timeouts{SynRecv: time.Second, CloseWait: time.Millisecond, FinWait: time.Millisecond, Closing: time.Millisecond, Closed: time.Millisecond}
			if r, err := Retire(o.Dir); r != nil || err != nil {
				t.Fatalf("retire nothing: %v, %v", r, err)
			}
			p := open(t, o)
			apply(t, p, addService(model.TCP, to, "rr"), addReal(model.TCP, to, "10.240.0.20:8000", 1))
			c := gather(t, 50, to)
			var r *Retired
			c.survives("retirement", func() {
				err := p.Close()
				if err == nil {
					r, err = Retire(o.Dir)
				}
				if err == nil && len(r.Table().Services) != 1 {
					err = errors.New("its table: " + r.Table().String())
				}
				if err == nil {
					_, err = r.Release(nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			})
			if n := r.Connections(); n != 50 {
				t.Errorf("%d connections, want 50", n)
			}
			echoStream(t, director, to.String(), to, 100000) // by a server on the director
			c.survived("another plane's work")
			c.leave()
			eventually(t, func() string {
				if n := r.Connections(); n > 0 {
					return fmt.Sprint(n, " connections")
				}
				return ""
			})
			if err := r.Remove(); err != nil {
				t.Error(err)
			}
			if all, errs := AllRetired(o.Dir); len(all) > 0 || len(errs) > 0 {
				t.Errorf("left: %v, %v", all, errs)
			}
		})
	}
}

// Of a table that is set aside services go one by one, and only the network
// namespace that it is for may open it again.
func TestRetireServiceByService(t *testing.T) {
	requireRoot(t)
	answering(t, rack0, netip.MustParseAddrPort("10.240.0.20:8000"))
	o := testOptions()
	p := open(t, o)
	for i := range 2 {
		v := addService(model.TCP, vip(i, 80), "rr")
		v.Service.Persistence = model.Persistence{Enabled: true, Timeout: 5 * time.Minute, Netmask: netip.MustParseAddr("255.255.255.0")}
		apply(t, p, v, addReal(model.TCP, vip(i, 80), "10.240.0.20:8000", 1))
	}
	bound := model.Binding{Service: model.ServiceKey{Proto: model.TCP, Addr: vip(0, 80)}, Client: netip.MustParseAddr("192.0.2.7"), Real: netip.MustParseAddrPort("10.240.0.20:8000"), Expires: time.Hour}
	if n, err := p.Bind(t.Context(), []model.Binding{bound}); n != 1 || err != nil {
		t.Fatalf("bound %d, %v; want 1", n, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Retire(o.Dir)
	if err != nil || r == nil {
		t.Fatalf("%v, %v; want the table", r, err)
	}
	defer r.Close()
	all, err := r.Bindings()
	if err != nil || len(all) != 1 || all[0].Expires <= 4*time.Minute || all[0].Expires > 5*time.Minute {
		t.Fatalf("bindings %v, %v; want one, for no longer than the service keeps clients", all, err)
	}
	bound.Client, bound.Expires = netip.MustParseAddr("192.0.2.0"), all[0].Expires
	if all[0] != bound {
		t.Errorf("binding %+v, want %+v", all[0], bound)
	}
	first := func(k model.ServiceKey) bool { return k.Addr == vip(0, 80) }
	for range 2 { // it is repeated while the table drains
		if left, err := r.Release(first); left != 1 || err != nil {
			t.Fatalf("%d services left, %v; want 1", left, err)
		}
	}
	client.do(func() {
		if said, _ := askOnce(t, "tcp", vip(1, 80)); said != "who at 10.240.0.20:8000" {
			t.Errorf("the service that nobody has taken: %q", said)
		}
		all, errs := AllRetired(o.Dir)
		if len(all) != 0 || len(errs) != 1 || !errors.Is(errs[0], ErrOtherNamespace) || !strings.Contains(errs[0].Error(), "rm -r "+r.dir) {
			t.Errorf("in another namespace: %v, %v", all, errs)
		}
	})
	var told []string
	o.Sink = func(e model.Event) {
		if e.Kind == "retired-table" {
			told = append(told, e.Level.String()+" "+e.Text)
		}
	}
	client.do(func() { p = open(t, o) })
	p.closeNow(t)
	if len(told) != 1 || !strings.Contains(told[0], "another network namespace") {
		t.Errorf("told when the plane was opened in another namespace: %q", told)
	}
	if left, err := r.Release(nil); left != 0 || err != nil {
		t.Errorf("%d services left, %v; want none", left, err)
	}
}

// A table of other sizes than it is asked to have goes on with its connections
// beside a new one, which has its services; who asks for nothing takes what there is.
func TestOtherSizes(t *testing.T) {
	requireRoot(t)
	o := testOptions()
	o.MaxFlows, o.MaxTurns = 1024, 1<<16
	s := &story{t: t, plane: open(t, o), before: map[Reason]uint64{}}
	for _, row := range []string{"service udp 10.1.0.100:53 rr", "real 10.240.0.20:5353 masq 1"} {
		if out := s.run(row); out != "" {
			t.Fatal(out)
		}
	}
	s.send("ingress", "outside", "udp 10.1.0.50:40000 > 10.1.0.100:53 len=4")
	closed := func(p *Plane) {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	closed(s.plane)
	for _, c := range []struct {
		name         string
		flows, turns int
		want         int // flows
		aside        int // connections in tables set aside
	}{
		{"none", 0, 0, 1024, 0},
		{"as they are", 1024, 1<<16 - 1, 1024, 0}, // two turns to an entry
		{"more flows", 2048, 0, 2048, 1},
		{"none again", 0, 0, 2048, 1},
	} {
		o.MaxFlows, o.MaxTurns = c.flows, c.turns
		p := open(t, o)
		if p.t.maxFlows != c.want {
			t.Errorf("%s: room for %d flows, want %d", c.name, p.t.maxFlows, c.want)
		}
		aside := 0
		for _, r := range p.retired {
			aside += r.Connections()
		}
		if aside != c.aside {
			t.Errorf("%s: %d connections go on beside, want %d", c.name, aside, c.aside)
		}
		table, err := p.Read(t.Context())
		if err != nil || len(table.Services) != 1 || len(table.Services[0].Reals) != 1 {
			t.Errorf("%s: table %+v, %v; want one service with its real server", c.name, table, err)
		}
		closed(p)
	}
}

// A table that is released takes no new connection any more, not even of a service
// that its programs have found a moment ago.
func TestReleaseForgetsWhatWasFound(t *testing.T) {
	requireRoot(t)
	neighbors(t)
	p := open(t, testOptions())
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1))
	send := func(port int) uint32 {
		return sendOne(t, p, "tcp 10.1.0.50:%d > 10.1.0.100:80 S", port)
	}
	eventually(t, func() string {
		if atomic.LoadUint32(&p.t.control.PlainRoutes) == 0 {
			return "the plane has not listened yet"
		}
		return ""
	})
	for i := range 3 { // by the lane, from the second on
		if v := send(40000 + i); v != redirected {
			t.Fatalf("SYN %d: verdict %d, want redirect", i, v)
		}
	}
	r, err := openRows(filepath.Join(p.o.Dir, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if left, err := r.Release(nil); left != 0 || err != nil {
		t.Fatalf("%d services left, %v", left, err)
	}
	if v := send(41000); v != pass {
		t.Errorf("a SYN after it: verdict %d, want pass", int32(v))
	}
}
