package director

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batuta-ha/batuta/internal/check"
	"github.com/batuta-ha/batuta/internal/model"
)

const (
	retryFirst = time.Second // after the plane refused something; doubled each time
	retryLast  = time.Minute
	stopLimit  = 5 * time.Second // for the plane, when the director stops

	// idleWorkers is how many workers wait for the next check. More of them end
	// when their check has ended: thousands are started when thousands of
	// servers hang, and nobody needs them afterwards.
	idleWorkers = 64
)

// run is one run of a director. Its fields belong to the goroutine of Run;
// the others send it what happened.
type run struct {
	*Loop
	ctx  context.Context
	wg   sync.WaitGroup
	emit func(model.Event)

	changed chan error // the file has new content, or cannot be read
	loaded  chan loaded
	ended   chan hookEnd

	probers []*prober
	waiting schedule
	rand    *rand.Rand   // for jitter
	due     *time.Timer  // of the first prober in the schedule
	inbox   inbox        // verdicts
	poll    *check.Poll  // makes plain checks; nil for none
	jobs    chan job     // an idle worker receives, or none does
	idle    atomic.Int32 // workers that wait for a job

	loading  bool // Load runs
	reread   bool // and has to run again
	changing bool // it runs because the file changed: callback follows

	hookCtx    context.Context
	hooks      map[model.ServiceKey]*hook
	calling    bool // callback runs
	callAgain  bool
	retry      *time.Timer
	retryDelay time.Duration
	isReady    bool

	phase      phase
	reminder   *time.Timer
	monitors   monitors
	names      maintenance
	job        atomic.Pointer[maintenanceJob]
	maintained chan map[netip.AddrPort]string

	looking *time.Timer // the next look at the plane's table
	sights  chan sight
	seen    sight // the last one
	blind   bool  // the table could not be read

	growth   *time.Timer // the next step of slow starts
	counting *time.Timer // the next count of drained servers' connections
	counted  chan []model.ServiceCounters
	onDisk   string // what DrainFile has
	keeping  bool   // it is being written
	kept     chan kept
}

type loaded struct {
	director *model.Director
	err      error
}

type hookEnd struct {
	service *hook // nil for callback
	command string
	err     error
}

// job is one check for a worker.
type job struct {
	ctx    context.Context
	target *model.Target // not changed while the check runs
	from   *prober
}

// Run checks and balances until ctx ends, then takes the services with
// CleanStop out of the table (unless Keep) and returns nil. It returns an
// error only when the plane cannot be read at the start.
func (l *Loop) Run(ctx context.Context) error {
	have, err := l.cfg.Plane.Read(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("%s: read the table of the %s plane: %w", l, l.cfg.Plane.Info().Name, err)
	}
	work, stop := context.WithCancel(ctx)
	hookCtx, stopHooks := context.WithCancel(context.WithoutCancel(ctx))
	r := &run{
		Loop: l, ctx: work, hookCtx: hookCtx,
		inbox: inbox{full: make(chan struct{}, 1)}, changed: make(chan error), loaded: make(chan loaded), ended: make(chan hookEnd),
		rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), jobs: make(chan job), hooks: map[model.ServiceKey]*hook{},
		phase: phaseStarting, monitors: monitors{}, names: maintenance{lookup: l.cfg.LookupAddr},
		maintained: make(chan map[netip.AddrPort]string), counted: make(chan []model.ServiceCounters), kept: make(chan kept), sights: make(chan sight),
	}
	defer close(l.ended)
	r.emit = func(e model.Event) {
		e.At = time.Now()
		l.cfg.Sink(e)
	}
	for _, t := range []**time.Timer{&r.due, &r.retry, &r.reminder, &r.counting, &r.growth, &r.looking} {
		*t = time.NewTimer(time.Hour)
		(*t).Stop()
	}
	l.mu.Lock()
	l.st.adopt(have)
	l.mu.Unlock()

	r.recallDrains()
	r.setMaintenance()
	job := r.job.Load()
	out, _ := r.outOfService(job) // before the first check could bring them in
	l.mu.Lock()
	l.st.maintain(out, r.emit)
	l.mu.Unlock()
	r.apply()
	r.setProbers()
	r.looking.Reset(lookAtPlane)
	r.wg.Go(func() { r.maintain(job, out) })
	if file := l.cfg.Director.File; file != "" {
		r.wg.Go(func() { r.watch(file) })
	}
	r.loop()

	stop()
	if !l.cfg.Keep {
		r.withdraw()
	}
	grace := time.AfterFunc(hookGrace, stopHooks)
	r.drain()
	if text := r.st.drainText(); r.cfg.DrainFile != "" && text != r.onDisk {
		if err := writeDrains(r.cfg.DrainFile, text); err != nil {
			r.emit(drainsNotKept(err))
		}
	}
	r.monitors.flush()
	grace.Stop()
	stopHooks()
	return nil
}

// loop takes what happened, a batch at a time, decides once and applies once.
func (r *run) loop() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.due.C:
			r.checkDue()
		case <-r.inbox.full:
			if r.hear(r.inbox.take()) {
				r.apply()
			}
		case <-r.retry.C:
			r.apply()
		case <-r.growth.C:
			r.apply()
		case <-r.poke:
			if !r.Active() {
				for _, h := range r.hooks {
					h.sent = "" // they hear the state anew when it is our turn again
				}
			}
			r.runHooks()
		case <-r.reload:
			r.emit(event(model.LevelInfo, "reload", "", "Reloading Linux Director Daemon config on signal"))
			r.load()
		case err := <-r.changed:
			r.fileChanged(err)
		case l := <-r.loaded:
			r.take(l)
		case out := <-r.maintained:
			r.takeOut(out)
		case <-r.reminder.C:
			r.remindAgain()
		case o := <-r.asked:
			r.obey(o)
		case <-r.counting.C:
			r.count()
		case c := <-r.counted:
			r.countedDrains(c)
		case k := <-r.kept:
			r.tookDown(k)
		case <-r.looking.C:
			r.lookAtPlane()
		case s := <-r.sights:
			r.takeSight(s)
		case e := <-r.ended:
			r.hookEnded(e)
		}
	}
}

// hear takes verdicts in, and has their probers wait for the next check.
func (r *run) hear(list []heard) (decide bool) {
	now := time.Now()
	r.mu.Lock()
	var events []model.Event
	for _, h := range list {
		w := h.from
		if w.stop != nil {
			w.stop()
			w.stop = nil
		}
		if w.gone {
			continue
		}
		if h.verdict.Status != model.Up {
			w.connects = 0
		}
		decide = r.st.hear(w.probe, h.verdict, func(e model.Event) { events = append(events, e) }) || decide
		r.monitor(h)
		w.again(now, r.rand)
		r.waiting.add(w)
	}
	r.mu.Unlock()
	if r.cfg.Debug != nil {
		r.debug(list)
	}
	for _, e := range events {
		r.emit(e)
	}
	r.wakeForNext()
	return decide
}

// setProbers starts and stops probers so that there is one for each probe.
// Those that stay are not disturbed.
func (r *run) setProbers() {
	before := make(map[probeKey]*prober, len(r.probers))
	for _, w := range r.probers {
		before[w.key()] = w
	}
	r.probers = make([]*prober, len(r.st.probes))
	var fresh []*prober
	for i, p := range r.st.probes {
		w := before[p.key()]
		if w == nil {
			w = &prober{place: -1}
			fresh = append(fresh, w)
		}
		delete(before, p.key())
		w.probe = p
		r.probers[i] = w
	}
	for _, w := range before {
		w.gone = true
		r.waiting.remove(w)
		if w.stop != nil {
			w.stop()
		}
	}
	r.startPoll()
	spread(fresh, time.Now())
	for _, w := range fresh {
		r.waiting.add(w)
	}
	r.wakeForNext()
}

// startPoll starts what makes plain checks, once there are some. Without it
// workers make them, too.
func (r *run) startPoll() {
	if r.poll != nil || !r.polls {
		return
	}
	if slices.ContainsFunc(r.st.probes, func(p *probe) bool { return check.Pollable(p.target) || p.target.Kind == model.CheckCombined }) {
		r.poll, _ = check.NewPoll(r.ctx, func(list []check.Ended) {
			for _, e := range list {
				r.inbox.put(heard{e.Of.(*prober), e.Verdict})
			}
		})
	}
}

// wakeForNext sets the timer for the first prober that is due.
func (r *run) wakeForNext() {
	if len(r.waiting) > 0 {
		r.due.Reset(time.Until(r.waiting[0].at))
	}
}

// checkDue starts the checks that are due. Each ends in the inbox; one that
// takes long delays no other.
func (r *run) checkDue() {
	for {
		w := r.waiting.next(time.Now())
		if w == nil {
			break
		}
		r.check(w)
	}
	r.wakeForNext()
}

func (r *run) check(w *prober) {
	if r.st.resting(w.probe) {
		w.connects = 0
		r.inbox.put(heard{w, model.Verdict{Status: model.Down, Reason: inMaintenance, At: time.Now()}})
		return
	}
	t := w.part()
	if r.poll != nil && check.Pollable(t) {
		r.poll.Start(w, t)
		return
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(r.ctx)
	r.work(job{ctx, t, w})
}

// work has a worker make a check. Checks need deep stacks, which goroutines
// keep: so a worker makes many.
func (r *run) work(j job) {
	select {
	case r.jobs <- j:
	default: // nobody is idle
		r.wg.Go(func() { r.worker(j) })
	}
}

// worker makes a check, and then others.
func (r *run) worker(j job) {
	for {
		r.inbox.put(heard{j.from, check.Perform(j.ctx, r.cfg.Check(*j.target), *j.target)})
		if r.idle.Add(1) > idleWorkers {
			r.idle.Add(-1)
			return
		}
		select {
		case j = <-r.jobs:
			r.idle.Add(-1)
		case <-r.ctx.Done():
			return
		}
	}
}

// maintain looks at the maintenance directory for as long as the director runs.
func (r *run) maintain(job *maintenanceJob, last map[netip.AddrPort]string) {
	for wait := maintainEvery * 2 / 5; sleepUntil(r.ctx, time.Now().Add(wait)); {
		wait = maintainEvery
		now := r.job.Load()
		out, err := r.outOfService(now)
		if err != nil || now == job && maps.Equal(out, last) {
			continue // a directory that cannot be read: what it said last counts
		}
		job, last = now, out
		select {
		case r.maintained <- out:
		case <-r.ctx.Done():
			return
		}
	}
}

// outOfService looks at the directory once, and looks up names as far as it
// matters, for nameLimit at most.
func (r *run) outOfService(j *maintenanceJob) (map[netip.AddrPort]string, error) {
	files, err := j.files()
	if err != nil || len(files) == 0 {
		return nil, err
	}
	if byName(files) {
		ctx, cancel := context.WithTimeout(r.ctx, nameLimit)
		defer cancel()
		var wg sync.WaitGroup
		turn := make(chan struct{}, namesAtOnce)
		for _, a := range r.names.stale(j.reals, time.Now()) {
			wg.Go(func() {
				turn <- struct{}{}
				r.names.resolve(ctx, a)
				<-turn
			})
		}
		wg.Wait()
	}
	return r.names.find(j.reals, files), nil
}

// count counts the connections of drained servers, off this goroutine.
func (r *run) count() {
	r.wg.Go(func() {
		c, _ := r.cfg.Plane.Counters(r.ctx) // without an answer deadlines pass all the same
		select {
		case r.counted <- c:
		case <-r.ctx.Done():
		}
	})
}

// lookAtPlane reads the plane's table, off this goroutine.
func (r *run) lookAtPlane() {
	gen := r.st.gen
	r.wg.Go(func() {
		start := time.Now()
		t, err := r.cfg.Plane.Read(r.ctx)
		select {
		case r.sights <- sight{t, err, time.Since(start), gen}:
		case <-r.ctx.Done():
		}
	})
}

// keepDrains writes down which real servers are drained, off this goroutine:
// nobody waits for a disk.
func (r *run) keepDrains() {
	text := r.st.drainText()
	if r.cfg.DrainFile == "" || r.keeping || text == r.onDisk {
		return
	}
	r.keeping = true
	r.wg.Go(func() {
		k := kept{text, writeDrains(r.cfg.DrainFile, text)}
		select {
		case r.kept <- k:
		case <-r.ctx.Done():
		}
	})
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch looks at the configuration file for as long as the director runs.
func (r *run) watch(file string) {
	w := watcher{name: file}
	w.known, _ = lookAt(file, look{})
	for wait := lookEvery; sleepUntil(r.ctx, time.Now().Add(wait)); {
		changed, again, err := w.step()
		wait = lookEvery
		if again {
			wait = lookAgain
		}
		if changed || err != nil {
			select {
			case r.changed <- err:
			case <-r.ctx.Done():
				return
			}
		}
	}
}

// load reads the configuration, away from this goroutine: names in it are
// looked up, and that may take time.
func (r *run) load() {
	switch {
	case r.cfg.Load == nil:
		r.emit(event(model.LevelWarning, "reload-failed", "", "This configuration cannot be read again; it stays as it is"))
		return
	case r.loading:
		r.reread = true
		return
	}
	r.loading = true
	r.wg.Go(func() {
		d, err := r.cfg.Load()
		if err == nil {
			err = validate(d)
		}
		select {
		case r.loaded <- loaded{d, err}:
		case <-r.ctx.Done():
		}
	})
}

// shell runs a hook's command line and reports its end.
func (r *run) shell(h hookEnd) {
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.hookCtx, hookLimit)
		defer cancel()
		h.err = r.cfg.Shell(ctx, h.command)
		r.ended <- h // until the last has ended, drain receives
	})
}

// drain waits for all goroutines of this run.
func (r *run) drain() {
	done := make(chan struct{})
	go func() {
		r.wg.Wait()
		if r.poll != nil {
			r.poll.Wait()
		}
		close(done)
	}()
	for {
		select {
		case e := <-r.ended:
			if e.err != nil {
				r.emit(hookFailed(e.command, e.err))
			}
		case <-done:
			return
		}
	}
}
