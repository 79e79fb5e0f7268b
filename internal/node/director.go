package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/logfile"
	"github.com/batuta-ha/batuta/internal/model"
)

// DirectorOptions say how to run the director alone.
type DirectorOptions struct {
	Config    string         // an ldirectord.cf
	Plane     string         // one of PlaneNames
	XDP       string         // one of XDPNames; "" is auto
	EBPFTable map[string]int // some of EBPFSizes
	IPVS      model.IPVS     // where the plane is IPVS
	DryRun    bool           // memory plane, nothing on the host changes
	Hooks     bool           // with DryRun: run hooks all the same
	Events    string         // with DryRun: file of changes; implies Hooks
	Table     string         // with DryRun: file of the table
	RunDir    string
	// StateDir has the journal; a dry run, or "", writes none.
	StateDir string
	Stderr   io.Writer
	Stdout   io.Writer // log lines of supervised=yes
	Hangup   <-chan struct{}

	// Name is the instance in log lines and mails; "" for the file's name.
	Name string
	// Quiet keeps from Stderr what the director's own log has.
	Quiet bool
	// Debug writes that log to Stderr, with debug, and nowhere else.
	Debug bool
	// Ready is called once the configuration is valid, the run directory is
	// locked and the API answers, before the table is touched. Its error ends
	// the run. nil for nothing to do.
	Ready func() error
}

// StoppedBy is the cause of the end of RunDirector's context when a signal
// ended it: the log names it.
type StoppedBy unix.Signal

func (s StoppedBy) Error() string { return "stopped by " + unix.SignalName(unix.Signal(s)) }

// RunDirector checks and balances what one ldirectord.cf describes, until ctx
// ends; then the services go by the rules of cleanstop.
func RunDirector(ctx context.Context, o DirectorOptions) (err error) {
	o.Config = absolute(o.Config)
	dir, err := openRunDir(o.RunDir)
	if err != nil {
		return err
	}
	defer dir.close()
	reader, err := Reader("")
	if err != nil {
		return err
	}
	cfg, problems := reader.Director(o.Config)
	for _, p := range problems {
		fmt.Fprintln(o.Stderr, p)
	}
	if config.Failed(problems) {
		return ErrBadConfig
	}
	if o.Name != "" {
		cfg.Name = o.Name
	}
	stderr, console := o.sinks()
	if o.DryRun {
		o.Plane, o.StateDir = "memory", ""
	}
	rec := openRecorder(o.StateDir, reader.Host.NodeName, stderr)
	p, err := openPlane(planeOptions{name: o.Plane, holdAll: true, eventsLog: o.Events, tableFile: o.Table, sink: stderr, runDir: o.RunDir, xdp: o.XDP, table: o.EBPFTable, ipvs: o.IPVS})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	swaps := swapIn(ctx, p, fanOut(stderr, rec.hear), []model.Director{*cfg})
	active := !o.DryRun || o.Hooks || o.Events != ""
	// A dry run without hooks leaves the host's log file alone, too.
	ds := newDirectors(directorsOptions{plane: p, sink: fanOut(stderr, rec.hear), stdout: o.Stdout, console: console, quiet: !active, stateDir: o.StateDir})
	defer func() { ds.close(signalName(ctx)) }()
	main, err := ds.add(*cfg)
	if err != nil {
		return err
	}
	main.loop.SetActive(active)
	d := &loneDirector{node: reader.Host.NodeName, directors: ds, plane: p, rates: newRateMeter(p), sink: fanOut(stderr, rec.hear),
		windows: newWindowKeeper(o.StateDir, fanOut(stderr, rec.hear))}
	server, err := api.Listen(dir.socket(), d)
	if err != nil {
		return err
	}
	c := newCrew(ctx)
	c.start(server)
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			return errors.Join(err, c.stop())
		}
	}
	if d.rates.needed() {
		c.start(d.rates)
	}
	d.record(c, rec)
	for _, t := range swaps {
		c.start(t)
	}
	main.tellStart()
	c.start(main.loop)
	c.start(ds)
	for {
		select {
		case <-o.Hangup:
			ds.reload()
			continue
		case <-ctx.Done():
		case <-c.failed:
		}
		// The table goes first, by the rules of cleanstop, while the API still answers.
		return c.stop()
	}
}

// sinks are what Stderr hears, and what takes the place of the log; nil for
// the log that the configuration names.
func (o DirectorOptions) sinks() (stderr, console model.Sink) {
	stderr = stderrSink(o.Stderr)
	if o.Debug {
		console = logfile.Console(o.Stderr)
		stderr = console
	}
	if !o.Quiet && !o.Debug {
		return stderr, console
	}
	return func(e model.Event) {
		if e.Source != "director" || e.Kind == "execute-failed" {
			stderr(e)
		}
	}, console
}

// loadDirector reads an ldirectord.cf for a reload: any error refuses it, and
// says the first thing to mend.
func loadDirector(file string) (*model.Director, error) {
	reader, err := Reader("")
	if err != nil {
		return nil, err
	}
	cfg, problems := reader.Director(file)
	if !config.Failed(problems) {
		return cfg, nil
	}
	var bad []config.Problem
	for _, p := range problems {
		if p.Severity == config.Error {
			bad = append(bad, p)
		}
	}
	if len(bad) > 1 {
		return nil, fmt.Errorf("%s (and %d more: batuta check-config %s)", bad[0], len(bad)-1, file)
	}
	return nil, errors.New(bad[0].String())
}
