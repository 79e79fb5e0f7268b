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
	return func(yield func(Interval) bool) {
		type reader struct {
			head Interval
			more bool
			next func() (Interval, bool)
		}
		var all []*reader
		for _, r := range records {
			next, stop := iter.Pull(r)
			defer stop()
			rd := &reader{next: next}
			if rd.head, rd.more = next(); rd.more {
				all = append(all, rd)
			}
		}
		var out Interval // not yielded yet: it may go on
		emit := func(iv Interval) bool {
			if out.State == iv.State && out.Repair == iv.Repair && out.To.Equal(iv.From) {
				out.To = iv.To
				return true
			}
			ok := out.State == StateUnset || yield(out)
			out = iv
			return ok
		}
		for {
			// The next stretch begins where the earliest head begins and ends
			// where any head begins or ends.
			var from, to time.Time
			for _, r := range all {
				if r.more && (from.IsZero() || r.head.From.Before(from)) {
					from = r.head.From
				}
			}
			if from.IsZero() {
				break
			}
			var best Interval
			cut := func(t time.Time) {
				if t.After(from) && (to.IsZero() || t.Before(to)) {
					to = t
				}
			}
			for _, r := range all {
				if !r.more {
					continue
				}
				cut(r.head.From)
				if !r.head.From.After(from) {
					cut(r.head.To)
					if r.head.State > best.State || r.head.State == best.State && longer(r.head.Repair, best.Repair) {
						best = r.head
					}
				}
			}
			if to.IsZero() {
				to = best.To // an interval of no or negative length
			}
			if best.State != StateUnset && !emit(Interval{from, to, best.State, remaining(best, from)}) {
				return
			}
			for _, r := range all {
				if !r.more || r.head.From.After(from) {
					continue
				}
				if r.head.To.After(to) {
					r.head.Repair = remaining(r.head, to)
					r.head.From = to
					continue
				}
				r.head, r.more = r.next()
			}
		}
		if out.State != StateUnset {
			yield(out)
		}
	}
}

// remaining is the repair of an interval from a later instant on.
func remaining(iv Interval, from time.Time) Repair {
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

// check refuses what cannot be accounted.
func (iv Interval) check(last time.Time) error {
	switch {
	case iv.State == StateUnset || iv.State >= states:
		return fmt.Errorf("interval from %s has no state", iv.From.Format(time.RFC3339Nano))
	case iv.To.Before(iv.From):
		return fmt.Errorf("interval from %s ends before it begins, at %s", iv.From.Format(time.RFC3339Nano), iv.To.Format(time.RFC3339Nano))
	case iv.From.Before(last):
		return fmt.Errorf("interval from %s overlaps the one before, which ends at %s: merge the records first",
			iv.From.Format(time.RFC3339Nano), last.Format(time.RFC3339Nano))
	}
	return nil
}
