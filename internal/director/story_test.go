package director

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/check"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/memory"
)

var update = flag.Bool("update", false, "rewrite the stories with what happens now")

// A story is a txtar file in testdata: an ldirectord.cf (and later versions
// of it), a script, and what happened, with the seconds since the start.
// Nothing is checked for real: the script says how servers answer.
//
//	start                  run the director
//	stop                   end it, wait
//	wait 3s                let time pass
//	up|down|bad|hang|crash|unknown ADDR:PORT...
//	                       answers from now on; bad: connects, wrong page; hang: accepts, is silent
//	config NAME            the file becomes this one
//	reload                 what SIGHUP does
//	active|standby         hooks run, or not
//	table                  print it
//	status                 print what Services says
//	plane CHANGE           somebody else changes the table: "real-del tcp A:P R", "real-edit tcp A:P R masq 2", "service-del tcp A:P"
//	refuse|accept R        the plane refuses rows of R, or no longer
//	hook fail|ok|slow      how commands end from now on
//	touch|remove FILE      in @DIR@, for maintenancedir
//	name ADDR NAME         the reverse name of an address
//	show FILE              print a file of @DIR@
//	drain REAL [TIME]      take it out of service, and cut what is left then
//	ready REAL             back again
//	connections REAL N     it has so many
//	care panic N|slowstart TIME|flaps N WINDOW HOLD
//	                       of all services, from the next start or reload on
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = newTeller(t, a).tell() })
			want, ok := section(a, "happens")
			if *update {
				a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "happens" })
				a.Files = append(a.Files, txtar.File{Name: "happens", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" || !ok {
				t.Errorf("%s (-want +got; -update rewrites)\n%s", file, d)
			}
		})
	}
}

func section(a *txtar.Archive, name string) (string, bool) {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

// teller plays one story.
type teller struct {
	t     *testing.T
	a     *txtar.Archive
	file  string
	plane *stubborn
	loop  *Loop
	began time.Time
	stop  func()
	ready bool

	mu      sync.Mutex
	out     strings.Builder
	answers map[netip.AddrPort]string
	names   map[string][]string
	hook    string
	care    model.Care
}

// stubborn is a plane that refuses rows of some real servers.
type stubborn struct {
	plane.Plane
	refuse map[string]bool

	mu          sync.Mutex
	connections map[netip.AddrPort]uint64
}

// Counters tells of connections as the script has them.
func (s *stubborn) Counters(ctx context.Context) ([]model.ServiceCounters, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.Read(ctx)
	var out []model.ServiceCounters
	for _, v := range have.Services {
		c := model.ServiceCounters{Key: v.Key}
		for _, r := range v.Reals {
			c.Reals = append(c.Reals, model.RealCounters{Addr: r.Addr, Active: s.connections[r.Addr]})
		}
		out = append(out, c)
	}
	return out, err
}

func (s *stubborn) Apply(ctx context.Context, changes []model.Change) error {
	var refused []error
	var rest []model.Change
	for _, c := range changes {
		if s.refuse[c.Real.Addr.String()] || s.refuse[c.Service.Key.Addr.String()] {
			refused = append(refused, &plane.RowError{Change: c, Err: errors.New("no such luck")})
		} else {
			rest = append(rest, c)
		}
	}
	return errors.Join(append(refused, s.Plane.Apply(ctx, rest))...)
}

func newTeller(t *testing.T, a *txtar.Archive) *teller {
	p, err := memory.New(memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &teller{t: t, a: a, file: filepath.Join(t.TempDir(), "ldirectord.cf"), began: time.Now(),
		plane: &stubborn{Plane: p, refuse: map[string]bool{}, connections: map[netip.AddrPort]uint64{}}, answers: map[netip.AddrPort]string{}, names: map[string][]string{}}
}

func (s *teller) tell() string {
	s.write("ldirectord.cf")
	script, ok := section(s.a, "script")
	if !ok {
		s.t.Fatal("the story has no script")
	}
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		s.say("> %s", line)
		s.play(strings.Fields(line))
	}
	if s.stop != nil {
		s.stop()
	}
	return s.out.String()
}

func (s *teller) play(words []string) {
	args := words[1:]
	switch words[0] {
	case "start":
		s.start()
	case "stop":
		s.stop()
		s.stop = nil
	case "wait":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			s.t.Fatal(err)
		}
		time.Sleep(d) // in the bubble: no time at all
	case "up", "down", "bad", "hang", "crash", "unknown":
		s.mu.Lock()
		for _, a := range args {
			s.answers[netip.MustParseAddrPort(a)] = words[0]
		}
		s.mu.Unlock()
	case "config":
		s.write(args[0])
	case "reload":
		s.loop.Reload()
	case "active", "standby":
		s.loop.SetActive(words[0] == "active")
	case "table":
		have, err := s.plane.Read(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		s.say("%s", strings.TrimSuffix(have.String(), "\n"))
	case "status":
		for _, v := range s.loop.Services() {
			s.say("%s %s fallback=%v", v.Key, v.Scheduler, v.Fallback)
			if v.Refused != "" {
				s.say("  refused: %s", v.Refused)
			}
			for _, r := range v.Reals {
				s.say("  %s %s weight=%d intable=%v %v failures=%d: %s", r.Addr, r.Forward, r.Weight, r.InTable, r.Status, r.Failures, r.Reason)
				if r.Refused != "" {
					s.say("    refused: %s", r.Refused)
				}
				if r.Drain != nil {
					s.say("    draining, %d left, out=%v", r.Drain.Remaining, r.Drain.Out)
				}
			}
		}
	case "plane":
		if err := s.plane.Plane.Apply(s.t.Context(), []model.Change{s.change(args)}); err != nil {
			s.t.Fatal(err)
		}
	case "refuse":
		s.plane.refuse[args[0]] = true
	case "accept":
		delete(s.plane.refuse, args[0])
	case "touch", "remove", "show":
		s.touch(words[0], filepath.Join(filepath.Dir(s.file), args[0]))
	case "drain", "ready":
		s.order(words[0], args)
	case "connections":
		n, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		s.plane.mu.Lock()
		s.plane.connections[netip.MustParseAddrPort(args[0])] = n
		s.plane.mu.Unlock()
	case "care":
		s.setCare(args)
	case "name":
		s.names[args[0]] = args[1:]
	case "hook":
		s.mu.Lock()
		s.hook = args[0]
		s.mu.Unlock()
	default:
		s.t.Fatalf("no verb %q", words[0])
	}
	synctest.Wait()
	if s.loop == nil || s.ready {
		return
	}
	select {
	case <-s.loop.Ready():
		s.ready = true
		s.say("%s ready", s.clock())
	default:
	}
}

func (s *teller) start() {
	d, err := s.load()
	if err != nil {
		s.t.Fatal(err)
	}
	s.loop, err = New(Config{Director: *d, Plane: s.plane, Load: s.load, Check: s.check, Shell: s.shell, Sink: s.hear,
		Mail: s.mail, LookupAddr: s.lookup, DrainFile: filepath.Join(filepath.Dir(s.file), "state", "drains")})
	if err != nil {
		s.t.Fatal(err)
	}
	s.loop.SetActive(true)
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.loop.Run(ctx); err != nil {
			s.t.Error(err)
		}
	}()
	s.stop = func() { cancel(); <-done }
}

func (s *teller) load() (*model.Director, error) {
	d, problems := config.Reader{Files: os.DirFS("/")}.Director(s.file)
	if config.Failed(problems) {
		for _, p := range problems {
			if p.Severity == config.Error {
				return nil, errors.New(strings.ReplaceAll(p.String(), s.file, "ldirectord.cf"))
			}
		}
	}
	for i := range d.Services {
		d.Services[i].Care = s.care
	}
	return d, nil
}

func (s *teller) setCare(args []string) {
	times := make([]time.Duration, len(args))
	for i, a := range args {
		times[i], _ = time.ParseDuration(a) // numbers are none
	}
	n, _ := strconv.Atoi(args[1])
	switch args[0] {
	case "panic":
		s.care.Panic = n
	case "slowstart":
		s.care.SlowStart = times[1]
	case "flaps":
		s.care.Flaps, s.care.FlapWindow, s.care.FlapHold = n, times[2], times[3]
	}
}

func (s *teller) write(name string) {
	text, ok := section(s.a, name)
	if !ok {
		s.t.Fatalf("the story has no file %q", name)
	}
	text = strings.ReplaceAll(text, "@DIR@", filepath.Dir(s.file))
	if err := os.WriteFile(s.file, []byte(text), 0o755); err != nil { // executable: it serves as its own callback
		s.t.Fatal(err)
	}
	if err := os.Chtimes(s.file, time.Now(), time.Now()); err != nil {
		s.t.Fatal(err)
	}
}

// check answers as the script says; servers are down until it says so.
func (s *teller) check(t model.Target) check.Func {
	if t.Kind == model.CheckOn || t.Kind == model.CheckOff {
		return check.For(t)
	}
	return func(ctx context.Context, t model.Target) model.Verdict {
		s.mu.Lock()
		answer := s.answers[t.Addr]
		s.mu.Unlock()
		limit := t.NegotiateTimeout
		if t.Kind == model.CheckConnect {
			limit = t.CheckTimeout
		}
		switch {
		case answer == "up", t.Kind == model.CheckConnect && (answer == "bad" || answer == "hang"):
			return model.Verdict{Status: model.Up, Reason: "200 OK"}
		case answer == "bad":
			return model.Verdict{Status: model.Down, Reason: "404 Not Found"}
		case answer == "hang":
			select {
			case <-time.After(limit):
				return model.Verdict{Status: model.Down, Reason: fmt.Sprintf("no answer within %v", limit)}
			case <-ctx.Done():
				return model.Verdict{Reason: "interrupted"}
			}
		case answer == "crash":
			panic("index out of range")
		case answer == "unknown":
			return model.Verdict{Reason: "too many open files"}
		}
		return model.Verdict{Status: model.Down, Reason: "connection refused"}
	}
}

// shell writes commands down, a moment after what led to them: events of the
// same instant come first.
func (s *teller) shell(ctx context.Context, command string) error {
	time.Sleep(time.Millisecond)
	s.mu.Lock()
	how := s.hook
	s.mu.Unlock()
	s.say("%s hook: %s", s.clock(), strings.ReplaceAll(command, s.file, "ldirectord.cf"))
	switch how {
	case "fail":
		return errors.New("exit status 1")
	case "slow":
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return errors.New("it took too long and was killed")
		}
	}
	return nil
}

// hear writes an event down; where a crash happened is left out.
func (s *teller) hear(e model.Event) {
	text, _, _ := strings.Cut(e.Text, " at /")
	s.say("%s %s", s.clock(), strings.ReplaceAll(text, s.file, "ldirectord.cf"))
}

// order drains a server or puts it back.
func (s *teller) order(verb string, args []string) {
	var who []string
	var err error
	if verb == "ready" {
		who, err = s.loop.PutBack(s.t.Context(), args[0])
	} else {
		var deadline time.Duration
		if len(args) > 1 {
			if deadline, err = time.ParseDuration(args[1]); err != nil {
				s.t.Fatal(err)
			}
		}
		who, err = s.loop.Drain(s.t.Context(), args[0], deadline)
	}
	s.say("%s %s: %v, %v", s.clock(), verb, who, err)
}

// touch creates, removes or prints a file.
func (s *teller) touch(verb, name string) {
	var err error
	switch verb {
	case "touch":
		if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
			err = os.WriteFile(name, nil, 0o644)
		}
	case "remove":
		err = os.Remove(name)
	default:
		var b []byte
		b, err = os.ReadFile(name)
		for line := range strings.Lines(string(b)) {
			s.say("%s", stamp.ReplaceAllString(strings.TrimSuffix(line, "\n"), "[TIME] [PID]"))
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

var stamp = regexp.MustCompile(`^\[[^]]*\] \[\d+\]`)

// mail writes an alert down.
func (s *teller) mail(m alert.Message) {
	s.say("%s mail from %q by %q to %s, %s: %s | %s | %s", s.clock(), m.From, m.Relay, m.To, m.Status, m.Subject, m.Service, m.Comment)
}

func (s *teller) lookup(_ context.Context, addr string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if names, ok := s.names[addr]; ok {
		return names, nil
	}
	return nil, errors.New("no such host")
}

func (s *teller) clock() string { return fmt.Sprintf("%6.2f", time.Since(s.began).Seconds()) }

func (s *teller) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.out, format+"\n", args...)
}

// change reads the words of somebody else's change.
func (s *teller) change(w []string) model.Change {
	k, err := model.ParseServiceKey(w[1] + " " + w[2])
	if err != nil {
		s.t.Fatal(err)
	}
	c := model.Change{Service: model.VirtualService{Key: k, Scheduler: "rr"}}
	if len(w) > 3 {
		c.Real.Addr = netip.MustParseAddrPort(w[3])
	}
	if len(w) > 5 {
		c.Real.Forward, _ = model.ParseForward(w[4])
		_, _ = fmt.Sscan(w[5], &c.Real.Weight)
	}
	for c.Op = model.ServiceAdd; c.Op < model.RealDelete && c.Op.String() != w[0]; c.Op++ {
	}
	return c
}
