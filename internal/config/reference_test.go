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
