package messenger

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// TestHostilePeer: a node that has the key, and is broken or hostile, sends
// 2,000 messages of one kind within 0.2 s. None of it may cost this
// node more than the bounds below, in what it sends, writes, hands on and keeps.
func TestHostilePeer(t *testing.T) {
	const (
		packets = 2_000
		period  = 200 * time.Millisecond
	)
	type f = heartbeat.Field
	hex := func(n int) string { return strconv.FormatInt(int64(n), 16) }
	huge := strings.Repeat("x", 16_000)
	beat := func(seq int, more ...f) []f {
		return append([]f{{Name: "t", Value: "status"}, {Name: "st", Value: "active"}, {Name: "batuta", Value: "1"}, {Name: "ka", Value: "64"}, {Name: "hg", Value: "64"}, {Name: "seq", Value: hex(seq)}}, more...)
	}
	say := func(seq int, more ...f) []f {
		return append([]f{{Name: "t", Value: "x"}, {Name: "hg", Value: "64"}, {Name: "seq", Value: hex(seq)}}, more...)
	}
	control := func(typ string, more ...f) []f {
		return append([]f{{Name: "t", Value: typ}, {Name: "dest", Value: "b"}, {Name: "hg", Value: "64"}}, more...)
	}
	for _, c := range []struct {
		name   string
		packet func(i int) []f
	}{
		{"beats without end", func(i int) []f { return beat(i + 10) }},
		{"requests for all that was ever sent", func(int) []f {
			return control("NS_rexmit", f{Name: "firstseq", Value: "1"}, f{Name: "lastseq", Value: "4294967295"})
		}},
		{"requests for what is long gone", func(i int) []f {
			return control("NS_rexmit", f{Name: "firstseq", Value: strconv.Itoa(1 + i%100)}, f{Name: "lastseq", Value: "100"})
		}},
		{"refusals of what nobody asked for", func(i int) []f { return control("NS_nak_rexmit", f{Name: "firstseq", Value: hex(i)}) }},
		{"refusals with a novel", func(i int) []f {
			return control("NS_nak_rexmit", f{Name: "firstseq", Value: hex(i)}, f{Name: "info", Value: huge})
		}},
		{"acknowledgments", func(i int) []f { return control("NS_ackmsg", f{Name: "ackseq", Value: hex(i)}) }},
		{"every other number", func(i int) []f { return say(10 + 2*i) }},
		{"numbers that jump", func(i int) []f { return say(10 + 300*i) }},
		{"one number missing for ever", func(i int) []f { return say(12 + i) }},
		{"one number missing, large messages", func(i int) []f { return say(12+i, f{Name: "info", Value: huge}) }},
		{"a new life with each message", func(i int) []f {
			return append(beat(1)[:4:4], f{Name: "hg", Value: hex(100 + i)}, f{Name: "seq", Value: "1"})
		}},
		{"a word of 16,000 letters", func(i int) []f {
			return append(beat(1)[:4:4], f{Name: "hg", Value: hex(100 + i)}, f{Name: "seq", Value: "1"}, f{Name: "life", Value: huge})
		}},
		{"states that change", func(i int) []f {
			b := beat(10 + i)
			b[1].Value = []string{"up", "active"}[i%2]
			return b
		}},
		{"questions for the nodes", func(i int) []f {
			m := say(10 + i)
			m[0].Value = "reqnodes"
			return m
		}},
		{"answers with other nodes", func(i int) []f {
			m := say(10+i, f{Name: "nodelist", Value: huge})
			m[0].Value = "repnodes"
			return m
		}},
		{"names that nobody knows", func(i int) []f { return append(say(10+i), f{Name: "src", Value: fmt.Sprint("node", i, huge[:200])}) }},
		{"this node's own name", func(i int) []f {
			return append([]f{{Name: "t", Value: "status"}, {Name: "src", Value: "b"}}, beat(1_000_000 + i)[1:]...)
		}},
		{"a generation that was lost", func(i int) []f {
			return control("NS_batuta_gen", f{Name: "highest", Value: hex(200 + i)}, f{Name: "heard", Value: "1"})
		}},
		{"an ever changing kernel", func(i int) []f {
			return beat(10+i, f{Name: "cap", Value: "kr"}, f{Name: "boot", Value: fmt.Sprint(i)})
		}},
		{"as many fields as there can be", func(i int) []f {
			m := say(10 + i)
			for len(m) < 190 {
				m = append(m, f{Name: fmt.Sprint("field", len(m)), Value: huge[:100]})
			}
			return m
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthMD5, Secret: "x"}}}
			hb := conf("b")
			hb.Keys, hb.SuspectTime = key, time.Minute
			core, err := NewCore(heartbeat.Config{Heartbeat: hb, Generation: 100, Rand: rand.New(rand.NewPCG(1, 1))})
			if err != nil {
				t.Fatal(err)
			}
			auth, err := heartbeat.NewAuthenticator(key)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Unix(1_795_000_000, 0)
			var cost struct{ sent, bytes, notes, noted, events, stored, renewed int }
			take := func(o Output) {
				cost.sent += len(o.Datagrams)
				for _, d := range o.Datagrams {
					cost.bytes += len(d)
				}
				for _, e := range o.Notes {
					cost.notes++
					cost.noted += len(e.Text) + len(e.Subject)
				}
				cost.events += len(o.Events)
				cost.stored += len(o.Heard)
				if o.Renewed != 0 {
					cost.renewed++
				}
			}
			take(core.Start(now))
			packet := func(fields []f) []byte {
				fields = append(fields, f{Name: "src", Value: "a"}, f{Name: "ts", Value: "6b03042a"})
				return auth.Seal(nil, heartbeat.Netstring, fields, false, 1)
			}
			take(core.Receive(now, "eth1", packet(beat(1)), now))
			take(core.Receive(now, "eth1", packet(beat(2)), now))
			for range 700 { // so that there is something to ask for, and something that is gone
				take(core.Send(now, model.Message{Type: "x"}))
			}
			cost.sent, cost.bytes, cost.notes, cost.noted, cost.events, cost.stored = 0, 0, 0, 0, 0, 0
			first, n := packet(c.packet(0)), packets
			if len(first) > 8000 {
				n /= 8 // they take long to make
			}
			before := heap()
			for i := range n {
				now = now.Add(period / time.Duration(n))
				data := first
				if i > 0 {
					data = packet(c.packet(i))
				}
				take(core.Receive(now, "eth1", data, now))
				for next := core.Next(); !next.IsZero() && !now.Before(next); next = core.Next() {
					take(core.Tick(now))
				}
			}
			kept := heap() - before
			// A node may send 2000 new messages a second, 500 at once, and 1000
			// of delivery; each has one answer at most, and 1000 requests a
			// second for what is missing come on top.
			if most := 2_000; cost.sent > most {
				t.Errorf("%d packets were sent, want no more than %d", cost.sent, most)
			}
			if most := 1 << 20; cost.bytes > most {
				t.Errorf("%d bytes were sent, want no more than %d", cost.bytes, most)
			}
			if most := 250; cost.notes > most || cost.noted > most*(longestNote+longestNoteOn) {
				t.Errorf("%d notes of %d bytes were written, want no more than %d", cost.notes, cost.noted, most)
			}
			if most := 1_000; cost.events > most || cost.stored > most {
				t.Errorf("%d events and %d floors, want no more than %d", cost.events, cost.stored, most)
			}
			if cost.renewed > 1 {
				t.Errorf("%d new lives", cost.renewed)
			}
			if most := int64(3 << 20); kept > most {
				t.Errorf("%d bytes are kept, want no more than %d", kept, most)
			}
			t.Logf("%d packets: %+v, kept %d bytes, %+v", n, cost, kept, core.Counters())
			runtime.KeepAlive(core)
		})
	}
}

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
