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
	"github.com/batuta-ha/batuta/internal/plane/ipvs"
)

// leftIPVS is what another life has left in the kernel's IPVS, as far as it is
// for this one: others' services are left alone.
type leftIPVS struct {
	old    plane.Plane
	wanted map[model.ServiceKey]bool // of the configuration, or the new plane's
	missed model.Table               // services that the new plane does not have yet
	count  int                       // of all connections, when last counted
}

// The kernel lists connections in a time that grows with the square of their
// number: it begins anew for each page of its text. What takes long is done
// while the new plane carries packets, and what takes minutes is not done.
// Measured: make bench-ipvs; 50,000 in half a second, 200,000 in 72 seconds.
const (
	listedAtOnce = 50_000
	listedAtAll  = 200_000
)

// openIPVS is nil where IPVS is not the predecessor of p. One with an error is
// one whose connections could not be looked at yet.
func openIPVS(p plane.Plane, sink model.Sink, directors []model.Director) (predecessor, error) {
	next, passes := plane.As[passer](p)
	if !passes && p.Info().Name != "proxy" {
		return nil, nil
	}
	if _, none := os.Stat("/proc/net/ip_vs"); none != nil {
		return nil, nil // not loaded, and it need not be
	}
	old, err := ipvs.Open(ipvs.Options{AsItIs: true})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	l, err := whatIsLeft(ctx, old, p, directors)
	if l == nil {
		return nil, errors.Join(err, old.Close())
	}
	if !passes {
		return &endedIPVS{leftIPVS: *l, new: p}, err
	}
	q := &quietIPVS{leftIPVS: *l, new: next, sink: sink}
	return q, errors.Join(err, q.begin(ctx))
}

// whatIsLeft is nil where the old plane has no service of the configuration or of the new one;
// with an error besides, its connections could not be counted.
func whatIsLeft(ctx context.Context, old, next plane.Plane, directors []model.Director) (*leftIPVS, error) {
	have, err := old.Read(ctx)
	if err != nil {
		return nil, err
	}
	now, err := next.Read(ctx)
	if err != nil {
		return nil, err
	}
	l := &leftIPVS{old: old, wanted: keys(now)}
	for _, d := range directors {
		for _, s := range d.Services {
			l.wanted[s.Virtual.Key] = true
		}
	}
	found, there := false, keys(now)
	for _, v := range have.Services {
		found = found || l.wanted[v.Key]
		if l.wanted[v.Key] && !there[v.Key] {
			l.missed.Services = append(l.missed.Services, v)
		}
	}
	if !found {
		return nil, nil
	}
	if _, err = l.countOpen(ctx); err != nil {
		l.count = listedAtOnce + 1 // perhaps: they are counted again before they are listed
	}
	return l, err
}

// countOpen counts connections by service, without listing them.
func (l *leftIPVS) countOpen(ctx context.Context) (map[model.ServiceKey]int, error) {
	counters, err := l.old.Counters(ctx)
	if err != nil {
		return nil, err
	}
	busy := map[model.ServiceKey]int{}
	l.count = 0
	for _, c := range counters {
		for _, r := range c.Reals {
			busy[c.Key] += int(r.Active + r.Inactive)
			l.count += int(r.Active + r.Inactive + r.Persistent)
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

func (l *leftIPVS) rows() model.Table { return l.missed }

func (l *leftIPVS) bindings(ctx context.Context) ([]model.Binding, error) {
	if l.count > listedAtAll {
		return nil, fmt.Errorf("its %d connections are more than the kernel can list in a minute: "+
			"the next datagrams of UDP clients, and the next connections of persistent ones, may come to another real server", l.count)
	}
	from, ok := plane.As[plane.Bound](l.old)
	if !ok {
		return nil, nil
	}
	all, err := from.Bindings(ctx)
	return slices.DeleteFunc(all, func(b model.Binding) bool { return !l.wanted[b.Service] }), err
}

func (l *leftIPVS) close()       { _ = l.old.Close() }
func (*leftIPVS) String() string { return "the kernel's IPVS" }

// endedIPVS makes way for the proxy. IPVS takes packets before any socket does,
// as long as it has their service: so that goes, with its connections.
type endedIPVS struct {
	leftIPVS
	new plane.Plane
}

func (e *endedIPVS) release(ctx context.Context) (is left, err error) {
	now, err := e.new.Read(ctx)
	if err != nil {
		return is, err
	}
	have, err := e.old.Read(ctx)
	if err != nil {
		return is, err
	}
	busy, err := e.countOpen(ctx)
	if err != nil {
		return is, err
	}
	has := keys(now)
	var changes []model.Change
	for _, v := range have.Services {
		switch {
		case has[v.Key]:
			is.ended += busy[v.Key]
			changes = append(changes, model.Change{Op: model.ServiceDelete, Service: v})
		case e.wanted[v.Key]:
			is.kept++
		}
	}
	return is, e.old.Apply(ctx, changes)
}

func (*endedIPVS) remove(context.Context) error { return nil }

// quietIPVS makes way for the eBPF plane: that comes first and sees the packets
// before. Rows of services that it has get weight 0, and go when their last
// connection has ended.
type quietIPVS struct {
	leftIPVS
	new  passer
	sink model.Sink

	ours   map[model.ServiceKey]bool // that the new plane has or had: they are ended here
	passed int                       // connections that the new plane was last told to let by
	looked bool                      // for them, with all of ours
	next   time.Time                 // not before: listing connections takes long
	unread bool                      // bindings were put off
}

// passer is a plane that leaves connections to another one behind it.
type passer interface {
	plane.Plane
	PassBy(ctx context.Context, flows []model.Flow) error
}

// begin lets connections by before the new plane serves.
func (q *quietIPVS) begin(ctx context.Context) error {
	q.ours = map[model.ServiceKey]bool{}
	if q.count > listedAtOnce {
		q.next = time.Now().Add(plane.Pace(0)) // by the task
		return nil
	}
	return q.passBy(ctx)
}

func (q *quietIPVS) bindings(ctx context.Context) ([]model.Binding, error) {
	if q.unread = q.count > listedAtOnce && q.count <= listedAtAll; q.unread {
		return nil, nil
	}
	return q.leftIPVS.bindings(ctx)
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
		bindings, unlisted := q.leftIPVS.bindings(ctx)
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
