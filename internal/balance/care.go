package balance

import (
	"math"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// HearWithCare is Hear for a service that is gentle: a real server that flaps
// is kept out, with outcome Held, until it has been well for long enough, and
// one that comes back begins its slow start.
func (s *State) HearWithCare(v model.Status, failureCount int, c model.Care, now time.Time) Outcome {
	if c == (model.Care{}) {
		return s.Hear(v, failureCount)
	}
	if s.Lately == nil {
		s.Lately = &Lately{}
	}
	l := s.Lately
	if v == model.Down {
		l.WellSince = time.Time{}
	}
	if v == model.Up && s.Status == model.Down {
		if l.WellSince.IsZero() {
			l.WellSince = now
		}
		if l.flapping(c, now) && now.Sub(l.WellSince) < c.FlapHold {
			s.Answered, s.Confirmed, s.Failures = true, true, 0
			return Held
		}
	}
	before := s.Status
	o := s.Hear(v, failureCount)
	switch {
	case o == WentDown && c.Flaps > 0:
		l.forget(c, now)
		l.Downs = append(l.Downs, now)
	case o == WentUp && before == model.Down:
		l.UpSince = now
	}
	return o
}

// flapping tells whether a real server went down too often lately.
func (l *Lately) flapping(c model.Care, now time.Time) bool {
	l.forget(c, now)
	return c.Flaps > 0 && len(l.Downs) >= c.Flaps
}

// forget drops what is too long ago to count.
func (l *Lately) forget(c model.Care, now time.Time) {
	l.Downs = slices.DeleteFunc(l.Downs, func(at time.Time) bool { return now.Sub(at) > c.FlapWindow })
}

// slowWeight is SlowWeight for a row's weight.
func (s *State) slowWeight(weight int, c *model.Care, now time.Time) int {
	if s.Lately == nil {
		return weight
	}
	w, _ := SlowWeight(weight, s.Lately.UpSince, *c, now)
	return w
}

// Growing tells whether a real server with that weight is in its slow start.
func (s *State) Growing(weight int, c model.Care, now time.Time) bool {
	if s.Lately == nil || !s.Serves() {
		return false
	}
	_, growing := SlowWeight(weight, s.Lately.UpSince, c, now)
	return growing
}

// SlowWeight is the weight of a real server that has been up again since then:
// Envoy's law, w * max(first, (t/window)^(1/aggression)), at least 1. growing
// tells whether it is still below its full size.
func SlowWeight(weight int, since time.Time, c model.Care, now time.Time) (w int, growing bool) {
	t := now.Sub(since)
	if c.SlowStart <= 0 || since.IsZero() || t >= c.SlowStart || weight <= 1 {
		return weight, false
	}
	first, aggression := c.SlowFirst, c.Aggression
	if first <= 0 {
		first = 0.1
	}
	if aggression <= 0 {
		aggression = 1
	}
	part := max(first, math.Pow(max(0, float64(t)/float64(c.SlowStart)), 1/aggression))
	return min(weight, max(1, int(math.Round(float64(weight)*part)))), true
}

// Panicking tells whether so few real servers of a service are up that all of
// them are used. Those that are held do not count.
func Panicking(c *model.Care, states []State) bool {
	if c.Panic <= 0 {
		return false
	}
	up, all := 0, 0
	for i := range states {
		s := &states[i]
		if s.Held() != HoldNone {
			continue
		}
		if !s.Answered {
			return false // not before all have been looked at
		}
		all++
		if s.Status == model.Up {
			up++
		}
	}
	return up > 0 && up*100 < all*c.Panic
}
