// Package proxy is the data plane in user space: it accepts connections on
// the virtual addresses and carries them over connections of its own. What
// comes in are changes of the table and the set of held addresses; what goes out
// are bytes, counters and connections. It needs no privilege but that of its
// ports, never changes anything on the host, and never outlives the process.
//
// What differs from planes in the kernel, and always will:
//
//   - Real servers see the director's address, not the client's. That is so
//     with gate and ipip as well, which are carried like masq: the client is served
//     the same.
//   - A counted packet is one read of a stream, or one datagram. Bytes are payload.
//   - A real server that refuses a connection is passed over for this one.
//   - Scheduler flags are kept in the table and have no effect.
//   - A server on the same host that listens on the port of a service on all
//     addresses is in the way: the row is refused with the reason.
//
// Goroutines: one for each listener, two for each TCP connection, one for each UDP
// session, one that ends idle sessions. All have ended when Close returns.
package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Options say how a proxy works. The zero value is fit for use.
type Options struct {
	// HoldAll serves every service, whatever SetAddresses says: for a
	// director without a cluster, whose addresses are somebody else's duty.
	HoldAll bool
	// ConnectTimeout bounds one attempt to reach a real server; 0: 3 s.
	ConnectTimeout time.Duration
	// UDPTimeout is how long an idle UDP session is kept; 0: 5 minutes (ipvsadm --set).
	UDPTimeout time.Duration
}

const (
	defaultConnectTimeout = 3 * time.Second
	defaultUDPTimeout     = 5 * time.Minute
	// maxAttempts bounds how many real servers are tried for one connection.
	maxAttempts = 3
)

// keepAlive finds connections whose other end has vanished without a word.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// keepAliveLimit is how long such a connection lives on.
const keepAliveLimit = 2 * time.Minute

// Plane is the proxy plane.
//
// Locks: change is held by whatever opens and closes listeners, from its
// beginning to its end; mu guards what connections need, is taken inside
// change, and is never held over a system call.
type Plane struct {
	options Options
	ctx     context.Context // ends with the plane: stops connecting
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	slots   chan struct{} // one for each connection
	pipes   pipePool

	change   sync.Mutex
	held     map[netip.Addr]bool
	missing  bool     // some held service could not be listened on
	starting []func() // listeners whose clients wait until the batch is done

	mu       sync.Mutex
	closed   bool
	services map[model.ServiceKey]*service
}

var (
	_ plane.Plane         = (*Plane)(nil)
	_ plane.AddressHolder = (*Plane)(nil)
	_ plane.Bound         = (*Plane)(nil)
	_ plane.Binder        = (*Plane)(nil)
)

// New makes a plane with an empty table that holds no address.
func New(o Options) *Plane {
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = defaultConnectTimeout
	}
	if o.UDPTimeout <= 0 {
		o.UDPTimeout = defaultUDPTimeout
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Plane{
		options: o, ctx: ctx, cancel: cancel,
		slots:    make(chan struct{}, capacity()),
		pipes:    newPipePool(),
		services: map[model.ServiceKey]*service{},
	}
	p.wg.Go(p.sweep)
	return p
}

// capacity is how many connections the limit on open files allows: each needs
// two sockets, and some files are left for everybody else.
func capacity() int {
	const reserve, most = 256, 1 << 19
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > 2*most {
		return most
	}
	return max(16, (int(r.Cur)-reserve)/2)
}

// Info names the plane and how it differs.
func (p *Plane) Info() model.PlaneInfo {
	return model.PlaneInfo{
		Name:   "proxy",
		Detail: "user space: TCP by splice, UDP by sessions; real servers see the director's address, with gate and ipip too",
		Size:   cap(p.slots),
	}
}

// Read returns the table.
func (p *Plane) Read(context.Context) (model.Table, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return model.Table{}, plane.ErrClosed
	}
	var t model.Table
	for _, s := range p.services {
		v := s.row
		for _, r := range s.reals {
			v.Reals = append(v.Reals, r.row)
		}
		t.Services = append(t.Services, v)
	}
	t.Sort()
	return t, nil
}

// Apply carries out changes. A service whose address cannot be listened on is
// refused with the reason.
func (p *Plane) Apply(ctx context.Context, changes []model.Change) error {
	p.change.Lock()
	defer p.change.Unlock()
	if p.isClosed() {
		return plane.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var rows []error
	for _, c := range changes {
		if err := p.carryOut(c); err != nil {
			rows = append(rows, &plane.RowError{Change: c, Err: err})
		}
	}
	if p.missing {
		_ = p.listenAll() // what was in the way may have gone
	}
	p.start()
	return errors.Join(rows...)
}

// SetAddresses gives the whole set of held addresses. Services that cannot be
// served on them are tried again with each change. With Options.HoldAll it does nothing.
func (p *Plane) SetAddresses(ctx context.Context, held []netip.Addr) error {
	p.change.Lock()
	defer p.change.Unlock()
	if p.isClosed() {
		return plane.ErrClosed
	}
	if err := ctx.Err(); err != nil || p.options.HoldAll {
		return err
	}
	p.held = map[netip.Addr]bool{}
	for _, a := range held {
		p.held[a.Unmap()] = true
	}
	for _, s := range p.snapshot() {
		if !p.holds(s) {
			p.silence(s)
		}
	}
	err := p.listenAll()
	p.start()
	return err
}

func (p *Plane) holds(s *service) bool {
	return p.options.HoldAll || p.held[s.row.Key.Addr.Addr()]
}

// listenAll opens the listeners that are missing.
func (p *Plane) listenAll() error {
	var failed []error
	for _, s := range p.snapshot() {
		if p.holds(s) && s.listener == nil {
			if err := p.listen(s); err != nil {
				failed = append(failed, &plane.AddressError{Addr: s.row.Key.Addr.Addr(), Err: err})
			}
		}
	}
	p.missing = len(failed) > 0
	return errors.Join(failed...)
}

// snapshot is the list of services, sorted.
func (p *Plane) snapshot() []*service {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*service, 0, len(p.services))
	for _, s := range p.services {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *service) int { return a.row.Key.Compare(b.row.Key) })
	return all
}

func (p *Plane) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// Counters returns the totals of every service.
func (p *Plane) Counters(context.Context) ([]model.ServiceCounters, error) {
	if p.isClosed() {
		return nil, plane.ErrClosed
	}
	var out []model.ServiceCounters
	all := p.snapshot()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range all {
		c := model.ServiceCounters{Key: s.row.Key, Counters: s.departed}
		for _, r := range s.reals {
			k := r.count.read()
			c.Counters = c.Add(k)
			c.Reals = append(c.Reals, model.RealCounters{Addr: r.row.Addr, Counters: k, Active: r.active, Inactive: r.inactive})
		}
		out = append(out, c)
	}
	return out, nil
}

// Flows lists the connections and sessions that have a real server.
func (p *Plane) Flows(context.Context) ([]model.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	var out []model.Flow
	for k, s := range p.services {
		for f := range s.flows {
			if f.real == nil {
				continue
			}
			expires := keepAliveLimit
			if k.Proto == model.UDP {
				expires = max(0, p.options.UDPTimeout-f.idle())
			}
			out = append(out, model.Flow{Proto: k.Proto, Client: f.client, Virtual: k.Addr, Real: f.real.row.Addr,
				State: f.state.String(), Expires: expires})
		}
	}
	return out, nil
}

// Bindings lists which client of a persistent service has which real server.
func (p *Plane) Bindings(context.Context) (all []model.Binding, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	for k, s := range p.services {
		all = append(all, s.affinity.Bindings(k, time.Now())...)
	}
	return all, nil
}

// Bind takes bindings over from another plane.
func (p *Plane) Bind(_ context.Context, bindings []model.Binding) (bound int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, plane.ErrClosed
	}
	for _, b := range bindings {
		s := p.services[b.Service]
		if s == nil {
			continue
		}
		if _, found := s.search(b.Real); found && s.affinity.Bind(s.row.Persistence, b, time.Now()) {
			bound++
		}
	}
	return bound, nil
}

// Close ends every listener, connection and goroutine.
func (p *Plane) Close() error {
	p.change.Lock()
	defer p.change.Unlock()
	if p.isClosed() {
		return plane.ErrClosed
	}
	p.cancel()
	for _, s := range p.snapshot() {
		p.silence(s)
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	p.pipes.close()
	return nil
}
