package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

// predecessor is a plane that another one takes the place of. It goes on with
// the connections that it has.
type predecessor interface {
	// rows are what the new plane takes over.
	rows() model.Table
	// bindings are which clients of persistent services have which real server.
	bindings(ctx context.Context) ([]model.Binding, error)
	// release leaves new connections of the services that the new plane has to
	// it, and is repeated while it drains.
	release(ctx context.Context) (left, error)
	// remove takes away what is left, when nothing is open any more.
	remove(ctx context.Context) error
	close()
	String() string
}

// left is what a predecessor still has.
type left struct {
	open  int // connections
	ended int // connections that went with their services, just now
	kept  int // services that the new plane does not have: it has refused them
}

// swap is the task that ends a plane whose place was taken.
type swap struct {
	from  predecessor
	sink  model.Sink
	ready chan struct{}
}

// swapIn looks for what an earlier life, with another plane, has left in the
// kernel: the services of the configuration go over to p, and the connections
// go on where they are until they end. nil is nothing to end.
func swapIn(ctx context.Context, p plane.Plane, sink model.Sink, directors []model.Director) []Task {
	var tasks []Task
	for _, from := range predecessors(p, sink, directors) {
		text, err := takeOver(ctx, p, from)
		tellSwap(sink, model.LevelNotice, text)
		if err != nil {
			tellSwap(sink, model.LevelError, fmt.Sprintf("take the place of %s: %v", from, err))
		}
		ready := make(chan struct{})
		close(ready)
		tasks = append(tasks, &swap{from: from, sink: sink, ready: ready})
	}
	return tasks
}

func tellSwap(sink model.Sink, l model.Level, text string) {
	if text != "" {
		sink(model.Event{At: time.Now(), Level: l, Source: "plane", Kind: "plane-swap", Text: text})
	}
}

// predecessors are the planes whose place p takes. What cannot be looked at is told.
func predecessors(p plane.Plane, sink model.Sink, directors []model.Director) []predecessor {
	var found []predecessor
	unknown := func(err error) {
		if err != nil {
			tellSwap(sink, model.LevelError, fmt.Sprintf("whether another plane has left a table in the kernel cannot be found out: %v; "+
				"it may go on balancing beside this one: end it with the plane that made it", err))
		}
	}
	switch p.Info().Name {
	case "ipvs", "proxy":
		all, failed := ebpf.AllRetired("")
		for _, r := range all {
			found = append(found, &retiredTable{r: r, next: p, known: true})
		}
		for _, err := range failed {
			l := model.LevelError
			if errors.Is(err, ebpf.ErrOtherNamespace) {
				l = model.LevelNotice
			}
			tellSwap(sink, l, err.Error())
		}
		now, err := ebpf.Retire("")
		if now != nil {
			found = append(found, &retiredTable{r: now, next: p})
		}
		if !errors.Is(err, ebpf.ErrOtherNamespace) { // whose table is nothing to this one
			unknown(err)
		}
	}
	old, err := openIPVS(p, sink, directors)
	if old == nil {
		unknown(err)
		return found
	}
	if err != nil {
		tellSwap(sink, model.LevelWarning, fmt.Sprintf("look at the connections of %s: %v; it is tried again and again", old, err))
	}
	return append(found, old)
}

// takeOver fills p before its predecessor lets go, and says what was done. What
// p refuses stays with its predecessor; where it took nothing all does.
func takeOver(ctx context.Context, p plane.Plane, from predecessor) (text string, err error) {
	// Listed before p serves: it may take a while, in which p would bind clients anew.
	bindings, unlisted := from.bindings(ctx)
	var changes []model.Change
	for _, v := range from.rows().Services {
		changes = append(changes, model.Change{Op: model.ServiceAdd, Service: v})
		for _, r := range v.Reals {
			changes = append(changes, model.Change{Op: model.RealAdd, Service: v, Real: r})
		}
	}
	var refused error
	if len(changes) > 0 {
		refused = p.Apply(ctx, changes)
	}
	var row *plane.RowError
	if refused != nil && !errors.As(refused, &row) {
		return "", fmt.Errorf("%w; %s carries all as before, until the new plane has its services", refused, from)
	}
	bound, unbound := bind(ctx, p, bindings)
	now, unreleased := from.release(ctx)
	text = fmt.Sprintf("plane %s takes the place of %s; its %d open connections go on there until they end", p.Info().Name, from, now.open)
	if now.ended > 0 {
		text = fmt.Sprintf("plane %s takes the place of %s; its %d open connections end: it would come before the new plane and take all others, too", p.Info().Name, from, now.ended)
	}
	if bound != "" {
		text += "; " + bound
	}
	if now.kept > 0 {
		refused = errors.Join(refused, fmt.Errorf("%d services that plane %s has refused stay with %s, as they were: mend them, or take the plane back", now.kept, p.Info().Name, from))
	}
	return text, errors.Join(unlisted, refused, unbound, unreleased)
}

// bind gives p the bindings, as far as it takes any, and says so.
func bind(ctx context.Context, p plane.Plane, bindings []model.Binding) (text string, err error) {
	if len(bindings) == 0 {
		return "", nil
	}
	to, ok := plane.As[plane.Binder](p)
	if !ok {
		return fmt.Sprintf("%d clients of persistent services may get another real server: plane %s takes no bindings over", len(bindings), p.Info().Name), nil
	}
	n, err := to.Bind(ctx, bindings)
	return fmt.Sprintf("%d of %d clients of persistent services keep their real servers", n, len(bindings)), err
}

// Run ends the old plane once its connections have. It returns with ctx only:
// a task that ends by itself is a failure.
func (s *swap) Run(ctx context.Context) error {
	defer s.from.close()
	s.drain(ctx)
	<-ctx.Done()
	return nil
}

// drain returns when the old plane is gone, or with ctx.
func (s *swap) drain(ctx context.Context) {
	again := time.NewTimer(plane.Pace(0))
	defer again.Stop()
	for said := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		begin := time.Now()
		now, err := s.from.release(ctx)
		if err == nil && now == (left{}) {
			if err = s.from.remove(ctx); err == nil {
				tellSwap(s.sink, model.LevelNotice, "the last connection of "+s.from.String()+" has ended; it is gone")
				return
			}
		}
		if err != nil && !said && ctx.Err() == nil {
			said = true
			tellSwap(s.sink, model.LevelWarning, fmt.Sprintf("end %s: %v; it is tried again and again", s.from, err))
		}
		again.Reset(plane.Pace(time.Since(begin)))
	}
}

// Ready is closed from the beginning: nobody waits for connections to end.
func (s *swap) Ready() <-chan struct{} { return s.ready }

func (s *swap) String() string { return "end of " + s.from.String() }

// retiredTable is a table of the eBPF plane.
type retiredTable struct {
	r     *ebpf.Retired
	next  plane.Plane // in its place
	known bool        // its rows were taken over in an earlier life
}

func (t *retiredTable) rows() model.Table {
	if t.known {
		return model.Table{}
	}
	return t.r.Table()
}

func (t *retiredTable) bindings(context.Context) ([]model.Binding, error) {
	if t.known {
		return nil, nil
	}
	return t.r.Bindings()
}

func (t *retiredTable) release(ctx context.Context) (now left, err error) {
	next, err := t.next.Read(ctx)
	if err != nil {
		return now, err
	}
	taken := keys(next)
	if now.kept, err = t.r.Release(func(k model.ServiceKey) bool { return taken[k] }); err != nil {
		return now, err
	}
	now.open = t.r.Connections()
	return now, nil
}

func (t *retiredTable) remove(context.Context) error { return t.r.Remove() }
func (t *retiredTable) close()                       { t.r.Close() }
func (t *retiredTable) String() string               { return "the eBPF plane's table" }
