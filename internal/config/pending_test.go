package config

import "testing"

// TestPending: the lists of what is not yet in force name directives that
// exist, and say what follows.
func TestPending(t *testing.T) {
	for name, p := range pendingLdirectord {
		if _, known := directives[name]; !known || p.consequence == "" {
			t.Errorf("ldirectord.cf: %s", name)
		}
	}
	for name, p := range pendingHaCf {
		if _, known := haDirectives[name]; !known || p.consequence == "" {
			t.Errorf("ha.cf: %s", name)
		}
	}
}
