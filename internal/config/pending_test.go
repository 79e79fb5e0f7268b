package config

import "testing"

// TestWithout: the list of what does nothing here names directives that
// exist, and says what follows and what to write instead.
func TestWithout(t *testing.T) {
	for name, p := range withoutHaCf {
		if _, known := haDirectives[name]; !known || p.consequence == "" || p.instead == "" {
			t.Errorf("ha.cf: %s", name)
		}
	}
}
