package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// DirectorOptions say how to run the director alone.
type DirectorOptions struct {
	Config string // an ldirectord.cf
	Plane  string // one of PlaneNames
	DryRun bool   // memory plane, nothing on the host changes
	Hooks  bool   // with DryRun: run hooks all the same
	Events string // with DryRun: file of changes; implies Hooks
	Table  string // with DryRun: file of the table
	RunDir string
	// StateDir has the journal; a dry run, or "", writes none.
	StateDir string
	Stderr   io.Writer
	Stdout   io.Writer // log lines of supervised=yes
	Hangup   <-chan struct{}
}

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
	stderr := stderrSink(o.Stderr)
	if o.DryRun {
		o.Plane, o.StateDir = "memory", ""
	}
	rec := openRecorder(o.StateDir, reader.Host.NodeName, stderr)
	p, err := openPlane(planeOptions{name: o.Plane, holdAll: true, eventsLog: o.Events, tableFile: o.Table, sink: stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	active := !o.DryRun || o.Hooks || o.Events != ""
	// A dry run without hooks leaves the host's log file alone, too.
	ds := newDirectors(directorsOptions{plane: p, sink: fanOut(stderr, rec.hear), stdout: o.Stdout, quiet: !active})
	defer func() { ds.close(signalName(ctx)) }()
	main, err := ds.add(*cfg)
	if err != nil {
		return err
	}
	main.loop.SetActive(active)
	d := &loneDirector{node: reader.Host.NodeName, directors: ds, plane: p, rates: newRateMeter(p)}
	server, err := api.Listen(dir.socket(), d)
	if err != nil {
		return err
	}
	c := newCrew(ctx)
	c.start(server)
	c.start(d.rates)
	d.record(c, rec)
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
