package sla

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// State is how a service, address, resource, node or link is during an
// interval.
type State uint8

// States, from the weakest statement to the strongest: where two records of
// one thing differ, the later of this list counts (Merge).
const (
	StateUnset State = iota
	Unknown          // nobody was looking
	Up
	Degraded // serves, with less than its whole capacity
	Down     // does not serve, and should
	Planned  // does not serve, in a window that was declared before it began
	states
)

var stateNames = [...]string{"unset", "unknown", "up", "degraded", "down", "planned"}

func (s State) String() string { return stateNames[min(int(s), len(stateNames)-1)%len(stateNames)] }

// MarshalText writes the name of the state.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes; any other word is an error.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames[:], string(b))
	if i <= 0 {
		return fmt.Errorf("%q is no state", b)
	}
	*s = State(i)
	return nil
}

// Repair is what an outage consisted of, in this order from its beginning.
type Repair struct {
	Detect time.Duration // until somebody knew
	Decide time.Duration // until it was settled what to do
	Switch time.Duration // until the service ran again, elsewhere or here
	Verify time.Duration // until that was known
}

// Interval is a stretch of time [From, To) in one state.
//
// Both ends lie on one line of time. A recorder whose wall clock was stepped
// places the interval by the wall clock and its length by the monotonic one.
type Interval struct {
	From, To time.Time
	State    State
	Repair   Repair // of a Down interval, if known
}

// Merge unites several records of one thing, each ascending and without
// overlaps: at each instant the strongest state counts, and what nobody knows
// is left out. The order of the records does not matter. What overlaps within
// one record is not looked for.
func Merge(records ...iter.Seq[Interval]) iter.Seq[Interval] {
	if len(records) == 1 {
		return joined(records[0])
	}
	return joined(strongest(records))
}

// joined unites neighbors that say the same.
func joined(record iter.Seq[Interval]) iter.Seq[Interval] {
	return func(yield func(Interval) bool) {
		var out Interval // not yielded yet: it may go on
		for iv := range record {
			if out.State == iv.State && out.To.Equal(iv.From) && out.Repair == iv.Repair {
				out.To = iv.To
				continue
			}
			if out.State != StateUnset && !yield(out) {
				return
			}
			out = iv
		}
		if out.State != StateUnset {
			yield(out)
		}
	}
}

// source is a record that is read in step with others. To change from one
// record to another costs more than the interval, so many are read at once.
type source struct {
	head  Interval
	more  bool
	ahead []Interval
	next  func() ([]Interval, bool)
}

func (s *source) advance() {
	if len(s.ahead) == 0 {
		s.ahead, s.more = s.next()
	}
	if s.more {
		s.head, s.ahead = s.ahead[0], s.ahead[1:]
	}
}

// batches gives a record in parts, each good until the next is asked for.
func batches(record iter.Seq[Interval]) iter.Seq[[]Interval] {
	return func(yield func([]Interval) bool) {
		batch := make([]Interval, 0, 256)
		for iv := range record {
			batch = append(batch, iv)
			if len(batch) == cap(batch) {
				if !yield(batch) {
					return
				}
				batch = batch[:0]
			}
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// strongest is at each instant the strongest state of several records.
func strongest(records []iter.Seq[Interval]) iter.Seq[Interval] {
	return func(yield func(Interval) bool) {
		var all []*source
		for _, r := range records {
			next, stop := iter.Pull(batches(r))
			defer stop()
			s := &source{next: next}
			s.advance()
			all = append(all, s)
		}
		for {
			// The next stretch begins where the earliest head begins and ends
			// where any head begins or ends.
			var from, to time.Time
			for _, s := range all {
				if s.more && (from.IsZero() || s.head.From.Before(from)) {
					from = s.head.From
				}
			}
			if from.IsZero() {
				return
			}
			var best *Interval
			cut := func(t time.Time) {
				if t.After(from) && (to.IsZero() || t.Before(to)) {
					to = t
				}
			}
			for _, s := range all {
				if !s.more {
					continue
				}
				cut(s.head.From)
				if !s.head.From.After(from) {
					cut(s.head.To)
					if best == nil || s.head.State > best.State || s.head.State == best.State && longer(s.head.Repair, best.Repair) {
						best = &s.head
					}
				}
			}
			if to.IsZero() {
				to = best.To // an interval of no or negative length
			}
			if best.State != StateUnset && !yield(Interval{from, to, best.State, remaining(*best, from)}) {
				return
			}
			for _, s := range all {
				if !s.more || s.head.From.After(from) {
					continue
				}
				if s.head.To.After(to) {
					s.head.Repair = remaining(s.head, to)
					s.head.From = to
					continue
				}
				s.advance()
			}
		}
	}
}

// remaining is the repair of an interval from a later instant on.
func remaining(iv Interval, from time.Time) Repair {
	if iv.Repair == (Repair{}) {
		return iv.Repair
	}
	skip := from.Sub(iv.From)
	r := iv.Repair
	for _, part := range []*time.Duration{&r.Detect, &r.Decide, &r.Switch, &r.Verify} {
		n := min(max(skip, 0), *part)
		*part -= n
		skip -= n
	}
	return r
}

func longer(a, b Repair) bool {
	if x, y := a.Detect+a.Decide+a.Switch+a.Verify, b.Detect+b.Decide+b.Switch+b.Verify; x != y {
		return x > y
	}
	switch {
	case a.Detect != b.Detect:
		return a.Detect > b.Detect
	case a.Decide != b.Decide:
		return a.Decide > b.Decide
	}
	return a.Switch > b.Switch
}

// wrong says why an interval cannot be accounted, after one that ends at last.
func (iv *Interval) wrong(last time.Time) error {
	switch {
	case iv.State == StateUnset || iv.State >= states:
		return fmt.Errorf("interval from %s has no state", iv.From.Format(time.RFC3339Nano))
	case iv.To.Before(iv.From):
		return fmt.Errorf("interval from %s ends before it begins, at %s", iv.From.Format(time.RFC3339Nano), iv.To.Format(time.RFC3339Nano))
	}
	return fmt.Errorf("interval from %s overlaps the one before, which ends at %s: merge the records first",
		iv.From.Format(time.RFC3339Nano), last.UTC().Format(time.RFC3339Nano))
}
