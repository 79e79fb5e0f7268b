package director

import (
	"net/netip"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/model"
)

// phase is the director's own state, as emailalertstatus names it.
type phase string

const (
	phaseStarting  phase = "starting" // until all real servers have answered
	phaseRunning   phase = "running"
	phaseReloading phase = "reloading" // the same, after a reload
	phaseStopping  phase = "stopping"
)

// reminder is a real server out of service of which mails go on telling.
type reminder struct {
	service model.ServiceKey
	row     netip.AddrPort
	next    time.Time
}

// mail makes the alert for an event about a row, if the service wants one.
func (s *state) mail(k model.ServiceKey, subject string, now phase) (alert.Message, bool) {
	i, ok := s.index[k]
	if !ok {
		return alert.Message{}, false
	}
	svc := &s.director.Services[i]
	wants := slices.Contains(svc.Alert.Statuses, "all") || slices.Contains(svc.Alert.Statuses, string(now))
	if svc.Alert.To == "" || !wants {
		return alert.Message{}, false
	}
	if svc.ServiceName != "" {
		subject = "[" + svc.ServiceName + "] " + subject
	}
	return alert.Message{To: svc.Alert.To, From: svc.Alert.From, Relay: svc.Alert.Relay, Subject: subject, Status: string(now),
		Service: svc.ServiceName, Comment: svc.Comment, Instance: s.director.Name}, true
}

// remind begins or ends reminders after a change of a row.
func (s *state) remind(c model.Change, kind string, now time.Time) {
	k, row := c.Service.Key, c.Real.Addr
	s.reminders = slices.DeleteFunc(s.reminders, func(r reminder) bool { return r.service == k && r.row == row })
	i, ok := s.index[k]
	if !ok || kind != "real-quiesced" && kind != "real-deleted" {
		return
	}
	if every := s.director.Services[i].Alert.Repeat; every > 0 {
		s.reminders = append(s.reminders, reminder{k, row, now.Add(every)})
	}
}

// due gives the reminders whose time has come, and sets their next one.
func (s *state) due(now time.Time) (out []reminder) {
	s.reminders = slices.DeleteFunc(s.reminders, func(r reminder) bool {
		i, ok := s.index[r.service]
		return !ok || s.director.Services[i].Alert.Repeat <= 0
	})
	for n := range s.reminders {
		r := &s.reminders[n]
		if r.next.After(now) {
			continue
		}
		out = append(out, *r)
		r.next = now.Add(s.director.Services[s.index[r.service]].Alert.Repeat)
	}
	return out
}

// nextReminder is when the first reminder is due.
func (s *state) nextReminder() (at time.Time, ok bool) {
	for _, r := range s.reminders {
		if !ok || r.next.Before(at) {
			at, ok = r.next, true
		}
	}
	return at, ok
}

func mailed(subject string) model.Event {
	return event(model.LevelInfo, "emailalert", "", "emailalert: %s", subject)
}
