package planetest

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// cases is the contract, one sentence each: first the table, then
// scheduling, the life of connections, what is reported, and the end.
var cases = slices.Concat(tableCases, schedulingCases, connectionCases, reportCases, restartCases)

var tableCases = []testCase{
	{name: "a fresh plane is empty and says what it is", run: func(s *suite) {
		s.wantTable(model.Table{})
		if i := s.Plane().Info(); i.Name == "" || i.Detail == "" {
			s.Errorf("info %+v: want a name and how it works", i)
		}
		if c, err := s.Plane().Counters(s.Context()); err != nil || len(c) != 0 {
			s.Errorf("counters of an empty plane: %v, %v", c, err)
		}
		if f, err := s.Plane().Flows(s.Context()); err != nil || len(f) != 0 {
			s.Errorf("flows of an empty plane: %v, %v", f, err)
		}
		s.apply() // no changes is no error
	}},
	{name: "what is added is read back, sorted", run: func(s *suite) {
		var want model.Table
		changes := []model.Change{
			s.service(model.UDP, 1, "rr"), s.service(model.TCP, 2, "wrr"), s.service(model.TCP, 0, "rr"),
			s.real(model.RealAdd, model.TCP, 2, 3, 3), s.real(model.RealAdd, model.TCP, 2, 0, 1),
			s.real(model.RealAdd, model.UDP, 1, 1, 0), s.real(model.RealAdd, model.TCP, 2, 2, 65535),
		}
		for _, c := range changes {
			if err := want.Perform(c); err != nil {
				s.Fatal(err)
			}
		}
		s.apply(changes...)
		s.wantTable(want)
	}},
	{name: "a change applied twice is applied once", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 2)
		want := s.read()
		s.apply(s.service(model.TCP, 0, "rr"), s.real(model.RealAdd, model.TCP, 0, 0, 1), s.real(model.RealAdd, model.TCP, 0, 1, 2))
		s.wantTable(want)
	}},
	{name: "adding what is there edits it", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		want := s.read()
		want.Services[0].Scheduler = "wrr"
		want.Services[0].Reals[0].Weight = 7
		s.apply(s.service(model.TCP, 0, "wrr"), s.real(model.RealAdd, model.TCP, 0, 0, 7))
		s.wantTable(want)
	}},
	{name: "deleting what is gone is no error", run: func(s *suite) {
		s.apply(s.real(model.RealDelete, model.TCP, 0, 0, 0), model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: s.key(model.TCP, 0)}})
		s.serve(model.TCP, 0, "rr", 1)
		want := s.read()
		s.apply(s.real(model.RealDelete, model.TCP, 0, 1, 0))
		s.wantTable(want)
	}},
	{name: "a row with an unknown scheduler is refused by name and the others are carried out", run: func(s *suite) {
		bad := s.service(model.TCP, 1, "nonesuch")
		err := s.Plane().Apply(s.Context(), []model.Change{
			s.service(model.TCP, 0, "rr"), bad, s.real(model.RealAdd, model.TCP, 0, 0, 1),
		})
		rows := refused(err)
		if len(rows) != 1 || rows[0].Change.String() != bad.String() {
			s.Fatalf("apply: %v; want one RowError for %s", err, bad)
		}
		if !errors.Is(err, plane.ErrNotSupported) {
			s.Errorf("%v: want it to wrap %v", err, plane.ErrNotSupported)
		}
		if !strings.Contains(err.Error(), "nonesuch") {
			s.Errorf("%v: want it to name the scheduler", err)
		}
		var want model.Table
		_ = want.Perform(s.service(model.TCP, 0, "rr"))
		_ = want.Perform(s.real(model.RealAdd, model.TCP, 0, 0, 1))
		s.wantTable(want)
	}},
	{name: "a refused edit leaves the service as it was", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		want := s.read()
		bad := s.service(model.TCP, 0, "nonesuch")
		bad.Op = model.ServiceEdit
		if rows := refused(s.Plane().Apply(s.Context(), []model.Change{bad})); len(rows) != 1 {
			s.Fatalf("%d row errors, want 1", len(rows))
		}
		s.wantTable(want)
		s.visit(model.TCP, 0)
	}},
	{name: "a real server for an absent service is refused", run: func(s *suite) {
		c := s.real(model.RealAdd, model.TCP, 0, 0, 1)
		rows := refused(s.Plane().Apply(s.Context(), []model.Change{c, s.service(model.UDP, 1, "rr")}))
		if len(rows) != 1 || rows[0].Change.String() != c.String() {
			s.Fatalf("row errors %v, want one for %s", rows, c)
		}
		var want model.Table
		_ = want.Perform(s.service(model.UDP, 1, "rr"))
		s.wantTable(want)
	}},
	{name: "rows that are refused are each reported", run: func(s *suite) {
		err := s.Plane().Apply(s.Context(), []model.Change{
			s.service(model.TCP, 0, "nonesuch"), s.real(model.RealAdd, model.TCP, 0, 0, 1), s.real(model.RealEdit, model.TCP, 0, 1, 1),
		})
		if rows := refused(err); len(rows) != 3 {
			s.Fatalf("%d row errors, want 3: %v", len(rows), err)
		}
		s.wantTable(model.Table{})
	}},
	{name: "a gate row is read back as gate", needs: []Feature{Gate}, run: func(s *suite) {
		c := s.real(model.RealAdd, model.TCP, 0, 0, 1)
		c.Real.Forward = model.Gate // which keeps the service's port
		c.Real.Addr = netip.AddrPortFrom(c.Real.Addr.Addr(), s.Virtual(0).Port())
		s.apply(s.service(model.TCP, 0, "rr"), c)
		var want model.Table
		_ = want.Perform(s.service(model.TCP, 0, "rr"))
		_ = want.Perform(c)
		s.wantTable(want)
	}},
	{name: "persistence is read back", needs: []Feature{Persistent}, run: func(s *suite) {
		c := s.service(model.TCP, 0, "rr")
		c.Service.Persistence = model.Persistence{Enabled: true, Timeout: 300 * time.Second}
		s.apply(c)
		s.wantTable(model.Table{Services: []model.VirtualService{c.Service}})
	}},
	{name: "after any sequence of changes the table is the model's", run: anySequence},
}

var schedulingCases = []testCase{
	{name: "rr visits the real servers in turn", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 1, 1, 1)
		var seq []int
		for range 3 * Reals {
			seq = append(seq, s.visit(model.TCP, 0))
		}
		round := slices.Sorted(slices.Values(seq[:Reals]))
		if !slices.Equal(round, []int{0, 1, 2, 3}) || !slices.Equal(seq[Reals:], seq[:2*Reals]) {
			s.Fatalf("visits %v: want every real server once in each round, in the same order", seq)
		}
	}},
	{name: "rr serves UDP clients in turn", run: func(s *suite) {
		s.serve(model.UDP, 0, "rr", 1, 1, 1, 1)
		if got, want := s.visits(model.UDP, 0, 3*Reals), [Reals]int{3, 3, 3, 3}; got != want {
			s.Fatalf("flows per real server %v, want %v", got, want)
		}
	}},
	{name: "rr pays no heed to weights other than 0", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 5, 0, 1, 3)
		if got, want := s.visits(model.TCP, 0, 9), [Reals]int{3, 0, 3, 3}; got != want {
			s.Fatalf("connections per real server %v, want %v", got, want)
		}
	}},
	{name: "wrr shares connections exactly by weight over a cycle", run: func(s *suite) {
		s.serve(model.TCP, 0, "wrr", 4, 3, 2, 1)
		for range 2 {
			if got, want := s.visits(model.TCP, 0, 10), [Reals]int{4, 3, 2, 1}; got != want {
				s.Fatalf("connections per real server %v, want %v", got, want)
			}
		}
	}},
	{name: "wrr reduces weights by their common divisor", run: func(s *suite) {
		s.serve(model.TCP, 0, "wrr", 300, 100)
		if got, want := s.visits(model.TCP, 0, 4), [Reals]int{3, 1}; got != want {
			s.Fatalf("connections per real server %v, want %v", got, want)
		}
	}},
	{name: "a changed weight counts at once", run: func(s *suite) {
		s.serve(model.TCP, 0, "wrr", 1, 1)
		s.visits(model.TCP, 0, 4)
		s.apply(s.real(model.RealEdit, model.TCP, 0, 0, 4))
		got := s.visits(model.TCP, 0, 50)
		if got[0] < 38 || got[0] > 42 || got[0]+got[1] != 50 {
			s.Fatalf("connections per real server %v of 50 with weights 4 and 1, want 40 and 10, give or take a turn", got)
		}
	}},
	{name: "weight 0 means no new connections and old ones go on", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 1)
		a, b := s.dial(model.TCP, 0), s.dial(model.TCP, 0)
		on := s.ask(model.TCP, a)
		other := s.ask(model.TCP, b)
		s.apply(s.real(model.RealEdit, model.TCP, 0, on, 0))
		if got := s.visits(model.TCP, 0, 6); got[on] != 0 || got[other] != 6 {
			s.Fatalf("connections per real server %v: number %d has weight 0", got, on)
		}
		if n := s.ask(model.TCP, a); n != on {
			s.Fatalf("the old connection is now answered by %d, was %d", n, on)
		}
	}},
	{name: "weight 0 keeps a UDP flow where it is", run: func(s *suite) {
		s.serve(model.UDP, 0, "rr", 1, 1)
		c := s.dial(model.UDP, 0)
		on := s.ask(model.UDP, c)
		s.apply(s.real(model.RealEdit, model.UDP, 0, on, 0))
		if n := s.ask(model.UDP, c); n != on {
			s.Fatalf("the old flow is now answered by %d, was %d", n, on)
		}
		if got := s.visits(model.UDP, 0, 3); got[on] != 0 {
			s.Fatalf("flows per real server %v: number %d has weight 0", got, on)
		}
	}},
	{name: "without a weight above 0 new connections are not served, until there is one", run: func(s *suite) {
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			s.serve(p, 0, "rr", 0, 0)
			s.wantNoService(p, 0)
			s.apply(s.real(model.RealEdit, p, 0, 1, 1))
			if n := s.visit(p, 0); n != 1 {
				s.Fatalf("%s: answered by %d, want 1", p, n)
			}
		}
	}},
	{name: "a service without real servers serves nobody and harms nothing", run: func(s *suite) {
		s.serve(model.TCP, 0, "wrr")
		s.serve(model.UDP, 0, "rr")
		s.serve(model.TCP, 1, "rr", 1)
		s.wantNoService(model.TCP, 0)
		s.wantNoService(model.UDP, 0)
		s.visit(model.TCP, 1)
	}},
	{name: "an added real server takes its turn and disturbs nobody", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 1)
		c := s.dial(model.TCP, 0)
		on := s.ask(model.TCP, c)
		s.apply(s.real(model.RealAdd, model.TCP, 0, 2, 1))
		got := s.visits(model.TCP, 0, 12)
		for n := range 3 {
			if got[n] < 3 || got[n] > 5 {
				s.Fatalf("connections per real server %v of 12, want 4 each, give or take a turn", got)
			}
		}
		if n := s.ask(model.TCP, c); n != on {
			s.Fatalf("the old connection is now answered by %d, was %d", n, on)
		}
	}},
	{name: "a service's new scheduler counts for new connections and keeps the old ones", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 3, 1)
		c := s.dial(model.TCP, 0)
		on := s.ask(model.TCP, c)
		edit := s.service(model.TCP, 0, "wrr")
		edit.Op = model.ServiceEdit
		s.apply(edit)
		got := s.visits(model.TCP, 0, 40)
		if got[0] < 28 || got[0] > 32 {
			s.Fatalf("connections per real server %v of 40 with weights 3 and 1, want 30 and 10, give or take a turn", got)
		}
		if n := s.ask(model.TCP, c); n != on {
			s.Fatalf("the old connection is now answered by %d, was %d", n, on)
		}
	}},
	{name: "tcp and udp on one address are two services", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		s.wantNoService(model.UDP, 0)
		s.apply(s.service(model.UDP, 0, "rr"), s.real(model.RealAdd, model.UDP, 0, 1, 1))
		if n := s.visit(model.TCP, 0); n != 0 {
			s.Errorf("tcp answered by %d, want 0", n)
		}
		if n := s.visit(model.UDP, 0); n != 1 {
			s.Errorf("udp answered by %d, want 1", n)
		}
		s.apply(model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: s.key(model.TCP, 0)}})
		s.wantNoService(model.TCP, 0)
		s.visit(model.UDP, 0)
	}},
	{name: "persistence sends a client to the real server it had before", needs: []Feature{Persistent}, run: func(s *suite) {
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			v := s.service(p, 0, "rr")
			v.Service.Persistence = model.Persistence{Enabled: true, Timeout: time.Hour}
			s.apply(v, s.real(model.RealAdd, p, 0, 0, 1), s.real(model.RealAdd, p, 0, 1, 1))
			home := s.visit(p, 0)
			if got := s.visits(p, 0, 4); got[home] != 4 {
				s.Fatalf("%s: connections per real server %v, the first was answered by %d", p, got, home)
			}
		}
	}},
	{name: "clients' real servers are listed, and taken over from another plane", needs: []Feature{Persistent}, run: func(s *suite) {
		from, ok := plane.As[plane.Bound](s.Plane())
		if !ok {
			s.Skip("the plane does not tell")
		}
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			v := s.service(p, 0, "rr")
			v.Service.Persistence = model.Persistence{Enabled: true, Timeout: time.Hour}
			rows := []model.Change{v, s.real(model.RealAdd, p, 0, 0, 1), s.real(model.RealAdd, p, 0, 1, 1)}
			s.apply(rows...)
			home := s.visit(p, 0)
			all, err := from.Bindings(s.Context())
			all = slices.DeleteFunc(all, func(b model.Binding) bool { return b.Service != v.Service.Key })
			if err != nil || len(all) != 1 || all[0].Real != s.Real(p, home) || all[0].Expires <= time.Minute || all[0].Expires > time.Hour {
				s.Fatalf("%s: bindings %v, %v; want the client's to %s", p, all, err, s.Real(p, home))
			}
			to, ok := plane.As[plane.Binder](s.Plane())
			if !ok {
				continue
			}
			bind := func(b model.Binding, want int) {
				if n, err := to.Bind(s.Context(), []model.Binding{b}); err != nil || n != want {
					s.Errorf("%s: bind %v: %d, %v; want %d", p, b, n, err, want)
				}
			}
			other, elsewhere := all[0], all[0]
			other.Real, elsewhere.Real = s.Real(p, 1-home), s.Real(p, 2)
			bind(other, 0) // it is bound here
			s.apply(model.Change{Op: model.ServiceDelete, Service: v.Service})
			bind(other, 0)
			s.apply(rows...)
			bind(elsewhere, 0)
			bind(other, 1)
			if got := s.visits(p, 0, 4); got[1-home] != 4 {
				s.Errorf("%s: connections per real server %v, bound to %d", p, got, 1-home)
			}
		}
	}},
	{name: "two services may share a real server", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		s.serve(model.TCP, 1, "rr", 1)
		a, b := s.dial(model.TCP, 0), s.dial(model.TCP, 1)
		s.ask(model.TCP, a)
		s.ask(model.TCP, b)
		s.apply(s.real(model.RealDelete, model.TCP, 0, 0, 0))
		s.ask(model.TCP, b)
		s.wantEnded(model.TCP, a)
		s.visit(model.TCP, 1)
	}},
}
