package responder

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestMain runs the tests again in namespaces of their own.
func TestMain(m *testing.M) {
	os.Exit(rig.Inside(m, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS, build))
}

func requireRoot(t testing.TB) {
	t.Helper()
	rig.RequireRoot(t, "the kernel's answers, in namespaces")
}

// The process's own namespace is node lvs01, which answers; asker is lvs02's.
//
//	lvs01 eth1  10.9.0.1/24 fd09::1/64 ─── eth1 10.9.0.2/24 fd09::2/64  lvs02
var asker netns.NsHandle

func build() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpf: %w", err)
	}
	own, err := netns.Get()
	if err != nil {
		return err
	}
	if asker, err = netns.New(); err != nil {
		return err
	}
	if err := errors.Join(noDAD(), netns.Set(own), noDAD()); err != nil {
		return err
	}
	return connect("eth1", "10.9.0.1/24", "fd09::1/64")
}

// noDAD has IPv6 addresses usable at once: nobody else has them here.
func noDAD() error {
	var errs []error
	for _, which := range []string{"default", "all"} {
		errs = append(errs, os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0))
	}
	return errors.Join(errs...)
}

// connect makes an interface of that name on either side of a cable. The
// asker's addresses are always the same.
func connect(name string, addresses ...string) error {
	far, err := netlink.NewHandleAt(asker, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer far.Close()
	v := netlink.NewVeth(netlink.LinkAttrs{Name: name})
	v.PeerName, v.PeerNamespace = name, netlink.NsFd(int(asker))
	if err := netlink.LinkAdd(v); err != nil {
		return err
	}
	near, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer near.Close()
	for _, side := range []struct {
		h         *netlink.Handle
		addresses []string
	}{{near, addresses}, {far, []string{"10.9.0.2/24", "fd09::2/64"}}} {
		l, err := side.h.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range side.addresses {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := side.h.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("%s on %s: %w", a, name, err)
			}
		}
		if err := side.h.LinkSetUp(l); err != nil {
			return err
		}
	}
	return nil
}

var (
	ring = model.Keyring{Send: 1, Keys: map[int]model.AuthKey{
		1: {Method: model.AuthSHA1, Secret: "123456"}, 2: {Method: model.AuthXChaCha20, Secret: "an encrypting secret"}, 15: {Method: model.AuthCRC}}}
	broadcast = medium(model.Broadcast, "10.9.0.255")
)

func medium(kind model.MediumKind, peer string) model.Medium {
	return model.Medium{Kind: kind, Interface: "eth1", Name: "eth1", Peer: netip.AddrPortFrom(netip.MustParseAddr(peer), 694), TTL: 1}
}

var dirs atomic.Int32

// open is lvs01's responder, which goes with the test.
func open(t *testing.T, media []model.Medium, change ...func(*Options)) *Responder {
	t.Helper()
	requireRoot(t)
	o := Options{Node: "lvs01", Media: media, Keys: ring, Dir: fmt.Sprintf("/sys/fs/bpf/test%d", dirs.Add(1)),
		Sink: func(e model.Event) { t.Logf("%s: %s", e.Level, e.Text) }}
	for _, f := range change {
		f(&o)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Remove() })
	return r
}

// lvs02 asks by a medium, in its namespace.
type lvs02 struct {
	t       *testing.T
	link    link.Link
	answers chan link.Packet
	count   uint64
}

// there does something in lvs02's namespace.
func there(do func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err == nil {
		defer own.Close()
		err = netns.Set(asker)
	}
	if err != nil {
		panic(err)
	}
	do()
	if err := netns.Set(own); err != nil {
		panic(err) // this thread is of no use any more
	}
}

func newAsker(t *testing.T, m model.Medium) *lvs02 {
	t.Helper()
	var l link.Link
	var err error
	there(func() { l, err = link.OpenAsking(m, link.Options{}) })
	if err != nil {
		t.Fatal(err)
	}
	a := &lvs02{t: t, link: l, answers: make(chan link.Packet, 1<<14)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p, err := l.Receive()
			if errors.Is(err, link.ErrClosed) {
				return
			}
			if err == nil {
				a.answers <- p
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return a
}

// ask sends one question and returns its number.
func (a *lvs02) ask(node model.NodeName, number uint8, keys model.Keyring) uint64 {
	a.count++
	q := heartbeat.Question{Key: number, Nonce: a.count, Node: heartbeat.FingerprintOf(node), Asker: heartbeat.FingerprintOf("lvs02")}
	b := q.Append(nil, heartbeat.QuestionKeys(keys)[number])
	// An interface on its way is up the next time; a link that cannot send opens its socket again.
	there(func() { _ = a.link.Send(b) })
	return a.count
}

// answered asks until an answer comes, and returns it and who sent it.
func (a *lvs02) answered(number uint8, keys model.Keyring) (heartbeat.Question, netip.AddrPort) {
	a.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		n := a.ask("lvs01", number, keys)
		again := time.After(100 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case p := <-a.answers:
				q, err := heartbeat.ParseQuestion(p.Data, heartbeat.QuestionKeys(keys))
				switch {
				case err != nil:
					a.t.Errorf("the answer %x: %v", p.Data, err)
				case q.Nonce == n:
					return q, p.From
				}
			case <-again:
				waiting = false
			case <-deadline:
				a.t.Fatalf("no answer to %d questions by %v", a.count, a.link.Name())
			}
		}
	}
}

// silent tells that none of some questions of one kind is answered, while a
// good one after them is.
func (a *lvs02) silent(node model.NodeName, number uint8, keys, good model.Keyring) {
	a.t.Helper()
	for range 3 {
		a.ask(node, number, keys)
	}
	last := a.count
	for len(a.answers) > 0 {
		<-a.answers
	}
	if q, _ := a.answered(uint8(good.Send), good); q.Nonce <= last { // answers come in the order of questions
		a.t.Errorf("%s, key %d: question %d is answered", node, number, q.Nonce)
	}
}

// By every medium, in both families, whether the daemon runs or not: the
// answer comes from an address of the node's own on that interface.
func TestEveryMedium(t *testing.T) {
	requireRoot(t)
	for _, tcx := range []bool{true, false} {
		for _, m := range []struct {
			medium model.Medium
			from   string
		}{
			{broadcast, "10.9.0.1"},
			{medium(model.Unicast, "10.9.0.1"), "10.9.0.1"},
			{medium(model.Multicast, "225.0.0.1"), "10.9.0.1"},
			{medium(model.Unicast, "fd09::1"), "fd09::1"},
			{medium(model.Multicast, "ff05::694"), "fd09::1"},
			{medium(model.Multicast, "ff02::694"), "fe80::"},
		} {
			t.Run(fmt.Sprintf("%v %v tcx %v", m.medium.Kind, m.medium.Peer.Addr(), tcx), func(t *testing.T) {
				r := open(t, []model.Medium{m.medium}, func(o *Options) { o.NoTCX = !tcx })
				if m.medium.Peer.Addr().IsLinkLocalMulticast() {
					eventually(t, "a link-local address", func() bool { r.refresh(); return place(r).Local != [16]byte{} })
				}
				a := newAsker(t, m.medium)
				q, from := a.answered(1, ring)
				if q.Run.String() != r.Boot() || q.Node != heartbeat.FingerprintOf("lvs01") {
					t.Errorf("answered %+v, want run %s of lvs01", q, r.Boot())
				}
				if want := netip.MustParseAddr(m.from); from.Addr().WithZone("") != want && !(want.IsLinkLocalUnicast() && from.Addr().IsLinkLocalUnicast()) || from.Port() != 694 {
					t.Errorf("the answer is from %v, want %v, port 694", from, want)
				}
				a.silent("lvs03", 1, ring, ring)
				if err := r.Close(); err != nil { // the daemon has died
					t.Fatal(err)
				}
				if q, _ := a.answered(2, ring); q.Run.String() != r.Boot() {
					t.Errorf("without the daemon: run %v, want %s", q.Run, r.Boot())
				}
				open(t, []model.Medium{m.medium}, func(o *Options) { *o = r.o }) // the next one, which is told to stop
			})
		}
	}
}

func place(r *Responder) (p respondPlace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p = range r.places {
	}
	return p
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// Only holders of a key are answered, under any key of authkeys, and new keys
// count at once.
func TestKeys(t *testing.T) {
	r := open(t, []model.Medium{broadcast})
	a := newAsker(t, broadcast)
	for number := range ring.Keys {
		a.answered(uint8(number), ring)
	}
	wrong := model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "guessed"}, 3: {Method: model.AuthSHA1, Secret: "123456"}}}
	a.silent("lvs01", 1, wrong, ring)
	a.silent("lvs01", 3, wrong, ring)
	c, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if c.Answered == 0 || c.WrongKey != 3 || c.NoKey != 3 || c.Failed+c.Malformed+c.NoAddress != 0 {
		t.Errorf("counted %+v", c)
	}
	fresh := model.Keyring{Send: 4, Keys: map[int]model.AuthKey{4: {Method: model.AuthSHA256, Secret: "new"}}}
	if err := r.Rekey(fresh); err != nil {
		t.Fatal(err)
	}
	a.silent("lvs01", 1, ring, fresh)
}

// A hundred thousand questions of strangers: not one is answered, and those of
// friends are, all the while.
func TestFloodOfStrangers(t *testing.T) {
	r := open(t, []model.Medium{broadcast})
	stranger, a := newAsker(t, broadcast), newAsker(t, broadcast)
	a.answered(1, ring)
	wrong := model.Keyring{Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "guessed"}}}
	q := heartbeat.Question{Key: 1, Node: heartbeat.FingerprintOf("lvs01"), Asker: heartbeat.FingerprintOf("lvs02")}
	b := q.Append(nil, heartbeat.QuestionKeys(wrong)[1])
	for range 10 {
		there(func() {
			for range 10_000 {
				_ = stranger.link.Send(b)
			}
		})
		a.answered(1, ring)
	}
	if n := len(stranger.answers); n != 0 {
		t.Errorf("%d questions of a stranger are answered", n)
	}
	if c, err := r.Counters(); err != nil || c.WrongKey == 0 {
		t.Errorf("counted %+v, %v", c, err)
	}
}

// The next daemon takes over without a moment in which nobody answers: of the
// questions that are asked meanwhile, each is answered.
func TestSuccession(t *testing.T) {
	for _, tcx := range []bool{true, false} {
		t.Run(fmt.Sprint("tcx ", tcx), func(t *testing.T) {
			first := open(t, []model.Medium{broadcast}, func(o *Options) { o.NoTCX = !tcx })
			a := newAsker(t, broadcast)
			a.answered(1, ring)
			before := a.count
			stop, asked := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(asked)
				for a.count < 10_000 {
					select {
					case <-stop:
						return
					default:
						if a.count-before < uint64(len(a.answers))+64 { // what is under way has room in the sockets
							a.ask("lvs01", 1, ring)
						}
						runtime.Gosched()
					}
				}
			}()
			for range 5 {
				if err := first.Close(); err != nil {
					t.Fatal(err)
				}
				next, err := Open(first.o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = next.Remove() })
				if next.Boot() != first.Boot() || next.Interfaces() != 1 {
					t.Errorf("run %s on %d interfaces, before it was %s on 1", next.Boot(), next.Interfaces(), first.Boot())
				}
				first = next
			}
			close(stop)
			<-asked
			eventually(t, "every answer", func() bool { return uint64(len(a.answers)) >= a.count-before })
			if programs := attached(t); tcx && programs != 1 {
				t.Errorf("%d programs on eth1, want 1", programs)
			}
		})
	}
}

// attached counts the tcx programs on eth1's way in.
func attached(t *testing.T) int {
	t.Helper()
	l, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	n, err := queryTCX(l.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// After a clean stop nobody answers, and nothing is left; what another node of
// this machine has pinned stays, unless its network namespace is gone.
func TestRemove(t *testing.T) {
	r := open(t, []model.Medium{broadcast})
	other := filepath.Join(r.o.Dir, "1-lvs09")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	a := newAsker(t, broadcast)
	a.answered(1, ring)
	if err := r.Remove(); err != nil {
		t.Fatal(err)
	}
	if n := attached(t); n != 0 {
		t.Errorf("%d programs are left on eth1", n)
	}
	left, err := filepath.Glob(r.o.Dir + "/*")
	if d := cmp.Diff([]string{other}, left); err != nil || d != "" {
		t.Errorf("pins left (-want +got): %v\n%s", err, d)
	}
	for len(a.answers) > 0 {
		<-a.answers
	}
	again := open(t, []model.Medium{broadcast})
	if q, _ := a.answered(1, ring); q.Run.String() != again.Boot() {
		t.Errorf("run %v, want %s", q.Run, again.Boot())
	}
}

// follow runs what follows changes, until the test ends.
func follow(t *testing.T, r *Responder) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-r.Ready()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Addresses change, and the interface is deleted and comes back under another
// number: the answers follow.
func TestChangesAreFollowed(t *testing.T) {
	r := open(t, []model.Medium{broadcast})
	follow(t, r)
	a := newAsker(t, broadcast)
	l, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	old, err := netlink.ParseAddr("10.9.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := netlink.ParseAddr("10.9.0.77/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrDel(l, old), netlink.AddrAdd(l, fresh)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer from the new address", func() bool {
		_, from := a.answered(1, ring)
		return from.Addr() == netip.MustParseAddr("10.9.0.77")
	})
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program to be off", func() bool { return r.Interfaces() == 0 })
	if err := connect("eth1", "10.9.0.1/24", "fd09::1/64"); err != nil {
		t.Fatal(err)
	}
	b := newAsker(t, broadcast)
	if _, from := b.answered(1, ring); from.Addr() != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("the answer is from %v", from)
	}
}

// What a machine lacks is said, with what to do about it.
func TestOpenRefuses(t *testing.T) {
	if _, err := Open(Options{Media: []model.Medium{{Kind: model.Serial, Name: "/dev/ttyS0"}}}); !errors.Is(err, ErrNoMedium) {
		t.Errorf("serial lines alone: %v", err)
	}
	requireRoot(t)
	for name, o := range map[string]Options{
		"no bpffs":     {Media: []model.Medium{broadcast}, Dir: t.TempDir()},
		"no interface": {Media: []model.Medium{{Kind: model.Broadcast, Interface: "eth7", Name: "eth7", Peer: broadcast.Peer}}, Dir: "/sys/fs/bpf/refused"},
		"no Ethernet":  {Media: []model.Medium{{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.MustParseAddrPort("127.0.0.2:694")}}, Dir: "/sys/fs/bpf/refused"},
	} {
		o.Node, o.Keys = "lvs01", ring
		if r, err := Open(o); err == nil {
			t.Errorf("%s: opened", name)
			_ = r.Remove()
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
