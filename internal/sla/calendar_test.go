package sla

import (
	"testing"
	"time"
	_ "time/tzdata" // the tests name zones

	"pgregory.net/rapid"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestPeriods(t *testing.T) {
	for _, c := range []struct {
		zone, at string
		unit     Unit
		name     string
		from, to string
		hours    float64
	}{
		{"Europe/Berlin", "2026-11-22T12:00:00", PerYear, "2026", "2026-01-01T00:00:00+01:00", "2027-01-01T00:00:00+01:00", 8760},
		{"Europe/Berlin", "2028-02-29T12:00:00", PerYear, "2028", "2028-01-01T00:00:00+01:00", "2029-01-01T00:00:00+01:00", 8784},
		{"Europe/Berlin", "2026-03-29T12:00:00", PerDay, "2026-03-29", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00", 23},
		{"Europe/Berlin", "2026-10-25T02:30:00", PerDay, "2026-10-25", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", 25},
		{"Europe/Berlin", "2026-10-25T12:00:00", PerWeek, "2026-W43", "2026-10-19T00:00:00+02:00", "2026-10-26T00:00:00+01:00", 169},
		{"Europe/Berlin", "2026-03-15T12:00:00", PerMonth, "2026-03", "2026-03-01T00:00:00+01:00", "2026-04-01T00:00:00+02:00", 743},
		{"Europe/Berlin", "2026-10-01T00:00:00", PerQuarter, "2026-Q4", "2026-10-01T00:00:00+02:00", "2027-01-01T00:00:00+01:00", 92*24 + 1},
		{"UTC", "2026-02-28T23:59:59", PerMonth, "2026-02", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z", 28 * 24},
		{"UTC", "2027-01-01T00:00:00", PerWeek, "2026-W53", "2026-12-28T00:00:00Z", "2027-01-04T00:00:00Z", 168},
		// Clocks change at midnight: the day begins at one.
		{"America/Santiago", "2024-09-08T12:00:00", PerDay, "2024-09-08", "2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00", 23},
		// Midnight comes twice; the first one counts.
		{"America/Havana", "2026-11-01T12:00:00", PerDay, "2026-11-01", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00", 25},
		// Half an hour.
		{"Australia/Lord_Howe", "2026-10-04T12:00:00", PerDay, "2026-10-04", "2026-10-04T00:00:00+10:30", "2026-10-05T00:00:00+11:00", 23.5},
		// A day that was left out belongs to none: December 29 ends where the 31st begins.
		{"Pacific/Apia", "2011-12-29T12:00:00", PerDay, "2011-12-29", "2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00", 24},
	} {
		t.Run(c.zone+" "+c.name, func(t *testing.T) {
			loc := zone(t, c.zone)
			at, err := time.ParseInLocation("2006-01-02T15:04:05", c.at, loc)
			if err != nil {
				t.Fatal(err)
			}
			p := PeriodAt(c.unit, at)
			from, to := p.From.Format(time.RFC3339), p.To.Format(time.RFC3339)
			if p.Name != c.name || from != c.from || to != c.to || p.Length().Hours() != c.hours {
				t.Errorf("%s: %s to %s, %g h, want %s: %s to %s, %g h", p.Name, from, to, p.Length().Hours(), c.name, c.from, c.to, c.hours)
			}
		})
	}
}

func TestParsePeriod(t *testing.T) {
	now := time.Date(2026, 11, 22, 18, 0, 0, 0, zone(t, "Europe/Berlin"))
	for text, want := range map[string]string{
		"2026": "2026", "2026-Q3": "2026-Q3", "2026-10": "2026-10", "2026-W53": "2026-W53", "2027-W01": "2027-W01", "2028-02-29": "2028-02-29",
		"month": "2026-11", "week": "2026-W47", "day": "2026-11-22", "quarter": "2026-Q4", "year": "2026",
		"2026-Q5": "", "2026-Q0": "", "2027-W53": "", "2026-W00": "", "2026-13": "", "2027-02-29": "", "2026-": "", "26": "", "": "", "2026-Qx": "", "2026-W": "", "hour": "", "2026-1": "",
	} {
		p, err := ParsePeriod(text, now)
		if p.Name != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, p.Name, err, want)
		}
	}
}

// Days of a year, wherever, follow each other without gap or overlap, and make
// up the months and the year.
func TestPeriodsAddUp(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/Santiago", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca"}
	rapid.Check(t, func(t *rapid.T) {
		loc, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(rapid.Int64Range(1e9, 2e9).Draw(t, "at"), 0).In(loc)
		for _, u := range Units {
			p := PeriodAt(u, at)
			if at.Before(p.From) || !at.Before(p.To) {
				t.Fatalf("%s is not in %s: %s to %s", at, p.Name, p.From, p.To)
			}
			next := PeriodAt(u, p.To)
			if !next.From.Equal(p.To) {
				t.Fatalf("%s ends at %s, %s begins at %s", p.Name, p.To, next.Name, next.From)
			}
			again, err := ParsePeriod(p.Name, at)
			if err != nil || !again.From.Equal(p.From) || !again.To.Equal(p.To) {
				t.Fatalf("%s is read as %+v, %v", p.Name, again, err)
			}
		}
	})
}

func TestHours(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	day := func(text string) time.Time {
		d, err := time.ParseInLocation(time.DateOnly, text, berlin)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, c := range []struct {
		hours    string
		from, to string
		want     time.Duration
	}{
		{"Mon-Fri 08:00-18:00", "2026-11-16", "2026-11-23", 50 * time.Hour},
		{"Mon-Fri 08:00-18:00, Sat 09:00-13:00", "2026-11-16", "2026-11-23", 54 * time.Hour},
		{"Mon-Fri 08:00-18:00, except 2026-11-18", "2026-11-16", "2026-11-23", 40 * time.Hour},
		{"Mon-Fri 08:00-12:00, Mon 10:00-14:00", "2026-11-16", "2026-11-17", 6 * time.Hour}, // united
		{"Sat-Mon 00:00-24:00", "2026-11-16", "2026-11-23", 72 * time.Hour},
		{"Sun 22:00-06:00", "2026-11-15", "2026-11-16", 2 * time.Hour},
		{"Sun 22:00-06:00", "2026-11-16", "2026-11-17", 6 * time.Hour}, // the rest of Sunday's
		// The night without the hour from 2 to 3, and the one that has it twice.
		{"Sun 01:00-04:00", "2026-03-29", "2026-03-30", 2 * time.Hour},
		{"Sun 01:00-04:00", "2026-10-25", "2026-10-26", 4 * time.Hour},
		{"Sun 02:15-02:45", "2026-03-29", "2026-03-30", 0},
		{"Sun 00:00-24:00", "2026-10-25", "2026-10-26", 25 * time.Hour},
		{"Sun 00:00-02:30, Sun 02:30-24:00", "2026-10-25", "2026-10-26", 25 * time.Hour},
	} {
		h, err := ParseHours(c.hours, berlin)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.Length(day(c.from), day(c.to)); got != c.want {
			t.Errorf("%s from %s to %s: %s, want %s", c.hours, c.from, c.to, got, c.want)
		}
	}
	for _, bad := range []string{"", "Mon", "Mon 8-18", "Moon 08:00-18:00", "Mon-Fri 24:00-08:00", "Mon 08:00-25:00", "except 2026-01-01", "Mon 08:00-18:00, except soon", "Mon-Tue-Wed 08:00-09:00"} {
		if h, err := ParseHours(bad, berlin); err == nil {
			t.Errorf("%q is read as %v", bad, h.week)
		}
	}
}

// Service time of adjacent stretches adds up, and never exceeds them.
func TestHoursAddUp(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	h, err := ParseHours("Mon-Fri 08:00-18:00, Sat-Sun 22:00-02:30", berlin)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(1700000000, 1900000000).Draw(t, "from")
		a := time.Unix(at, 0)
		b := a.Add(time.Duration(rapid.Int64Range(0, 30*86400).Draw(t, "first")) * time.Second)
		c := b.Add(time.Duration(rapid.Int64Range(0, 30*86400).Draw(t, "second")) * time.Second)
		ab, bc, ac := h.Length(a, b), h.Length(b, c), h.Length(a, c)
		if ab+bc != ac || ab < 0 || ab > b.Sub(a) {
			t.Fatalf("%s and %s are %s, not %s", ab, bc, ab+bc, ac)
		}
	})
}
