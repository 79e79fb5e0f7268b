package balance

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestHear(t *testing.T) {
	const u, d, n = model.Up, model.Down, model.Unknown
	for _, tc := range []struct {
		name     string
		start    State
		limit    int
		verdicts []model.Status
		outcomes []Outcome
		end      State
	}{
		{"one success is enough", State{}, 3, []model.Status{u}, []Outcome{WentUp}, State{Status: u, Answered: true, Confirmed: true}},
		{"the first failure of an unknown server counts", State{}, 3, []model.Status{d}, []Outcome{StayedDown}, State{Status: d, Failures: 1, Answered: true, Confirmed: true}},
		{"three failures in a row", State{Status: u, Answered: true, Confirmed: true}, 3,
			[]model.Status{d, d, d, d}, []Outcome{SoftFailure, SoftFailure, WentDown, NoChange}, State{Status: d, Failures: 3, Answered: true, Confirmed: true}},
		{"a success in between starts the count anew", State{Status: u, Answered: true, Confirmed: true}, 3,
			[]model.Status{d, d, u, d, d}, []Outcome{SoftFailure, SoftFailure, Recovered, SoftFailure, SoftFailure}, State{Status: u, Failures: 2, Answered: true, Confirmed: true}},
		{"unknown changes nothing, not even the count", State{Status: u, Answered: true, Confirmed: true}, 2,
			[]model.Status{d, n, d}, []Outcome{SoftFailure, NoChange, WentDown}, State{Status: d, Failures: 2, Answered: true, Confirmed: true}},
		{"unknown is an answer", State{}, 1, []model.Status{n}, []Outcome{NoChange}, State{Answered: true}},
		{"an adopted server has all its failures before it", State{Status: u}, 2,
			[]model.Status{d, d}, []Outcome{SoftFailure, WentDown}, State{Status: d, Failures: 2, Answered: true, Confirmed: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.start
			var got []Outcome
			for _, v := range tc.verdicts {
				got = append(got, s.Hear(v, tc.limit))
			}
			if d := cmp.Diff(tc.outcomes, got); d != "" {
				t.Errorf("outcomes (-want +got)\n%s", d)
			}
			if d := cmp.Diff(tc.end, s); d != "" {
				t.Errorf("state (-want +got)\n%s", d)
			}
		})
	}
}

// service is tcp 10.0.0.1:80 rr with two masq servers of weight 4 and
// thresholds, and a fallback.
func service(opts ...func(*model.Service)) model.Service {
	real := func(a string) model.CheckedReal {
		return model.CheckedReal{RealServer: model.RealServer{Addr: netip.MustParseAddrPort(a), Forward: model.Masq, Weight: 4, Upper: 9, Lower: 3}}
	}
	s := model.Service{
		Virtual:      model.VirtualService{Key: model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.0.0.1:80")}, Scheduler: "rr"},
		Reals:        []model.CheckedReal{real("10.0.1.1:8080"), real("10.0.1.2:8080")},
		Fallback:     &model.RealServer{Addr: netip.MustParseAddrPort("127.0.0.1:80"), Forward: model.Gate, Weight: 1},
		FailureCount: 1,
	}
	for _, o := range opts {
		o(&s)
	}
	return s
}

func quiescent(s *model.Service)  { s.Quiescent = true }
func noFallback(s *model.Service) { s.Fallback = nil }

// states reads one word for each real server: up, down, unknown, adopted (up
// without a verdict), trusted (the same, and the answer was unknown), new, or
// one that an operator holds: drained, draineddown, drainednew, out.
func states(words string) []State {
	var out []State
	for w := range strings.FieldsSeq(words) {
		out = append(out, map[string]State{
			"up": {Status: model.Up, Answered: true, Confirmed: true}, "down": {Status: model.Down, Failures: 1, Answered: true, Confirmed: true},
			"unknown": {Answered: true}, "trusted": {Status: model.Up, Answered: true}, "adopted": {Status: model.Up}, "new": {},
			"drained": {Status: model.Up, Answered: true, Confirmed: true, Hold: HoldDrain}, "out": {Status: model.Up, Answered: true, Confirmed: true, Hold: HoldOut},
			"draineddown": {Status: model.Down, Answered: true, Confirmed: true, Hold: HoldDrain}, "drainednew": {Hold: HoldDrain},
		}[w])
	}
	return out
}

func TestDesired(t *testing.T) {
	const (
		head     = "tcp 10.0.0.1:80 rr\n"
		one, two = "10.0.1.1:8080 masq weight 4 upper 9 lower 3\n", "10.0.1.2:8080 masq weight 4 upper 9 lower 3\n"
		stray    = "10.0.9.9:8080 masq weight 1\n"
		fallback = "127.0.0.1:80 gate weight 1\n"
	)
	for _, tc := range []struct {
		name       string
		svc        model.Service
		health     string
		have, want string
	}{
		{name: "both up", svc: service(), health: "up up", want: head + one + two},
		{name: "one down is gone", svc: service(), health: "up down", have: head + one + two, want: head + one},
		{name: "one down is quiesced, without thresholds", svc: service(quiescent), health: "up down", have: head + one + two,
			want: head + one + "10.0.1.2:8080 masq weight 0\n"},
		{name: "all down: the fallback", svc: service(), health: "down down", have: head + one, want: head + fallback},
		{name: "all down and quiescent: the fallback beside them", svc: service(quiescent), health: "down down",
			want: head + "10.0.1.1:8080 masq weight 0\n10.0.1.2:8080 masq weight 0\n" + fallback},
		{name: "all down without fallback: an empty service", svc: service(noFallback), health: "down down", have: head + one, want: head},
		{name: "cold start: nothing is known, nothing is served", svc: service(), health: "new new", want: head},
		{name: "no fallback before all have answered", svc: service(), health: "down new", want: head},
		{name: "an unknown answer is an answer", svc: service(), health: "down unknown", want: head + fallback},
		{name: "restart: what is there stays as configured now", svc: service(), health: "adopted new",
			have: head + "10.0.1.1:8080 masq weight 1\n", want: head + one},
		{name: "restart: a quiesced row stays until its server answers", svc: service(), health: "adopted new",
			have: head + one + "10.0.1.2:8080 masq weight 0\n", want: head + one + "10.0.1.2:8080 masq weight 0\n"},
		{name: "restart: the fallback stays until all have answered", svc: service(), health: "down new",
			have: head + fallback, want: head + fallback},
		{name: "a stray row stays until all have answered", svc: service(), health: "up new", have: head + stray, want: head + one + stray},
		{name: "then it goes", svc: service(), health: "up up", have: head + stray, want: head + one + two},
		{name: "also when all answered down", svc: service(noFallback), health: "down down", have: head + stray, want: head},
		{name: "but not when it is all there is and nothing is known", svc: service(noFallback), health: "unknown unknown",
			have: head + stray, want: head + stray},
		{name: "nor when all that serves is what was found", svc: service(), health: "trusted unknown",
			have: head + one + stray, want: head + one + stray},
		{name: "gate: the row has the service's port", svc: service(func(s *model.Service) { s.Reals[0].Forward = model.Gate }), health: "up up",
			want: head + "10.0.1.1:80 gate weight 4 upper 9 lower 3\n" + two},
		{name: "the same real server twice is one row", svc: service(func(s *model.Service) { s.Reals[1].Addr = s.Reals[0].Addr }), health: "down up",
			want: head + one},
		{name: "drained: no new connections, without thresholds", svc: service(), health: "up drained", have: head + one + two,
			want: head + one + "10.0.1.2:8080 masq weight 0\n"},
		{name: "past its deadline: no row, whatever quiescent says", svc: service(quiescent), health: "up out", have: head + one + "10.0.1.2:8080 masq weight 0\n", want: head + one},
		{name: "drained and dead: as any other", svc: service(), health: "up draineddown", have: head + one + "10.0.1.2:8080 masq weight 0\n", want: head + one},
		{name: "drained before it was checked", svc: service(), health: "up drainednew", have: head + one + two, want: head + one + "10.0.1.2:8080 masq weight 0\n"},
		{name: "all drained: the fallback takes what is new", svc: service(), health: "drained drained", have: head + one + two,
			want: head + "10.0.1.1:8080 masq weight 0\n10.0.1.2:8080 masq weight 0\n" + fallback},
		{name: "a fallback on a real server's address takes its row over, and gives it back",
			svc:    service(func(s *model.Service) { s.Fallback.Addr, s.Fallback.Forward = s.Reals[0].Addr, model.Masq }, quiescent),
			health: "down down", want: head + "10.0.1.1:8080 masq weight 1\n10.0.1.2:8080 masq weight 0\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := Input{Services: []model.Service{tc.svc}, Health: Health{states(tc.health)}, Have: table(t, tc.have)}
			if d := cmp.Diff(table(t, tc.want), Desired(in), sameTable); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestDesiredLeavesForeignServicesAlone(t *testing.T) {
	have := table(t, `
		tcp 10.0.0.0:80 rr
		  10.0.1.9:80 gate weight 1
		tcp 10.0.0.1:80 rr
		tcp 10.0.0.2:80 rr
		  10.0.1.9:80 gate weight 1`)
	was := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.0.0.2:80")}
	in := Input{Services: []model.Service{service()}, Health: Health{states("up down")}, Have: have,
		Removed: map[model.ServiceKey]bool{was: true}}
	want := table(t, `
		tcp 10.0.0.0:80 rr
		  10.0.1.9:80 gate weight 1
		tcp 10.0.0.1:80 rr
		  10.0.1.1:8080 masq weight 4 upper 9 lower 3`)
	if d := cmp.Diff(want, Desired(in), sameTable); d != "" {
		t.Errorf("the foreign service stays, the former own one goes (-want +got)\n%s", d)
	}
}

func TestReloadKeepsWhatIsBelieved(t *testing.T) {
	old := []model.Service{service()}
	fresh := []model.Service{service(), service(func(s *model.Service) { s.Virtual.Key.Proto = model.UDP })}
	fresh[0].Reals[0].Weight = 9
	fresh[0].Reals[1].Addr = netip.MustParseAddrPort("10.0.1.3:8080")
	have := table(t, `
		udp 10.0.0.1:80 rr
		  10.0.1.2:8080 masq weight 1`)
	was := Health{{{Status: model.Down, Failures: 2, Answered: true, Confirmed: true}, {Status: model.Up, Answered: true, Confirmed: true}}}
	want := Health{
		{{Status: model.Down, Failures: 2, Answered: true, Confirmed: true}, {}},
		{{}, {Status: model.Up}},
	}
	if d := cmp.Diff(want, Carry(old, was, fresh, have)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// large is the size of the largest published director: 2,277 services and
// 37,205 real servers.
func large() ([]model.Service, Health) {
	const services, reals = 2277, 37205
	out := make([]model.Service, services)
	h := make(Health, services)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		out[i].Virtual = model.VirtualService{Key: model.ServiceKey{Proto: model.TCP, Addr: netip.AddrPortFrom(a, 80)}, Scheduler: "wrr"}
		out[i].FailureCount = 1
	}
	for n := range reals {
		s := &out[n%services]
		a := netip.AddrFrom4([4]byte{10, 2, byte(n >> 8), byte(n)})
		s.Reals = append(s.Reals, model.CheckedReal{RealServer: model.RealServer{Addr: netip.AddrPortFrom(a, 80), Forward: model.Masq, Weight: 1}})
		h[n%services] = append(h[n%services], State{Status: model.Up, Answered: true, Confirmed: true})
	}
	return out, h
}

// One real server of the large director fails: the whole decision.
func BenchmarkOneFailure(b *testing.B) {
	services, h := large()
	have := Desired(Input{Services: services, Health: h})
	h[1000][3].Hear(model.Down, 1)
	b.ReportAllocs()
	for b.Loop() {
		want := Desired(Input{Services: services, Health: h, Have: have})
		if n := len(Diff(have, Rebase(have, want, have, nil))); n != 1 {
			b.Fatalf("%d changes, want 1", n)
		}
	}
}

func BenchmarkDesired(b *testing.B) {
	services, h := large()
	have := Desired(Input{Services: services, Health: h})
	for b.Loop() {
		Desired(Input{Services: services, Health: h, Have: have})
	}
}

func BenchmarkDiff(b *testing.B) {
	services, h := large()
	have := Desired(Input{Services: services, Health: h})
	b.Run("equal", func(b *testing.B) {
		for b.Loop() {
			Diff(have, have)
		}
	})
	b.Run("from nothing", func(b *testing.B) {
		for b.Loop() {
			Diff(model.Table{}, have)
		}
	})
}
