package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/director"
	"github.com/batuta-ha/batuta/internal/logfile"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// directorsOptions say what the directors of a daemon share.
type directorsOptions struct {
	plane   plane.Plane
	sink    model.Sink // hears of all of them
	stdout  io.Writer  // lines of supervised=yes; nil for none
	console model.Sink // takes the place of all logs; nil for the logs that configurations name
	keep    bool       // services stay in the table at the stop
	quiet   bool       // no log file, no mail: a dry run without hooks
	search  []string   // where files that execute= names are looked for first

	stateDir string // has what must survive a restart; "" for nothing
}

// directors are the balancing loops of a daemon: those that its configuration
// names, and the further ones that execute= lines of these name. ldirectord
// starts another process for each of the latter; here they are loops beside
// the others, and stop and reload with the director that named them.
type directors struct {
	directorsOptions
	mailer *alert.Mailer
	ready  chan struct{}

	named  sync.Mutex // held while named directors are started and stopped
	active sync.Mutex // held while it is said who is active

	mu       sync.Mutex
	all      []*instance // in order of their start
	ctx      context.Context
	stopping bool
	wg       sync.WaitGroup
}

// instance is one director with its own log.
type instance struct {
	loop    *director.Loop
	log     *directorLog
	file    string
	named   []string // files that its execute= lines name, as they are now
	marks   []model.MarkRule
	by      *instance // who named it; nil for those of the configuration
	started bool
	stop    func()        // of those that were named
	stopped chan struct{} // closed when it has ended
}

// mailGrace is how long mails may take when the daemon stops.
const mailGrace = 10 * time.Second

func newDirectors(o directorsOptions) *directors {
	return &directors{directorsOptions: o, mailer: alert.New(alert.Options{Sink: o.sink}), ready: make(chan struct{})}
}

// add makes the director of a configuration; its task is the caller's to run.
func (ds *directors) add(d model.Director) (*instance, error) {
	in := &instance{}
	return in, ds.put(in, d)
}

// put makes in the director of a configuration.
func (ds *directors) put(in *instance, d model.Director) error {
	in.file, in.log = absolute(d.File), &directorLog{stdout: ds.stdout, console: ds.console, quiet: ds.quiet, report: ds.sink}
	in.log.follow(d)
	var debug model.Sink
	if ds.console != nil {
		debug = in.log.hear
	}
	loop, err := director.New(director.Config{
		Director: d,
		Debug:    debug,
		Plane:    ds.plane,
		Sink:     fanOut(ds.sink, in.log.hear),
		Load:     func() (*model.Director, error) { return loadNamed(in.file, d.Name) },
		Mail:     ds.mailer.Send,
		Keep:     ds.keep,

		DrainFile: ds.drainFile(in.file),
		Reloaded:  func(d model.Director) { ds.reloaded(in, d) },
	})
	if err != nil {
		return fmt.Errorf("director %s: %w", d.Name, err)
	}
	in.loop, in.named, in.marks = loop, d.Execute, marksOf(d)
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.all = append(ds.all, in)
	ds.setMarks()
	return nil
}

func marksOf(d model.Director) (rules []model.MarkRule) {
	for _, s := range d.Services {
		rules = append(rules, s.Marks...)
	}
	return rules
}

// setMarks tells a plane that marks packets itself which, of all directors.
// Called with the lock held.
func (ds *directors) setMarks() {
	var all []model.MarkRule
	for _, in := range ds.all {
		all = append(all, in.marks...)
	}
	say := func(format string, a ...any) {
		ds.sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "plane", Kind: "marks", Text: fmt.Sprintf(format, a...)})
	}
	c, ok := plane.As[plane.Classifier](ds.plane)
	switch {
	case len(all) > 0 && ds.plane.Info().Name == "ipvs":
		say("IPVS takes marks from netfilter: match blocks do nothing here; set the marks with nftables")
	case ok:
		if err := c.SetMarks(context.Background(), all); err != nil {
			say("marks: %v", err)
		}
	}
}

// drainFile is where the director of a file remembers who is drained.
func (ds *directors) drainFile(file string) string {
	if ds.stateDir == "" {
		return ""
	}
	return filepath.Join(ds.stateDir, "drains", url.PathEscape(file)+".json")
}

// Run is the task of the directors that others name: it starts them, and stops
// them, before those that named them.
func (ds *directors) Run(ctx context.Context) error {
	ds.mu.Lock()
	ds.ctx = ctx
	roots := slices.Clone(ds.all)
	ds.mu.Unlock()
	for _, in := range roots {
		ds.followAlone(in)
	}
	close(ds.ready)
	<-ctx.Done()
	ds.stopNamed()
	return nil
}

// Ready is closed once all directors are started.
func (ds *directors) Ready() <-chan struct{} { return ds.ready }

func (ds *directors) String() string { return "directors" }

// tellStart writes the line that ldirectord begins with.
func (in *instance) tellStart() {
	in.started = true
	in.log.hear(directorEvent("start", fmt.Sprintf("Starting Linux Director (batuta) with pid: %d", os.Getpid())))
}

// tellStop writes the line that ldirectord ends with.
func (in *instance) tellStop(signal string) {
	if !in.started {
		return
	}
	in.log.hear(directorEvent("stop", "Linux Director Daemon terminated on signal: "+signal))
}

func directorEvent(kind, text string) model.Event {
	return model.Event{At: time.Now(), Level: model.LevelInfo, Source: "director", Kind: kind, Text: text}
}

// reloaded takes in what the new configuration of a director says beside its
// services. It returns at once: it is called by the director's loop.
func (ds *directors) reloaded(in *instance, d model.Director) {
	in.log.follow(d)
	ds.mu.Lock()
	defer ds.mu.Unlock()
	in.named, in.marks = d.Execute, marksOf(d)
	ds.setMarks()
	if ds.ctx == nil || ds.stopping {
		return
	}
	ds.wg.Go(func() { ds.followAlone(in) })
}

// followAlone is follow, one after the other: two reloads at once must not
// start the same file twice.
func (ds *directors) followAlone(in *instance) {
	ds.named.Lock()
	defer ds.named.Unlock()
	ds.follow(in)
}

// follow starts the directors that in names, reloads those that run already,
// and stops those that it names no longer.
func (ds *directors) follow(in *instance) {
	ds.mu.Lock()
	named, stopping := slices.Clone(in.named), ds.stopping
	ds.mu.Unlock()
	if stopping {
		return
	}
	files := map[string]bool{}
	for _, value := range named {
		file, err := ds.find(value, in.file)
		if err != nil {
			ds.complain(value, err)
			continue
		}
		files[file] = true
		if other := ds.byFile(file); other != nil {
			if other.by == in {
				other.loop.Reload()
			}
			continue // it runs: execute= in a circle ends here, too
		}
		if err := ds.launch(file, in); err != nil {
			ds.complain(value, err)
		}
	}
	for _, other := range ds.instances() {
		if other.by == in && !files[other.file] {
			ds.end(other)
		}
	}
}

func (ds *directors) complain(value string, err error) {
	ds.sink(model.Event{At: time.Now(), Level: model.LevelError, Source: "director", Kind: "execute-failed", Subject: value,
		Text: fmt.Sprintf("execute=%s: this director does not run: %v", value, err)})
}

// find looks for a file where ldirectord does, and beside the one that names it.
func (ds *directors) find(value, from string) (string, error) {
	value = strings.Trim(strings.TrimSpace(value), `"'`)
	if filepath.IsAbs(value) {
		return value, nil
	}
	dirs := append(slices.Clone(ds.search), "/etc/ha.d", "/etc/ha.d/conf", ".", filepath.Dir(from))
	for _, dir := range dirs {
		file := absolute(filepath.Join(dir, value))
		if i, err := os.Stat(file); err == nil && !i.IsDir() {
			return file, nil
		}
	}
	return "", fmt.Errorf("there is no file %s in %s", value, strings.Join(dirs, ", "))
}

// launch starts a director that another names.
func (ds *directors) launch(file string, by *instance) error {
	d, err := loadDirector(file)
	if err != nil {
		return err
	}
	ds.mu.Lock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ds.ctx)) // their end is in order
	ds.mu.Unlock()
	in := &instance{by: by, stop: cancel, stopped: make(chan struct{})}
	if err := ds.put(in, *d); err != nil {
		cancel()
		return err
	}
	ds.active.Lock() // setActive comes before, or finds it
	in.loop.SetActive(by.loop.Active())
	ds.active.Unlock()
	in.tellStart()
	ds.mu.Lock()
	if ds.stopping {
		cancel() // stopNamed waits for this to be done, and finds it
	}
	ds.wg.Go(func() {
		defer close(in.stopped)
		if err := in.loop.Run(ctx); err != nil {
			ds.complain(in.file, err)
		}
	})
	ds.mu.Unlock()
	ds.follow(in)
	return nil
}

// end stops a director that was named, after those that it names itself.
func (ds *directors) end(in *instance) {
	for _, other := range ds.instances() {
		if other.by == in {
			ds.end(other)
		}
	}
	in.stop()
	<-in.stopped
	in.tellStop("TERM")
	ds.mu.Lock()
	ds.all = slices.DeleteFunc(ds.all, func(o *instance) bool { return o == in })
	ds.setMarks()
	ds.mu.Unlock()
}

// stopNamed stops all directors that others name.
func (ds *directors) stopNamed() {
	ds.mu.Lock()
	ds.stopping = true
	ds.mu.Unlock()
	ds.named.Lock()
	for _, in := range ds.instances() {
		if in.by != nil && in.by.by == nil {
			ds.end(in)
		}
	}
	ds.named.Unlock()
	ds.wg.Wait()
}

// close tells of the end and sends the last mails.
func (ds *directors) close(signal string) {
	for _, in := range ds.instances() {
		in.tellStop(signal)
	}
	ctx, cancel := context.WithTimeout(context.Background(), mailGrace)
	defer cancel()
	ds.mailer.Close(ctx)
}

func (ds *directors) instances() []*instance {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return slices.Clone(ds.all)
}

func (ds *directors) byFile(file string) *instance {
	for _, in := range ds.instances() {
		if in.file == file {
			return in
		}
	}
	return nil
}

// reload reads all configurations again.
func (ds *directors) reload() {
	for _, in := range ds.instances() {
		if in.by == nil {
			in.loop.Reload() // those that it names follow
		}
	}
}

// setActive makes a director active or not, and those that it names.
func (ds *directors) setActive(in *instance, active bool) {
	ds.active.Lock()
	defer ds.active.Unlock()
	ds.spread(in, active)
}

func (ds *directors) spread(in *instance, active bool) {
	in.loop.SetActive(active)
	for _, other := range ds.instances() {
		if other.by == in {
			ds.spread(other, active)
		}
	}
}

// services describes the services of all.
func (ds *directors) services() []model.ServiceView { return ds.describe((*director.Loop).Services) }

// states is services without the history of the checks.
func (ds *directors) states() []model.ServiceView { return ds.describe((*director.Loop).States) }

func (ds *directors) describe(one func(*director.Loop) []model.ServiceView) []model.ServiceView {
	var out []model.ServiceView
	for _, in := range ds.instances() {
		out = append(out, one(in.loop)...)
	}
	return notNil(out)
}

// loadNamed is loadDirector for an instance that keeps its name.
func loadNamed(file, name string) (*model.Director, error) {
	d, err := loadDirector(file)
	if err == nil {
		d.Name = name
	}
	return d, err
}

// directorLog is the log of a director, wherever its configuration says now.
type directorLog struct {
	stdout  io.Writer
	console model.Sink
	quiet   bool
	report  model.Sink

	mu   sync.Mutex
	made model.Director // the parts of it that the sink was made of
	sink model.Sink
}

// follow takes over where a configuration wants the log.
func (l *directorLog) follow(d model.Director) {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := model.Director{Name: d.Name, LogFile: d.LogFile, Supervised: d.Supervised}
	switch {
	case l.sink != nil && want.Name == l.made.Name && want.LogFile == l.made.LogFile && want.Supervised == l.made.Supervised:
		return
	case l.quiet:
		l.sink = func(model.Event) {}
	case l.console != nil:
		l.sink = l.console
	case d.Supervised && l.stdout != nil:
		l.sink = logfile.Supervised(l.stdout)
	default:
		l.sink = logfile.Ldirectord(logfile.LdirectordOptions{LogFile: d.LogFile, Instance: d.Name, PID: os.Getpid(), Sink: l.report})
	}
	l.made = want
}

func (l *directorLog) hear(e model.Event) {
	l.mu.Lock()
	s := l.sink
	l.mu.Unlock()
	s(e)
}

// signalName is the name of the signal that ended ctx, as ldirectord's log has
// it. The cause is StoppedBy, or the text of signal.NotifyContext.
func signalName(ctx context.Context) string {
	cause := context.Cause(ctx)
	var by StoppedBy
	switch {
	case errors.As(cause, &by):
		return strings.TrimPrefix(unix.SignalName(unix.Signal(by)), "SIG")
	case cause != nil && strings.HasPrefix(cause.Error(), os.Interrupt.String()):
		return "INT"
	}
	return "TERM"
}
