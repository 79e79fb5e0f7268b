package beat

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
)

// The test's own program is the beat process, as batuta is in life.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == Verb:
		if err := Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv("BATUTA_TEST_DAEMON") != "":
		daemon()
	case os.Getenv("BATUTA_BENCH_NODE") != "":
		benchNode(os.Getenv("BATUTA_BENCH_NODE"))
	}
	os.Exit(m.Run())
}

// daemon is a node's process that waits to be killed.
func daemon() {
	c, err := Start(Options{Begin: func() (Life, error) { return lifeOf("a", 6960, 30*time.Second, 1), nil }, Sink: func(model.Event) {}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(c.life.cmd.Process.Pid)
	_ = c.Run(context.Background())
}

// lifeOf is a life of one of two nodes that share this host's loopback.
func lifeOf(self model.NodeName, port uint16, dead time.Duration, generation uint32) Life {
	own, other := netip.MustParseAddr("127.94.0.1"), netip.MustParseAddr("127.94.0.2")
	if self == "b" {
		own, other = other, own
	}
	return Life{Source: own, Generation: generation, UUID: [16]byte{self[0]},
		Heartbeat: model.Heartbeat{Self: self, Nodes: []model.NodeName{"a", "b"}, Priority: 1, LockMemory: true,
			Keys:      model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "secret"}}},
			Media:     []model.Medium{{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: netip.AddrPortFrom(other, port)}},
			Keepalive: 50 * time.Millisecond, WarnTime: dead / 2, DeadTime: dead, InitDead: 2 * dead, MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1}}
}

// freePort is a UDP port that nobody uses on either node's address.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 94, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// station is one node's process of a story, with everything it was told.
type station struct {
	*Client
	t           *testing.T
	generations atomic.Uint32
	learnt      atomic.Value // string
	ended       chan error
	stop        func() error

	mu     sync.Mutex
	events []string
	notes  []string
}

var words = map[model.ClusterEventKind]string{model.CommunicationUp: "up", model.MessageReceived: "message", model.NodeDied: "died",
	model.NodeRestarted: "restarted", model.NodeJoined: "joined", model.PartitionHealed: "healed", model.LinkChanged: "link", model.Renewed: "renewed"}

func (s *station) hear(e model.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, e.Kind)
	s.t.Logf("%s %s", s.self, e)
}

// boot starts a node; it ends with the test.
func boot(t *testing.T, self model.NodeName, port uint16, dead time.Duration) *station {
	t.Helper()
	return bootLife(t, func(generation uint32) Life { return lifeOf(self, port, dead, generation) })
}

func bootLife(t *testing.T, life func(generation uint32) Life) *station {
	t.Helper()
	s := &station{t: t, ended: make(chan error, 1)}
	c, err := Start(Options{Sink: s.hear,
		Begin:   func() (Life, error) { return life(s.generations.Add(1)), nil },
		Renewed: func(uint32) error { return nil },
		Heard:   func(map[model.NodeName]heartbeat.Floor) error { return nil },
		Learnt:  func(m string) error { s.learnt.Store(m); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	s.Client = c
	ctx, cancel := context.WithCancel(t.Context())
	go func() { s.ended <- c.Run(ctx) }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for e := range c.Events() {
			text := words[e.Kind] + " " + string(e.Node)
			if e.Kind == model.MessageReceived {
				text = e.Message.Type + " " + e.Message.Get("n")
			}
			s.mu.Lock()
			s.events = append(s.events, text)
			s.mu.Unlock()
		}
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		err := <-s.ended
		<-read
		return errors.Join(err, c.Close())
	})
	t.Cleanup(func() { _ = s.stop() })
	return s
}

// eventually waits for a fact: time decides nothing but that it never comes.
func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !fact(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: never came true", what)
		}
	}
}

func (s *station) count(list *[]string, text string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range *list {
		if e == text {
			n++
		}
	}
	return n
}

func (s *station) wants(event string, times int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s hears %q, %d times", s.self, event, times), func() bool { return s.count(&s.events, event) >= times })
}

func (s *station) wantsNote(kind string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s notes %q", s.self, kind), func() bool { return s.count(&s.notes, kind) > 0 })
}

func (s *station) pid() int {
	s.Client.mu.Lock()
	defer s.Client.mu.Unlock()
	if s.life == nil {
		return 0
	}
	return s.life.cmd.Process.Pid
}

// signaled sends a signal to the beat process of the moment.
func (s *station) signaled(sig syscall.Signal) {
	s.t.Helper()
	eventually(s.t, "a beat process lives", func() bool { return s.pid() != 0 })
	if err := syscall.Kill(s.pid(), sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *station) say(n int) {
	s.t.Helper()
	if err := s.Send(model.Message{Type: "word", Fields: []model.Field{{Name: "n", Value: fmt.Sprint(n)}}}); err != nil {
		s.t.Error(err)
	}
}

// pairOf starts both nodes and waits until they know each other.
func pairOf(t *testing.T, dead time.Duration) (a, b *station) {
	t.Helper()
	port := freePort(t)
	a, b = boot(t, "a", port, dead), boot(t, "b", port, dead)
	a.wants("up a", 1)
	b.wants("up b", 1)
	return a, b
}

// Two nodes' messages cross in order, views and counters are those of the
// process, and what was queued before the end is still sent.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, 30*time.Second)
	<-a.Ready()
	for n := range 50 {
		a.say(n)
	}
	b.wants("word 49", 1)
	eventually(t, "each sees the other active", func() bool {
		va, vb := a.View(), b.View()
		return va.Find("b").State == model.NodeActive && vb.Find("a").State == model.NodeActive
	})
	if v := a.View(); time.Since(v.Find("b").LastBeat) > time.Minute || v.Find("b").LastBeat.IsZero() {
		t.Errorf("b's latest beat: %v", v.Find("b").LastBeat)
	}
	if got, links := a.Packets(); got.Sent < 50 || got.Received == 0 || len(links) == 0 {
		t.Errorf("counters: %+v, links %+v", got, links)
	}
	keys := model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "secret"}, 2: {Method: model.AuthSHA256, Secret: "other"}}}
	b.Rekey(keys)
	b.wantsNote("keys-changed")
	keys.Send = 2
	a.Rekey(keys)
	a.say(50)
	a.say(51)
	if err := a.stop(); err != nil {
		t.Errorf("a ends: %v", err)
	}
	if err := a.Send(model.Message{Type: "word"}); !errors.Is(err, messenger.ErrStopped) {
		t.Errorf("send after the end: %v", err)
	}
	if learnt, _ := a.learnt.Load().(string); !strings.HasPrefix(learnt, "b 50000 ") {
		t.Errorf("what a has learnt of b's beats: %q", learnt)
	}
	b.wants("word 51", 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	var got, want []string
	for _, e := range b.events {
		if strings.HasPrefix(e, "word") {
			got = append(got, e)
		}
	}
	for n := range 52 {
		want = append(want, fmt.Sprintf("word %d", n))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// A beat process that is killed, or hangs, is followed by another one: the
// other node hears a new life, this one that its words are to be said again,
// and nobody is declared dead.
func TestTheBeatProcessDies(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			a, b := pairOf(t, 60*time.Second)
			a.signaled(sig)
			a.wantsNote("beat-process-ended")
			a.wants("renewed a", 1)
			b.wants("restarted a", 1)
			a.say(1)
			b.say(2)
			b.wants("word 1", 1)
			a.wants("word 2", 1)
			if n := a.count(&a.events, "died b") + b.count(&b.events, "died a") + a.count(&a.events, "healed b"); n != 0 {
				t.Errorf("somebody was declared dead: %q %q", a.events, b.events)
			}
			if v := b.View(); v.Find("a").Generation != 2 {
				t.Errorf("a's generation as b sees it: %d, want 2", v.Find("a").Generation)
			}
		})
	}
}

// A beat process that cannot live ends the node, in the end.
func TestTheBeatProcessDiesAgainAndAgain(t *testing.T) {
	t.Parallel()
	a := boot(t, "a", freePort(t), 30*time.Second)
	last := 0
	for range maxLives {
		eventually(t, "another process", func() bool { pid := a.pid(); return pid != 0 && pid != last })
		last = a.pid()
		a.signaled(syscall.SIGKILL)
	}
	err := <-a.ended
	if err == nil || !strings.Contains(err.Error(), "has ended 5 times within 1m0s") {
		t.Errorf("the task ended with %v", err)
	}
	a.ended <- nil // for stop
}

// While the decision loop stands still no beat goes out: the other node takes
// over. When it runs again, they meet again.
func TestADecisionLoopThatStandsStill(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, time.Second)
	a.Decided()
	a.wantsNote("beats-withheld")
	b.wants("died a", 1)
	eventually(t, "the beats are back", func() bool { a.Decided(); return a.count(&a.notes, "beats-resumed") > 0 })
	eventually(t, "b hears a again", func() bool { a.Decided(); return b.count(&b.events, "healed a") > 0 })
	a.Undecided()
	a.say(1)
	b.wants("word 1", 1)
}

// The death of the node's process is that of its beat process.
func TestTheNodesProcessDies(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "BATUTA_TEST_DAEMON=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "the beat process ends", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") // a zombie, where nobody waits for orphans
	})
}

// At a keepalive of 5 ms a thousand beats are heard, and nobody is missed.
func TestAPairAtFiveMilliseconds(t *testing.T) {
	t.Parallel()
	const beats = 1000
	port := freePort(t)
	stations := []*station{}
	for _, self := range []model.NodeName{"a", "b"} {
		stations = append(stations, bootLife(t, func(generation uint32) Life {
			life := lifeOf(self, port, 30*time.Second, generation)
			life.Heartbeat.Keepalive = 5 * time.Millisecond
			return life
		}))
	}
	for _, s := range stations {
		eventually(t, "the beats are heard", func() bool {
			count, _ := s.Packets()
			return count.Received >= beats
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.events {
			if word, _, _ := strings.Cut(e, " "); word == "died" || word == "restarted" || word == "healed" || word == "renewed" {
				t.Errorf("%s heard of %q", s.self, e)
			}
		}
	}
}

// What keeps the links from being opened is the error of Start.
func TestALinkThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	life := lifeOf("a", 6961, time.Second, 1)
	life.Heartbeat.Media[0].Interface = "eth77"
	_, err := Start(Options{Begin: func() (Life, error) { return life, nil }, Sink: func(e model.Event) { t.Log(e) }})
	if err == nil || !strings.Contains(err.Error(), "heartbeat medium ucast lo: ucast eth77: no interface of that name") {
		t.Errorf("error: %v", err)
	}
}

// A node's process that does not read costs notes first, then the life; never
// an event in the middle.
func TestReportsThatNobodyReads(t *testing.T) {
	ctx, end := context.WithCancelCause(t.Context())
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	w, err := newRawWire(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	p := &process{wire: w, end: end}
	for p.dropped == 0 { // what the socket takes does not wait
		p.note(model.Event{Text: "a note"})
	}
	if len(p.reports) != maxReports/2 || ctx.Err() != nil {
		t.Errorf("notes alone: %d wait, %d were left out, %v", len(p.reports), p.dropped, context.Cause(ctx))
	}
	for len(p.reports) < maxReports {
		p.report(report{Event: &model.ClusterEvent{}})
	}
	if ctx.Err() != nil {
		t.Error("ended before the line was full")
	}
	p.report(report{Event: &model.ClusterEvent{}})
	if !errors.Is(context.Cause(ctx), errFull) {
		t.Errorf("the life goes on without an event: %v", context.Cause(ctx))
	}
	// Somebody reads at last, and finds all of them, and how many notes are missing.
	done := make(chan struct{})
	go func() { defer close(done); p.finish() }()
	events, missing := 0, 0
	for dec := gob.NewDecoder(os.NewFile(uintptr(pair[1]), "reader")); events < maxReports/2 || missing == 0; {
		var r report
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("after %d events: %v", events, err)
		}
		switch {
		case r.Event != nil:
			events++
		case r.Note != nil && r.Note.Kind == "notes-dropped":
			missing++
		}
	}
	<-done
}

func TestStandstill(t *testing.T) {
	now := time.Unix(1000, 0)
	s := standstill{step: 20 * time.Millisecond}
	for i, c := range []struct {
		later  time.Duration
		number uint64
		want   time.Duration
	}{
		{0, 7, 0},
		{10 * time.Millisecond, 7, 10 * time.Millisecond},
		{10 * time.Millisecond, 7, 20 * time.Millisecond},
		{10 * time.Second, 7, 40 * time.Millisecond}, // the one who looks was away, too
		{10 * time.Millisecond, 8, 0},
		{10 * time.Millisecond, 8, 10 * time.Millisecond},
		{10 * time.Millisecond, 0, 0}, // nobody to wait for: no standstill either
	} {
		now = now.Add(c.later)
		if got := s.look(now, c.number); got != c.want {
			t.Errorf("look %d: %v, want %v", i, got, c.want)
		}
	}
}

// Moments cross whatever the wall clock does between the event and its report.
func TestTimesCross(t *testing.T) {
	now := time.Now()
	r := stamped(report{Event: &model.ClusterEvent{At: now.Add(-3 * time.Second),
		View: model.View{Nodes: []model.NodeView{{LastBeat: now.Add(-time.Second)}, {}}}}})
	// What encoding leaves, of a sender whose wall clock is an hour ahead.
	strip := func(t time.Time) time.Time { return t.Round(0).Add(time.Hour) }
	r.times(strip)
	r.Wall = strip(r.Wall)
	r.settle()
	if got := now.Sub(r.Event.At) - 3*time.Second; got.Abs() > time.Second {
		t.Errorf("the event moved by %v", got)
	}
	if got := now.Sub(r.Event.View.Nodes[0].LastBeat) - time.Second; got.Abs() > time.Second {
		t.Errorf("the latest beat moved by %v", got)
	}
	if !r.Event.View.Nodes[1].LastBeat.IsZero() {
		t.Errorf("a beat that never was: %v", r.Event.View.Nodes[1].LastBeat)
	}
}
