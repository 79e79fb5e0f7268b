package sla

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Hours are the agreed hours of service of a week, in one time zone. A nil
// *Hours means always.
type Hours struct {
	text   string
	loc    *time.Location
	week   [7][]clockSpan // by time.Weekday, ascending, apart
	except map[date]bool
}

// clockSpan is a stretch of a day as clocks show it.
type clockSpan struct{ from, to time.Duration }

var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseHours reads "Mon-Fri 08:00-18:00, Sat 09:00-13:00", then perhaps
// "except 2026-12-25 2026-12-26". A stretch that ends at or before its
// beginning reaches into the next day.
func ParseHours(text string, loc *time.Location) (*Hours, error) {
	h := &Hours{text: text, loc: loc, except: map[date]bool{}}
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		if len(words) == 0 {
			continue
		}
		if words[0] == "except" {
			for _, w := range words[1:] {
				t, err := time.Parse(time.DateOnly, w)
				if err != nil {
					return nil, fmt.Errorf("service hours %q: %q is no date: write 2026-12-25", text, w)
				}
				h.except[date{t.Year(), t.Month(), t.Day()}] = true
			}
			continue
		}
		if len(words) != 2 {
			return nil, fmt.Errorf("service hours %q: %q is not of the form Mon-Fri 08:00-18:00", text, strings.TrimSpace(part))
		}
		days, err := parseDays(words[0])
		if err != nil {
			return nil, fmt.Errorf("service hours %q: %w", text, err)
		}
		span, err := parseClockSpan(words[1])
		if err != nil {
			return nil, fmt.Errorf("service hours %q: %w", text, err)
		}
		for _, d := range days {
			if span.from < span.to {
				h.week[d] = append(h.week[d], span)
				continue
			}
			h.week[d] = append(h.week[d], clockSpan{span.from, 24 * time.Hour})
			if span.to > 0 {
				h.week[(d+1)%7] = append(h.week[(d+1)%7], clockSpan{0, span.to})
			}
		}
	}
	none := true
	for d := range h.week {
		h.week[d] = join(h.week[d])
		none = none && len(h.week[d]) == 0
	}
	if none {
		return nil, fmt.Errorf("service hours %q name no hours: write for example Mon-Fri 08:00-18:00", text)
	}
	return h, nil
}

func parseDays(text string) ([]int, error) {
	first, last, ranged := strings.Cut(strings.ToLower(text), "-")
	a := slices.Index(weekdays[:], first)
	b := a
	if ranged {
		b = slices.Index(weekdays[:], last)
	}
	if a < 0 || b < 0 {
		return nil, fmt.Errorf("%q names no days: write Mon, or Mon-Fri", text)
	}
	days := []int{a}
	for a != b {
		a = (a + 1) % 7
		days = append(days, a)
	}
	return days, nil
}

func parseClockSpan(text string) (clockSpan, error) {
	from, to, _ := strings.Cut(text, "-")
	a, err1 := parseClock(from)
	b, err2 := parseClock(to)
	if err1 != nil || err2 != nil || a == 24*time.Hour {
		return clockSpan{}, fmt.Errorf("%q is no stretch of a day: write 08:00-18:00, midnight as 24:00", text)
	}
	return clockSpan{a, b}, nil
}

func parseClock(text string) (time.Duration, error) {
	if text == "24:00" {
		return 24 * time.Hour, nil
	}
	t, err := time.Parse("15:04", text)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err
}

// join sorts stretches and unites those that touch.
func join(spans []clockSpan) []clockSpan {
	slices.SortFunc(spans, func(a, b clockSpan) int { return int(a.from - b.from) })
	var out []clockSpan
	for _, s := range spans {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// String is the text that was parsed; "always" for nil.
func (h *Hours) String() string {
	if h == nil {
		return "always"
	}
	return h.text
}

// MarshalText writes String.
func (h *Hours) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Within yields the stretches of service time in [from, to), ascending. Where
// clocks change, the hours are those that clocks show: the night that lacks an
// hour has one hour of service less.
func (h *Hours) Within(from, to time.Time) iter.Seq2[time.Time, time.Time] {
	return func(yield func(time.Time, time.Time) bool) {
		if !from.Before(to) {
			return
		}
		if h == nil {
			yield(from, to)
			return
		}
		local := from.In(h.loc)
		for d := (date{local.Year(), local.Month(), local.Day()}); ; d.day++ {
			midnight := time.Date(d.year, d.month, d.day, 0, 0, 0, 0, time.UTC)
			if !wall(h.loc, d, 0).Before(to) {
				return
			}
			if h.except[date{midnight.Year(), midnight.Month(), midnight.Day()}] {
				continue
			}
			for _, s := range h.week[midnight.Weekday()] {
				a, b := later(from, wall(h.loc, d, s.from)), earlier(to, wall(h.loc, d, s.to))
				if a.Before(b) && !yield(a, b) {
					return
				}
			}
		}
	}
}

// Length is the service time in [from, to).
func (h *Hours) Length(from, to time.Time) time.Duration {
	var sum time.Duration
	for a, b := range h.Within(from, to) {
		sum += b.Sub(a)
	}
	return sum
}

// any tells whether there is service time in [from, to).
func (h *Hours) any(from, to time.Time) bool {
	for range h.Within(from, to) {
		return true
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
