package sla

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Unit is a kind of calendar period.
type Unit uint8

// Units of the calendar. Weeks are those of ISO 8601: they begin on Monday.
const (
	UnitNone Unit = iota
	PerYear
	PerQuarter
	PerMonth
	PerWeek
	PerDay
)

// Units lists all, longest first.
var Units = []Unit{PerYear, PerQuarter, PerMonth, PerWeek, PerDay}

var unitNames = [...]string{"none", "year", "quarter", "month", "week", "day"}

func (u Unit) String() string { return unitNames[min(int(u), len(unitNames)-1)] }

// MarshalText writes year, quarter, month, week or day.
func (u Unit) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// ParseUnit reads year, quarter, month, week or day.
func ParseUnit(text string) (Unit, error) {
	for _, u := range Units {
		if text == u.String() {
			return u, nil
		}
	}
	return UnitNone, fmt.Errorf("%q is no period: year, quarter, month, week, day", text)
}

// Conventional is the length that printed tables of nines use: a year of 365
// days, a month of 30, a quarter of three such months.
func (u Unit) Conventional() Span {
	return [...]Span{0, 365 * Day, 90 * Day, 30 * Day, Week, Day}[min(int(u), len(unitNames)-1)]
}

// Period is a stretch of time [From, To) with its name.
type Period struct {
	Name string    `json:"name"` // 2026, 2026-Q4, 2026-10, 2026-W43, 2026-10-25
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Length is how long the period really lasts: a day may have 23 or 25 hours.
func (p Period) Length() time.Duration { return p.To.Sub(p.From) }

// PeriodAt is the calendar period of that kind around an instant, in the
// zone of the instant.
func PeriodAt(unit Unit, at time.Time) Period {
	y, m, d := at.Date()
	loc := at.Location()
	switch unit {
	case PerYear:
		return period(strconv.Itoa(y), loc, date{y, 1, 1}, date{y + 1, 1, 1})
	case PerQuarter:
		q := (m - 1) / 3
		return period(fmt.Sprintf("%04d-Q%d", y, q+1), loc, date{y, q*3 + 1, 1}, date{y, q*3 + 4, 1})
	case PerMonth:
		return period(fmt.Sprintf("%04d-%02d", y, m), loc, date{y, m, 1}, date{y, m + 1, 1})
	case PerWeek:
		monday := d - (int(at.Weekday())+6)%7
		iy, iw := at.ISOWeek()
		return period(fmt.Sprintf("%04d-W%02d", iy, iw), loc, date{y, m, monday}, date{y, m, monday + 7})
	default:
		return period(fmt.Sprintf("%04d-%02d-%02d", y, m, d), loc, date{y, m, d}, date{y, m, d + 1})
	}
}

// ParsePeriod reads the name of a period (2026, 2026-Q4, 2026-10, 2026-W43,
// 2026-10-25), or of a kind of period (month): the one around now. Both are
// meant in now's zone.
func ParsePeriod(text string, now time.Time) (Period, error) {
	if u, err := ParseUnit(text); err == nil {
		return PeriodAt(u, now), nil
	}
	bad := fmt.Errorf("%q is no period: write 2026, 2026-Q4, 2026-10, 2026-W43, 2026-10-25, or year, quarter, month, week, day", text)
	loc := now.Location()
	noon := func(y int, m time.Month, d int) time.Time { return time.Date(y, m, d, 12, 0, 0, 0, loc) }
	year, rest, more := strings.Cut(text, "-")
	y, err := strconv.Atoi(year)
	if err != nil || len(year) != 4 {
		return Period{}, bad
	}
	if !more {
		return PeriodAt(PerYear, noon(y, 1, 1)), nil
	}
	var found Period
	switch {
	case rest == "":
		return Period{}, bad
	case rest[0] == 'Q':
		q, err := strconv.Atoi(rest[1:])
		if err != nil {
			return Period{}, bad
		}
		found = PeriodAt(PerQuarter, noon(y, time.Month(q*3-2), 1))
	case rest[0] == 'W':
		w, err := strconv.Atoi(rest[1:])
		if err != nil {
			return Period{}, bad
		}
		// January 4 is always in the first week.
		found = PeriodAt(PerWeek, noon(y, 1, 4).AddDate(0, 0, 7*(w-1)))
	default:
		if t, err := time.ParseInLocation("2006-01", text, loc); err == nil {
			found = PeriodAt(PerMonth, noon(t.Year(), t.Month(), 1))
		} else if t, err := time.ParseInLocation("2006-01-02", text, loc); err == nil {
			found = PeriodAt(PerDay, noon(t.Year(), t.Month(), t.Day()))
		}
	}
	// Whatever the arithmetic made of week 99 has another name.
	if found.Name != text {
		return Period{}, bad
	}
	return found, nil
}

// date is a day of the calendar; like time.Date it may be out of range.
type date struct {
	year  int
	month time.Month
	day   int
}

func period(name string, loc *time.Location, from, to date) Period {
	return Period{name, wall(loc, from, 0), wall(loc, to, 0)}
}

// wall is the first instant at which the clocks of a zone show that day and
// time of day, or more: of an hour that comes twice the first one, of an hour
// that is left out its end. time.Date promises less: for such hours it may
// take either offset.
func wall(loc *time.Location, d date, clock time.Duration) time.Time {
	shown := time.Date(d.year, d.month, d.day, 0, 0, 0, 0, time.UTC).Add(clock)
	// No zone is a whole day away from UTC, so this is before the instant.
	t := shown.Add(-26 * time.Hour).In(loc)
	for {
		_, offset := t.Zone()
		start, end := t.ZoneBounds()
		instant := shown.Add(-time.Duration(offset) * time.Second).In(loc)
		if !start.IsZero() && instant.Before(start) {
			return start
		}
		if end.IsZero() || instant.Before(end) {
			return instant
		}
		t = end
	}
}
