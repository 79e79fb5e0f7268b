package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Question is what Trace answers: what would happen to a packet of a client.
type Question struct {
	Proto   model.Protocol
	Client  netip.AddrPort // port 0: one that no connection has, if possible
	Virtual netip.AddrPort
	// Opens: the packet opens a connection (TCP: SYN). Otherwise it is one of
	// an open connection.
	Opens bool
}

// Trace is what would happen, and why.
type Trace struct {
	Client   netip.AddrPort `json:"client"`
	Virtual  netip.AddrPort `json:"virtual"`
	Proto    model.Protocol `json:"protocol"`
	Fate     string         `json:"fate"`             // sent, dropped, or left to the director's own stack
	How      string         `json:"how"`              // how its real server was found
	Reason   string         `json:"reason,omitempty"` // why it would not simply go its way: Reason's word
	Service  string         `json:"service,omitempty"`
	Real     netip.AddrPort `json:"real,omitzero"`
	Forward  string         `json:"forward,omitempty"`
	Weight   int            `json:"weight"`
	Received string         `json:"in"`            // interface that it would come in by
	Sent     string         `json:"out,omitempty"` // interface that it would leave by
}

// String tells the story in lines.
func (t Trace) String() string {
	s := fmt.Sprintf("%s %s > %s comes in by %s\n", t.Proto, t.Client, t.Virtual, t.Received)
	s += "  " + t.How + "\n"
	if t.Real.IsValid() {
		s += fmt.Sprintf("  service %s, real server %s (%s, weight %d)\n", t.Service, t.Real, t.Forward, t.Weight)
	}
	s += "  " + t.Fate
	if t.Sent != "" {
		s += " by " + t.Sent
	}
	if t.Reason != "" {
		s += ": " + t.Reason
	}
	return s + "\n"
}

// how explains enum trace_how.
var how = map[tcTraceHow]string{
	tcTraceHowTRACE_NOTHING: "no virtual service has this address and port, or the packet is of no connection",
	tcTraceHowTRACE_KNOWN:   "it belongs to a connection in the table",
	tcTraceHowTRACE_NEW:     "a new connection: the scheduler chooses (the next one may go elsewhere)",
	tcTraceHowTRACE_STAYED:  "a new connection: its client is bound to this real server",
	tcTraceHowTRACE_WAITED:  "its SYN found a full table and went to this real server; now it gets a record, if one is free",
}

// TraceTable asks the real program, on the table that is pinned in dir ("" is
// DefaultDir), what would happen to a packet. Nothing is sent and nothing is
// changed. It must be called in the network namespace that the table belongs
// to. plane.ErrNotSupported: there is no such table.
func TraceTable(dir string, q Question) (Trace, error) {
	t, spec, err := pinnedTables(dir)
	if err != nil {
		return Trace{}, err
	}
	defer t.close()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Trace{}, fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	return t.trace(spec, nl, q)
}

// adopted is the tables of pinned maps, for looking at them.
func adopted(have map[string]*ebpf.Map) (*tables, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		closeAll(have)
		return nil, fmt.Errorf("count processors: %w", err)
	}
	t := &tables{cpus: cpus, adopted: true}
	t.assign(have)
	if err := t.mapAll(); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tables) trace(spec *ebpf.CollectionSpec, nl *netlink.Handle, q Question) (Trace, error) {
	if q.Client.Port() == 0 {
		q.Client = netip.AddrPortFrom(q.Client.Addr(), 61000)
	}
	out := Trace{Client: q.Client, Virtual: q.Virtual, Proto: q.Proto}
	if model.FamilyOf(q.Client.Addr()) != model.FamilyOf(q.Virtual.Addr()) {
		return out, fmt.Errorf("%s and %s are not of one address family", q.Client.Addr(), q.Virtual.Addr())
	}
	routes, err := nl.RouteGet(q.Client.Addr().AsSlice())
	if err != nil || len(routes) == 0 {
		return out, fmt.Errorf("no route to %s: its packets cannot be told to come in anywhere: %w", q.Client.Addr(), errors.Join(err, plane.ErrNotSupported))
	}
	in, err := nl.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return out, fmt.Errorf("interface %d: %w", routes[0].LinkIndex, err)
	}
	out.Received = in.Attrs().Name

	prog, err := t.tracer(spec)
	if err != nil {
		return out, err
	}
	defer func() { _ = prog.Close() }()
	frame := probe(in.Attrs().HardwareAddr, q)
	ctx := skbContext{Ifindex: uint32(in.Attrs().Index)}
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Context: ctx, ContextOut: &ctx}
	code, err := prog.Run(o)
	if err != nil {
		return out, fmt.Errorf("run the program on a probe: %w", err)
	}
	out.Fate = map[uint32]string{2: "dropped", 7: "sent"}[code]
	if out.Fate == "" {
		out.Fate = "left to the director's own stack"
	}
	reason := Reason(ctx.CB[tcTraceCbTRACE_REASON])
	if reason != ReasonNone {
		out.Reason = reason.String()
	}
	out.How = how[tcTraceHow(ctx.CB[tcTraceCbTRACE_HOW])]
	if reason.Dropped() && ctx.CB[tcTraceCbTRACE_REAL] == 0 {
		out.How = "no real server can take it"
	}
	if n := ctx.CB[tcTraceCbTRACE_REAL]; n > 0 && int(n) <= len(t.reals) {
		row := &t.reals[n-1]
		r := realOf(row)
		out.Real, out.Forward, out.Weight = r.Addr, r.Forward.String(), r.Weight
		if r.local {
			out.Forward += ", here"
		}
		if int(row.Service) < len(t.services) {
			out.Service = keyOfWire(t.services[row.Service].Key).String()
		}
	}
	if n := ctx.CB[tcTraceCbTRACE_IFINDEX]; n > 0 {
		if l, err := nl.LinkByIndex(int(n)); err == nil {
			out.Sent = l.Attrs().Name
		}
	}
	return out, nil
}

// tracer loads the ingress program such that it changes nothing.
func (t *tables) tracer(spec *ebpf.CollectionSpec) (*ebpf.Program, error) {
	if err := t.variables(spec, true); err != nil {
		return nil, err
	}
	c, err := t.collection(spec)
	if err != nil {
		return nil, explain(fmt.Errorf("load the eBPF program: %w", err))
	}
	defer c.Close()
	return c.DetachProgram(tcProgIngress), nil
}

// skbContext is struct __sk_buff of linux/bpf.h.
type skbContext struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID, Family                              uint32
	RemoteIP4, LocalIP4                                                         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta, _                                          uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GsoSegs                                                            uint32
	Sk                                                                          uint64
	GsoSize                                                                     uint32
	TstampType                                                                  uint8
	_                                                                           [3]uint8
	Hwtstamp                                                                    uint64
}

// probe is the packet: headers alone, without checksums, which no program reads.
func probe(to []byte, q Question) []byte {
	l4 := make([]byte, 20)
	binary.BigEndian.PutUint16(l4, q.Client.Port())
	binary.BigEndian.PutUint16(l4[2:], q.Virtual.Port())
	switch q.Proto {
	case model.UDP:
		l4 = l4[:8]
		binary.BigEndian.PutUint16(l4[4:], 8)
	case model.SCTP:
		if q.Opens {
			l4[12] = 1 // INIT
		}
	case model.TCP, model.ProtocolNone:
		l4[12], l4[13] = 5<<4, 0x10 // ACK
		if q.Opens {
			l4[13] = 0x02 // SYN
		}
	}
	frame := append(append([]byte{}, to...), 2, 0, 0, 0, 0, 1)
	if q.Client.Addr().Is6() {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, q.Proto.Number(), 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], q.Client.Addr().AsSlice())
		copy(ip[24:], q.Virtual.Addr().AsSlice())
		return append(append(append(frame, 0x86, 0xdd), ip...), l4...)
	}
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, q.Proto.Number()
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
	copy(ip[12:], q.Client.Addr().AsSlice())
	copy(ip[16:], q.Virtual.Addr().AsSlice())
	return append(append(append(frame, 0x08, 0x00), ip...), l4...)
}
