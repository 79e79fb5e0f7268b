package config

import (
	"os"
	"strings"
	"testing"
)

// The reference has every directive of ha.cf, and those that do nothing in the
// table that says so.
func TestHeartbeatReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/heartbeat.md")
	if err != nil {
		t.Fatal(err)
	}
	inForce, rest, ok := strings.Cut(string(text), "## What is accepted and does nothing here")
	nothing, _, ok2 := strings.Cut(rest, "## authkeys")
	if !ok || !ok2 {
		t.Fatal("docs/reference/heartbeat.md has lost a heading")
	}
	for _, word := range haDirectiveWords {
		w, without := withoutHaCf[word]
		place := inForce
		if without {
			place = nothing
		}
		if !strings.Contains(place, "`"+word+"`") && !strings.Contains(place, "`"+word+" ") {
			t.Errorf("docs/reference/heartbeat.md: %s is not in the table it belongs to (does nothing: %v %s)", word, without, w.consequence)
		}
	}
}

// Every directive that the description of Heartbeat 3.0.6 knows is known here:
// in force, or in the list of what does nothing. The one that no build of
// today has is an error there, too.
func TestEveryDirectiveOfTheDescription(t *testing.T) {
	text, err := os.ReadFile("../heartbeat/testdata/heartbeat-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "### 12.2 Directives")
	table, _, ok2 := strings.Cut(table, "## 13 authkeys")
	if !ok || !ok2 {
		t.Fatal("the description has lost a heading")
	}
	n := 0
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		names := strings.Split(line, "|")[1]
		for i, quoted := range strings.Split(names, "`") {
			if i%2 == 0 {
				continue
			}
			word, _, _ := strings.Cut(quoted, " ")
			n++
			if _, known := haDirectives[word]; !known && word != "normalpoll" {
				t.Errorf("%s is not known", word)
			}
		}
	}
	if n < 60 {
		t.Errorf("only %d directives were found", n)
	}
}
