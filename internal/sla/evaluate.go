package sla

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Prediction is what a model says about a system.
type Prediction struct {
	Title string `json:"title"`

	Service  Unavailability  `json:"service"` // share of time with service as required
	Target   *Unavailability `json:"target"`  // nil = none
	Met      *bool           `json:"target_met"`
	MTBF     Span            `json:"mtbf_seconds"`   // mean time of service between outages
	MTTR     Span            `json:"mttr_seconds"`   // mean length of an outage
	PerYear  float64         `json:"outages_a_year"` // of 365 days
	DownYear Span            `json:"down_seconds_a_year"`

	Capacity Unavailability  `json:"capacity"` // capacity-weighted availability: what is missing is weighed with how much
	AtLeast  []CapacityShare `json:"at_least"` // descending

	Classes []ClassCheck `json:"classes"`
	Figures string       `json:"classes_note"` // whose the figures of the classes are
	Parts   []Importance `json:"parts"`        // the one that explains most down time first
	WhatIf  []Variant    `json:"what_if"`      // the one that helps most first
}

// CapacityShare is the share of time with at least so much capacity.
type CapacityShare struct {
	Capacity float64        `json:"capacity"` // 0 to 1
	Share    Unavailability `json:"share"`
}

// Importance is what a part contributes.
type Importance struct {
	Name    string         `json:"name"`
	Copies  int            `json:"copies"` // the figures are for each of them
	Alone   Unavailability `json:"alone"`  // of the part by itself
	MTBF    Span           `json:"mtbf_seconds"`
	MTTR    Span           `json:"mttr_seconds"`
	Outages float64        `json:"outages_a_year"` // of the system, that this part's failure sets off

	// Birnbaum is the probability that the system's service depends on the
	// part: by how much more of the time the system is down when the part is
	// down than when it is up.
	Birnbaum float64 `json:"birnbaum"`

	// Criticality is the probability that the part is down and decides, given
	// that the system is down.
	Criticality float64 `json:"criticality"`
}

// Variant is a change and what it leads to.
type Variant struct {
	Change  string         `json:"change"`
	Service Unavailability `json:"service"`
	Saved   Span           `json:"saved_seconds_a_year"` // down time; negative if it got worse
}

// Evaluate computes everything about the model. The error names the part that
// makes no sense.
func (m *Model) Evaluate() (Prediction, error) {
	s, root, err := m.solve()
	if err != nil {
		return Prediction{}, err
	}
	u := root.downOf(steadyDown)
	often := root.oftenOf()
	p := Prediction{
		Title: m.Title, Service: Unavailability(u), Target: m.Target,
		PerYear:  often * float64(Year),
		DownYear: Unavailability(u).In(Year),
		Classes:  root.classes(m.Class), Figures: ClassFigures,
	}
	p.MTBF, p.MTTR = meanTimes(u, often)
	if m.Target != nil {
		met := u <= float64(*m.Target)*(1+1e-12)
		p.Met = &met
	}
	levels, err := root.levelsOf()
	if err != nil {
		return Prediction{}, err
	}
	p.Capacity, p.AtLeast = capacity(levels)
	p.Parts = s.importance(root, u)
	p.WhatIf = m.improvements(Unavailability(u))
	return p, nil
}

// meanTimes are the mean time of service between outages, and of an outage.
func meanTimes(down, often float64) (between, outage Span) {
	if often == 0 {
		return Span(math.Inf(1)), 0
	}
	return Span((1 - down) / often), Span(down / often)
}

func (m *Model) solve() (*solver, *node, error) {
	if m.Root == nil {
		return nil, nil, errors.New("the model has no parts")
	}
	s := &solver{leaves: map[*Block]*leaf{}, copies: map[*leaf]int{}}
	root, err := s.build(m.Root)
	return s, root, err
}

// Check tells whether Evaluate has an answer, which takes longer.
func (m *Model) Check() error {
	_, root, err := m.solve()
	if err == nil {
		_, err = root.levelsOf()
	}
	return err
}

// unavailability is the one figure that variants are compared by.
func (m *Model) unavailability() (Unavailability, error) {
	_, root, err := m.solve()
	if err != nil {
		return 0, err
	}
	return Unavailability(root.downOf(steadyDown)), nil
}

// capacity weighs levels, and accumulates them from the top.
func capacity(levels []level) (Unavailability, []CapacityShare) {
	levels = slices.Clone(levels)
	slices.SortFunc(levels, func(a, b level) int { return cmp.Compare(a.capacity, b.capacity) })
	var missing, below float64
	var shares []CapacityShare
	for i, l := range levels {
		missing += l.p * math.Max(0, 1-l.capacity)
		if l.capacity > 0 && (i == 0 || l.capacity-levels[i-1].capacity > 1e-9) {
			shares = append(shares, CapacityShare{l.capacity, Unavailability(below)})
		}
		below += l.p
	}
	slices.Reverse(shares)
	return Unavailability(missing), shares
}

func (s *solver) importance(root *node, systemDown float64) []Importance {
	nodes := map[*leaf]*node{}
	root.walk(func(n *node) {
		if nodes[n.leaf] == nil {
			nodes[n.leaf] = n
		}
	})
	var all []Importance
	for _, l := range s.order {
		b := root.birnbaum(nodes[l])
		im := Importance{
			Name: l.name, Copies: s.copies[l], Alone: Unavailability(l.down),
			Outages: b * l.often * float64(Year), Birnbaum: b,
		}
		im.MTBF, im.MTTR = meanTimes(l.down, l.often)
		if systemDown > 0 {
			im.Criticality = b * l.down / systemDown
		}
		all = append(all, im)
	}
	slices.SortStableFunc(all, func(a, b Importance) int { return cmp.Compare(b.Criticality, a.Criticality) })
	return all
}

// clone copies the tree, so that a variant can be changed.
func (b *Block) clone() *Block {
	c := *b
	c.Parts = nil
	for _, p := range b.Parts {
		c.Parts = append(c.Parts, p.clone())
	}
	return &c
}

// find lists the blocks of a name, in order.
func (b *Block) find(want func(*Block) bool) []*Block {
	var found []*Block
	if want(b) {
		found = append(found, b)
	}
	for _, p := range b.Parts {
		found = append(found, p.find(want)...)
	}
	return found
}

// improvements tries what an administrator could buy or do, one at a time.
func (m *Model) improvements(now Unavailability) []Variant {
	type try struct {
		change string
		apply  func(*Block)
	}
	var all []Variant
	blocks := m.Root.find(func(*Block) bool { return true })
	for i, b := range blocks {
		var tries []try
		add := func(useful bool, change string, apply func(*Block)) {
			if useful {
				tries = append(tries, try{change, apply})
			}
		}
		c := b.Cluster
		if b.Kind == KindCluster {
			all := c.Active + c.Spares
			add(true, fmt.Sprintf("fail half as often: MTBF %s", (2*c.MTBF).InHours()), func(b *Block) { b.Cluster.MTBF *= 2 })
			add(true, fmt.Sprintf("repair twice as fast: MTTR %s", (c.MTTR/2).InHours()), func(b *Block) { b.Cluster.MTTR /= 2 })
			add(c.Crews < all, fmt.Sprintf("one crew more: %d", c.Crews+1), func(b *Block) { b.Cluster.Crews++ })
			add(all < MostNodes, fmt.Sprintf("one spare more: %d", c.Spares+1), func(b *Block) { b.Cluster.Spares++ })
			add(all > 1 && c.Coverage < 1, fmt.Sprintf("notice half of what goes unnoticed: coverage %.6g", (1+c.Coverage)/2), func(b *Block) { b.Cluster.Coverage = (1 + b.Cluster.Coverage) / 2 })
			add(c.Spares > 0 && c.Failover > 0, fmt.Sprintf("take over twice as fast: failover %s", c.Failover/2), func(b *Block) { b.Cluster.Failover /= 2 })
			add(all > 1 && c.Beta > 0, fmt.Sprintf("half as many common causes: beta %g", c.Beta/2), func(b *Block) { b.Cluster.Beta /= 2 })
		}
		add(b.Count > 0 && b.Count < MostNodes && b.Kind != KindSeries, fmt.Sprintf("one copy more: %d", b.Count+1), func(b *Block) { b.Count++ })
		add(b.Beta > 0, fmt.Sprintf("half as many common causes: beta %g", b.Beta/2), func(b *Block) { b.Beta /= 2 })
		for _, t := range tries {
			changed := &Model{Root: m.Root.clone()}
			t.apply(changed.Root.find(func(*Block) bool { return true })[i])
			u, err := changed.unavailability()
			if err != nil {
				continue // not everything goes with everything: no spares with beta
			}
			name := b.Name
			if name != "" {
				name += ": "
			}
			all = append(all, Variant{name + t.change, u, (now - u).In(Year)})
		}
	}
	slices.SortStableFunc(all, func(a, b Variant) int { return cmp.Compare(a.Service, b.Service) })
	return all
}

// settings are what What can change.
var settings = []string{"mtbf", "mttr", "crews", "nodes", "spares", "required", "coverage", "failover", "standby", "beta", "count", "need"}

// What is a copy of the model with changes like "directors.mttr=4h", or
// "mttr=4h" where the model has one cluster only. The error says which change
// is impossible.
func (m *Model) What(changes []string) (*Model, error) {
	changed := *m
	changed.Root = m.Root.clone()
	for _, text := range changes {
		if err := changed.change(text); err != nil {
			return nil, fmt.Errorf("what if %q: %w", text, err)
		}
	}
	return &changed, nil
}

func (m *Model) change(text string) error {
	left, value, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("write NAME.SETTING=VALUE, like directors.mttr=4h")
	}
	name, setting := "", strings.TrimSpace(left)
	if i := strings.LastIndex(left, "."); i >= 0 {
		name, setting = strings.TrimSpace(left[:i]), strings.TrimSpace(left[i+1:])
	}
	value = strings.TrimSpace(value)
	if !slices.Contains(settings, setting) {
		return fmt.Errorf("no setting %q: %s", setting, strings.Join(settings, ", "))
	}
	inBlock := setting == "count" || setting == "need"
	found := m.Root.find(func(b *Block) bool {
		return (name == "" || b.Name == name) && (b.Kind == KindCluster) != inBlock && b.Kind != KindChain ||
			name != "" && b.Name == name && setting == "beta" && b.Count > 0
	})
	if name == "" && len(found) > 1 {
		return fmt.Errorf("which part? write NAME.%s", setting)
	}
	if len(found) == 0 {
		var names []string
		for _, b := range m.Root.find(func(b *Block) bool { return b.Name != "" }) {
			names = append(names, b.Name)
		}
		return fmt.Errorf("no part %q with %s; there are: %s", name, setting, strings.Join(names, ", "))
	}
	for _, b := range found {
		if err := b.set(setting, value); err != nil {
			return err
		}
	}
	return nil
}

// set changes one setting from its text.
func (b *Block) set(setting, value string) error {
	var err error
	switch {
	case setting == "count":
		b.Count, err = ParseCount(value)
	case setting == "need":
		b.Need, err = ParseCount(value)
	case b.Kind == KindCluster:
		err = b.Cluster.Set(setting, value)
	case setting == "beta":
		b.Beta, err = ParseShare(value)
	}
	return err
}

// Set changes one setting from its text: mtbf, mttr, crews, nodes, spares,
// required, coverage, failover, standby or beta.
func (c *Cluster) Set(setting, value string) error {
	var err error
	switch setting {
	case "mtbf":
		c.MTBF, err = ParseSpan(value)
	case "mttr":
		c.MTTR, err = ParseSpan(value)
	case "failover":
		c.Failover, err = ParseSpan(value)
	case "crews":
		c.Crews, err = ParseCount(value)
	case "nodes":
		// Where all nodes were needed, all are.
		all := c.Required == c.Active
		c.Active, err = ParseCount(value)
		if all {
			c.Required = c.Active
		}
	case "spares":
		c.Spares, err = ParseCount(value)
	case "required":
		c.Required, err = ParseCount(value)
	case "coverage":
		c.Coverage, err = ParseShare(value)
	case "standby":
		c.Standby, err = ParseShare(value)
	case "beta":
		c.Beta, err = ParseShare(value)
	default:
		err = fmt.Errorf("no setting %q", setting)
	}
	return err
}
