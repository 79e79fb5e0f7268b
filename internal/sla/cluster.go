package sla

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// MostNodes bounds a cluster: the effort grows with the third power.
const MostNodes = 64

// Cluster is a set of equal nodes that fail, are repaired and stand in for
// each other. A single node is a cluster of one.
//
// Failures and repairs have no memory (exponential times). A failed node is
// repaired by one crew; a crew repairs one node at a time.
type Cluster struct {
	Active   int  // nodes that carry the load when all is well
	Spares   int  // nodes that wait to take over
	Required int  // nodes that must carry for the service to be up; 1 … Active
	MTBF     Span // mean operating time between failures of a carrying node
	MTTR     Span // mean time from a node's failure until it is back
	Crews    int  // nodes that can be under repair at once

	// Coverage is the probability that the failure of a carrying node is
	// noticed and handled. One that is not stops the whole service until a node
	// has been repaired.
	Coverage float64

	// Failover is the mean time for a spare to take over. Meanwhile the failed
	// node's share is not carried. Failures in the meantime are taken over
	// together with the first; a node that comes back from repair takes its
	// place at once.
	Failover Span

	Standby float64 // failure rate of a spare relative to a carrying node: 0 cold, 1 hot
	Beta    float64 // share of failures that hit all nodes at once (beta-factor model)
}

// One is a single node.
func One(mtbf, mttr Span) Cluster {
	return Cluster{Active: 1, Required: 1, MTBF: mtbf, MTTR: mttr, Crews: 1, Coverage: 1, Standby: 1}
}

// Presets are the names that Preset knows.
var Presets = []string{"active-passive", "active-active", "n+1", "n+m"}

// Preset is a usual kind of cluster: of MTBF 1000 h, MTTR 10 h, one crew,
// perfect coverage and immediate failover, to be changed by the caller.
// Zero nodes or spares mean the usual number. The error says what does not
// go with the kind.
func Preset(name string, nodes, spares int) (Cluster, error) {
	usual := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	c := One(1000*Hour, 10*Hour)
	switch name {
	case "active-passive":
		// Two nodes of a pair: one of them is the spare.
		if nodes > 1 && spares == 0 {
			nodes, spares = 1, nodes-1
		}
		usual(&nodes, 1)
		usual(&spares, 1)
		if nodes != 1 {
			return c, errors.New("active-passive has one node that carries the load; for more use n+1 or n+m")
		}
		c.Required = 1
	case "active-active":
		usual(&nodes, 2)
		if spares != 0 {
			return c, errors.New("in active-active every node carries load; for spares use n+1 or n+m")
		}
		c.Required = 1
	case "n+1":
		usual(&nodes, 3)
		usual(&spares, 1)
		if spares != 1 {
			return c, errors.New("n+1 has one spare; for more use n+m")
		}
		c.Required = nodes
	case "n+m":
		usual(&nodes, 3)
		usual(&spares, 2)
		c.Required = nodes
	default:
		return c, fmt.Errorf("no preset %q: %s", name, strings.Join(Presets, ", "))
	}
	c.Active, c.Spares = nodes, spares
	return c, nil
}

// Check finds everything that is impossible, with the name of the setting.
func (c Cluster) Check() []error {
	var bad []error
	need := func(ok bool, text string, args ...any) {
		if !ok {
			bad = append(bad, fmt.Errorf(text, args...))
		}
	}
	need(c.Active >= 1 && c.Spares >= 0 && c.Active+c.Spares <= MostNodes, "nodes and spares: %d and %d are not at least 1 and 0, and %d together at most", c.Active, c.Spares, MostNodes)
	need(c.Required >= 1 && c.Required <= c.Active, "required: %d is not 1 to the number of nodes that carry the load", c.Required)
	need(c.MTBF > 0 && c.MTBF <= longest, "mtbf: must be more than zero")
	need(c.MTTR > 0 && c.MTTR <= longest, "mttr: must be more than zero")
	need(c.Crews >= 1, "crews: somebody must repair: at least 1")
	need(c.Coverage >= 0 && c.Coverage <= 1, "coverage: %g is no probability: 0 to 1", c.Coverage)
	need(c.Failover >= 0 && c.Failover <= longest, "failover: must not be negative")
	need(c.Standby >= 0 && c.Standby <= 1, "standby: %g is not 0 (cold) to 1 (hot)", c.Standby)
	need(c.Beta >= 0 && c.Beta <= 1, "beta: %g is no share: 0 to 1", c.Beta)
	return bad
}

// longest keeps arithmetic away from infinity.
const longest = 1e12 * Year

// situation is a state of a cluster: how many nodes have failed, and what is
// going on besides repairs.
type situation struct {
	failed int
	phase  phase
}

type phase uint8

const (
	settled   phase = iota
	switching       // a spare takes over
	uncovered       // a failure was not handled: nothing works
)

// Chain is the Markov chain of the cluster.
func (c Cluster) Chain() (*Chain, error) {
	if err := errors.Join(c.Check()...); err != nil {
		return nil, err
	}
	return c.build(), nil
}

// build finds the situations that can be reached from the beginning.
func (c Cluster) build() *Chain {
	index := map[situation]int{}
	var order []situation
	visit := func(s situation) int {
		i, ok := index[s]
		if !ok {
			i = len(order)
			index[s] = i
			order = append(order, s)
		}
		return i
	}
	type arrow struct {
		from, to int
		rate     float64
	}
	var arrows []arrow
	visit(situation{})
	for from := 0; from < len(order); from++ {
		c.leave(order[from], func(to situation, rate float64) {
			if rate > 0 {
				arrows = append(arrows, arrow{from, visit(to), rate})
			}
		})
	}
	states := make([]ChainState, len(order))
	for i, s := range order {
		states[i] = c.state(s)
	}
	chain := NewChain(states)
	for _, a := range arrows {
		chain.Rate[a.from][a.to] += a.rate
	}
	return chain
}

// leave calls to for each thing that can happen next.
func (c Cluster) leave(s situation, to func(situation, float64)) {
	all := c.Active + c.Spares
	working := all - s.failed
	carrying := min(c.Active, working)
	if s.phase == switching {
		carrying--
	}
	fails := (1 - c.Beta) / float64(c.MTBF)

	// after is where one failure more leads, if it is noticed.
	after := func(p phase) situation {
		if working == 1 {
			p = settled // nobody is left to take over
		}
		return situation{s.failed + 1, p}
	}
	calm := s.phase
	if s.phase == settled && working-1 >= c.Active && c.Failover > 0 {
		calm = switching
	}
	covered := c.Coverage
	if working == 1 || s.phase == uncovered {
		covered = 1
	}
	to(after(calm), float64(carrying)*fails*covered)
	to(after(uncovered), float64(carrying)*fails*(1-covered))
	to(after(s.phase), float64(working-carrying)*fails*c.Standby)
	if working > 0 {
		to(situation{all, settled}, c.Beta/float64(c.MTBF))
	}
	if s.failed > 0 {
		to(situation{s.failed - 1, settled}, float64(min(s.failed, c.Crews))/float64(c.MTTR))
	}
	if s.phase == switching {
		to(situation{s.failed, settled}, 1/float64(c.Failover))
	}
}

// state is what a situation means to the service.
func (c Cluster) state(s situation) ChainState {
	carrying := min(c.Active, c.Active+c.Spares-s.failed)
	name := fmt.Sprintf("%d failed", s.failed)
	switch s.phase {
	case switching:
		carrying--
		name += ", switching"
	case uncovered:
		carrying = 0
		name += ", not noticed"
	default:
	}
	return ChainState{
		Name:     name,
		Up:       carrying >= c.Required,
		Capacity: float64(carrying) / float64(c.Active),
	}
}

// unrepaired is the chain of the cluster when nobody ever repairs. It has no
// steady state.
func (c Cluster) unrepaired() *Chain {
	c.MTTR = Span(math.Inf(1))
	return c.build()
}
