package sla

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// machine is one node of a simulated cluster, with its own life.
type machine struct {
	failed  bool
	waiting bool // for a crew
	role    bool // carries load
	until   float64
}

// simulate lives through a cluster node by node, as somebody who has never
// heard of Markov chains would write it, and returns the share of time without
// service and the capacity-weighted one.
func simulate(c Cluster, rng *rand.Rand, years float64) (unavailable, missing float64) {
	exp := func(mean float64) float64 { return rng.ExpFloat64() * mean }
	mtbf, mttr := float64(c.MTBF), float64(c.MTTR)
	all := c.Active + c.Spares
	nodes := make([]*machine, all)
	never := math.Inf(1)
	life := func(m *machine) float64 {
		rate := (1 - c.Beta) / mtbf
		if !m.role {
			rate *= c.Standby
		}
		if rate == 0 {
			return never
		}
		return exp(1 / rate)
	}
	now, end := 0.0, years*float64(Year)
	for i := range nodes {
		nodes[i] = &machine{role: i < c.Active}
		nodes[i].until = life(nodes[i])
	}
	shock := never
	if c.Beta > 0 {
		shock = exp(mtbf / c.Beta)
	}
	switchAt := never // a takeover is under way
	unnoticed := false
	working := func() (n int) {
		for _, m := range nodes {
			if !m.failed {
				n++
			}
		}
		return n
	}
	carrying := func() (n int) {
		for _, m := range nodes {
			if !m.failed && m.role {
				n++
			}
		}
		return n
	}
	// assign gives roles to the nodes that should have them: all that are
	// needed, or one fewer during a takeover.
	assign := func() {
		want := min(c.Active, working())
		if switchAt < never {
			want--
		}
		have := carrying()
		for _, m := range nodes {
			if !m.failed && m.role && have > want {
				m.role, m.until = false, now
				m.until = now + life(m)
				have--
			}
		}
		for _, m := range nodes {
			if !m.failed && !m.role && have < want {
				m.role = true
				m.until = now + life(m)
				have++
			}
		}
	}
	crews := func() {
		busy := 0
		for _, m := range nodes {
			if m.failed && !m.waiting {
				busy++
			}
		}
		for _, m := range nodes {
			if m.failed && m.waiting && busy < c.Crews {
				m.waiting, m.until = false, now+exp(mttr)
				busy++
			}
		}
	}
	fail := func(m *machine) {
		had := m.role
		m.failed, m.waiting, m.role, m.until = true, true, false, never
		left := working()
		switch {
		case left == 0:
			switchAt, unnoticed = never, false
		case had && !unnoticed:
			if rng.Float64() >= c.Coverage {
				unnoticed, switchAt = true, never
			} else if left >= c.Active && c.Failover > 0 && switchAt == never {
				switchAt = now + exp(float64(c.Failover))
			}
		}
	}
	for now < end {
		next := math.Min(shock, switchAt)
		for _, m := range nodes {
			next = math.Min(next, m.until)
		}
		next = math.Min(next, end)
		capacity := 0
		if !unnoticed {
			capacity = carrying()
		}
		if capacity < c.Required {
			unavailable += next - now
		}
		missing += (next - now) * (1 - float64(capacity)/float64(c.Active))
		now = next
		switch {
		case now == shock:
			for _, m := range nodes {
				if !m.failed {
					m.failed, m.waiting, m.role, m.until = true, true, false, never
				}
			}
			switchAt, unnoticed = never, false
			shock = now + exp(mtbf/c.Beta)
		case now == switchAt:
			switchAt = never
		default:
			for _, m := range nodes {
				if m.until != now {
					continue
				}
				if m.failed {
					m.failed, m.role = false, false
					m.until = now + life(m)
					switchAt, unnoticed = never, false
				} else {
					fail(m)
				}
				break
			}
		}
		assign()
		crews()
	}
	return unavailable / end, missing / end
}

// TestAgainstSimulation compares each kind of cluster with its simulation: a
// mean of many lives, within five standard errors.
func TestAgainstSimulation(t *testing.T) {
	change := func(preset string, more func(*Cluster)) Cluster {
		c, err := Preset(preset, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.MTTR = 100 * Hour // failures often enough to be seen
		more(&c)
		return c
	}
	for name, c := range map[string]Cluster{
		"active-passive":              change("active-passive", func(*Cluster) {}),
		"active-passive, everything":  change("active-passive", func(c *Cluster) { c.Coverage, c.Failover, c.Beta, c.Standby = 0.8, 5*Hour, 0.1, 0.3 }),
		"active-passive, cold":        change("active-passive", func(c *Cluster) { c.Standby, c.Crews = 0, 2 }),
		"active-active, not covered":  change("active-active", func(c *Cluster) { c.Coverage, c.Crews = 0.5, 2 }),
		"n+1, failover":               change("n+1", func(c *Cluster) { c.Failover = 3 * Hour }),
		"n+m, everything":             change("n+m", func(c *Cluster) { c.Coverage, c.Failover, c.Beta, c.Standby, c.Crews = 0.9, Hour, 0.05, 0.5, 2 }),
		"three of five must be there": change("n+m", func(c *Cluster) { c.Active, c.Spares, c.Required = 4, 1, 3 }),
	} {
		t.Run(name, func(t *testing.T) {
			const lives, years = 60, 100
			seed := uint64(20261122)
			rng := rand.New(rand.NewPCG(seed, 1))
			var down, missing mean
			for range lives {
				u, m := simulate(c, rng, years)
				down.add(u)
				missing.add(m)
			}
			p, err := ClusterModel(name, c).Evaluate()
			if err != nil {
				t.Fatal(err)
			}
			down.check(t, fmt.Sprintf("seed %d: unavailability", seed), float64(p.Service))
			missing.check(t, fmt.Sprintf("seed %d: missing capacity", seed), float64(p.Capacity))
		})
	}
}

// mean is a sample mean with its standard error.
type mean struct{ n, sum, squares float64 }

func (m *mean) add(x float64) { m.n++; m.sum += x; m.squares += x * x }

func (m *mean) check(t *testing.T, what string, want float64) {
	t.Helper()
	got := m.sum / m.n
	deviation := math.Sqrt(math.Max(0, m.squares/m.n-got*got) / (m.n - 1))
	t.Logf("%s: simulated %.5g ± %.2g, computed %.5g", what, got, deviation, want)
	if math.Abs(got-want) > 5*deviation {
		t.Errorf("%s: simulated %.5g ± %.2g, computed %.5g", what, got, deviation, want)
	}
}
