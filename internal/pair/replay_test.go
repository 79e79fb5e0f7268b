package pair

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/story"
)

// TestReplay puts our core in the place of each node of a real Heartbeat pair:
// it gets what the other real node sent, when it sent it, and what the
// operator wished. What it sends is compared with what the real node sent:
//
//	both        - Heartbeat only        + Batuta only
//
// Every difference is deliberate, and explained at the head of its file in
// testdata/replay.
func TestReplay(t *testing.T) {
	files, err := filepath.Glob("testdata/captures/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no captures", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		lines := readCapture(t, file)
		for _, node := range []model.NodeName{"hb-a", "hb-b"} {
			t.Run(name+"/"+string(node), func(t *testing.T) {
				golden := filepath.Join("testdata/replay", name+"."+string(node)+".txt")
				b, _ := os.ReadFile(golden) // for its comments
				r := replay{lines: lines, node: node, failback: !strings.Contains(name, "failback-off") && !strings.Contains(name, "standby") &&
					!strings.Contains(name, "partition") && !strings.Contains(name, "quick") && !strings.Contains(name, "loss")}
				got := comments(string(b)) + strings.Join(r.run(), "\n") + "\n"
				story.Golden(t, golden, got)
			})
		}
	}
}

// comments are the lines at the head of a golden file, which stay.
func comments(s string) string {
	var head strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		head.WriteString(line)
	}
	return head.String()
}

// line is one line of a capture.
type line struct {
	at   time.Duration
	node model.NodeName // "input": what is not on the wire
	life string
	msg  model.Message
}

func readCapture(t *testing.T, file string) (lines []line) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) == 0 || w[0] == "#" {
			continue
		}
		secs, err := strconv.ParseFloat(w[0], 64)
		if err != nil || len(w) < 4 {
			t.Fatalf("%s: bad line %q", file, s.Text())
		}
		l := line{at: time.Duration(secs * float64(time.Second)), node: model.NodeName(w[1]), life: w[2]}
		l.msg = model.Message{Type: w[3], From: l.node}
		for _, field := range w[4:] {
			name, value, _ := strings.Cut(field, "=")
			l.msg.Fields = append(l.msg.Fields, model.Field{Name: name, Value: value})
		}
		lines = append(lines, l)
	}
	return lines
}

// replay is our core in the place of one node.
type replay struct {
	lines    []line
	node     model.NodeName
	failback bool

	core       *Core
	now        time.Duration
	work       []finish
	peerLife   string
	peerAlive  bool
	real, ours []string
}

type finish struct {
	at time.Duration
	Finished
}

// scriptTime is how long our resources take to start or stop.
const scriptTime = 300 * time.Millisecond

var epoch = time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)

func (r *replay) run() []string {
	life := ""
	for i, l := range r.lines {
		r.until(l.at)
		switch {
		case l.node == "input":
			if string(r.node) == l.life {
				kind := model.NodeDied
				if l.msg.Type == "healed" {
					kind = model.PartitionHealed
				}
				r.peerAlive = kind == model.PartitionHealed
				r.tell(kind, model.Message{})
			}
		case l.node != r.node:
			r.hear(l)
		default:
			if l.life != life {
				life = l.life
				r.core = New(Config{Self: r.node, Peer: r.peer(), First: r.node == "hb-a", Failback: r.failback, LocalResources: 1, ForeignResources: 1})
				r.work = nil
				if r.peerAlive {
					r.tell(model.NodeJoined, model.Message{})
				}
			}
			r.own(l, i)
		}
	}
	r.until(r.now + 5*time.Second)
	return differences(r.real, r.ours)
}

func (r *replay) peer() model.NodeName {
	if r.node == "hb-a" {
		return "hb-b"
	}
	return "hb-a"
}

// hear takes what the other node sent.
func (r *replay) hear(l line) {
	if l.msg.Type == "status" {
		switch {
		case l.life == r.peerLife:
		case r.peerAlive:
			r.tell(model.NodeRestarted, model.Message{})
		default:
			r.peerAlive = true
			r.tell(model.NodeJoined, model.Message{})
		}
		r.peerLife, r.peerAlive = l.life, true
		return
	}
	r.tell(model.MessageReceived, l.msg)
}

// own takes what the real node did: what it noticed, and what its operator wished, are
// our inputs, too; what it sent is what we are compared with.
func (r *replay) own(l line, at int) {
	switch {
	case l.msg.Type == "status" && l.msg.Get("st") == "active":
		r.tell(model.CommunicationUp, model.Message{})
	case l.msg.Type == "stonith" && l.msg.Get("result") == "n_stnth":
		if r.peerAlive {
			r.peerAlive = false
			r.tell(model.NodeDied, model.Message{})
		}
	case l.msg.Get("info") == "shutdown":
		r.step(Stop{})
	case l.msg.Type == "hb_takeover":
		s, _ := ParseSet(l.msg.Get("rsc_hold"))
		r.step(Takeover{s})
	case l.msg.Type == "ask_resources" && l.msg.Get("info") == "me" && !r.failback:
		if asked := r.lines[at-1]; asked.msg.Type != "hb_takeover" {
			s, _ := ParseSet(l.msg.Get("rsc_hold"))
			r.step(Standby{s})
		}
	}
	if l.msg.Type != "status" && l.msg.Type != "stonith" {
		r.real = append(r.real, gist(l.msg))
	}
}

// gist is what is compared of a message.
func gist(m model.Message) string {
	s := m.Type
	for _, f := range []string{"rsc_hold", "isstable", "info"} {
		if v, ok := m.Lookup(f); ok {
			s += " " + v
		}
	}
	return s
}

func (r *replay) tell(k model.ClusterEventKind, m model.Message) {
	state := model.NodeDead
	if r.peerAlive {
		state = model.NodeActive
	}
	r.step(Cluster{model.ClusterEvent{At: epoch.Add(r.now), Kind: k, Node: r.peer(), Message: m, View: model.View{
		Self: r.node, Nodes: []model.NodeView{{Name: r.peer(), State: state}}}}})
}

func (r *replay) step(in Input) {
	if r.core == nil {
		return
	}
	for _, e := range r.core.Step(epoch.Add(r.now), in) {
		begin := r.now
		if n := len(r.work); n > 0 {
			begin = r.work[n-1].at
		}
		switch e := e.(type) {
		case Send:
			r.ours = append(r.ours, gist(e.Message))
		case Acquire:
			r.work = append(r.work, finish{begin + scriptTime, Finished{Op: e.Op}})
		case Release:
			r.work = append(r.work, finish{begin + scriptTime, Finished{Op: e.Op}})
		case Stopped:
			r.core = nil
			return
		}
	}
}

// until lets time pass.
func (r *replay) until(end time.Duration) {
	for r.core != nil {
		next, finished := end, false
		if at := r.core.Next(); !at.IsZero() {
			next = min(next, at.Sub(epoch))
		}
		if len(r.work) > 0 && r.work[0].at <= next {
			next, finished = r.work[0].at, true
		}
		r.now = next
		switch {
		case finished:
			f := r.work[0].Finished
			r.work = r.work[1:]
			r.step(f)
		case next < end:
			r.step(Tick{})
		default:
			return
		}
	}
	r.now = end
}

// differences is the shortest edit from real to ours, marked line by line.
func differences(real, ours []string) (out []string) {
	long := make([][]int, len(real)+1)
	for i := range long {
		long[i] = make([]int, len(ours)+1)
	}
	for i := range slices.Backward(real) {
		for j := range slices.Backward(ours) {
			if real[i] == ours[j] {
				long[i][j] = long[i+1][j+1] + 1
			} else {
				long[i][j] = max(long[i+1][j], long[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(real) || j < len(ours) {
		switch {
		case i < len(real) && j < len(ours) && real[i] == ours[j]:
			out = append(out, "  "+real[i])
			i, j = i+1, j+1
		case j == len(ours) || i < len(real) && long[i+1][j] >= long[i][j+1]:
			out = append(out, "- "+real[i])
			i++
		default:
			out = append(out, "+ "+ours[j])
			j++
		}
	}
	if len(out) == 0 {
		out = []string{fmt.Sprintf("(nothing: %d and %d messages)", len(real), len(ours))}
	}
	return out
}
