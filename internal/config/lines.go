package config

import (
	"bytes"
	"strconv"
	"strings"
)

// byteOrderMark is U+FEFF in UTF-8, which some editors put before line 1.
var byteOrderMark = []byte("\xef\xbb\xbf")

// splitLines cuts a file into lines without their ends. A byte-order mark and
// the carriage returns of another system's line ends are dropped, with one
// warning each: the original programs take them for part of the text.
func splitLines(p *problems, data []byte) []string {
	if rest, found := bytes.CutPrefix(data, byteOrderMark); found {
		p.warn(top, "the file begins with a byte-order mark, which is ignored",
			"save it as UTF-8 without a mark: the original program refuses it")
		data = rest
	}
	if len(data) == 0 {
		return nil
	}
	text := strings.TrimSuffix(string(data), "\n")
	lines := strings.Split(text, "\n")
	first := 0
	for i, l := range lines {
		if s, found := strings.CutSuffix(l, "\r"); found {
			lines[i] = s
			if first == 0 {
				first = i + 1
			}
		}
	}
	if first != 0 {
		p.warn(pos{first, len(lines[first-1]) + 1}, "the line ends with a carriage return, which is ignored here and in all lines below",
			"save the file with Unix line ends: the original program takes the character for part of the value")
	}
	return lines
}

// blank is a space or a tab.
func blank(c byte) bool { return c == ' ' || c == '\t' }

// trimLeft drops leading blanks and tells how many.
func trimLeft(s string) (string, int) {
	t := strings.TrimLeft(s, " \t")
	return t, len(s) - len(t)
}

// fields splits at blanks and at the extra separators, keeping places.
func fields(w word, separators string) []word {
	var out []word
	for i := 0; i < len(w.text); {
		if blank(w.text[i]) || strings.IndexByte(separators, w.text[i]) >= 0 {
			i++
			continue
		}
		j := i
		for j < len(w.text) && !blank(w.text[j]) && strings.IndexByte(separators, w.text[j]) < 0 {
			j++
		}
		out = append(out, word{w.after(i), w.text[i:j]})
		i = j
	}
	return out
}

// firstField is what stands before the first blank.
func firstField(s string) string {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i]
	}
	return s
}

// digits tells whether s consists of decimal digits, at least one.
func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// firstNumber is the first run of digits anywhere in s.
func firstNumber(s string) (string, bool) {
	i := strings.IndexAny(s, "0123456789")
	if i < 0 {
		return "", false
	}
	j := i
	for j < len(s) && s[j] >= '0' && s[j] <= '9' {
		j++
	}
	return s[i:j], true
}

// maxNumber bounds every number of the files; as seconds it is 68 years.
const maxNumber = 1<<31 - 1

// number is the value of a run of digits, or false above maxNumber.
func number(s string) (int, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return int(n), err == nil && n >= 0 && n <= maxNumber
}
