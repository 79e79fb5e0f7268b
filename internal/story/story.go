// Package story plays test scripts: commands, a line "----", and what happened.
//
// What comes in is a file of testdata and a function that carries out one
// command and returns what it led to. What goes out is a failed test with the
// difference; with -rewrite, the file brought up to date, to be reviewed as a
// difference of the repository. It is imported by tests only, and knows nothing
// of what is played.
package story

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write what happened into the golden files of testdata")

// Play plays the scripts that the pattern names, each as a test of its own:
//
//	# A paragraph of comment lines stays as it is.
//
//	command with words
//	another
//	----
//	what both led to
//
// stage is called once for each script and returns what carries out its
// commands, one line without comment at a time.
func Play(t *testing.T, pattern string, stage func(t *testing.T) (do func(command string) string)) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			Golden(t, file, play(string(b), stage(t)))
		})
	}
}

// play returns a script with what happens now below its commands.
func play(script string, do func(command string) string) string {
	var out []string
	for block := range strings.SplitSeq(strings.Trim(script, "\n"), "\n\n") {
		head, _, _ := strings.Cut(block+"\n", "\n----\n")
		head = strings.TrimRight(head, "\n")
		result, commands := "", 0
		for line := range strings.Lines(head) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				commands++
				result += do(line)
			}
		}
		if commands > 0 {
			head = strings.TrimRight(head+"\n----\n"+result, "\n")
		}
		out = append(out, head)
	}
	return strings.Join(out, "\n\n") + "\n"
}

// Golden compares got with the content of a file, and replaces that with -rewrite.
func Golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("%s (-want +got; -rewrite brings it up to date, review it then):\n%s", file, d)
	}
}
