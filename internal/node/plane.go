package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
	"github.com/batuta-ha/batuta/internal/plane/ipvs"
	"github.com/batuta-ha/batuta/internal/plane/memory"
	"github.com/batuta-ha/batuta/internal/plane/proxy"
)

// PlaneNames are the words that --plane takes.
var PlaneNames = []string{"auto", "ipvs", "ebpf", "proxy", "memory"}

// XDPNames are the words that --xdp takes: where the eBPF plane has its program
// at XDP besides those at tc.
var XDPNames = []string{"auto", "on", "off"}

// xdpMode is what a word of XDPNames says; "" is the first one.
func xdpMode(name string) (ebpf.XDPMode, error) {
	switch name {
	case "", "auto":
		return ebpf.XDPAuto, nil
	case "on":
		return ebpf.XDPOn, nil
	case "off":
		return ebpf.XDPOff, nil
	}
	return 0, fmt.Errorf("xdp %q: want one of %v", name, XDPNames)
}

// EBPFSizes are what --ebpf-table can set, each with the most that it takes: how
// many there may be, all of which the table has room for from the beginning.
var EBPFSizes = map[string]int{
	"flows":    1 << 26, // connections
	"services": 1 << 20,
	"reals":    1 << 20, // real servers of all services together
	"turns":    1 << 27, // places of all rings together: weights, Maglev tables
	"clients":  1 << 24, // of persistent services
}

// planeOptions say which plane to open.
type planeOptions struct {
	name      string // one of PlaneNames
	holdAll   bool   // proxy: serve all addresses, no cluster says which are held
	eventsLog string // memory: file of changes
	tableFile string // memory: file of the table
	sink      model.Sink
	runDir    string         // ipvs: keeps the sysctls from before
	xdp       string         // ebpf: one of XDPNames
	table     map[string]int // ebpf: some of EBPFSizes
	ipvs      model.IPVS     // what is wanted besides the table: of ipvs; of others the time-outs
}

// openIPVS opens the kernel's IPVS with what is wanted of it.
func (o planeOptions) openIPVS() (plane.Plane, error) {
	options := ipvs.Options{IPVS: o.ipvs}
	if o.runDir != "" {
		options.Originals = filepath.Join(o.runDir, "ipvs-sysctls")
	}
	p, err := ipvs.Open(options)
	if err == nil && o.ipvs.Sync != nil && o.sink != nil {
		o.sink(model.Event{Level: model.LevelNotice, Source: "plane", Kind: "sync-started", Text: "Connections are shared with the other directors over " +
			o.ipvs.Sync.Interface + ", neither authenticated nor encrypted: nobody else should be on that network"})
	}
	return p, err
}

// openEBPF opens the eBPF plane; of what is for IPVS, time-outs are its, too.
func (o planeOptions) openEBPF() (plane.Plane, error) {
	mode, err := xdpMode(o.xdp)
	if err != nil {
		return nil, err
	}
	t, n := o.ipvs.Timeouts, o.table
	return ebpf.Open(ebpf.Options{
		Sink: o.sink, XDP: mode, Timeouts: ebpf.Timeouts{Established: t.TCP, FinWait: t.TCPFin, UDP: t.UDP},
		MaxFlows: n["flows"], MaxServices: n["services"], MaxReals: n["reals"], MaxTurns: n["turns"], MaxClients: n["clients"],
	})
}

func (o planeOptions) openProxy() (plane.Plane, error) {
	return proxy.New(proxy.Options{HoldAll: o.holdAll, UDPTimeout: o.ipvs.Timeouts.UDP}), nil
}

// outdo is one with what is set in the other.
func outdo(one, other model.IPVS) model.IPVS {
	if other.Sync != nil {
		one.Sync = other.Sync
	}
	one.Timeouts = model.Timeouts{
		TCP:    cmp.Or(other.Timeouts.TCP, one.Timeouts.TCP),
		TCPFin: cmp.Or(other.Timeouts.TCPFin, one.Timeouts.TCPFin),
		UDP:    cmp.Or(other.Timeouts.UDP, one.Timeouts.UDP),
	}
	one.Sysctls = slices.Concat(one.Sysctls, other.Sysctls)
	return one
}

// openPlane opens the plane asked for. "auto" takes the best this machine
// can carry and tells the reason in its Info.
func openPlane(o planeOptions) (plane.Plane, error) {
	switch o.name {
	case "memory":
		return memory.New(memory.Options{EventsFile: o.eventsLog, TableFile: o.tableFile})
	case "proxy":
		return o.openProxy()
	case "ebpf":
		return o.openEBPF()
	case "ipvs":
		return o.openIPVS()
	case "auto":
		return autoPlane(o, candidates(o))
	}
	return nil, fmt.Errorf("plane %q: want one of %v", o.name, PlaneNames)
}

// candidate is a plane that "auto" may take. inUse is why it must be taken,
// "" for nothing; supported is nil where it always works.
type candidate struct {
	name      string
	inUse     string
	supported func() error
	open      func() (plane.Plane, error)
}

// candidates are in order of preference. An eBPF table that is pinned here
// goes on balancing whatever else is chosen, so it is adopted.
func candidates(o planeOptions) []candidate {
	list := []candidate{
		{name: "ipvs", supported: ipvs.Supported, open: o.openIPVS},
		{name: "ebpf", supported: ebpf.Supported, open: o.openEBPF},
		{name: "proxy", open: o.openProxy},
	}
	if _, err := os.Stat(filepath.Join(ebpf.DefaultDir, "maps")); err == nil {
		list[1].inUse = "its table is in " + ebpf.DefaultDir
	}
	return list
}

// autoPlane opens the plane that is in use, or else the first that works here.
func autoPlane(o planeOptions, list []candidate) (plane.Plane, error) {
	if i := slices.IndexFunc(list, func(c candidate) bool { return c.inUse != "" }); i > 0 {
		list = slices.Insert(slices.Delete(slices.Clone(list), i, i+1), 0, list[i])
	}
	var reasons []string
	for _, c := range list {
		if c.supported != nil {
			why := c.supported()
			if errors.Is(why, plane.ErrNotSupported) {
				reasons = append(reasons, "not "+c.name+": "+why.Error())
				continue
			}
			if why != nil {
				return nil, fmt.Errorf("find out whether %s works here: %w; choose with --plane", c.name, why)
			}
		}
		if c.inUse != "" {
			reasons = append(reasons, c.inUse)
		}
		p, err := c.open()
		if err != nil {
			return nil, err
		}
		if len(reasons) == 0 {
			return withReason(p, "chosen as the first that works here"), nil
		}
		why := strings.Join(reasons, "; ")
		o.sink(model.Event{Level: model.LevelNotice, Source: "plane", Kind: "plane-chosen", Text: "plane " + c.name + ": " + why})
		return withReason(p, why), nil
	}
	return nil, fmt.Errorf("no plane works here: %s", strings.Join(reasons, "; "))
}

// chosen is a plane that says why it was taken.
type chosen struct {
	plane.Plane
	why string
}

// withReason keeps a plane an AddressHolder if it is one.
func withReason(p plane.Plane, why string) plane.Plane {
	c := chosen{p, why}
	if h, ok := p.(plane.AddressHolder); ok {
		return struct {
			chosen
			plane.AddressHolder
		}{c, h}
	}
	return c
}

// Unwrap lets plane.As see the plane itself.
func (c chosen) Unwrap() plane.Plane { return c.Plane }

// Info is the plane's own, with the reason.
func (c chosen) Info() model.PlaneInfo {
	i := c.Plane.Info()
	i.Detail += "; " + c.why
	return i
}

// addressBook tells an address-holding plane which addresses this node holds.
// Several resources come and go independently; the plane wants the whole set.
type addressBook struct {
	mu     sync.Mutex
	held   map[netip.Addr]bool
	said   map[netip.Addr]bool // whether to hold it was decided in this life
	holder plane.AddressHolder // nil for planes that need not be told
}

func newAddressBook(p plane.Plane) *addressBook {
	h, _ := p.(plane.AddressHolder)
	return &addressBook{held: map[netip.Addr]bool{}, said: map[netip.Addr]bool{}, holder: h}
}

// found notes an address that is on this machine before anyone has said
// whether it should be: an earlier life left it, and the plane serves it until
// somebody says otherwise. The error is what cannot be served; it is tried
// again with each change of the table.
func (b *addressBook) found(ctx context.Context, a netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.said[a] || b.held[a] {
		return nil
	}
	b.held[a] = true
	return b.tell(ctx)
}

// set adds or removes one address and returns once the plane follows. What the
// plane cannot serve on other addresses is no reason to start or stop this one
// late; neither is it on this one when it goes.
func (b *addressBook) set(ctx context.Context, a netip.Addr, hold bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said[a] = true
	if hold {
		b.held[a] = true
	} else {
		delete(b.held, a)
	}
	return concerning(a, b.tell(ctx))
}

// concerning is what an error of SetAddresses says of one address.
func concerning(a netip.Addr, err error) error {
	all, joined := err.(interface{ Unwrap() []error })
	if !joined {
		return err
	}
	var errs []error
	for _, e := range all.Unwrap() {
		var of *plane.AddressError
		if !errors.As(e, &of) || of.Addr == a {
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// tell gives the plane the whole set. mu is held.
func (b *addressBook) tell(ctx context.Context) error {
	if b.holder == nil {
		return nil
	}
	return b.holder.SetAddresses(ctx, slices.SortedFunc(maps.Keys(b.held), netip.Addr.Compare))
}
