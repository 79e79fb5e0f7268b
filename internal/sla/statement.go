package sla

import (
	"fmt"
	"iter"
	"math"
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
	Burn   []Burn  `json:"burn"`   // empty without a target, and when the period is over
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

// burnReach is how far before now intervals matter to the burn rates, even if
// that is before the period.
const burnReach = 72 * time.Hour

// Reach is the instant before which no interval matters to the statement of a
// period, but the one in which that instant lies.
func Reach(p Period, now time.Time) time.Time { return earlier(p.From, now.Add(-burnReach)) }

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
	a := accountant{hours: agreed.Hours, from: p.From, period: newMeter(agreed.Hours, p.From, until), until: until}
	for _, w := range burnWindows {
		a.burn = append(a.burn, newMeter(agreed.Hours, now.Add(-w.long), now), newMeter(agreed.Hours, now.Add(-w.short), now))
	}
	a.over = !now.Before(p.To)
	a.burnFrom = now.Add(-burnReach).UnixNano()

	last := int64(math.MinInt64)
	for iv := range record {
		from, to := iv.From.UnixNano(), iv.To.UnixNano()
		if from < last || to < from || iv.State == StateUnset || iv.State >= states {
			return Statement{}, iv.wrong(time.Unix(0, last))
		}
		last = to
		a.add(&iv, from, to)
	}
	a.close()
	return a.statement(p, agreed), nil
}

// accountant is Account at work. Its instants are nanoseconds since 1970,
// which cost less than time.Time with millions of intervals.
type accountant struct {
	hours       *Hours
	from, until time.Time
	period      meter
	burnFrom    int64
	over        bool // the period: nothing burns any more
	burn        []meter

	known    State // the last one that says whether service was there: up, degraded or down
	counted  bool  // the present outage has been counted, in this period or as an earlier one's
	outage   stretch
	failures int
	longest  stretch
	parts    [4]int64
}

// stretch is an outage with what counts of it.
type stretch struct{ from, to, down int64 }

// add takes the next interval.
func (a *accountant) add(iv *Interval, from, to int64) {
	n := a.period.add(iv.State, from, to)
	if to > a.burnFrom {
		for i := range a.burn {
			a.burn[i].add(iv.State, from, to)
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
			a.outage.from = from
		}
		a.known = Down
		a.outage.to = to
		a.outage.down += n
		if !a.counted {
			a.count(iv, n > 0)
		}
		if n > 0 && iv.Repair != (Repair{}) {
			a.split(&iv.Repair, from, to)
		}
	default: // planned and unknown say nothing about failures
	}
}

// count attributes an outage to the period in which its first moment of
// service time lies, so that failures of adjacent periods add up.
func (a *accountant) count(iv *Interval, within bool) {
	if iv.From.Before(a.from) && a.hours.any(iv.From, earlier(iv.To, a.from)) {
		a.counted = true // an earlier period's
		return
	}
	if within {
		a.counted = true
		a.failures++
	}
}

// split adds the parts of a repair that lie within the period and the hours.
func (a *accountant) split(r *Repair, from, to int64) {
	for i, d := range [...]time.Duration{r.Detect, r.Decide, r.Switch, r.Verify} {
		end := min(from+max(int64(d), 0), to)
		a.parts[i] += a.period.overlap(from, end)
		from = end
	}
}

// close ends the present outage.
func (a *accountant) close() {
	if a.outage.down > a.longest.down {
		a.longest = a.outage
	}
	a.outage = stretch{}
}

func (a *accountant) statement(p Period, agreed Agreement) Statement {
	sum := a.period.sum
	service := agreed.Hours.Length(p.From, a.until)
	unknown := int64(service) - sum[Up] - sum[Degraded] - sum[Down] - sum[Planned]
	s := Statement{
		Period: p, Until: a.until, Hours: agreed.Hours,
		Service: SpanOf(service), Unknown: nanoseconds(unknown),
		Up: nanoseconds(sum[Up]), Degraded: nanoseconds(sum[Degraded]), Down: nanoseconds(sum[Down]), Planned: nanoseconds(sum[Planned]),
		Failures: a.failures, Enough: a.failures >= Few,
	}
	operating := s.Up + s.Degraded
	observed := operating + s.Down
	s.Unplanned = share(s.Down, observed)
	s.Total = share(s.Down+s.Planned, observed+s.Planned)
	s.Worst = share(s.Down+s.Planned+s.Unknown, s.Service)
	if n := Span(a.failures); n > 0 {
		mtbf, mttr := operating/n, s.Down/n
		s.MTBF, s.MTTR = &mtbf, &mttr
		s.Parts = Parts{
			Detect: nanoseconds(a.parts[0]) / n, Decide: nanoseconds(a.parts[1]) / n,
			Switch: nanoseconds(a.parts[2]) / n, Verify: nanoseconds(a.parts[3]) / n,
		}
		if rest := mttr - s.Parts.Detect - s.Parts.Decide - s.Parts.Switch - s.Parts.Verify; rest > 1e-9 { // less than the clock counts is rounding
			s.Parts.Rest = rest
		}
	}
	if operating > 0 {
		b := MTBFBounds(operating, a.failures, agreed.Confidence)
		s.Bounds = &b
	}
	if l := a.longest; l.down > 0 {
		s.Longest = &Outage{time.Unix(0, l.from).In(p.From.Location()), time.Unix(0, l.to).In(p.From.Location()), nanoseconds(l.down)}
	}
	if agreed.Target > 0 {
		allowed := agreed.Target.In(SpanOf(agreed.Hours.Length(p.From, p.To)))
		s.Budget = &Budget{Target: agreed.Target, Allowed: allowed, Spent: s.Down, Left: allowed - s.Down}
		for i, w := range burnWindows {
			if a.over {
				break
			}
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

// meter adds up the nanoseconds in each state within the agreed
// hours of a time.
type meter struct {
	sum [states]int64

	// The stretches of service time are walked along with the intervals.
	spans    [][2]int64
	position int
}

// newMeter lists the stretches: a few hundred a year. Without agreed hours it
// is one.
func newMeter(h *Hours, from, to time.Time) meter {
	var m meter
	for a, b := range h.Within(from, to) {
		m.spans = append(m.spans, [2]int64{a.UnixNano(), b.UnixNano()})
	}
	return m
}

// add takes intervals in ascending order, and returns how much of one counts.
func (m *meter) add(s State, from, to int64) int64 {
	for m.position < len(m.spans) && m.spans[m.position][1] <= from {
		m.position++
	}
	n := m.overlap(from, to)
	m.sum[s] += n
	return n
}

// overlap is how much of an interval counts that does not begin before the
// last one added.
func (m *meter) overlap(from, to int64) int64 {
	var n int64
	for _, span := range m.spans[m.position:] {
		if span[0] >= to {
			break
		}
		n += max(0, min(to, span[1])-max(from, span[0]))
	}
	return n
}

// rate is how many times as fast as allowed the budget was spent; nil if
// nothing was observed.
func (m *meter) rate(target Unavailability) *float64 {
	observed := m.sum[Up] + m.sum[Degraded] + m.sum[Down]
	if observed == 0 {
		return nil
	}
	r := float64(m.sum[Down]) / float64(observed) / float64(target)
	return &r
}

func nanoseconds(n int64) Span { return SpanOf(time.Duration(n)) }
