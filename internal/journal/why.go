package journal

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// Chain is what led to an outage or a move, and what ended it.
type Chain struct {
	Thing  Thing     `json:"thing"`
	State  sla.State `json:"state"` // down or planned; up for a move without a gap
	From   time.Time `json:"from"`  // last known to be well
	To     time.Time `json:"to"`    // known to be well again, or the end of the journal
	Before string    `json:"before,omitempty"`
	After  string    `json:"after,omitempty"` // node on which it runs
	Open   bool      `json:"open"`            // it goes on
	Why    string    `json:"why,omitempty"`
	Parts  Repair    `json:"parts"`
	Steps  []Step    `json:"steps"` // ascending
}

// Step is one record of a chain.
type Step struct {
	Entry
	Offset time.Duration `json:"offset_ns"` // from the beginning of the outage
	Part   string        `json:"part,omitempty"`
}

// How long before an outage a chain begins, and how long after it ends.
const (
	prelude = 500 * time.Millisecond
	sequel  = 300 * time.Millisecond
)

// tolerance is what reading the clock twice costs: the event that ends a part
// belongs to it.
const tolerance = 200 * time.Microsecond

// Why finds the chain behind the last outage or move of a thing, named by a
// part of its name, or behind an event, named by its number. The error says
// what there is to ask for.
func (s *Story) Why(what string) (Chain, error) {
	for _, e := range s.Entries {
		if e.ID == what {
			return s.whyEntry(e)
		}
	}
	thing, err := s.Find(what)
	if err != nil {
		return Chain{}, err
	}
	chains := s.chains(thing)
	if len(chains) == 0 {
		return Chain{}, fmt.Errorf("%s has neither been down nor moved since the journal began: there is nothing to explain", thing)
	}
	return s.complete(chains[len(chains)-1]), nil
}

// importance is the order of kinds where a text names several things: what
// matters to clients first.
var importance = []string{ThingAddress, ThingService, ThingResource, ThingNode, ThingLink, ThingReal}

func byImportance(a, b Thing) int {
	return slices.Index(importance, a.Kind) - slices.Index(importance, b.Kind)
}

// Find is the thing that a text names: all of its name, or else a part.
func (s *Story) Find(what string) (Thing, error) {
	all := s.Things()
	slices.SortStableFunc(all, byImportance)
	if i := slices.IndexFunc(all, func(t Thing) bool { return t.Name == what || t.String() == what }); i >= 0 {
		return all[i], nil
	}
	if i := slices.IndexFunc(all, func(t Thing) bool { return strings.Contains(t.String(), what) }); i >= 0 {
		return all[i], nil
	}
	names := make([]string, len(all))
	for i, t := range all {
		names[i] = t.String()
	}
	return Thing{}, fmt.Errorf("the journal knows no %q; it knows: %s", what, strings.Join(names, ", "))
}

// whyEntry finds the outage that a record belongs to.
func (s *Story) whyEntry(e Entry) (Chain, error) {
	things := s.Things()
	if e.State != nil {
		things = []Thing{e.State.Thing}
	}
	slices.SortStableFunc(things, byImportance)
	for _, t := range things {
		for _, c := range slices.Backward(s.chains(t)) {
			if !e.Time.Before(c.From.Add(-prelude)) && !e.Time.After(c.To.Add(sequel)) {
				return s.complete(c), nil
			}
		}
	}
	return Chain{}, fmt.Errorf("%s (%s) belongs to no outage and no move: it had no consequences that the journal knows; batuta events --since shows what was around it",
		e.ID, e.Time.Format(time.RFC3339))
}

// chains are the outages and moves of a thing, ascending, without their steps.
func (s *Story) chains(t Thing) []Chain {
	var all []Chain
	for iv := range s.Intervals(t) {
		if iv.State != sla.Down && iv.State != sla.Planned {
			continue
		}
		if n := len(all); n > 0 && all[n-1].To.Equal(iv.From) {
			all[n-1].To = iv.To // planned in part
			continue
		}
		all = append(all, Chain{Thing: t, State: iv.State, From: iv.From, To: iv.To, Parts: Repair(iv.Repair), Open: iv.To.Equal(s.Last)})
	}
	for i := range all {
		c := &all[i]
		var before, after time.Time
		for sp := range s.Spans(t) {
			switch {
			case sp.State == sla.Down && !sp.From.After(c.To) && !sp.To.Before(c.From):
				if c.Why == "" {
					c.Why = sp.Why
				}
			case sp.Where == "" || sp.State == sla.Unknown:
			case sp.From.Before(c.From) && sp.From.After(before):
				c.Before, before = sp.Where, sp.From
			case !sp.From.Before(c.To) && (after.IsZero() || sp.From.Before(after)):
				c.After, after = sp.Where, sp.From
			}
		}
	}
	// Moves in which no recorder saw a gap.
	for _, spans := range s.spans[t] {
		for i, sp := range spans {
			if i == 0 || sp.Where == "" || spans[i-1].Where == "" || sp.Where == spans[i-1].Where || sp.State == sla.Down {
				continue
			}
			if slices.ContainsFunc(all, func(c Chain) bool {
				return !sp.From.Before(c.From.Add(-prelude)) && !sp.From.After(c.To.Add(sequel))
			}) {
				continue
			}
			all = append(all, Chain{Thing: t, State: sp.State, From: sp.From, To: sp.From, Before: spans[i-1].Where, After: sp.Where})
		}
	}
	slices.SortFunc(all, func(a, b Chain) int { return a.From.Compare(b.From) })
	return all
}

// complete adds the steps.
func (s *Story) complete(c Chain) Chain {
	parts := []struct {
		name   string
		length time.Duration
	}{{"detect", c.Parts.Detect}, {"decide", c.Parts.Decide}, {"switch", c.Parts.Switch}, {"verify", c.Parts.Verify}}
	c.Steps = []Step{}
	for _, e := range s.Entries {
		if e.Time.Before(c.From.Add(-prelude)) || e.Time.After(c.To.Add(sequel)) || !c.matters(e) {
			continue
		}
		st := Step{Entry: e, Offset: e.Time.Sub(c.From)}
		if c.Parts != (Repair{}) && st.Offset >= 0 {
			var end time.Duration
			for _, p := range parts {
				if end += p.length; st.Offset <= end+tolerance {
					st.Part = p.name
					break
				}
			}
		}
		c.Steps = append(c.Steps, st)
	}
	return c
}

// matters tells whether a record may belong to the chain.
func (c *Chain) matters(e Entry) bool {
	named := func(text string) bool { return text != "" && strings.Contains(text, c.Thing.Name) }
	switch {
	case e.Event != nil && e.Event.Level == model.LevelDebug:
		return false
	case e.Event != nil && e.Event.Source == "director":
		checked := c.Thing.Kind == ThingService || c.Thing.Kind == ThingReal
		return checked && (named(e.Event.Subject) || named(e.Event.Text) || e.Event.Kind == "check-failed" || e.Event.Kind == "soft-failure")
	case e.State != nil:
		return e.State.Thing == c.Thing || e.State.Thing.Kind == ThingNode || e.State.Thing.Kind == ThingLink
	}
	return true
}
