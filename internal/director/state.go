package director

import (
	"net/netip"
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
)

// defaultInterval is ldirectord's checkinterval.
const defaultInterval = 10 * time.Second

// probe is one check that is made again and again.
type probe struct {
	target           *model.Target // in the configuration; not changed
	interval, jitter time.Duration
	users            []place // whom it decides on
}

// probeKey is what makes a probe another one: reals that agree in it share one.
type probeKey struct {
	target           model.Target
	interval, jitter time.Duration
}

func (p *probe) key() probeKey { return probeKey{*p.target, p.interval, p.jitter} }

// place is where a real server stands in the configuration.
type place struct{ service, real int }

// state is what the director knows. The loop's goroutine alone changes it.
type state struct {
	director model.Director
	health   balance.Health
	verdicts [][]model.Verdict // the last one of each real server
	past     [][]past          // and what was before
	names    [][]string        // of the real servers: views are asked for each second
	probes   []*probe          // in file order
	index    map[model.ServiceKey]int
	readd    map[model.ServiceKey]bool

	have    model.Table               // the plane's table, as it was seen or made last
	last    model.Table               // wanted last, as far as the plane took it
	fresh   bool                      // this configuration has not been applied yet
	owned   map[model.ServiceKey]bool // configured at some time in this life
	refused map[realKey]string        // rows that the plane refused, and why; without address: services
	gen     int                       // counts what was applied

	maintained map[netip.AddrPort]string // real servers in maintenance, and the file that says so
	reminders  []reminder
	drains     map[realKey]*drain
	growing    map[realKey]bool          // real servers in their slow start
	panicking  map[model.ServiceKey]bool // services that use real servers that are down
}

func newState(d model.Director) *state {
	s := &state{owned: map[model.ServiceKey]bool{}, drains: map[realKey]*drain{}}
	s.set(d)
	s.health = balance.Adopt(d.Services, model.Table{})
	return s
}

// adopt takes the plane's table over at start.
func (s *state) adopt(have model.Table) {
	s.have = have
	s.health = balance.Adopt(s.director.Services, have)
}

// configure replaces the configuration and keeps what is believed of the real
// servers that stay.
func (s *state) configure(d model.Director, have model.Table) {
	old, was, seen, past := s.director.Services, s.health, s.verdicts, s.past
	before := s.index
	s.have, s.refused = have, nil
	s.set(d)
	s.health = balance.Carry(old, was, d.Services, have)
	for i := range d.Services {
		o, ok := before[d.Services[i].Virtual.Key]
		if !ok {
			continue
		}
		for j := range d.Services[i].Reals {
			for n := range old[o].Reals {
				if old[o].Reals[n].Addr == d.Services[i].Reals[j].Addr {
					s.verdicts[i][j], s.past[i][j] = seen[o][n], past[o][n]
				}
			}
		}
	}
	s.takeOut()
	s.hold()
}

func (s *state) set(d model.Director) {
	s.director, s.fresh = d, true
	s.verdicts, s.past = make([][]model.Verdict, len(d.Services)), make([][]past, len(d.Services))
	s.probes, s.names = nil, nil
	known := map[probeKey]*probe{}
	s.index, s.readd = map[model.ServiceKey]int{}, map[model.ServiceKey]bool{}
	for i := range d.Services {
		svc := &d.Services[i]
		k := svc.Virtual.Key
		s.index[k], s.owned[k] = i, true
		s.readd[k] = svc.ReaddQuiescent
		s.verdicts[i], s.past[i] = make([]model.Verdict, len(svc.Reals)), make([]past, len(svc.Reals))
		names := make([]string, len(svc.Reals))
		for j := range svc.Reals {
			names[j] = svc.Reals[j].Addr.String()
			p := &probe{target: &svc.Reals[j].Target, interval: svc.CheckInterval, jitter: svc.CheckJitter}
			if p.interval <= 0 {
				p.interval = defaultInterval
			}
			p.jitter = min(p.jitter, p.interval/2)
			if same, ok := known[p.key()]; ok {
				p = same
			} else {
				known[p.key()] = p
				s.probes = append(s.probes, p)
			}
			p.users = append(p.users, place{i, j})
		}
		s.names = append(s.names, names)
	}
}

// hear takes in the verdict of one probe for all real servers that share it,
// and tells whether the table may be affected.
func (s *state) hear(p *probe, v model.Verdict, emit func(model.Event)) (decide bool) {
	for _, at := range p.users {
		svc := &s.director.Services[at.service]
		st := &s.health[at.service][at.real]
		if _, out := s.maintained[svc.Reals[at.real].Addr]; out {
			continue
		}
		before, first := st.Failures, !st.Answered
		outcome, moved := st.HearService(v, svc)
		decide = decide || moved
		subject := realID(svc, at.real)
		if moved {
			emit(loadReported(subject, st.Load))
		}
		switch outcome {
		case balance.SoftFailure:
			emit(checkFailed(subject, v))
			emit(softFailure(subject, st.Failures, svc.FailureCount))
		case balance.WentDown, balance.StayedDown:
			emit(checkFailed(subject, v))
		case balance.WentUp, balance.Recovered:
			if before > 0 {
				emit(failuresReset(subject))
			}
		case balance.Held:
			if st.Lately.WellSince.Equal(v.At) {
				emit(heldBack(subject, len(st.Lately.Downs), svc.Care))
			}
		case balance.NoChange:
		}
		if was := s.verdicts[at.service][at.real]; v.Status == model.Unknown && was.Reason != v.Reason {
			emit(checkUnknown(subject, v))
		} else if v.Warning != "" && was.Warning != v.Warning {
			emit(checkWarning(subject, v))
		}
		s.verdicts[at.service][at.real] = v
		s.past[at.service][at.real].add(v, st.Status)
		switch outcome {
		case balance.WentUp, balance.WentDown, balance.StayedDown:
			decide = true
		case balance.NoChange, balance.SoftFailure, balance.Recovered, balance.Held:
			decide = decide || first
		}
	}
	return decide
}

// maintain takes in which real servers are in maintenance now.
func (s *state) maintain(now map[netip.AddrPort]string, emit func(model.Event)) {
	before := s.maintained
	s.maintained = now
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		for j := range svc.Reals {
			_, was := before[svc.Reals[j].Addr]
			file, is := now[svc.Reals[j].Addr]
			switch {
			case is && !was:
				emit(maintenanceBegan(realID(svc, j), file))
			case was && !is:
				s.verdicts[i][j] = model.Verdict{Status: model.Down, Reason: "the maintenance is over; waiting for a check to succeed"}
				emit(maintenanceEnded(realID(svc, j)))
			}
		}
	}
	s.takeOut()
}

// takeOut forces down what is in maintenance, whatever the checks said.
func (s *state) takeOut() {
	if len(s.maintained) == 0 {
		return
	}
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		for j := range svc.Reals {
			if file, out := s.maintained[svc.Reals[j].Addr]; out {
				s.health[i][j].Force()
				s.past[i][j].turn(model.Down, s.verdicts[i][j].At)
				s.verdicts[i][j] = model.Verdict{Status: model.Down, Reason: inMaintenance + " (file " + file + ")", At: s.verdicts[i][j].At}
			}
		}
	}
}

// resting tells whether a probe need not be made: all whom it decides on are
// in maintenance.
func (s *state) resting(p *probe) bool {
	for _, at := range p.users {
		if _, out := s.maintained[s.director.Services[at.service].Reals[at.real].Addr]; !out {
			return false
		}
	}
	return true
}

// answered tells whether every real server has answered once.
func (s *state) answered() bool {
	for i := range s.health {
		for _, st := range s.health[i] {
			if !st.Answered {
				return false
			}
		}
	}
	return true
}

// desired is the table as it should be, given the one that is there.
func (s *state) desired(have model.Table) model.Table {
	gone := map[model.ServiceKey]bool{}
	for k := range s.owned {
		if _, configured := s.index[k]; !configured {
			gone[k] = true
		}
	}
	return balance.Desired(balance.Input{Services: s.director.Services, Health: s.health, Have: have, Removed: gone, Now: time.Now()})
}

// settled tells whether every service serves or is known to be unable to.
func (s *state) settled() bool {
	for i := range s.health {
		if balance.Live(s.health[i]) == model.Unknown {
			return false
		}
	}
	return true
}

// record notes which changes the plane carried out. What it refused counts as
// not wanted yet, so that the next attempt finds the difference again.
func (s *state) record(have, want model.Table, changes []model.Change, failed map[int]error) {
	s.have, s.last, s.fresh = have.Clone(), want.Clone(), false
	s.gen++
	for n, c := range changes {
		if failed[n] == nil {
			_ = s.have.Perform(c) // refused services have refused rows
		}
	}
	for n, c := range changes {
		if failed[n] != nil {
			undo(&s.last, have, c)
		}
	}
}

// refuse notes what the plane refused, and gives the events for what is new
// among that. Of a refused service its rows are not mentioned.
func (s *state) refuse(changes []model.Change, failed map[int]error) (events []model.Event) {
	before := s.refused
	s.refused = nil
	for n, c := range changes {
		if failed[n] == nil {
			continue
		}
		if _, whole := s.refused[realKey{service: c.Service.Key}]; whole {
			continue
		}
		k, why := realKey{c.Service.Key, c.Real.Addr}, failed[n].Error()
		if s.refused == nil {
			s.refused = map[realKey]string{}
		}
		s.refused[k] = why
		if before[k] != why {
			events = append(events, applyFailed(c, failed[n]))
		}
	}
	return events
}

// undo puts what a change touches in t back to what it is in have.
func undo(t *model.Table, have model.Table, c model.Change) {
	old := have.Find(c.Service.Key)
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit, model.ServiceDelete:
		if old == nil {
			_ = t.Perform(model.Change{Op: model.ServiceDelete, Service: c.Service})
			return
		}
		_ = t.Perform(model.Change{Op: model.ServiceEdit, Service: *old})
		if c.Op == model.ServiceDelete {
			for _, r := range old.Reals {
				_ = t.Perform(model.Change{Op: model.RealAdd, Service: *old, Real: r})
			}
		}
	case model.RealAdd, model.RealEdit, model.RealDelete:
		if old != nil {
			if row := old.Find(c.Real.Addr); row != nil {
				_ = t.Perform(model.Change{Op: model.RealEdit, Service: c.Service, Real: *row})
				return
			}
		}
		_ = t.Perform(model.Change{Op: model.RealDelete, Service: c.Service, Real: c.Real})
	case model.ChangeNone:
	}
}

// withdrawal lists the changes that take the services with CleanStop out.
func (s *state) withdrawal() []model.Change {
	var changes []model.Change
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		k := svc.Virtual.Key
		have := s.have.Find(k)
		if !svc.CleanStop || have == nil {
			continue
		}
		for j, st := range s.health[i] {
			row := have.Find(balance.RowAddr(k, svc.Reals[j].RealServer))
			if st.Status == model.Up && row != nil {
				changes = append(changes, model.Change{Op: model.RealDelete, Service: model.VirtualService{Key: k}, Real: *row})
			}
		}
		changes = append(changes, model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: k}})
	}
	return changes
}

// configured finds the real server of a service that stands in a row; of
// several the one that is up.
func (s *state) configured(svc int, row netip.AddrPort) (real int, ok bool) {
	service := &s.director.Services[svc]
	for j := range service.Reals {
		if balance.RowAddr(service.Virtual.Key, service.Reals[j].RealServer) == row {
			if !ok || s.health[svc][j].Status == model.Up {
				real, ok = j, true
			}
		}
	}
	return real, ok
}

// views describes the services for status, with the latency of the last checks
// or without.
func (s *state) views(latency bool) []model.ServiceView {
	out := make([]model.ServiceView, 0, len(s.director.Services))
	rows := make(map[model.ServiceKey]*model.VirtualService, len(s.have.Services))
	for i := range s.have.Services {
		rows[s.have.Services[i].Key] = &s.have.Services[i]
	}
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		k := svc.Virtual.Key
		v := model.ServiceView{Key: k, Name: svc.ServiceName, Scheduler: svc.Virtual.Scheduler, Reals: make([]model.RealView, 0, len(svc.Reals)), Refused: s.refused[realKey{service: k}]}
		row := func(r model.RealServer) *model.RealServer {
			if rows[k] == nil {
				return nil
			}
			return rows[k].Find(balance.RowAddr(k, r))
		}
		v.Fallback = svc.Fallback != nil && row(*svc.Fallback) != nil && balance.Live(s.health[i]) != model.Up
		for j := range svc.Reals {
			st, last := s.health[i][j], s.verdicts[i][j]
			rv := model.RealView{Addr: s.names[i][j], Forward: svc.Reals[j].Forward.String(),
				Status: st.Status, Failures: st.Failures, Reason: last.Reason, Last: last.Status, Checked: last.At, Took: last.Duration}
			rv.Load, rv.Warning = st.Load.String(), last.Warning
			rv.Refused = s.refused[realKey{k, balance.RowAddr(k, svc.Reals[j].RealServer)}]
			if rv.Since = s.past[i][j].since; latency {
				rv.Latency = s.past[i][j].latency()
			}
			if d := s.drains[realKey{k, svc.Reals[j].Addr}]; d != nil {
				rv.Drain = &model.DrainView{Since: d.since, Deadline: d.deadline, Remaining: d.remaining, Out: d.out}
			}
			if r := row(svc.Reals[j].RealServer); r != nil {
				rv.InTable, rv.Weight = true, r.Weight
			}
			v.Reals = append(v.Reals, rv)
		}
		out = append(out, v)
	}
	return out
}
