package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Share is what one real server gets of a service's new connections.
type Share struct {
	Real        netip.AddrPort `json:"real"`
	Weight      int            `json:"weight"`
	Percent     float64        `json:"percent"` // of the ring's turns
	After       float64        `json:"after"`   // the same after the change
	Connections int            `json:"connections"`
}

// Explanation is how a service chooses, and what a change of one real server
// would do to it.
type Explanation struct {
	Service   string  `json:"service"`
	Scheduler string  `json:"scheduler"`
	How       string  `json:"how"`
	Turns     int     `json:"turns"`
	Shares    []Share `json:"shares"`
	Change    string  `json:"change,omitempty"`
	// Moved is the percentage of the ring's places that lead elsewhere
	// afterwards, those of the changed real server among them.
	Moved float64 `json:"moved"`
	// Clients have open connections; Elsewhere is how many of them find another
	// real server with their next one (sh, mh). Ended connections are those of
	// a real server that is taken out.
	Clients   int `json:"clients"`
	Elsewhere int `json:"elsewhere"`
	Ended     int `json:"ended"`
}

// RingChange is a change to ask about: without a real server, or with another
// weight. The zero value is none.
type RingChange struct {
	Real    netip.AddrPort
	Without bool
	Weight  int
}

// choices explains enum choice.
var choices = map[tcChoice]string{
	tcChoiceCHOOSE_TURN:        "each new connection takes the next turn of the ring",
	tcChoiceCHOOSE_SOURCE:      "a client's address names its place in the ring (Maglev), the same on every director",
	tcChoiceCHOOSE_DESTINATION: "the virtual address names the place in the ring (Maglev): one real server gets all",
	tcChoiceCHOOSE_TWO:         "the less loaded of two turns, taken by chance",
	tcChoiceCHOOSE_LC:          "the real server with the fewest connections; the ring is only the order of equals",
	tcChoiceCHOOSE_WLC:         "the fewest connections for its weight; the ring is only the order of equals",
	tcChoiceCHOOSE_SED:         "the shortest expected delay; the ring is only the order of equals",
	tcChoiceCHOOSE_NQ:          "an idle one, else the shortest expected delay; the ring is only the order of equals",
	tcChoiceCHOOSE_FO:          "the heaviest; the ring is only the order of equals",
	tcChoiceCHOOSE_OVF:         "the heaviest that is not full; the ring is only the order of equals",
}

// ExplainTable explains a service of the table pinned in dir ("" is DefaultDir).
// It only reads. plane.ErrNotSupported: there is no such table.
func ExplainTable(dir string, key model.ServiceKey, change RingChange) (Explanation, error) {
	t, _, err := pinnedTables(dir)
	if err != nil {
		return Explanation{}, err
	}
	defer t.close()
	return t.explain(key, change)
}

func (t *tables) explain(key model.ServiceKey, change RingChange) (e Explanation, err error) {
	wire, slot := wireKey(key), -1
	for i := range t.services {
		if t.services[i].Used != 0 && t.services[i].Key == wire {
			slot = i
		}
	}
	if slot < 0 {
		return e, fmt.Errorf("%s: the table has no such service; batuta table lists them", key)
	}
	row := &t.services[slot]
	v := serviceOf(row)
	e = Explanation{Service: key.String(), Scheduler: v.Scheduler, How: choices[tcChoice(row.Choice)]}
	var now []*real
	for i := range t.reals {
		if r := &t.reals[i]; r.Used != 0 && int(r.Service) == slot {
			x := realOf(r)
			x.slot = uint32(i)
			now = append(now, &x)
		}
	}
	slices.SortFunc(now, func(x, y *real) int { return x.Addr.Compare(y.Addr) })
	then, err := change.of(now)
	if err != nil {
		return e, fmt.Errorf("%s: %w", key, err)
	}
	before, after := ring(v.Scheduler, now), ring(v.Scheduler, then)
	name := func(turns []int, reals []*real, at int) netip.AddrPort {
		if len(turns) == 0 {
			return netip.AddrPort{}
		}
		return reals[turns[at%len(turns)]].Addr
	}
	shares := map[netip.AddrPort]*Share{}
	for _, r := range now {
		shares[r.Addr] = &Share{Real: r.Addr, Weight: r.Weight}
	}
	e.Turns = len(before)
	for i := range before {
		shares[name(before, now, i)].Percent += 100 / float64(len(before))
	}
	for i := range after {
		shares[name(after, then, i)].After += 100 / float64(len(after))
	}
	if change != (RingChange{}) {
		e.Change = change.String()
		// Rings of different sizes are compared where their places begin.
		for i, n := 0, max(len(before), len(after)); i < n; i++ {
			if name(before, now, i*len(before)/n) != name(after, then, i*len(after)/n) {
				e.Moved += 100 / float64(n)
			}
		}
	}
	t.countMoves(&e, row, uint32(slot), shares, change, func(h uint32) bool {
		return name(before, now, part(h, len(before))) != name(after, then, part(h, len(after)))
	})
	for _, r := range now {
		e.Shares = append(e.Shares, *shares[r.Addr])
	}
	return e, nil
}

// countMoves looks at the open connections of a service.
func (t *tables) countMoves(e *Explanation, row *tcService, slot uint32, shares map[netip.AddrPort]*Share, change RingChange, moves func(hash uint32) bool) {
	type client struct {
		addr tcAddr
		port uint16
	}
	clients := map[client]bool{}
	t.eachFlow(func(f *tcFlow) {
		r := &t.reals[f.RealSlot]
		if r.Service != slot || r.Used == 0 {
			return
		}
		at := realOf(r).Addr
		if s := shares[at]; s != nil {
			s.Connections++
		}
		if change.Without && at == change.Real {
			e.Ended++
		}
		c := client{addr: f.Client}
		if row.Flags&uint8(tcServiceFlagSERVICE_HASH_PORT) != 0 {
			c.port = f.Cport
		}
		clients[c] = true
	})
	e.Clients = len(clients)
	if tcChoice(row.Choice) != tcChoiceCHOOSE_SOURCE || change == (RingChange{}) {
		return
	}
	for c := range clients {
		if moves(ringHash(c.addr, c.port)) {
			e.Elsewhere++
		}
	}
}

// of applies the change to a service's real servers.
func (c RingChange) of(now []*real) ([]*real, error) {
	if c == (RingChange{}) {
		return now, nil
	}
	i := slices.IndexFunc(now, func(r *real) bool { return r.Addr == c.Real })
	if i < 0 {
		return nil, fmt.Errorf("it has no real server %s", c.Real)
	}
	then := slices.Clone(now)
	if c.Without {
		return slices.Delete(then, i, i+1), nil
	}
	if c.Weight < 0 || c.Weight > maxWeight {
		return nil, fmt.Errorf("weight %d: must be between 0 and %d", c.Weight, maxWeight)
	}
	r := *now[i]
	r.Weight = c.Weight
	then[i] = &r
	return then, nil
}

func (c RingChange) String() string {
	if c.Without {
		return "without " + c.Real.String()
	}
	return fmt.Sprintf("%s with weight %d", c.Real, c.Weight)
}

// ringHash is what choose() of bpf/schedule.h takes a place in a Maglev table by.
func ringHash(a tcAddr, port uint16) uint32 {
	h := uint64(0x5bd1e995)
	for _, v := range []uint64{a.D[0], a.D[1], uint64(port)} {
		h = (h ^ v) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return uint32(h >> 32)
}

// part is where a number lies among count places, as in bpf/schedule.h.
func part(n uint32, count int) int { return int(uint64(n) * uint64(count) >> 32) }

// String tells it in lines.
func (e Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s, %d turns: %s\n", e.Service, e.Scheduler, e.Turns, e.How)
	if e.Turns == 0 {
		b.WriteString("  no real server takes new connections\n")
	}
	for _, s := range e.Shares {
		fmt.Fprintf(&b, "  %-24s weight %-5d %6.2f %%", s.Real, s.Weight, s.Percent)
		if e.Change != "" {
			fmt.Fprintf(&b, " -> %6.2f %%", s.After)
		}
		fmt.Fprintf(&b, "  %d connections\n", s.Connections)
	}
	if e.Change == "" {
		return b.String()
	}
	fmt.Fprintf(&b, "%s:\n", e.Change)
	fmt.Fprintf(&b, "  %.2f %% of the ring lead elsewhere\n", e.Moved)
	switch {
	case e.Ended > 0:
		fmt.Fprintf(&b, "  %d open connections end; with weight 0 they would go on\n", e.Ended)
	default:
		b.WriteString("  open connections stay where they are\n")
	}
	if e.Scheduler == "sh" || e.Scheduler == "mh" {
		fmt.Fprintf(&b, "  of %d clients with open connections %d go elsewhere with their next one\n", e.Clients, e.Elsewhere)
	}
	return b.String()
}

// pinnedTables opens the table pinned in dir ("" is DefaultDir) for looking at it.
func pinnedTables(dir string) (*tables, *ebpf.CollectionSpec, error) {
	if dir == "" {
		dir = DefaultDir
	}
	spec, err := loadTc()
	if err != nil {
		return nil, nil, err
	}
	have, err := adopt(dir, spec)
	if err != nil {
		return nil, nil, err
	}
	if have == nil {
		return nil, nil, fmt.Errorf("%s: no table of the eBPF plane is pinned there; is the daemon running, with --plane ebpf? %w", dir, plane.ErrNotSupported)
	}
	t, err := adopted(have)
	if err != nil {
		return nil, nil, err
	}
	if t.control.Abi != abiHash(spec) {
		t.close()
		return nil, nil, otherVersion(dir)
	}
	return t, spec, nil
}
