package director

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// apply brings the plane to the desired table, as far as what is believed has
// changed since the last time, and tells and runs what follows from it.
func (r *run) apply() {
	st := r.st
	if !st.fresh && len(balance.Diff(st.last, st.desired(st.have))) == 0 {
		r.mu.Lock()
		st.refused = nil // nobody wants it any more
		r.mu.Unlock()
		r.settled()
		return
	}
	have, err := r.cfg.Plane.Read(r.ctx)
	if err != nil {
		r.again(fmt.Errorf("read the table: %w", err))
		return
	}
	want := st.desired(have)
	target := want
	if !st.fresh {
		target = balance.Rebase(st.last, want, have, st.readd)
	}
	changes := balance.Diff(have, target)
	var failed map[int]error
	if len(changes) > 0 {
		if err := r.cfg.Plane.Apply(r.ctx, changes); err != nil {
			if failed, err = refusals(changes, err); err != nil {
				r.again(err)
				return
			}
		}
	}
	r.mu.Lock()
	st.record(have, want, changes, failed)
	refused := st.refuse(changes, failed)
	r.mu.Unlock()
	for n, c := range changes {
		if failed[n] == nil {
			r.tell(c, starting)
		}
	}
	r.remindLater()
	for _, e := range refused {
		r.emit(e)
	}
	if len(failed) > 0 {
		r.schedule()
	} else {
		r.retry.Stop()
		r.retryDelay = 0
	}
	r.settled()
}

// settled does what waits for the table: hooks, and Ready.
func (r *run) settled() {
	r.runHooks()
	r.careFor()
	if r.phase != phaseRunning && r.st.answered() {
		r.phase = phaseRunning
	}
	if !r.isReady && r.st.settled() {
		r.isReady = true
		close(r.ready)
	}
}

// refusals sorts an error of Apply: which changes were refused, or what else
// is wrong with the plane.
func refusals(changes []model.Change, err error) (map[int]error, error) {
	byText := map[string]error{}
	var walk func(error) error
	walk = func(err error) error {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			var other error
			for _, e := range joined.Unwrap() {
				other = errors.Join(other, walk(e))
			}
			return other
		}
		if row, ok := errors.AsType[*plane.RowError](err); ok {
			byText[row.Change.String()] = row.Err
			return nil
		}
		return err
	}
	if other := walk(err); other != nil {
		return nil, other
	}
	failed := map[int]error{}
	for n, c := range changes {
		if e := byText[c.String()]; e != nil {
			failed[n] = e
		}
	}
	return failed, nil
}

// again tells that the plane as a whole failed, and tries later.
func (r *run) again(err error) {
	if r.ctx.Err() != nil {
		return
	}
	if r.retryDelay == 0 {
		r.emit(event(model.LevelError, "plane-failed", "", "The %s plane failed and will be asked again: %v", r.cfg.Plane.Info().Name, err))
	}
	r.schedule()
}

func (r *run) schedule() {
	r.retryDelay = min(max(2*r.retryDelay, retryFirst), retryLast)
	r.retry.Reset(r.retryDelay)
}

// withdraw takes the services with CleanStop out of the table: as ldirectord
// does, first the real servers that are up, then the service.
func (r *run) withdraw() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), stopLimit)
	defer cancel()
	r.phase = phaseStopping
	changes := r.st.withdrawal()
	if len(changes) == 0 {
		return
	}
	failed, err := refusals(changes, r.cfg.Plane.Apply(ctx, changes))
	if err != nil {
		r.emit(event(model.LevelError, "plane-failed", "", "The services could not be taken out of the %s plane: %v", r.cfg.Plane.Info().Name, err))
		return
	}
	r.mu.Lock()
	r.st.record(r.st.have, r.st.last, changes, failed)
	refused := r.st.refuse(changes, failed)
	r.mu.Unlock()
	for n, c := range changes {
		if failed[n] == nil {
			r.tell(c, stopping)
		}
	}
	for _, e := range refused {
		r.emit(e)
	}
}

// tell tells of a change that the plane carried out, also by mail.
func (r *run) tell(c model.Change, when stage) {
	e := r.st.changed(c, when)
	r.emit(e)
	switch c.Op {
	case model.RealAdd, model.RealEdit, model.RealDelete:
		if e.Level == model.LevelDebug {
			return // a step of a slow start
		}
		r.mail(c.Service.Key, strings.TrimPrefix(e.Text, "Readd "))
		r.st.remind(c, e.Kind, time.Now())
	case model.ChangeNone, model.ServiceAdd, model.ServiceEdit, model.ServiceDelete:
	}
}

// mail sends an alert if its service wants one in this phase.
func (r *run) mail(k model.ServiceKey, subject string) {
	if !r.Active() {
		return
	}
	if m, ok := r.st.mail(k, subject, r.phase); ok {
		r.emit(mailed(subject))
		r.cfg.Mail(m)
	}
}

// remindAgain sends the reminders that are due.
func (r *run) remindAgain() {
	for _, m := range r.st.due(time.Now()) {
		r.mail(m.service, fmt.Sprintf("Inaccessible real server: %s (%s)", m.row, virtualText(m.service)))
	}
	r.remindLater()
}

// remindLater sets the timer of the next reminder.
func (r *run) remindLater() {
	if at, ok := r.st.nextReminder(); ok {
		r.reminder.Reset(time.Until(at))
	} else {
		r.reminder.Stop()
	}
}

// obey carries an operator's order out.
func (r *run) obey(o order) {
	var events []model.Event
	r.mu.Lock()
	a := r.st.obey(o, time.Now(), func(e model.Event) { events = append(events, e) })
	draining := len(r.st.drains) > 0
	r.mu.Unlock()
	for _, e := range events {
		r.emit(e)
	}
	r.apply()
	if draining {
		r.counting.Reset(drainEvery / 10)
	}
	r.keepDrains()
	o.answer <- a
}

// countedDrains acts on what is left of drained servers' connections.
func (r *run) countedDrains(c []model.ServiceCounters) {
	var events []model.Event
	r.mu.Lock()
	decide := r.st.count(c, time.Now(), func(e model.Event) { events = append(events, e) })
	draining := len(r.st.drains) > 0
	r.mu.Unlock()
	for _, e := range events {
		r.emit(e)
	}
	if decide {
		r.apply()
	}
	if draining {
		r.counting.Reset(drainEvery)
	}
	r.keepDrains()
}

// takeSight takes in what the plane's table was seen to be.
func (r *run) takeSight(s sight) {
	r.looking.Reset(max(lookAtPlane, lookPart*s.took))
	switch {
	case s.err != nil && !r.blind:
		r.emit(event(model.LevelError, "plane-failed", "", "The table of the %s plane cannot be read: %v", r.cfg.Plane.Info().Name, s.err))
		fallthrough
	case s.err != nil:
		r.blind = true
		return
	case s.gen != r.st.gen:
		return // it is old already
	}
	r.blind = false
	before := r.seen
	r.seen = s
	var events []model.Event
	r.mu.Lock()
	repair := r.st.look(s, before, func(e model.Event) { events = append(events, e) })
	r.st.have = s.table
	r.mu.Unlock()
	for _, e := range events {
		r.emit(e)
	}
	if repair {
		r.apply()
	}
}

// careFor tells of panic, and looks again while a slow start is under way.
func (r *run) careFor() {
	r.mu.Lock()
	events := r.st.noteCare()
	next := r.st.grow(time.Now())
	r.mu.Unlock()
	for _, e := range events {
		r.emit(e)
	}
	if next > 0 {
		r.growth.Reset(next)
	}
}
