package sla

import (
	"errors"
	"fmt"
	"math"
)

// Kind is what a Block is.
type Kind uint8

// Kinds of blocks.
const (
	KindNone     Kind = iota
	KindCluster       // nodes that stand in for each other; a unit is a cluster of one
	KindChain         // a Markov chain written out
	KindSeries        // every part is needed
	KindParallel      // one part is enough
	KindKOfN          // so many of the parts are needed
)

var kindNames = [...]string{"none", "cluster", "chain", "series", "parallel", "k_of_n"}

func (k Kind) String() string { return kindNames[min(int(k), len(kindNames)-1)] }

// Block is a part of a system, and what it is made of. Parts fail
// independently of each other, but for common causes (Beta).
type Block struct {
	Kind    Kind
	Name    string
	Cluster Cluster  // of KindCluster
	Chain   *Chain   // of KindChain
	Parts   []*Block // of the others

	Count int // the one part, so many times; 0 = the parts are listed
	Need  int // of KindKOfN

	// Passive redundancy: the parts share the load, and a failure costs their
	// share of capacity. Otherwise those that are needed carry all of it
	// (active redundancy).
	Passive bool

	// Beta is the share of a repeated node's failures that hit all copies at
	// once; such a failure is repaired like one of a single copy.
	Beta float64
}

// Model is a system with what is expected of it.
type Model struct {
	Title  string
	Root   *Block
	Target *Unavailability // nil = none
	Class  Class           // ClassNone = none
}

// node is a block in the tree that is evaluated: copies and common causes
// are nodes of their own.
type node struct {
	block  *Block
	kind   Kind
	need   int
	shared bool // capacity is the sum of the parts' (Block.Passive)
	parts  []*node
	leaf   *leaf
}

// leaf is a solved chain.
type leaf struct {
	name   string
	chain  *Chain
	frozen *Chain // without repairs; nil for a chain that was written out
	levels []level
	down   float64 // unavailability
	often  float64 // failures a second
}

// level is a possible capacity of a block, with its probability.
type level struct {
	capacity float64
	up       bool
	p        float64
}

// solver turns blocks into nodes, and solves each distinct leaf once.
type solver struct {
	leaves map[*Block]*leaf
	order  []*leaf
	copies map[*leaf]int
	nodes  int
}

// mostParts bounds a model: its copies are evaluated one by one, and each
// against all others.
const mostParts = 500

func (s *solver) build(b *Block) (*node, error) {
	if s.nodes++; s.nodes > mostParts || b.Count > mostParts {
		return nil, fmt.Errorf("the model has more than %d parts, copies counted", mostParts)
	}
	switch b.Kind {
	case KindCluster, KindChain:
		l, err := s.solve(b)
		if err != nil {
			return nil, err
		}
		s.copies[l]++
		return &node{block: b, kind: b.Kind, leaf: l}, nil
	case KindSeries, KindParallel, KindKOfN:
	default:
		return nil, fmt.Errorf("block %q is of no kind", b.Name)
	}
	parts := b.Parts
	var common *Block
	if b.Count > 0 {
		if len(parts) != 1 {
			return nil, fmt.Errorf("%s %q: count repeats one part, not %d", b.Kind, b.Name, len(parts))
		}
		part := parts[0]
		if b.Beta > 0 {
			if part.Kind != KindCluster || part.Cluster.Active+part.Cluster.Spares != 1 {
				return nil, fmt.Errorf("%s %q: beta needs a unit to repeat", b.Kind, b.Name)
			}
			common, part = splitCause(b, part)
		}
		parts = make([]*Block, b.Count)
		for i := range parts {
			parts[i] = part
		}
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("%s %q has no parts", b.Kind, b.Name)
	}
	n := &node{block: b, kind: b.Kind, need: b.Need, shared: b.Passive}
	switch b.Kind {
	case KindParallel:
		n.need = 1
	case KindSeries:
		n.need = len(parts)
	default:
	}
	if n.need < 1 || n.need > len(parts) {
		return nil, fmt.Errorf("%s %q: %d of %d parts cannot be needed", b.Kind, b.Name, n.need, len(parts))
	}
	for _, p := range parts {
		if p == nil {
			continue // beta = 1: nothing fails alone
		}
		child, err := s.build(p)
		if err != nil {
			return nil, err
		}
		n.parts = append(n.parts, child)
	}
	if common == nil {
		return n, nil
	}
	cause, err := s.build(common)
	if err != nil {
		return nil, err
	}
	if len(n.parts) == 0 {
		return cause, nil
	}
	return &node{block: b, kind: KindSeries, need: 2, parts: []*node{cause, n}}, nil
}

// splitCause divides a unit's failures into common ones and its own; the
// latter is nil if there are none.
func splitCause(b, unit *Block) (common, own *Block) {
	cause := *unit
	cause.Name = "common cause of " + b.Name
	cause.Cluster.MTBF /= Span(b.Beta)
	if b.Beta >= 1 {
		return &cause, nil
	}
	rest := *unit
	rest.Cluster.MTBF /= Span(1 - b.Beta)
	return &cause, &rest
}

func (s *solver) solve(b *Block) (*leaf, error) {
	if l, ok := s.leaves[b]; ok {
		return l, nil
	}
	l := &leaf{name: b.Name, chain: b.Chain}
	if b.Kind == KindCluster {
		var err error
		if l.chain, err = b.Cluster.Chain(); err != nil {
			return nil, fmt.Errorf("%q: %w", b.Name, err)
		}
		l.frozen = b.Cluster.unrepaired()
	}
	steady, err := l.chain.Steady()
	if err != nil {
		return nil, fmt.Errorf("%q: %w", b.Name, err)
	}
	l.down = down(l.chain.States, steady)
	l.often = l.chain.frequency(steady)
	var levels []level
	for i, st := range l.chain.States {
		levels = append(levels, level{st.Capacity, st.Up, steady[i]})
	}
	l.levels = merge(levels)
	s.leaves[b] = l
	s.order = append(s.order, l)
	return l, nil
}

// downOf is the unavailability of a tree when that of its leaves is given.
// It adds and multiplies only, so that small results keep their digits.
func (n *node) downOf(leafDown func(*node) float64) float64 {
	if n.leaf != nil {
		return leafDown(n)
	}
	if n.kind == KindSeries {
		var logUp float64
		for _, p := range n.parts {
			logUp += math.Log1p(-p.downOf(leafDown))
		}
		return -math.Expm1(logUp)
	}
	// count[j] is the probability that j parts are down.
	count := make([]float64, len(n.parts)+1)
	count[0] = 1
	for i, p := range n.parts {
		q := p.downOf(leafDown)
		for j := i + 1; j > 0; j-- {
			count[j] = count[j]*(1-q) + count[j-1]*q
		}
		count[0] *= 1 - q
	}
	var sum float64
	for j := len(n.parts) - n.need + 1; j < len(count); j++ {
		sum += count[j]
	}
	return math.Min(sum, 1)
}

func steadyDown(n *node) float64 { return n.leaf.down }

// walk visits the leaves' nodes.
func (n *node) walk(visit func(*node)) {
	if n.leaf != nil {
		visit(n)
		return
	}
	for _, p := range n.parts {
		p.walk(visit)
	}
}

// birnbaum is by how much more the tree is down when one leaf's node is down
// than when it is up.
func (n *node) birnbaum(of *node) float64 {
	with := func(down float64) float64 {
		return n.downOf(func(l *node) float64 {
			if l == of {
				return down
			}
			return l.leaf.down
		})
	}
	return with(1) - with(0)
}

// oftenOf is how often a second the tree stops in the long run: each leaf's
// failures, as far as it is critical when it fails.
func (n *node) oftenOf() float64 {
	var f float64
	n.walk(func(l *node) { f += n.birnbaum(l) * l.leaf.often })
	return f
}

// mostLevels bounds how finely the capacity of a system is told apart.
const mostLevels = 2000

var errLevels = errors.New("the parts can have too many different capacities together; use fewer distinct parts")

// levelsOf is the distribution of the tree's capacity.
func (n *node) levelsOf() ([]level, error) {
	if n.leaf != nil {
		return n.leaf.levels, nil
	}
	type sum struct {
		ups      int
		capacity float64 // their least in a series, else their sum
		p        float64
	}
	all := []sum{{capacity: 0, p: 1}}
	if n.kind == KindSeries {
		all[0].capacity = 1
	}
	for _, part := range n.parts {
		levels, err := part.levelsOf()
		if err != nil {
			return nil, err
		}
		next := map[[2]int64]*sum{}
		var order []*sum
		for _, a := range all {
			for _, l := range levels {
				s := sum{a.ups, a.capacity + l.capacity, a.p * l.p}
				if n.kind == KindSeries {
					s.capacity = math.Min(a.capacity, l.capacity)
				}
				if l.up {
					s.ups++
				}
				key := [2]int64{int64(s.ups), int64(math.Round(s.capacity * 1e9))}
				if have, ok := next[key]; ok {
					have.p += s.p
					continue
				}
				next[key] = &s
				order = append(order, &s)
			}
		}
		if len(order) > mostLevels {
			return nil, errLevels
		}
		all = all[:0]
		for _, s := range order {
			all = append(all, *s)
		}
	}
	var levels []level
	for _, s := range all {
		l := level{s.capacity, s.ups >= n.need, s.p}
		switch {
		case n.kind == KindSeries:
		case n.shared:
			l.capacity /= float64(len(n.parts))
		default:
			l.capacity = math.Min(1, l.capacity/float64(n.need))
		}
		levels = append(levels, l)
	}
	return merge(levels), nil
}

// merge unites equal levels and drops impossible ones; the order is that of
// first appearance.
func merge(levels []level) []level {
	type key struct {
		capacity int64
		up       bool
	}
	index := map[key]int{}
	var out []level
	for _, l := range levels {
		k := key{int64(math.Round(l.capacity * 1e9)), l.up}
		if i, ok := index[k]; ok {
			out[i].p += l.p
		} else if l.p > 0 {
			index[k] = len(out)
			out = append(out, l)
		}
	}
	return out
}

// mostJoint bounds the chain of all parts together.
const mostJoint = 200

// joint is the chain of the tree as a whole, nil if it has too many states.
func (n *node) joint() *Chain {
	var leaves []*node
	size := 1
	n.walk(func(l *node) {
		leaves = append(leaves, l)
		if size <= mostJoint {
			size *= len(l.leaf.chain.States)
		}
	})
	if size > mostJoint {
		return nil
	}
	states := make([]ChainState, size)
	digits := make([][]int, size)
	for i := range states {
		rest := i
		at := map[*node]int{}
		for _, l := range leaves {
			m := len(l.leaf.chain.States)
			at[l] = rest % m
			digits[i] = append(digits[i], rest%m)
			rest /= m
		}
		states[i].Up = n.downOf(func(l *node) float64 {
			if l.leaf.chain.States[at[l]].Up {
				return 0
			}
			return 1
		}) < 0.5
	}
	c := NewChain(states)
	for i := range states {
		stride := 1
		for k, l := range leaves {
			for j, r := range l.leaf.chain.Rate[digits[i][k]] {
				if j != digits[i][k] {
					c.Rate[i][i+(j-digits[i][k])*stride] += r
				}
			}
			stride *= len(l.leaf.chain.States)
		}
	}
	return c
}

// outage is the probability that service stops at least once within a time
// from the beginning, in which all is well; exact tells whether it is that or
// an upper bound.
func (n *node) outage(t Span) (p float64, exact bool) {
	switch {
	case n.leaf != nil:
		return n.leaf.chain.Outage(t), true
	case n.kind == KindSeries:
		var logNone float64
		exact = true
		for _, part := range n.parts {
			q, ok := part.outage(t)
			logNone += math.Log1p(-q)
			exact = exact && ok
		}
		return -math.Expm1(logNone), exact
	}
	if c := n.joint(); c != nil {
		return c.Outage(t), true
	}
	// To begin with all parts well is the best beginning, so the probability
	// is at most that of a beginning at any moment of service: the expected
	// number of outages over the availability.
	return math.Min(1, n.oftenOf()*float64(t)/(1-n.downOf(steadyDown))), false
}

// worn is the probability of being down after a time without any repair; ok
// is false if a chain was written out, of which nobody knows what a repair is.
func (n *node) worn(t Span) (p float64, ok bool) {
	ok = true
	solved := map[*leaf]float64{}
	p = n.downOf(func(l *node) float64 {
		if l.leaf.frozen == nil {
			ok = false
			return 1
		}
		q, have := solved[l.leaf]
		if !have {
			q = down(l.leaf.frozen.States, l.leaf.frozen.At(t))
			solved[l.leaf] = q
		}
		return q
	})
	return p, ok
}
