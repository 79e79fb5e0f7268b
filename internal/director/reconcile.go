package director

import (
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
)

// Somebody else may change the table: ipvsadm -C takes all of it, ipvsadm -d
// one row. The director looks again and again. A service that has vanished, or
// all of whose rows have, serves nobody: it is put back. A row that somebody
// took out or changed is that administrator's way to take a server out of
// service, and ldirectord's way is not to fight the hand: it is told of, and
// stays until the belief about its server changes.

const (
	lookAtPlane = 5 * time.Second // how often the plane's table is looked at

	// A table that takes long to read is looked at less often: not more than
	// this part of the time goes into it.
	lookPart = 100
)

// sight is the plane's table as it was seen.
type sight struct {
	table model.Table
	err   error
	took  time.Duration
	gen   int // state.gen when the look began
}

// look takes in the table as it is now, and tells whether it has to be
// repaired. before is the last sight, for what others changed since.
func (s *state) look(now, before sight, emit func(model.Event)) (repair bool) {
	if s.fresh {
		return false // nothing has been applied yet
	}
	found := make(map[model.ServiceKey]*model.VirtualService, len(now.table.Services))
	for i := range now.table.Services {
		found[now.table.Services[i].Key] = &now.table.Services[i]
	}
	var lost []model.ServiceKey
	for i := range s.last.Services {
		want := &s.last.Services[i]
		if _, own := s.index[want.Key]; !own {
			continue
		}
		switch is := found[want.Key]; {
		case is == nil:
			emit(vanished(want.Key))
		case len(is.Reals) == 0 && serves(want):
			emit(emptied(want.Key))
		default:
			continue
		}
		lost = append(lost, want.Key)
	}
	for _, k := range lost { // the next decision finds them missing
		_ = s.last.Perform(model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: k}})
	}
	if len(lost) > 0 || before.gen != now.gen {
		return len(lost) > 0
	}
	for _, c := range balance.Diff(before.table, now.table) {
		if _, own := s.index[c.Service.Key]; own {
			emit(changedByOthers(c))
		}
	}
	return false
}

// serves tells whether new connections to a service go anywhere.
func serves(v *model.VirtualService) bool {
	for _, r := range v.Reals {
		if r.Weight > 0 {
			return true
		}
	}
	return false
}

func vanished(k model.ServiceKey) model.Event {
	return event(model.LevelWarning, "table-repaired", k.String(), "Virtual server has vanished from the table and is put back: %s", virtualText(k))
}

func emptied(k model.ServiceKey) model.Event {
	return event(model.LevelWarning, "table-repaired", k.String(), "All real servers have vanished from the table and are put back: %s", virtualText(k))
}

func changedByOthers(c model.Change) model.Event {
	return event(model.LevelNotice, "table-changed", c.Service.Key.String(), "Somebody else changed the table, which stays so until the next change of state: %s", c)
}
