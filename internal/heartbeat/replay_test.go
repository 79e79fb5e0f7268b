package heartbeat

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// HMAC-SHA-256, -384 and -512 of RFC 4231, section 4.3 (test case 2).
func TestHMACVectors(t *testing.T) {
	for method, want := range map[model.AuthMethod]string{
		model.AuthSHA256: "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
		model.AuthSHA384: "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
		model.AuthSHA512: "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
	} {
		a, err := NewAuthenticator(model.Keyring{Send: 7, Keys: map[int]model.AuthKey{7: {Method: method, Secret: "Jefe"}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(a.keys[7].sign([]byte("what do ya want for nothing?"))); got != want {
			t.Errorf("%v: %s, want %s", method, got, want)
		}
		if _, err := hex.DecodeString(want); err != nil {
			t.Fatal(err)
		}
		for _, enc := range []Encoding{Netstring, Text} {
			b := a.Seal(nil, enc, []Field{{Name: "t", Value: "status"}, {Name: "srcuuid", Value: "\x00\x01", Type: FieldBinary}}, true, 7)
			p, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if index, err := a.Verify(&p); index != 7 || err != nil {
				t.Errorf("%v, %v: key %d, %v", method, enc, index, err)
			}
			b[bytes.Index(b, []byte("status"))] ^= 1
			if p, err = Parse(b); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Verify(&p); !errors.Is(err, ErrDigest) {
				t.Errorf("%v, %v: a changed packet: %v", method, enc, err)
			}
		}
	}
}

// wire is two cores whose packets the test carries.
type wire struct {
	t     *testing.T
	now   time.Time
	nodes map[string]*Core
	sent  map[string][][]byte // by whom, all of it
	seen  map[string][]Effect // by whom, all of it
}

func newWire(t *testing.T, names ...string) *wire {
	w := &wire{t: t, now: epoch, nodes: map[string]*Core{}, sent: map[string][][]byte{}, seen: map[string][]Effect{}}
	for _, n := range names {
		cfg := testConfig(n, other(n), 100)
		cfg.Random = func(b []byte) { binary.LittleEndian.PutUint64(b, cfg.Rand.Uint64()) }
		w.boot(n, cfg)
	}
	return w
}

func (w *wire) boot(n string, cfg Config) {
	w.t.Helper()
	c, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[n] = c
	w.step(n, Start{})
	w.step(n, Running{})
}

// step returns the packets that are sent for it.
func (w *wire) step(n string, in Input) (packets [][]byte) {
	for _, e := range w.nodes[n].Step(w.now, in) {
		w.seen[n] = append(w.seen[n], e)
		if s, ok := e.(*Send); ok {
			packets = append(packets, s.Data)
		}
	}
	w.sent[n] = append(w.sent[n], packets...)
	return packets
}

func (w *wire) say(n, kind string) [][]byte {
	m := model.Message{Type: kind}
	if kind == "status" {
		m.Fields = []model.Field{{Name: "st", Value: "active"}, {Name: "dt", Value: "1388"}, {Name: "batuta", Value: "1"}}
	}
	return w.step(n, Submit{m})
}

// carry brings packets to a node, and what it answers back, until silence.
func (w *wire) carry(to string, packets [][]byte) {
	for _, p := range packets {
		if answer := w.step(to, Datagram{Link: "eth1", Data: p, At: w.now}); len(answer) > 0 {
			w.carry(other(to), answer)
		}
	}
}

// delivered are the kinds of the messages that a node was given.
func (w *wire) delivered(n string) (kinds []string) {
	for _, e := range w.seen[n] {
		switch e := e.(type) {
		case Deliver:
			kinds = append(kinds, e.Message.Type)
		case *Sighted:
			if e.Link == "" {
				kinds = append(kinds, e.Kind.String())
			}
		}
	}
	return kinds
}

// floors are those that a node gave out last, through the form they have on disk.
func (w *wire) floors(n string) map[model.NodeName]Floor {
	w.t.Helper()
	floors, text := map[model.NodeName]Floor{}, ""
	for _, e := range w.seen[n] {
		if h, ok := e.(Heard); ok {
			floors[h.Node], text = h.Floor, FormatFloor(h.Node, h.Floor)
		}
	}
	stored, err := ParseFloors(text)
	if d := cmp.Diff(floors, stored); err != nil || d != "" {
		w.t.Fatalf("%v (-want +got)\n%s", err, d)
	}
	return stored
}

// restart begins a new life of a node, with what the earlier one has stored.
func (w *wire) restart(n string, floors map[model.NodeName]Floor) {
	cfg := testConfig(n, other(n), w.nodes[n].cfg.Generation+1)
	cfg.Floors = floors
	w.seen[n] = nil
	w.boot(n, cfg)
}

// A node that crashes, at whatever moment, restarts and is shown recordings of
// a peer that is gone: not even the newest packet is believed. The peer
// itself, if it lives, is heard as soon as it has heard the new life.
func TestRecordingsAreRefused(t *testing.T) {
	for beats := 1; beats < 40; beats++ {
		w := newWire(t, "a", "b")
		w.carry("a", w.say("b", "status"))
		for range beats {
			w.now = w.now.Add(time.Second)
			w.carry("b", w.say("a", "status"))
			w.carry("b", w.say("a", "resource"))
		}
		recorded, floors := w.sent["a"], w.floors("b")
		w.restart("b", nil)
		w.carry("b", recorded)
		if got := w.delivered("b"); len(got) == 0 {
			t.Fatal("without floors a recording is believed; the test proves nothing")
		}
		w.restart("b", floors)
		w.carry("b", recorded)
		if got := w.delivered("b"); len(got) != 0 {
			t.Fatalf("after %d beats: a recording was believed: %v", beats, got)
		}
		w.carry("b", w.say("a", "status")) // it has not heard b yet
		if got := w.delivered("b"); len(got) != 0 {
			t.Fatalf("after %d beats: believed without a proof: %v", beats, got)
		}
		w.carry("a", w.say("b", "status"))
		w.carry("b", w.say("a", "status"))
		w.carry("b", w.say("a", "starting"))
		if d := cmp.Diff([]string{"joined", "starting"}, w.delivered("b")); d != "" {
			t.Fatalf("after %d beats (-want +got)\n%s", beats, d)
		}
	}
}

// A peer that does not hear this node cannot prove anything. It is not
// declared dead for that, and believed as soon as it must be alive.
func TestOneWayPeerIsBelievedInTheEnd(t *testing.T) {
	w := newWire(t, "a", "b")
	w.carry("a", w.say("b", "status"))
	w.carry("b", w.say("a", "status"))
	w.restart("b", w.floors("b"))
	for range minReserve + 2 {
		w.now = w.now.Add(time.Second)
		w.carry("b", w.say("a", "status"))
		w.step("b", Tick{})
	}
	if d := cmp.Diff([]string{"joined", "beat"}, w.delivered("b")); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	// One that was heard in doubt, and never again, dies a little later than others.
	w.restart("b", map[model.NodeName]Floor{"a": {Generation: 100, Seq: 1, Life: w.nodes["a"].life, Ahead: 1000}})
	begin := w.now
	w.carry("b", w.say("a", "status"))
	for len(w.delivered("b")) == 0 && w.now.Before(begin.Add(time.Minute)) {
		w.now = w.nodes["b"].Next()
		w.step("b", Tick{})
	}
	if wait := w.now.Sub(begin); wait < 2*floorPeriod || wait > 3*floorPeriod+settle {
		t.Errorf("declared dead after %v: %v", wait, w.delivered("b"))
	}
}

// A machine that wakes just before it would be declared dead can still prove
// that it hears this node. What is played in its name gets it no longer than
// as much again.
func TestLateWakerCanProveItself(t *testing.T) {
	w := newWire(t, "a", "b")
	w.carry("a", w.say("b", "status"))
	w.carry("b", w.say("a", "status"))
	w.restart("b", map[model.NodeName]Floor{"a": {Generation: 100, Seq: 1, Life: w.nodes["a"].life, Ahead: 1000}})
	begin := w.now
	beat := func() {
		w.carry("b", w.step("a", Submit{model.Message{Type: "status", Fields: []model.Field{{Name: "st", Value: "active"},
			{Name: "batuta", Value: "1"}, {Name: "ka", Value: hexMillis(time.Second)}}}}))
	}
	beat()
	w.now = w.nodes["b"].det.Next().Add(-settle - time.Millisecond)
	wait := w.now.Sub(begin)
	for w.now.Before(begin.Add(time.Hour)) && len(w.delivered("b")) == 0 {
		beat()
		w.now = w.now.Add(time.Second)
		w.step("b", Tick{})
	}
	if lived := w.now.Sub(begin); lived < 2*wait || lived > 2*wait+5*time.Second {
		t.Errorf("declared dead after %v, would be after %v: %v", lived, wait, w.delivered("b"))
	}
}

// However fast a peer beats, what is stored of it covers what was heard of it.
func TestFloorsKeepAhead(t *testing.T) {
	for _, keepalive := range []time.Duration{5 * time.Millisecond, 10 * time.Millisecond, time.Second, 30 * time.Second} {
		w := newWire(t, "a", "b")
		stored, ahead, writes := uint32(0), uint32(0), 0
		for range 3000 {
			w.now = w.now.Add(keepalive)
			w.seen["b"] = nil
			w.carry("b", w.step("a", Submit{model.Message{Type: "status", Fields: []model.Field{{Name: "st", Value: "active"},
				{Name: "batuta", Value: "1"}, {Name: "ka", Value: hexMillis(keepalive)}}}}))
			for _, e := range w.seen["b"] {
				if h, ok := e.(Heard); ok {
					stored, ahead, writes = h.Seq, h.Ahead, writes+1
				}
			}
			if heard := w.nodes["b"].peers["a"].in.statusSeq; heard < stored || heard > ahead {
				t.Fatalf("keepalive %v: number %d was heard, stored is %d to %d", keepalive, heard, stored, ahead)
			}
		}
		if most := 2 + int(3000*keepalive/floorPeriod); writes > most && keepalive < floorPeriod {
			t.Errorf("keepalive %v: %d writes, want no more than %d", keepalive, writes, most)
		}
	}
}

func hexMillis(d time.Duration) string { return hex32(uint32(d.Milliseconds())) }

// Keys change while messages are under way: first each node is made to accept
// the new key, then to send with it, then the old one is dropped. A message
// that was sent under the old key, lost, and asked for at the end, arrives.
func TestRotation(t *testing.T) {
	oldKey, newKey := model.AuthKey{Method: model.AuthSHA1, Secret: "old"}, model.AuthKey{Method: model.AuthSHA256, Secret: "new"}
	both := map[int]model.AuthKey{1: oldKey, 2: newKey}
	rollover(t, []model.Keyring{
		{Send: 1, Keys: map[int]model.AuthKey{1: oldKey}},
		{Send: 1, Keys: both},                             // receive-new
		{Send: 2, Keys: both},                             // send-new
		{Send: 2, Keys: map[int]model.AuthKey{2: newKey}}, // drop-old
	}, "2 ")
}

// A key that another node still signs with is missed at once, with a word of
// what to do; one that nobody uses is not.
func TestKeyThatIsMissed(t *testing.T) {
	w := newWire(t, "a", "b")
	old, other := model.AuthKey{Method: model.AuthSHA1, Secret: "old"}, model.AuthKey{Method: model.AuthSHA256, Secret: "new"}
	both := map[int]model.AuthKey{1: old, 2: other}
	for _, n := range []string{"a", "b"} {
		w.step(n, Rekey{model.Keyring{Send: 1, Keys: both}})
	}
	w.carry("a", w.say("b", "status"))
	notes := func(keys map[int]model.AuthKey, send int) (list []string) {
		w.seen["a"] = nil
		w.step("a", Rekey{model.Keyring{Send: send, Keys: keys}})
		for _, e := range w.seen["a"] {
			if n, ok := e.(Note); ok && n.Kind == "key-missed" {
				list = append(list, n.Subject)
			}
		}
		return list
	}
	if got := notes(map[int]model.AuthKey{1: old}, 1); len(got) != 0 {
		t.Errorf("without the other key: %v", got)
	}
	if got := notes(map[int]model.AuthKey{2: other}, 2); len(got) != 1 || got[0] != "b" {
		t.Errorf("without the key of b: %v", got)
	}
}

// rollover takes two nodes from the first keyring to the last, one node a step
// ahead of the other each time. In the end b signs with what auth begins with.
func rollover(t *testing.T, steps []model.Keyring, auth string) {
	t.Helper()
	w := newWire(t, "a", "b")
	talk := func() {
		w.now = w.now.Add(time.Second)
		for _, n := range []string{"a", "b"} {
			w.carry(other(n), w.say(n, "status"))
		}
	}
	ask := func(due time.Time) {
		missing := w.nodes["b"].peers["a"].in.missing
		for i := range missing {
			missing[i].due = due
		}
	}
	for i, ring := range steps {
		for _, n := range []string{"a", "b"} {
			w.step(n, Rekey{ring})
			if i == 0 {
				w.step(other(n), Rekey{ring})
			}
			talk()
		}
		talk()
		if i == 1 {
			w.say("a", "lost")
			w.carry("b", w.say("a", "status"))
			ask(w.now.Add(time.Hour)) // as if every request for it were lost
		}
	}
	ask(w.now)
	w.carry("a", w.step("b", Tick{}))
	for _, n := range []string{"a", "b"} {
		if bad := w.nodes[n].Counters().Bad; bad > 0 {
			t.Errorf("%s dropped %d packets", n, bad)
		}
	}
	if got := w.delivered("b"); len(got) == 0 || got[len(got)-1] != "lost" {
		t.Errorf("b was given %v: the lost message is not the last", got)
	}
	if p, err := Parse(w.sent["b"][len(w.sent["b"])-1]); err != nil || !strings.HasPrefix(p.Outer, auth) {
		t.Errorf("b signs with %.8q, %v; want %q", p.Outer, err, auth)
	}
	// A ring that cannot sign changes nothing.
	w.step("a", Rekey{model.Keyring{Send: 3, Keys: steps[0].Keys}})
	talk()
	if bad := w.nodes["b"].Counters().Bad; bad > 0 {
		t.Error("after keys that were refused a signs with others")
	}
}

func FuzzParseFloors(f *testing.F) {
	f.Add("lvs01 1795359878 42 1f2e3d4c 1042\nlvs02 7 0 - 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		floors, err := ParseFloors(text)
		if err != nil {
			return
		}
		again := ""
		for n, x := range floors {
			again += FormatFloor(n, x)
		}
		back, err := ParseFloors(again)
		if d := cmp.Diff(floors, back); err != nil || d != "" {
			t.Errorf("%v (-want +got)\n%s", err, d)
		}
	})
}
