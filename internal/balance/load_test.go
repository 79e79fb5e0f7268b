package balance

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// What a real server reports of itself makes its row.
func TestLoadInTheTable(t *testing.T) {
	key := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.0.0.1:80")}
	a, b := netip.MustParseAddrPort("10.0.0.2:80"), netip.MustParseAddrPort("10.0.0.3:80")
	svc := model.Service{Virtual: model.VirtualService{Key: key, Scheduler: "wrr"}, Reals: []model.CheckedReal{
		{RealServer: model.RealServer{Addr: a, Forward: model.Masq, Weight: 10}},
		{RealServer: model.RealServer{Addr: b, Forward: model.Masq, Weight: 10}},
	}, Fallback: &model.RealServer{Addr: netip.MustParseAddrPort("127.0.0.1:80"), Forward: model.Masq, Weight: 1}}
	h := Health{make([]State, 2)}
	hear := func(real int, line string) (moved bool) {
		l, _ := model.ParseLoad(line)
		_, moved = h[0][real].HearService(model.Verdict{Status: model.Up, At: noon, Load: l}, &svc)
		return moved
	}
	weights := func() map[string]int {
		out := map[string]int{}
		for _, r := range Desired(Input{Services: []model.Service{svc}, Health: h, Now: noon}).Services[0].Reals {
			out[r.Addr.String()] = r.Weight
		}
		return out
	}
	hear(0, "")
	hear(1, "")
	for _, step := range []struct {
		report string // of the first one
		moved  bool
		want   map[string]int
	}{
		{"75%", true, map[string]int{"10.0.0.2:80": 8, "10.0.0.3:80": 10}},
		{"75%", false, map[string]int{"10.0.0.2:80": 8, "10.0.0.3:80": 10}},
		{"", false, map[string]int{"10.0.0.2:80": 8, "10.0.0.3:80": 10}}, // an agent that is silent
		{"1%", true, map[string]int{"10.0.0.2:80": 1, "10.0.0.3:80": 10}},
		{"1000%", true, map[string]int{"10.0.0.2:80": 100, "10.0.0.3:80": 10}},
		{"0%", true, map[string]int{"10.0.0.2:80": 0, "10.0.0.3:80": 10}},
		{"50% drain", true, map[string]int{"10.0.0.2:80": 0, "10.0.0.3:80": 10}},
		{"100%", true, map[string]int{"10.0.0.2:80": 0, "10.0.0.3:80": 10}}, // it still drains
		{"maint", true, map[string]int{"10.0.0.3:80": 10}},
		{"ready", true, map[string]int{"10.0.0.2:80": 10, "10.0.0.3:80": 10}},
	} {
		if moved := hear(0, step.report); moved != step.moved {
			t.Errorf("%q: moved %v", step.report, moved)
		}
		if diff := cmp.Diff(step.want, weights()); diff != "" {
			t.Errorf("%q (-want +got)\n%s", step.report, diff)
		}
	}
	// Servers that all want nothing leave the service to its fallback.
	hear(0, "drain")
	hear(1, "maint")
	if diff := cmp.Diff(map[string]int{"10.0.0.2:80": 0, "127.0.0.1:80": 1}, weights()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// An operator's hold and the server's own add up to the sterner one.
	h[0][0].Hold = HoldOut
	if got := h[0][0].Held(); got != HoldOut {
		t.Errorf("held %v", got)
	}
	// Where nobody reports any more, nothing that was reported counts.
	again := Carry([]model.Service{svc}, h, []model.Service{svc}, model.Table{})
	if again[0][0].Load != (model.Load{}) {
		t.Errorf("%+v", again[0][0].Load)
	}
	svc.Reals[0].Target.AgentPort = 7
	if again = Carry([]model.Service{svc}, h, []model.Service{svc}, model.Table{}); again[0][0].Load.Mode != model.LoadDrain {
		t.Errorf("%+v", again[0][0].Load)
	}
}

// A service may want several successes in a row of a server that was down.
func TestRise(t *testing.T) {
	const u, d, n = model.Up, model.Down, model.Unknown
	svc := &model.Service{FailureCount: 1, SuccessCount: 3}
	s := State{}
	for i, step := range []struct {
		v    model.Status
		want Outcome
	}{
		{u, WentUp}, // of a server of which nothing was known, one is enough
		{d, WentDown}, {u, NoChange}, {u, NoChange}, {d, NoChange},
		{u, NoChange}, {n, NoChange}, {u, NoChange}, {u, WentUp}, {u, NoChange},
		{d, WentDown}, {u, NoChange}, {u, NoChange}, {u, WentUp},
	} {
		if got, _ := s.HearService(model.Verdict{Status: step.v, At: noon}, svc); got != step.want {
			t.Fatalf("step %d, %v: %v, want %v", i, step.v, got, step.want)
		}
	}
}
