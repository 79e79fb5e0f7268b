package sla

import (
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParsePercent(t *testing.T) {
	for _, c := range []struct {
		text string
		want Unavailability
		bad  string
	}{
		{"99.9", 1e-3, ""},
		{"99.95%", 5e-4, ""},
		{" 99.99999 % ", 1e-7, ""},
		{"99.9999999999", 1e-12, ""}, // 1 - 0.999999999999 is not 1e-12 in float64
		{"100", 0, ""},
		{"0", 1, ""},
		{"50.", 0.5, ""},
		{"0.999", 0, "for a share of 0.999 write 99.9"},
		{"1", 0, "for a share of 1 write 100"},
		{"100.001", 0, "more than all of the time"},
		{"-1", 0, "no percentage"},
		{"99,9", 0, "no percentage"},
		{"9e1", 0, "no percentage"},
		{"999/10", 0, "no percentage"},
		{"99.9.9", 0, "no percentage"},
		{"", 0, "no percentage"},
		{"%", 0, "no percentage"},
		{strings.Repeat("9", 50), 0, "no percentage"},
	} {
		got, err := ParsePercent(c.text)
		switch {
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%q: %v, want an error with %q", c.text, err, c.bad)
		case c.bad == "" && (err != nil || got != c.want):
			t.Errorf("%q: %v, %v, want %v", c.text, float64(got), err, float64(c.want))
		}
	}
}

func TestUnavailabilityText(t *testing.T) {
	for _, c := range []struct {
		u    Unavailability
		want string
	}{
		{0, "100 %"},
		{1, "0 %"},
		{0.1, "90 %"},
		{1e-3, "99.9 %"},
		{5e-4, "99.95 %"},
		{1e-7, "99.99999 %"},
		{1 - 0.999, "99.9 %"},          // as arithmetic leaves it: 0.0010000000000000009
		{0.000123456, "99.9876 %"},     // 99.9876544 rounded down
		{0.00012399999, "99.9876 %"},   // rounded up it would be 99.9877
		{1e-12, "99.9999999999 %"},     // never 100 %
		{4e-300, "99.9999999999999 %"}, // never 100 %
		{0.999999, "0 %"},
		{0.5, "50 %"},
	} {
		if got := c.u.String(); got != c.want {
			t.Errorf("%g: %s, want %s", float64(c.u), got, c.want)
		}
	}
}

// What is printed is never more than what is true, hardly less, and 100 % only
// if nothing is missing.
func TestUnavailabilityNeverRoundsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := math.Pow(10, rapid.Float64Range(-14, 0).Draw(t, "exponent"))
		text := strings.TrimSuffix(Unavailability(u).String(), " %")
		shown, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatalf("%q is no number", text)
		}
		missing, _ := new(big.Rat).Sub(big.NewRat(100, 1), shown).Float64()
		missing /= 100
		if missing < u*(1-1e-9) || missing > u*1.011+1e-15 {
			t.Fatalf("%g prints as %s", u, text)
		}
	})
}

func TestSpanText(t *testing.T) {
	for _, c := range []struct {
		span Span
		want string
	}{
		{0, "0s"},
		{8.64e-3, "8.64ms"},
		{1e-9, "1ns"},
		{0.0000025, "2.5µs"},
		{0.9999999, "1s"},
		{2.592, "2.592s"},
		{59.99999, "1m"},
		{60, "1m"},
		{86.4, "1m 26.4s"},
		{60.48, "1m 0.48s"},
		{3599.99, "1h"},
		{2592, "43m 12s"},
		{31536, "8h 45m 36s"},
		{Day, "1d"},
		{Day - 0.3, "1d"},
		{36.5 * Day, "36d 12h"},
		{900 * Day, "900d"},
		{10 * Year, "10 years"},
		{114.155 * Year, "114.2 years"},
		{123456 * Year, "1.23e+05 years"},
		{-2592, "-43m 12s"},
		{Span(math.Inf(1)), "never ends"},
		{Span(math.NaN()), "?"},
	} {
		if got := c.span.String(); got != c.want {
			t.Errorf("%g: %q, want %q", float64(c.span), got, c.want)
		}
	}
}

func TestParseSpan(t *testing.T) {
	for _, c := range []struct {
		text string
		want Span
		bad  bool
	}{
		{"1000h", 1000 * Hour, false},
		{"43m12s", 2592, false},
		{"1d 12h", 36 * Hour, false},
		{"2.5y", 2.5 * 365 * Day, false},
		{"8.64ms", 8.64e-3, false},
		{"5us", 5e-6, false},
		{"5µs", 5e-6, false},
		{"0", 0, false},
		{"1000000y", 1e6 * Year, false}, // more than a time.Duration holds
		{"1000", 0, true},
		{"", 0, true},
		{"h", 0, true},
		{"-5h", 0, true},
		{"5 parsecs", 0, true},
		{"1..5h", 0, true},
		{strings.Repeat("9", 400) + "h", 0, true},
	} {
		got, err := ParseSpan(c.text)
		if (err != nil) != c.bad || math.Abs(float64(got-c.want)) > 1e-15*float64(c.want) {
			t.Errorf("%q: %v, %v, want %v", c.text, float64(got), err, float64(c.want))
		}
	}
}

// What time.Duration prints is read as the same length.
func TestParseSpanReadsDurations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "ns"))
		got, err := ParseSpan(d.String())
		if err != nil || math.Abs(float64(got)-d.Seconds()) > 1e-9+1e-12*d.Seconds() {
			t.Fatalf("%s: %v, %v", d, float64(got), err)
		}
	})
}

func FuzzParseSpan(f *testing.F) {
	for _, s := range []string{"1000h", "1d12h", "8.64ms", "1e9h", ".h", "µs", "5µ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if span, err := ParseSpan(s); err == nil && (span < 0 || math.IsNaN(float64(span)) || math.IsInf(float64(span), 0)) {
			t.Errorf("%q: %v", s, float64(span))
		}
		if u, err := ParsePercent(s); err == nil && !(u >= 0 && u <= 1) {
			t.Errorf("%q: %v", s, float64(u))
		}
	})
}

func TestJSON(t *testing.T) {
	b, err := json.Marshal(map[string]any{"u": Unavailability(1e-3), "all": Unavailability(0), "s": Span(1.5), "never": Span(math.Inf(1))})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"all":{"availability":1,"unavailability":0,"percent":"100","nines":null},"never":null,"s":1.5,"u":{"availability":0.999,"unavailability":0.001,"percent":"99.9","nines":3}}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
