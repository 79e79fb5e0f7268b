package check

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"sync"
)

// patterns remembers compiled receive expressions: pattern to *regexp.Regexp.
// They come from configurations only, so there are few.
var patterns sync.Map

// compile reads a receive expression as Perl does without modifiers: "^" and
// "$" at the ends of the text, "$" also before a newline that ends it, "."
// not a newline. Perl's expressions that need backtracking (look-around,
// back references) are an error.
func compile(pattern string) (*regexp.Regexp, error) {
	if re, ok := patterns.Load(pattern); ok {
		return re.(*regexp.Regexp), nil
	}
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("receive=%q is no regular expression that can be used here: %w", pattern, err)
	}
	re, err := regexp.Compile(perlDollar(tree).String())
	if err != nil {
		return nil, fmt.Errorf("receive=%q: %w", pattern, err)
	}
	patterns.Store(pattern, re)
	return re, nil
}

// perlDollar replaces each "$" by "\n?\z", what Perl takes it to mean.
func perlDollar(re *syntax.Regexp) *syntax.Regexp {
	if re.Op == syntax.OpEndText && re.Flags&syntax.WasDollar != 0 {
		end := &syntax.Regexp{Op: syntax.OpEndText}
		newline := &syntax.Regexp{Op: syntax.OpLiteral, Rune: []rune{'\n'}}
		maybe := &syntax.Regexp{Op: syntax.OpQuest, Sub: []*syntax.Regexp{newline}}
		return &syntax.Regexp{Op: syntax.OpConcat, Sub: []*syntax.Regexp{maybe, end}}
	}
	for i, sub := range re.Sub {
		re.Sub[i] = perlDollar(sub)
	}
	return re
}
