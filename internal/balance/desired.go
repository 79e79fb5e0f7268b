package balance

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Input is all that the desired table depends on.
type Input struct {
	Services []model.Service // as configured
	Health   Health          // of their real servers, in the same order

	// Have is the table as the plane carries it. What is not ours stays in it
	// as it is, and rows of real servers of which nothing is known yet.
	Have model.Table

	// Removed names services that were configured earlier in this director's
	// life and are not any more. Services that it never had are not its own.
	Removed map[model.ServiceKey]bool

	// Now counts for slow starts only.
	Now time.Time
}

// Desired is the table that the plane should carry.
//
// A real server that is up has its row as configured; one that is down has
// none, or with quiescent one of weight 0 without thresholds (Care may have it
// otherwise: see SlowWeight and Panicking). The fallback
// stands in, with weight 1, while no real server of the service is up, but not
// before all of them have answered once. Rows under an own service that
// the configuration does not name go, but only then, and only if the answers
// tell who serves instead, or that nobody can: neither a restart nor a moment
// in which no check can be made empties a table.
func Desired(in Input) model.Table {
	in.Have = canonical(in.Have)
	order := make([]int, len(in.Services))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(in.Services[a].Virtual.Key.Compare(in.Services[b].Virtual.Key), cmp.Compare(a, b))
	})
	want := model.Table{Services: make([]model.VirtualService, 0, max(len(order), len(in.Have.Services)))}
	have := in.Have.Services
	leave := func(v model.VirtualService) {
		if !in.Removed[v.Key] {
			want.Services = append(want.Services, v)
		}
	}
	for n, i := range order {
		svc := &in.Services[i]
		if n > 0 && in.Services[order[n-1]].Virtual.Key == svc.Virtual.Key {
			continue // refused by config; the first one counts
		}
		for len(have) > 0 && have[0].Key.Compare(svc.Virtual.Key) < 0 {
			leave(have[0])
			have = have[1:]
		}
		v := svc.Virtual
		var rows []model.RealServer
		if len(have) > 0 && have[0].Key == v.Key {
			rows = have[0].Reals
			have = have[1:]
		}
		v.Reals = desiredRows(svc, in.Health[i], rows, in.Now)
		want.Services = append(want.Services, v)
	}
	for _, v := range have {
		leave(v)
	}
	return want
}

// Live tells whether a service can be served by a real server of its own:
// Up if any of them serves, Down if none does and all have answered, and Unknown
// while that is open. It decides on fallback and fallbackcommand.
func Live(states []State) model.Status {
	answered := true
	for i := range states {
		s := &states[i]
		if s.Serves() {
			return model.Up
		}
		answered = answered && (s.Answered || s.Held() != HoldNone)
	}
	if !answered {
		return model.Unknown
	}
	return model.Down
}

// desiredRows is the content of one service. have is sorted.
func desiredRows(svc *model.Service, states []State, have []model.RealServer, now time.Time) []model.RealServer {
	panicking := Panicking(&svc.Care, states)
	key := svc.Virtual.Key
	rows := make([]model.RealServer, 0, len(svc.Reals)+1)
	ours := make([]netip.AddrPort, 0, len(svc.Reals)+1)
	answered, confirmed, replaced := true, true, false
	for j := range svc.Reals {
		st := &states[j]
		answered = answered && (st.Answered || st.Held() != HoldNone)
		confirmed = confirmed && st.Confirmed
		replaced = replaced || st.Confirmed && st.Serves()
		row := svc.Reals[j].RealServer
		row.Addr = RowAddr(key, row)
		ours = append(ours, row.Addr)
		if st.Held() != HoldNone {
			rows = append(rows, heldRow(svc, st, row, have)...)
			continue
		}
		switch st.Status {
		case model.Up:
			row.Weight = st.slowWeight(st.Load.Weight(row.Weight), &svc.Care, now)
			rows = append(rows, row)
		case model.Down:
			if panicking {
				rows = append(rows, row)
			} else if svc.Quiescent {
				rows = append(rows, model.RealServer{Addr: row.Addr, Forward: row.Forward})
			}
		case model.Unknown:
			if old, present := findRow(have, row.Addr); present {
				rows = append(rows, old)
			}
		}
	}
	live := Live(states)
	if svc.Fallback != nil {
		row := *svc.Fallback
		row.Addr, row.Weight = RowAddr(key, row), 1
		ours = append(ours, row.Addr)
		switch live {
		case model.Down:
			rows = append(rows, row)
			replaced = true
		case model.Unknown:
			if old, present := findRow(have, row.Addr); present {
				rows = append(rows, old)
			}
		case model.Up:
		}
	}
	if !answered || !confirmed && !replaced {
		slices.SortFunc(ours, netip.AddrPort.Compare)
		for _, r := range have {
			if _, own := slices.BinarySearchFunc(ours, r.Addr, netip.AddrPort.Compare); !own {
				rows = append(rows, r)
			}
		}
	}
	return unique(rows)
}

// heldRow is the row of a real server that is held: none, or one that gets no
// new connections.
func heldRow(svc *model.Service, st *State, row model.RealServer, have []model.RealServer) []model.RealServer {
	_, present := findRow(have, row.Addr)
	gone := st.Status == model.Down && !svc.Quiescent || st.Status == model.Unknown && !present
	if st.Held() == HoldOut || gone {
		return nil
	}
	return []model.RealServer{{Addr: row.Addr, Forward: row.Forward}}
}

// unique sorts rows and keeps one of each address, the one that says more: two
// configured real servers may share a row (the same one twice, two ports of a
// gate server, a fallback on a real server's address).
func unique(rows []model.RealServer) []model.RealServer {
	increasing := true
	for i := 1; increasing && i < len(rows); i++ {
		increasing = rows[i-1].Addr.Compare(rows[i].Addr) < 0
	}
	if increasing {
		return rows // as in most configurations
	}
	slices.SortStableFunc(rows, func(a, b model.RealServer) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(min(b.Weight, 1), min(a.Weight, 1)))
	})
	return slices.CompactFunc(rows, func(a, b model.RealServer) bool { return a.Addr == b.Addr })
}

// Rebase carries the difference between what was wanted last and what is
// wanted now over to the table as it is. What others changed meanwhile
// elsewhere in it stays, as with ldirectord: a row is touched when the belief
// about its real server changes, not each time somebody looks. A row that
// somebody else took out is not put back only to be quiesced, except in the
// services that readd names (readdquiescent). A service that has vanished
// altogether comes back whole with the first change to it.
func Rebase(last, want, have model.Table, readd map[model.ServiceKey]bool) model.Table {
	want = canonical(want)
	out := canonical(have).Clone()
	for _, c := range Diff(last, want) {
		k := c.Service.Key
		if c.Op == model.ServiceDelete {
			_ = out.Perform(c)
			continue
		}
		at, found := findService(out, k)
		if !found {
			at, _ = findService(want, k) // what Diff does not delete is in want
			_ = out.Perform(model.Change{Op: model.ServiceAdd, Service: parameters(&want.Services[at])})
			for _, r := range want.Services[at].Reals {
				_ = out.Perform(model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: k}, Real: r})
			}
			continue
		}
		if c.Op == model.RealEdit && c.Real.Weight == 0 && !readd[k] {
			if _, present := findRow(out.Services[at].Reals, c.Real.Addr); !present {
				continue
			}
		}
		_ = out.Perform(c) // only fails without the service
	}
	return out
}
