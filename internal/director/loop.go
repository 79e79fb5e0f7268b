package director

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/check"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

const (
	// startSpacing is the time between the first checks of two targets: small
	// enough that the first verdicts come at once, and enough that ten
	// thousand connections are not opened in one instant.
	startSpacing = 50 * time.Microsecond

	retryFirst = time.Second // after the plane refused something; doubled each time
	retryLast  = time.Minute
	stopLimit  = 5 * time.Second // for the plane, when the director stops
)

// run is one run of a director. Its fields belong to the goroutine of Run;
// the others send it what happened.
type run struct {
	*Loop
	ctx  context.Context
	wg   sync.WaitGroup
	emit func(model.Event)

	heard   chan heard
	changed chan error // the file has new content, or cannot be read
	loaded  chan loaded
	ended   chan hookEnd

	probes  map[probe]*prober
	loading bool // Load runs
	reread  bool // and has to run again
	onDisk  bool // it runs because the file changed: callback follows

	hookCtx    context.Context
	hooks      map[model.ServiceKey]*hook
	calling    bool // callback runs
	callAgain  bool
	retry      *time.Timer
	retryDelay time.Duration
	isReady    bool
}

type heard struct {
	from    *prober
	verdict model.Verdict
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

// prober is the goroutine of one probe.
type prober struct {
	probe
	cancel context.CancelFunc
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
		heard: make(chan heard, 64), changed: make(chan error), loaded: make(chan loaded), ended: make(chan hookEnd),
		probes: map[probe]*prober{}, hooks: map[model.ServiceKey]*hook{},
	}
	r.emit = func(e model.Event) {
		e.At = time.Now()
		l.cfg.Sink(e)
	}
	r.retry = time.NewTimer(retryLast)
	r.retry.Stop()
	l.mu.Lock()
	l.st.adopt(have)
	l.mu.Unlock()

	r.apply()
	r.setProbes()
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
		case h := <-r.heard:
			if r.hear(h) {
				r.apply()
			}
		case <-r.retry.C:
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
		case e := <-r.ended:
			r.hookEnded(e)
		}
	}
}

// hear takes this verdict and all that came with it.
func (r *run) hear(h heard) (decide bool) {
	r.mu.Lock()
	var events []model.Event
	for more := true; more; {
		if r.probes[h.from.probe] == h.from { // else it was stopped by a reload
			decide = r.st.hear(h.from.probe, h.verdict, func(e model.Event) { events = append(events, e) }) || decide
		}
		select {
		case h = <-r.heard:
		default:
			more = false
		}
	}
	r.mu.Unlock()
	for _, e := range events {
		r.emit(e)
	}
	return decide
}

// apply brings the plane to the desired table, as far as what is believed has
// changed since the last time, and tells and runs what follows from it.
func (r *run) apply() {
	st := r.st
	if !st.fresh && len(balance.Diff(st.last, st.desired(st.have))) == 0 {
		r.settled()
		return
	}
	have, err := r.cfg.Plane.Read(r.ctx)
	if err != nil {
		r.again(fmt.Errorf("read the table: %w", err))
		return
	}
	want := st.desired(have)
	target := want
	if !st.fresh {
		target = balance.Rebase(st.last, want, have, st.readd)
	}
	changes := balance.Diff(have, target)
	var failed map[int]error
	if len(changes) > 0 {
		if err := r.cfg.Plane.Apply(r.ctx, changes); err != nil {
			if failed, err = refusals(changes, err); err != nil {
				r.again(err)
				return
			}
		}
	}
	r.mu.Lock()
	st.record(have, want, changes, failed)
	r.mu.Unlock()
	for n, c := range changes {
		if failed[n] == nil {
			delete(st.refused, c.String())
			r.emit(st.changed(c, starting))
		}
	}
	r.tellRefused(changes, failed)
	if len(failed) > 0 {
		r.schedule()
	} else {
		r.retry.Stop()
		r.retryDelay = 0
	}
	r.settled()
}

// settled does what waits for the table: hooks, and Ready.
func (r *run) settled() {
	r.runHooks()
	if !r.isReady && r.st.settled() {
		r.isReady = true
		close(r.ready)
	}
}

// refusals sorts an error of Apply: which changes were refused, or what else
// is wrong with the plane.
func refusals(changes []model.Change, err error) (map[int]error, error) {
	byText := map[string]error{}
	var walk func(error) error
	walk = func(err error) error {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			var other error
			for _, e := range joined.Unwrap() {
				other = errors.Join(other, walk(e))
			}
			return other
		}
		if row, ok := errors.AsType[*plane.RowError](err); ok {
			byText[row.Change.String()] = row.Err
			return nil
		}
		return err
	}
	if other := walk(err); other != nil {
		return nil, other
	}
	failed := map[int]error{}
	for n, c := range changes {
		if e := byText[c.String()]; e != nil {
			failed[n] = e
		}
	}
	return failed, nil
}

// tellRefused tells of each refusal once, and of a refused service not again
// for each of its rows.
func (r *run) tellRefused(changes []model.Change, failed map[int]error) {
	services := map[model.ServiceKey]bool{}
	for n, c := range changes {
		err := failed[n]
		if err == nil || services[c.Service.Key] {
			continue
		}
		services[c.Service.Key] = c.Op == model.ServiceAdd
		if text := err.Error(); r.st.refused[c.String()] != text {
			r.st.refused[c.String()] = text
			r.emit(applyFailed(c, err))
		}
	}
}

// again tells that the plane as a whole failed, and tries later.
func (r *run) again(err error) {
	if r.ctx.Err() != nil {
		return
	}
	if r.retryDelay == 0 {
		r.emit(event(model.LevelError, "plane-failed", "", "The %s plane failed and will be asked again: %v", r.cfg.Plane.Info().Name, err))
	}
	r.schedule()
}

func (r *run) schedule() {
	r.retryDelay = min(max(2*r.retryDelay, retryFirst), retryLast)
	r.retry.Reset(r.retryDelay)
}

// setProbes starts and stops goroutines so that there is one for each probe.
// Those that stay are not disturbed.
func (r *run) setProbes() {
	for p, w := range r.probes {
		if _, stays := r.st.users[p]; !stays {
			w.cancel()
			delete(r.probes, p)
		}
	}
	var fresh []*prober
	for _, p := range r.st.probes {
		if r.probes[p] == nil {
			w := &prober{probe: p}
			r.probes[p] = w
			fresh = append(fresh, w)
		}
	}
	for n, w := range fresh {
		ctx, cancel := context.WithCancel(r.ctx)
		w.cancel = cancel
		// The second checks are spread over the interval, the others follow.
		second := w.interval * time.Duration(n+1) / time.Duration(len(fresh))
		r.wg.Go(func() { r.prober(ctx, w, time.Duration(n)*startSpacing, second) })
	}
}

// prober checks one target again and again. A check that takes longer than
// the interval is followed by the next at once; no other is delayed by it.
func (r *run) prober(ctx context.Context, w *prober, first, second time.Duration) {
	start := time.Now()
	next := start.Add(first)
	rest := 0 // connects to make before the next negotiate, for combined checks
	for n := 0; ; n++ {
		if !sleepUntil(ctx, next) {
			return
		}
		var v model.Verdict
		v, rest = r.once(ctx, w.target, rest)
		if ctx.Err() != nil {
			return
		}
		select {
		case r.heard <- heard{w, v}:
		case <-ctx.Done():
			return
		}
		if n == 0 {
			next = start.Add(max(first, second))
		} else {
			next = next.Add(w.interval)
		}
		if now := time.Now(); next.Before(now) {
			next = now
		}
	}
}

// once makes one check, of a combined one the part that is due: after each
// negotiate that succeeds Connects connects, and after any failure negotiate.
func (r *run) once(ctx context.Context, t model.Target, rest int) (v model.Verdict, next int) {
	if t.Kind != model.CheckCombined {
		return check.Perform(ctx, r.cfg.Check(t), t), 0
	}
	if next, t.Kind = rest-1, model.CheckConnect; rest == 0 {
		next, t.Kind = t.Connects, model.CheckNegotiate
	}
	v = check.Perform(ctx, r.cfg.Check(t), t)
	if v.Status != model.Up {
		next = 0
	}
	return v, next
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

// fileChanged does what the file's new content asks for.
func (r *run) fileChanged(err error) {
	d := &r.st.director
	if err != nil {
		r.emit(event(model.LevelWarning, "file-unreadable", d.File, "Configuration file '%s' cannot be read, the running configuration stays: %v", d.File, err))
		return
	}
	r.emit(event(model.LevelInfo, "file-changed", d.File, "Configuration file '%s' has changed on disk", d.File))
	if d.AutoReload {
		r.emit(event(model.LevelInfo, "file-reread", d.File, " - reread new configuration"))
		r.onDisk = true
		r.load()
		return
	}
	r.emit(event(model.LevelInfo, "file-ignored", d.File, " - ignore new configuration"))
	r.runCallback()
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

// take puts a configuration into force that was read, if it is right.
func (r *run) take(l loaded) {
	r.loading = false
	if r.reread {
		r.reread = false
		r.load()
		return
	}
	onDisk := r.onDisk
	r.onDisk = false
	if l.err != nil {
		r.emit(event(model.LevelError, "reload-failed", r.st.director.File,
			"The new configuration has errors and is not used, the running one stays in force: %v", l.err))
	} else {
		have, err := r.cfg.Plane.Read(r.ctx)
		if err != nil {
			have = r.st.have // apply reads again and tells
		}
		r.mu.Lock()
		r.st.configure(*l.director, have)
		r.mu.Unlock()
		r.setProbes()
		r.apply()
	}
	if onDisk {
		r.runCallback()
	}
}

// runHooks runs each fallbackcommand that has not heard the present state,
// one at a time for a service, off this goroutine.
func (r *run) runHooks() {
	if !r.Active() {
		return
	}
	st := r.st
	for k, h := range r.hooks {
		if _, ok := st.index[k]; !ok && !h.running {
			delete(r.hooks, k)
		}
	}
	for i := range st.director.Services {
		svc := &st.director.Services[i]
		k := svc.Virtual.Key
		h := r.hooks[k]
		switch {
		case svc.FallbackCommand == "":
			continue
		case h == nil || (h.command != svc.FallbackCommand && !h.running):
			h = &hook{command: svc.FallbackCommand}
			r.hooks[k] = h
		}
		if h.want = st.hookWord(i); h.running || h.want == "" || h.want == h.sent {
			continue
		}
		h.running, h.sent = true, h.want
		r.shell(hookEnd{service: h, command: fallbackCommand(svc, h.want)})
	}
}

func (r *run) runCallback() {
	if !r.Active() {
		return
	}
	command, err := callbackCommand(&r.st.director)
	switch {
	case err != nil:
		r.emit(event(model.LevelWarning, "hook-failed", "", "%v", err))
	case command == "":
	case r.calling:
		r.callAgain = true
	default:
		r.calling = true
		r.shell(hookEnd{command: command})
	}
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

func (r *run) hookEnded(e hookEnd) {
	if e.err != nil {
		r.emit(hookFailed(e.command, e.err))
	}
	if e.service == nil {
		again := r.callAgain
		r.calling, r.callAgain = false, false
		if again {
			r.runCallback()
		}
		return
	}
	e.service.running = false
	r.runHooks()
}

// drain waits for all goroutines of this run.
func (r *run) drain() {
	done := make(chan struct{})
	go func() {
		r.wg.Wait()
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

// withdraw takes the services with CleanStop out of the table: as ldirectord
// does, first the real servers that are up, then the service.
func (r *run) withdraw() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), stopLimit)
	defer cancel()
	changes := r.st.withdrawal()
	if len(changes) == 0 {
		return
	}
	failed, err := refusals(changes, r.cfg.Plane.Apply(ctx, changes))
	if err != nil {
		r.emit(event(model.LevelError, "plane-failed", "", "The services could not be taken out of the %s plane: %v", r.cfg.Plane.Info().Name, err))
		return
	}
	r.mu.Lock()
	r.st.record(r.st.have, r.st.last, changes, failed)
	r.mu.Unlock()
	for n, c := range changes {
		if failed[n] == nil {
			r.emit(r.st.changed(c, stopping))
		}
	}
	r.tellRefused(changes, failed)
}
