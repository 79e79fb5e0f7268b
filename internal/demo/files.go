package demo

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
)

// Shortest load for which the tutorial's ha.cf is used as it is: its deadtime
// of five seconds has to pass within the demo.
const tutorialPace = 30 * time.Second

// paced returns the tutorial's ha.cf, with its times cut for a short demo.
func paced(hacf string, d time.Duration) string {
	if d >= tutorialPace {
		return hacf
	}
	dead := d / 6
	ms := func(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
	return rewrite(hacf, map[string][]string{
		"keepalive": {"keepalive " + ms(dead/5)},
		"warntime":  {"warntime " + ms(dead*3/5)},
		"deadtime":  {"deadtime " + ms(dead)},
		"initdead":  {"initdead 10"},
	})
}

// rewrite replaces the lines that begin with one of the directives.
func rewrite(text string, by map[string][]string) string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		word, _, _ := strings.Cut(line, " ")
		if lines, ok := by[word]; ok {
			out = append(out, lines...)
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n") + "\n"
}

// tutorialFile is one file of the tutorial's /etc/ha.d.
func tutorialFile(name string) (string, error) {
	b, err := fs.ReadFile(lab.TutorialHaD(), name)
	if err != nil {
		return "", fmt.Errorf("the tutorial's %s: %w", name, err)
	}
	return string(b), nil
}

// writeHaD writes an ha.d directory; authkeys as private as it has to be.
func writeHaD(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the configuration directory: %w", err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the configuration: %w", err)
		}
	}
	return nil
}
