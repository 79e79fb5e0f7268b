package sim

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/crm"
	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// daemon is one life of the program on a host: the two cores, and what their
// loops do in the real program (messenger/loop.go, crm/loop.go).
type daemon struct {
	h          *host
	generation uint32
	born       time.Time

	msgr   *messenger.Core
	socket []packet // received by the kernel, not read yet
	outbox []model.Message
	timer  time.Time       // when the messenger is to be woken
	heard  time.Time       // when the latest beat was sent that the kernel received
	floor  heartbeat.Floor // how far an earlier life has heard the other

	crm      *crm.Core
	events   []model.ClusterEvent
	view     model.View // as it was with the latest event taken
	ready    bool       // the probe has ended: events are taken
	crmTimer time.Time
	told     bool // to stop
	stopping bool // and has

	// The operation or probe under way, as a coroutine.
	resume func() (task, bool)
	abort  func()
	yield  func(task) bool
	turn   int // counts tasks, so that one that was given up is known
	over   bool
	fences int             // attempts under way to reset the other machine
	begun  context.Context // of the running start: ends when it is overtaken
	expire context.CancelCauseFunc
	doomed bool
}

// packet is a datagram, the link it came by and when.
type packet struct {
	link string
	data []byte
	at   time.Time
	beat time.Time // when it was sent, if it is a fresh beat
}

// task is one thing that takes time; its effect happens at the end, unless the
// daemon dies meanwhile.
type task struct {
	takes  time.Duration
	effect func()
}

const socketRoom = 1024 // packets that the kernel keeps for a daemon that does not read

var errKilled = errors.New("the daemon has died")

func newDaemon(h *host, generation uint32) (*daemon, error) {
	w := h.w
	d := &daemon{h: h, generation: generation, born: w.now, floor: h.floors[h.peer().name]}
	cfg := w.cfg
	hb := model.Heartbeat{Self: h.name, Nodes: nodeNames[:], Keepalive: cfg.Keepalive, WarnTime: cfg.WarnTime, DeadTime: cfg.DeadTime,
		InitDead: cfg.InitDead, SuspectTime: cfg.SuspectTime, Flaps: cfg.Flaps, FlapWindow: time.Minute, FlapHold: flapHold, MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1, Failback: cfg.Failback,
		Keys: w.keys()}
	for _, name := range w.net.pings {
		hb.Media = append(hb.Media, model.Medium{Kind: model.Ping, Name: name})
	}
	hb.DeadPing = cfg.DeadPing
	boot := ""
	if cfg.SuspectTime > 0 {
		boot = h.run().String()
	}
	var e1, e2 error
	d.msgr, e1 = messenger.NewCore(heartbeat.Config{Heartbeat: hb, Generation: generation, UUID: [16]byte{byte(h.index + 1)},
		Rand: rand.New(rand.NewPCG(w.rng.Uint64(), 1)), Wall: h.wall, Boot: boot, Floors: h.floors})
	var fence func(context.Context, model.NodeName) error
	if cfg.Fence > 0 {
		fence = func(context.Context, model.NodeName) error { return nil } // that there is one is all the core wants of it; see daemon.fence
	}
	d.crm, e2 = crm.NewCore(crm.Config{Fence: fence, Self: h.name, Peer: h.peer().name, Nodes: nodeNames[:], Groups: w.groups, Failback: cfg.Failback, Ipfail: cfg.ipfailWait(),
		Agents: func(r model.Resource) (agent.Agent, error) { return resource{d, r.Text}, nil },
		Send: func(m model.Message) error {
			d.outbox = append(d.outbox, m)
			d.at(w.now, d.run)
			return nil
		},
		Sink: d.log}, d)
	return d, errors.Join(e1, e2)
}

func (d *daemon) begin() {
	d.do(d.msgr.Start)
	d.work(func() {
		found := d.crm.Probe(context.Background())
		d.at(d.h.w.now, func() {
			d.ready = true
			d.crm.Step(pair.Found{Set: found})
			d.after()
		})
	})
}

func (d *daemon) end() {
	d.over = true
	if d.abort != nil {
		d.abort()
	}
}

func (d *daemon) log(e model.Event) {
	if !d.over {
		d.h.w.say("%s: %s: %s", d.h.name, e.Level, e.Text)
		d.h.w.check.noted(d.h, e)
	}
}

// at has something done by this daemon, when it runs.
func (d *daemon) at(t time.Time, do func()) {
	d.h.w.at(t, func() {
		switch {
		case d.over:
		case d.h.w.now.Before(d.h.idle()):
			d.at(d.h.idle(), do)
		default:
			do()
		}
	})
}

// atHost has something done by a process of the host that is not the daemon itself.
func (d *daemon) atHost(t time.Time, do func()) {
	d.h.w.at(t, func() {
		switch {
		case d.over:
		case d.h.w.now.Before(d.h.halted()):
			d.atHost(d.h.halted(), do)
		default:
			do()
		}
	})
}

// arrive is the kernel's part of receiving.
func (d *daemon) arrive(p packet) {
	if len(d.socket) == socketRoom {
		return
	}
	if len(d.socket) == 0 {
		d.at(d.h.w.now.Add(d.h.w.jitter()), d.run)
	}
	d.socket = append(d.socket, p)
	if p.beat.After(d.heard) {
		d.heard = p.beat
	}
}

// run is one round of the messenger's loop: packets, messages, time.
func (d *daemon) run() {
	socket := d.socket
	d.socket = nil
	for _, p := range socket {
		d.do(func(now time.Time) messenger.Output {
			return d.msgr.Receive(now, p.link, p.data, p.at)
		})
	}
	outbox := d.outbox
	d.outbox = nil
	for _, m := range outbox {
		d.do(func(now time.Time) messenger.Output { return d.msgr.Send(now, m) })
	}
	for range 100 {
		if next := d.msgr.Next(); next.After(d.h.w.now) {
			return
		}
		d.do(d.msgr.Tick)
	}
	d.h.w.check.broken("%s: the messenger's deadline does not move", d.h.name)
}

// do takes one step of the messenger and carries out what it wants.
func (d *daemon) do(step func(time.Time) messenger.Output) {
	out := step(d.h.w.now)
	if out.Renewed != 0 {
		d.h.stored = out.Renewed
	}
	for _, f := range out.Heard {
		d.h.floors[f.Node] = f.Floor
	}
	for _, b := range out.Datagrams {
		d.h.w.net.send(d.h, bytes.Clone(b)) // the messenger uses its memory again
	}
	for _, p := range out.Probes {
		d.h.w.net.probe(d.h, string(p.Node), p.Data)
	}
	for _, q := range out.Asks {
		d.h.w.net.ask(d.h, q)
	}
	for _, n := range out.Notes {
		d.log(n)
	}
	for _, e := range out.Events {
		d.h.w.check.event(d.h, e)
		d.events = append(d.events, e)
	}
	if len(out.Events) > 0 && d.ready {
		d.at(d.h.w.now.Add(d.h.w.jitter()), d.take)
	}
	d.arm()
}

// arm sees to it that the messenger is woken when it wants to be.
func (d *daemon) arm() {
	next := d.msgr.Next()
	if !d.timer.IsZero() && !next.Before(d.timer) {
		return
	}
	d.timer = next
	d.at(next.Add(d.h.w.jitter()), func() {
		if d.timer.Equal(next) {
			d.timer = time.Time{}
		}
		d.run()
		d.arm()
	})
}

// take is one round of the resource manager's loop.
func (d *daemon) take() {
	for len(d.events) > 0 {
		e := d.events[0]
		d.events = d.events[1:]
		if e.Kind == model.MessageReceived && e.Message.Type != "status" {
			d.h.w.say("%s: hears %v", d.h.name, e.Message)
		}
		d.view = e.View
		d.crm.Step(pair.Cluster{ClusterEvent: e})
	}
	d.after()
}

// wish is the operator's.
func (d *daemon) wish(in pair.Input) {
	if _, stop := in.(pair.Stop); stop {
		d.told = true
	}
	if !d.ready {
		d.at(d.h.w.now.Add(10*time.Millisecond), func() { d.wish(in) })
		return
	}
	d.at(d.h.w.now, func() { d.crm.Step(in); d.after() })
}

// after does what a step of the resource manager has led to.
func (d *daemon) after() {
	w := d.h.w
	if len(d.events) > 0 {
		d.at(w.now.Add(w.jitter()), d.take)
	}
	if d.begun != nil && d.begun.Err() != nil && !d.doomed {
		d.doomed = true
		turn, expire := d.turn, d.expire
		d.at(w.now.Add(crm.StartGrace), func() {
			expire(errKilled)
			if d.turn == turn && d.resume != nil {
				d.proceed() // the script is killed
			}
		})
	}
	if d.crm.Fence() {
		d.fence()
	}
	if d.resume == nil {
		if j := d.crm.Begin(); j != nil {
			d.work(func() {
				f := d.crm.Perform(context.Background(), j)
				d.at(w.now, func() { d.crm.Finish(f); d.after() })
			})
		}
	}
	if next := d.crm.Next(); !next.IsZero() && !next.Equal(d.crmTimer) {
		d.crmTimer = next
		d.at(next.Add(w.jitter()), func() {
			if d.crmTimer.Equal(next) {
				d.crmTimer = time.Time{}
				d.crm.Step(pair.Tick{})
				d.after()
			}
		})
	}
	if left, ended := d.crm.Stopped(); ended && !d.stopping {
		d.stopping = true
		w.say("%s: stopped, left %v", d.h.name, left)
		d.at(w.now.Add(2*time.Second), func() {
			d.h.answers = nil
			d.h.kill()
		})
	}
}

// fence resets the other machine and is told of it. Some attempts fail, and
// some of them only seem to.
func (d *daemon) fence() {
	w, peer := d.h.w, d.h.peer()
	result := pair.Fenced{}
	if w.now.Sub(w.begin) < w.Quiet && w.rng.IntN(3) == 0 {
		result.Failure = "the switch does not answer"
	}
	works := result.Failure == "" || w.rng.IntN(2) == 0
	d.fences++
	part := func() time.Time { return w.now.Add(time.Duration(w.rng.Int64N(int64(w.cfg.Fence / 2)))) }
	d.atHost(part(), func() {
		if works {
			w.say("--- %s is reset", peer.name)
			clear(w.check.moves) // a new fault
			peer.reset()
			w.after(w.cfg.Boot, peer.boot)
		}
		d.atHost(part(), func() {
			d.fences--
			d.at(w.now, func() { d.crm.Step(result); d.after() })
		})
	})
}

// work runs body as a coroutine that gives way wherever it waits.
func (d *daemon) work(body func()) {
	d.resume, d.abort = iter.Pull(func(yield func(task) bool) {
		d.yield = yield
		body()
	})
	d.proceed()
}

// proceed goes on with the coroutine until it waits again or ends.
func (d *daemon) proceed() {
	t, more := d.resume()
	d.turn++
	if !more {
		d.resume, d.abort, d.yield = nil, nil, nil
		return
	}
	turn := d.turn
	d.atHost(d.h.w.now.Add(t.takes), func() {
		if d.turn != turn {
			return
		}
		if t.effect != nil {
			t.effect()
		}
		d.at(d.h.w.now, func() {
			if d.turn == turn {
				d.proceed()
			}
		})
	})
}

// wait is called by the coroutine.
func (d *daemon) wait(ctx context.Context, takes time.Duration, effect func()) error {
	if d.over {
		return errKilled
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !d.yield(task{takes, effect}) {
		d.over = true
		return errKilled
	}
	return context.Cause(ctx)
}

// Now, Pause and Limit make a daemon the Hand of its resource manager.

func (d *daemon) Now() time.Time { return d.h.w.now }

func (d *daemon) Pause(ctx context.Context, t time.Duration) bool { return d.wait(ctx, t, nil) == nil }

func (d *daemon) Limit(ctx, begin context.Context) (context.Context, context.CancelFunc) {
	ctx, d.expire = context.WithCancelCause(ctx)
	d.begun, d.doomed = begin, false
	return ctx, func() { d.begun = nil }
}

// resource is an agent whose resource is a flag of the host.
type resource struct {
	d    *daemon
	name string
}

var errScript = errors.New("exit status 1")

func (r resource) takes() time.Duration {
	t := r.d.h.w.scriptTime()
	if r.d.h.slow > 0 {
		t *= 10
	}
	return t
}

func (r resource) Start(ctx context.Context) error {
	h, fails := r.d.h, false
	err := r.d.wait(ctx, r.takes(), func() {
		if fails = h.badStart[h.w.setOf(h, r.name)] > 0; !fails {
			h.set(r.name, true)
		}
	})
	if err == nil && fails {
		err = errScript
	}
	return err
}

func (r resource) Stop(ctx context.Context) error {
	h, fails := r.d.h, false
	err := r.d.wait(ctx, r.takes(), func() {
		if fails = h.runs[r.name] && h.badStop[h.w.setOf(h, r.name)] > 0; fails {
			h.stuck[r.name] = true
			return
		}
		h.set(r.name, false)
	})
	if err == nil && fails {
		err = errScript
	}
	return err
}

func (r resource) Status(ctx context.Context) (model.ResourceState, error) {
	if err := r.d.wait(ctx, 100*time.Microsecond, nil); err != nil {
		return model.ResourceUnknown, err
	}
	if r.d.h.runs[r.name] {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}
