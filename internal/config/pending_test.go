package config

import "testing"

// TestWithout: the list of what does nothing here names directives that
// exist, and says what follows.
func TestWithout(t *testing.T) {
	for name, p := range withoutHaCf {
		if _, known := haDirectives[name]; !known || p.consequence == "" {
			t.Errorf("ha.cf: %s", name)
		}
	}
}
