package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Retired is a table that has been set aside, with the programs that use it.
// They carry its connections until these end; once it was released they take
// no new ones, which the next program on the interface gets, or the stack. It
// may have been made by another version: its rows are read by the names of
// their members, which the kernel keeps beside the maps (BTF).
type Retired struct {
	dir    string // has maps/ and links/
	number int    // of the directory
	maps   map[string]*ebpf.Map
	mapped [][]byte

	control  rows[tcControl]
	services rows[tcService]
	reals    rows[tcReal]
	realCPUs rows[tcRealCpu]
	flows    rows[tcFlow]
	rules    rows[tcRule] // nothing before version 3
}

// retiredPrefix begins the names of the directories of tables set aside.
const retiredPrefix = "retired-"

// Retire sets the table pinned in dir ("" is DefaultDir) aside, so that
// another plane can take its place: fill that with Table, then Release. nil:
// none is pinned. The plane must be closed.
func Retire(dir string) (*Retired, error) {
	if dir == "" {
		dir = DefaultDir
	}
	if _, err := os.Stat(filepath.Join(dir, "maps")); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	netns, err := namespace()
	if err != nil {
		return nil, err
	}
	return setAside(dir, netns)
}

// AllRetired opens the tables that were set aside in dir ("" is DefaultDir) and
// whose connections may still be open.
func AllRetired(dir string) (all []*Retired, err error) {
	if dir == "" {
		dir = DefaultDir
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		n, isOne := strings.CutPrefix(e.Name(), retiredPrefix)
		number, err := strconv.Atoi(n)
		if _, none := os.Stat(filepath.Join(dir, e.Name(), "maps")); !isOne || err != nil || none != nil {
			continue
		}
		r, err := openRetired(dir, number)
		if err != nil {
			for _, r := range all {
				r.Close()
			}
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// setAside moves the pins of the table in force to a directory of their own.
// The maps go last: what was cut short is done again.
func setAside(dir string, netns uint64) (*Retired, error) {
	number := 1
	at := func(name string) string { return filepath.Join(dir, retiredPrefix+strconv.Itoa(number), name) }
	for ; ; number++ {
		if _, err := os.Stat(at("maps")); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	r, err := openRows(filepath.Join(dir, "maps"))
	if err != nil {
		return nil, err
	}
	r.dir, r.number = at(""), number
	if r.control.at(0).Netns != netns {
		r.Close()
		return nil, otherNamespace(dir)
	}
	err = errors.Join(os.MkdirAll(r.dir, 0o700), moveFilters(number), detachQuick(filepath.Join(dir, "links")))
	if err == nil {
		err = os.Rename(filepath.Join(dir, "links"), at("links"))
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(filepath.Join(dir, "maps"), at("maps"))
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("set the table in %s aside: %w", dir, err)
	}
	return r, nil
}

func openRetired(dir string, number int) (*Retired, error) {
	at := filepath.Join(dir, retiredPrefix+strconv.Itoa(number))
	r, err := openRows(filepath.Join(at, "maps"))
	if err != nil {
		return nil, err
	}
	r.dir, r.number = at, number
	return r, nil
}

// openRows opens the maps pinned in a directory, whoever made them.
func openRows(dir string) (_ *Retired, err error) {
	r := &Retired{maps: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	for _, name := range []string{tcMapControls, tcMapServices, tcMapServiceSlots, tcMapReals, tcMapRealCpus, tcMapFlows, tcMapStays} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		r.maps[name] = m
	}
	spec, err := loadTc()
	if err != nil {
		return nil, err
	}
	return r, errors.Join(
		openArray(r, &r.control, spec.Types, tcMapControls, "control"),
		openArray(r, &r.services, spec.Types, tcMapServices, "service"),
		openArray(r, &r.reals, spec.Types, tcMapReals, "real"),
		openArray(r, &r.realCPUs, spec.Types, tcMapRealCpus, "real_cpu"),
		openArray(r, &r.flows, spec.Types, tcMapFlows, "flow"),
		r.openRules(dir, spec.Types))
}

func (r *Retired) openRules(dir string, now *btf.Spec) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, tcMapRules), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", tcMapRules, err)
	}
	r.maps[tcMapRules] = m
	return openArray(r, &r.rules, now, tcMapRules, "rule")
}

// column is a member that two versions of a struct have.
type column struct{ from, to, n uint32 }

// columns finds the members of the same name and size.
func columns(was, is *btf.Struct) (c []column) {
	for _, m := range is.Members {
		for _, o := range was.Members {
			n, err1 := btf.Sizeof(m.Type)
			k, err2 := btf.Sizeof(o.Type)
			if err1 == nil && err2 == nil && k == n && o.Name == m.Name {
				c = append(c, column{o.Offset.Bytes(), m.Offset.Bytes(), uint32(n)})
			}
		}
	}
	return c
}

// rows is an array of a table in the layout of its version.
type rows[T any] struct {
	raw     []byte
	size    int
	columns []column
}

// layoutOf is struct typ as the maker of a map told the kernel; now is that of
// this program.
func layoutOf[T any](m *ebpf.Map, now *btf.Spec, typ string) (l rows[T], err error) {
	handle, err := m.Handle()
	if err != nil {
		return l, fmt.Errorf("the layout of %s (the capability SYS_ADMIN is needed to ask for it): %w", m, err)
	}
	defer func() { _ = handle.Close() }()
	spec, err := handle.Spec(nil)
	if err != nil {
		return l, fmt.Errorf("the layout of %s: %w", m, err)
	}
	var was, is *btf.Struct
	if err := errors.Join(spec.TypeByName(typ, &was), now.TypeByName(typ, &is)); err != nil {
		return l, fmt.Errorf("the layout of %s: %w", m, err)
	}
	return rows[T]{columns: columns(was, is), size: int(was.Size)}, nil
}

// openArray opens an array of struct typ.
func openArray[T any](r *Retired, to *rows[T], now *btf.Spec, name, typ string) (err error) {
	m := r.maps[name]
	if *to, err = layoutOf[T](m, now, typ); err != nil {
		return err
	}
	if to.size != int(m.ValueSize()) {
		return fmt.Errorf("%s: elements of %d bytes, not %d: %w", m, m.ValueSize(), to.size, ErrOtherVersion)
	}
	if to.raw, err = mapBytes(m, unix.PROT_READ); err != nil {
		return err
	}
	r.mapped = append(r.mapped, to.raw)
	to.raw = to.raw[:int(m.MaxEntries())*to.size]
	return nil
}

func (r rows[T]) len() int { return len(r.raw) / max(r.size, 1) }

// at is a row in the layout of now. What its version did not have is zero.
func (r rows[T]) at(i int) (t T) { return r.read(r.raw[i*r.size : (i+1)*r.size]) }

// read is a row by itself.
func (r rows[T]) read(from []byte) (t T) {
	to := bytesOf(&t)
	for _, c := range r.columns {
		copy(to[c.to:c.to+c.n], from[c.from:])
	}
	return t
}

// Table is what the table held when it was set aside.
func (r *Retired) Table() model.Table {
	var t model.Table
	at := map[uint32]int{}
	for i := range r.services.len() {
		if row := r.services.at(i); row.Used != 0 {
			at[uint32(i)] = len(t.Services)
			t.Services = append(t.Services, serviceOf(&row))
		}
	}
	for i := range r.reals.len() {
		row := r.reals.at(i)
		if s, ok := at[row.Service]; ok && row.Used != 0 {
			t.Services[s].Reals = append(t.Services[s].Reals, realOf(&row).RealServer)
		}
	}
	t.Sort()
	return t
}

// Release lets new connections go by: from now on the table only ends.
func (r *Retired) Release() error {
	for i := range r.rules.len() {
		if err := r.maps[tcMapRules].Put(uint32(i), make([]byte, r.rules.size)); err != nil {
			return fmt.Errorf("release the table in %s: %w", r.dir, err)
		}
	}
	m := r.maps[tcMapServiceSlots]
	var keys [][]byte
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&key, &value) {
		keys = append(keys, slices.Clone(key))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("release the table in %s: %w", r.dir, err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("release the table in %s: %w", r.dir, err)
		}
	}
	return nil
}

// Connections counts those that are still open: that were not silent for
// longer than their time-outs. It makes no system call but for the clock.
func (r *Retired) Connections() (n int) {
	c, now := r.control.at(0), ticksNow()
	cpus := r.realCPUs.len() / max(r.reals.len(), 1)
	for i := range min(int(c.NextSlot), r.flows.len()) {
		f := r.flows.at(i)
		if f.Word&uint32(tcFlowFlagFLOW_SOCKET) != 0 { // a socket's own: its packets need no table
			continue
		}
		if f.Gen&1 == 0 || int32(now-f.Seen) > int32(c.Timeout[int(f.Word)%len(c.Timeout)]) || int(f.RealSlot) >= r.reals.len() {
			continue
		}
		if r.realCPUs.at(int(f.RealSlot)*cpus).Gen == f.RealGen {
			n++
		}
	}
	return n
}

// Remove takes the table and its programs away, and closes it. It may be tried
// again when it fails.
func (r *Retired) Remove() error {
	removeMovedFilters(r.number)
	if err := removeSockets(filepath.Join(r.dir, "links")); err != nil {
		return fmt.Errorf("let go of sockets: %w", err)
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	r.Close()
	return nil
}

// Close lets go of the table; it stays in force.
func (r *Retired) Close() {
	for _, b := range r.mapped {
		_ = unix.Munmap(b)
	}
	r.mapped = nil
	closeAll(r.maps)
}

// inherit takes over what a table of another version holds, and lets it end
// beside this one.
func (p *Plane) inherit(old *Retired) error {
	p.retired = append(p.retired, old)
	var rows []model.Change
	for _, v := range old.Table().Services {
		rows = append(rows, model.Change{Op: model.ServiceAdd, Service: v})
		for _, r := range v.Reals {
			rows = append(rows, model.Change{Op: model.RealAdd, Service: v, Real: r})
		}
	}
	var marks []tcRule
	for i := range min(int(old.control.at(0).Rules), old.rules.len()) {
		marks = append(marks, old.rules.at(i))
	}
	p.state.adoptMarks(p.t, marks)
	refused := p.Apply(context.Background(), rows)
	var row *plane.RowError
	if refused != nil && !errors.As(refused, &row) {
		return refused
	}
	if refused != nil {
		p.event(model.LevelError, "not-inherited", fmt.Sprintf("of the table of the version before: %v", refused))
	}
	bound, err := p.inheritStays(old)
	if err != nil { // their clients are served, by whichever comes next
		p.event(model.LevelError, "not-inherited", fmt.Sprintf("which clients have which real server: %v", err))
	}
	p.event(model.LevelNotice, "table-inherited", fmt.Sprintf("the table of another version in %s was taken over; %d open connections go on beside it until they end, %d clients keep their real servers",
		p.o.Dir, old.Connections(), bound))
	return old.Release()
}

// inheritStays takes over which client of a persistent service has which real
// server, and for how long. What is bound anew meanwhile stays so. An old
// connection no longer prolongs its client's binding.
func (p *Plane) inheritStays(old *Retired) (n int, err error) {
	spec, err := loadTc()
	if err != nil {
		return 0, err
	}
	m := old.maps[tcMapStays]
	keys, err1 := layoutOf[tcStayKey](m, spec.Types, "stay_key")
	values, err2 := layoutOf[tcStay](m, spec.Types, "stay")
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	if keys.size != int(m.KeySize()) || values.size != int(m.ValueSize()) {
		return 0, fmt.Errorf("%s: %w", m, ErrOtherVersion)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	cpus := old.realCPUs.len() / max(old.reals.len(), 1)
	now := ticksNow()
	rawKey, rawValue := make([]byte, keys.size), make([]byte, values.size)
	it := m.Iterate()
	for it.Next(&rawKey, &rawValue) {
		k, v := keys.read(rawKey), values.read(rawValue)
		if int(k.Service) >= old.services.len() || int(v.Real) >= old.reals.len() ||
			int32(v.Expires-now) <= 0 || old.realCPUs.at(int(v.Real)*cpus).Gen != v.RealGen {
			continue
		}
		was, wasReal := old.services.at(int(k.Service)), old.reals.at(int(v.Real))
		s := p.state.services[keyOfWire(was.Key)]
		if s == nil {
			continue // refused
		}
		at := slices.IndexFunc(s.reals, func(r *real) bool { return r.Addr == realOf(&wasReal).Addr })
		if at < 0 {
			continue
		}
		r := s.reals[at]
		k.Service, v.Real, v.RealGen = s.slot, r.slot, atomic.LoadUint32(&p.t.realCPUs[int(r.slot)*p.t.cpus].Gen)
		switch err := p.t.Stays.Update(k, v, ebpf.UpdateNoExist); {
		case err == nil:
			n++
		case errors.Is(err, ebpf.ErrKeyExist):
		default: // full: the others are served without being remembered
			return n, err
		}
	}
	return n, it.Err()
}

// endRetired takes tables away whose connections have all ended.
func (p *Plane) endRetired() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired = slices.DeleteFunc(p.retired, func(r *Retired) bool {
		if p.closed || r.Connections() > 0 {
			return false
		}
		if err := r.Remove(); err != nil {
			p.event(model.LevelWarning, "retired-table", err.Error())
			r.Close()
		} else {
			p.event(model.LevelInfo, "retired-table", "the last connection of the table in "+r.dir+" has ended; it is gone")
		}
		return true
	})
}

// Before tcx the programs of a table set aside are filters before those of the
// table in force, in the order of their numbers.
const (
	movedIn  = "batuta_retired_ingress"
	movedOut = "batuta_retired_egress"
)

// moveFilters puts the filters of all interfaces again, before themselves:
// there is always one that knows the open connections.
func moveFilters(number int) error {
	var errs []error
	err := eachFilter(map[string]string{filterIn: movedIn, filterOut: movedOut}, func(f *netlink.BpfFilter, name string) {
		prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(f.Id))
		if err != nil {
			errs = append(errs, err)
			return
		}
		defer func() { _ = prog.Close() }()
		moved := filter(f.LinkIndex, f.Parent, name, prog)
		moved.Priority -= uint16(number)
		errs = append(errs, netlink.FilterReplace(moved))
	})
	return errors.Join(append(errs, err)...)
}

// removeMovedFilters takes them away; number 0 is those of all tables.
func removeMovedFilters(number int) {
	_ = eachFilter(map[string]string{movedIn: "", movedOut: ""}, func(f *netlink.BpfFilter, _ string) {
		if number == 0 || f.Priority == filterPriority-uint16(number) {
			_ = netlink.FilterDel(f)
		}
	})
}

// eachFilter finds the clsact filters whose names begin with a key of names.
func eachFilter(names map[string]string, fn func(f *netlink.BpfFilter, name string)) error {
	all, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			have, err := netlink.FilterList(l, parent)
			if err != nil {
				continue
			}
			for _, f := range have {
				b, ok := f.(*netlink.BpfFilter)
				if !ok {
					continue
				}
				for _, key := range slices.Sorted(maps.Keys(names)) {
					if strings.HasPrefix(b.Name, key) {
						b.LinkIndex, b.Parent = l.Attrs().Index, parent
						fn(b, names[key])
					}
				}
			}
		}
	}
	return nil
}
