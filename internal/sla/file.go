package sla

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Problem is one thing wrong with a model file. A file with any has no model.
type Problem struct {
	File     string `json:"file"`
	Line     int    `json:"line"`     // from 1
	Col      int    `json:"col"`      // in bytes, from 1
	Severity string `json:"severity"` // error, as no problem is less
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"` // what to do about it
}

// String is the form of every configuration problem:
// "shop.hcl:3:1: error: text; hint".
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: %s: %s", p.File, p.Line, p.Col, p.Severity, p.Text)
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// mostSource bounds a model file. The parser of HCL descends into brackets
// without a limit of its own.
const mostSource = 64 << 10

// Parse reads a model file (HCL; docs of `batuta sla model` show one) and
// finds every problem in it, in the order of the file. With any problem there
// is no model.
func Parse(name string, src []byte) (*Model, []Problem) {
	p := &parser{file: name, names: map[string]hcl.Range{}}
	start := hcl.Range{Filename: name, Start: hcl.InitialPos, End: hcl.InitialPos}
	if len(src) > mostSource {
		p.add(start, fmt.Sprintf("the file has more than %d bytes", mostSource), "")
		return nil, p.list
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	p.diagnose(diags)
	p.torn = diags.HasErrors()
	m := &Model{Root: &Block{Kind: KindSeries}}
	if body, ok := file.Body.(*hclsyntax.Body); ok {
		p.model(m, body)
	}
	if len(p.list) == 0 && len(m.Root.Parts) == 0 {
		p.add(start, "the file describes no parts", `write for example: unit "web" { mtbf = "1000h" mttr = "10h" } with each setting on a line of its own`)
	}
	// What concerns parts together comes last: it means nothing while they
	// are wrong themselves.
	if len(p.list) == 0 {
		if err := m.Check(); err != nil {
			p.add(start, err.Error(), "")
		}
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Text, b.Text))
	})
	p.list = slices.Compact(p.list)
	if len(p.list) > 0 {
		return nil, p.list
	}
	return m, nil
}

// parser collects the problems of one file.
type parser struct {
	file  string
	names map[string]hcl.Range

	// torn is set when the text itself is wrong: what seems to be missing may
	// then be there.
	torn bool
	list []Problem
}

func (p *parser) add(at hcl.Range, text, hint string) {
	p.list = append(p.list, Problem{p.file, max(at.Start.Line, 1), max(at.Start.Column, 1), "error", oneLine(text), oneLine(hint)})
}

func (p *parser) diagnose(diags hcl.Diagnostics) {
	for _, d := range diags {
		var at hcl.Range
		if d.Subject != nil {
			at = *d.Subject
		}
		summary := strings.TrimSuffix(d.Summary, ".")
		hint, _, _ := strings.Cut(d.Detail, ". ")
		p.add(at, strings.ToLower(summary[:min(1, len(summary))])+summary[min(1, len(summary)):], strings.TrimSuffix(hint, "."))
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// setting reads the text of one attribute.
type setting func(text string) error

// body reads the attributes of a body by name, and reports those that it does
// not know or that are missing.
func (p *parser) body(b *hclsyntax.Body, what string, at hcl.Range, known map[string]setting, needed ...string) {
	for _, name := range needed {
		if b.Attributes[name] == nil && !p.torn {
			p.add(at, fmt.Sprintf("%s has no %s", what, name), "")
		}
	}
	for name, attr := range b.Attributes {
		set, ok := known[name]
		if !ok {
			p.add(attr.NameRange, fmt.Sprintf("%s has no setting %q", what, name), "there are "+list(known))
			continue
		}
		if set == nil {
			continue // read elsewhere
		}
		text, ok := p.text(attr.Expr)
		if !ok {
			continue
		}
		if err := set(text); err != nil {
			p.add(attr.Expr.Range(), name+": "+err.Error(), "")
		}
	}
}

func list(known map[string]setting) string {
	var names []string
	for n := range known {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// literal tells whether an expression is written out. HCL could also compute,
// for as long as it likes; a model needs no loops.
func literal(e hclsyntax.Expression) bool {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return true
	case *hclsyntax.UnaryOpExpr:
		return literal(e.Val)
	case *hclsyntax.TemplateExpr:
		return len(e.Parts) == 0 || e.IsStringLiteral()
	case *hclsyntax.ObjectConsKeyExpr:
		return hcl.ExprAsKeyword(e) != "" || literal(e.Wrapped)
	}
	return false
}

// text evaluates a string, number or truth value.
func (p *parser) text(e hclsyntax.Expression) (string, bool) {
	v := cty.NilVal
	if literal(e) {
		var diags hcl.Diagnostics
		if v, diags = e.Value(nil); diags.HasErrors() {
			p.diagnose(diags)
			return "", false
		}
	}
	if v != cty.NilVal && v.IsKnown() && !v.IsNull() {
		switch v.Type() {
		case cty.String:
			return v.AsString(), true
		case cty.Number:
			return v.AsBigFloat().Text('g', 17), true
		case cty.Bool:
			return strconv.FormatBool(v.True()), true
		}
	}
	p.add(e.Range(), "this is neither a text, a number nor true or false", `write "1000h", 3 or true`)
	return "", false
}

// These make settings of pointers.

func toText(s *string) setting { return func(text string) error { *s = text; return nil } }

func parsed[T any](to *T, parse func(string) (T, error)) setting {
	return func(text string) error {
		v, err := parse(text)
		if err == nil {
			*to = v
		}
		return err
	}
}

func yesNo(text string) (bool, error) {
	if text != "true" && text != "false" {
		return false, errors.New("write true or false")
	}
	return text == "true", nil
}

func (p *parser) model(m *Model, body *hclsyntax.Body) {
	p.body(body, "a model", body.Range(), map[string]setting{
		"title": toText(&m.Title),
		"class": parsed(&m.Class, ParseClass),
		"target": func(text string) error {
			u, err := ParsePercent(text)
			if err == nil {
				m.Target = &u
			}
			return err
		},
	})
	m.Root.Parts = p.parts(body)
}

// parts reads the blocks of a body.
func (p *parser) parts(body *hclsyntax.Body) []*Block {
	var parts []*Block
	for _, b := range body.Blocks {
		block := &Block{}
		if b.Type != "state" {
			block.Name = p.name(b)
		}
		at := b.DefRange()
		switch b.Type {
		case "unit":
			p.unit(block, b, at)
		case "cluster":
			p.cluster(block, b, at)
		case "chain":
			p.chain(block, b, at)
		case "series", "parallel", "k_of_n":
			p.group(block, b, at)
		default:
			p.add(b.TypeRange, fmt.Sprintf("no such part: %q", b.Type), "parts are unit, cluster, chain, series, parallel and k_of_n")
			continue
		}
		parts = append(parts, block)
	}
	return parts
}

// name is the one label of a block, used once.
func (p *parser) name(b *hclsyntax.Block) string {
	if len(b.Labels) != 1 || strings.TrimSpace(b.Labels[0]) == "" {
		p.add(b.DefRange(), fmt.Sprintf("a part needs one name: %s \"name\"", b.Type), "")
		return ""
	}
	name := b.Labels[0]
	if before, ok := p.names[name]; ok {
		p.add(b.LabelRanges[0], fmt.Sprintf("the name %q is used in line %d already", name, before.Start.Line),
			"parts fail independently of each other, so one part cannot be in two places")
	} else {
		p.names[name] = b.LabelRanges[0]
	}
	return name
}

func (p *parser) noBlocks(body *hclsyntax.Body, what string) {
	for _, b := range body.Blocks {
		p.add(b.TypeRange, fmt.Sprintf("%s has no parts, but there is a %s in it", what, b.Type), "put both into a series or parallel")
	}
}

func (p *parser) unit(block *Block, b *hclsyntax.Block, at hcl.Range) {
	block.Kind = KindCluster
	c := One(0, 0)
	var u Unavailability
	clean := len(p.list)
	needed := []string{"mttr"}
	if b.Body.Attributes["availability"] == nil {
		needed = append(needed, "mtbf")
	}
	p.body(b.Body, "a unit", at, map[string]setting{
		"mtbf": parsed(&c.MTBF, ParseSpan), "mttr": parsed(&c.MTTR, ParseSpan), "availability": parsed(&u, ParsePercent),
	}, needed...)
	p.noBlocks(b.Body, "a unit")
	if a := b.Body.Attributes["availability"]; a != nil {
		if b.Body.Attributes["mtbf"] != nil {
			p.add(a.NameRange, "mtbf and availability say the same", "leave one out: availability is mtbf/(mtbf+mttr)")
		}
		c.MTBF = c.MTTR * Span((1-u)/u)
		if (u <= 0 || u >= 1) && len(p.list) == clean && !p.torn {
			p.add(a.Expr.Range(), "availability: must be between 0 and 100 %", "")
		}
	}
	block.Cluster = c
	p.check(c, b, at, clean)
}

// check reports what settings mean together, once they are right alone.
func (p *parser) check(c Cluster, b *hclsyntax.Block, at hcl.Range, clean int) {
	if len(p.list) > clean || p.torn {
		return
	}
	for _, err := range c.Check() {
		where := at
		name, _, _ := strings.Cut(err.Error(), ":")
		if a := b.Body.Attributes[name]; a != nil {
			where = a.Expr.Range()
		}
		p.add(where, err.Error(), "")
	}
}

func (p *parser) cluster(block *Block, b *hclsyntax.Block, at hcl.Range) {
	block.Kind = KindCluster
	var preset string
	var nodes, spares, required int
	c := One(0, 0)
	clean := len(p.list)
	needed := []string{"mtbf", "mttr"}
	if b.Body.Attributes["preset"] == nil {
		needed = append(needed, "nodes")
	}
	p.body(b.Body, "a cluster", at, map[string]setting{
		"preset": toText(&preset), "nodes": parsed(&nodes, ParseCount), "spares": parsed(&spares, ParseCount), "required": parsed(&required, ParseCount),
		"mtbf": parsed(&c.MTBF, ParseSpan), "mttr": parsed(&c.MTTR, ParseSpan), "crews": parsed(&c.Crews, ParseCount),
		"coverage": parsed(&c.Coverage, ParseShare), "failover": parsed(&c.Failover, ParseSpan),
		"standby": parsed(&c.Standby, ParseShare), "beta": parsed(&c.Beta, ParseShare),
	}, needed...)
	p.noBlocks(b.Body, "a cluster")
	c.Active, c.Spares, c.Required = nodes, spares, nodes
	if a := b.Body.Attributes["preset"]; a != nil && len(p.list) == clean {
		usual, err := Preset(preset, nodes, spares)
		if err != nil {
			p.add(a.Expr.Range(), "preset: "+err.Error(), "")
		}
		c.Active, c.Spares, c.Required = usual.Active, usual.Spares, usual.Required
	}
	if b.Body.Attributes["required"] != nil {
		c.Required = required
	}
	block.Cluster = c
	p.check(c, b, at, clean)
}

func (p *parser) group(block *Block, b *hclsyntax.Block, at hcl.Range) {
	block.Kind = map[string]Kind{"series": KindSeries, "parallel": KindParallel, "k_of_n": KindKOfN}[b.Type]
	var redundancy string
	known := map[string]setting{"count": parsed(&block.Count, ParseCount)}
	var needed []string
	if block.Kind != KindSeries {
		known["redundancy"] = toText(&redundancy)
		known["beta"] = parsed(&block.Beta, ParseShare)
	}
	if block.Kind == KindKOfN {
		known["need"] = parsed(&block.Need, ParseCount)
		needed = []string{"need"}
	}
	clean := len(p.list)
	p.body(b.Body, "a "+b.Type, at, known, needed...)
	ok := len(p.list) == clean && !p.torn
	block.Parts = p.parts(b.Body)
	switch redundancy {
	case "", "active":
	case "passive":
		block.Passive = true
	default:
		p.add(b.Body.Attributes["redundancy"].Expr.Range(), fmt.Sprintf("redundancy: %q is neither active nor passive", redundancy),
			"active: those that are needed carry all; passive: a failure costs capacity, not service")
	}
	n := len(block.Parts)
	if a := b.Body.Attributes["count"]; a != nil && ok {
		switch {
		case block.Count < 1 || block.Count > mostParts:
			p.add(a.Expr.Range(), fmt.Sprintf("count: must be 1 to %d", mostParts), "")
		case n != 1:
			p.add(a.NameRange, fmt.Sprintf("count repeats one part, but there are %d", n), "")
		}
		n = block.Count
	}
	if len(b.Body.Blocks) == 0 && !p.torn {
		p.add(at, fmt.Sprintf("this %s has no parts", b.Type), "")
	} else if a := b.Body.Attributes["need"]; a != nil && ok && (block.Need < 1 || block.Need > n) {
		p.add(a.Expr.Range(), fmt.Sprintf("need: %d of %d parts cannot be needed", block.Need, n), "")
	}
	if a := b.Body.Attributes["beta"]; a != nil && block.Beta > 0 {
		if block.Count == 0 || len(b.Body.Blocks) != 1 || b.Body.Blocks[0].Type != "unit" {
			p.add(a.NameRange, "beta needs equal parts: one unit and a count", "a cluster has a beta of its own")
		}
	}
}

// chain reads states and the mean times between them:
//
//	chain "database" {
//	  state "good"    { to = { replica = "1000h" } }
//	  state "replica" { capacity = 0.5  to = { good = "10h", lost = "1000h" } }
//	  state "lost"    { up = false      to = { replica = "20h" } }
//	}
func (p *parser) chain(block *Block, b *hclsyntax.Block, at hcl.Range) {
	block.Kind = KindChain
	clean := len(p.list)
	p.body(b.Body, "a chain", at, nil)
	index := map[string]int{}
	var states []ChainState
	for _, s := range b.Body.Blocks {
		if s.Type != "state" {
			p.add(s.TypeRange, fmt.Sprintf("a chain has states, but no %s", s.Type), "")
			continue
		}
		if len(s.Labels) != 1 {
			p.add(s.DefRange(), `a state needs one name: state "name"`, "")
			continue
		}
		if _, twice := index[s.Labels[0]]; twice {
			p.add(s.LabelRanges[0], fmt.Sprintf("the state %q is there already", s.Labels[0]), "")
		}
		st := ChainState{Name: s.Labels[0], Up: true, Capacity: math.NaN()}
		p.body(s.Body, "a state", s.DefRange(), map[string]setting{
			"up": parsed(&st.Up, yesNo), "capacity": parsed(&st.Capacity, ParseShare), "to": nil,
		}, "to")
		p.noBlocks(s.Body, "a state")
		if math.IsNaN(st.Capacity) {
			st.Capacity = 0
			if st.Up {
				st.Capacity = 1
			}
		}
		index[st.Name] = len(states)
		states = append(states, st)
	}
	if len(p.list) > clean || p.torn {
		return
	}
	if len(states) == 0 || !states[0].Up {
		p.add(at, "the first state of a chain is the one in which all is well", `begin with a state that is up`)
		return
	}
	if len(states) > mostJoint {
		p.add(at, fmt.Sprintf("a chain has %d states at most", mostJoint), "")
		return
	}
	block.Chain = NewChain(states)
	for i, s := range b.Body.Blocks {
		p.arrows(block.Chain, i, s.Body.Attributes["to"].Expr, index)
	}
	if len(p.list) > clean {
		return
	}
	if _, err := block.Chain.Steady(); err != nil {
		p.add(at, err.Error(), "every state needs a way back to the first")
	}
}

// arrows reads { state = "mean time", … }.
func (p *parser) arrows(c *Chain, from int, e hclsyntax.Expression, index map[string]int) {
	object, ok := e.(*hclsyntax.ObjectConsExpr)
	if !ok {
		p.add(e.Range(), "to: write the states that may come next, with their mean times", `to = { failed = "1000h" }`)
		return
	}
	for _, item := range object.Items {
		name, ok := p.text(item.KeyExpr)
		if !ok {
			continue
		}
		to, known := index[name]
		if !known || to == from {
			p.add(item.KeyExpr.Range(), fmt.Sprintf("to: no other state %q", name), "")
			continue
		}
		text, ok := p.text(item.ValueExpr)
		if !ok {
			continue
		}
		mean, err := ParseSpan(text)
		if err == nil && !(mean > 0 && mean <= longest) {
			err = errors.New("must be more than zero")
		}
		if err != nil {
			p.add(item.ValueExpr.Range(), "to "+name+": "+err.Error(), "")
			continue
		}
		c.Rate[from][to] += 1 / float64(mean)
	}
}
