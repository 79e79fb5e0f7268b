package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
	"github.com/batuta-ha/batuta/internal/plane/ipvs"
)

// predecessor is a plane that another one takes the place of. It goes on with
// the connections that it has.
type predecessor interface {
	// rows are what the new plane takes over.
	rows(ctx context.Context) (model.Table, error)
	// release leaves new connections to the new plane, and is repeated while
	// it drains. It returns how many are still open.
	release(ctx context.Context) (open int, err error)
	// remove takes away what is left, when none is open any more.
	remove(ctx context.Context) error
	close()
	String() string
}

// swap is the task that ends a plane whose place was taken.
type swap struct {
	from  predecessor
	sink  model.Sink
	every time.Duration
	ready chan struct{}
}

// swapIn looks for what an earlier life, with another plane, has left in the
// kernel: the services of the configuration go over to p, and the connections
// go on where they are until they end. nil is nothing to end.
func swapIn(ctx context.Context, p plane.Plane, sink model.Sink, directors []model.Director) []Task {
	var tasks []Task
	for _, from := range predecessors(p, sink, directors) {
		say := func(l model.Level, text string) {
			sink(model.Event{At: time.Now(), Level: l, Source: "plane", Kind: "plane-swap", Text: text})
		}
		open, err := takeOver(ctx, p, from)
		if err != nil {
			say(model.LevelError, fmt.Sprintf("take the place of %s: %v", from, err))
		} else {
			say(model.LevelNotice, fmt.Sprintf("plane %s takes the place of %s; its %d open connections go on there until they end", p.Info().Name, from, open))
		}
		ready := make(chan struct{})
		close(ready)
		tasks = append(tasks, &swap{from: from, sink: sink, every: time.Second, ready: ready})
	}
	return tasks
}

// predecessors are the planes whose place p takes. What cannot be looked at is told.
func predecessors(p plane.Plane, sink model.Sink, directors []model.Director) []predecessor {
	var (
		found []predecessor
		err   error
	)
	switch p.Info().Name {
	case "ipvs", "proxy":
		var all []*ebpf.Retired
		var now *ebpf.Retired
		if all, err = ebpf.AllRetired(""); err == nil {
			now, err = ebpf.Retire("")
		}
		for _, r := range all {
			found = append(found, &retiredTable{r: r, known: true})
		}
		if now != nil {
			found = append(found, &retiredTable{r: now})
		}
	case "ebpf":
		if _, none := os.Stat("/proc/net/ip_vs"); none != nil {
			return nil // not loaded, and it need not be
		}
		var old *quietIPVS
		if old, err = openQuietIPVS(p, directors); old != nil {
			found = append(found, old)
		}
	}
	// Another namespace's table is nothing to this one.
	if err != nil && !errors.Is(err, ebpf.ErrOtherNamespace) {
		sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "plane", Kind: "plane-swap",
			Text: fmt.Sprintf("whether another plane has left a table in the kernel cannot be found out: %v", err)})
	}
	return found
}

// takeOver fills p before its predecessor lets go.
func takeOver(ctx context.Context, p plane.Plane, from predecessor) (open int, err error) {
	t, err := from.rows(ctx)
	if err != nil {
		return 0, err
	}
	var changes []model.Change
	for _, v := range t.Services {
		changes = append(changes, model.Change{Op: model.ServiceAdd, Service: v})
		for _, r := range v.Reals {
			changes = append(changes, model.Change{Op: model.RealAdd, Service: v, Real: r})
		}
	}
	if len(changes) > 0 {
		err = p.Apply(ctx, changes)
	}
	open, released := from.release(ctx)
	return open, errors.Join(err, released)
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
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for said := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		open, err := s.from.release(ctx)
		if err == nil && open == 0 {
			if err = s.from.remove(ctx); err == nil {
				s.sink(model.Event{At: time.Now(), Level: model.LevelNotice, Source: "plane", Kind: "plane-swap",
					Text: "the last connection of " + s.from.String() + " has ended; it is gone"})
				return
			}
		}
		if err != nil && !said && ctx.Err() == nil {
			said = true
			s.sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "plane", Kind: "plane-swap",
				Text: fmt.Sprintf("end %s: %v; it is tried again each second", s.from, err)})
		}
	}
}

// Ready is closed from the beginning: nobody waits for connections to end.
func (s *swap) Ready() <-chan struct{} { return s.ready }

func (s *swap) String() string { return "end of " + s.from.String() }

// retiredTable is a table of the eBPF plane.
type retiredTable struct {
	r     *ebpf.Retired
	known bool // its rows were taken over in an earlier life
}

func (t *retiredTable) rows(context.Context) (model.Table, error) {
	if t.known {
		return model.Table{}, nil
	}
	return t.r.Table(), nil
}

func (t *retiredTable) release(context.Context) (int, error) {
	if err := t.r.Release(); err != nil {
		return 0, err
	}
	return t.r.Connections(), nil
}

func (t *retiredTable) remove(context.Context) error { return t.r.Remove() }
func (t *retiredTable) close()                       { t.r.Close() }
func (t *retiredTable) String() string               { return "the eBPF plane's table" }

// quietIPVS is the kernel's IPVS, as far as the eBPF plane has its services:
// that comes first and sees the packets before. Their rows get weight 0, and
// go when their last connection has ended. Others are left alone.
type quietIPVS struct {
	old    plane.Plane
	new    passer
	missed model.Table // services that the new plane does not have yet
}

// passer is a plane that leaves connections to another one behind it.
type passer interface {
	plane.Plane
	PassBy(ctx context.Context, flows []model.Flow) error
}

// openQuietIPVS is nil where IPVS has no service of the configuration or of the new plane.
func openQuietIPVS(p plane.Plane, directors []model.Director) (*quietIPVS, error) {
	next, ok := plane.As[passer](p)
	if !ok {
		return nil, nil
	}
	old, err := ipvs.Open(ipvs.Options{AsItIs: true})
	if err != nil {
		return nil, err
	}
	q, err := quiet(context.Background(), old, next, directors)
	if q == nil {
		_ = old.Close()
	}
	return q, err
}

func quiet(ctx context.Context, old plane.Plane, next passer, directors []model.Director) (*quietIPVS, error) {
	have, err := old.Read(ctx)
	if err != nil {
		return nil, err
	}
	now, err := next.Read(ctx)
	if err != nil {
		return nil, err
	}
	wanted := keys(now)
	for _, d := range directors {
		for _, s := range d.Services {
			wanted[s.Virtual.Key] = true
		}
	}
	q := &quietIPVS{old: old, new: next}
	found, there := false, keys(now)
	for _, v := range have.Services {
		found = found || wanted[v.Key]
		if wanted[v.Key] && !there[v.Key] {
			q.missed.Services = append(q.missed.Services, v)
		}
	}
	if !found {
		return nil, nil
	}
	return q, q.passBy(ctx)
}

func keys(t model.Table) map[model.ServiceKey]bool {
	m := map[model.ServiceKey]bool{}
	for _, v := range t.Services {
		m[v.Key] = true
	}
	return m
}

func (q *quietIPVS) rows(context.Context) (model.Table, error) { return q.missed, nil }

// passBy keeps datagrams of open connections, and repeated SYNs of half-open
// ones, away from the new plane. All other packets of its predecessor's
// connections it lets go by itself.
func (q *quietIPVS) passBy(ctx context.Context) error {
	flows, err := q.old.Flows(ctx)
	if err != nil {
		return err
	}
	return q.new.PassBy(ctx, slices.DeleteFunc(flows, func(f model.Flow) bool {
		return f.Client.Port() == 0 || f.Proto == model.TCP && f.State != "SYN_RECV" || f.Proto == model.ProtocolNone
	}))
}

func (q *quietIPVS) release(ctx context.Context) (open int, err error) {
	now, err := q.new.Read(ctx)
	if err != nil {
		return 0, err
	}
	have, err := q.old.Read(ctx)
	if err != nil {
		return 0, err
	}
	counters, err := q.old.Counters(ctx)
	if err != nil {
		return 0, err
	}
	busy := map[model.ServiceKey]int{}
	for _, c := range counters {
		for _, r := range c.Reals {
			busy[c.Key] += int(r.Active + r.Inactive)
		}
	}
	ours := keys(now)
	var changes []model.Change
	for _, v := range have.Services {
		if !ours[v.Key] {
			continue
		}
		open += busy[v.Key]
		if busy[v.Key] == 0 {
			changes = append(changes, model.Change{Op: model.ServiceDelete, Service: v})
			continue
		}
		for _, r := range v.Reals {
			if r.Weight != 0 {
				r.Weight = 0
				changes = append(changes, model.Change{Op: model.RealEdit, Service: v, Real: r})
			}
		}
	}
	return open, errors.Join(q.old.Apply(ctx, changes), q.passBy(ctx))
}

func (q *quietIPVS) remove(ctx context.Context) error { return q.new.PassBy(ctx, nil) }
func (q *quietIPVS) close()                           { _ = q.old.Close() }
func (q *quietIPVS) String() string                   { return "the kernel's IPVS" }
