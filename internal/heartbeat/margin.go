package heartbeat

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Horizon is how far back a margin looks.
const Horizon = 7 * 24 * time.Hour

// Margin learns from the arrival times of a node's beats how short its dead
// time could be: longer than every gap between two beats of the last days that
// turned out to be no death. The zero value has learnt nothing.
type Margin struct {
	pace  time.Duration // the node's keepalive all the while
	since time.Time
	slot  int64                              // the hour that is being filled, since the epoch
	worst [Horizon / time.Hour]time.Duration // longest gap of each hour, by hour modulo its size
}

// Pace says what the node's keepalive is. What was learnt at another one says
// nothing any more.
func (m *Margin) Pace(keepalive time.Duration) {
	if m.pace != keepalive {
		*m = Margin{pace: keepalive}
	}
}

// Add enters a gap that ended at that time with a beat of the same life.
func (m *Margin) Add(at time.Time, gap time.Duration) {
	m.pass(at)
	if w := &m.worst[m.slot%int64(len(m.worst))]; gap > *w {
		*w = gap
	}
}

// pass forgets the hours that have left the horizon.
func (m *Margin) pass(at time.Time) {
	hour := at.Unix() / int64(time.Hour/time.Second)
	if m.since.IsZero() {
		m.since, m.slot = at, hour
	}
	for n := 0; m.slot < hour; n++ {
		if m.slot++; n < len(m.worst) {
			m.worst[m.slot%int64(len(m.worst))] = 0
		} else {
			m.slot = hour
		}
	}
}

// Could returns the shortest dead time, in whole milliseconds, that no gap of
// the horizon would have exceeded.
func (m *Margin) Could(now time.Time) model.Margin {
	if m.since.IsZero() {
		return model.Margin{}
	}
	m.pass(now)
	worst := time.Duration(0)
	for _, w := range m.worst {
		worst = max(worst, w)
	}
	if worst == 0 {
		return model.Margin{}
	}
	since := m.since
	if begin := now.Add(-Horizon); begin.After(since) {
		since = begin
	}
	return model.Margin{DeadTime: model.Millis((worst/time.Millisecond + 1) * time.Millisecond), Since: since}
}

// FormatMargins writes what was learnt of the nodes, a line for each: "NODE
// KEEPALIVE SINCE HOUR GAP...": microseconds, two moments in seconds and in
// hours since 1970, and the longest gap of each hour in microseconds with its
// age in hours before it, "AGE:GAP".
func FormatMargins(margins map[model.NodeName]Margin) string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(margins)) {
		m := margins[n]
		if m.since.IsZero() {
			continue
		}
		fmt.Fprintf(&b, "%s %d %d %d", n, m.pace.Microseconds(), m.since.Unix(), m.slot)
		for age := range int64(len(m.worst)) {
			if w := m.worst[(m.slot+int64(len(m.worst))-age)%int64(len(m.worst))]; w > 0 {
				fmt.Fprintf(&b, " %d:%d", age, w.Microseconds())
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// ParseMargins reads such lines.
func ParseMargins(text string) (map[model.NodeName]Margin, error) {
	margins := map[model.NodeName]Margin{}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 4 {
			return nil, fmt.Errorf("%.60q is not NODE KEEPALIVE SINCE HOUR and gaps", line)
		}
		var n [3]int64
		for i, word := range w[1:4] {
			x, err := strconv.ParseUint(word, 10, 50)
			if err != nil {
				return nil, fmt.Errorf("%.60q: the %q is no number that a margin can have", line, word)
			}
			n[i] = int64(x)
		}
		m := Margin{pace: time.Duration(n[0]) * time.Microsecond, since: time.Unix(n[1], 0), slot: n[2]}
		for _, word := range w[4:] {
			age, gap, ok := strings.Cut(word, ":")
			a, e1 := strconv.ParseUint(age, 10, 16)
			g, e2 := strconv.ParseUint(gap, 10, 40)
			if !ok || e1 != nil || e2 != nil || a >= uint64(len(m.worst)) || int64(a) > m.slot {
				return nil, fmt.Errorf("%.60q: %q is not AGE:GAP with an age below %d hours", line, word, len(m.worst))
			}
			m.worst[(m.slot-int64(a))%int64(len(m.worst))] = time.Duration(g) * time.Microsecond
		}
		margins[model.NodeName(w[0])] = m
	}
	return margins, nil
}
