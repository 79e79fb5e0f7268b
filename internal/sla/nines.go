package sla

import (
	"errors"
	"time"
)

// Calendar decides how long a year, a month and a day are.
type Calendar uint8

// Calendars.
const (
	CalendarNone         Calendar = iota
	CalendarActual                // the real periods around an instant, with leap years and changes of the clock
	CalendarConventional          // 365, 90, 30, 7 and 1 days of 24 hours
)

func (c Calendar) String() string {
	return [...]string{"none", "actual", "conventional"}[min(int(c), 2)]
}

// MarshalText writes actual or conventional.
func (c Calendar) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// ParseCalendar reads actual or conventional.
func ParseCalendar(text string) (Calendar, error) {
	for _, c := range []Calendar{CalendarActual, CalendarConventional} {
		if text == c.String() {
			return c, nil
		}
	}
	return CalendarNone, errors.New("the calendar is actual or conventional")
}

// Yardstick is one column of a table of nines: a period and its length.
type Yardstick struct {
	Per    Unit   `json:"per"`
	Length Span   `json:"seconds"`
	Period Period `json:"period,omitzero"` // with the actual calendar
}

// Yardsticks are the five periods of a calendar; the actual ones are those
// around an instant, in its zone.
func Yardsticks(c Calendar, at time.Time) []Yardstick {
	var all []Yardstick
	for _, u := range Units {
		y := Yardstick{Per: u, Length: u.Conventional()}
		if c == CalendarActual {
			y.Period = PeriodAt(u, at)
			y.Length = SpanOf(y.Period.Length())
		}
		all = append(all, y)
	}
	return all
}

// NinesRow is one row of a table of nines.
type NinesRow struct {
	Target   Unavailability `json:"target"`
	DownTime map[Unit]Span  `json:"down_time"` // seconds in each period
}

// classic are the rows of the usual table: one to seven nines, with the
// halves between that contracts like to name.
var classic = []string{"90", "95", "99", "99.5", "99.9", "99.95", "99.99", "99.995", "99.999", "99.9999", "99.99999"}

// NinesTable is the whole table, 90 % to seven nines.
func NinesTable(columns []Yardstick) []NinesRow {
	var rows []NinesRow
	for _, text := range classic {
		u, err := ParsePercent(text)
		if err != nil {
			continue // a test reads them all
		}
		rows = append(rows, Allowed(u, columns))
	}
	return rows
}

// Allowed is how much down time an availability leaves in each period.
func Allowed(u Unavailability, columns []Yardstick) NinesRow {
	row := NinesRow{Target: u, DownTime: map[Unit]Span{}}
	for _, c := range columns {
		row.DownTime[c.Per] = u.In(c.Length)
	}
	return row
}

// Shortfall is the other direction: what a down time in a period leaves of
// its availability. The error says that the period is too short for it.
func Shortfall(down, period Span) (Unavailability, error) {
	if down < 0 || period <= 0 || down > period {
		return 0, errors.New("a down time of " + down.String() + " does not fit into " + period.String())
	}
	return Unavailability(down / period), nil
}
