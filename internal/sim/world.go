package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// Seen is what a simulation was like, broken promises aside.
type Seen struct {
	Steps     int           // of the event heap
	Sent      int           // datagrams
	Lost      int           // of them, on one link or another
	Deaths    int           // declared
	Takeovers int           // resources that started on the other node than before
	Splits    int           // deaths declared of a machine that had not died
	Doubled   time.Duration // for how long a resource ran twice meanwhile
	Settling  time.Duration // from the last fault until all was well
	Bound     float64       // the part of settleBound that this was
	Passed    time.Duration // virtual time
}

// add makes s the sum of both; of Settling and Bound it is the greater one.
func (s *Seen) add(o Seen) {
	s.Steps += o.Steps
	s.Sent += o.Sent
	s.Lost += o.Lost
	s.Deaths += o.Deaths
	s.Takeovers += o.Takeovers
	s.Splits += o.Splits
	s.Doubled += o.Doubled
	s.Settling = max(s.Settling, o.Settling)
	s.Bound = max(s.Bound, o.Bound)
	s.Passed += o.Passed
}

// Result is the outcome of one simulation.
type Result struct {
	Seen
	Broken []string // promises that were not kept, in order of time
}

// world is the simulation in progress.
type world struct {
	Schedule
	cfg    *Config
	now    time.Time
	begin  time.Time
	agenda agenda
	rng    *rand.Rand
	hosts  [2]*host
	net    *network
	groups []model.ResourceGroup
	owner  map[string]int // node of a resource by haresources
	check  *checks
	seen   Seen
	trace  io.Writer
}

// Run carries out a schedule. What happens is written to trace unless that is nil.
func Run(s Schedule, trace io.Writer) Result {
	epoch := time.Unix(1_800_000_000, 0).UTC()
	w := &world{Schedule: s, now: epoch, begin: epoch, rng: rand.New(rand.NewPCG(s.Seed, 0x6261747574610002)),
		owner: map[string]int{}, trace: trace}
	w.cfg = &w.Config
	for _, g := range s.Config.Groups {
		group := model.ResourceGroup{Owner: nodeNames[g.Owner]}
		for _, r := range g.Resources {
			group.Resources = append(group.Resources, model.Resource{Agent: r[:len(r)-len("::0.0.0")], Args: []string{r}, Text: r})
			w.owner[r] = g.Owner
		}
		w.groups = append(w.groups, group)
	}
	w.net = newNetwork(w)
	w.check = newChecks(w)
	for i := range w.hosts {
		w.hosts[i] = newHost(w, i)
	}
	for _, h := range w.hosts {
		w.after(time.Duration(w.rng.Int64N(int64(3*w.cfg.Keepalive))), h.boot)
	}
	for _, f := range s.Faults {
		w.after(f.At, func() { w.happen(f) })
	}
	w.check.watch()
	w.run(epoch.Add(s.Quiet))
	w.say("--- the last fault is over")
	if s.Down > 0 {
		w.hosts[s.Down-1].reset()
		w.hosts[s.Down-1].off = true
	}
	if s.Blind > 0 {
		w.net.hide(s.Blind-1, -1, 1)
	}
	w.settle()
	w.seen.Passed = w.now.Sub(w.begin)
	return Result{w.seen, w.check.list}
}

// settle waits until all is well, and then some more: it must remain so.
func (w *world) settle() {
	quiet := w.now
	limit := w.settleBound()
	w.run(w.now.Add(max(time.Second, w.cfg.DeadTime, w.cfg.SuspectTime))) // what is under way shows by then
	for times := 0; times < 3 && !w.check.endless; {
		if times++; !w.check.well() {
			times = 0
		}
		if times == 0 && w.now.Sub(quiet) > limit {
			w.check.broken("%v after the last fault all is not well: %s", limit, w.state())
			return
		}
		w.run(w.now.Add(max(w.cfg.Keepalive, 50*time.Millisecond)))
	}
	w.seen.Settling = w.now.Sub(quiet)
	w.seen.Bound = w.seen.Settling.Seconds() / limit.Seconds()
	w.say("--- all is well: %s", w.state())
	w.check.settled = true
	w.run(w.now.Add(2*w.cfg.DeadTime + 2*time.Second))
	if !w.check.well() {
		w.check.broken("all was well, and no longer is: %s", w.state())
	}
}

// settleBound is how long after the last fault all must be well again: the
// longest silence that is waited for, all scripts twice, what is waited for
// after a failed script, in quarantine and for ping nodes, and two and a half
// of the protocol's waits of 10 s.
func (w *world) settleBound() time.Duration {
	c := w.cfg
	scripts := 2 * time.Duration(len(w.owner)) * c.Script
	if w.has(Slow) {
		scripts *= 10
	}
	bound := max(c.InitDead, c.DeadTime, c.SuspectTime) + 3*c.Keepalive + scripts + 25*time.Second
	if w.has(BadStart, BadStop) {
		bound += 30 * time.Second // as long as a failed start is left alone
	}
	if c.Flaps > 0 {
		bound += flapHold
	}
	if c.Ipfail {
		bound += c.DeadPing + c.ipfailWait()
	}
	if c.Fence > 0 {
		// Resets under way when their node is back make the next wait: three rounds.
		bound += 3*(c.Fence+c.Boot+max(c.InitDead, c.DeadTime)) + 70*time.Second
	}
	return bound
}

// run lets time pass.
func (w *world) run(until time.Time) {
	for len(w.agenda.heap) > 0 && !w.check.endless && !w.agenda.heap[0].at.After(until) {
		e := w.agenda.take()
		w.now = e.at
		w.seen.Steps++
		e.do()
	}
	w.now = until
}

func (w *world) at(t time.Time, do func()) {
	if t.Before(w.now) {
		t = w.now
	}
	w.agenda.add(t, do)
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now.Add(d), do) }

// jitter is how late a process is that wants to run.
func (w *world) jitter() time.Duration {
	return time.Duration(w.rng.Int64N(int64(200 * time.Microsecond)))
}

func (w *world) scriptTime() time.Duration {
	return time.Millisecond + time.Duration(w.rng.Int64N(int64(w.cfg.Script+1)))
}

// setOf names the set of a resource in a host's terms.
func (w *world) setOf(h *host, resource string) string {
	if w.owner[resource] == h.index {
		return pair.Local.String()
	}
	return pair.Foreign.String()
}

// keys are what both nodes authenticate with.
func (w *world) keys() model.Keyring {
	return model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: w.cfg.Auth, Secret: "secret"}}}
}

func (w *world) say(format string, args ...any) {
	if w.trace != nil {
		_, _ = fmt.Fprintf(w.trace, "%9.4f %s\n", w.now.Sub(w.begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

// state is both nodes in one line.
func (w *world) state() string {
	var nodes []string
	for _, h := range w.hosts {
		state := "off"
		switch {
		case h.daemon != nil:
			state = h.daemon.crm.String()
		case h.up:
			state = "without daemon"
		}
		nodes = append(nodes, fmt.Sprintf("%s %s runs %v", h.name, state, sorted(h.runs)))
	}
	return strings.Join(nodes, "; ")
}

// happen carries out a fault, and takes care that it ends.
func (w *world) happen(f Fault) {
	h := w.hosts[max(0, f.Node)]
	w.say("--- %v", f)
	end := func(do func()) { w.after(f.For, do) }
	switch f.Kind {
	case Kill:
		h.kill()
		end(h.boot)
	case Reset:
		h.reset()
		end(h.boot)
	case Hollow:
		h.reset()
		if h.w.cfg.SuspectTime > 0 {
			w.after(f.For/10, h.wake)
		}
		end(h.boot)
	case Amnesia:
		h.kill()
		h.stored = 0
		clear(h.floors)
		w.check.amnesia(h)
		end(h.boot)
	case Stop:
		h.wish(pair.Stop{})
		w.restart(h, f.For)
	case Pause:
		h.away(&h.paused, f.For)
	case Freeze:
		h.away(&h.frozen, f.For)
	case Cut:
		w.net.block(f.Node, f.Link, 1)
		end(func() { w.net.block(f.Node, f.Link, -1) })
	case Split:
		w.net.block(0, -1, 1)
		w.net.block(1, -1, 1)
		end(func() { w.net.block(0, -1, -1); w.net.block(1, -1, -1) })
	case PingCut:
		w.net.hide(f.Node, f.Link, 1)
		end(func() { w.net.hide(f.Node, f.Link, -1) })
	case Noise:
		w.net.noise = f.Part
		end(func() { w.net.noise = 0 })
	case Clock:
		h.clock += f.For
	case BadStart:
		h.fail(h.badStart, f.Set, 1)
		end(func() { h.fail(h.badStart, f.Set, -1) })
	case BadStop:
		h.fail(h.badStop, f.Set, 1)
		end(func() { h.fail(h.badStop, f.Set, -1) })
	case Slow:
		h.slow++
		end(func() { h.slow-- })
	case Standby:
		if s, err := pair.ParseStandby(f.Set); err == nil {
			h.wish(pair.Standby{Set: s})
		}
	case Takeover:
		if s, err := pair.ParseTakeover(f.Set); err == nil {
			h.wish(pair.Takeover{Set: s})
		}
	}
}

// restart starts a daemon that was told to stop once it has.
func (w *world) restart(h *host, later time.Duration) {
	w.after(later, func() {
		if h.daemon != nil && h.daemon.told {
			w.restart(h, time.Second)
			return
		}
		h.boot()
	})
}
