package heartbeat

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/story"
)

func TestStories(t *testing.T) {
	story.Play(t, "testdata/story-*.txt", func(t *testing.T) func(string) string { return newStage(t).do })
}

// stage is two nodes, a and b, with a wire between them that holds every
// packet until the script delivers or drops it.
//
//	boot a [gen=N] [text] [batuta] a new life of a node; its peer is told nothing
//	running                      start-up is over on both
//	beat a [up|active] [dt=MS]   a sends a status message
//	say a WORD [to=b]            a sends the reliable message WORD
//	flood a N                    a sends N messages that are all lost
//	key a index=N                a signs with that key
//	deliver [N] [from=a]         the oldest N packets (default all) arrive, each once
//	twice                        the oldest packet arrives, and stays on the wire
//	swap                         the two newest packets change places
//	drop [N] [from=a]            the oldest N packets (default 1) are lost
//	tick 3s                      time passes, each deadline on the way is met
//	late 3s                      time passes, a and b do not run meanwhile
//	forge                        the oldest packet arrives with its signature changed, and stays
//	counters a
type stage struct {
	t     testing.TB
	now   time.Time
	start time.Time
	nodes map[string]*Core
	gen   map[string]uint32
	old   map[string]bool // does not announce Batuta
	wire  []carried
}

type carried struct {
	from string
	data []byte
}

func testConfig(self, other string, gen uint32) Config {
	return Config{
		Heartbeat: model.Heartbeat{Self: model.NodeName(self), Nodes: []model.NodeName{model.NodeName(self), model.NodeName(other)},
			Keys:      model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthMD5, Secret: "123456"}, 2: {Method: model.AuthSHA1, Secret: "next"}}},
			Keepalive: time.Second, WarnTime: 3 * time.Second, DeadTime: 5 * time.Second, InitDead: 8 * time.Second,
			MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1, InnerAuth: true, LogBadPackets: true},
		Generation: gen, UUID: [16]byte{self[0]}, Rand: rand.New(rand.NewPCG(uint64(gen), uint64(self[0]))),
	}
}

func newStage(t testing.TB) *stage {
	s := &stage{t: t, now: epoch, nodes: map[string]*Core{}, gen: map[string]uint32{}, old: map[string]bool{}}
	s.start = s.now
	for _, n := range []string{"a", "b"} {
		s.boot(n, 100)
	}
	return s
}

func other(n string) string { return map[string]string{"a": "b", "b": "a"}[n] }

func (s *stage) boot(n string, gen uint32) {
	c, err := New(testConfig(n, other(n), gen))
	if err != nil {
		s.t.Fatal(err)
	}
	s.nodes[n], s.gen[n] = c, gen
	c.Step(s.now, Start{})
}

func (s *stage) do(command string) string {
	words := strings.Fields(command)
	arg := func(name string) string {
		for _, w := range words {
			if v, ok := strings.CutPrefix(w, name+"="); ok {
				return v
			}
		}
		return ""
	}
	has := func(w string) bool { return strings.Contains(" "+command+" ", " "+w+" ") }
	number := func(text string, otherwise int) int {
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
		return otherwise
	}
	node := ""
	if len(words) > 1 {
		node = words[1]
	}
	switch words[0] {
	case "boot":
		s.boot(node, uint32(number(arg("gen"), int(s.gen[node])+1)))
		s.old[node] = !has("batuta")
		if has("text") {
			s.nodes[node].enc = Text
		}
		return ""
	case "running":
		return s.step("a", Running{}) + s.step("b", Running{})
	case "key":
		s.nodes[node].send = number(arg("index"), 1)
		return ""
	case "beat":
		st := "active"
		if has("up") {
			st = "up"
		}
		m := model.Message{Type: "status", Fields: []model.Field{{Name: "st", Value: st}, {Name: "dt", Value: hex32(uint32(number(arg("dt"), 5000)))}, {Name: "protocol", Value: "1"}}}
		if !s.old[node] {
			m.Fields = append(m.Fields, model.Field{Name: "batuta", Value: "1"})
		}
		return s.step(node, Submit{m})
	case "say":
		return s.step(node, Submit{model.Message{Type: words[2], To: model.NodeName(arg("to"))}})
	case "flood": // messages that nobody hears
		for range number(words[2], 0) {
			s.nodes[node].Step(s.now, Submit{model.Message{Type: "unheard"}})
		}
		return ""
	case "deliver", "drop":
		n := number(node, map[string]int{"deliver": 1 << 20, "drop": 1}[words[0]])
		return s.move(n, arg("from"), words[0] == "deliver")
	case "twice":
		return s.arrive(s.wire[0])
	case "swap":
		i := len(s.wire) - 1
		s.wire[i-1], s.wire[i] = s.wire[i], s.wire[i-1]
		return ""
	case "tick", "late":
		d, err := time.ParseDuration(node)
		if err != nil {
			s.t.Fatal(err)
		}
		return s.pass(d, words[0] == "late")
	case "forge":
		b := append([]byte(nil), s.wire[0].data...)
		b[len(b)-3] ^= 1
		return s.arrive(carried{s.wire[0].from, b})
	case "counters":
		return fmt.Sprintf("%s %+v\n", node, s.nodes[node].Counters())
	}
	s.t.Fatalf("unknown command %q", command)
	return ""
}

// pass lets time go by; unless the nodes are late, each of their deadlines is met on time.
func (s *stage) pass(d time.Duration, late bool) (out string) {
	end := s.now.Add(d)
	if late {
		from := s.now
		s.now = end
		return s.step("a", Excuse{From: from}) + s.step("b", Excuse{From: from})
	}
	for {
		next := end
		for _, n := range []string{"a", "b"} {
			if at := s.nodes[n].Next(); !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		if next.After(s.now) {
			s.now = next
		}
		if !next.Before(end) {
			s.now = end
			return out
		}
		out += s.step("a", Tick{}) + s.step("b", Tick{})
	}
}

// move takes packets off the wire, oldest first.
func (s *stage) move(n int, from string, deliver bool) (out string) {
	var rest []carried
	wire := s.wire
	s.wire = nil
	for _, c := range wire {
		switch {
		case n == 0 || from != "" && from != c.from:
			rest = append(rest, c)
		case deliver:
			n--
			out += s.arrive(c)
		default:
			n--
			out += fmt.Sprintf("%s lost %s\n", s.stamp(), describe(c.data))
		}
	}
	s.wire = append(rest, s.wire...)
	return out
}

func (s *stage) arrive(c carried) string {
	return s.step(other(c.from), Datagram{Link: "eth1", Data: c.data, At: s.now})
}

func (s *stage) stamp() string { return fmt.Sprintf("%.3f", s.now.Sub(s.start).Seconds()) }

// step runs one input and tells what came of it.
func (s *stage) step(n string, in Input) (out string) {
	for _, e := range s.nodes[n].Step(s.now, in) {
		if _, ok := e.(Heard); ok {
			continue // see TestRecordingsAreRefused
		}
		out += s.stamp() + " " + n + " "
		switch e := e.(type) {
		case *Send:
			s.wire = append(s.wire, carried{n, e.Data})
			out += "sends " + describe(e.Data) + "\n"
		case Deliver:
			out += "delivers " + e.Message.String() + "\n"
		case *Sighted:
			out += "sees " + e.String() + "\n"
		case Note:
			out += e.Level.String() + ": " + e.Text + "\n"
		}
	}
	return out
}

// describe is a packet in a few words.
func describe(data []byte) string {
	p, err := Parse(data)
	if err != nil {
		return err.Error()
	}
	out := p.Get("t")
	if p.Encoding == Text {
		out = "text " + out
	}
	for _, name := range []string{"dest", "st", "hg", "seq", "ackseq", "firstseq", "lastseq", "info"} {
		if v, ok := p.Lookup(name); ok && (name != "hg" || p.Get("t") == "status") {
			out += " " + name + "=" + v
		}
	}
	if index, _, _ := ParseAuth(p.Auth()); index != 1 {
		out += fmt.Sprintf(" key=%d", index)
	}
	return out
}
