package plane

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/model"
)

// servers makes candidates A, B, C, ... with these weights.
func servers(weights ...int) []Candidate {
	var c []Candidate
	for i, w := range weights {
		c = append(c, Candidate{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: w})
	}
	return c
}

// choices writes down n choices, each connection staying open.
func choices(s *Scheduler, of []Candidate, n int) string {
	var b strings.Builder
	for range n {
		i := s.Next(of, netip.MustParseAddr("192.0.2.1"))
		if i < 0 {
			b.WriteByte('-')
			continue
		}
		b.WriteByte('A' + byte(i))
		of[i].Active++
	}
	return b.String()
}

func TestSchedulers(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []int
		want    string
	}{
		{"rr", []int{1, 1, 1}, "ABCABCABC"},
		{"rr", []int{9, 0, 1}, "ACACAC"},
		{"rr", []int{0, 0}, "--"},
		{"rr", nil, "--"},
		// the example of the LVS project's description of wrr
		{"wrr", []int{4, 3, 2}, "AABABCABCAABABCABC"},
		{"wrr", []int{300, 200, 100}, "AABABC"},
		{"wrr", []int{0, 5, 0}, "BBB"},
		{"wrr", []int{0, 0}, "--"},
		{"lc", []int{1, 5}, "ABAB"},
		{"wlc", []int{1, 3}, "ABBBABBB"},
		{"sed", []int{1, 3}, "BBABBBAB"},
		{"nq", []int{1, 3}, "BABBBBAB"},
		{"fo", []int{1, 3, 2}, "BBBB"},
		{"ovf", []int{2, 3}, "BBBAAA"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := choices(&Scheduler{Name: c.name}, servers(c.weights...), len(c.want))
			if got != c.want {
				t.Errorf("weights %v: chose %s, want %s", c.weights, got, c.want)
			}
		})
	}
}

func TestRotationGoesOnWhenServersComeAndGo(t *testing.T) {
	var s Scheduler
	all := servers(1, 1, 1, 1)
	if got := choices(&s, all, 2); got != "AB" {
		t.Fatalf("chose %s, want AB", got)
	}
	if i := s.Next([]Candidate{all[0], all[2], all[3]}, netip.Addr{}); i != 1 {
		t.Errorf("after B left, chose index %d, want C", i)
	}
	if got := choices(&s, all, 3); got != "DAB" {
		t.Errorf("after B came back: %s, want DAB", got)
	}
}

// Whatever the scheduler and the candidates: a choice is usable, and there is
// one whenever one is usable.
func TestAnySchedulerChoosesWhatMayBeChosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &Scheduler{Name: rapid.SampledFrom(Schedulers).Draw(t, "name")}
		for range 20 {
			of := servers(rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(0, 65535)), 0, 6).Draw(t, "weights")...)
			for i := range of {
				of[i].Skip = rapid.Bool().Draw(t, "skip")
				of[i].Active = rapid.Uint64Range(0, 5).Draw(t, "active")
			}
			i := s.Next(of, netip.AddrFrom4([4]byte{192, 0, 2, rapid.Byte().Draw(t, "client")}))
			if i >= 0 && !usable(of[i]) {
				t.Fatalf("chose %+v", of[i])
			}
			if i < 0 && slices.ContainsFunc(of, usable) {
				t.Fatalf("chose none of %+v", of)
			}
		}
	})
}

// The definition of wrr, next to the way it is done: over one cycle each
// candidate is chosen as often as its reduced weight says.
func TestWeightedRoundRobinIsExactOverACycle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		of := servers(rapid.SliceOfN(rapid.IntRange(0, 30), 1, 6).Draw(t, "weights")...)
		sum, divisor := 0, 0
		for _, c := range of {
			sum, divisor = sum+c.Weight, gcd(divisor, c.Weight)
		}
		if sum == 0 {
			return
		}
		s := &Scheduler{Name: "wrr"}
		for range rapid.IntRange(1, 3).Draw(t, "cycles") {
			got := make([]int, len(of))
			for range sum / divisor {
				got[s.Next(of, netip.Addr{})]++
			}
			for i, c := range of {
				if got[i] != c.Weight/divisor {
					t.Fatalf("chosen %v times with weights %+v", got, of)
				}
			}
		}
	})
}

func TestHashingMovesOnlyClientsOfTheLostServer(t *testing.T) {
	s := &Scheduler{Name: "sh"}
	all := servers(1, 1, 1, 1)
	for n := range 1000 {
		client := netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)})
		before := s.Next(all, client)
		after := s.Next(all[:3], client)
		if before != 3 && before != after {
			t.Fatalf("%v moved from %d to %d when 3 left", client, before, after)
		}
	}
}

func TestOverloaded(t *testing.T) {
	r := model.RealServer{Upper: 8, Lower: 4}
	for _, c := range []struct {
		was         bool
		connections uint64
		r           model.RealServer
		want        bool
	}{
		{false, 7, r, false}, {false, 8, r, true}, {true, 4, r, true}, {true, 3, r, false},
		{true, 6, model.RealServer{Upper: 8}, true}, {true, 5, model.RealServer{Upper: 8}, false},
		{true, 100, model.RealServer{}, false},
	} {
		if got := Overloaded(c.was, c.connections, c.r); got != c.want {
			t.Errorf("Overloaded(%v, %d, upper %d lower %d) = %v, want %v", c.was, c.connections, c.r.Upper, c.r.Lower, got, c.want)
		}
	}
}

func TestAffinityHoldsNetworksForTheirTime(t *testing.T) {
	p := model.Persistence{Enabled: true, Timeout: time.Minute, Netmask: netip.MustParseAddr("255.255.255.0")}
	now := time.Unix(1000, 0)
	real := netip.MustParseAddrPort("10.0.0.1:80")
	var a Affinity
	a.Remember(p, netip.MustParseAddr("192.0.2.1"), real, now)
	for _, c := range []struct {
		client string
		after  time.Duration
		want   bool
	}{
		{"192.0.2.77", 0, true}, {"192.0.3.1", 0, false}, {"192.0.2.1", 59 * time.Second, true}, {"192.0.2.1", time.Minute, false},
	} {
		if got, ok := a.Find(p, netip.MustParseAddr(c.client), now.Add(c.after)); ok != c.want || ok && got != real {
			t.Errorf("%s after %v: %v, %v; want %v", c.client, c.after, got, ok, c.want)
		}
	}
	a.Forget(real)
	if _, ok := a.Find(p, netip.MustParseAddr("192.0.2.1"), now); ok {
		t.Error("remembered after Forget")
	}
}

// What another plane remembered holds for as long as it would have there, but
// no longer than here, and where nothing is remembered here.
func TestAffinityTakesBindingsOver(t *testing.T) {
	p := model.Persistence{Enabled: true, Timeout: time.Minute, Netmask: netip.MustParseAddr("255.255.255.0")}
	now := time.Unix(1000, 0)
	service := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	one, other := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")
	var a Affinity
	for _, c := range []struct {
		p      model.Persistence
		client string
		real   netip.AddrPort
		left   time.Duration
		want   bool
	}{
		{p, "192.0.2.1", one, 20 * time.Second, true},
		{p, "192.0.2.9", other, 20 * time.Second, false}, // its network is bound
		{p, "192.0.3.1", other, time.Hour, true},
		{p, "192.0.4.1", other, 0, false},
		{model.Persistence{}, "192.0.5.1", other, time.Hour, false},
	} {
		if got := a.Bind(c.p, model.Binding{Service: service, Client: netip.MustParseAddr(c.client), Real: c.real, Expires: c.left}, now); got != c.want {
			t.Errorf("bind %s: %v, want %v", c.client, got, c.want)
		}
	}
	got := map[model.Binding]bool{}
	for _, b := range a.Bindings(service, now.Add(10*time.Second)) {
		got[b] = true
	}
	if want := (map[model.Binding]bool{
		{Service: service, Client: netip.MustParseAddr("192.0.2.0"), Real: one, Expires: 10 * time.Second}:   true,
		{Service: service, Client: netip.MustParseAddr("192.0.3.0"), Real: other, Expires: 50 * time.Second}: true,
	}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
