package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Options says how to open the plane. The zero value is usable.
type Options struct {
	// Timeouts are how long silent connections stay; zero members stay as the
	// kernel has them.
	Timeouts Timeouts
}

// Timeouts are those of ipvsadm --set, rounded up to whole seconds.
type Timeouts struct {
	TCP    time.Duration // established; the kernel begins with 15 min
	TCPFin time.Duration // after a FIN; 2 min
	UDP    time.Duration // 5 min
}

// Plane is the kernel's IP Virtual Server in the network namespace of the
// thread that opened it. Its methods may be called from any goroutine.
type Plane struct {
	mu     sync.Mutex // guards all below; taken by every method
	closed bool
	conn   *genetlink.Conn
	family uint16
	flows  *os.File // /proc/net/ip_vs_conn of that namespace
	info   model.PlaneInfo
	gone   graveyard

	// spelled is how services were last written here, for those that have
	// several spellings (order of flags, a netmask of one host): they are read
	// back as they were written, or balance would see a difference for ever.
	spelled map[model.ServiceKey]model.VirtualService
}

var _ plane.Plane = (*Plane)(nil)

// Supported tells whether the plane can work here, and loads the kernel's
// module for that where it is absent: nil is yes; an error that wraps
// plane.ErrNotSupported is no, with the way out; any other error means that it
// could not be found out.
func Supported() error {
	p, err := dial()
	if err != nil {
		return err
	}
	return p.Close()
}

// Open opens the plane and adopts the table that the kernel has. Its errors
// are those of Supported, and timeouts that the kernel refuses.
func Open(o Options) (*Plane, error) {
	p, err := dial()
	if err != nil {
		return nil, err
	}
	if err := p.prepare(o); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// dial finds the family, with the module loaded if need be, and makes sure
// that the kernel lets this process use it.
func dial() (*Plane, error) {
	conn, err := genetlink.Dial(nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("the IPVS plane needs a kernel with generic netlink: use the ebpf or the proxy plane: %w", plane.ErrNotSupported)
	}
	if err != nil {
		return nil, fmt.Errorf("open generic netlink to ask for IPVS: %w", err)
	}
	p, err := newPlane(conn, loadModule)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return p, nil
}

// newPlane speaks IPVS on a connection; load is called once where the kernel
// does not know the family, and says why it could not help.
func newPlane(conn *genetlink.Conn, load func() error) (*Plane, error) {
	family, err := conn.GetFamily(familyName)
	if errors.Is(err, os.ErrNotExist) {
		if why := load(); why != nil {
			return nil, fmt.Errorf("this kernel has no IPVS: %w: load the module ip_vs, or use the ebpf or the proxy plane: %w", why, plane.ErrNotSupported)
		}
		family, err = conn.GetFamily(familyName)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("this kernel has no IPVS, although modprobe ip_vs succeeded: use the ebpf or the proxy plane: %w", plane.ErrNotSupported)
	}
	if err != nil {
		return nil, fmt.Errorf("find out whether the kernel has IPVS: %w", err)
	}
	p := &Plane{conn: conn, family: family.ID}
	answer, err := p.execute(cmdGetInfo, nil, netlink.Request)
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("%w: %w", errPermission, plane.ErrNotSupported)
		}
		return nil, fmt.Errorf("ask IPVS for its version: %w", err)
	}
	if len(answer) == 0 {
		return nil, fmt.Errorf("ask IPVS for its version: %w: no answer", errForm)
	}
	version, size, err := decodeInfo(answer[0].Data)
	if err != nil {
		return nil, fmt.Errorf("ask IPVS for its version: %w", err)
	}
	p.info = model.PlaneInfo{Name: "ipvs", Size: int(size),
		Detail: fmt.Sprintf("the kernel's IP Virtual Server %d.%d.%d", version>>16&0xff, version>>8&0xff, version&0xff)}
	return p, nil
}

// prepare sets what is the namespace's: timeouts and the one switch.
func (p *Plane) prepare(o Options) error {
	var err error
	// The file stays that of this thread's namespace wherever it is read.
	if p.flows, err = os.Open("/proc/thread-self/net/ip_vs_conn"); err != nil {
		return fmt.Errorf("IPVS connections: %w", err)
	}
	// Connections of a real server that is deleted end at once.
	const expire = "/proc/sys/net/ipv4/vs/expire_nodest_conn"
	if err := os.WriteFile(expire, []byte("1"), 0); err != nil {
		p.gone.off = true
		p.info.Detail += "; connections of deleted real servers linger: " + err.Error()
	}
	if o.Timeouts == (Timeouts{}) {
		return nil
	}
	message, err := encodeTimeouts(o.Timeouts)
	if err != nil {
		return fmt.Errorf("IPVS timeouts: %w", err)
	}
	if _, err := p.execute(cmdSetConfig, message, netlink.Request|netlink.Acknowledge); err != nil {
		return fmt.Errorf("set the IPVS timeouts: %w", err)
	}
	return nil
}

// Info names the kernel's version; Size is how many buckets its connection
// table has, as ipvsadm prints it.
func (p *Plane) Info() model.PlaneInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.info
}

// Read asks the kernel for its table: the whole of it, whoever made it.
func (p *Plane) Read(ctx context.Context) (model.Table, error) {
	var t model.Table
	err := p.each(ctx, func(s service, dests []dest) {
		v := s.VirtualService
		if w, ok := p.spelled[v.Key]; ok && sameMessage(v, w) {
			v = w
		}
		for _, d := range dests {
			v.Reals = append(v.Reals, d.RealServer)
		}
		t.Services = append(t.Services, v)
	})
	if err != nil {
		return model.Table{}, err
	}
	t.Sort()
	return t, nil
}

// Counters asks the kernel for its totals, 64 bits wide since Linux 4.1.
func (p *Plane) Counters(ctx context.Context) ([]model.ServiceCounters, error) {
	var list []model.ServiceCounters
	err := p.each(ctx, func(s service, dests []dest) {
		c := model.ServiceCounters{Key: s.Key, Counters: s.counters}
		for _, d := range dests {
			c.Reals = append(c.Reals, model.RealCounters{Addr: d.Addr, Counters: d.counters,
				Active: uint64(d.active), Inactive: uint64(d.inactive)})
		}
		slices.SortFunc(c.Reals, func(a, b model.RealCounters) int { return a.Addr.Compare(b.Addr) })
		list = append(list, c)
	})
	slices.SortFunc(list, func(a, b model.ServiceCounters) int { return a.Key.Compare(b.Key) })
	return list, err
}

// each calls do with every service and its real servers.
func (p *Plane) each(ctx context.Context, do func(service, []dest)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	answers, err := p.dump(cmdGetService, nil)
	if err != nil {
		return fmt.Errorf("list the IPVS services: %w", err)
	}
	for _, a := range answers {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := decodeService(a.Data)
		if err != nil {
			return fmt.Errorf("list the IPVS services: %w", err)
		}
		dests, err := p.dests(s.Key)
		if err != nil {
			return fmt.Errorf("list the real servers of %s: %w", s.Key, err)
		}
		do(s, dests)
	}
	return nil
}

// sameMessage tells whether two services are one to the kernel.
func sameMessage(v, w model.VirtualService) bool {
	a, errA := encodeService(v)
	b, errB := encodeService(w)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

func (p *Plane) dests(k model.ServiceKey) ([]dest, error) {
	message, err := encodeKey(k)
	if err != nil {
		return nil, err
	}
	answers, err := p.dump(cmdGetDest, message)
	if err != nil {
		return nil, err
	}
	dests := make([]dest, len(answers))
	for i, a := range answers {
		if dests[i], err = decodeDest(a.Data, k.Family()); err != nil {
			return nil, err
		}
	}
	return dests, nil
}

// Flows reads the kernel's connections, with the templates of persistence
// among them, as ipvsadm -Lc lists them.
func (p *Plane) Flows(context.Context) ([]model.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	return p.listFlows()
}

func (p *Plane) listFlows() ([]model.Flow, error) {
	if _, err := p.flows.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("IPVS connections: %w", err)
	}
	flows, err := readFlows(p.flows)
	if err != nil {
		return nil, fmt.Errorf("IPVS connections: %w", err)
	}
	return flows, nil
}

// Close lets go of the kernel; table and connections stay.
func (p *Plane) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	p.closed = true
	err := p.conn.Close()
	if p.flows != nil {
		err = errors.Join(err, p.flows.Close())
	}
	if err != nil {
		return fmt.Errorf("close the IPVS plane: %w", err)
	}
	return nil
}

// Apply carries changes out, one request for each.
func (p *Plane) Apply(ctx context.Context, changes []model.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	var rows []error
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := p.carryOut(ctx, c)
		switch {
		case err == nil:
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%s: %w", c, errPermission)
		case ctx.Err() != nil || isTrouble(err):
			return fmt.Errorf("%s: %w", c, err)
		default:
			rows = append(rows, &plane.RowError{Change: c, Err: err})
		}
	}
	return errors.Join(rows...)
}

// isTrouble tells an error of the connection, after which nothing is known,
// from the kernel's refusal of one request.
func isTrouble(err error) bool {
	var op *netlink.OpError
	return errors.As(err, &op) && op.Op != "receive" || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ENOBUFS)
}

func (p *Plane) carryOut(ctx context.Context, c model.Change) error {
	k, real := c.Service.Key, c.Real
	if !k.IsMark() && (real.Forward == model.Gate || real.Forward == model.IPIP) {
		// Only masq changes the port, so that is the port they have (ipvsadm(8) -r).
		real.Addr = netip.AddrPortFrom(real.Addr.Addr(), k.Addr.Port())
	}
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		message, err := encodeService(c.Service)
		if err != nil {
			return err
		}
		if err := p.put(c.Op == model.ServiceAdd, cmdNewService, cmdSetService, unix.ESRCH, message); err != nil {
			return refusedService(c.Service, err)
		}
		if p.spelled == nil {
			p.spelled = map[model.ServiceKey]model.VirtualService{}
		}
		p.spelled[k] = model.VirtualService{Key: k, Scheduler: c.Service.Scheduler, SchedFlags: c.Service.SchedFlags,
			Persistence: c.Service.Persistence, OnePacket: c.Service.OnePacket}
		return nil
	case model.ServiceDelete:
		message, err := encodeKey(k)
		if err != nil {
			return err
		}
		p.gone.note(grave{service: k})
		delete(p.spelled, k)
		return unless(p.tell(cmdDelService, message), unix.ESRCH)
	case model.RealAdd, model.RealEdit:
		message, err := encodeDest(k, real, true)
		if err != nil {
			return err
		}
		if err := p.bury(ctx, k, real.Addr); err != nil {
			return err
		}
		err = p.put(c.Op == model.RealAdd, cmdNewDest, cmdSetDest, unix.ENOENT, message)
		return refusedReal(c.Service.Key, real, err)
	case model.RealDelete:
		message, err := encodeDest(k, real, false)
		if err != nil {
			return err
		}
		p.gone.note(grave{service: k, real: real.Addr})
		return unless(p.tell(cmdDelDest, message), unix.ESRCH, unix.ENOENT)
	case model.ChangeNone:
	}
	return nil
}

// put adds what is new and edits what is there, trying first what the change
// says it is. absent is the kernel's word for a row that is not there.
func (p *Plane) put(isNew bool, add, edit uint8, absent unix.Errno, message []byte) error {
	if isNew {
		if err := p.tell(add, message); !errors.Is(err, unix.EEXIST) {
			return err
		}
		return p.tell(edit, message)
	}
	if err := p.tell(edit, message); !errors.Is(err, absent) {
		return err
	}
	return p.tell(add, message)
}

// unless takes some refusals for success.
func unless(err error, words ...unix.Errno) error {
	for _, w := range words {
		if errors.Is(err, w) {
			return nil
		}
	}
	return err
}

func (p *Plane) tell(command uint8, message []byte) error {
	_, err := p.execute(command, message, netlink.Request|netlink.Acknowledge)
	return err
}

// dump asks for a list; where the table changes meanwhile the kernel may say
// that the list was interrupted, and is asked again.
func (p *Plane) dump(command uint8, message []byte) ([]genetlink.Message, error) {
	const tries = 5
	for n := 1; ; n++ {
		answers, err := p.execute(command, message, netlink.Request|netlink.Dump)
		if n == tries || !errors.Is(err, unix.EINTR) {
			return answers, err
		}
	}
}

func (p *Plane) execute(command uint8, data []byte, flags netlink.HeaderFlags) ([]genetlink.Message, error) {
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: data}
	return p.conn.Execute(m, p.family, flags)
}
