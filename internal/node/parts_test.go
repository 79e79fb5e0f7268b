package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/proxy"
)

func TestOneDaemonForEachRunDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	first, err := openRunDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openRunDir(path); !errors.Is(err, ErrSecondInstance) || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("a second daemon got %v", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	again, err := openRunDir(path)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	again.close()
	if _, err := openRunDir("/dev/null/run"); err == nil {
		t.Error("a run directory below a file was opened")
	}
}

// step is a task that notes when it ends, and can end by itself.
type step struct {
	name string
	log  *[]string
	err  chan error
}

func (s step) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		*s.log = append(*s.log, s.name)
		return nil
	case err := <-s.err:
		return err
	}
}
func (s step) Ready() <-chan struct{} { return nil }
func (s step) String() string         { return s.name }

func TestTasksEndInReverseOrderWhateverFails(t *testing.T) {
	for _, c := range []struct {
		story string
		fails error
		self  bool
		want  string
	}{
		{"all is well", nil, false, ""},
		{"the second fails", errors.New("no more sockets"), true, "second: no more sockets"},
		{"the second just returns", nil, true, "second: ended by itself"},
	} {
		t.Run(c.story, func(t *testing.T) {
			var log []string
			ctx, cancel := context.WithCancel(t.Context())
			crew := newCrew(ctx)
			second := step{"second", &log, make(chan error, 1)}
			crew.start(step{"first", &log, nil})
			crew.start(second)
			crew.start(step{"third", &log, nil})
			cancel() // the daemon was told to end: tasks go on until it is their turn
			want := []string{"third", "second", "first"}
			if c.self {
				second.err <- c.fails
				<-crew.failed
				want = []string{"third", "first"}
			}
			err := crew.stop()
			if diff := cmp.Diff(want, log); diff != "" {
				t.Errorf("order of ends (-want +got):\n%s", diff)
			}
			if text := errors.Join(err); (text == nil) != (c.want == "") || text != nil && text.Error() != c.want {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// holderPlane records what an address-holding plane is told.
type holderPlane struct{ told []string }

func (h *holderPlane) SetAddresses(_ context.Context, held []netip.Addr) error {
	var s []string
	for _, a := range held {
		s = append(s, a.String())
	}
	h.told = append(h.told, strings.Join(s, " "))
	return nil
}

func TestAddressBookTellsTheWholeSet(t *testing.T) {
	h := &holderPlane{}
	b := newAddressBook(nil)
	b.holder = h
	for _, c := range []struct {
		addr string
		hold bool
	}{{"10.1.0.100", true}, {"10.0.0.1", true}, {"10.1.0.100", true}, {"10.1.0.100", false}, {"10.9.9.9", false}} {
		if err := b.set(t.Context(), netip.MustParseAddr(c.addr), c.hold); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"10.1.0.100", "10.0.0.1 10.1.0.100", "10.0.0.1 10.1.0.100", "10.0.0.1", "10.0.0.1"}
	if diff := cmp.Diff(want, h.told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A service that cannot be served on one address keeps no other from being
// started or stopped.
func TestAddressBookTellsWhatConcernsTheAddress(t *testing.T) {
	p := proxy.New(proxy.Options{})
	defer func() { _ = p.Close() }()
	one, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	busy, err := net.Listen("tcp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	at := netip.MustParseAddrPort(busy.Addr().String())
	v := model.VirtualService{Key: model.ServiceKey{Proto: model.TCP, Addr: at}, Scheduler: "rr"}
	if err := p.Apply(t.Context(), []model.Change{{Op: model.ServiceAdd, Service: v}}); err != nil {
		t.Fatal(err)
	}
	b := newAddressBook(p)
	inTheWay := fmt.Sprintf("%s cannot be served: another program on this host listens on port %d", v.Key, at.Port())
	for _, c := range []struct {
		addr netip.Addr
		hold bool
		want string // the beginning of the error
	}{{other, true, inTheWay}, {one, true, ""}, {one, false, ""}, {other, false, ""}} {
		if err := b.set(t.Context(), c.addr, c.hold); (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s, held %v: %v; want %q", c.addr, c.hold, err, c.want)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.set(t.Context(), one, false); !errors.Is(err, plane.ErrClosed) {
		t.Errorf("%v, want %v", err, plane.ErrClosed)
	}
}

// What an earlier life left is served as soon as it is found, once, and until
// its own turn comes.
func TestAddressBookKnowsWhatWasFound(t *testing.T) {
	h := &holderPlane{}
	b := newAddressBook(nil)
	b.holder = h
	vip, gateway := netip.MustParseAddr("10.1.0.100"), netip.MustParseAddr("10.240.0.1")
	find := func(a netip.Addr) {
		if err := b.found(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	find(vip)
	find(gateway)
	find(vip)
	for _, hold := range []bool{true, false} {
		if err := b.set(t.Context(), gateway, hold); err != nil {
			t.Fatal(err)
		}
		find(gateway) // on its way out: it was decided that it goes
	}
	if err := b.set(t.Context(), vip, true); err != nil {
		t.Fatal(err)
	}
	want := []string{"10.1.0.100", "10.1.0.100 10.240.0.1", "10.1.0.100 10.240.0.1", "10.1.0.100", "10.1.0.100"}
	if diff := cmp.Diff(want, h.told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBroadcastAddress(t *testing.T) {
	for network, want := range map[string]string{
		"10.1.0.1/24": "10.1.0.255", "10.1.2.3/8": "10.255.255.255", "192.168.7.9/30": "192.168.7.11", "172.16.5.4/20": "172.16.15.255",
	} {
		if got := lastAddr(netip.MustParsePrefix(network)).String(); got != want {
			t.Errorf("%s: %s, want %s", network, got, want)
		}
	}
}

func TestRatesAreDifferencesPerSecond(t *testing.T) {
	key := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	reading := func(n uint64) []model.ServiceCounters {
		c := model.Counters{Connections: n, PacketsIn: 2 * n, PacketsOut: 3 * n, BytesIn: 100 * n, BytesOut: 200 * n}
		return []model.ServiceCounters{{Key: key, Counters: c, Reals: []model.RealCounters{
			{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Counters: c}}}}
	}
	want := model.Counters{Connections: 10, PacketsIn: 20, PacketsOut: 30, BytesIn: 1000, BytesOut: 2000}
	got := perSecond(reading(100), reading(120), 2*time.Second)
	if got[0].Counters != want || got[0].Reals[0].Counters != want {
		t.Errorf("rates %+v, want %+v", got, want)
	}
	t.Log("a plane that counts anew after a restart has no negative rate")
	if got := perSecond(reading(1000), reading(20), 2*time.Second); got[0].Counters != want {
		t.Errorf("rates after a restart %+v, want %+v", got[0].Counters, want)
	}
}

func TestSentencesTellTheUrgentFirst(t *testing.T) {
	key := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	st := api.Status{State: "active", BadPackets: 7,
		Peers: []api.Peer{{Name: "lvs01", Self: true, State: "active"}, {Name: "lvs02", State: "dead"},
			{Name: "lvs03", State: "active", Suspect: true, LastBeat: time.Date(2026, 11, 22, 12, 0, 0, 5e6, time.Local), Links: []model.LinkView{{Name: "eth1"}}},
			{Name: "lvs04", State: "active", Quarantine: time.Date(2026, 11, 22, 12, 5, 0, 0, time.Local), Links: []model.LinkView{{Name: "eth2"}}},
			{Name: "10.1.0.254", State: "dead", Ping: true, Links: []model.LinkView{{Name: "10.1.0.254"}}}, {Name: "router", State: "ping", Ping: true}},
		Resources: []model.ResourceView{{Name: "10.1.0.100", State: model.ResourceRunning, Node: "lvs01"},
			{Name: "apache2", State: model.ResourceFailed, Here: model.ResourceFailed, Node: "lvs01", Error: "no such script"}},
		Services: []model.ServiceView{
			{Key: key, Reals: []model.RealView{{Status: model.Up, InTable: true}, {Status: model.Down}}},
			{Key: key, Reals: []model.RealView{{Status: model.Up}}},
			{Key: key, Fallback: true, Reals: []model.RealView{{Status: model.Down}}}},
	}
	want := []string{
		"resource apache2 failed here: no such script",
		"service tcp 10.1.0.100:80: the plane does not carry 1 real servers that are up; the log says why",
		"service tcp 10.1.0.100:80: no real server is up, the fallback answers",
		"node lvs03 is suspect: its daemon has been silent since 12:00:00.005, its kernel answers; nothing is taken over unless that lasts for suspecttime",
		"service tcp 10.1.0.100:80: 1 of 2 real servers are up",
		"7 heartbeat packets failed authentication: do all nodes have the same authkeys?",
		"node lvs02 is dead: nobody is left to take over from this one",
		"node lvs04 is in quarantine until 12:05:00: it has failed too often, and is given nothing back before; hb_standby foreign gives it back at once",
		"heartbeat link eth2 to lvs04 is dead",
		"ping node 10.1.0.254 does not answer this node",
	}
	if diff := cmp.Diff(want, sentences(st)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := sentences(api.Status{State: "active"}); len(got) != 0 {
		t.Errorf("nothing is wrong, and yet: %v", slices.Clone(got))
	}
}
