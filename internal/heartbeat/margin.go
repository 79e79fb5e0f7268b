package heartbeat

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Horizon is how far back a margin looks.
const Horizon = 7 * 24 * time.Hour

// Margin learns from the arrival times of a node's beats how short its dead
// time could be: longer than every gap between two beats of the last days that
// turned out to be no death. The zero value has learnt nothing.
type Margin struct {
	since time.Time
	slot  int64                              // the hour that is being filled, since the epoch
	worst [Horizon / time.Hour]time.Duration // longest gap of each hour, by hour modulo its size
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
