package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hooks is the set of interfaces that carry the programs. With tcx the
// attachment is a link, pinned as links/<ifindex>-<direction>; before Linux
// 6.6 it is a filter of the clsact qdisc, which needs no pin.
type hooks struct {
	dir     string
	wanted  func(name string) bool
	in, out *ebpf.Program
	quick   *quick
	ethers  []uint64 // the map
	tcx     bool

	mu    sync.Mutex
	links map[int][]link.Link // by ifindex; nil values with clsact
	names map[int]string
}

// Filters of clsact are known by this priority and these names.
const (
	filterPriority = 0xba7a
	filterIn       = "batuta_ingress"
	filterOut      = "batuta_egress"
)

// openHooks attaches to all interfaces that are there now.
func openHooks(o Options, in, out *ebpf.Program, q *quick, ethers []uint64) (*hooks, error) {
	h := &hooks{dir: filepath.Join(o.Dir, "links"), wanted: o.Interfaces, in: in, out: out, quick: q, ethers: ethers,
		tcx: !o.NoTCX && haveTCX(in), links: map[int][]link.Link{}, names: map[int]string{}}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, err
	}
	if err := h.scan(); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// haveTCX tries what cannot be done anywhere: the error tells why.
func haveTCX(prog *ebpf.Program) bool {
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1 << 30, Program: prog, Attach: ebpf.AttachTCXIngress})
	if l != nil {
		_ = l.Close()
	}
	return !errors.Is(err, ebpf.ErrNotSupported)
}

// scan attaches to what is there and lets go of what is not.
func (h *hooks) scan() error {
	all, err := netlink.LinkList()
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ {
		all, err = netlink.LinkList()
	}
	// A list that was made while interfaces changed may lack some that are there.
	whole := err == nil
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	masters := map[int]string{}
	for _, l := range all {
		masters[l.Attrs().Index] = l.Type()
	}
	there := map[int]bool{}
	var (
		eligible []netlink.Link
		errs     []error
	)
	for _, l := range all {
		if h.eligible(l, masters[l.Attrs().MasterIndex]) {
			eligible = append(eligible, l)
			there[l.Attrs().Index] = true
			errs = append(errs, h.attach(l.Attrs().Index, l.Attrs().Name))
		}
	}
	if !whole {
		return errors.Join(errs...) // what changed meanwhile is told, and brings us back
	}
	h.tell(all)
	h.mu.Lock()
	gone := []int{}
	for i := range h.names {
		if !there[i] {
			gone = append(gone, i)
		}
	}
	h.mu.Unlock()
	for _, i := range gone {
		h.detach(i)
	}
	h.removeStale(there)
	return errors.Join(append(errs, h.quick.scan(eligible, all))...)
}

// tell tells the programs which interfaces have Ethernet headers.
func (h *hooks) tell(all []netlink.Link) {
	now := map[int]uint64{}
	for _, l := range all {
		if l.Attrs().EncapType == "ether" {
			now[l.Attrs().Index] = 1
		}
	}
	for i := range h.ethers {
		atomic.StoreUint64(&h.ethers[i], now[i])
	}
}

// eligible leaves out what carries no Ethernet of its own: frames of a bridge's
// or bond's ports come by again on the bridge or bond itself.
func (h *hooks) eligible(l netlink.Link, master string) bool {
	a := l.Attrs()
	switch {
	case a.Flags&unix.IFF_LOOPBACK != 0 || a.EncapType != "ether":
		return false
	case master == "bridge" || master == "bond" || master == "team" || master == "openvswitch":
		return false
	}
	return h.wanted == nil || h.wanted(a.Name)
}

// attach puts both programs on an interface, or brings those that are there
// up to date. An interface that has gone meanwhile is no error.
func (h *hooks) attach(ifindex int, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, done := h.names[ifindex]; done {
		h.names[ifindex] = name
		return nil
	}
	var (
		links []link.Link
		err   error
	)
	if h.tcx {
		if links, err = h.attachTCX(ifindex); err == nil {
			removeFilters(ifindex) // of a start without tcx
		}
	} else if err = h.attachFilters(ifindex); err == nil {
		h.removePins(ifindex) // of a start with it
	}
	if err != nil {
		if _, gone := netlink.LinkByIndex(ifindex); gone != nil {
			return nil
		}
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	h.links[ifindex], h.names[ifindex] = links, name
	return nil
}

func (h *hooks) attachTCX(ifindex int) (links []link.Link, err error) {
	defer func() {
		if err != nil {
			for _, l := range links {
				_ = l.Unpin()
				_ = l.Close()
			}
		}
	}()
	for _, x := range []struct {
		suffix string
		where  ebpf.AttachType
		prog   *ebpf.Program
	}{{"-egress", ebpf.AttachTCXEgress, h.out}, {"-ingress", ebpf.AttachTCXIngress, h.in}} {
		pin := filepath.Join(h.dir, strconv.Itoa(ifindex)+x.suffix)
		l, err := adoptLink(pin, ifindex, x.prog)
		if err != nil {
			return links, err
		}
		if l == nil {
			if l, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: x.prog, Attach: x.where}); err != nil {
				return links, err
			}
			if err := l.Pin(pin); err != nil {
				_ = l.Close()
				return links, fmt.Errorf("pin: %w", err)
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// adoptLink takes over a pinned link and gives it the program of now, in one
// step that no packet sees. nil: there is none, or its interface has gone.
func adoptLink(pin string, ifindex int, prog *ebpf.Program) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	if info, err := l.Info(); err == nil && ifindexOf(info) == ifindex {
		if err := l.Update(prog); err == nil {
			return l, nil
		}
	}
	_ = l.Close()
	if err := os.Remove(pin); err != nil {
		return nil, err
	}
	return nil, nil
}

// ifindexOf is the interface that a link of tcx or XDP is on; 0 if it has gone.
func ifindexOf(info *link.Info) int {
	if tcx := info.TCX(); tcx != nil {
		return int(tcx.Ifindex)
	}
	if xdp := info.XDP(); xdp != nil {
		return int(xdp.Ifindex)
	}
	return 0
}

func (h *hooks) attachFilters(ifindex int) error {
	err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)},
		QdiscType:  "clsact",
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	for _, f := range []*netlink.BpfFilter{
		filter(ifindex, netlink.HANDLE_MIN_EGRESS, filterOut, h.out),
		filter(ifindex, netlink.HANDLE_MIN_INGRESS, filterIn, h.in),
	} {
		if err := netlink.FilterReplace(f); err != nil {
			return fmt.Errorf("set filter %s: %w", f.Name, err)
		}
	}
	return nil
}

func filter(ifindex int, parent uint32, name string, prog *ebpf.Program) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: parent, Handle: 1,
			Protocol: unix.ETH_P_ALL, Priority: filterPriority},
		Fd: prog.FD(), Name: name, DirectAction: true,
	}
}

// detach lets go of an interface.
func (h *hooks) detach(ifindex int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.links[ifindex] {
		_ = l.Unpin()
		_ = l.Close()
	}
	if !h.tcx {
		removeFilters(ifindex)
	}
	delete(h.links, ifindex)
	delete(h.names, ifindex)
}

// removeStale removes pins of interfaces that are no longer wanted or there.
func (h *hooks) removeStale(there map[int]bool) {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		num, _, _ := strings.Cut(e.Name(), "-")
		if i, err := strconv.Atoi(num); err == nil && !there[i] {
			_ = os.Remove(filepath.Join(h.dir, e.Name()))
		}
	}
}

func (h *hooks) removePins(ifindex int) {
	for _, suffix := range []string{"-ingress", "-egress"} {
		_ = os.Remove(filepath.Join(h.dir, strconv.Itoa(ifindex)+suffix))
	}
}

// String names the interfaces.
func (h *hooks) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for _, n := range h.names {
		names = append(names, n)
	}
	slices.Sort(names)
	how := "tcx"
	if !h.tcx {
		how = "tc clsact"
	}
	if len(names) == 0 {
		return how + ", on no interface yet"
	}
	return how + " on " + strings.Join(names, ", ") + "; " + h.quick.String()
}

// close lets go of the links; pinned ones stay attached.
func (h *hooks) close() {
	h.quick.close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, links := range h.links {
		for _, l := range links {
			_ = l.Close()
		}
	}
}

// removeHooks takes clsact filters away; links go with their pins.
func removeHooks() error {
	all, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		removeFilters(l.Attrs().Index)
	}
	return nil
}

func removeFilters(ifindex int) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		have, err := netlink.FilterList(l, parent)
		if err != nil {
			continue
		}
		for _, f := range have {
			if b, ok := f.(*netlink.BpfFilter); ok && (strings.HasPrefix(b.Name, filterIn) || strings.HasPrefix(b.Name, filterOut)) {
				_ = netlink.FilterDel(f)
			}
		}
	}
}
