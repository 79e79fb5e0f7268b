package config

import (
	"fmt"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// rawDirector is an ldirectord.cf as written.
type rawDirector struct {
	settings map[string]setting // global directives; of repeated ones the last
	execute  []setting          // the one that adds up
	virtuals []*rawVirtual
}

// rawVirtual is a `virtual` line and the block below it.
type rawVirtual struct {
	pos
	six      bool // virtual6
	value    word
	bad      bool   // the line could not be read: the block is checked, not used
	host     string // without brackets; "" for a mark
	port     string
	mark     string
	settings map[string]setting
	reals    []rawReal
	badReals int // real lines that could not be read
}

// isMark tells a firewall mark from an address.
func (v *rawVirtual) isMark() bool { return v.mark != "" }

// family is the one that the keyword chose.
func (v *rawVirtual) family() model.Family {
	if v.six {
		return model.IPv6
	}
	return model.IPv4
}

// keyword is the word that began the block.
func (v *rawVirtual) keyword() string {
	if v.six {
		return "virtual6"
	}
	return "virtual"
}

// form is how an address service is written.
func (v *rawVirtual) form() string {
	if v.six {
		return "virtual6=[ADDRESS]:PORT"
	}
	return "virtual=ADDRESS:PORT"
}

// setting is one directive. Its reader leaves the plain value in value.text:
// digits of a number, a string without its quotes, yes or no.
type setting struct {
	pos
	word     string
	value    word
	fallback *rawFallback // what fallback and fallback6 say
}

// cfParser reads one ldirectord.cf.
//
// The grammar is that of ldirectord 4.12: a line in column 0 is global, lines
// indented by four blanks or a tab belong to the `virtual` line above them,
// an empty line ends the block. What it refuses although the meaning is plain
// (other indentation, blanks behind yes and no, ...) is taken as meant here,
// with a warning.
type cfParser struct {
	*problems
	raw   rawDirector
	block *rawVirtual // the last virtual line, nil before the first
	open  bool        // no empty or global line since
	flat  bool        // the block's lines are not indented

	unindented, shallow []pos // lines of a block in column 0, and with less than four blanks
}

// parseLdirectord reads a file and reports what is wrong with its grammar.
func parseLdirectord(p *problems, data []byte) *rawDirector {
	c := &cfParser{problems: p, raw: rawDirector{settings: map[string]setting{}}}
	lines := splitLines(p, data)
	for i, line := range lines {
		c.line(lines, i, line)
	}
	if n := len(c.unindented); n > 0 {
		p.warn(c.unindented[0], fmt.Sprintf("%s not indented and taken as part of the virtual service above", linesAre(n)),
			"indent the lines of a virtual service by a tab or four blanks: ldirectord refuses them like this")
	}
	if n := len(c.shallow); n > 0 {
		p.warn(c.shallow[0], fmt.Sprintf("%s indented by less than four blanks and taken as part of the virtual service above", linesAre(n)),
			"indent by a tab or four blanks: ldirectord refuses less")
	}
	return &c.raw
}

func linesAre(n int) string {
	if n == 1 {
		return "this line is"
	}
	return fmt.Sprintf("%d lines from here on are", n)
}

// line decides to what lines[i] belongs.
func (c *cfParser) line(lines []string, i int, raw string) {
	text, indent := trimLeft(raw)
	at := pos{i + 1, indent + 1}
	width := indent + 3*strings.Count(raw[:indent], "\t") // each tab counts as four blanks
	switch {
	case text == "":
		c.blankLine(at, width)
	case text[0] == '#':
	case isVirtual(text):
		if indent > 0 {
			c.warn(at, "the line is indented, and begins a new virtual service all the same",
				"begin it in column 1: ldirectord refuses it like this")
		}
		c.virtual(at, text)
		c.flat = isFlat(lines[i+1:])
	case c.block == nil:
		if indent > 0 {
			c.warn(at, "the line is indented below no virtual service, and is taken as a global directive",
				"begin it in column 1: ldirectord refuses it like this")
		}
		c.directive(nil, at, text)
	case indent == 0:
		c.columnZero(at, text)
	default:
		if !c.open {
			c.warn(at, "the line continues the virtual service above although an empty or a global line has ended it",
				"remove what stands between: ldirectord refuses the line")
			c.open = true
		}
		if width < 4 {
			c.shallow = append(c.shallow, at)
		}
		c.directive(c.block, at, c.cutComment(at, text))
	}
}

// blankLine ends a block. ldirectord takes five blanks or more, which nobody
// sees, for an indented line without a directive.
func (c *cfParser) blankLine(at pos, width int) {
	if c.open && width > 4 {
		c.warn(at, "a line of blanks inside a virtual service, which is ignored", "remove the blanks: ldirectord refuses the line")
		return
	}
	c.open = false
}

// columnZero handles a line in column 0 below a virtual line: a global one,
// unless its word has a meaning in virtual services only, or the whole block
// has lost its indentation.
func (c *cfParser) columnZero(at pos, text string) {
	d, known := directives[directiveWord(text)]
	ours := known && d.virtual != nil && (d.global == nil || c.flat && c.open)
	if !ours {
		c.open = false
		c.directive(nil, at, text)
		return
	}
	c.unindented = append(c.unindented, at)
	c.open = true
	c.directive(c.block, at, c.cutComment(at, text))
}

// isFlat looks ahead to the next virtual line: a block without any indented
// line but with a directive that only virtual services have was pasted from
// somewhere that lost the indentation.
func isFlat(below []string) bool {
	flat := false
	for _, l := range below {
		text, indent := trimLeft(l)
		if text == "" || text[0] == '#' {
			continue
		}
		if indent > 0 {
			return false
		}
		if isVirtual(text) {
			break
		}
		if d, known := directives[directiveWord(text)]; known && d.global == nil {
			flat = true
		}
	}
	return flat
}

// cutComment drops everything from the first #, quotes or not, as ldirectord
// does. Where that would leave one quote open the # was meant as text.
func (c *cfParser) cutComment(at pos, text string) string {
	i := strings.IndexByte(text, '#')
	if i < 0 {
		return text
	}
	open := strings.Count(text[:i], `"`)
	splitsString := open == 1 || open%2 == 1 && strings.HasPrefix(text, "real")
	end := strings.IndexByte(text[i:], '"')
	if !splitsString || end < 0 {
		return text[:i]
	}
	c.warn(at.after(i), "# inside quotes is taken as text", "ldirectord takes it for a comment and refuses the line; in a pattern write . for it")
	rest := i + end + 1
	if j := strings.IndexByte(text[rest:], '#'); j >= 0 {
		return text[:rest+j]
	}
	return text
}

// directiveWord is the lower-case name that a line begins with.
func directiveWord(text string) string {
	i := 0
	for i < len(text) && wordByte(text[i]) {
		i++
	}
	return strings.ToLower(text[:i])
}

func wordByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '-'
}

// isVirtual tells whether a line begins a block.
func isVirtual(text string) bool {
	w := directiveWord(text)
	return w == "virtual" || w == "virtual6"
}

// split takes a line apart into its word and its value. It reports a word in
// capitals and a missing =, and returns false where no value can be found.
func (c *cfParser) split(at pos, text string) (setting, bool) {
	name := directiveWord(text)
	s := setting{pos: at, word: name}
	_, known := directives[name]
	written := text[:len(name)]
	rest, blanks := trimLeft(text[len(name):])
	if known && written != name {
		c.warn(at, fmt.Sprintf("%q is taken as %q", written, name), "write it in small letters: ldirectord refuses it like this")
	}
	value := at.after(len(name) + blanks)
	if v, found := strings.CutPrefix(rest, "="); found && name != "" {
		v, more := trimLeft(v)
		s.value = word{value.after(1 + more), v}
		return s, true
	}
	if known && rest == "" && name == "supervised" {
		c.warn(at, "supervised without a value is taken as supervised=yes", "write supervised=yes")
		s.value = word{value, "yes"}
		return s, true
	}
	if known && blanks > 0 && rest != "" && rest[0] != '#' {
		c.warn(value, fmt.Sprintf("%s has no = before its value, and is taken as if it had", name), "write "+name+"=VALUE: ldirectord refuses the line")
		s.value = word{value, rest}
		return s, true
	}
	switch {
	case known:
		c.error(at, fmt.Sprintf("%q has no value", name), "write "+name+"=VALUE")
	case name == "":
		c.error(at, fmt.Sprintf("unknown directive %q", clip(text)), "a line is empty, a # comment or DIRECTIVE=VALUE")
	default:
		c.unknown(at, written, c.block != nil)
	}
	return s, false
}

// clip shortens text of the file for a message.
func clip(s string) string {
	const longest = 40
	if s = strings.TrimRight(s, " \t"); len(s) > longest {
		return s[:longest] + "..."
	}
	return s
}

// unknown reports a word that is no directive in this context.
func (c *cfParser) unknown(at pos, name string, inBlock bool) {
	hint := didYouMean(name, directiveWords)
	switch strings.ToLower(name) {
	case "weight":
		hint = "the weight of a real server stands on its own line: real=10.0.0.2:80 masq 3"
	case "timeout":
		hint = "write checktimeout or negotiatetimeout"
	}
	where := "directive"
	if inBlock {
		where = "directive of a virtual service"
	}
	c.error(at, fmt.Sprintf("unknown %s %q", where, clip(name)), hint)
}

// virtual begins a block.
func (c *cfParser) virtual(at pos, text string) {
	c.block = &rawVirtual{pos: at, settings: map[string]setting{}}
	c.open = true
	s, ok := c.split(at, text)
	c.block.six = s.word == "virtual6"
	c.block.value = s.value
	c.block.bad = !ok || !c.virtualValue(c.block)
	c.raw.virtuals = append(c.raw.virtuals, c.block)
}

// directive reads one line: of block b, or a global one where b is nil.
func (c *cfParser) directive(b *rawVirtual, at pos, text string) {
	s, ok := c.split(at, text)
	if !ok {
		return
	}
	d, known := directives[s.word]
	if !known {
		c.unknown(at, text[:len(s.word)], b != nil)
		return
	}
	read, store := d.global, c.raw.settings
	if b != nil {
		read, store = d.virtual, b.settings
	}
	switch {
	case read == nil && b != nil:
		c.error(at, s.word+" is a global directive: it has no meaning for one virtual service", "write it in column 1 above the virtual services")
		return
	case read == nil:
		c.error(at, s.word+" belongs to a virtual service, and none is above it", "write it below a virtual line, indented by a tab")
		return
	}
	if !read(c, b, &s) {
		return
	}
	if b != nil {
		s.value.text = expandTabs(s.value.text)
	}
	if old, twice := store[s.word]; twice {
		c.warn(at, fmt.Sprintf("%s is given again: this value replaces that of line %d", s.word, old.line), "remove one of them")
	}
	store[s.word] = s
}

// expandTabs makes four blanks of each tab, as ldirectord does inside a block,
// also inside strings.
func expandTabs(s string) string { return strings.ReplaceAll(s, "\t", "    ") }
