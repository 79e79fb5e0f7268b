package config

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"
)

// rawBlock is a block of the native file as written, with values that have
// the right type.
type rawBlock struct {
	pos
	spec   *blockSpec
	label  word
	values map[string]rawValue
	blocks []*rawBlock // in file order
}

// all are the blocks of a kind; nil has none.
func (b *rawBlock) all(name string) []*rawBlock {
	var out []*rawBlock
	if b != nil {
		for _, c := range b.blocks {
			if c.spec.name == name {
				out = append(out, c)
			}
		}
	}
	return out
}

// one is the first block of a kind, nil for none.
func (b *rawBlock) one(name string) *rawBlock {
	if all := b.all(name); len(all) > 0 {
		return all[0]
	}
	return nil
}

// nativeParser reads one native file: HCL 2, or its JSON form.
type nativeParser struct {
	*problems
	data  []byte
	lines []int // where each line begins
}

// parseNative reads a file and reports everything that is wrong with its form.
func parseNative(p *problems, data []byte) *rawBlock {
	if rest, found := bytes.CutPrefix(data, byteOrderMark); found {
		p.warn(top, "the file begins with a byte-order mark, which is ignored", "save it as UTF-8 without a mark")
		data = rest
	}
	n := &nativeParser{problems: p, data: data, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			n.lines = append(n.lines, i+1)
		}
	}
	root := &rawBlock{pos: top, spec: nativeFile}
	var file *hcl.File
	var diags hcl.Diagnostics
	isJSON := strings.HasSuffix(p.file, ".json")
	if at, deep := tooDeep(data, isJSON); deep {
		n.error(n.byteAt(at), "brackets or operators are nested too deep", fmt.Sprintf("at most %d levels", deepest))
		return root
	}
	if isJSON {
		file, diags = json.Parse(data, p.file)
	} else {
		file, diags = hclsyntax.ParseConfig(data, p.file, hcl.InitialPos)
	}
	n.diagnostics(diags)
	if file != nil && file.Body != nil {
		n.body(root, file.Body)
	}
	return root
}

// HCL's parser calls itself for each level of brackets and for some
// operators, and a stack has an end.
const (
	deepest       = 100
	mostOperators = 10000
)

// tooDeep finds where a file nests deeper than that.
func tooDeep(data []byte, isJSON bool) (at int, deep bool) {
	depth := 0
	if isJSON {
		quoted := false
		for i := 0; i < len(data); i++ {
			switch c := data[i]; {
			case c == '\\' && quoted:
				i++
			case c == '"':
				quoted = !quoted
			case quoted:
			case c == '{', c == '[':
				if depth++; depth > deepest {
					return i, true
				}
			case c == '}', c == ']':
				depth = max(0, depth-1)
			}
		}
		return 0, false
	}
	operators := 0
	tokens, _ := hclsyntax.LexConfig(data, "", hcl.InitialPos)
	for _, t := range tokens {
		switch t.Type { //nolint:exhaustive // those that nest
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc,
			hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc,
			hclsyntax.TokenTemplateSeqEnd:
			depth = max(0, depth-1)
		case hclsyntax.TokenBang, hclsyntax.TokenMinus, hclsyntax.TokenQuestion:
			operators++
		}
		if depth > deepest || operators > mostOperators {
			return t.Range.Start.Byte, true
		}
	}
	return 0, false
}

// byteAt is the place of a byte.
func (n *nativeParser) byteAt(offset int) pos {
	line, exact := slices.BinarySearch(n.lines, offset)
	if !exact {
		line--
	}
	line = min(max(line, 0), len(n.lines)-1)
	return pos{line + 1, offset - n.lines[line] + 1}
}

func (n *nativeParser) at(r hcl.Range) pos { return n.byteAt(min(r.Start.Byte, len(n.data))) }

// diagnostics reports what HCL itself finds.
func (n *nativeParser) diagnostics(diags hcl.Diagnostics) {
	for _, d := range diags {
		at := top
		if d.Subject != nil {
			at = n.at(*d.Subject)
		}
		text := uncapital(d.Summary)
		detail := uncapital(strings.TrimSuffix(strings.Join(strings.Fields(d.Detail), " "), "."))
		if d.Severity == hcl.DiagWarning {
			n.warn(at, text, detail)
			continue
		}
		n.error(at, text, detail)
	}
}

// uncapital begins a sentence as the middle of one.
func uncapital(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// body reads what is in a block.
func (n *nativeParser) body(b *rawBlock, body hcl.Body) {
	attributes, blocks := n.content(b.spec, body)
	b.values = make(map[string]rawValue, len(attributes))
	for name, a := range attributes {
		if v, ok := n.value(b.spec.attribute(name), a); ok {
			b.values[name] = v
		}
	}
	first := map[string]*rawBlock{}
	for _, h := range blocks {
		spec := b.spec.block(h.Type)
		c := &rawBlock{pos: n.at(h.TypeRange), spec: spec}
		if len(h.Labels) > 0 {
			c.label = word{n.at(h.LabelRanges[0]).after(1), h.Labels[0]}
		}
		if one := first[h.Type]; one != nil && !spec.many {
			n.error(c.pos, fmt.Sprintf("%s is already on line %d", h.Type, one.line), "join the two blocks")
			continue
		}
		first[h.Type] = c
		n.body(c, h.Body)
		b.blocks = append(b.blocks, c)
	}
}

// content takes a body apart, and reports names that the block does not know.
func (n *nativeParser) content(spec *blockSpec, body hcl.Body) (map[string]*hcl.Attribute, hcl.Blocks) {
	if native, ok := body.(*hclsyntax.Body); ok {
		return n.nativeContent(spec, native)
	}
	schema := &hcl.BodySchema{}
	for _, a := range spec.attributes {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: a.name})
	}
	for _, c := range spec.blocks {
		h := hcl.BlockHeaderSchema{Type: c.name}
		if c.label != "" {
			h.LabelNames = []string{"label"}
		}
		schema.Blocks = append(schema.Blocks, h)
	}
	found, rest, diags := body.PartialContent(schema)
	n.diagnostics(diags)
	others, diags := rest.JustAttributes()
	n.diagnostics(diags)
	for _, name := range sortedKeys(others) {
		if name != "//" { // a comment in HCL's JSON form
			n.unknown(spec, n.at(others[name].NameRange), name, false)
		}
	}
	return found.Attributes, found.Blocks
}

func (n *nativeParser) nativeContent(spec *blockSpec, body *hclsyntax.Body) (map[string]*hcl.Attribute, hcl.Blocks) {
	attributes := make(map[string]*hcl.Attribute, len(body.Attributes))
	for name, a := range body.Attributes {
		if spec.attribute(name) == nil {
			n.unknown(spec, n.at(a.NameRange), name, false)
			continue
		}
		attributes[name] = a.AsHCLAttribute()
	}
	var blocks hcl.Blocks
	for _, b := range body.Blocks {
		c := spec.block(b.Type)
		switch {
		case c == nil:
			n.unknown(spec, n.at(b.TypeRange), b.Type, true)
		case c.label == "" && len(b.Labels) > 0:
			n.error(n.at(b.LabelRanges[0]), fmt.Sprintf("%s takes no label", b.Type), "write "+b.Type+" { ... }")
		case c.label != "" && len(b.Labels) != 1:
			n.error(n.at(b.TypeRange), fmt.Sprintf("%s has %d labels", b.Type, len(b.Labels)), fmt.Sprintf("write %s \"...\" { ... }: %s", b.Type, c.label))
		default:
			blocks = append(blocks, b.AsHCLBlock())
		}
	}
	return attributes, blocks
}

// unknown reports a name that the block does not know, or not in this form.
func (n *nativeParser) unknown(spec *blockSpec, at pos, name string, isBlock bool) {
	where := "the file"
	if spec.name != "" {
		where = spec.name
	}
	switch {
	case isBlock && spec.attribute(name) != nil:
		n.error(at, name+" is no block", "write "+name+" = ...")
	case !isBlock && spec.block(name) != nil:
		n.error(at, name+" is a block", "write "+name+" { ... } without =")
	case isBlock:
		n.error(at, fmt.Sprintf("unknown block %q in %s", clip(name), where), orElse(didYouMean(name, spec.words()), elsewhere(spec, name)))
	default:
		n.error(at, fmt.Sprintf("unknown attribute %q in %s", clip(name), where), orElse(didYouMean(name, spec.words()), elsewhere(spec, name)))
	}
}

// elsewhere tells in which block a name has a meaning that spec does not know.
func elsewhere(spec *blockSpec, name string) string {
	var found []string
	var look func(*blockSpec)
	look = func(b *blockSpec) {
		if b.name != "" && (b.attribute(name) != nil || b.block(name) != nil) && !slices.Contains(found, b.name) {
			found = append(found, b.name)
		}
		for _, c := range b.blocks {
			look(c)
		}
	}
	look(nativeFile)
	switch {
	case len(found) == 0:
		return ""
	case slices.Contains(found, spec.name):
		return "it belongs in the " + spec.name + " of the service"
	}
	return "it belongs in " + oneOf(found...)
}
