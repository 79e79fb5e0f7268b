package director

import (
	"fmt"
	"strconv"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
)

// The texts of events about services and real servers are the lines of
// ldirectord's log, word for word: people and monitoring search for them.

// stage is the word in brackets of Purged lines.
type stage string

const (
	starting stage = "start" // at start, and on reload
	stopping stage = "stop"
)

func event(level model.Level, kind, subject, format string, args ...any) model.Event {
	return model.Event{Level: level, Source: "director", Kind: kind, Subject: subject, Text: fmt.Sprintf(format, args...)}
}

// virtualText names a service as the log does: address and port, or the mark.
func virtualText(k model.ServiceKey) string {
	if k.IsMark() {
		return strconv.FormatUint(uint64(k.Mark), 10)
	}
	return k.Addr.String()
}

// serviceID is the other name that the log has for a service.
func serviceID(k model.ServiceKey) string {
	switch {
	case !k.IsMark():
		return k.Proto.String() + ":" + k.Addr.String()
	case k.Family() == model.IPv6:
		return "fwm6:" + virtualText(k)
	}
	return "fwm:" + virtualText(k)
}

func realID(svc *model.Service, real int) string {
	return svc.Reals[real].Addr.String() + " (" + serviceID(svc.Virtual.Key) + ")"
}

func checkFailed(subject string, v model.Verdict) model.Event {
	return event(model.LevelInfo, "check-failed", subject, "Check failed: %s: %s", subject, v.Reason)
}

func checkUnknown(subject string, v model.Verdict) model.Event {
	return event(model.LevelWarning, "check-unknown", subject, "Check without result: %s: %s", subject, v.Reason)
}

func softFailure(subject string, n, limit int) model.Event {
	return event(model.LevelWarning, "soft-failure", subject, "Soft failure real server: %s failure %d/%d", subject, n, limit)
}

// checkMade tells of one check, for debugging.
func checkMade(subject string, t *model.Target, v model.Verdict) model.Event {
	how := t.Kind.String()
	if t.Application != "" {
		how += " " + t.Application
	}
	e := event(model.LevelDebug, "checked", subject, "Checked real server: %s: %s at %s: %s", subject, how, t.Addr, v)
	e.At = v.At
	return e
}

func failuresReset(subject string) model.Event {
	return event(model.LevelInfo, "failures-reset", subject, "Resetting soft failure count: %s", subject)
}

// changed tells of a change that the plane carried out.
func (s *state) changed(c model.Change, when stage) model.Event {
	k := c.Service.Key
	v := virtualText(k)
	switch c.Op {
	case model.ServiceAdd:
		return event(model.LevelInfo, "service-added", k.String(), "Added virtual server: %s", v)
	case model.ServiceEdit:
		return event(model.LevelInfo, "service-changed", k.String(), "Changed virtual server: %s", v)
	case model.ServiceDelete:
		return event(model.LevelInfo, "service-purged", k.String(), "Purged virtual server (%s): %s", when, v)
	case model.RealAdd, model.RealEdit, model.RealDelete, model.ChangeNone:
	}
	row := c.Real.Addr.String()
	subject := k.String() + " " + row
	what, ours, isDown := "real", false, false
	if i, ok := s.index[k]; ok {
		svc := &s.director.Services[i]
		j, found := s.configured(i, c.Real.Addr)
		fallback := svc.Fallback != nil && balance.RowAddr(k, *svc.Fallback) == c.Real.Addr
		ours = found || fallback
		switch {
		case fallback && (!found || c.Op != model.RealDelete && balance.Live(s.health[i]) == model.Down):
			what = "fallback"
		case found:
			isDown = c.Real.Weight == 0 && (s.health[i][j].Status == model.Down || s.health[i][j].Held() != balance.HoldNone)
			if c.Op == model.RealEdit && s.growing[realKey{k, svc.Reals[j].Addr}] && s.health[i][j].Serves() {
				return event(model.LevelDebug, "real-grows", subject, "Slow start of real server: %s (%s) (Weight set to %d)", row, v, c.Real.Weight)
			}
			if c.Op == model.RealEdit && c.Real.Weight > 0 && s.health[i][j].Load.Weighted && s.health[i][j].Serves() {
				return event(model.LevelInfo, "real-reweighted", subject, "Weight of real server as it reports: %s (%s) (Weight set to %d)", row, v, c.Real.Weight)
			}
			if a := svc.Reals[j].Addr; a != c.Real.Addr {
				row += " mapped from " + a.String()
			}
		}
	}
	switch {
	case c.Op == model.RealDelete && ours && when == starting:
		return event(model.LevelWarning, what+"-deleted", subject, "Deleted %s server: %s (%s)", what, row, v)
	case c.Op == model.RealDelete:
		return event(model.LevelInfo, "real-purged", subject, "Purged real server (%s): %s (%s)", when, row, v)
	case isDown && c.Op == model.RealAdd && s.readd[k]:
		return event(model.LevelWarning, "real-quiesced", subject, "Readd Quiescent real server: %s (%s) (Weight set to 0)", row, v)
	case isDown:
		return event(model.LevelWarning, "real-quiesced", subject, "Quiescent real server: %s (%s) (Weight set to 0)", row, v)
	case c.Op == model.RealAdd:
		return event(model.LevelInfo, what+"-added", subject, "Added %s server: %s (%s) (Weight set to %d)", what, row, v, c.Real.Weight)
	}
	return event(model.LevelInfo, what+"-restored", subject, "Restored %s server: %s (%s) (Weight set to %d)", what, row, v, c.Real.Weight)
}

func checkWarning(subject string, v model.Verdict) model.Event {
	return event(model.LevelWarning, "check-warning", subject, "Check succeeded, but: %s: %s", subject, v.Warning)
}

func loadReported(subject string, l model.Load) model.Event {
	return event(model.LevelInfo, "load-reported", subject, "Real server reports: %s: %s", subject, l)
}

func maintenanceBegan(subject, file string) model.Event {
	return event(model.LevelInfo, "maintenance", subject, "%s: %s: file %s", inMaintenance, subject, file)
}

func maintenanceEnded(subject string) model.Event {
	return event(model.LevelInfo, "maintenance-over", subject, "Server no longer in maintenance: %s", subject)
}

func heldBack(subject string, downs int, c model.Care) model.Event {
	return event(model.LevelWarning, "real-held", subject, "Real server flaps and is held back: %s: down %d times within %v, has to be well for %v", subject, downs, c.FlapWindow, c.FlapHold)
}

func panicBegan(k model.ServiceKey, percent int) model.Event {
	return event(model.LevelError, "panic", k.String(), "Fewer than %d %% of the real servers are up, so all of them are used: %s", percent, virtualText(k))
}

func panicEnded(k model.ServiceKey) model.Event {
	return event(model.LevelNotice, "panic-over", k.String(), "Only real servers that are up are used again: %s", virtualText(k))
}

func applyFailed(c model.Change, err error) model.Event {
	return event(model.LevelError, "apply-failed", c.Service.Key.String(), "The data plane refused a change and will be asked again: %s: %v", c, err)
}
