package heartbeat

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// two are nodes that have heard each other, under a key of that method.
func two(t testing.TB, method model.AuthMethod) (a, b *Core) {
	t.Helper()
	boot := func(n string) *Core {
		cfg := testConfig(n, other(n), 100)
		cfg.Heartbeat.Keys = model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: method, Secret: "a secret of some length"}}}
		cfg.Random = func(b []byte) { binary.LittleEndian.PutUint64(b, cfg.Rand.Uint64()) }
		cfg.Boot = RunOf(n).String()
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Step(epoch, Start{})
		c.Step(epoch, Running{})
		return c
	}
	return boot("a"), boot("b")
}

func beat() model.Message {
	return model.Message{Type: "status", Fields: []model.Field{{Name: "st", Value: "active"}, {Name: "dt", Value: "1388"},
		{Name: "protocol", Value: "1"}, {Name: "batuta", Value: "1"}, {Name: "ka", Value: "a"}, {Name: "bd", Value: "1388"}}}
}

// round is what two nodes do in one keepalive: each beats, hears the other's
// beat, and its acknowledgment if there is one. see, if set, sees each packet.
func round(now time.Time, a, b *Core, m model.Message, see func([]byte)) {
	for range 2 {
		carry(now, a, b, a.Step(now, Submit{m}), see)
		a, b = b, a
	}
}

func carry(now time.Time, from, to *Core, effects []Effect, see func([]byte)) {
	for _, e := range effects {
		s, ok := e.(*Send)
		if !ok {
			continue
		}
		if see != nil {
			see(s.Data)
		}
		carry(now, to, from, to.Step(now, Datagram{Link: "eth1", Data: s.Data, At: now}), see)
	}
	from.Reuse(effects)
}

// TestBeatsTakeNoMemory: neither to be sent nor to be received, verified and
// entered, with the acknowledgment of every tenth.
func TestBeatsTakeNoMemory(t *testing.T) {
	for _, method := range []model.AuthMethod{model.AuthCRC, model.AuthMD5, model.AuthSHA1, model.AuthSHA256, model.AuthSHA512, model.AuthXChaCha20} {
		t.Run(method.String(), func(t *testing.T) {
			a, b := two(t, method)
			now, m := epoch, beat()
			rounds := func() {
				for range ackEvery {
					now = now.Add(10 * time.Millisecond)
					round(now, a, b, m, nil)
				}
			}
			for range 3 * historySize / ackEvery { // every place for a packet that is kept has been used
				rounds()
			}
			heard := a.Counters().Received
			if allocs := testing.AllocsPerRun(40, rounds); allocs != 0 { // a floor to be stored, each floorPeriod, is rounded away
				t.Errorf("%d rounds took memory %.0f times", ackEvery, allocs)
			}
			if got := a.Counters(); got.Received-heard < 400 || got.Bad+got.Lost+got.Duplicates != 0 {
				t.Errorf("the rounds were not what they should be: %+v", got)
			}
		})
	}
}

// FuzzAgain: what is read by comparison is read as Parse does it.
func FuzzAgain(f *testing.F) {
	f.Add("seq", "1f", uint8(0), false)
	f.Add("seq", "001f", uint8(1), false)
	f.Add("ts", "0", uint8(1), true)
	f.Add("ts", "", uint8(3), true)
	f.Add("wd", "ffffffffff", uint8(2), false)
	f.Add("src", "A", uint8(1), false)
	f.Add("st", "up", uint8(4), true)
	f.Add("ld", ",,,%%%\n", uint8(4), false)
	f.Add("hg", "-1", uint8(3), false)
	f.Add("echo", "x", uint8(3), true)
	f.Add("ackseq", "5", uint8(0), false)
	methods := []model.AuthMethod{model.AuthCRC, model.AuthMD5, model.AuthSHA1, model.AuthSHA256, model.AuthXChaCha20}
	f.Fuzz(func(t *testing.T, name, value string, method uint8, twice bool) {
		a, b := two(t, methods[int(method)%len(methods)])
		var packets [][]byte
		now := epoch
		for range 2 * ackEvery { // some beats and acknowledgments each way
			now = now.Add(10 * time.Millisecond)
			round(now, a, b, beat(), func(data []byte) { packets = append(packets, bytes.Clone(data)) })
		}
		for _, data := range packets {
			pkt, err := Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.auth.Verify(&pkt); err != nil {
				t.Fatal(err)
			}
			fields := append([]Field(nil), pkt.Fields...)
			for i := range fields {
				if fields[i].Name == name {
					fields[i].Value = value
				}
			}
			if twice && ValidField(name) {
				fields = append(fields, Field{Name: name, Value: value})
			}
			changed := b.auth.Seal(nil, Netstring, fields, twice, 1)
			p, fast := b.again(changed)
			if p == nil {
				continue
			}
			pkt, err = Parse(changed)
			if err != nil {
				t.Fatalf("%q is no packet (%v), and was read", changed, err)
			}
			index, err := b.auth.Verify(&pkt)
			if err != nil {
				t.Fatalf("%q is not authentic (%v), and was read", changed, err)
			}
			slow := b.says(&pkt, index)
			if d := cmp.Diff(slow, fast, cmp.AllowUnexported(said{})); d != "" || !strings.EqualFold(pkt.Get("src"), string(p.name)) {
				t.Fatalf("read differently from %v (-parsed +compared):\n%s", p.name, d)
			}
			for i := len(value) % 41; i < len(changed); i += 41 { // and not at all with a bit wrong
				changed[i] ^= 1
				if p, _ := b.again(changed); p != nil {
					t.Fatalf("a forged packet was read: %q", changed)
				}
				changed[i] ^= 1
			}
		}
	})
}

// TestAgainIsUsed: nearly all of a quiet pair's packets are read by comparison.
func TestAgainIsUsed(t *testing.T) {
	for _, method := range []model.AuthMethod{model.AuthSHA1, model.AuthXChaCha20} {
		a, b := two(t, method)
		now, parsed, all := epoch, 0, 0
		for range 100 {
			now = now.Add(10 * time.Millisecond)
			round(now, a, b, beat(), func(data []byte) {
				all++
				p, _ := a.again(data)
				if q, _ := b.again(data); p == nil && q == nil {
					parsed++
				}
			})
		}
		if parsed > 12 || all < 200 {
			t.Errorf("%v: of %d packets %d had to be parsed", method, all, parsed)
		}
	}
}
