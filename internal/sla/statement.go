package sla

import (
	"fmt"
	"iter"
	"time"
)

// Agreement is what was promised about a service.
type Agreement struct {
	Target     Unavailability // most that may be missing; 0 = nothing was promised
	Hours      *Hours         // when it counts; nil = always
	Confidence float64        // of the bounds; 0 = 0.9
}

// Statement says how available a service was in a period. All times are
// within the agreed hours and between Period.From and Until.
type Statement struct {
	Period Period    `json:"period"`
	Until  time.Time `json:"until"` // the end of the period, or now if it is not over
	Hours  *Hours    `json:"hours"`

	Service  Span `json:"service_seconds"` // agreed hours; the sum of the next five
	Up       Span `json:"up_seconds"`
	Degraded Span `json:"degraded_seconds"` // served with less than the whole capacity
	Down     Span `json:"down_seconds"`     // not planned
	Planned  Span `json:"planned_seconds"`  // in windows declared beforehand
	Unknown  Span `json:"unknown_seconds"`  // nobody was looking

	// Nil where there is no time to divide by: nothing is not 100 %.
	Unplanned *Unavailability `json:"availability"`              // down of up, degraded and down
	Total     *Unavailability `json:"availability_with_planned"` // planned windows counted as down
	Worst     *Unavailability `json:"availability_at_worst"`     // and what is unknown as well

	Failures int     `json:"failures"`     // outages that began in the period
	MTBF     *Span   `json:"mtbf_seconds"` // mean operating time between failures; nil without any
	MTTR     *Span   `json:"mttr_seconds"` // mean down time of a failure
	Parts    Parts   `json:"mttr_parts"`
	Bounds   *Bounds `json:"mtbf_bounds"`
	Enough   bool    `json:"enough_data"` // at least Few failures
	Longest  *Outage `json:"longest_outage"`

	Budget *Budget `json:"budget"` // nil without a target
	Burn   []Burn  `json:"burn"`   // empty without a target
}

// Parts are the means of what MTTR consists of. Rest is what no record
// explains.
type Parts struct {
	Detect Span `json:"detect_seconds"`
	Decide Span `json:"decide_seconds"`
	Switch Span `json:"switch_seconds"`
	Verify Span `json:"verify_seconds"`
	Rest   Span `json:"rest_seconds"`
}

// Outage is one failure from its beginning until service is known to be back.
type Outage struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Down Span      `json:"down_seconds"` // within the period and the agreed hours
}

// Budget is the down time that the target leaves for the whole period.
type Budget struct {
	Target  Unavailability `json:"target"`
	Allowed Span           `json:"allowed_seconds"`
	Spent   Span           `json:"spent_seconds"`
	Left    Span           `json:"left_seconds"` // negative when overspent
}

// Burn compares the speed at which the budget is spent with the speed that
// would use it up exactly at the end of the period, over a long and a short
// time before now. Alert when both are above the threshold: the long one says
// that it matters, the short one that it still goes on (Site Reliability
// Workbook, chapter 5).
type Burn struct {
	Long      Span     `json:"long_seconds"`
	Short     Span     `json:"short_seconds"`
	Threshold float64  `json:"threshold"`
	LongRate  *float64 `json:"long_rate"` // nil when nothing was observed
	ShortRate *float64 `json:"short_rate"`
	Alert     bool     `json:"alert"`
}

var burnWindows = [...]struct {
	long, short time.Duration
	threshold   float64
}{
	{time.Hour, 5 * time.Minute, 14.4},
	{6 * time.Hour, 30 * time.Minute, 6},
	{24 * time.Hour, 2 * time.Hour, 3},
	{72 * time.Hour, 6 * time.Hour, 1},
}

// BurnReach is how far before now intervals matter to the burn rates, even if
// that is before the period.
const BurnReach = 72 * time.Hour

// Account adds up the intervals of one service: ascending, without overlaps,
// gaps between them unknown. It reads them once and keeps none. Those before
// the period tell whether an outage at its beginning is an old one, and feed
// the burn rates. The error names an interval that is out of order.
func Account(record iter.Seq[Interval], p Period, now time.Time, agreed Agreement) (Statement, error) {
	if !p.From.Before(p.To) {
		return Statement{}, fmt.Errorf("period %s ends before it begins", p.Name)
	}
	if p.From.Year() < 1970 || p.To.Year() > 2200 {
		return Statement{}, fmt.Errorf("period %s is not between 1970 and 2200", p.Name)
	}
	if agreed.Confidence == 0 {
		agreed.Confidence = 0.9
	}
	until := later(p.From, earlier(p.To, now))
	a := accountant{until: until, period: newMeter(agreed.Hours, p.From, until)}
	for _, w := range burnWindows {
		a.burn = append(a.burn, newMeter(agreed.Hours, now.Add(-w.long), now), newMeter(agreed.Hours, now.Add(-w.short), now))
	}
	a.burnFrom = now.Add(-BurnReach)
	a.hours = agreed.Hours
	a.from = p.From

	var last time.Time
	for iv := range record {
		if err := iv.check(last); err != nil {
			return Statement{}, err
		}
		last = iv.To
		a.add(iv)
	}
	a.close()
	return a.statement(p, now, agreed), nil
}

// accountant is Account at work.
type accountant struct {
	hours       *Hours
	from, until time.Time
	period      meter
	burnFrom    time.Time
	burn        []meter

	known    State // the last one that says whether service was there: up, degraded or down
	counted  bool  // the present outage has been counted, in this period or as an earlier one's
	outage   Outage
	failures int
	longest  Outage
	parts    [4]time.Duration
}

// add takes the next interval.
func (a *accountant) add(iv Interval) {
	before := a.period.sum[Down]
	a.period.add(iv.State, iv.From, iv.To)
	if iv.To.After(a.burnFrom) {
		for i := range a.burn {
			a.burn[i].add(iv.State, iv.From, iv.To)
		}
	}
	switch iv.State {
	case Up, Degraded:
		if a.known == Down {
			a.close()
		}
		a.known = iv.State
	case Down:
		if a.known != Down {
			a.counted = false
			a.outage = Outage{From: iv.From}
		}
		a.known = Down
		a.outage.To = iv.To
		a.outage.Down += SpanOf(a.period.sum[Down] - before)
		a.count(iv)
		if iv.Repair != (Repair{}) && a.period.sum[Down] > before {
			a.split(iv)
		}
	default: // planned and unknown say nothing about failures
	}
}

// count attributes an outage to the period in which its first moment of
// service time lies, so that failures of adjacent periods add up.
func (a *accountant) count(iv Interval) {
	if a.counted {
		return
	}
	for at := range a.hours.Within(iv.From, iv.To) {
		a.counted = true
		if !at.Before(a.from) && at.Before(a.until) {
			a.failures++
		}
		return
	}
}

// split adds the parts of a repair that lie within the period and the hours.
func (a *accountant) split(iv Interval) {
	from := iv.From
	for i, d := range [...]time.Duration{iv.Repair.Detect, iv.Repair.Decide, iv.Repair.Switch, iv.Repair.Verify} {
		to := earlier(from.Add(max(d, 0)), iv.To)
		a.parts[i] += a.hours.Length(later(from, a.from), earlier(to, a.until))
		from = to
	}
}

// close ends the present outage.
func (a *accountant) close() {
	if a.outage.Down > a.longest.Down {
		a.longest = a.outage
	}
	a.outage = Outage{}
}

func (a *accountant) statement(p Period, now time.Time, agreed Agreement) Statement {
	sum := a.period.sum
	s := Statement{
		Period: p, Until: a.until, Hours: agreed.Hours,
		Service: SpanOf(agreed.Hours.Length(p.From, a.until)),
		Up:      SpanOf(sum[Up]), Degraded: SpanOf(sum[Degraded]), Down: SpanOf(sum[Down]), Planned: SpanOf(sum[Planned]),
		Failures: a.failures, Enough: a.failures >= Few,
	}
	operating := s.Up + s.Degraded
	observed := operating + s.Down
	s.Unknown = max(0, s.Service-observed-s.Planned)
	s.Unplanned = share(s.Down, observed)
	s.Total = share(s.Down+s.Planned, observed+s.Planned)
	s.Worst = share(s.Down+s.Planned+s.Unknown, s.Service)
	if n := Span(a.failures); n > 0 {
		mtbf, mttr := operating/n, s.Down/n
		s.MTBF, s.MTTR = &mtbf, &mttr
		s.Parts = Parts{
			Detect: SpanOf(a.parts[0]) / n, Decide: SpanOf(a.parts[1]) / n,
			Switch: SpanOf(a.parts[2]) / n, Verify: SpanOf(a.parts[3]) / n,
		}
		s.Parts.Rest = max(0, mttr-s.Parts.Detect-s.Parts.Decide-s.Parts.Switch-s.Parts.Verify)
	}
	if operating > 0 {
		b := MTBFBounds(operating, a.failures, agreed.Confidence)
		s.Bounds = &b
	}
	if a.longest.Down > 0 {
		longest := a.longest
		s.Longest = &longest
	}
	if agreed.Target > 0 {
		allowed := agreed.Target.In(SpanOf(agreed.Hours.Length(p.From, p.To)))
		s.Budget = &Budget{Target: agreed.Target, Allowed: allowed, Spent: s.Down, Left: allowed - s.Down}
		for i, w := range burnWindows {
			b := Burn{Long: SpanOf(w.long), Short: SpanOf(w.short), Threshold: w.threshold}
			b.LongRate, b.ShortRate = a.burn[2*i].rate(agreed.Target), a.burn[2*i+1].rate(agreed.Target)
			b.Alert = b.LongRate != nil && b.ShortRate != nil && *b.LongRate > w.threshold && *b.ShortRate > w.threshold
			s.Burn = append(s.Burn, b)
		}
	}
	return s
}

// share is nil where nothing is divided by nothing.
func share(part, whole Span) *Unavailability {
	if whole <= 0 {
		return nil
	}
	u := Unavailability(part / whole)
	return &u
}

// meter adds up the time in each state within [from, to) and the agreed
// hours. Times are nanoseconds since 1970, which costs less than time.Time
// with millions of intervals.
type meter struct {
	from, to int64
	sum      [states]time.Duration

	// The stretches of service time are walked along with the intervals.
	spans    [][2]int64
	position int
}

// newMeter lists the stretches: a few hundred a year. Without agreed hours it
// is one.
func newMeter(h *Hours, from, to time.Time) meter {
	m := meter{from: from.UnixNano(), to: to.UnixNano()}
	for a, b := range h.Within(from, to) {
		m.spans = append(m.spans, [2]int64{a.UnixNano(), b.UnixNano()})
	}
	return m
}

// add takes intervals in ascending order.
func (m *meter) add(s State, begin, end time.Time) {
	from, to := max(begin.UnixNano(), m.from), min(end.UnixNano(), m.to)
	if from >= to {
		return
	}
	for m.position < len(m.spans) && m.spans[m.position][1] <= from {
		m.position++
	}
	for _, span := range m.spans[m.position:] {
		if span[0] >= to {
			return
		}
		if a, b := max(from, span[0]), min(to, span[1]); a < b {
			m.sum[s] += time.Duration(b - a)
		}
	}
}

// rate is how many times as fast as allowed the budget was spent; nil if
// nothing was observed.
func (m *meter) rate(target Unavailability) *float64 {
	observed := m.sum[Up] + m.sum[Degraded] + m.sum[Down]
	if observed == 0 {
		return nil
	}
	r := m.sum[Down].Seconds() / observed.Seconds() / float64(target)
	return &r
}
