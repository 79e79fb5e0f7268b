package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// readNative reads text as /etc/batuta/batuta.hcl.
func readNative(t testing.TB, text string) (*model.Director, []Problem) {
	t.Helper()
	r := Reader{Files: machine(map[string]string{"etc/batuta/batuta.hcl": text}), Dir: "/etc/batuta", Host: testHost()}
	return r.Director("batuta.hcl")
}

// importText imports text as an ldirectord.cf.
func importText(t testing.TB, text string) (*Import, []Problem) {
	t.Helper()
	text = strings.ReplaceAll(text, "@DIR@", "/scratch")
	r := Reader{Files: machine(map[string]string{"etc/ha.d/ldirectord.cf": text}), Dir: "/etc/ha.d", Host: testHost()}
	return r.Import("ldirectord.cf")
}

// sameMeaning holds what an ldirectord.cf means against what the file that is
// made of it means. fork is gone: it says nothing that matters to a director
// whose checks always run beside each other.
func sameMeaning(t *testing.T, file string) *Import {
	t.Helper()
	want, list := readDirector(t, file)
	if Failed(list) {
		return nil
	}
	im, list := importText(t, file)
	if Failed(list) {
		for _, p := range list {
			if p.Severity == Error && !strings.Contains(p.Text, "cannot be written in a native file") {
				t.Errorf("%q: %s", file, p)
			}
		}
		return nil
	}
	got, list := readNative(t, im.Text)
	if Failed(list) {
		t.Errorf("%q becomes\n%s\n%s", file, im.Text, text(list))
		return nil
	}
	want.Name, want.File, want.Fork = got.Name, got.File, false
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Errorf("%q becomes\n%s(-ldirectord.cf +native)\n%s", file, im.Text, diff)
	}
	return im
}

// TestImportMeansTheSame: every file that is accepted means the same when it
// has been imported, and the report has each line that says something.
func TestImportMeansTheSame(t *testing.T) {
	n := 0
	for _, pattern := range []string{"*.cf", "ldirectord/edge/*.cf", "ldirectord/wild/*.cf", "tutorial/ldirectord*.cf"} {
		files, err := filepath.Glob("testdata/" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if sameMeaning(t, string(b)) != nil {
					n++
				}
			})
		}
	}
	t.Logf("%d files", n)
	if n < 60 {
		t.Errorf("only %d files were imported", n)
	}
}

func FuzzImport(f *testing.F) {
	seeds(f, "*.cf", "ldirectord/edge/*.cf", "ldirectord/wild/*.cf", "tutorial/ldirectord*.cf")
	f.Fuzz(func(t *testing.T, file string) {
		sameMeaning(t, strings.ReplaceAll(file, "->", "-")) // ranges make long tables
	})
}

// TestImport: an example, with all that is said about it.
func TestImport(t *testing.T) {
	im, list := importText(t, testdata(t, "import.cf.in"))
	if im == nil {
		t.Fatal(text(list))
	}
	var b strings.Builder
	for _, l := range im.Lines {
		b.WriteString(l.String() + "\n")
	}
	compareGolden(t, "testdata/import.hcl.want", im.Text+"\n# Report\n"+b.String())
	if strings.Contains(b.String(), "sesame") {
		t.Error("the report shows a secret")
	}
	sameMeaning(t, testdata(t, "import.cf.in"))
}
