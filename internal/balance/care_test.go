package balance

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

var noon = time.Date(2024, 10, 12, 12, 0, 0, 0, time.UTC)

// A real server that went down three times in a minute has to be well for ten
// seconds without a break; an hour later all is forgotten.
func TestFlapping(t *testing.T) {
	care := model.Care{Flaps: 3, FlapWindow: time.Minute, FlapHold: 10 * time.Second}
	const u, d, n = model.Up, model.Down, model.Unknown
	s := State{Status: model.Up, Answered: true, Confirmed: true}
	for _, tc := range []struct {
		second int
		v      model.Status
		want   Outcome
	}{
		{1, d, WentDown}, {2, u, WentUp},
		{3, d, WentDown}, {4, u, WentUp},
		{5, d, WentDown}, // the third time
		{6, u, Held}, {10, u, Held},
		{11, d, NoChange}, // the ten seconds begin anew
		{12, u, Held}, {15, n, NoChange}, {21, u, Held},
		{22, u, WentUp},
		{23, d, WentDown}, {24, u, Held}, {34, u, WentUp},
		{3600, d, WentDown}, {3601, u, WentUp},
	} {
		if got := s.HearWithCare(tc.v, 1, care, noon.Add(time.Duration(tc.second)*time.Second)); got != tc.want {
			t.Fatalf("second %d: %v: %v, want %v", tc.second, tc.v, got, tc.want)
		}
	}
}

// Without care it is Hear.
func TestNoCare(t *testing.T) {
	var a, b State
	for i, v := range []model.Status{model.Down, model.Up, model.Down, model.Down, model.Unknown, model.Up} {
		x, y := a.Hear(v, 2), b.HearWithCare(v, 2, model.Care{}, noon)
		if x != y || !cmp.Equal(a, b) {
			t.Errorf("verdict %d: %v %v, %v %v", i, x, a, y, b)
		}
	}
}

func TestSlowWeight(t *testing.T) {
	for _, tc := range []struct {
		name    string
		care    model.Care
		weight  int
		after   time.Duration
		want    int
		growing bool
	}{
		{"none", model.Care{}, 100, time.Second, 100, false},
		{"begins with a tenth", model.Care{SlowStart: 100 * time.Second}, 100, 0, 10, true},
		{"grows in a straight line", model.Care{SlowStart: 100 * time.Second}, 100, 50 * time.Second, 50, true},
		{"ends", model.Care{SlowStart: 100 * time.Second}, 100, 100 * time.Second, 100, false},
		{"faster at first", model.Care{SlowStart: 100 * time.Second, Aggression: 2}, 100, 25 * time.Second, 50, true},
		{"slower at first", model.Care{SlowStart: 100 * time.Second, Aggression: 0.5}, 100, 50 * time.Second, 25, true},
		{"its own beginning", model.Care{SlowStart: 100 * time.Second, SlowFirst: 0.3}, 100, 5 * time.Second, 30, true},
		{"never below 1", model.Care{SlowStart: 100 * time.Second}, 4, time.Second, 1, true},
		{"weight 1 has nothing to grow", model.Care{SlowStart: 100 * time.Second}, 1, 0, 1, false},
		{"weight 0 is none", model.Care{SlowStart: 100 * time.Second}, 0, 0, 0, false},
		{"a clock that went back", model.Care{SlowStart: 100 * time.Second}, 100, -time.Hour, 10, true},
	} {
		w, growing := SlowWeight(tc.weight, noon, tc.care, noon.Add(tc.after))
		if w != tc.want || growing != tc.growing {
			t.Errorf("%s: %d, %v; want %d, %v", tc.name, w, growing, tc.want, tc.growing)
		}
	}
}

func TestPanicking(t *testing.T) {
	for _, tc := range []struct {
		health string
		limit  int
		want   bool
	}{
		{"up down down down", 50, true},
		{"up up down down", 50, false}, // not fewer than half
		{"up down down down", 0, false},
		{"down down down down", 50, false}, // nobody is up: the fallback's case
		{"up down down new", 50, false},
		{"up down drained drained", 50, false},
		{"up unknown unknown down", 50, true},
	} {
		if got := Panicking(&model.Care{Panic: tc.limit}, states(tc.health)); got != tc.want {
			t.Errorf("%s, %d %%: %v", tc.health, tc.limit, got)
		}
	}
}

// What follows for the table.
func TestDesiredWithCare(t *testing.T) {
	svc := service(func(s *model.Service) { s.Care = model.Care{SlowStart: 100 * time.Second, Panic: 60} })
	health := states("up down")
	in := Input{Services: []model.Service{svc}, Health: Health{health}, Now: noon}
	if d := cmp.Diff(table(t, "tcp 10.0.0.1:80 rr\n10.0.1.1:8080 masq weight 4 upper 9 lower 3\n10.0.1.2:8080 masq weight 4 upper 9 lower 3"), Desired(in), sameTable); d != "" {
		t.Errorf("panic (-want +got)\n%s", d)
	}
	health[1] = State{Status: model.Up, Answered: true, Confirmed: true, Lately: &Lately{UpSince: noon.Add(-50 * time.Second)}}
	if d := cmp.Diff(table(t, "tcp 10.0.0.1:80 rr\n10.0.1.1:8080 masq weight 4 upper 9 lower 3\n10.0.1.2:8080 masq weight 2 upper 9 lower 3"), Desired(in), sameTable); d != "" {
		t.Errorf("slow start (-want +got)\n%s", d)
	}
}
