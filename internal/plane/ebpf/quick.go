package ebpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/mdlayher/genetlink"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

// XDPMode says which interfaces carry the program of bpf/xdp.c besides those
// of bpf/tc.c. It is never attached in the kernel's generic mode.
type XDPMode uint8

// The modes; XDPAuto is the one of nothing said.
const (
	XDPAuto XDPMode = iota // physical interfaces whose drivers say that they run it natively
	XDPOn                  // all whose drivers take it
	XDPOff                 // none
)

// quick is the program at XDP and the interfaces that carry it.
type quick struct {
	dir   string
	mode  XDPMode
	t     *tables
	prog  *ebpf.Program   // nil until an interface is fit for it
	ports *ebpf.Map       // by interface: its own address, as macOf says
	takes *ebpf.Map       // interfaces that take packets from it
	told  map[uint32]port // what is in both

	mu      sync.Mutex
	refused error
	links   map[int]link.Link
	names   map[int]string    // of the interfaces in links
	why     map[string]string // by name: why it is not there
	sink    model.Sink        // told of these where XDP was asked for
}

const quickSuffix = "-xdp"

func newQuick(o Options, t *tables) *quick {
	return &quick{dir: filepath.Join(o.Dir, "links"), mode: o.XDP, t: t, told: map[uint32]port{}, links: map[int]link.Link{}, names: map[int]string{}, why: map[string]string{}, sink: o.Sink}
}

// load loads the program, once there is an interface for it. A kernel that
// refuses it gets none: all works without it.
func (q *quick) load() error {
	if q.prog != nil || q.refused != nil {
		return q.refused
	}
	spec, err := loadXdp()
	if err == nil {
		err = q.t.variables(spec, false)
	}
	if err == nil {
		var c *ebpf.Collection
		if c, err = q.t.collection(spec); err == nil {
			q.prog, q.ports, q.takes = c.DetachProgram(xdpProgQuick), c.DetachMap(xdpMapPorts), c.DetachMap(xdpMapTakers)
			c.Close()
		}
	}
	if err != nil {
		q.refused = fmt.Errorf("the kernel refuses the program: %w", err)
	}
	return q.refused
}

// scan attaches to those of the eligible interfaces that are fit for it, and
// lets go of others.
func (q *quick) scan(eligible, all []netlink.Link) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mode == XDPOff {
		for _, l := range eligible {
			q.removePin(l.Attrs().Index) // of a start with it
		}
		return nil
	}
	features := xdpFeatures()
	before := q.why
	q.why = map[string]string{}
	there := map[int]bool{}
	var errs []error
	for _, l := range eligible {
		a := l.Attrs()
		why := unfit(l, all, q.mode, features)
		if why == "" {
			if err := q.load(); err != nil {
				why = err.Error()
			}
		}
		if why == "" {
			why = q.attach(a.Index, a.Name, a.HardwareAddr)
		}
		if why != "" {
			q.why[a.Name] = why
			if q.mode == XDPOn && before[a.Name] != why {
				q.sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "plane", Kind: "no-xdp",
					Text: "XDP was asked for, but " + a.Name + " has none: " + why + "; its packets go by tc, which does the same more slowly"})
			}
			continue
		}
		there[a.Index] = true
	}
	for i := range q.links {
		if !there[i] {
			q.detach(i)
		}
	}
	if q.prog != nil {
		errs = append(errs, q.tell(there, all))
	}
	for _, l := range eligible {
		if !there[l.Attrs().Index] {
			q.removePin(l.Attrs().Index)
		}
	}
	return errors.Join(errs...)
}

// tell tells the program which interfaces carry it, and which take packets from it.
func (q *quick) tell(there map[int]bool, all []netlink.Link) (err error) {
	// Most drivers say that they take packets only once the program is there.
	features := xdpFeatures()
	now := map[uint32]port{}
	for _, l := range all {
		a := l.Attrs()
		i, takes := uint32(a.Index), there[a.Index]
		if features != nil {
			takes = features[i]&xdpTakes != 0
		}
		if i >= q.ports.MaxEntries() {
			continue
		}
		is := port{takes: takes}
		if there[a.Index] {
			is.mac = macOf(a.HardwareAddr)
		}
		now[i] = is
	}
	for i := range q.told { // what has gone is told, too
		if _, there := now[i]; !there {
			now[i] = port{}
		}
	}
	for i, is := range now {
		was := q.told[i]
		if was.mac != is.mac {
			err = errors.Join(err, q.ports.Put(i, is.mac))
		}
		switch {
		case is.takes: // again each time: an interface may have taken another's number
			err = errors.Join(err, q.takes.Put(i, i))
		case was.takes:
			if gone := q.takes.Delete(i); !errors.Is(gone, ebpf.ErrKeyNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	maps.DeleteFunc(now, func(_ uint32, is port) bool { return is == port{} })
	q.told = now
	return err
}

// port is what the program is told of an interface.
type port struct {
	mac   uint64 // its own hardware address, if it carries the program
	takes bool   // packets may leave by it
}

// macOf is a hardware address as the program compares it.
func macOf(mac net.HardwareAddr) uint64 {
	return binary.LittleEndian.Uint64(append(slices.Clone(mac), 0, 0))
}

// unfit says why an interface is left to tc alone; "" if it is not.
func unfit(l netlink.Link, all []netlink.Link, mode XDPMode, features map[uint32]uint64) string {
	a := l.Attrs()
	for _, v := range all {
		if v.Type() == "vlan" && v.Attrs().ParentIndex == a.Index {
			return "carries VLANs, whose tags a card may take off"
		}
	}
	if mode == XDPOn {
		return ""
	}
	switch {
	case l.Type() != "device":
		return "virtual (" + l.Type() + ")"
	case features == nil:
		return "the kernel does not tell what drivers can do (6.3 and later do)"
	case features[uint32(a.Index)]&xdpRedirects == 0:
		return "its driver does not do it"
	}
	return ""
}

// attach says why it could not.
func (q *quick) attach(ifindex int, name string, mac net.HardwareAddr) string {
	if len(mac) != 6 {
		return "no Ethernet address"
	}
	if most := q.ports.MaxEntries(); uint32(ifindex) >= most {
		return fmt.Sprintf("its number %d is above %d", ifindex, most-1)
	}
	if q.links[ifindex] != nil {
		q.names[ifindex] = name
		return ""
	}
	pin := filepath.Join(q.dir, strconv.Itoa(ifindex)+quickSuffix)
	l, err := adoptLink(pin, ifindex, q.prog)
	if err == nil && l == nil {
		if l, err = link.AttachXDP(link.XDPOptions{Program: q.prog, Interface: ifindex, Flags: link.XDPDriverMode}); err == nil {
			if err = l.Pin(pin); err != nil {
				_ = l.Close()
			}
		}
	}
	if err != nil {
		return err.Error()
	}
	q.links[ifindex], q.names[ifindex] = l, name
	return ""
}

func (q *quick) detach(ifindex int) {
	if l := q.links[ifindex]; l != nil {
		_ = l.Unpin()
		_ = l.Close()
	}
	delete(q.links, ifindex)
	delete(q.names, ifindex)
}

func (q *quick) removePin(ifindex int) {
	_ = os.Remove(filepath.Join(q.dir, strconv.Itoa(ifindex)+quickSuffix))
}

// String says where it is, and where it is not and why.
func (q *quick) String() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mode == XDPOff {
		return "no XDP: switched off"
	}
	var said []string
	if len(q.names) > 0 {
		said = append(said, "XDP on "+strings.Join(slices.Sorted(maps.Values(q.names)), ", "))
	}
	reasons := map[string][]string{}
	for name, why := range q.why {
		reasons[why] = append(reasons[why], name)
	}
	for _, why := range slices.Sorted(maps.Keys(reasons)) {
		slices.Sort(reasons[why])
		said = append(said, "no XDP on "+strings.Join(reasons[why], ", ")+": "+why)
	}
	return cmp.Or(strings.Join(said, "; "), "no XDP")
}

// close lets go of the links; pinned ones stay attached.
func (q *quick) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range q.links {
		_ = l.Close()
	}
	if q.prog != nil {
		_, _, _ = q.prog.Close(), q.ports.Close(), q.takes.Close()
	}
}

// detachQuick takes the program off the interfaces whose links are pinned in
// a directory: tc alone goes on.
func detachQuick(dir string) error {
	pins, err := filepath.Glob(filepath.Join(dir, "*"+quickSuffix))
	for _, pin := range pins {
		if e := os.Remove(pin); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// What a driver can do with XDP (enum netdev_xdp_act of linux/netdev.h).
const (
	xdpRedirects = 1 << 1
	xdpTakes     = 1 << 2
)

// xdpFeatures asks the kernel what each interface's driver can do; nil if it
// does not tell (before 6.3).
func xdpFeatures() map[uint32]uint64 {
	const (
		deviceGet       = 1 // NETDEV_CMD_DEV_GET
		deviceIfindex   = 1 // NETDEV_A_DEV_IFINDEX
		deviceFeatures  = 3 // NETDEV_A_DEV_XDP_FEATURES
		netdevFamily    = "netdev"
		netdevFamilyOne = 1
	)
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }()
	family, err := c.GetFamily(netdevFamily)
	if err != nil {
		return nil
	}
	answers, err := c.Execute(genetlink.Message{Header: genetlink.Header{Command: deviceGet, Version: netdevFamilyOne}},
		family.ID, mdnetlink.Request|mdnetlink.Dump)
	if err != nil {
		return nil
	}
	features := map[uint32]uint64{}
	for _, m := range answers {
		var ifindex uint32
		var can uint64
		attrs, err := mdnetlink.UnmarshalAttributes(m.Data)
		if err != nil {
			continue
		}
		for _, a := range attrs {
			switch {
			case a.Type == deviceIfindex && len(a.Data) == 4:
				ifindex = binary.NativeEndian.Uint32(a.Data)
			case a.Type == deviceFeatures && len(a.Data) == 8:
				can = binary.NativeEndian.Uint64(a.Data)
			}
		}
		features[ifindex] = can
	}
	return features
}
