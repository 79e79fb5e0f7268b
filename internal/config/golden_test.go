package config

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestProblems holds the problems of testdata/bad-* against the text beside
// each file. Rewrite them with -rewrite, and read the difference.
func TestProblems(t *testing.T) {
	files, _ := filepath.Glob("testdata/bad-*")
	for _, file := range files {
		if strings.HasSuffix(file, ".want") {
			continue
		}
		t.Run(path.Base(file), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name := path.Base(file)
			kind := KindLdirectord
			for suffix, k := range map[string]Kind{".hcl": KindNative, ".hcl.json": KindNative, ".ha.cf": KindHaCf, ".authkeys": KindAuthkeys, ".haresources": KindHaresources} {
				if strings.HasSuffix(name, suffix) {
					kind = k
				}
			}
			r := Reader{Files: machine(map[string]string{name: string(content)}), Host: testHost(), Starting: true}
			if kind == KindHaresources {
				// Nodes are known beside an ha.cf only.
				p := &problems{file: name}
				lowerHaresources(p, parseHaresources(p, content), nodeNames("lvs01", "lvs02"))
				compareGolden(t, file+".want", text(p.sorted()))
				return
			}
			got := text(r.Check(name, kind))
			if strings.Contains(got, "sesame") {
				t.Errorf("a secret is shown:\n%s", got)
			}
			compareGolden(t, file+".want", got)
		})
	}
}

func compareGolden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, _ := os.ReadFile(file)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", file, diff)
	}
}
