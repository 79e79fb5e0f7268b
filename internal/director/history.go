package director

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// remembered is how many durations of checks are kept of a real server.
const remembered = 32

// past is what the checks of a real server were like.
type past struct {
	status model.Status
	since  time.Time // when status became what it is
	took   [remembered]time.Duration
	n      int // durations noted so far
}

// add notes a check and what is believed after it.
func (p *past) add(v model.Verdict, s model.Status) {
	p.took[p.n%remembered] = v.Duration
	p.n++
	p.turn(s, v.At)
}

// turn notes what is believed now.
func (p *past) turn(s model.Status, at time.Time) {
	if p.since.IsZero() || s != p.status {
		p.status, p.since = s, at
	}
}

// latency lists the durations, the newest last.
func (p *past) latency() []time.Duration {
	var out []time.Duration
	for i := max(0, p.n-remembered); i < p.n; i++ {
		out = append(out, p.took[i%remembered])
	}
	return out
}
