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
	open int // connections
	kept int // services that the new plane does not have: it has refused them
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
	case "ebpf":
		if _, none := os.Stat("/proc/net/ip_vs"); none != nil {
			return nil // not loaded, and it need not be
		}
		old, err := openQuietIPVS(p, sink, directors)
		if old != nil {
			found = append(found, old)
		}
		unknown(err)
	}
	return found
}

// takeOver fills p before its predecessor lets go, and says what was done. What
// p refuses stays with its predecessor; where it took nothing all does.
func takeOver(ctx context.Context, p plane.Plane, from predecessor) (text string, err error) {
	t, err := from.rows(ctx)
	if err != nil {
		return "", err
	}
	// Listed before p serves: it may take a while, in which p would bind clients anew.
	bindings, unlisted := from.bindings(ctx)
	var changes []model.Change
	for _, v := range t.Services {
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

func (t *retiredTable) rows(context.Context) (model.Table, error) {
	if t.known {
		return model.Table{}, nil
	}
	return t.r.Table(), nil
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

// quietIPVS is the kernel's IPVS, as far as the eBPF plane has its services:
// that comes first and sees the packets before. Their rows get weight 0, and
// go when their last connection has ended. Others are left alone.
type quietIPVS struct {
	old    plane.Plane
	new    passer
	wanted map[model.ServiceKey]bool // of the configuration, or the new plane's
	missed model.Table               // services that the new plane does not have yet

	ours  map[model.ServiceKey]bool // that the new plane has or had: they are ended here
	count int                       // of all connections, when last counted
	sink  model.Sink

	passed int       // connections that the new plane was last told to let by
	looked bool      // for them, with all of ours
	next   time.Time // not before: listing connections takes long
	unread bool      // bindings were put off
}

// The kernel lists connections in a time that grows with the square of their
// number: it begins anew for each page of its text. What takes long is done
// while the new plane carries packets, and what takes minutes is not done.
// Measured: make bench-ipvs; 50,000 in half a second, 200,000 in 72 seconds.
const (
	listedAtOnce = 50_000
	listedAtAll  = 200_000
)

// passer is a plane that leaves connections to another one behind it.
type passer interface {
	plane.Plane
	PassBy(ctx context.Context, flows []model.Flow) error
}

// openQuietIPVS is nil where IPVS has no service of the configuration or of the new plane.
func openQuietIPVS(p plane.Plane, sink model.Sink, directors []model.Director) (*quietIPVS, error) {
	next, ok := plane.As[passer](p)
	if !ok {
		return nil, nil
	}
	old, err := ipvs.Open(ipvs.Options{AsItIs: true})
	if err != nil {
		return nil, err
	}
	q, err := quiet(context.Background(), old, next, sink, directors)
	if q == nil {
		_ = old.Close()
	}
	return q, err
}

func quiet(ctx context.Context, old plane.Plane, next passer, sink model.Sink, directors []model.Director) (*quietIPVS, error) {
	have, err := old.Read(ctx)
	if err != nil {
		return nil, err
	}
	now, err := next.Read(ctx)
	if err != nil {
		return nil, err
	}
	q := &quietIPVS{old: old, new: next, sink: sink, wanted: keys(now), ours: map[model.ServiceKey]bool{}}
	for _, d := range directors {
		for _, s := range d.Services {
			q.wanted[s.Virtual.Key] = true
		}
	}
	found, there := false, keys(now)
	for _, v := range have.Services {
		found = found || q.wanted[v.Key]
		if q.wanted[v.Key] && !there[v.Key] {
			q.missed.Services = append(q.missed.Services, v)
		}
	}
	if !found {
		return nil, nil
	}
	if _, err := q.countOpen(ctx); err != nil {
		return q, err
	}
	if q.count > listedAtOnce {
		q.next = time.Now().Add(plane.Pace(0)) // by the task
		return q, nil
	}
	return q, q.passBy(ctx)
}

// countOpen counts connections by service, without listing them.
func (q *quietIPVS) countOpen(ctx context.Context) (map[model.ServiceKey]int, error) {
	counters, err := q.old.Counters(ctx)
	if err != nil {
		return nil, err
	}
	busy := map[model.ServiceKey]int{}
	q.count = 0
	for _, c := range counters {
		for _, r := range c.Reals {
			busy[c.Key] += int(r.Active + r.Inactive)
			q.count += int(r.Active + r.Inactive + r.Persistent)
		}
	}
	return busy, nil
}

func keys(t model.Table) map[model.ServiceKey]bool {
	m := map[model.ServiceKey]bool{}
	for _, v := range t.Services {
		m[v.Key] = true
	}
	return m
}

func (q *quietIPVS) rows(context.Context) (model.Table, error) { return q.missed, nil }

func (q *quietIPVS) bindings(ctx context.Context) ([]model.Binding, error) {
	switch {
	case q.count > listedAtAll:
		return nil, fmt.Errorf("its %d connections are more than the kernel can list in a minute: "+
			"the next datagrams of UDP clients, and the next connections of persistent ones, may come to another real server", q.count)
	case q.count > listedAtOnce:
		q.unread = true
		return nil, nil
	}
	return q.readBindings(ctx)
}

func (q *quietIPVS) readBindings(ctx context.Context) ([]model.Binding, error) {
	from, ok := plane.As[plane.Bound](q.old)
	if !ok {
		return nil, nil
	}
	all, err := from.Bindings(ctx)
	return slices.DeleteFunc(all, func(b model.Binding) bool { return !q.wanted[b.Service] }), err
}

// list does what needs a list of all connections, which costs more than all
// else: not again before a hundred times as long, or the time-out of UDP. New
// connections that are to be let by come with new services only; afterwards
// they become fewer.
func (q *quietIPVS) list(ctx context.Context) error {
	begin := time.Now()
	if q.looked && q.passed == 0 || q.count > listedAtAll || begin.Before(q.next) {
		return nil
	}
	defer func() { q.next = time.Now().Add(min(100*time.Since(begin), 5*time.Minute)) }()
	err := q.passBy(ctx)
	q.looked = err == nil
	if q.unread && err == nil {
		bindings, unlisted := q.readBindings(ctx)
		text, unbound := bind(ctx, q.new, bindings)
		q.unread = unlisted != nil
		tellSwap(q.sink, model.LevelNotice, text)
		err = errors.Join(unlisted, unbound)
	}
	return err
}

// passBy keeps datagrams of open connections, and repeated SYNs of half-open
// ones, away from the new plane. All other packets of its predecessor's
// connections it lets go by itself.
func (q *quietIPVS) passBy(ctx context.Context) error {
	flows, err := search(ctx, q.old, func(f model.Flow) bool {
		return f.Client.Port() != 0 && (f.Proto != model.TCP || f.State == "SYN_RECV") && f.Proto != model.ProtocolNone
	})
	if err != nil {
		return err
	}
	q.passed = len(flows)
	return q.new.PassBy(ctx, flows)
}

// search lists the connections of p that are wanted.
func search(ctx context.Context, p plane.Plane, wanted func(model.Flow) bool) ([]model.Flow, error) {
	if s, ok := plane.As[plane.Searcher](p); ok {
		return s.Search(ctx, wanted)
	}
	flows, err := p.Flows(ctx)
	return slices.DeleteFunc(flows, func(f model.Flow) bool { return !wanted(f) }), err
}

func (q *quietIPVS) release(ctx context.Context) (is left, err error) {
	now, err := q.new.Read(ctx)
	if err != nil {
		return is, err
	}
	have, err := q.old.Read(ctx)
	if err != nil {
		return is, err
	}
	busy, err := q.countOpen(ctx)
	if err != nil {
		return is, err
	}
	has := keys(now)
	var changes []model.Change
	for _, v := range have.Services {
		if has[v.Key] && !q.ours[v.Key] {
			q.ours[v.Key], q.looked = true, false
			if q.count <= listedAtOnce {
				q.next = time.Time{}
			}
		}
		if !q.ours[v.Key] {
			if q.wanted[v.Key] {
				is.kept++
			}
			continue
		}
		is.open += busy[v.Key]
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
	return is, errors.Join(q.old.Apply(ctx, changes), q.list(ctx))
}

func (q *quietIPVS) remove(ctx context.Context) error { return q.new.PassBy(ctx, nil) }
func (q *quietIPVS) close()                           { _ = q.old.Close() }
func (q *quietIPVS) String() string                   { return "the kernel's IPVS" }
