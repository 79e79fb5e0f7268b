package sla

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// Unavailability is the share of time without service, from 0 to 1:
// availability is 1 minus it. Small ones keep all their digits, which an
// availability close to 1 cannot.
type Unavailability float64

// finest is the smallest unavailability that a text tells from zero; smaller
// ones are printed as this one.
const finest = 1e-15

// ParsePercent reads an availability in percent: "99.95", "99.95%", "99.95 %".
func ParsePercent(text string) (Unavailability, error) {
	digits := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "%"))
	// big.Rat keeps 99.99999 exact where a float64 would already lose digits
	// of what is missing; it also reads fractions and exponents, which are not
	// how people write availability.
	if digits == "" || strings.Trim(digits, "0123456789.") != "" || len(digits) > 40 {
		return 0, fmt.Errorf("%q is no percentage: write it like 99.95", text)
	}
	p, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, fmt.Errorf("%q is no percentage: write it like 99.95", text)
	}
	hundred := big.NewRat(100, 1)
	if p.Cmp(hundred) > 0 {
		return 0, fmt.Errorf("%s %% is more than all of the time", digits)
	}
	if p.Sign() > 0 && p.Cmp(big.NewRat(1, 1)) <= 0 {
		percent, _ := new(big.Rat).Mul(p, hundred).Float64()
		return 0, fmt.Errorf("%s %% is next to never: for a share of %s write %s", digits, digits, strconv.FormatFloat(percent, 'f', -1, 64))
	}
	u, _ := p.Sub(hundred, p).Quo(p, hundred).Float64()
	return Unavailability(u), nil
}

// Availability is the share of time with service.
func (u Unavailability) Availability() float64 { return 1 - float64(u) }

// Nines counts them: 3 for 99.9 %, 3.3 for 99.95 %; +Inf for 100 %.
func (u Unavailability) Nines() float64 {
	if u <= 0 {
		return math.Inf(1)
	}
	return math.Abs(math.Log10(float64(u))) // and not -0 for 0 %
}

// In is the time without service in a period.
func (u Unavailability) In(period Span) Span { return Span(u) * period }

// String is the availability in percent with three digits of what is missing,
// rounded down, so that only an unavailability of zero prints as 100 %.
func (u Unavailability) String() string {
	return u.percent(3) + " %"
}

// percent writes the availability so that what is missing has that many
// significant digits. What is missing is rounded up, but for the last bits
// that earlier arithmetic leaves in a float64.
func (u Unavailability) percent(digits int) string {
	f := float64(u)
	switch {
	case math.IsNaN(f):
		return "?"
	case f <= 0:
		return "100"
	case f >= 1:
		return "0"
	}
	f = math.Max(f, finest)
	decimals := max(0, digits-1-int(math.Floor(math.Log10(f*100))))
	unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(decimals)), nil)
	scaled := new(big.Float).Mul(big.NewFloat(f*100*(1-1e-12)), new(big.Float).SetInt(unit))
	missing, accuracy := scaled.Int(nil)
	if accuracy != big.Exact {
		missing.Add(missing, big.NewInt(1))
	}
	left := new(big.Int).Sub(new(big.Int).Mul(big.NewInt(100), unit), missing)
	text := left.String()
	if decimals == 0 {
		return text
	}
	if len(text) <= decimals {
		text = strings.Repeat("0", decimals+1-len(text)) + text
	}
	cut := len(text) - decimals
	return strings.TrimSuffix(strings.TrimRight(text[:cut]+"."+text[cut:], "0"), ".")
}

// MarshalJSON writes both numbers and the text: whoever reads the
// availability alone should not have to mind its digits. 100 % has no count
// of nines.
func (u Unavailability) MarshalJSON() ([]byte, error) {
	var nines *float64
	if n := u.Nines(); !math.IsInf(n, 1) {
		nines = &n
	}
	return json.Marshal(struct {
		Availability   float64  `json:"availability"`
		Unavailability float64  `json:"unavailability"`
		Percent        string   `json:"percent"`
		Nines          *float64 `json:"nines"`
	}{u.Availability(), float64(u), u.percent(6), nines})
}

// Span is a length of time in seconds. Mean times between failures of good
// parts do not fit into a time.Duration, which ends at 292 years.
type Span float64

// Conventional lengths, for text and for ParseSpan.
const (
	Minute Span = 60
	Hour        = 60 * Minute
	Day         = 24 * Hour
	Week        = 7 * Day
	Year        = 365 * Day
)

var spanUnits = map[string]Span{
	"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": Minute, "h": Hour, "d": Day, "w": Week, "y": Year,
}

var errSpan = errors.New("write it like 43m12s, 1000h, 3d or 10y (ns us ms s m h d w y)")

// ParseSpan reads what time.ParseDuration reads without a sign, and days,
// weeks and years of 365 days: "1000h", "1d12h", "2.5 y".
func ParseSpan(text string) (Span, error) {
	rest := strings.ReplaceAll(text, " ", "")
	if rest == "" {
		return 0, fmt.Errorf("no length of time: %w", errSpan)
	}
	if rest == "0" {
		return 0, nil
	}
	var sum Span
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		n, err := strconv.ParseFloat(rest[:digits], 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no length of time: %w", text, errSpan)
		}
		rest = rest[digits:]
		letters := strings.IndexAny(rest, "0123456789.")
		if letters < 0 {
			letters = len(rest)
		}
		unit, ok := spanUnits[rest[:letters]]
		if !ok {
			return 0, fmt.Errorf("%q is no length of time: %w", text, errSpan)
		}
		sum += Span(n) * unit
		rest = rest[letters:]
	}
	if math.IsInf(float64(sum), 0) {
		return 0, fmt.Errorf("%q is too long", text)
	}
	return sum, nil
}

// SpanOf converts a duration.
func SpanOf(d time.Duration) Span { return Span(d.Seconds()) }

// Hours is the span in hours.
func (s Span) Hours() float64 { return float64(s / Hour) }

// InHours is for people who think of MTBF in hours: "1000 h". Less than an hour
// is written as String does.
func (s Span) InHours() string {
	if s < Hour {
		return s.String()
	}
	return strconv.FormatFloat(significant(s.Hours(), 6), 'f', -1, 64) + " h"
}

// String is for people: "36d 12h", "8h 45m 36s", "8.64ms", "1140 years",
// "never ends" for an infinite one.
func (s Span) String() string {
	switch {
	case math.IsNaN(float64(s)):
		return "?"
	case s < 0:
		return "-" + (-s).String()
	case math.IsInf(float64(s), 1):
		return "never ends"
	case s == 0:
		return "0s"
	case s >= 10000*Year:
		return fmt.Sprintf("%.3g years", float64(s/Year))
	case s >= 5*Year:
		return strconv.FormatFloat(significant(float64(s/Year), 4), 'f', -1, 64) + " years"
	}
	for _, u := range []struct {
		name string
		unit Span
	}{{"ns", 1e-9}, {"µs", 1e-6}, {"ms", 1e-3}, {"s", 1}} {
		if n := significant(float64(s/u.unit), 5); n < 1000 && (u.unit < 1 || n < 60) {
			return strconv.FormatFloat(n, 'f', -1, 64) + u.name
		}
	}
	// The last unit printed has three digits at least before it.
	step := Minute
	switch {
	case s < 10*Minute:
		step = 0.01
	case s < Hour:
		step = 0.1
	case s < 10*Day:
		step = 1
	}
	s = Span(math.Round(float64(s/step))) * step
	var parts []string
	for _, u := range []struct {
		name string
		unit Span
	}{{"d", Day}, {"h", Hour}, {"m", Minute}} {
		if n := math.Floor(float64((s + step/2) / u.unit)); n > 0 {
			parts = append(parts, strconv.FormatFloat(n, 'f', -1, 64)+u.name)
			s -= Span(n) * u.unit
		}
	}
	if s >= step/2 {
		parts = append(parts, strconv.FormatFloat(significant(float64(s), 4), 'f', -1, 64)+"s")
	}
	return strings.Join(parts, " ")
}

// significant rounds to that many digits.
func significant(f float64, digits int) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(f, 'g', digits, 64), 64)
	if err != nil {
		return f
	}
	return r
}

// MarshalJSON writes seconds, without the last bit that arithmetic got wrong,
// and null for what never ends.
func (s Span) MarshalJSON() ([]byte, error) {
	if math.IsInf(float64(s), 0) || math.IsNaN(float64(s)) {
		return []byte("null"), nil
	}
	return json.Marshal(significant(float64(s), 15))
}

// ParseShare reads a share or probability: "0.99" or "99%".
func ParseShare(text string) (float64, error) {
	digits, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if percent {
		f /= 100
	}
	if err != nil || !(f >= 0 && f <= 1) {
		return 0, fmt.Errorf("%q is no share of the whole: write 0.99 or 99%%", text)
	}
	return f, nil
}

// ParseCount reads a whole number that is not negative.
func ParseCount(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 1000000 {
		return 0, fmt.Errorf("%q is no count: write a whole number", text)
	}
	return n, nil
}
