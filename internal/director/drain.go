package director

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
)

// drainEvery is how often the connections of drained servers are counted.
const drainEvery = time.Second

// realKey names a real server of a service as configured, or a row.
type realKey struct {
	service model.ServiceKey
	real    netip.AddrPort
}

// drain is a real server that an operator takes out of service.
type drain struct {
	since     time.Time
	deadline  time.Time // zero for none
	remaining int       // -1: not counted yet
	empty     bool      // the last connection has ended, and was told
	out       bool      // the deadline has passed
}

// order is what an operator asks for.
type order struct {
	real     string
	ready    bool
	deadline time.Duration
	answer   chan<- answer
}

type answer struct {
	drained []string
	err     error
}

// ErrNoReal is wrapped where no configured real server has that name.
var ErrNoReal = errors.New("no such real server")

// ErrNotRunning is returned by Drain and PutBack when Run has ended.
var ErrNotRunning = errors.New("the director has ended")

// Drain takes a real server out of service, in every service that has it: it
// gets no new connections, and after the deadline, if that is above 0, those
// that are left are cut; 0 is the service's own, if it has one. real is
// "ADDRESS:PORT", or "ADDRESS" for all its ports. What it was called in each
// service is returned. A reload keeps it drained, and so does a restart if
// there is a DrainFile.
func (l *Loop) Drain(ctx context.Context, real string, deadline time.Duration) ([]string, error) {
	return l.order(ctx, order{real: real, deadline: deadline})
}

// PutBack puts a drained real server back into service.
func (l *Loop) PutBack(ctx context.Context, real string) ([]string, error) {
	return l.order(ctx, order{real: real, ready: true})
}

func (l *Loop) order(ctx context.Context, o order) ([]string, error) {
	a := make(chan answer, 1)
	o.answer = a
	select {
	case l.asked <- o:
	case <-l.ended:
		return nil, ErrNotRunning
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	got := <-a
	return got.drained, got.err
}

// obey carries an order out in what is believed.
func (s *state) obey(o order, now time.Time, emit func(model.Event)) answer {
	var a answer
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		for j := range svc.Reals {
			addr := svc.Reals[j].Addr
			if o.real != addr.String() && o.real != addr.Addr().String() {
				continue
			}
			k := realKey{svc.Virtual.Key, addr}
			d := s.drains[k]
			switch {
			case o.ready && d == nil:
				continue
			case o.ready:
				delete(s.drains, k)
				s.health[i][j].Hold = balance.HoldNone
				emit(event(model.LevelNotice, "ready", k.String(), "Back in service: %s", realID(svc, j)))
			default:
				if d == nil {
					d = &drain{since: now, remaining: -1}
					s.drains[k] = d
				}
				d.deadline = time.Time{}
				text := ""
				if deadline := cmp.Or(o.deadline, svc.DrainDeadline); deadline > 0 {
					d.deadline = now.Add(deadline)
					text = fmt.Sprintf(", what is left is cut in %v", deadline)
				}
				emit(event(model.LevelNotice, "drain", k.String(), "Draining: %s: no new connections%s", realID(svc, j), text))
			}
			a.drained = append(a.drained, k.String())
		}
	}
	if len(a.drained) == 0 {
		a.err = fmt.Errorf("%s: %w; known are %s", o.real, ErrNoReal, s.realNames())
		if o.ready {
			a.err = fmt.Errorf("%s: %w is drained", o.real, ErrNoReal)
		}
	}
	s.hold()
	return a
}

func (k realKey) String() string { return k.service.String() + " " + k.real.String() }

// realNames lists some real servers, to choose from.
func (s *state) realNames() string {
	var names []string
	for i := range s.director.Services {
		for _, r := range s.director.Services[i].Reals {
			if names = append(names, r.Addr.String()); len(names) == 5 {
				return strings.Join(names, ", ") + ", ..."
			}
		}
	}
	return strings.Join(names, ", ")
}

// hold puts into the health what operators hold. Drains of servers that are
// no longer configured end.
func (s *state) hold() {
	kept := map[realKey]bool{}
	for i := range s.director.Services {
		svc := &s.director.Services[i]
		for j := range svc.Reals {
			k := realKey{svc.Virtual.Key, svc.Reals[j].Addr}
			d := s.drains[k]
			if d == nil {
				continue
			}
			kept[k] = true
			s.health[i][j].Hold = balance.HoldDrain
			if d.out {
				s.health[i][j].Hold = balance.HoldOut
			}
		}
	}
	for k := range s.drains {
		if !kept[k] {
			delete(s.drains, k)
		}
	}
}

// count takes in how many connections drained servers have left, and lets go
// of those whose deadline has passed.
func (s *state) count(counters []model.ServiceCounters, now time.Time, emit func(model.Event)) (decide bool) {
	left := map[realKey]int{}
	for _, c := range counters {
		for _, r := range c.Reals {
			left[realKey{c.Key, r.Addr}] = int(min(r.Active+r.Inactive, 1<<31))
		}
	}
	for _, k := range s.drained() {
		d := s.drains[k]
		i, ok := s.index[k.service]
		if !ok {
			continue
		}
		j, found := s.real(i, k.real)
		if !found {
			continue
		}
		svc := &s.director.Services[i]
		row := balance.RowAddr(k.service, svc.Reals[j].RealServer)
		if counters != nil {
			d.remaining = left[realKey{k.service, row}]
		}
		switch {
		case d.out:
		case !d.deadline.IsZero() && !now.Before(d.deadline):
			d.out, decide = true, true
			emit(event(model.LevelNotice, "drain-deadline", k.String(), "Drained: %s: its time is over, %d connections are cut", realID(svc, j), max(d.remaining, 0)))
		case d.remaining == 0 && !d.empty:
			d.empty = true
			emit(event(model.LevelNotice, "drained", k.String(), "Drained: %s: no connection is left", realID(svc, j)))
		case d.remaining > 0:
			d.empty = false
		}
	}
	s.hold()
	return decide
}

// real finds a configured real server.
func (s *state) real(service int, addr netip.AddrPort) (int, bool) {
	for j := range s.director.Services[service].Reals {
		if s.director.Services[service].Reals[j].Addr == addr {
			return j, true
		}
	}
	return 0, false
}
