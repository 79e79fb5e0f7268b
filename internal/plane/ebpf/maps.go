package ebpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// abiVersion is BATUTA_ABI of bpf/abi.h.
const abiVersion = 10

// maxInterfaces is above the numbers of interfaces whose neighbors' hardware
// addresses are remembered; packets to others go by the kernel's neighbor entries.
const maxInterfaces = 16384

// ErrOtherVersion is wrapped by Open when the pinned maps have another layout
// than this program's.
var ErrOtherVersion = errors.New("the pinned table was made by another version of Batuta")

// ErrOtherNamespace is wrapped by Open when the pinned maps carry the table of
// another network namespace.
var ErrOtherNamespace = errors.New("the pinned table belongs to another network namespace")

// tables is the plane's maps, as loaded, and those of them that are mapped
// into memory.
type tables struct {
	tcMaps
	control  *tcControl
	services []tcService
	rules    []tcRule
	rings    []tcRingEntry
	reals    []tcReal
	realCPUs []tcRealCpu // cpus for each real server
	flows    []tcFlow    // maxFlows, and some that are in no index
	cpus     int
	maxFlows int
	reasons  []uint64 // reasonsLine for each processor
	ethers   []uint64 // by interface: 1 if its frames have Ethernet headers
	adopted  bool     // found pinned, not made
	mapped   [][]byte
}

// abiHash names the layout of all maps: any difference means that the pinned
// ones cannot be used.
func abiHash(spec *ebpf.CollectionSpec) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "abi %d\n", abiVersion)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		if !pinned(name) {
			continue
		}
		fmt.Fprintf(h, "%s %d %d %d %d\n", name, m.Type, m.KeySize, m.ValueSize, m.Flags)
	}
	return h.Sum64()
}

// pinned tells what outlives the programs from the compiler's maps (.rodata)
// and from scratch room.
func pinned(name string) bool { return name[0] != '.' && name != tcMapScratch }

// hops is how many next hops connections may have at a time, a power of two
// (bpf/route.h); beyond that routes are looked up for each packet.
const hops = 4096

// buckets is how many cache lines of eight entries the index gets: places for
// twice the two entries of each connection, rounded up to a power of two.
func buckets(flows int) int { return 1 << bits.Len(uint(max(flows/2, 1)-1)) }

// notes is how many notes of half-open connections there are (bpf/waiting.h), a power of
// two, half of them for each direction: a megabyte. Of a client that answers after 10,000
// SYNs of a flood both are still there with a probability of 3 in 4.
const notes = 131072

// passing is how many records lie behind those of the table (bpf/schedule.h,
// bpf/waiting.h).
func passing(cpus int) int { return 1 + 2*cpus }

// openTables adopts the maps pinned in dir, or makes and pins them. spec is
// given their sizes.
func openTables(dir string, spec *ebpf.CollectionSpec, o Options, netns uint64) (*tables, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count processors: %w", err)
	}
	want := abiHash(spec)
	sizes := map[string]int{
		tcMapControls: 1, tcMapServices: o.MaxServices, tcMapServiceSlots: o.MaxServices,
		tcMapReals: o.MaxReals, tcMapRealCpus: o.MaxReals * cpus, tcMapRings: (o.MaxTurns + 1) / 2,
		tcMapFlows: o.MaxFlows + passing(cpus), tcMapFlowIndex: buckets(o.MaxFlows), tcMapFreeSlots: o.MaxFlows,
		tcMapRules: maxRules, tcMapElsewhere: 1,
		tcMapAddresses: o.MaxServices + o.MaxReals, tcMapStays: o.MaxClients, tcMapHops: hops, tcMapFragments: 8192, tcMapReasons: cpus * reasonsLine,
		tcMapPaths: 1024, tcMapWatches: 1, tcMapEars: 1, tcMapEthers: maxInterfaces,
		tcMapNotes: o.notes,
	}
	for name, n := range sizes {
		spec.Maps[name].MaxEntries = uint32(n)
	}

	t := &tables{cpus: cpus}
	have, err := adopt(dir, spec)
	if err != nil {
		return nil, err
	}
	if have != nil {
		t.adopted = true
		for name, m := range have {
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
	} else if have, err = create(dir, spec); err != nil {
		return nil, err
	}
	t.assign(have)
	if err := t.mapAll(); err != nil {
		t.close()
		return nil, err
	}

	switch {
	case !t.adopted:
	case t.control.Abi == 0: // a start that was cut short: nobody has used it
		t.close()
		if err := os.RemoveAll(filepath.Join(dir, "maps")); err != nil {
			return nil, err
		}
		return openTables(dir, spec, o, netns)
	case t.control.Abi != want || len(t.realCPUs) != len(t.reals)*cpus || !o.asked.fit(t):
		t.close()
		return nil, otherVersion(dir)
	case t.control.Netns != netns:
		t.close()
		return nil, otherNamespace(dir)
	}
	if !t.adopted {
		t.control.Seed = newSeed()
	}
	t.control.Netns = netns
	t.control.Abi = want // last: from now on the maps are complete
	return t, nil
}

// adopt opens the pinned maps; nil if there are none, or if making them was
// cut short. A complete table that lacks a map is another version's.
func adopt(dir string, spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	have := map[string]*ebpf.Map{}
	missing := ""
	for name := range spec.Maps {
		if !pinned(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			missing = name
			continue
		}
		if err != nil {
			closeAll(have)
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		have[name] = m
	}
	if missing == "" {
		return have, nil
	}
	defer closeAll(have)
	if m := have[tcMapControls]; m != nil {
		abi := make([]byte, m.ValueSize())
		if err := m.Lookup(uint32(0), &abi); err != nil || len(abi) < 8 || binary.NativeEndian.Uint64(abi) != 0 {
			return nil, otherVersion(dir)
		}
	}
	return nil, nil
}

func otherVersion(dir string) error {
	return fmt.Errorf("%s: %w; stop the service and remove the directory to start with an empty table", dir, ErrOtherVersion)
}

func otherNamespace(dir string) error {
	return fmt.Errorf("%s: %w; give each namespace a directory of its own", dir, ErrOtherNamespace)
}

// create makes the maps and pins them, in place of whatever was there.
func create(dir string, spec *ebpf.CollectionSpec) (_ map[string]*ebpf.Map, err error) {
	path := filepath.Join(dir, "maps")
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	made := map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			closeAll(made)
			_ = os.RemoveAll(path)
		}
	}()
	for name, s := range spec.Maps {
		if !pinned(name) {
			continue
		}
		m, err := ebpf.NewMap(s)
		if err != nil {
			return nil, fmt.Errorf("create map %s: %w", name, err)
		}
		made[name] = m
		if err := m.Pin(filepath.Join(path, name)); err != nil {
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return made, nil
}

func closeAll(m map[string]*ebpf.Map) {
	for _, x := range m {
		_ = x.Close()
	}
}

func (t *tables) assign(m map[string]*ebpf.Map) {
	t.tcMaps = tcMaps{
		Addresses: m[tcMapAddresses], Controls: m[tcMapControls], FlowIndex: m[tcMapFlowIndex],
		Flows: m[tcMapFlows], Fragments: m[tcMapFragments], FreeSlots: m[tcMapFreeSlots],
		Hops: m[tcMapHops], RealCpus: m[tcMapRealCpus], Reals: m[tcMapReals], Reasons: m[tcMapReasons],
		Rules: m[tcMapRules], Elsewhere: m[tcMapElsewhere],
		Rings: m[tcMapRings], ServiceSlots: m[tcMapServiceSlots], Services: m[tcMapServices], Stays: m[tcMapStays],
		Sockets: m[tcMapSockets], Paths: m[tcMapPaths], Watches: m[tcMapWatches], Ears: m[tcMapEars], Ethers: m[tcMapEthers], Notes: m[tcMapNotes], Recent: m[tcMapRecent],
	}
}

// replacements names the maps for loading programs.
func (t *tables) replacements() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		tcMapAddresses: t.Addresses, tcMapControls: t.Controls, tcMapFlowIndex: t.FlowIndex,
		tcMapFlows: t.Flows, tcMapFragments: t.Fragments, tcMapFreeSlots: t.FreeSlots,
		tcMapHops: t.Hops, tcMapRealCpus: t.RealCpus, tcMapReals: t.Reals, tcMapReasons: t.Reasons,
		tcMapRules: t.Rules, tcMapElsewhere: t.Elsewhere,
		tcMapRings: t.Rings, tcMapServiceSlots: t.ServiceSlots, tcMapServices: t.Services, tcMapStays: t.Stays,
		tcMapSockets: t.Sockets, tcMapPaths: t.Paths, tcMapWatches: t.Watches, tcMapEars: t.Ears, tcMapEthers: t.Ethers, tcMapNotes: t.Notes, tcMapRecent: t.Recent,
	}
}

// newSeed makes the hash of the index unforeseeable.
func newSeed() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // which never fails
	return binary.NativeEndian.Uint64(b[:])
}

// variables are the constants of the programs.
func (t *tables) variables(spec *ebpf.CollectionSpec, tracing bool) error {
	trace := uint32(0)
	if tracing {
		trace = 1
	}
	for name, value := range map[string]any{
		tcVarCpus: uint32(t.cpus), tcVarMaxFlows: uint32(t.maxFlows), tcVarIndexMask: t.FlowIndex.MaxEntries() - 1,
		tcVarHopMask: t.Hops.MaxEntries() - 1, tcVarNoteMask: t.Notes.MaxEntries()/2 - 1, tcVarSeed: t.control.Seed, tcVarTracing: trace,
	} {
		v := spec.Variables[name]
		if v == nil {
			continue // this object has no use for it
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// mapAll maps the arrays into memory.
func (t *tables) mapAll() error {
	control, err := mapArray[tcControl](t, t.Controls)
	if err != nil {
		return err
	}
	t.control = &control[0]
	if t.services, err = mapArray[tcService](t, t.Services); err != nil {
		return err
	}
	if t.rules, err = mapArray[tcRule](t, t.Rules); err != nil {
		return err
	}
	if t.rings, err = mapArray[tcRingEntry](t, t.Rings); err != nil {
		return err
	}
	if t.reals, err = mapArray[tcReal](t, t.Reals); err != nil {
		return err
	}
	if t.realCPUs, err = mapArray[tcRealCpu](t, t.RealCpus); err != nil {
		return err
	}
	if t.flows, err = mapArray[tcFlow](t, t.Flows); err != nil {
		return err
	}
	t.maxFlows = len(t.flows) - passing(t.cpus)
	if t.reasons, err = mapArray[uint64](t, t.Reasons); err != nil {
		return err
	}
	t.ethers, err = mapArray[uint64](t, t.Ethers)
	return err
}

// mapArray maps one array map into memory, as elements of type T.
func mapArray[T any](t *tables, m *ebpf.Map) ([]T, error) {
	var zero T
	if int(m.ValueSize()) != int(unsafe.Sizeof(zero)) {
		return nil, fmt.Errorf("%s: elements of %d bytes, not %d: %w", m, m.ValueSize(), unsafe.Sizeof(zero), ErrOtherVersion)
	}
	b, err := mapBytes(m, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, err
	}
	t.mapped = append(t.mapped, b)
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), int(m.MaxEntries())), nil
}

// mapBytes maps an array map into memory, with what its last page has besides.
func mapBytes(m *ebpf.Map, protection int) ([]byte, error) {
	size, page := int(m.MaxEntries())*int(m.ValueSize()), os.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", m, err)
	}
	return b, nil
}

// bytesOf is the memory of a row.
func bytesOf[T any](row *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(row)), unsafe.Sizeof(*row))
}

func (t *tables) close() {
	for _, b := range t.mapped {
		_ = unix.Munmap(b)
	}
	t.mapped = nil
	_ = t.Close() // the maps
}
