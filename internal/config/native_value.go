package config

import (
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// rawValue is an attribute's value; which member counts follows from its kind.
type rawValue struct {
	pos
	text     string
	number   int
	flag     bool
	duration time.Duration
	list     []word
	pairs    []setting // names and texts of a map, by name
}

// value reads an attribute by its kind, or reports why it cannot. A null is as
// good as nothing.
func (n *nativeParser) value(spec *attribute, a *hcl.Attribute) (rawValue, bool) {
	at := n.at(a.Expr.Range())
	v, diags := a.Expr.Value(nil)
	if diags.HasErrors() {
		n.diagnostics(diags)
		return rawValue{}, false
	}
	if !v.IsWhollyKnown() { // what is left of broken syntax
		if !Failed(n.problems.list) {
			n.error(at, spec.name+" has no value", "")
		}
		return rawValue{}, false
	}
	if v.IsNull() {
		return rawValue{}, false
	}
	out := rawValue{pos: at}
	wrong := func(want string) (rawValue, bool) {
		not := ", not " + kindName(v)
		if slices.Contains(hidden, spec.name) {
			not = ""
		}
		n.error(at, spec.name+" must be "+want+not, "")
		return rawValue{}, false
	}
	switch spec.kind {
	case textValue:
		if v.Type() != cty.String {
			return wrong(`text in quotes`)
		}
		out.text = v.AsString()
		return out, n.oneOf(spec, word{at, out.text})
	case numberValue:
		if v.Type() != cty.Number {
			return wrong("a number")
		}
		return n.number(spec, out, v.AsBigFloat())
	case flagValue:
		if v.Type() != cty.Bool {
			return wrong("true or false")
		}
		out.flag = v.True()
	case durationValue:
		if v.Type() != cty.String {
			return wrong(`a time with its unit, as "10s"`)
		}
		return n.duration(spec, out, v.AsString())
	case listValue:
		if !v.Type().IsTupleType() && v.Type() != cty.String {
			return wrong(`a list, as ["...", "..."]`)
		}
		return n.list(spec, out, v)
	case mapValue:
		if !v.Type().IsObjectType() {
			return wrong(`a map, as { name = "value" }`)
		}
		return n.pairs(spec, out, v)
	case noValue:
	}
	return out, true
}

// hidden are the attributes whose values are not shown.
var hidden = []string{"password", "secret"}

// kindName is what a value is, for people.
func kindName(v cty.Value) string {
	t := v.Type()
	switch {
	case t == cty.String:
		return strconv.Quote(clip(v.AsString()))
	case t == cty.Number:
		return v.AsBigFloat().Text('g', 10)
	case t == cty.Bool:
		return strconv.FormatBool(v.True())
	case t.IsTupleType():
		return "a list"
	}
	return "a map"
}

// oneOf accepts the words of the attribute, if it has any.
func (n *nativeParser) oneOf(spec *attribute, w word) bool {
	if len(spec.words) == 0 || slices.Contains(spec.words, w.text) {
		return true
	}
	n.error(w.pos, fmt.Sprintf("%s: %q is unknown", spec.name, clip(w.text)), orElse(didYouMean(w.text, spec.words), "write "+oneOf(spec.words...)))
	return false
}

func (n *nativeParser) number(spec *attribute, out rawValue, f *big.Float) (rawValue, bool) {
	i, accuracy := f.Int64()
	if accuracy != big.Exact || i < int64(spec.least) || i > int64(spec.most) {
		n.error(out.pos, fmt.Sprintf("%s: %s is not a whole number from %d to %d", spec.name, f.Text('g', 12), spec.least, spec.most), "")
		return out, false
	}
	out.number = int(i)
	return out, true
}

func (n *nativeParser) duration(spec *attribute, out rawValue, text string) (rawValue, bool) {
	d, err := parseDuration(text)
	if err != nil {
		hint := `write a number with its unit, as "10s", "500ms", "5m", "1h30m" or "14d"`
		if digits(text) {
			hint = fmt.Sprintf("write %q for seconds", text+"s")
		}
		n.error(out.pos, fmt.Sprintf("%s: %q is no time", spec.name, clip(text)), hint)
		return out, false
	}
	out.duration = d
	return out, true
}

// day is a unit that time.ParseDuration does not have.
const day = 24 * time.Hour

// parseDuration reads "1h30m" as time.ParseDuration does, and whole days as
// "14d". It is never negative.
func parseDuration(text string) (time.Duration, error) {
	if n, found := strings.CutSuffix(text, "d"); found && digits(n) {
		if days, ok := number(n); ok && days <= maxNumber/(24*60*60) {
			return time.Duration(days) * day, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err == nil && (d < 0 || d > maxNumber*time.Second) {
		err = fmt.Errorf("%q is out of range", text)
	}
	return d, err
}

// durationText writes what parseDuration reads, as people would.
func durationText(d time.Duration) string {
	switch {
	case d != 0 && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d != 0 && d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d != 0 && d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	case d%time.Second == 0:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	return d.String()
}

// list reads a list of texts; a single text will do.
func (n *nativeParser) list(spec *attribute, out rawValue, v cty.Value) (rawValue, bool) {
	items := []cty.Value{v}
	if v.Type().IsTupleType() {
		items = v.AsValueSlice()
	}
	ok := true
	for i, item := range items {
		if item.IsNull() || item.Type() != cty.String {
			n.error(out.pos, fmt.Sprintf("%s: item %d must be text in quotes", spec.name, i+1), "")
			ok = false
			continue
		}
		w := word{out.pos, item.AsString()}
		ok = n.oneOf(spec, w) && ok
		out.list = append(out.list, w)
	}
	return out, ok
}

func (n *nativeParser) pairs(spec *attribute, out rawValue, v cty.Value) (rawValue, bool) {
	ok := true
	items := v.AsValueMap()
	for _, name := range sortedKeys(items) {
		item := items[name]
		if item.IsNull() || item.Type() != cty.String {
			n.error(out.pos, fmt.Sprintf("%s: %s must be text in quotes", spec.name, clip(name)), "")
			ok = false
			continue
		}
		out.pairs = append(out.pairs, setting{pos: out.pos, word: name, value: word{out.pos, item.AsString()}})
	}
	return out, ok
}
