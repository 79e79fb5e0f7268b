// Package memory is a data plane in the model's own terms: the fake for
// tests, what --dry-run applies to, and an oracle for planes that carry real
// packets. What comes in are changes of the table and, from tests, packets as
// a client and a real server would send them; what goes out are the table,
// the fate of each packet, counters and connections.
//
// With a table file the table lives there, not in the process: it is read
// before and written after each change, so that another program may edit it
// meanwhile. The package never touches the network.
package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Options say where a plane keeps its table and what it tells.
type Options struct {
	Now        func() time.Time // nil: time.Now
	TableFile  string           // where the table lives, as JSON; "" for the process only
	EventsFile string           // one JSON line is appended for each Apply that changes something; "" for none
	Timeouts   Timeouts
}

// Timeouts are how long silent connections are kept; 0 for ipvsadm's values.
type Timeouts struct {
	Established time.Duration // TCP, 15 minutes
	Closing     time.Duration // TCP after the first FIN, 2 minutes
	Opening     time.Duration // TCP before the handshake has ended, 1 minute
	UDP         time.Duration // 5 minutes
}

func (t Timeouts) orDefault() Timeouts {
	or := func(d, standard time.Duration) time.Duration {
		if d == 0 {
			return standard
		}
		return d
	}
	return Timeouts{or(t.Established, 15*time.Minute), or(t.Closing, 2*time.Minute), or(t.Opening, time.Minute), or(t.UDP, 5*time.Minute)}
}

// Plane is the plane in memory.
type Plane struct {
	options Options

	mu       sync.Mutex
	closed   bool
	table    model.Table
	services map[model.ServiceKey]*service
	flows    map[flowKey]*flow
	file     []byte // the table file as last read or written
}

var (
	_ plane.Plane  = (*Plane)(nil)
	_ plane.Bound  = (*Plane)(nil)
	_ plane.Binder = (*Plane)(nil)
)

// New opens a plane. A table file that exists but cannot be understood is an
// error; one that does not exist is an empty table.
func New(o Options) (*Plane, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Timeouts = o.Timeouts.orDefault()
	p := &Plane{options: o, services: map[model.ServiceKey]*service{}, flows: map[flowKey]*flow{}}
	if err := p.locked(func() error { return nil }); err != nil {
		return nil, err
	}
	if o.EventsFile != "" {
		if err := appendTo(o.EventsFile, nil); err != nil {
			return nil, fmt.Errorf("events file: %w", err)
		}
	}
	return p, nil
}

// locked runs do with the plane's lock held, on the table as it is now: that
// of the table file, whose lock is held as well.
func (p *Plane) locked(do func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	if p.options.TableFile == "" {
		return do()
	}
	unlock, err := lockFile(p.options.TableFile)
	if err != nil {
		return fmt.Errorf("table file: %w", err)
	}
	defer unlock()
	b, err := readTable(p.options.TableFile)
	if err != nil {
		return fmt.Errorf("table file: %w", err)
	}
	if p.file == nil || !bytes.Equal(b, p.file) {
		t, err := decodeTable(b)
		if err != nil {
			return fmt.Errorf("table file %s: %w; repair it, or remove it to start with an empty table", p.options.TableFile, err)
		}
		p.adopt(t)
		p.file = b
	}
	return do()
}

// Info names the plane.
func (p *Plane) Info() model.PlaneInfo {
	detail := "a model: no packet is touched"
	if p.options.TableFile != "" {
		detail += "; table in " + p.options.TableFile
	}
	return model.PlaneInfo{Name: "memory", Detail: detail, Size: 4096}
}

// Read returns the table.
func (p *Plane) Read(context.Context) (t model.Table, err error) {
	err = p.locked(func() error {
		t = p.table.Clone()
		return nil
	})
	return t, err
}

// Apply carries out changes. If the table file cannot be written nothing is
// changed; if the events file cannot, everything is, and the error says so.
func (p *Plane) Apply(_ context.Context, changes []model.Change) error {
	return p.locked(func() error {
		next := p.table.Clone()
		var (
			done []model.Change
			rows []error
		)
		for _, c := range changes {
			c, differs, err := perform(&next, c)
			if err != nil {
				rows = append(rows, &plane.RowError{Change: c, Err: err})
			} else if differs {
				done = append(done, c)
			}
		}
		if len(done) == 0 {
			return errors.Join(rows...)
		}
		if f := p.options.TableFile; f != "" {
			b := encodeTable(next)
			if err := replaceFile(f, b); err != nil {
				return fmt.Errorf("table file: %w; nothing was changed", err)
			}
			p.file = b
		}
		for _, c := range done {
			p.carryOut(c)
		}
		if f := p.options.EventsFile; f != "" {
			if err := appendTo(f, eventLine(p.options.Now(), done)); err != nil {
				return fmt.Errorf("events file: %w; the table was changed all the same", err)
			}
		}
		return errors.Join(rows...)
	})
}

// perform checks one change, carries it out on a table and returns it under
// the name of what it did: adding what is there is an edit.
func perform(t *model.Table, c model.Change) (as model.Change, differs bool, err error) {
	if err := checkRow(c); err != nil {
		return c, false, err
	}
	if k := c.Service.Key; !k.IsMark() && (c.Real.Forward == model.Gate || c.Real.Forward == model.IPIP) {
		// Only masq changes the port, so that is the port they have (ipvsadm(8) -r).
		c.Real.Addr = netip.AddrPortFrom(c.Real.Addr.Addr(), k.Addr.Port())
	}
	v := t.Find(c.Service.Key)
	var r *model.RealServer
	if v != nil {
		r = v.Find(c.Real.Addr)
	}
	as = c
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		as.Op = model.ServiceAdd
		if v != nil {
			as.Op = model.ServiceEdit
		}
		differs = v == nil || !v.SameParameters(c.Service)
	case model.ServiceDelete:
		differs = v != nil
	case model.RealAdd, model.RealEdit:
		as.Op = model.RealAdd
		if r != nil {
			as.Op = model.RealEdit
		}
		differs = r == nil || *r != c.Real
	case model.RealDelete:
		differs = r != nil
	case model.ChangeNone:
	}
	if err := t.Perform(c); err != nil {
		return c, false, err
	}
	return as, differs, nil
}

// checkRow refuses what ipvsadm(8) refuses.
func checkRow(c model.Change) error {
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		return checkService(c.Service)
	case model.RealAdd, model.RealEdit:
		return checkReal(c.Real)
	case model.ServiceDelete, model.RealDelete:
		return nil
	case model.ChangeNone:
	}
	return fmt.Errorf("%w: a change that says nothing", plane.ErrNotSupported)
}

func checkService(v model.VirtualService) error {
	switch {
	case !slices.Contains(plane.Schedulers, v.Scheduler):
		return fmt.Errorf("scheduler %q: %w: known are %v", v.Scheduler, plane.ErrNotSupported, plane.Schedulers)
	case v.Key.IsMark() && (v.Key.Mark == 0 || v.Key.MarkFamily == model.FamilyNone):
		return fmt.Errorf("firewall mark %d: %w: a mark is a number above 0 with a family", v.Key.Mark, plane.ErrNotSupported)
	case !v.Key.IsMark() && !v.Key.Addr.IsValid():
		return fmt.Errorf("virtual address: %w: it is missing", plane.ErrNotSupported)
	}
	return nil
}

func checkReal(r model.RealServer) error {
	switch {
	case !r.Addr.IsValid():
		return fmt.Errorf("real server: %w: its address is missing", plane.ErrNotSupported)
	case r.Forward == model.ForwardNone || r.Forward > model.IPIP:
		return fmt.Errorf("forwarding method %s: %w: known are masq, gate and ipip", r.Forward, plane.ErrNotSupported)
	case r.Weight < 0 || r.Weight > maxWeight:
		return fmt.Errorf("weight %d: %w: a weight is 0 to %d", r.Weight, plane.ErrNotSupported, maxWeight)
	}
	return nil
}

// maxWeight is the greatest weight that ipvsadm(8) takes.
const maxWeight = 65535

// Close ends the plane. A table file stays.
func (p *Plane) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	p.closed = true
	return nil
}

// Counters returns the totals of every service of the table.
func (p *Plane) Counters(context.Context) (out []model.ServiceCounters, err error) {
	err = p.locked(func() error {
		p.expire()
		active := p.connections()
		for _, v := range p.table.Services {
			s := p.services[v.Key]
			c := model.ServiceCounters{Key: v.Key, Counters: s.total}
			for _, r := range v.Reals {
				n := active[realKey{v.Key, r.Addr}]
				c.Reals = append(c.Reals, model.RealCounters{Addr: r.Addr, Counters: s.reals[r.Addr].total, Active: n.active, Inactive: n.inactive})
			}
			out = append(out, c)
		}
		return nil
	})
	return out, err
}

// Flows lists the connections.
func (p *Plane) Flows(context.Context) (out []model.Flow, err error) {
	err = p.locked(func() error {
		p.expire()
		now := p.options.Now()
		for k, f := range p.flows {
			out = append(out, model.Flow{Proto: k.service.Proto, Client: k.client, Virtual: k.service.Addr, Real: f.real,
				State: f.state.String(), Expires: f.expires.Sub(now)})
		}
		return nil
	})
	return out, err
}

// Bindings lists which client of a persistent service has which real server.
func (p *Plane) Bindings(context.Context) (all []model.Binding, err error) {
	err = p.locked(func() error {
		for k, s := range p.services {
			all = append(all, s.affinity.Bindings(k, p.options.Now())...)
		}
		return nil
	})
	return all, err
}

// Bind takes bindings over from another plane.
func (p *Plane) Bind(_ context.Context, bindings []model.Binding) (bound int, err error) {
	err = p.locked(func() error {
		for _, b := range bindings {
			v := p.table.Find(b.Service)
			if v != nil && v.Find(b.Real) != nil && p.services[b.Service].affinity.Bind(v.Persistence, b, p.options.Now()) {
				bound++
			}
		}
		return nil
	})
	return bound, err
}

// realKey is one real server of one service.
type realKey struct {
	service model.ServiceKey
	real    netip.AddrPort
}
