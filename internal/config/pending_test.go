package config

import "testing"

// TestPending: the list of what is not yet in force names directives that
// exist, and says what follows.
func TestPending(t *testing.T) {
	for name, p := range pendingHaCf {
		if _, known := haDirectives[name]; !known || p.consequence == "" {
			t.Errorf("ha.cf: %s", name)
		}
	}
}
