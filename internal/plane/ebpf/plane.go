package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// DefaultDir is where maps and links are pinned.
const DefaultDir = "/sys/fs/bpf/batuta"

// Options says how to open the plane. The zero value is usable.
type Options struct {
	// Dir is the directory of the pins, on a BPF file system. "" is DefaultDir.
	Dir string
	// MaxFlows is how many connections the table holds (128 bytes each where it is a power of two, up to 160 between);
	// 0 is 262144, as the sizes below: for a new table. One that is taken over keeps
	// its sizes; where others are asked for, it goes on beside a new one with the
	// connections that it has, as that of another version does.
	MaxFlows int
	// MaxServices, MaxReals (a row under each of two services counts twice) and
	// MaxTurns (of all rings together) bound the table; 0 is 4096, 65536 (fewer
	// on machines with more than 16 processors, down to 8192) and 4194304.
	MaxServices, MaxReals, MaxTurns int
	// MaxClients is how many clients of persistent services are remembered; 0
	// is a quarter of MaxFlows. Those beyond are served, but not remembered.
	MaxClients int
	// Interfaces tells which interfaces to attach to, among those that are
	// Ethernet-like, not loopback and not ports of a bridge or bond. nil is all.
	Interfaces func(name string) bool
	// Timeouts are how long silent connections stay; zero members are IPVS's.
	Timeouts Timeouts
	// Sink is told of interfaces and trouble; nil for nobody.
	Sink model.Sink

	asked sizes // before fill
	notes int   // of half-open connections of a full table, a power of two; 0 is notes
	// XDP is where the quick way before the stack is taken; see XDPMode.
	XDP XDPMode
	// Cgroup is the control group (version 2) whose processes are balanced as
	// clients on the director itself; "" is the root, all of them.
	Cgroup string
	// NoTCX attaches as on kernels before 6.6, which have no tcx.
	NoTCX bool
}

// Timeouts are how long a connection stays after its last packet, by state.
type Timeouts struct {
	SynRecv     time.Duration // half open; 60 s
	Established time.Duration // 15 min
	CloseWait   time.Duration // the client has ended; 1 min
	FinWait     time.Duration // the real server has ended; 2 min
	Closing     time.Duration // both have, or the real server was deleted; 2 min
	Closed      time.Duration // reset; 10 s
	UDP         time.Duration // 5 min

	// Young is for how long a half-open connection does not give way to a new
	// one where the table is full; 200 ms.
	Young time.Duration
}

// tickShift makes ticks of nanoseconds, as ticks() of bpf/maps.h does.
const tickShift = 20

func toTicks(d time.Duration) uint32 { return uint32(d >> tickShift) }

func ofTicks(n int32) time.Duration { return time.Duration(n) << tickShift }

// Plane is the eBPF data plane. Its methods may be called from any goroutine.
type Plane struct {
	o    Options
	sink model.Sink

	mu      sync.Mutex // guards all below; taken by every method
	closed  bool
	t       *tables
	in      *ebpf.Program
	out     *ebpf.Program
	sweep   *ebpf.Program
	hooks   *hooks
	sockets *sockets
	state   *state // what the maps hold, in this process's words
	warned  map[model.Family]bool
	net     *netlink.Handle // of the namespace that the plane was opened in

	retired  []*Retired // tables set aside, until their connections have ended
	nextLook time.Time  // at them

	stop context.CancelFunc
	done sync.WaitGroup
}

var (
	_ plane.Plane         = (*Plane)(nil)
	_ plane.TimeoutKeeper = (*Plane)(nil)
)

// Supported tells whether the plane can work here: nil is yes; an error that
// wraps plane.ErrNotSupported is no, with the way out; any other error means
// that it could not be found out.
func Supported() error {
	if err := supportedByKernel(); err != nil {
		return err
	}
	return checkPinDir(DefaultDir)
}

// supportedByKernel is Supported without the place for the pins.
func supportedByKernel() error {
	for _, h := range []struct {
		typ   ebpf.ProgramType
		fn    asm.BuiltinFunc
		since string
	}{
		{ebpf.SchedCLS, asm.FnRedirectNeigh, "5.10"},
		{ebpf.SchedCLS, asm.FnKtimeGetCoarseNs, "5.11"},
		{ebpf.Syscall, asm.FnForEachMapElem, "5.14"},
		{ebpf.SchedCLS, asm.FnLoop, "5.17"},
	} {
		err := features.HaveProgramHelper(h.typ, h.fn)
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			return fmt.Errorf("%w: the eBPF plane needs Linux 5.17 with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF (%v for %v came with %s); use the proxy plane",
				plane.ErrNotSupported, h.fn, h.typ, h.since)
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: the eBPF plane needs root, or the capabilities BPF and NET_ADMIN; --plane proxy needs neither", plane.ErrNotSupported)
		case err != nil:
			return fmt.Errorf("probe the kernel for eBPF: %w", err)
		}
	}
	return nil
}

// checkPinDir tells whether dir is, or would be, on a BPF file system.
func checkPinDir(dir string) error {
	at := dir
	for {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, fs.ErrNotExist) && at != "/" {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if uint32(st.Type) != unix.BPF_FS_MAGIC {
			return fmt.Errorf("%w: the eBPF plane keeps its table on a BPF file system, and %s is on none; mount one: mount -t bpf bpf /sys/fs/bpf",
				plane.ErrNotSupported, dir)
		}
		return nil
	}
}

// sizes are those of Options.
type sizes struct{ flows, services, reals, turns, clients int }

// fit tells whether a table has the sizes that are asked for.
func (s sizes) fit(t *tables) bool {
	for _, x := range [][2]int{
		{s.flows, t.maxFlows}, {s.services, len(t.services)}, {s.reals, len(t.reals)},
		{(s.turns + 1) / 2, len(t.rings)}, {s.clients, int(t.Stays.MaxEntries())},
	} {
		if asked, has := x[0], x[1]; asked > 0 && asked != has {
			return false
		}
	}
	return true
}

func (o *Options) fill() {
	o.asked = sizes{o.MaxFlows, o.MaxServices, o.MaxReals, o.MaxTurns, o.MaxClients}
	set := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	set(&o.MaxFlows, 262144)
	set(&o.notes, notes)
	set(&o.MaxServices, 4096)
	set(&o.MaxReals, max(8192, min(65536, 1048576/runtime.NumCPU())))
	set(&o.MaxTurns, 4<<20)
	set(&o.MaxClients, max(o.MaxFlows/4, 64))
	after := func(t *time.Duration, d time.Duration) {
		if *t <= 0 {
			*t = d
		}
	}
	// The values of IPVS (ipvsadm -L --timeout, and its states' own).
	after(&o.Timeouts.SynRecv, time.Minute)
	after(&o.Timeouts.Established, 15*time.Minute)
	after(&o.Timeouts.CloseWait, time.Minute)
	after(&o.Timeouts.FinWait, 2*time.Minute)
	after(&o.Timeouts.Closing, 2*time.Minute)
	after(&o.Timeouts.Closed, 10*time.Second)
	after(&o.Timeouts.UDP, 5*time.Minute)
	after(&o.Timeouts.Young, 200*time.Millisecond)
	if o.Sink == nil {
		o.Sink = func(model.Event) {}
	}
}

// Open loads the programs, adopts the table pinned in o.Dir or makes an empty
// one, and attaches to the interfaces of the caller's network namespace.
// What is pinned there by another version is taken over, and goes on beside it
// with the connections that it has. Errors: ErrOtherVersion where that cannot be
// done, ErrOtherNamespace; plane.ErrNotSupported where the machine or its set-up is
// the reason, with what to do about it.
func Open(o Options) (_ *Plane, err error) {
	o.fill()
	if err := supportedByKernel(); errors.Is(err, plane.ErrNotSupported) {
		return nil, err
	}
	if err := checkPinDir(o.Dir); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	ns, err := namespace()
	if err != nil {
		return nil, err
	}
	spec, err := loadTc()
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	p := &Plane{o: o, sink: o.Sink, net: nl, warned: map[model.Family]bool{}}
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	var failed []error
	p.retired, failed = AllRetired(o.Dir)
	p.tellRetired(failed)
	for _, r := range p.retired {
		r.Connections()
	}
	var old *Retired
	p.t, err = openTables(o.Dir, spec, o, ns)
	if errors.Is(err, ErrOtherVersion) {
		var aside error
		if old, aside = setAside(o.Dir, ns); aside != nil {
			return nil, fmt.Errorf("%w: %w", err, aside)
		}
		p.t, err = openTables(o.Dir, spec, o, ns)
	}
	if err != nil {
		return nil, explain(err)
	}
	p.setTimeouts()
	if err := p.load(spec); err != nil {
		return nil, explain(err)
	}
	if p.state, err = p.t.readState(); err != nil {
		return nil, err
	}
	if p.hooks, err = openHooks(o, p.in, p.out, newQuick(o, p.t), p.t.ethers); err != nil {
		return nil, explain(err)
	}
	p.sockets = openSockets(o, p.t)
	if old != nil {
		if err := p.inherit(old); err != nil {
			return nil, err
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	if err := p.start(ctx); err != nil {
		stop()
		return nil, err
	}
	for k := range p.state.services {
		p.warnForwarding(k.Family())
	}
	return p, nil
}

// explain adds the way out to the kernel's bare refusal.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (%w): the eBPF plane needs root, or the capabilities BPF and NET_ADMIN", plane.ErrNotSupported, err)
	}
	return err
}

// namespace is the inode of the caller's network namespace.
func namespace() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("/proc/thread-self/ns/net: %w", err)
	}
	return st.Ino, nil
}

// load loads the programs onto the tables.
func (p *Plane) load(spec *ebpf.CollectionSpec) error {
	sweep, err := loadSweep()
	if err != nil {
		return err
	}
	get := func(spec *ebpf.CollectionSpec, names ...string) ([]*ebpf.Program, error) {
		if err := p.t.variables(spec, false); err != nil {
			return nil, err
		}
		c, err := p.t.collection(spec)
		if err != nil {
			return nil, fmt.Errorf("load the eBPF programs: %w", err)
		}
		defer c.Close()
		out := make([]*ebpf.Program, len(names))
		for i, n := range names {
			out[i] = c.DetachProgram(n)
		}
		return out, nil
	}
	progs, err := get(spec, tcProgIngress, tcProgEgress)
	if err != nil {
		return err
	}
	p.in, p.out = progs[0], progs[1]
	if progs, err = get(sweep, sweepProgSweep); err != nil {
		asPacketProgram(sweep.Programs[sweepProgSweep])
		if progs, err = get(sweep, sweepProgSweep); err != nil {
			return err
		}
	}
	p.sweep = progs[0]
	return nil
}

func (p *Plane) setTimeouts() {
	for state, d := range map[tcFlowState]time.Duration{
		tcFlowStateFLOW_SYN_RECV:    p.o.Timeouts.SynRecv,
		tcFlowStateFLOW_ESTABLISHED: p.o.Timeouts.Established,
		tcFlowStateFLOW_FIN_WAIT:    p.o.Timeouts.FinWait,
		tcFlowStateFLOW_CLOSE_WAIT:  p.o.Timeouts.CloseWait,
		tcFlowStateFLOW_TIME_WAIT:   p.o.Timeouts.Closing,
		tcFlowStateFLOW_CLOSE:       p.o.Timeouts.Closed,
		tcFlowStateFLOW_UDP:         p.o.Timeouts.UDP,
	} {
		atomic.StoreUint32(&p.t.control.Timeout[state], toTicks(d))
	}
	atomic.StoreUint32(&p.t.control.Young, toTicks(p.o.Timeouts.Young))
}

// warnForwarding says, once a family, when the stack would not do its part.
func (p *Plane) warnForwarding(f model.Family) {
	key := map[model.Family]string{model.IPv4: "net.ipv4.ip_forward", model.IPv6: "net.ipv6.conf.all.forwarding"}[f]
	if p.warned[f] {
		return
	}
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	if err == nil && strings.TrimSpace(string(b)) == "0" {
		p.warned[f] = true
		p.event(model.LevelWarning, "forwarding-off", fmt.Sprintf(
			"%s is 0: no packet of that family reaches a real server by masq; set it: sysctl -w %s=1", key, key))
	}
}

func (p *Plane) event(l model.Level, kind, text string) {
	p.sink(model.Event{At: time.Now(), Level: l, Source: "plane", Kind: kind, Text: text})
}

// Info names the plane and the interfaces that it sits on.
func (p *Plane) Info() model.PlaneInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := model.PlaneInfo{Name: "ebpf"}
	if p.closed {
		i.Detail = "closed"
		return i
	}
	i.Size = p.t.maxFlows
	i.Detail = p.hooks.String() + "; " + p.sockets.String()
	if p.t.adopted {
		i.Detail += "; table adopted from " + p.o.Dir
	}
	for _, r := range p.retired {
		i.Detail += fmt.Sprintf("; %d open connections of an earlier table", r.open)
	}
	return i
}

// Close lets go of maps and programs. What is pinned stays in force.
func (p *Plane) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return plane.ErrClosed
	}
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.done.Wait()
	p.release()
	return nil
}

func (p *Plane) release() {
	if p.hooks != nil {
		p.hooks.close()
	}
	if p.sockets != nil {
		p.sockets.close()
	}
	for _, prog := range []*ebpf.Program{p.in, p.out, p.sweep} {
		if prog != nil {
			_ = prog.Close()
		}
	}
	for _, r := range p.retired {
		r.Close()
	}
	if p.t != nil {
		p.t.close()
	}
	p.net.Close()
}

// Remove closes the plane and takes everything away that it left in the
// kernel: programs, table, connections.
func (p *Plane) Remove() error {
	if err := p.Close(); err != nil {
		return err
	}
	return Remove(p.o.Dir)
}

// Remove takes away what a plane pinned in dir has left in the kernel; "" is
// DefaultDir. It is no error if there is nothing. The plane must be closed.
func Remove(dir string) error {
	if dir == "" {
		dir = DefaultDir
	}
	if err := removeHooks(); err != nil {
		return err
	}
	removeMovedFilters(0)
	if err := removeSockets(filepath.Join(dir, "links")); err != nil {
		return fmt.Errorf("let go of sockets: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}
