package messenger

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
)

// guarded is a link that remembers what it was asked to let through.
type guarded struct {
	link.Link
	asked []string
	paces []time.Duration
}

func (g *guarded) Sift(senders []link.Sender, shut bool) {
	if senders == nil {
		g.asked = append(g.asked, "all")
		return
	}
	text := "from"
	for _, s := range senders {
		text += fmt.Sprintf(" %v:%d:%d", s.Addr, s.Generation, s.Number)
	}
	if shut {
		text += ", others shut out"
	}
	g.asked = append(g.asked, text)
}

func (g *guarded) Expect(s link.Sender) {
	g.asked = append(g.asked, fmt.Sprintf("%v:%d:%d", s.Addr, s.Generation, s.Number))
}

func (g *guarded) Name() string { return "eth0" }

func (g *guarded) Pace(d time.Duration) { g.paces = append(g.paces, d) }

func (g *guarded) Dropped() uint64 { return 0 }

type doorStage struct {
	*door
	now  time.Time
	auth *heartbeat.Authenticator
	n    int

	notes []string
}

func newDoorStage(t testing.TB, k link.Link) *doorStage {
	t.Helper()
	ring := model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "x"}}}
	auth, err := heartbeat.NewAuthenticator(ring)
	if err != nil {
		t.Fatal(err)
	}
	keys := &atomic.Pointer[model.Keyring]{}
	keys.Store(&ring)
	s := &doorStage{now: time.Unix(1_795_000_000, 0), auth: auth}
	s.door = newDoor(k, keys, func(e model.Event) { s.notes = append(s.notes, e.Text) })
	return s
}

// message is a new one; forge spoils it.
func (s *doorStage) message(forge bool) []byte {
	s.n++
	b := s.auth.Seal(nil, heartbeat.Netstring, []heartbeat.Field{{Name: "t", Value: "status"}, {Name: "seq", Value: fmt.Sprint(s.n)}}, true, 1)
	if forge {
		b[len(b)-3] ^= 1
	}
	return b
}

func (s *doorStage) comes(from string, data []byte) bool {
	return s.admit(s.now, link.Packet{Data: data, From: netip.MustParseAddrPort(from)})
}

// says is what the core makes of a message of that node.
func (s *doorStage) says(from string, merit heartbeat.Merit, node model.NodeName, generation, number uint32) {
	s.learn(link.Packet{From: netip.AddrPortFrom(netip.MustParseAddr(from), 694)}, heartbeat.Voucher{Merit: merit, Node: node, Generation: generation, Number: number})
}

// In a flood from elsewhere the kernel is asked to prefer those from whom
// messages have come; when it is over, all are heard again.
func TestDoorInAFlood(t *testing.T) {
	g := &guarded{}
	s := newDoorStage(t, g)
	if !s.comes("10.1.0.2:694", s.message(false)) {
		t.Fatal("a good message is refused")
	}
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 1)
	admitted := 0
	for range 10_000 {
		s.now = s.now.Add(10 * time.Microsecond)
		if s.comes("10.1.0.66:1", s.message(true)) {
			admitted++
		}
	}
	if admitted != 1 { // in 100 ms: to be complained of
		t.Errorf("%d forged messages of 10,000 were admitted", admitted)
	}
	if !s.comes("10.1.0.2:694", s.message(false)) || !s.comes("10.1.0.99:694", s.message(false)) {
		t.Error("a good message is refused in a flood")
	}
	for range 3 { // it goes on: what the filter lets through of it
		for range 1000 {
			s.now = s.now.Add(floodRelease / 1000)
			s.comes("10.1.0.66:1", s.message(true))
		}
	}
	s.now = s.now.Add(2 * floodRelease)
	s.comes("10.1.0.2:694", s.message(false))
	s.now = s.now.Add(2 * floodRelease)
	s.comes("10.1.0.2:694", s.message(false))
	const shut = "from 10.1.0.2:7:1, others shut out"
	if n := len(g.asked); n < 3 || g.asked[0] != shut || g.asked[n-2] != shut || g.asked[n-1] != "all" {
		t.Errorf("the kernel was asked to let through %q", g.asked)
	}
	if len(s.notes) != 2 || !strings.Contains(s.notes[0], "a flood") || !strings.Contains(s.notes[1], "over after 50s; 12601 packets") {
		t.Errorf("notes: %q", s.notes)
	}
}

// A flood with the address of a peer must not have the kernel drop the peer,
// nor one that comes from nowhere else.
func TestDoorNeverShutsAPeerOut(t *testing.T) {
	g := &guarded{}
	s := newDoorStage(t, g)
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 1)
	for range 10_000 {
		s.comes("10.1.0.2:694", s.message(true))
	}
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 2)
	s.now = s.now.Add(time.Second)
	s.comes("10.1.0.2:694", s.message(false))
	if d := cmp.Diff([]time.Duration{floodPace, 0}, g.paces); d != "" {
		t.Errorf("paces (-want +got)\n%s", d)
	}
	if d := cmp.Diff([]string{"from 10.1.0.2:7:1", "10.1.0.2:7:2"}, g.asked); d != "" {
		t.Errorf("the kernel was asked to let through (-want +got)\n%s", d)
	}
}

// Recordings pass the door, as they are authentic; that they were in vain comes
// back from the core, and the kernel is told what numbers can still come.
func TestDoorAndRecordings(t *testing.T) {
	g := &guarded{}
	s := newDoorStage(t, g)
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 500)
	for i := range uint32(200) {
		s.comes("10.1.0.2:694", s.message(false))
		s.says("10.1.0.2", heartbeat.Again, "a", 7, 495+i%5)
	}
	s.comes("10.1.0.2:694", s.message(false))
	if d := cmp.Diff([]string{"from 10.1.0.2:7:500"}, g.asked); d != "" {
		t.Errorf("the kernel was asked to let through (-want +got)\n%s", d)
	}
}

// What is old for good is read once in a flood, however often it is played.
func TestDoorAndOldPackets(t *testing.T) {
	s := newDoorStage(t, &guarded{})
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 500)
	var recorded []link.Packet
	for range 2 * floodLimit {
		recorded = append(recorded, link.Packet{Data: s.message(false), From: netip.MustParseAddrPort("10.1.0.2:694")})
	}
	play := func() (admitted int) {
		s.now = s.now.Add(time.Second)
		for _, p := range recorded {
			if s.admit(s.now, p) {
				admitted++
				s.learn(p, heartbeat.Voucher{Merit: heartbeat.Old})
			}
		}
		return admitted
	}
	first, second := play(), play()
	// Two that share a place in the table push each other out: hardly any do.
	if third := play(); first != len(recorded) || second >= first || third > len(recorded)/10 {
		t.Errorf("of %d recordings admitted: %d, then %d, then %d", len(recorded), first, second, third)
	}
}

// The copies of messages that a second link brings are no flood, and show who
// sends by it.
func TestDoorOfASecondLink(t *testing.T) {
	g := &guarded{}
	s := newDoorStage(t, g)
	for i := range uint32(1000) {
		s.comes("10.2.0.2:694", s.message(false))
		s.says("10.2.0.2", heartbeat.Again, "a", 7, i)
	}
	s.comes("10.2.0.2:694", s.message(false))
	want := link.Sender{Addr: netip.MustParseAddr("10.2.0.2"), Generation: 7, Number: 999}
	if d := cmp.Diff([]link.Sender{want}, s.senders(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" || len(g.asked) != 0 {
		t.Errorf("asked %v, known (-want +got)\n%s", g.asked, d)
	}
}

// Who plays what was said a moment ago from many addresses displaces nobody;
// and where two nodes send from one address, no number is refused.
func TestDoorAndImpostors(t *testing.T) {
	s := newDoorStage(t, &guarded{})
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 500)
	for i := range 100 {
		s.says(fmt.Sprint("10.9.0.", i), heartbeat.Again, "a", 7, 500)
	}
	if s.says("10.1.0.3", heartbeat.Original, "b", 3, 1); len(s.senders()) != mostKnown || s.senders()[1].Addr.String() != "10.1.0.2" {
		t.Errorf("known: %v", s.senders())
	}
	s.says("10.1.0.2", heartbeat.Original, "b", 3, 2)
	s.says("10.1.0.2", heartbeat.Original, "a", 7, 501)
	if first := s.senders()[0]; first.Addr.String() != "10.1.0.2" || first.Generation != 0 {
		t.Errorf("two nodes at one address: %v", first)
	}
}

// In a flood beats wait among the garbage: nobody is judged by what was not read.
func TestDoorKnowsWhatIsUnread(t *testing.T) {
	s := newDoorStage(t, &guarded{})
	late := func() { // a packet that waited
		s.admit(s.now, link.Packet{Data: s.message(true), From: netip.MustParseAddrPort("10.1.0.2:694"), At: s.now.Add(-80 * time.Millisecond)})
	}
	if late(); s.unread(s.now) != 0 {
		t.Error("one late packet is no flood")
	}
	for range 2 * floodLimit {
		late()
	}
	if got := s.unread(s.now); got != 80*time.Millisecond {
		t.Errorf("in a flood %v are unread", got)
	}
	if got := s.unread(s.now.Add(time.Second)); got != 0 {
		t.Errorf("a second later %v are unread", got)
	}
}

// The same bytes are looked at once in a while: recordings, and the copies of
// a network that doubles packets.
func TestDoorAndTwins(t *testing.T) {
	s := newDoorStage(t, &guarded{})
	same := s.message(false)
	var got []bool
	for range 4 {
		got = append(got, s.comes("10.1.0.2:694", same))
		s.now = s.now.Add(twinPeriod / 2)
	}
	if d := cmp.Diff([]bool{true, false, true, false}, got); d != "" || s.lost() != 2 {
		t.Errorf("(-want +got)\n%s%d dropped", d, s.lost())
	}
}

// Senders are remembered in bounded number, the newest first.
func TestDoorKnowsTheNewest(t *testing.T) {
	s := newDoorStage(t, &guarded{})
	for i := range 100 {
		s.says(fmt.Sprint("10.0.0.", i), heartbeat.Original, "a", 7, uint32(i))
	}
	if got := s.senders(); len(got) != mostKnown || got[0].Addr.String() != "10.0.0.99" {
		t.Errorf("known: %v", got)
	}
}

// New keys count at the door at once.
func TestDoorTakesNewKeys(t *testing.T) {
	s := newDoorStage(t, &guarded{})
	s.passed = s.now
	fresh := model.Keyring{Send: 2, Keys: map[int]model.AuthKey{2: {Method: model.AuthXChaCha20, Secret: "of at least sixteen"}}}
	s.keys.Store(&fresh)
	if s.comes("10.1.0.2:694", s.message(false)) {
		t.Error("a message under a key that is gone is admitted")
	}
}

// BenchmarkDoor is what a packet of a flood costs after it was read.
func BenchmarkDoor(b *testing.B) {
	for _, c := range []struct {
		name string
		make func(s *doorStage) []byte
	}{{"forged", func(s *doorStage) []byte { return s.message(true) }}, {"recorded", func(s *doorStage) []byte { return s.message(false) }}} {
		b.Run(c.name, func(b *testing.B) {
			s := newDoorStage(b, &guarded{})
			var all [][]byte
			for range 5000 {
				all = append(all, c.make(s))
			}
			n := 0
			if c.name == "recorded" {
				all = all[:100]
			}
			b.ReportAllocs()
			for b.Loop() {
				s.now = s.now.Add(5 * time.Microsecond)
				s.comes("10.1.0.2:694", all[n%len(all)])
				n++
			}
		})
	}
}
