package journal

import (
	"fmt"
	"iter"
	"time"

	"github.com/batuta-ha/batuta/internal/sla"
)

// Experience is what the journals tell about a thing's failures.
func (s *Story) Experience(t Thing) (sla.Experience, error) {
	first := s.first()
	if !first.Before(s.Last) {
		return sla.Experience{}, nil
	}
	p := sla.Period{Name: "all", From: first, To: s.Last}
	st, err := sla.Account(s.Intervals(t), p, s.Last, sla.Agreement{})
	if err != nil {
		return sla.Experience{}, fmt.Errorf("%s: %w", t, err)
	}
	return sla.Experience{Parts: 1, Operating: st.Up + st.Degraded, Down: st.Down, Failures: st.Failures}, nil
}

// first is when the first recorder began.
func (s *Story) first() time.Time {
	first := forever
	for _, b := range s.books {
		if len(b.lives) > 0 {
			l := b.lives[0]
			if t := b.when(l.Boot, l.sheets[0].begin); t.Before(first) {
				first = t
			}
		}
	}
	return first
}

// NodesExperience is what the journals tell about the nodes of the cluster:
// how often one failed, how long until it was back, and whether another carried
// meanwhile what it had carried. A node that ended in good order, as its own
// journal knows, has not failed.
func (s *Story) NodesExperience() (sla.Experience, error) {
	var all sla.Experience
	var failover time.Duration
	for _, node := range s.Things() {
		if node.Kind != ThingNode {
			continue
		}
		e, err := s.Experience(node)
		if err != nil {
			return all, err
		}
		all.Parts++
		all.Operating += e.Operating
		for iv := range outages(s.Intervals(node)) {
			if s.leftInOrder(node.Name, iv.From) {
				continue
			}
			all.Failures++
			all.Down += sla.SpanOf(iv.To.Sub(iv.From))
			took, carried, handled := s.takeover(node.Name, iv)
			if !carried {
				continue
			}
			all.Tried++
			if handled {
				all.Handled++
				failover += took
			}
		}
	}
	if all.Handled > 0 {
		all.Failover = sla.SpanOf(failover) / sla.Span(all.Handled)
	}
	return all, nil
}

// outages are the times down, each in one piece whatever its parts and who
// recorded it. Those that a window excuses are left out.
func outages(record iter.Seq[sla.Interval]) iter.Seq[sla.Interval] {
	return func(yield func(sla.Interval) bool) {
		var now sla.Interval
		for iv := range record {
			if iv.State != sla.Down {
				continue
			}
			if now.To.Equal(iv.From) {
				now.To = iv.To
				continue
			}
			if !now.To.IsZero() && !yield(now) {
				return
			}
			now = iv
		}
		if !now.To.IsZero() {
			yield(now)
		}
	}
}

// orderReach is how long after the end of its journal a node may still have
// beaten.
const orderReach = 10 * time.Second

// leftInOrder tells whether a node's own journal ended in good order then.
func (s *Story) leftInOrder(node string, at time.Time) bool {
	for _, b := range s.books {
		for i := range b.lives {
			l := &b.lives[i]
			if string(l.Node) != node || !l.sheets[len(l.sheets)-1].closed {
				continue
			}
			if d := at.Sub(b.when(l.Boot, l.end)); d.Abs() <= orderReach {
				return true
			}
		}
	}
	return false
}

// takeover tells how long after a node's failure all that it carried was
// carried by others, if it carried anything, and if they did before it was back.
func (s *Story) takeover(node string, failure sla.Interval) (took time.Duration, carried, handled bool) {
	handled = true
	for _, t := range s.Things() {
		if t.Kind != ThingAddress && t.Kind != ThingResource {
			continue
		}
		var had, other bool
		var since time.Time
		for sp := range s.spansIn(t, failure.From.Add(-time.Second), failure.To) {
			serves := sp.State == sla.Up || sp.State == sla.Degraded
			switch {
			case serves && sp.Where == node && sp.From.Before(failure.From) && !sp.To.Before(failure.From.Add(-time.Second)):
				had = true
			case serves && sp.Where != node && sp.Where != "" && sp.To.After(failure.From) && sp.From.Before(failure.To) && (!other || sp.From.Before(since)):
				other, since = true, sp.From
			}
		}
		if !had {
			continue
		}
		carried = true
		handled = handled && other
		took = max(took, since.Sub(failure.From))
	}
	return max(took, 0), carried, carried && handled
}

// Known is what the journals tell about a part of a model: of the thing of
// that name, or of the nodes for a part that consists of several.
func (s *Story) Known(name string, nodes int) (sla.Experience, bool, error) {
	if nodes > 1 {
		e, err := s.NodesExperience()
		return e, err == nil, err
	}
	for _, t := range s.Things() {
		if t.Name == name || t.String() == name {
			e, err := s.Experience(t)
			return e, err == nil, err
		}
	}
	return sla.Experience{}, false, nil
}
