package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
)

// The two directors of the drawing.
const (
	first  model.NodeName = "lvs01"
	second model.NodeName = "lvs02"
)

// MinDuration is the shortest load that has room for both failovers.
const MinDuration = 10 * time.Second

// Options say how the demo runs.
type Options struct {
	Duration time.Duration // of the load
	Binary   string        // the batuta executable that the nodes run
	Dir      string        // scratch directory, the caller's to remove
	Root     bool          // network namespaces; else loopback addresses
	Account  io.Writer     // the live account, for people
	Keep     bool          // leave the cluster up after the story, until the context ends
	RunDir   string        // where `batuta lab` finds a kept cluster of namespaces
}

// Causes of a change of director.
const (
	causeHandover = "handover" // a clean stop
	causeFailback = "failback" // the other way, when the first director is back
	causeCrash    = "crash"
)

// Report is the measured result, one JSON object.
type Report struct {
	Mode         string         `json:"mode"` // netns or loopback
	Plane        string         `json:"plane"`
	RealServers  int            `json:"real_servers"`
	Requests     int            `json:"requests"`
	Failed       int            `json:"failed"`       // without a correct answer
	Distribution map[string]int `json:"distribution"` // correct answers for each real server
	Failovers    []Failover     `json:"failovers"`
	failback     *Failover
}

// Failover is one change of director as the client saw it.
type Failover struct {
	Cause  string  `json:"cause"`  // handover, crash
	GapMS  float64 `json:"gap_ms"` // longest time without a correct answer around it
	From   string  `json:"from"`
	To     string  `json:"to"`
	served bool    // answers came again
}

// Served tells whether service continued after every failover.
func (r Report) Served() bool {
	return len(r.Failovers) == 2 && !slices.ContainsFunc(r.Failovers, func(f Failover) bool { return !f.served })
}

// stage is where the cluster stands: network namespaces or loopback addresses.
type stage interface {
	mode() string
	describe() []string                                                   // what was built, line by line
	linger(ctx context.Context) error                                     // keep it up, say how to look around
	url() string                                                          // of the page behind the virtual address
	load(ctx context.Context, out io.Writer) (wait func() error, e error) // runs Load at the client until ctx ends
	status(ctx context.Context, n model.NodeName) (api.Status, error)
	startNode(ctx context.Context, n model.NodeName) error // the daemon, on a machine that is on
	stopNode(ctx context.Context, n model.NodeName) error  // clean stop of the daemon
	crash(ctx context.Context, n model.NodeName) error     // the whole machine, without warning
	reals() []string
	setReal(ctx context.Context, name string, up bool) error
	close() error
}

// Run builds the cluster, tells the story, measures, and takes all down,
// whatever happens. Every wait ends with ctx.
func Run(ctx context.Context, o Options) (r Report, err error) {
	build := newLoopback
	if o.Root {
		build = newNetns
	}
	s, err := build(ctx, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	d := &teller{Options: o, stage: s, began: time.Now()}
	return d.tell(ctx)
}

// teller tells the story of one run.
type teller struct {
	Options
	stage stage
	began time.Time
	acc   *account
	marks []mark
	ended time.Time // of the load
}

// mark is a failover with the moment it was caused.
type mark struct {
	cause    string
	at       time.Time
	over     time.Time // when the successor served; zero while it does not
	from, to model.NodeName
}

// say writes one line of the account.
func (d *teller) say(format string, args ...any) {
	fmt.Fprintf(d.Account, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *teller) tell(ctx context.Context) (Report, error) {
	for _, l := range d.stage.describe() {
		fmt.Fprintln(d.Account, l)
	}
	for _, n := range []model.NodeName{first, second} {
		if err := d.stage.startNode(ctx, n); err != nil {
			return Report{}, err
		}
	}
	d.say("both directors started; waiting until the cluster has settled")
	if err := d.await(ctx, "the service to be up on "+string(first), d.settled(len(d.stage.reals()))); err != nil {
		return Report{}, err
	}
	st, err := d.stage.status(ctx, first)
	if err != nil {
		return Report{}, err
	}
	d.say("%s holds the service address, plane %s; %d real servers answer", first, st.Plane, len(d.stage.reals()))

	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	if err := d.underLoad(loadCtx, stopLoad); err != nil {
		return Report{}, err
	}
	r := d.report(st)
	d.summarize(r)
	if d.Keep && ctx.Err() == nil {
		return r, d.stage.linger(ctx)
	}
	return r, ctx.Err()
}

// underLoad runs the events at their share of the load's duration.
func (d *teller) underLoad(ctx context.Context, stop func()) error {
	d.acc = newAccount()
	pr, pw := io.Pipe()
	read := make(chan error, 1)
	go func() { read <- d.acc.read(pr) }()
	wait, err := d.stage.load(ctx, pw)
	if err != nil {
		return err
	}
	d.say("load: a request each millisecond to %s, over a fresh connection each", d.stage.url())
	begin := time.Now()
	story := d.events(ctx, begin)
	until(ctx, begin.Add(d.Duration))
	d.ended = time.Now()
	stop()
	loadErr := wait()
	pw.Close()
	return errors.Join(story, loadErr, <-read)
}

// events is the story itself. The shares leave each failover room for the
// deadtime (a sixth of the duration at most) and for its measurement.
func (d *teller) events(ctx context.Context, begin time.Time) error {
	at := func(share float64) time.Time { return begin.Add(time.Duration(share * float64(d.Duration))) }
	victim := d.stage.reals()[1]
	until(ctx, at(0.05))
	d.say("answers so far: %s", spread(d.acc.snapshot()))
	if err := d.stage.setReal(ctx, victim, false); err != nil {
		return err
	}
	d.say("real server %s dies", victim)
	if err := d.await(ctx, "the checks to take "+victim+" out", d.settled(len(d.stage.reals())-1)); err != nil {
		return err
	}
	d.say("the checks took it out: no new connections go there")
	until(ctx, at(0.18))
	if err := d.stage.setReal(ctx, victim, true); err != nil {
		return err
	}
	if err := d.await(ctx, "the checks to bring "+victim+" back", d.settled(len(d.stage.reals()))); err != nil {
		return err
	}
	d.say("real server %s is back", victim)

	until(ctx, at(0.28))
	d.mark(causeHandover, first, second)
	d.say("heartbeat is stopped on %s: it hands over", first)
	if err := d.stage.stopNode(ctx, first); err != nil {
		return err
	}
	if err := d.await(ctx, "service from "+string(second), d.served); err != nil {
		return err
	}
	d.over(ctx)
	d.say("%s serves; gap %.1f ms", second, d.gapSince())

	until(ctx, at(0.42))
	d.mark(causeFailback, second, first)
	if err := d.stage.startNode(ctx, first); err != nil {
		return err
	}
	d.say("%s is started again; auto_failback on brings the resources back to it", first)
	if err := d.await(ctx, string(first)+" to hold the address again", d.settled(len(d.stage.reals()))); err != nil {
		return err
	}
	d.over(ctx)
	d.say("%s holds the service address again", first)

	until(ctx, at(0.65))
	d.mark(causeCrash, first, second)
	if err := d.stage.crash(ctx, first); err != nil {
		return err
	}
	d.say("power loss on %s, the active director", first)
	if err := d.await(ctx, "service from "+string(second), d.served); err != nil {
		return err
	}
	d.over(ctx)
	d.say("%s has taken over; gap %.1f ms", second, d.gapSince())
	return nil
}

func (d *teller) mark(cause string, from, to model.NodeName) {
	d.marks = append(d.marks, mark{cause: cause, at: time.Now(), from: from, to: to})
}

// Half a second after the successor has the address a failover is over: what
// disturbs the client later is not its doing.
const aftermath = 500 * time.Millisecond

// over waits for the aftermath of the last failover.
func (d *teller) over(ctx context.Context) {
	until(ctx, time.Now().Add(aftermath))
	d.marks[len(d.marks)-1].over = time.Now()
}

func (d *teller) last() mark { return d.marks[len(d.marks)-1] }

// gapSince is the gap of the last failover up to the newest answer.
func (d *teller) gapSince() float64 {
	g, _ := d.acc.gap(d.last().at, d.acc.newest())
	return float64(g) / 1e6
}

// served tells whether the successor of the last failover holds the address
// and answers arrive.
func (d *teller) served(ctx context.Context) (bool, error) {
	m := d.last()
	ok, err := d.holds(ctx, m.to)
	return ok && d.acc.answeredSince(time.Now().Add(-100*time.Millisecond)), err
}

// settled tells whether the first director holds the address and has exactly
// that many real servers that take new connections.
func (d *teller) settled(reals int) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		st, err := d.stage.status(ctx, first)
		if err != nil || len(st.Services) == 0 {
			return false, err
		}
		up := 0
		for _, r := range st.Services[0].Reals {
			if r.Status == model.Up && r.InTable && r.Weight > 0 {
				up++
			}
		}
		return up == reals && allRunning(st), nil
	}
}

func (d *teller) holds(ctx context.Context, n model.NodeName) (bool, error) {
	st, err := d.stage.status(ctx, n)
	return err == nil && allRunning(st), err
}

func allRunning(st api.Status) bool {
	return len(st.Resources) > 0 && !slices.ContainsFunc(st.Resources, func(r model.ResourceView) bool {
		return r.Here != model.ResourceRunning
	})
}

// await asks until the answer is yes, and says what it waited for if not.
func (d *teller) await(ctx context.Context, what string, ask func(context.Context) (bool, error)) error {
	limit := max(d.Duration/2, 30*time.Second)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("waited %v for %s in vain", limit, what))
	defer cancel()
	var last error
	for {
		ok, err := ask(ctx)
		if ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		if !until(ctx, time.Now().Add(50*time.Millisecond)) {
			return errors.Join(context.Cause(ctx), last)
		}
	}
}

// until waits for a moment; false means that ctx ended first.
func until(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (d *teller) report(st api.Status) Report {
	r := Report{Mode: d.stage.mode(), Plane: st.Plane, RealServers: len(d.stage.reals()),
		Requests: d.acc.total, Failed: d.acc.failed, Distribution: d.acc.snapshot()}
	for _, m := range d.marks {
		end := m.over
		if end.IsZero() {
			end = d.ended
		}
		gap, ok := d.acc.gap(m.at, end)
		f := Failover{Cause: m.cause, GapMS: float64(gap.Round(10*time.Microsecond)) / 1e6,
			From: string(m.from), To: string(m.to), served: ok}
		if m.cause == causeFailback {
			r.failback = &f
			continue
		}
		r.Failovers = append(r.Failovers, f)
	}
	return r
}

func (d *teller) summarize(r Report) {
	w := d.Account
	fmt.Fprintf(w, "\n%d requests, %d without a correct answer (%.3f %%)\n", r.Requests, r.Failed,
		100*float64(r.Failed)/float64(max(r.Requests, 1)))
	fmt.Fprintf(w, "answers: %s\n", spread(r.Distribution))
	all := slices.Clone(r.Failovers)
	if r.failback != nil {
		all = slices.Insert(all, 1, *r.failback)
	}
	for _, f := range all {
		fmt.Fprintf(w, "%-9s %s -> %s   longest time without an answer %.1f ms\n", f.Cause, f.From, f.To, f.GapMS)
	}
}

// spread prints answers for each real server, by name.
func spread(by map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, by[name]))
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}
