package messenger

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// duet is two cores on a perfect wire without goroutines, so that the test
// decides which of them runs when.
type duet struct {
	t     *testing.T
	now   time.Time
	cores map[model.NodeName]*Core
	inbox map[model.NodeName][]packet // what each node's kernel has received
	died  []string
	heals []string
}

type packet struct {
	data []byte
	at   time.Time
}

func newDuet(t *testing.T, keepalive, deadtime time.Duration) *duet {
	t.Helper()
	d := &duet{t: t, now: time.Unix(1795359877, 0), cores: map[model.NodeName]*Core{}, inbox: map[model.NodeName][]packet{}}
	for i, n := range []model.NodeName{"a", "b"} {
		hb := conf(n)
		hb.Keepalive, hb.DeadTime, hb.WarnTime, hb.InitDead = keepalive, deadtime, deadtime/2, 10*deadtime
		c, err := NewCore(heartbeat.Config{Heartbeat: hb, Generation: uint32(i + 1), UUID: [16]byte{n[0]}, Rand: rand.New(rand.NewPCG(1, uint64(i)))})
		if err != nil {
			t.Fatal(err)
		}
		d.cores[n] = c
	}
	for n, c := range d.cores {
		d.take(n, c.Start(d.now))
	}
	d.run(6*time.Second, "a", "b")
	return d
}

func (d *duet) take(n model.NodeName, out Output) {
	for _, data := range out.Datagrams {
		for to := range d.cores {
			if to != n {
				d.inbox[to] = append(d.inbox[to], packet{bytes.Clone(data), d.now})
			}
		}
	}
	for _, e := range out.Events {
		switch e.Kind {
		case model.NodeDied:
			d.died = append(d.died, string(n)+" declared "+string(e.Node)+" dead")
		case model.PartitionHealed:
			d.heals = append(d.heals, string(n)+": healed "+string(e.Node))
		default:
		}
	}
}

// run lets time pass in steps of a millisecond, in which only these nodes
// run: each reads its packets, then looks at its timer, as Loop does.
func (d *duet) run(span time.Duration, nodes ...model.NodeName) {
	for end := d.now.Add(span); d.now.Before(end); d.now = d.now.Add(time.Millisecond) {
		for _, n := range nodes {
			c := d.cores[n]
			in := d.inbox[n]
			d.inbox[n] = nil
			for _, p := range in {
				d.take(n, c.Receive(d.now, "eth0", p.data, p.at))
			}
			if !d.now.Before(c.Next()) {
				d.take(n, c.Tick(d.now))
			}
		}
	}
}

// A node that was paused finds its peer alive, however long it was away, and
// whether its kernel went on receiving (a stopped process) or not (a paused
// machine).
func TestOwnPauseAccusesNobody(t *testing.T) {
	for _, pause := range []time.Duration{30, 110, 210, 260, 1010, 60010} {
		for _, kernel := range []string{"receives", "stands still", "overflows"} {
			d := newDuet(t, 50*time.Millisecond, 250*time.Millisecond)
			d.run(pause*time.Millisecond, "b")
			switch kernel {
			case "stands still":
				d.inbox["a"] = nil
			case "overflows": // only the oldest packets fit in
				d.inbox["a"] = d.inbox["a"][:min(len(d.inbox["a"]), 3)]
			}
			d.run(2*time.Second, "b", "a")
			for _, death := range d.died {
				if death == "a declared b dead" {
					t.Errorf("after a pause of %d ms (kernel %s) %s", pause, kernel, death)
				}
			}
			// Whoever was declared dead is told so, and each side knows once.
			want := []string(nil)
			if len(d.died) > 0 {
				want = []string{"b: healed a", "a: healed b"}
			}
			if diff := cmp.Diff(want, d.heals); diff != "" || pause < 150 && len(d.died) > 0 || pause > 250 && len(d.died) == 0 {
				t.Errorf("after a pause of %d ms (kernel %s): deaths %q, healed (-want +got):\n%s", pause, kernel, d.died, diff)
			}
		}
	}
}

// A pause does not make a node blind either: a peer that died meanwhile is
// found dead, at most a dead time after waking up.
func TestDeathDuringOwnPause(t *testing.T) {
	d := newDuet(t, 50*time.Millisecond, 250*time.Millisecond)
	d.run(100 * time.Millisecond) // both stop; only a comes back
	d.run(255*time.Millisecond, "a")
	if len(d.died) != 1 {
		t.Errorf("deaths: %q", d.died)
	}
}

// TestTurnTakesNoMemory: a beat of each of two nodes that know each other,
// with what the other makes of it.
func TestTurnTakesNoMemory(t *testing.T) {
	d := newDuet(t, 10*time.Millisecond, 100*time.Millisecond)
	a, b := d.cores["a"], d.cores["b"]
	link := "eth0"
	turn := func() {
		for range 10 {
			d.now = d.now.Add(10 * time.Millisecond)
			for range 2 {
				for _, data := range a.Tick(d.now).Datagrams {
					for _, answer := range b.Receive(d.now, link, data, d.now).Datagrams {
						a.Receive(d.now, link, answer, d.now)
					}
				}
				a, b = b, a
			}
		}
	}
	for range 100 { // each place for a packet that is kept has been used
		turn()
	}
	before := a.Counters()
	if allocs := testing.AllocsPerRun(100, turn); allocs != 0 {
		t.Errorf("ten turns took memory %.0f times", allocs)
	}
	if after := a.Counters(); after.Sent-before.Sent < 1000 || after.Received-before.Received < 1000 || after.Bad+after.Lost != 0 {
		t.Errorf("the turns were not what they should be: %+v", after)
	}
}
