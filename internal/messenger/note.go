package messenger

import (
	"fmt"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// What others send must not fill this node's log and journal: of each kind of
// note so many at once, then so many a second, and none longer than a screen.
// Some kinds follow from packets that anybody can send; a broken or hostile
// node with the key can cause most of the others.
const (
	noteBurst     = 100
	notePeriod    = time.Second // one more note of a kind may be written after so long
	longestNote   = 1000        // bytes of its text
	longestNoteOn = 100         // bytes of its subject
)

// logLimit counts notes of each kind; the kinds are those of this program, so
// there are few. The zero value is ready.
type logLimit map[string]*noted

type noted struct {
	spent    int // of noteBurst
	at       time.Time
	withheld int
}

// pass tells whether a note of a kind may be written, and how many before it
// were not.
func (l logLimit) pass(now time.Time, kind string) (withheld int, ok bool) {
	n := l[kind]
	if n == nil {
		n = &noted{at: now}
		l[kind] = n
	}
	if back := int(now.Sub(n.at) / notePeriod); back > 0 {
		n.spent, n.at = max(0, n.spent-back), n.at.Add(time.Duration(back)*notePeriod)
	}
	if n.spent >= noteBurst {
		n.withheld++
		return 0, false
	}
	n.spent++
	withheld, n.withheld = n.withheld, 0
	return withheld, true
}

// note passes a note on, unless too many of its kind have been.
func (c *Core) note(now time.Time, e model.Event) {
	if c.log == nil {
		c.log = logLimit{}
	}
	withheld, ok := c.log.pass(now, e.Kind)
	if !ok {
		return
	}
	e.Text, e.Subject = shorten(e.Text, longestNote), shorten(e.Subject, longestNoteOn)
	if withheld > 0 {
		e.Text += fmt.Sprintf(" (%d more of this kind were not written)", withheld)
	}
	c.out.Notes = append(c.out.Notes, e)
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
