package journal

import (
	"errors"
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
	e, err := s.Entry(what)
	switch {
	case err == nil:
		return s.whyEntry(e)
	case !errors.Is(err, errNoEntry):
		return Chain{}, err
	}
	thing, err := s.Find(what)
	if err != nil {
		return Chain{}, err
	}
	c, ok := s.last(thing, never, forever)
	if doubt, doubted, err := s.suspicion(thing, s.Last); err != nil {
		return Chain{}, err
	} else if doubted && (!ok || doubt.From.After(c.To)) {
		c, ok = doubt, true
	}
	if !ok {
		return Chain{}, fmt.Errorf("%s has neither been down nor moved since the journal began: there is nothing to explain", thing)
	}
	err = s.complete(&c)
	return c, err
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
	if e.Event != nil && (e.Event.Kind == suspected || e.Event.Kind == unsuspected) {
		if c, ok, err := s.suspicion(Thing{ThingNode, e.Event.Subject}, e.Time); ok || err != nil {
			return c, errors.Join(err, s.complete(&c))
		}
	}
	things := s.Things()
	if e.State != nil {
		things = []Thing{e.State.Thing}
	}
	slices.SortStableFunc(things, byImportance)
	for _, t := range things {
		if c, ok := s.last(t, e.Time.Add(-sequel), e.Time.Add(prelude)); ok {
			err := s.complete(&c)
			return c, err
		}
	}
	return Chain{}, fmt.Errorf("%s (%s) belongs to no outage and no move: it had no consequences that the journal knows; batuta events --since shows what was around it",
		e.ID, e.Time.Format(time.RFC3339))
}

// Events of a node whose daemon is silent while its kernel answers.
const (
	suspected   = "node-suspect"
	unsuspected = "node-unsuspected"
)

// suspicionsFor is how far back a suspicion is looked for: events have no index.
const suspicionsFor = 30 * 24 * time.Hour

// suspicion is the last time up to then that a node was suspect, without its
// steps. It is no outage: the node was there, and nobody took anything. Where
// it died of it, that is one.
func (s *Story) suspicion(t Thing, until time.Time) (c Chain, ok bool, err error) {
	if t.Kind != ThingNode {
		return c, false, nil
	}
	err = s.Entries(until.Add(-suspicionsFor), s.Last.Add(sequel), func(e Entry) bool {
		switch {
		case e.Event == nil || e.Event.Subject != t.Name:
		case e.Event.Kind == suspected && !e.Time.After(until):
			c, ok = Chain{Thing: t, State: sla.Degraded, From: e.Time, To: s.Last, Open: true, Why: e.Event.Text}, true
		case ok && c.Open && (e.Event.Kind == unsuspected || e.Event.Kind == "node-dead"):
			c.To, c.Open = e.Time, false
		}
		return true
	})
	return c, ok, err
}

// last is the last outage or move of a thing that touches [from, to], without
// its steps.
func (s *Story) last(t Thing, from, to time.Time) (c Chain, ok bool) {
	outage, down := s.lastOutage(t, from, to)
	if down {
		s.places(&outage)
	}
	move, moved := s.lastMove(t, from, to)
	if moved && (!down || move.From.After(outage.To.Add(sequel))) {
		// A move with a gap is an outage, which may lie just outside.
		if gap, ok := s.lastOutage(t, move.From.Add(-sequel), move.From.Add(prelude)); ok {
			s.places(&gap)
			return gap, true
		}
		return move, true
	}
	return outage, down
}

// lastOutage is the last time without service.
func (s *Story) lastOutage(t Thing, from, to time.Time) (c Chain, ok bool) {
	var now Chain // what goes on, planned in part perhaps
	keep := func() {
		if now.State != sla.StateUnset && !now.To.Before(from) && !now.From.After(to) {
			c, ok = now, true
		}
		now = Chain{}
	}
	for iv := range s.IntervalsIn(t, from, to) {
		if iv.From.After(to) {
			break
		}
		if iv.State != sla.Down && iv.State != sla.Planned {
			keep()
			continue
		}
		if now.State != sla.StateUnset && now.To.Equal(iv.From) {
			now.To = iv.To
			continue
		}
		keep()
		now = Chain{Thing: t, State: iv.State, From: iv.From, To: iv.To, Parts: Repair(iv.Repair)}
	}
	keep()
	c.Open = ok && c.To.Equal(s.Last)
	return c, ok
}

// lastMove is the last time when it ran elsewhere at once.
func (s *Story) lastMove(t Thing, from, to time.Time) (c Chain, ok bool) {
	for _, b := range s.books {
		var before stretch
		for st := range b.stretches(t, from, to) {
			was, is := "", st.sheet.texts[st.where]
			if before.sheet != nil {
				was = before.sheet.texts[before.where]
			}
			before = *st
			if was == "" || is == "" || was == is || st.State == sla.Down || st.From.Before(from) || st.From.After(to) {
				continue
			}
			if !ok || st.From.After(c.From) {
				c, ok = Chain{Thing: t, State: st.State, From: st.From, To: st.From, Before: was, After: is}, true
			}
		}
	}
	return c, ok
}

// places finds where the thing ran before and after an outage, and why it was
// down.
func (s *Story) places(c *Chain) {
	var before, after time.Time
	for sp := range s.spansIn(c.Thing, c.From.Add(-time.Second), c.To.Add(time.Second)) {
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

// complete adds the steps.
func (s *Story) complete(c *Chain) error {
	parts := []struct {
		name   string
		length time.Duration
	}{{"detect", c.Parts.Detect}, {"decide", c.Parts.Decide}, {"switch", c.Parts.Switch}, {"verify", c.Parts.Verify}}
	c.Steps = []Step{}
	return s.Entries(c.From.Add(-prelude), c.To.Add(sequel), func(e Entry) bool {
		if !c.matters(e) {
			return true
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
		return true
	})
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
