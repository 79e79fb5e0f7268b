package config

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
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

// badPattern tells what is wrong with a receive string and what to do about
// it, or "" where nothing is.
func badPattern(p string) (text, hint string) {
	_, err := regexp.Compile(p)
	if err == nil {
		return "", ""
	}
	if construct, name := firstPerlOnly(p); construct != "" {
		return fmt.Sprintf("receive uses %s (%s), which is not supported", construct, name), "write a pattern without it; most need only the text itself"
	}
	why := err.Error()
	if se, ok := errors.AsType[*syntax.Error](err); ok {
		why = se.Code.String()
		if se.Expr != "" && se.Expr != p {
			why += ": " + se.Expr
		}
	}
	return "receive is no regular expression: " + why, "put a backslash before characters that are meant as text: " + regexp.QuoteMeta(clip(p))
}

// matching are the applications whose checks look at receive.
var matching = []string{"dns", "ftp", "http", "http_proxy", "https", "ldap", "ldaps", "simpletcp"}

// patterns checks the receive strings of a block. ldirectord takes any text,
// and a bad one ends the daemon at the first check that looks at it; other
// checks do not mind.
func (l *cfLower) patterns(v *rawVirtual, c checks, usable bool) {
	negotiates := c.kind == model.CheckNegotiate || c.kind == model.CheckCombined
	used := negotiates && (!usable || slices.Contains(matching, c.application))
	check := func(w word) {
		if w.text == "" || l.goodPatterns[w.text] {
			return
		}
		text, hint := badPattern(w.text)
		switch {
		case text == "":
			l.goodPatterns[w.text] = true
		case used:
			l.error(w.pos, text, hint)
		default:
			l.warn(w.pos, text+", and this check does not look at it", hint)
		}
	}
	check(v.settings["receive"].value)
	for _, r := range v.reals {
		check(r.receive)
	}
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
