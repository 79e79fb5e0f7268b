package heartbeat

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// watched is a node that watches b: keepalive 10 ms, deadtime 30 ms,
// suspecttime 1 s. b's kernel answers as soon as it is asked, while it is up.
type watched struct {
	t      *testing.T
	core   *Core
	peer   *Core
	now    time.Time
	kernel Run // the run of the machine that answers; zero for none
	asked  int
	log    []string
	said   []string // kinds of notes
}

var run1, run2 = RunOf("run1"), RunOf("run2")

func newWatched(t *testing.T, respond bool) *watched {
	w := &watched{t: t, now: epoch}
	conf := func(self string) Config {
		cfg := testConfig(self, other(self), 100)
		cfg.Heartbeat.Keepalive, cfg.Heartbeat.DeadTime, cfg.Heartbeat.WarnTime = 10*time.Millisecond, 30*time.Millisecond, 0
		cfg.Heartbeat.SuspectTime = time.Second
		if respond {
			cfg.Boot = run1.String()
		}
		return cfg
	}
	var err error
	if w.core, err = New(conf("a")); err != nil {
		t.Fatal(err)
	}
	if w.peer, err = New(conf("b")); err != nil {
		t.Fatal(err)
	}
	w.step(Start{})
	w.beat()
	w.step(Running{})
	return w
}

// beat lets b's daemon send one, which arrives at once.
func (w *watched) beat() {
	m := model.Message{Type: "status", Fields: []model.Field{{Name: "st", Value: "active"}, {Name: "dt", Value: "1e"},
		{Name: "batuta", Value: "1"}, {Name: "ka", Value: "a"}}}
	for _, e := range w.peer.Step(w.now, Submit{m}) {
		if s, ok := e.(*Send); ok {
			w.step(Datagram{Link: "eth1", Data: s.Data, At: w.now})
		}
	}
}

func (w *watched) step(in Input) {
	for _, e := range w.core.Step(w.now, in) {
		switch e := e.(type) {
		case Ask:
			w.asked++
			if w.kernel == (Run{}) {
				break
			}
			b, err := Reply(e.Data, QuestionKeys(w.core.hb.Keys), e.Node, w.kernel)
			if err != nil {
				w.t.Fatal(err)
			}
			w.step(Datagram{Link: "eth1", Data: b, At: w.now})
		case Note:
			w.said = append(w.said, e.Kind)
		case *Sighted:
			if e.Kind != model.SightingBeat && e.Link == "" {
				w.log = append(w.log, fmt.Sprintf("%v %s", w.now.Sub(epoch), e.Kind))
			}
		}
	}
}

// pass lets time pass; each deadline is met.
func (w *watched) pass(d time.Duration) {
	for end := w.now.Add(d); ; {
		next := w.core.Next()
		if next.IsZero() || next.After(end) {
			w.now = end
			return
		}
		w.now = next
		w.step(Tick{})
	}
}

func (w *watched) want(log ...string) {
	w.t.Helper()
	if d := cmp.Diff(log, w.log); d != "" {
		w.t.Errorf("(-want +got)\n%s", d)
	}
	w.log = nil
}

// The daemon is paused for 30, 50 and 100 ms at keepalive 10 ms and deadtime
// 30 ms: its kernel answers, nobody is declared dead.
func TestPauseIsNoDeath(t *testing.T) {
	w := newWatched(t, true)
	w.want("0s joined")
	w.kernel = run1
	for _, pause := range []time.Duration{30, 50, 100} {
		for range 100 {
			w.pass(pause * time.Millisecond)
			w.beat()
			w.pass(10 * time.Millisecond)
			w.beat()
		}
	}
	for _, l := range w.log {
		if len(l) > 6 && l[len(l)-6:] == "silent" {
			t.Fatal(l)
		}
	}
	if w.asked == 0 {
		t.Error("the kernel was never asked")
	}
}

func TestSuspectDiesInTheEnd(t *testing.T) {
	w := newWatched(t, true)
	w.kernel = run1
	w.pass(2 * time.Second)
	w.want("0s joined", "32ms suspect", "1.002s silent")
}

// The host is lost 40 ms after the last beat of its daemon, which hangs.
func TestSuspectWhoseKernelFallsSilent(t *testing.T) {
	w := newWatched(t, true)
	w.kernel = run1
	w.pass(40 * time.Millisecond)
	w.kernel = Run{}
	w.pass(2 * time.Second)
	w.want("0s joined", "32ms suspect", "72ms silent")
}

// With daemon and kernel silent the dead time alone counts; the same where no
// kernel was promised to answer, whatever answers.
func TestHostLossIsNotDelayed(t *testing.T) {
	for _, respond := range []bool{true, false} {
		w := newWatched(t, respond)
		if !respond {
			w.kernel = run1
		}
		w.pass(time.Second)
		w.want("0s joined", "32ms silent")
	}
}

// A kernel that answers for another run of the machine: the daemon and all
// that it had are gone, and nobody waits for the dead time.
func TestRebootIsDeath(t *testing.T) {
	w := newWatched(t, true)
	w.kernel = run1
	w.pass(time.Millisecond)
	w.kernel = run2
	w.pass(time.Second)
	w.want("0s joined", "12.5ms silent")
}

// The node that watches is itself away: the kernel was not asked meanwhile.
func TestOwnAbsenceExcusesKernels(t *testing.T) {
	w := newWatched(t, true)
	w.kernel = run1
	w.pass(50 * time.Millisecond)
	from := w.now
	w.now = w.now.Add(500 * time.Millisecond)
	w.step(Excuse{From: from})
	w.pass(100 * time.Millisecond)
	w.want("0s joined", "32ms suspect")
}

// The kernel is tried at once, once with each beat until it answers; if it
// never does, that is said, once, and the dead time alone counts.
func TestPromisesAreTried(t *testing.T) {
	for _, answers := range []bool{true, false} {
		w := newWatched(t, true)
		if answers {
			w.kernel = run1
		}
		warned := 0
		for range 20 {
			w.pass(0)
			w.beat()
			warned += w.notes("kernel-unheard")
			w.pass(10 * time.Millisecond)
		}
		if want := map[bool]int{true: 1, false: proofTries}[answers]; w.asked != want {
			t.Errorf("answers %v: asked %d times, want %d", answers, w.asked, want)
		}
		if want := map[bool]int{true: 0, false: 1}[answers]; warned != want {
			t.Errorf("answers %v: %d warnings, want %d", answers, warned, want)
		}
		w.kernel = Run{}
		w.pass(time.Second)
		w.want("0s joined", "222ms silent") // the last beat was at 190 ms
	}
}

// notes tells how many notes of that kind there were since it was asked last.
func (w *watched) notes(kind string) (n int) {
	for _, k := range w.said {
		if k == kind {
			n++
		}
	}
	w.said = nil
	return n
}

// A margin is what a slow and obvious list of all gaps says.
func TestMargin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	type gap struct {
		at  time.Time
		len time.Duration
	}
	var m Margin
	if got := m.Could(epoch); got != (model.Margin{}) {
		t.Errorf("from nothing: %+v", got)
	}
	var all []gap
	now := epoch
	for range 2000 {
		g := gap{now, time.Duration(r.ExpFloat64() * float64(10*time.Millisecond))}
		all = append(all, g)
		m.Add(g.at, g.len)
		now = now.Add(time.Duration(r.ExpFloat64() * float64(20*time.Minute)))
		if r.IntN(300) == 0 {
			now = now.Add(9 * 24 * time.Hour)
		}
		worst := time.Duration(0)
		for _, g := range all {
			// Hours are forgotten whole: the horizon is 7 days less up to an hour.
			if now.Unix()/3600-g.at.Unix()/3600 < int64(Horizon/time.Hour) {
				worst = max(worst, g.len)
			}
		}
		want := time.Duration(0)
		if worst > 0 {
			want = worst.Truncate(time.Millisecond) + time.Millisecond
		}
		if got := m.Could(now); time.Duration(got.DeadTime) != want || want > 0 && now.Sub(got.Since) > Horizon {
			t.Fatalf("%v after the first beat: could run at %v since %v, want %v", now.Sub(epoch), time.Duration(got.DeadTime), got.Since, want)
		}
	}
}

// What was learnt survives a restart, and what no file can say is refused.
func TestMarginsAreStored(t *testing.T) {
	var m Margin
	m.Pace(time.Second)
	at := epoch
	for i := range 500 {
		at = at.Add(29 * time.Minute)
		m.Add(at, time.Second+time.Duration(i%37)*time.Millisecond)
	}
	text := FormatMargins(map[model.NodeName]Margin{"b": m, "c": {}})
	back, err := ParseMargins(text)
	if err != nil {
		t.Fatal(err)
	}
	restored := back["b"]
	if got, want := restored.Could(at), m.Could(at); got.DeadTime != want.DeadTime || got.Since.Sub(want.Since).Abs() > time.Second {
		t.Errorf("could be %+v, want %+v", got, want)
	}
	if again := FormatMargins(back); again != text {
		t.Errorf("written again:\n%s\nwant:\n%s", again, text)
	}
	restored.Pace(time.Second)
	if restored.Could(at).DeadTime == 0 {
		t.Error("the same keepalive forgets")
	}
	if restored.Pace(2 * time.Second); restored.Could(at).DeadTime != 0 {
		t.Error("another keepalive forgets nothing")
	}
	for _, bad := range []string{"b", "b 1 2", "b 1 2 x", "b 1 2 -3", "b 1 2 3 4", "b 1 2 3 4:5", "b 1 2 300 168:5", "b 1 2 3 1:-5", "b 99999999999999999 2 3"} {
		if _, err := ParseMargins(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzParseMargins(f *testing.F) {
	f.Add("b 50000 1795359877 498711 0:50250 3:51000\n")
	f.Fuzz(func(_ *testing.T, text string) {
		margins, err := ParseMargins(text)
		if err != nil {
			return
		}
		for _, m := range margins {
			m.Add(epoch, time.Second)
			m.Could(epoch.Add(time.Hour))
		}
		FormatMargins(margins)
	})
}
