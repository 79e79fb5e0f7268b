package balance

import "github.com/batuta-ha/batuta/internal/model"

// HearService takes a verdict in by all the rules of its service: HearWithCare,
// how many successes it takes to be up again, and what the real server reports
// of itself. moved tells that such a report changes the table.
func (s *State) HearService(v model.Verdict, svc *model.Service) (o Outcome, moved bool) {
	moved = v.Status == model.Up && s.hearLoad(v.Load)
	switch {
	case v.Status == model.Down, s.Status != model.Down:
		s.Successes = 0
	case v.Status == model.Up:
		if s.Successes++; s.Successes < svc.SuccessCount {
			s.Answered, s.Confirmed, s.Failures = true, true, 0
			return NoChange, moved
		}
	}
	return s.HearWithCare(v.Status, svc.FailureCount, svc.Care, v.At), moved
}

// hearLoad takes a report in. What it does not mention stays as it was
// reported last.
func (s *State) hearLoad(l model.Load) (moved bool) {
	before := s.Load
	if l.Weighted {
		s.Load.Weighted, s.Load.Percent = true, l.Percent
	}
	if l.Mode != model.LoadUnsaid {
		s.Load.Mode = l.Mode
	}
	if l != (model.Load{}) {
		s.Load.Reason = l.Reason
	}
	return s.Load.Weighted != before.Weighted || s.Load.Percent != before.Percent || s.Load.Mode != before.Mode
}

// Held is how far the server is out of service, by an operator or by its own
// report.
func (s *State) Held() Hold {
	own := HoldNone
	switch {
	case s.Load.Mode == model.LoadMaint:
		own = HoldOut
	case s.Load.Mode == model.LoadDrain, s.Load.Weighted && s.Load.Percent == 0:
		own = HoldDrain
	}
	return max(own, s.Hold)
}

// reports tells whether a check brings reports of the server.
func reports(t *model.Target) bool { return t.AgentPort != 0 || t.WeightHeader != "" }
