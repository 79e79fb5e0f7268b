package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Severity is how much a Problem matters.
type Severity uint8

// Severities. Only an Error keeps a configuration from being used.
const (
	SeverityNone Severity = iota
	Note                  // worth knowing
	Warning               // used, but perhaps not as meant
	Error                 // cannot be used
)

func (s Severity) String() string {
	return [...]string{"none", "note", "warning", "error"}[min(int(s), 3)]
}

// MarshalText writes note, warning or error.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Problem is one thing that a file says and should not, or says and may not
// mean. It never contains a secret.
type Problem struct {
	File     string   `json:"file"` // as the caller named it
	Line     int      `json:"line"` // from 1; 1 for what concerns the whole file
	Col      int      `json:"col"`  // in bytes, from 1
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`           // what is wrong, and what follows from it
	Hint     string   `json:"hint,omitempty"` // what to do about it
}

// String is the canonical text: "ldirectord.cf:3:1: error: text; hint".
func (p Problem) String() string {
	s := p.File + ":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Col) + ": " + p.Severity.String() + ": " + p.Text
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// Failed tells whether one of the problems is an Error.
func Failed(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.Severity == Error })
}

// pos is a place in a file.
type pos struct{ line, col int }

// top is the place of what concerns a whole file.
var top = pos{1, 1}

// word is a piece of a file with its place.
type word struct {
	pos
	text string
}

// after is the place n bytes further on the same line.
func (p pos) after(n int) pos { return pos{p.line, p.col + n} }

// problems collects what is found in one file.
type problems struct {
	file     string
	starting bool // Reader.Starting
	list     []Problem
}

func (p *problems) add(s Severity, at pos, text, hint string) {
	p.list = append(p.list, Problem{p.file, max(at.line, 1), max(at.col, 1), s, oneLine(text), oneLine(hint)})
}

// here reports what is wrong on this machine at this moment. A daemon cannot
// start with it; a check may be made on another machine, and warns.
func (p *problems) here(at pos, text, hint string) {
	if p.starting {
		p.error(at, text, hint)
		return
	}
	p.warn(at, text, hint)
}

// oneLine keeps what a file contains from breaking the lines of a report, or
// from moving the reader's cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

func (p *problems) error(at pos, text, hint string) { p.add(Error, at, text, hint) }
func (p *problems) warn(at pos, text, hint string)  { p.add(Warning, at, text, hint) }
func (p *problems) note(at pos, text, hint string)  { p.add(Note, at, text, hint) }

// sorted returns the problems in the order of the file. What lowering finds
// comes after what parsing found; readers want one pass from top to bottom.
func (p *problems) sorted() []Problem {
	slices.SortStableFunc(p.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return p.list
}
