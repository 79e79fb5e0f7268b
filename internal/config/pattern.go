package config

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// perlOnly are constructs of Perl's regular expressions that Go's do not
// have, by how they begin. Those of the list that begin with a backslash are
// looked for outside of escaped backslashes.
var perlOnly = []struct{ begins, name string }{
	{`(?=`, "look-ahead"},
	{`(?!`, "negative look-ahead"},
	{`(?<=`, "look-behind"},
	{`(?<!`, "negative look-behind"},
	{`(?>`, "atomic group"},
	{`(?|`, "branch reset"},
	{`(?#`, "comment group"},
	{`(?(`, "condition"},
	{`(?&`, "recursion"},
	{`(?R`, "recursion"},
	{`(*`, "backtracking verb"},
	{`\1`, "back-reference"}, {`\2`, "back-reference"}, {`\3`, "back-reference"},
	{`\4`, "back-reference"}, {`\5`, "back-reference"}, {`\6`, "back-reference"},
	{`\7`, "back-reference"}, {`\8`, "back-reference"}, {`\9`, "back-reference"},
	{`\g`, "back-reference"},
	{`\k`, "back-reference"},
	{`\G`, "end of the last match"},
	{`\K`, "kept text"},
	{`\R`, "line break"},
	{`\X`, "character cluster"},
	{`\Z`, "end before a line break"},
	{`\h`, "horizontal blank"}, {`\H`, "no horizontal blank"},
	{`\V`, "no vertical blank"},
	{`\N`, "no line break"},
	{`\e`, "escape character"},
	{`\c`, "control character"},
	{`++`, "possessive repetition"},
	{`*+`, "possessive repetition"},
	{`?+`, "possessive repetition"},
}

// pattern checks a receive string: ldirectord takes any text, and a bad one
// ends the daemon at the first check. w is the text of the pattern without
// its quotes; its place may be that of the opening quote.
func (c *cfParser) pattern(w word) bool {
	_, err := regexp.Compile(w.text)
	if err == nil {
		return true
	}
	if construct, name := firstPerlOnly(w.text); construct != "" {
		c.error(w.pos, fmt.Sprintf("receive uses %s (%s), which is not supported", construct, name), "write a pattern without it; most need only the text itself")
		return false
	}
	why := err.Error()
	var se *syntax.Error
	if errors.As(err, &se) {
		why = se.Code.String()
		if se.Expr != "" && se.Expr != w.text {
			why += ": " + se.Expr
		}
	}
	c.error(w.pos, fmt.Sprintf("receive is no regular expression: %s", why), "put a backslash before characters that are meant as text: "+regexp.QuoteMeta(clip(w.text)))
	return false
}

// firstPerlOnly finds the first construct that only Perl has.
func firstPerlOnly(p string) (construct, name string) {
	for i := 0; i < len(p); i++ {
		for _, c := range perlOnly {
			if strings.HasPrefix(p[i:], c.begins) {
				return c.begins, c.name
			}
		}
		if p[i] == '\\' {
			i++
		}
	}
	return "", ""
}
