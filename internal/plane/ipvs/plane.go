package ipvs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Options says how to open the plane. The zero value is usable.
type Options struct {
	// IPVS is what is wanted besides the table.
	model.IPVS

	// AsItIs leaves all settings of the kernel as they are.
	AsItIs bool

	// Originals is a file that keeps what sysctls were before they were
	// changed: the next Open puts back those that it is not told to set. ""
	// for none. It belongs where a reboot clears it away, as it does sysctls.
	Originals string
}

// Plane is the kernel's IP Virtual Server in the network namespace of the
// thread that opened it. Its methods may be called from any goroutine.
type Plane struct {
	mu      sync.Mutex // guards all below; taken by every method
	closed  bool
	raw     *netlink.Conn
	conn    *genetlink.Conn                          // the same, one request at a time
	receive func() ([]syscall.NetlinkMessage, error) // of raw, one datagram
	family  uint16
	flows   *os.File // /proc/net/ip_vs_conn of that namespace
	tuned   sysctls
	info    model.PlaneInfo
	gone    graveyard

	// spelled is how services were last written here, for those that have
	// several spellings (order of flags, a netmask of one host): they are read
	// back as they were written, or balance would see a difference for ever.
	spelled map[model.ServiceKey]model.VirtualService
}

var (
	_ plane.Plane         = (*Plane)(nil)
	_ plane.RateKeeper    = (*Plane)(nil)
	_ plane.TimeoutKeeper = (*Plane)(nil)
	_ plane.Syncer        = (*Plane)(nil)
	_ plane.Tuned         = (*Plane)(nil)
	_ plane.Bound         = (*Plane)(nil)
	_ plane.Searcher      = (*Plane)(nil)
)

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
	conn, err := netlink.Dial(unix.NETLINK_GENERIC, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("the IPVS plane needs a kernel with generic netlink: use the ebpf or the proxy plane: %w", plane.ErrNotSupported)
	}
	if err != nil {
		return nil, fmt.Errorf("open generic netlink to ask for IPVS: %w", err)
	}
	p, err := newPlane(conn, loadModule)
	if err == nil {
		p.receive, err = receiver(conn)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return p, nil
}

// newPlane speaks IPVS on a connection; load is called once where the kernel
// does not know the family, and says why it could not help.
func newPlane(raw *netlink.Conn, load func() error) (*Plane, error) {
	conn := genetlink.NewConn(raw)
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
	p := &Plane{raw: raw, conn: conn, family: family.ID, spelled: map[model.ServiceKey]model.VirtualService{}}
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

// prepare sets what is the namespace's: timeouts, sysctls, sync daemons.
func (p *Plane) prepare(o Options) error {
	var err error
	// The file stays that of this thread's namespace wherever it is read.
	if p.flows, err = os.Open("/proc/thread-self/net/ip_vs_conn"); err != nil {
		return fmt.Errorf("IPVS connections: %w", err)
	}
	if o.AsItIs {
		p.gone.off = !endsConnections()
		return nil
	}
	if p.tuned, err = openSysctls(o.Originals); err != nil {
		return err
	}
	// Connections of a real server that is deleted end at once.
	wanted := []string{"expire_nodest_conn"}
	if err := p.tuned.set(model.Setting{Name: "expire_nodest_conn", Value: "1"}); err != nil {
		p.info.Detail += "; connections of deleted real servers linger: " + err.Error()
	}
	for _, s := range o.Sysctls {
		if err := p.tuned.set(s); err != nil {
			return err
		}
		wanted = append(wanted, s.Name)
	}
	if err := p.tuned.restoreBut(wanted); err != nil {
		return err
	}
	p.gone.off = !endsConnections()
	if o.Sync != nil {
		for _, role := range []model.SyncRole{model.SyncMaster, model.SyncBackup} {
			d := *o.Sync
			d.Role = role
			if err := p.startSync(d); err != nil {
				return err
			}
		}
		p.info.Detail += "; connections are shared over " + o.Sync.Interface
	}
	if o.Timeouts == (model.Timeouts{}) {
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
	return p.counted(ctx, func(c counts) model.Counters { return c.total })
}

// Rates asks the kernel for its estimates of what is counted per second, over
// the last seconds (Documentation/networking/ipvs-sysctl.rst, run_estimation).
func (p *Plane) Rates(ctx context.Context) ([]model.ServiceCounters, error) {
	return p.counted(ctx, func(c counts) model.Counters { return c.rate })
}

func (p *Plane) counted(ctx context.Context, of func(counts) model.Counters) ([]model.ServiceCounters, error) {
	var list []model.ServiceCounters
	err := p.each(ctx, func(s service, dests []dest) {
		c := model.ServiceCounters{Key: s.Key, Counters: of(s.counts)}
		for _, d := range dests {
			c.Reals = append(c.Reals, model.RealCounters{Addr: d.Addr, Counters: of(d.counts),
				Active: uint64(d.active), Inactive: uint64(d.inactive), Persistent: uint64(d.persistent)})
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
		s, err := decodeService(a)
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
		if dests[i], err = decodeDest(a, k.Family()); err != nil {
			return nil, err
		}
	}
	return dests, nil
}

// Flows reads the kernel's connections, with the templates of persistence
// among them, as ipvsadm -Lc lists them.
func (p *Plane) Flows(ctx context.Context) ([]model.Flow, error) {
	return p.Search(ctx, everything)
}

func everything(model.Flow) bool { return true }

// Search reads all of the kernel's connections, too, but keeps only some. It
// ends with ctx: the kernel takes a minute for 200,000 (make bench-ipvs).
func (p *Plane) Search(ctx context.Context, wanted func(model.Flow) bool) ([]model.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	return p.listFlows(ctx, wanted)
}

func (p *Plane) listFlows(ctx context.Context, wanted func(model.Flow) bool) ([]model.Flow, error) {
	if _, err := p.flows.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("IPVS connections: %w", err)
	}
	flows, err := readFlows(pages{ctx, p.flows}, wanted)
	if err != nil {
		return nil, fmt.Errorf("IPVS connections: %w", err)
	}
	return flows, nil
}

// pages is a file that ends with its context.
type pages struct {
	ctx  context.Context
	file io.Reader
}

func (p pages) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.file.Read(b)
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

func (p *Plane) tell(command uint8, message []byte) error {
	_, err := p.execute(command, message, netlink.Request|netlink.Acknowledge)
	return err
}

// dump asks for a list and returns its messages; where the table changes
// meanwhile the kernel may say that the list was interrupted, and is asked
// again.
func (p *Plane) dump(command uint8, message []byte) ([][]byte, error) {
	const tries = 5
	for n := 1; ; n++ {
		answers, whole, err := p.list(command, message)
		if err != nil || whole || n == tries {
			return answers, err
		}
	}
}

// list asks once. It goes by receive, which reads a datagram in one call where
// package netlink needs three: a large table is thousands of lists.
func (p *Plane) list(command uint8, message []byte) (answers [][]byte, whole bool, err error) {
	m, err := p.pack(command, message)
	if err != nil {
		return nil, false, err
	}
	m.Header.Flags |= netlink.Dump
	sent, err := p.raw.SendMessages([]netlink.Message{m})
	if err != nil {
		return nil, false, err
	}
	for whole = true; ; {
		messages, err := p.receive()
		if err != nil {
			return nil, false, err
		}
		for _, a := range messages {
			switch {
			case a.Header.Seq != sent[0].Header.Sequence:
				continue // of a request that was given up
			case a.Header.Type == unix.NLMSG_DONE || a.Header.Type == unix.NLMSG_ERROR:
				if len(a.Data) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(a.Data)); code < 0 {
						return nil, false, unix.Errno(-code)
					}
				}
				return answers, whole, nil
			case len(a.Data) < genlHeader:
				return nil, false, fmt.Errorf("%w: a message of %d bytes", errForm, len(a.Data))
			}
			whole = whole && a.Header.Flags&unix.NLM_F_DUMP_INTR == 0
			answers = append(answers, bytes.Clone(a.Data[genlHeader:]))
		}
	}
}

func (p *Plane) execute(command uint8, data []byte, flags netlink.HeaderFlags) ([]genetlink.Message, error) {
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: data}
	return p.conn.Execute(m, p.family, flags)
}
