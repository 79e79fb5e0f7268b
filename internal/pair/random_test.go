package pair

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestRandomInterleavings lets two nodes live through random faults and
// wishes on a lossy, reordering network, then ends all faults. In the end each
// set must be owned and run by exactly one node, and both must say the same.
func TestRandomInterleavings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.Bool().Draw(t, "failback"))
		// The protocol of the original promises less: no split, nothing lost.
		original := rapid.Bool().Draw(t, "original protocol")
		if w.real = [2]bool{original, original}; !original {
			w.loss = rapid.SampledFrom([]float64{0, 0.05, 0.3}).Draw(t, "loss")
		}
		w.rng = rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		split := w.loss > 0 // only then may a node be taken for dead that is not
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			m := w.nodes[rapid.IntRange(0, 1).Draw(t, "node")]
			what := rapid.SampledFrom([]string{"start", "start", "start", "stop", "kill", "reboot", "bounce", "cut", "join", "standby", "takeover", "badstart", "goodstart"}).Draw(t, "what")
			set := Set(rapid.IntRange(1, 3).Draw(t, "set"))
			w.say("--- %s %s %v", what, m.name, set)
			switch what {
			case "start":
				if m.core == nil {
					m.running = None // a machine that has booted
				}
				m.start()
			case "stop":
				m.step(Stop{})
			case "kill":
				m.kill()
			case "reboot":
				m.kill()
				m.start()
			case "bounce":
				if m.core != nil {
					m.end()
					m.start()
				}
			case "cut", "join":
				if original {
					continue
				}
				w.cut[m.index] = what == "cut"
				split = true
			case "standby":
				m.step(Standby{set})
			case "takeover":
				m.step(Takeover{set})
			case "badstart":
				m.badStart |= set
			case "goodstart":
				m.badStart = None
			}
			w.run(time.Duration(rapid.SampledFrom([]int{1, 10, 100, 150, 500, 2000, 20000}).Draw(t, "ms")) * time.Millisecond)
		}
		w.say("--- all faults end")
		w.cut, w.loss = [2]bool{}, 0
		for _, m := range w.nodes {
			m.badStart = None
		}
		w.run(5 * time.Second)
		for _, m := range w.nodes {
			if m.core != nil && m.core.state == stateShutdown {
				w.run(5 * time.Second)
			}
			if m.core == nil {
				m.running = None
				m.start()
			}
		}
		w.run(2 * time.Minute)
		if !split && w.double != [2]time.Duration{} {
			t.Fatalf("a set ran twice although nothing was ever cut: %v\n%s%s", w.double, w.state(), w.log.String())
		}
		w.double = [2]time.Duration{}
		w.run(10 * time.Second)
		if err := w.settled(); err != nil {
			t.Fatalf("%v\n%s%s", err, w.state(), w.log.String())
		}
	})
}

func (w *world) settled() error {
	a, b := w.nodes[0], w.nodes[1]
	for _, m := range w.nodes {
		switch {
		case m.core == nil:
			return fmt.Errorf("%s is down", m.name)
		case !m.core.Stable():
			return fmt.Errorf("%s has not settled: %v", m.name, m.core)
		case m.core.failed == None && m.core.Hold() != m.running:
			return fmt.Errorf("%s holds %v and runs %v", m.name, m.core.Hold(), m.running)
		}
	}
	switch {
	case a.core.Hold()&b.core.Hold().Mirror() != None:
		return fmt.Errorf("a set is held by both")
	case a.core.Hold()|b.core.Hold().Mirror() != All:
		return fmt.Errorf("a set is held by nobody")
	case a.core.Other() != b.core.Hold().Mirror() || b.core.Other() != a.core.Hold().Mirror():
		return fmt.Errorf("the two do not agree")
	case w.double != [2]time.Duration{}:
		return fmt.Errorf("a set ran twice after everything had settled")
	}
	return nil
}
