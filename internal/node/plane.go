package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
	"github.com/batuta-ha/batuta/internal/plane/memory"
	"github.com/batuta-ha/batuta/internal/plane/proxy"
)

// PlaneNames are the words that --plane takes.
var PlaneNames = []string{"auto", "ipvs", "ebpf", "proxy", "memory"}

// planeOptions say which plane to open.
type planeOptions struct {
	name      string // one of PlaneNames
	holdAll   bool   // proxy: serve all addresses, no cluster says which are held
	eventsLog string // memory: file of changes
	tableFile string // memory: file of the table
	sink      model.Sink
}

// openPlane opens the plane asked for. "auto" takes the best this machine
// can carry and tells the reason in its Info.
func openPlane(o planeOptions) (plane.Plane, error) {
	switch o.name {
	case "memory":
		return memory.New(memory.Options{EventsFile: o.eventsLog, TableFile: o.tableFile})
	case "proxy":
		return proxy.New(proxy.Options{HoldAll: o.holdAll}), nil
	case "ebpf":
		return ebpf.Open(ebpf.Options{Sink: o.sink})
	case "ipvs":
		return nil, fmt.Errorf("plane ipvs: %w by this version of Batuta yet: take --plane ebpf, proxy or auto", plane.ErrNotSupported)
	case "auto":
		why := ebpf.Supported()
		if why == nil {
			return ebpf.Open(ebpf.Options{Sink: o.sink})
		}
		if !errors.Is(why, plane.ErrNotSupported) {
			return nil, fmt.Errorf("find out whether eBPF works here: %w; choose with --plane", why)
		}
		o.sink(model.Event{Level: model.LevelNotice, Source: "plane", Kind: "plane-chosen",
			Text: fmt.Sprintf("plane proxy instead of ebpf: %v", why)})
		return proxy.New(proxy.Options{HoldAll: o.holdAll}), nil
	}
	return nil, fmt.Errorf("plane %q: want one of %v", o.name, PlaneNames)
}

// addressBook tells an address-holding plane which addresses this node holds.
// Several resources come and go independently; the plane wants the whole set.
type addressBook struct {
	mu     sync.Mutex
	held   map[netip.Addr]bool
	holder plane.AddressHolder // nil for planes that need not be told
}

func newAddressBook(p plane.Plane) *addressBook {
	h, _ := p.(plane.AddressHolder)
	return &addressBook{held: map[netip.Addr]bool{}, holder: h}
}

// set adds or removes one address and returns once the plane follows.
func (b *addressBook) set(ctx context.Context, a netip.Addr, hold bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if hold {
		b.held[a] = true
	} else {
		delete(b.held, a)
	}
	if b.holder == nil {
		return nil
	}
	return b.holder.SetAddresses(ctx, slices.SortedFunc(maps.Keys(b.held), netip.Addr.Compare))
}
