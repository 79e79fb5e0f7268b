package member

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/story"
)

func TestStories(t *testing.T) {
	story.Play(t, "testdata/*.txt", func(t *testing.T) func(string) string {
		s := &stage{t: t, now: time.Unix(1795359877, 0)}
		s.start = s.now
		return s.do
	})
}

// stage is one node, and what others do as the script says.
//
//	node a of a b c               the node and its cluster; keepalive 1s, deadtime 5s
//	start
//	see b joined|beat|restarted|returned STATE [gen=N]
//	see b silent|suspect|link-up|link-down [IF]
//	hear b TYPE [FIELD=VALUE...]  a message comes in ("_" in a value is a space)
//	tick 3s                       time passes; own beats are counted, not listed
//	view
type stage struct {
	t     *testing.T
	now   time.Time
	start time.Time
	core  *Core
}

func (s *stage) do(command string) string {
	w := strings.Fields(command)
	switch w[0] {
	case "node":
		hb := model.Heartbeat{Self: model.NodeName(w[1]), Keepalive: time.Second, DeadTime: 5 * time.Second,
			Flaps: 3, FlapWindow: 10 * time.Minute, FlapHold: 5 * time.Minute}
		for _, n := range w[3:] {
			hb.Nodes = append(hb.Nodes, model.NodeName(n))
		}
		var err error
		if s.core, err = New(hb, 100); err != nil {
			s.t.Fatal(err)
		}
		return ""
	case "start":
		return s.step(Start{})
	case "see":
		return s.step(Sighting{s.sighting(w)})
	case "hear":
		m := model.Message{From: model.NodeName(w[1]), Type: w[2]}
		for _, f := range w[3:] {
			name, value, _ := strings.Cut(f, "=")
			m.Fields = append(m.Fields, model.Field{Name: name, Value: strings.ReplaceAll(value, "_", " ")})
		}
		return s.step(Received{m})
	case "tick":
		return s.tick(w[1])
	case "view":
		out := ""
		for _, n := range s.core.View().Nodes {
			out += fmt.Sprintf("%s %s gen=%d dead=%v batuta=%v", n.Name, n.State, n.Generation, time.Duration(n.DeadTime), n.Batuta)
			if n.Suspect {
				out += " suspect"
			}
			if s.now.Before(n.Quarantine) {
				out += fmt.Sprintf(" quarantine=%v", n.Quarantine.Sub(s.now))
			}
			for _, l := range n.Links {
				out += fmt.Sprintf(" %s:%v", l.Name, map[bool]string{true: "up", false: "down"}[l.Up])
			}
			out += "\n"
		}
		return out
	}
	s.t.Fatalf("unknown command %q", command)
	return ""
}

func (s *stage) sighting(w []string) model.Sighting {
	x := model.Sighting{Node: model.NodeName(w[1]), At: s.now, Batuta: true}
	for k := model.SightingBeat; k <= model.SightingSuspect; k++ {
		if k.String() == w[2] {
			x.Kind = k
		}
	}
	switch x.Kind {
	case model.SightingLinkUp, model.SightingLinkDown:
		x.Link = w[3]
	case model.SightingSilent, model.SightingSuspect:
	case model.SightingNone:
		s.t.Fatalf("unknown sighting %q", w[2])
	default:
		x.State, x.DeadTime, x.Generation = model.ParseNodeState(w[3]), 5*time.Second, 200
		if len(w) > 4 {
			n, err := strconv.Atoi(strings.TrimPrefix(w[4], "gen="))
			if err != nil {
				s.t.Fatal(err)
			}
			x.Generation = uint32(n)
		}
	}
	return x
}

func (s *stage) tick(text string) (out string) {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	beats := 0
	for end := s.now.Add(d); ; {
		next := s.core.Next()
		if next.After(end) {
			s.now = end
			break
		}
		s.now = next
		for line := range strings.Lines(s.step(Tick{})) {
			if strings.Contains(line, " sends status ") {
				beats++
			} else {
				out += line
			}
		}
	}
	return out + fmt.Sprintf("%.3f %d beats\n", s.now.Sub(s.start).Seconds(), beats)
}

func (s *stage) step(in Input) (out string) {
	for _, e := range s.core.Step(s.now, in) {
		out += fmt.Sprintf("%.3f ", s.now.Sub(s.start).Seconds())
		switch e := e.(type) {
		case *Submit:
			out += "sends " + strings.TrimPrefix(e.String(), string(e.From)+": ") + "\n"
		case Running:
			out += "start-up is over\n"
		case Event:
			out += "event " + describe(e.ClusterEvent) + "\n"
		case Note:
			out += e.Level.String() + ": " + e.Text + "\n"
		}
	}
	return out
}

func describe(e model.ClusterEvent) string {
	kind := map[model.ClusterEventKind]string{
		model.CommunicationUp: "communication-up", model.MessageReceived: "message", model.NodeDied: "died", model.NodeRestarted: "restarted",
		model.NodeJoined: "joined", model.PartitionHealed: "partition-healed", model.LinkChanged: "link",
	}[e.Kind]
	if e.Kind == model.MessageReceived {
		return kind + " " + e.Message.String()
	}
	return kind + " " + string(e.Node) + " (" + e.View.Find(e.Node).State.String() + ")"
}
