package sla

import (
	"fmt"
	"strings"
	"time"
)

// String is the canonical text of a statement.
func (s Statement) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-16s %s\n", name, fmt.Sprintf(format, args...))
	}
	until := s.Until.In(s.Period.From.Location()).Format(time.RFC3339)
	if s.Until.Before(s.Period.To) {
		line("Period", "%s, until %s", s.Period.Name, until)
	} else {
		line("Period", "%s", s.Period.Name)
	}
	line("Service hours", "%s: %s", s.Hours, s.Service)
	if s.Unplanned == nil {
		line("Availability", "not enough data: nothing was observed")
	} else {
		if s.Failures == 0 && s.Down == 0 {
			line("Availability", "not enough data: no down time in %s", s.Up+s.Degraded)
		} else {
			line("Availability", "%s", *s.Unplanned)
		}
		if s.Planned > 0 {
			line("", "%s with planned windows counted as down", *s.Total)
		}
	}
	if s.Unknown > 0 && s.Worst != nil {
		line("", "%s at worst, with what is unknown counted as down", *s.Worst)
	}
	line("Down", "%s unplanned, %s planned", s.Down, s.Planned)
	line("Degraded", "%s", s.Degraded)
	line("Unknown", "%s", s.Unknown)
	line("Failures", "%d", s.Failures)
	if s.Failures > 0 {
		line("MTBF", "%s (mean operating time between failures)", *s.MTBF)
		line("MTTR", "%s: detect %s, decide %s, switch %s, verify %s, not explained %s",
			*s.MTTR, s.Parts.Detect, s.Parts.Decide, s.Parts.Switch, s.Parts.Verify, s.Parts.Rest)
	}
	if s.Bounds != nil {
		bound := fmt.Sprintf("at least %s", s.Bounds.Low)
		if s.Failures > 0 {
			bound = fmt.Sprintf("between %s and %s", s.Bounds.Low, s.Bounds.High)
		}
		few := ""
		if !s.Enough {
			few = "; not enough data for more"
		}
		line("MTBF bounds", "%s (%g %% confidence, from %s)%s", bound, 100*s.Bounds.Confidence, plural(s.Failures, "failure"), few)
	}
	if s.Longest != nil {
		line("Longest outage", "%s, from %s to %s", s.Longest.Down,
			s.Longest.From.In(s.Period.From.Location()).Format(time.RFC3339), s.Longest.To.In(s.Period.From.Location()).Format(time.RFC3339))
	}
	if s.Budget != nil {
		line("Error budget", "%s of %s left (target %s)", s.Budget.Left, s.Budget.Allowed, s.Budget.Target)
	}
	for _, r := range s.Burn {
		alert := ""
		if r.Alert {
			alert = ": too fast"
		}
		line("Burn rate", "%s over %s, %s over %s (alert above %g)%s", rateText(r.LongRate), r.Long, rateText(r.ShortRate), r.Short, r.Threshold, alert)
	}
	return b.String()
}

func rateText(r *float64) string {
	if r == nil {
		return "unknown"
	}
	if *r >= 100 {
		return fmt.Sprintf("%.0f", *r)
	}
	return fmt.Sprintf("%.3g", *r)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
