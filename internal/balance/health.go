// Package balance decides what the table of a data plane should be. Configured
// services, what is believed of their real servers and the table as it is come
// in; the table as it should be comes out, and the changes that lead there. It
// never checks a real server and never touches a plane.
//
// The pieces, in the order in which a director uses them:
//
//	Adopt     what to believe of each real server before the first check
//	Hear      what one verdict changes of that
//	Desired   the table that follows from it
//	Rebase    the same, without undoing what others did to the table meanwhile
//	Diff      the changes from one table to the other
package balance

import (
	"net/netip"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// State is what is believed of one real server of one service.
type State struct {
	// Status is Unknown until the first verdict, unless the real server was
	// found in the table with a weight: then it counts as Up meanwhile.
	Status model.Status

	// Failures counts the checks that failed since the last that succeeded,
	// up to the one that brought the server down.
	Failures int

	// Answered tells that a first verdict came, even one that says Unknown,
	// and Confirmed that one came that does not.
	Answered, Confirmed bool

	// Lately is what happened lately, nil for nothing; for services with Care.
	Lately *Lately

	// Hold is what an operator wants of the server, whatever its checks say.
	Hold Hold

	// Load is what the server itself reported last.
	Load model.Load

	// Successes counts the checks that succeeded since the server went down,
	// for services that want more than one.
	Successes int
}

// Lately is when a real server went down, since when it has been well while
// it is held for flapping, and when it came back.
type Lately struct {
	Downs              []time.Time
	WellSince, UpSince time.Time
}

// Hold is how far an operator has taken a real server out of service.
type Hold uint8

// Holds. A server that is held does not serve, so the fallback may stand in.
const (
	HoldNone  Hold = iota
	HoldDrain      // no new connections: weight 0
	HoldOut        // no row
)

// Serves tells whether new connections may go to the server.
func (s *State) Serves() bool { return s.Status == model.Up && s.Held() == HoldNone }

// Outcome is what a verdict changed.
type Outcome uint8

// Outcomes of Hear.
const (
	NoChange    Outcome = iota
	SoftFailure         // a failure that does not count as down yet
	Recovered           // success after soft failures only
	WentUp              // from down or unknown
	WentDown            // from up
	StayedDown          // the first verdict ever, and it was a failure
	Held                // a success that does not count yet: the server flaps
)

var outcomeText = [...]string{"no change", "soft failure", "recovered", "went up", "went down", "stayed down", "held"}

func (o Outcome) String() string { return outcomeText[min(int(o), len(outcomeText)-1)] }

// Hear takes one verdict in. One success is enough to be up; failureCount
// consecutive failures bring a server down that was up; a server of which
// nothing was known is down at its first failure. Unknown changes nothing.
func (s *State) Hear(v model.Status, failureCount int) Outcome {
	s.Answered = true
	s.Confirmed = s.Confirmed || v != model.Unknown
	switch v {
	case model.Up:
		failed := s.Failures > 0
		s.Failures = 0
		switch {
		case s.Status != model.Up:
			s.Status = model.Up
			return WentUp
		case failed:
			return Recovered
		}
	case model.Down:
		switch s.Status {
		case model.Unknown:
			s.Status, s.Failures = model.Down, 1
			return StayedDown
		case model.Up:
			s.Failures++
			if s.Failures < failureCount {
				return SoftFailure
			}
			s.Status = model.Down
			return WentDown
		case model.Down:
		}
	case model.Unknown:
	}
	return NoChange
}

// Force brings a server down whatever its checks say, as for maintenance. The
// next success brings it back.
func (s *State) Force() {
	*s = State{Status: model.Down, Answered: true, Confirmed: true, Hold: s.Hold, Lately: s.Lately, Load: s.Load}
}

// Health holds what is believed of every real server, in the configuration's
// own order: Health[i][j] belongs to services[i].Reals[j].
type Health [][]State

// Adopt is the health before the first verdicts: a real server that has a row
// with a weight in the table counts as up, of all others nothing is known.
// A restart therefore interrupts nothing.
func Adopt(services []model.Service, have model.Table) Health {
	have = canonical(have)
	h := make(Health, len(services))
	for i := range services {
		svc := &services[i]
		h[i] = make([]State, len(svc.Reals))
		at, found := findService(have, svc.Virtual.Key)
		if !found {
			continue
		}
		rows := have.Services[at].Reals
		for j := range svc.Reals {
			if r, ok := findRow(rows, RowAddr(svc.Virtual.Key, svc.Reals[j].RealServer)); ok && r.Weight > 0 {
				h[i][j].Status = model.Up
			}
		}
	}
	return h
}

// Carry is the health after a reload: real servers that were configured before
// under the same service keep what was believed of them, whatever else about
// them changed; the others begin as with Adopt.
func Carry(old []model.Service, was Health, services []model.Service, have model.Table) Health {
	h := Adopt(services, have)
	before := make(map[model.ServiceKey]int, len(old))
	for i := range old {
		before[old[i].Virtual.Key] = i
	}
	for i := range services {
		o, ok := before[services[i].Virtual.Key]
		if !ok {
			continue
		}
		known := make(map[netip.AddrPort]State, len(old[o].Reals))
		for j := range old[o].Reals {
			known[old[o].Reals[j].Addr] = was[o][j]
		}
		for j := range services[i].Reals {
			if s, ok := known[services[i].Reals[j].Addr]; ok {
				if !reports(&services[i].Reals[j].Target) {
					s.Load = model.Load{}
				}
				h[i][j] = s
			}
		}
	}
	return h
}

// RowAddr is the address under which a real server, or a fallback, stands in
// the table. Direct routing and tunnels deliver packets unchanged, so under an
// address service they can only reach the service's own port: a configured
// port that differs is for checks alone.
func RowAddr(k model.ServiceKey, r model.RealServer) netip.AddrPort {
	if k.IsMark() || r.Forward == model.Masq {
		return r.Addr
	}
	return netip.AddrPortFrom(r.Addr.Addr(), k.Addr.Port())
}

func findService(t model.Table, k model.ServiceKey) (int, bool) {
	return slices.BinarySearchFunc(t.Services, k, func(v model.VirtualService, k model.ServiceKey) int { return v.Key.Compare(k) })
}

func findRow(rows []model.RealServer, a netip.AddrPort) (model.RealServer, bool) {
	i, ok := slices.BinarySearchFunc(rows, a, func(r model.RealServer, a netip.AddrPort) int { return r.Addr.Compare(a) })
	if !ok {
		return model.RealServer{}, false
	}
	return rows[i], true
}
