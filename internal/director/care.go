package director

import (
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
)

// A slow start takes this many steps, none of them shorter than growLeast.
const (
	growSteps = 20
	growLeast = 200 * time.Millisecond
)

// grow notes which real servers are in their slow start; next is when to look
// again, 0 if there are none.
func (s *state) grow(now time.Time) (next time.Duration) {
	s.growing = nil
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		if svc.Care.SlowStart <= 0 {
			continue
		}
		for j := range s.health[i] {
			if !s.health[i][j].Growing(svc.Reals[j].Weight, svc.Care, now) {
				continue
			}
			if s.growing == nil {
				s.growing = map[realKey]bool{}
			}
			s.growing[realKey{svc.Virtual.Key, svc.Reals[j].Addr}] = true
			if step := max(svc.Care.SlowStart/growSteps, growLeast); next == 0 || step < next {
				next = step
			}
		}
	}
	return next
}

// noteCare tells which services have begun or ceased to use all their real
// servers, up or not.
func (s *state) noteCare() (events []model.Event) {
	now := map[model.ServiceKey]bool{}
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		k := svc.Virtual.Key
		if !balance.Panicking(&svc.Care, s.health[i]) {
			if s.panicking[k] {
				events = append(events, panicEnded(k))
			}
			continue
		}
		now[k] = true
		if !s.panicking[k] {
			events = append(events, panicBegan(k, svc.Care.Panic))
		}
	}
	s.panicking = now
	return events
}
