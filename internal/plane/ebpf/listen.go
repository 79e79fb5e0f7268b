package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// Wanted is what a listener wants to hear. Zero members mean anything.
type Wanted struct {
	Client  netip.Prefix   // packets of these clients, and those to them
	Virtual netip.Addr     // ... and of this virtual address
	Port    uint16         // ... and port
	Proto   model.Protocol // ... and protocol
	Reasons []Reason       // ReasonNone stands for new connections; nil is all
	Every   int            // one of so many, chosen by chance; 0 is all
}

// Packet is one that did not simply go its way, or that opened a connection.
type Packet struct {
	At          time.Time      `json:"time"`
	Hook        string         `json:"hook"` // ingress, egress, xdp; socket: of a client on the director itself
	Interface   string         `json:"interface,omitempty"`
	Proto       string         `json:"protocol"`
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Length      int            `json:"length,omitempty"`
	Reason      string         `json:"reason"` // Reason's word; "opened" for a new connection
	Dropped     bool           `json:"dropped"`
	Real        netip.AddrPort `json:"real,omitzero"` // of a new connection
}

// String is a line.
func (p Packet) String() string {
	where := p.Hook
	if p.Interface != "" {
		where = p.Interface + " " + p.Hook
	}
	fate := "left to the stack"
	switch {
	case p.Real.IsValid():
		fate = "to " + p.Real.String()
	case p.Dropped:
		fate = "dropped"
	case p.Reason == ReasonStaysFull.String() || p.Reason == ReasonMadeRoom.String() || p.Reason == ReasonWaits.String():
		fate = "carried"
	}
	return fmt.Sprintf("%s %s: %s %s > %s: %s, %s", p.At.Format("15:04:05.000000"), where, p.Proto, p.Source, p.Destination, p.Reason, fate)
}

var hookNames = [...]string{tcHookHOOK_INGRESS: "ingress", tcHookHOOK_EGRESS: "egress", tcHookHOOK_XDP: "xdp", tcHookHOOK_SOCKET: "socket"}

const (
	openedWord = "opened"
	// What one listener may be behind: some 3,000 events.
	earSize = 256 << 10
	// For how long the programs speak on after the listener's last sign of life.
	listenFor   = 3 * time.Second
	listenEvery = time.Second
)

// ParseReason reads a Reason's word; "opened" is ReasonNone.
func ParseReason(s string) (Reason, error) {
	if s == openedWord {
		return ReasonNone, nil
	}
	for r := range Reason(reasons) {
		if r != ReasonNone && r != Reason(tcReasonREASON_STACK) && r.String() == s {
			return r, nil
		}
	}
	return 0, fmt.Errorf("%q is no reason; those are in docs/reference/packets.md", s)
}

// Listen calls tell for packets of the table pinned in dir ("" is DefaultDir)
// that did not simply go their way, and for those that open connections, until
// ctx ends or tell fails. lost is how many found no room because tell was too
// slow. While nobody listens the programs do nothing for it. One listens at a
// time; packets whose way is plain cannot be heard.
func Listen(ctx context.Context, dir string, w Wanted, tell func(Packet) error) (lost uint64, err error) {
	t, _, err := pinnedTables(dir)
	if err != nil {
		return 0, err
	}
	defer t.close()
	if t.watched() {
		return 0, errors.New("somebody listens already (batuta trace --follow); one can at a time")
	}
	ear, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: earSize})
	if err != nil {
		return 0, fmt.Errorf("make a buffer for events: %w", err)
	}
	defer func() { _ = ear.Close() }()
	r, err := ringbuf.NewReader(ear)
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	watches, err := mapArray[tcWatch](t, t.Watches)
	if err != nil {
		return 0, err
	}
	watches[0] = w.row()
	if err := t.Ears.Put(uint32(0), ear); err != nil {
		return 0, fmt.Errorf("listen: %w", err)
	}
	defer t.hush()
	defer func() { lost = atomic.LoadUint64(&watches[0].Lost) }()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, err
	}
	started := time.Now().Add(-time.Duration(ts.Nano()))
	names := map[uint32]string{}
	for ctx.Err() == nil {
		atomic.StoreUint32(&t.control.Watched, max(ticksNow()+toTicks(listenFor), 1))
		r.SetDeadline(time.Now().Add(listenEvery))
		for until := time.Now().Add(listenEvery); time.Now().Before(until) && ctx.Err() == nil; {
			raw, err := r.Read()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return 0, fmt.Errorf("read events: %w", err)
			}
			var e tcEvent
			copy(bytesOf(&e), raw.RawSample)
			if err := tell(t.packet(&e, started, names)); err != nil {
				return 0, err
			}
		}
	}
	return 0, nil
}

// row is what the programs compare with.
func (w Wanted) row() tcWatch {
	row := tcWatch{Every: uint32(max(w.Every, 0)), Vport: wirePort(w.Port)}
	if w.Proto != model.ProtocolNone {
		row.Proto = w.Proto.Number()
	}
	if w.Client.IsValid() {
		row.Client, row.ClientMask = wirePrefix(w.Client)
	}
	if w.Virtual.IsValid() {
		row.Virt, row.VirtMask = wirePrefix(netip.PrefixFrom(w.Virtual, w.Virtual.BitLen()))
	}
	for _, r := range w.Reasons {
		row.Reasons |= 1 << r
	}
	if len(w.Reasons) == 0 {
		row.Reasons = ^uint64(0)
	}
	return row
}

// packet is an event in words.
func (t *tables) packet(e *tcEvent, started time.Time, names map[uint32]string) Packet {
	p := Packet{
		At: started.Add(time.Duration(e.When)), Hook: "unknown", Proto: protocolName(e.T.Proto), Length: int(e.Length),
		Source:      netip.AddrPortFrom(addrOfWire(e.T.Src), portOfWire(e.T.Sport)),
		Destination: netip.AddrPortFrom(addrOfWire(e.T.Dst), portOfWire(e.T.Dport)),
		Reason:      Reason(e.Reason).String(), Dropped: Reason(e.Reason).Dropped(),
	}
	if int(e.Hook) < len(hookNames) {
		p.Hook = hookNames[e.Hook]
	}
	if Reason(e.Reason) == ReasonNone {
		p.Reason = openedWord
	}
	if e.Real > 0 && int(e.Real) <= len(t.reals) {
		p.Real = realOf(&t.reals[e.Real-1]).Addr
	}
	if e.Ifindex != 0 {
		if _, known := names[e.Ifindex]; !known {
			names[e.Ifindex] = fmt.Sprintf("interface %d", e.Ifindex)
			if l, err := netlink.LinkByIndex(int(e.Ifindex)); err == nil {
				names[e.Ifindex] = l.Attrs().Name
			}
		}
		p.Interface = names[e.Ifindex]
	}
	return p
}

// protocolName knows errors, too.
func protocolName(number uint8) string {
	switch number {
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return protocolOf(number).String()
}

// watched tells whether somebody listens.
func (t *tables) watched() bool {
	until := atomic.LoadUint32(&t.control.Watched)
	return until != 0 && int32(until-ticksNow()) > 0
}

// hush ends listening.
func (t *tables) hush() {
	atomic.StoreUint32(&t.control.Watched, 0)
	_ = t.Ears.Delete(uint32(0))
}

// hushed cleans up after a listener that went without a word.
func (t *tables) hushed() {
	if atomic.LoadUint32(&t.control.Watched) != 0 && !t.watched() {
		t.hush()
	}
}
