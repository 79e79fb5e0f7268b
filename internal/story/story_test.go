package story

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What happened is replaced, comments stay, and a script without output gets it.
func TestPlay(t *testing.T) {
	const script = `# A story.
# Of two lines.

# It begins.
say one
 say two
----
was said before

say three
`
	const want = `# A story.
# Of two lines.

# It begins.
say one
 say two
----
<say one>
<say two>

say three
----
<say three>
`
	echo := func(command string) string { return "<" + command + ">\n" }
	for _, s := range []string{script, want} {
		if d := cmp.Diff(want, play(s, echo)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}
