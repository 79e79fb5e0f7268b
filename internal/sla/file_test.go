package sla

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestModelFiles(t *testing.T) {
	for _, name := range []string{"shop", "parts"} {
		p, err := parseFile(t, name+".hcl").Evaluate()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".txt", p.String())
	}
}

func TestPresetTexts(t *testing.T) {
	var b strings.Builder
	for _, name := range Presets {
		c, err := Preset(name, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.Coverage, c.Failover = 0.95, 2
		p, err := ClusterModel(name, c).Evaluate()
		if err != nil {
			t.Fatal(err)
		}
		rows, err := Compare(c)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(p.String() + "\n" + CompareText(rows) + "\n")
	}
	golden(t, "presets.txt", b.String())
}

// Each bad file has all its problems beside it.
func TestBadModelFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad-*.hcl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, path := range files {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		m, problems := Parse(name, src)
		if m != nil || len(problems) == 0 {
			t.Errorf("%s is accepted", name)
		}
		var b strings.Builder
		for _, p := range problems {
			b.WriteString(p.String() + "\n")
		}
		golden(t, name+".want", b.String())
	}
	if _, problems := Parse("big.hcl", make([]byte, mostSource+1)); len(problems) != 1 {
		t.Errorf("a file too big: %v", problems)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.hcl")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		src, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 4096 {
			return // large models take their time
		}
		m, problems := Parse("fuzz.hcl", src)
		if (m == nil) != (len(problems) > 0) {
			t.Fatalf("model %v, problems %v", m, problems)
		}
		for _, p := range problems {
			if p.Line < 1 || p.Col < 1 || p.Text == "" || strings.ContainsAny(p.String(), "\n\r") {
				t.Errorf("%q", p.String())
			}
		}
		if m == nil {
			return
		}
		p, err := m.Evaluate()
		if err != nil {
			t.Fatal(err)
		}
		if !(p.Service >= 0 && p.Service <= 1) {
			t.Errorf("unavailability %g", float64(p.Service))
		}
	})
}
