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
	"time"

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
	open   int    // connections, when last counted
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
// whose connections may still be open. Those that cannot be opened do not stop
// the others: there is an error for each, with what to do; it wraps
// ErrOtherNamespace where the table is for another network namespace's packets.
func AllRetired(dir string) (all []*Retired, errs []error) {
	if dir == "" {
		dir = DefaultDir
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("look for tables set aside: %w", err)}
	}
	for _, e := range entries {
		n, isOne := strings.CutPrefix(e.Name(), retiredPrefix)
		number, err := strconv.Atoi(n)
		if _, none := os.Stat(filepath.Join(dir, e.Name(), "maps")); !isOne || err != nil || none != nil {
			continue
		}
		r, err := openRetired(filepath.Join(dir, e.Name()), number)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, r)
	}
	return all, errs
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

// openRetired opens one table that was set aside, if it is of the caller's
// network namespace: elsewhere its interfaces have the same names and numbers
// at best, and its connections are not to be seen.
func openRetired(at string, number int) (*Retired, error) {
	netns, err := namespace()
	if err != nil {
		return nil, err
	}
	r, err := openRows(filepath.Join(at, "maps"))
	if err != nil {
		return nil, fmt.Errorf("the table set aside in %s cannot be opened, and its programs stay in force: %w; "+
			"start as root (or with the capabilities BPF, NET_ADMIN and SYS_ADMIN), or end its connections: rm -r %s", at, err, at)
	}
	if r.control.at(0).Netns != netns {
		r.Close()
		return nil, fmt.Errorf("the table set aside in %s is left alone: %w; the daemon in that namespace ends it; if the namespace is gone: rm -r %s",
			at, ErrOtherNamespace, at)
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
	switch m, err := ebpf.LoadPinnedMap(filepath.Join(dir, tcMapRecent), nil); {
	case err == nil:
		r.maps[tcMapRecent] = m
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open pinned map %s: %w", tcMapRecent, err)
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

// columns finds the members of the same name and size. Neighbors that were
// neighbors are copied as one: of rows that are as they were, it is all.
func columns(was, is *btf.Struct) (c []column) {
	for _, m := range is.Members {
		for _, o := range was.Members {
			n, err1 := btf.Sizeof(m.Type)
			k, err2 := btf.Sizeof(o.Type)
			if err1 != nil || err2 != nil || k != n || o.Name != m.Name {
				continue
			}
			at := column{o.Offset.Bytes(), m.Offset.Bytes(), uint32(n)}
			if last := len(c) - 1; last >= 0 && c[last].from+c[last].n == at.from && c[last].to+c[last].n == at.to {
				c[last].n += at.n
			} else {
				c = append(c, at)
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

// Release lets new connections of the services that are taken (nil: of all) go
// by: from now on the table only ends theirs. It returns how many services it
// still has, and is repeated as more of them are taken.
func (r *Retired) Release(taken func(model.ServiceKey) bool) (left int, err error) {
	m := r.maps[tcMapServiceSlots]
	let := map[uint32][]byte{} // the keys of those to release, by slot
	key, slot := make([]byte, m.KeySize()), uint32(0)
	it := m.Iterate()
	for it.Next(&key, &slot) {
		if int(slot) < r.services.len() && taken != nil && !taken(keyOfWire(r.services.at(int(slot)).Key)) {
			left++
			continue
		}
		let[slot] = slices.Clone(key)
	}
	if err := it.Err(); err != nil {
		return left, fmt.Errorf("release the table in %s: %w", r.dir, err)
	}
	// Rules lead to a service by its slot, without its key.
	for i := range r.rules.len() {
		to := r.rules.at(i).Service // the slot + 1
		if _, gone := let[to-1]; to == 0 || !gone {
			continue
		}
		if err := r.maps[tcMapRules].Put(uint32(i), make([]byte, r.rules.size)); err != nil {
			return left, fmt.Errorf("release the table in %s: %w", r.dir, err)
		}
	}
	for _, k := range let {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return left, fmt.Errorf("release the table in %s: %w", r.dir, err)
		}
	}
	if len(let) > 0 {
		if err := r.forgetRecent(); err != nil {
			return left, fmt.Errorf("release the table in %s: %w", r.dir, err)
		}
	}
	return left, nil
}

// forgetRecent has the programs look up services again: what they have found
// lately is remembered by slot, whether its key is still there or not.
func (r *Retired) forgetRecent() error {
	m := r.maps[tcMapRecent]
	if m == nil { // a version that remembers none
		return nil
	}
	if err := gracePeriod(); err != nil { // of those that had looked before
		return err
	}
	nothing := make([]byte, m.ValueSize())
	for i := range m.MaxEntries() {
		if err := m.Put(i, nothing); err != nil {
			return err
		}
	}
	return nil
}

// Connections counts those that are still open: that were not silent for
// longer than their time-outs. It makes no system call but for the clock; a
// million take 0.1 s.
func (r *Retired) Connections() (n int) {
	defer func() { r.open = n }()
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
	// What is not inherited is served all the same, by whichever comes next.
	bindings, err := old.Bindings()
	bound, err2 := p.Bind(context.Background(), bindings)
	if err := errors.Join(err, err2); err != nil {
		p.event(model.LevelError, "not-inherited", fmt.Sprintf("which clients have which real server: %v", err))
	}
	p.event(model.LevelNotice, "table-inherited", fmt.Sprintf("the table of another version or size in %s was taken over; %d open connections go on beside it until they end, %d clients keep their real servers",
		p.o.Dir, old.Connections(), bound))
	_, err = old.Release(nil)
	return err
}

// tellRetired says why tables that were set aside could not be opened: they go
// on as they are, and nobody ends them.
func (p *Plane) tellRetired(errs []error) {
	for _, err := range errs {
		l := model.LevelError
		if errors.Is(err, ErrOtherNamespace) {
			l = model.LevelNotice
		}
		p.event(l, "retired-table", err.Error())
	}
}

// endRetired takes tables away whose connections have all ended. An update that
// was cut short has left services in them: those that this table has are its own.
func (p *Plane) endRetired() {
	p.mu.Lock()
	defer p.mu.Unlock()
	begin := time.Now()
	if len(p.retired) == 0 || begin.Before(p.nextLook) {
		return
	}
	defer func() { p.nextLook = time.Now().Add(plane.Pace(time.Since(begin))) }()
	p.retired = slices.DeleteFunc(p.retired, func(r *Retired) bool {
		if p.closed {
			return false
		}
		left, err := r.Release(func(k model.ServiceKey) bool { return p.state.services[k] != nil })
		if err == nil && (left > 0 || r.Connections() > 0) {
			return false
		}
		if err == nil {
			err = r.Remove()
		}
		if err != nil {
			p.event(model.LevelWarning, "retired-table", fmt.Sprintf("end the table in %s: %v; it is tried again at the next start", r.dir, err))
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
