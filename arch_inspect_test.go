package batuta_test

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"testing"
)

// inspect holds the calls and statements of one file against its room's rules.
func inspect(t *testing.T, fset *token.FileSet, file, dir string, r room, f *ast.File) {
	t.Helper()
	loop := slices.Contains(loops, dir)
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			if r.pure {
				t.Errorf("%s: a decider starts no goroutine", fset.Position(n.Pos()))
			}
			if loop && path.Base(file) != "loop.go" {
				t.Errorf("%s: goroutines of a loop package are started in loop.go only", fset.Position(n.Pos()))
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok {
				return true
			}
			if why, bad := forbiddenCalls[x.Name+"."+n.Sel.Name]; bad && r.pure {
				t.Errorf("%s: %s.%s: %s", fset.Position(n.Pos()), x.Name, n.Sel.Name, why)
			}
			if timer := x.Name == "time" && (n.Sel.Name == "NewTimer" || n.Sel.Name == "NewTicker" || n.Sel.Name == "AfterFunc"); timer && loop && path.Base(file) != "loop.go" {
				t.Errorf("%s: timers of a loop package live in loop.go only", fset.Position(n.Pos()))
			}
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				t.Errorf("%s: no registration from init", fset.Position(n.Pos()))
			}
		}
		return true
	})
}
