package balance

import (
	"slices"

	"github.com/batuta-ha/batuta/internal/model"
)

// Diff lists the changes that make want out of have: as few as possible, and
// in an order in which no service is without a real server in between when it
// has one before and after. Services come in their own order; within one, its
// parameters, then rows that are new, rows that get a weight, other edits, and
// last the rows that go. Services that go come after all others; their rows
// go with them. A service that only changes its parameters keeps its
// rows, and with them its connections.
//
// The cost is linear for tables in canonical order; others are sorted first.
func Diff(have, want model.Table) []model.Change {
	have, want = canonical(have), canonical(want)
	var changes, gone []model.Change
	h := have.Services
	for i := range want.Services {
		w := &want.Services[i]
		for len(h) > 0 && h[0].Key.Compare(w.Key) < 0 {
			gone = append(gone, removal(&h[0]))
			h = h[1:]
		}
		if len(h) > 0 && h[0].Key == w.Key {
			if !h[0].SameParameters(*w) {
				changes = append(changes, model.Change{Op: model.ServiceEdit, Service: parameters(w)})
			}
			changes = diffReals(changes, w.Key, h[0].Reals, w.Reals)
			h = h[1:]
			continue
		}
		changes = append(changes, model.Change{Op: model.ServiceAdd, Service: parameters(w)})
		changes = diffReals(changes, w.Key, nil, w.Reals)
	}
	for i := range h {
		gone = append(gone, removal(&h[i]))
	}
	return append(changes, gone...)
}

// diffReals appends the changes of one service's rows.
func diffReals(changes []model.Change, k model.ServiceKey, have, want []model.RealServer) []model.Change {
	if slices.Equal(have, want) {
		return changes
	}
	var raised, edited, gone []model.Change
	change := func(op model.ChangeOp, r model.RealServer) model.Change {
		return model.Change{Op: op, Service: model.VirtualService{Key: k}, Real: r}
	}
	for _, w := range want {
		for len(have) > 0 && have[0].Addr.Compare(w.Addr) < 0 {
			gone = append(gone, change(model.RealDelete, have[0]))
			have = have[1:]
		}
		if len(have) == 0 || have[0].Addr != w.Addr {
			changes = append(changes, change(model.RealAdd, w))
			continue
		}
		switch h := have[0]; {
		case h == w:
		case h.Weight == 0 && w.Weight > 0:
			raised = append(raised, change(model.RealEdit, w))
		default:
			edited = append(edited, change(model.RealEdit, w))
		}
		have = have[1:]
	}
	for _, h := range have {
		gone = append(gone, change(model.RealDelete, h))
	}
	changes = append(changes, raised...)
	changes = append(changes, edited...)
	return append(changes, gone...)
}

// parameters is the service without its rows.
func parameters(v *model.VirtualService) model.VirtualService {
	p := *v
	p.Reals = nil
	return p
}

func removal(v *model.VirtualService) model.Change {
	return model.Change{Op: model.ServiceDelete, Service: parameters(v)}
}

// canonical returns the table in canonical order, itself if it is already.
func canonical(t model.Table) model.Table {
	sorted := slices.IsSortedFunc(t.Services, func(a, b model.VirtualService) int { return a.Key.Compare(b.Key) })
	for i := 0; sorted && i < len(t.Services); i++ {
		sorted = slices.IsSortedFunc(t.Services[i].Reals, func(a, b model.RealServer) int { return a.Addr.Compare(b.Addr) })
	}
	if !sorted {
		t = t.Clone()
		t.Sort()
	}
	return t
}
