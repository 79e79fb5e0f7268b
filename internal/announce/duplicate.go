package announce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// Another machine may have a service address: it was given away twice, a real
// server answers ARP for it, or the other node's daemon hangs while its kernel
// answers on. Heartbeat never looked. Here the network is asked whenever an
// address comes (RFC 5227 section 2.1.1, RFC 4862 section 5.4), in the instant
// after, and nobody waits for an answer; and whoever says that it has a held
// address is heard (RFC 5227 section 2.4). It is told, and announced against;
// the address stays, as the cluster's configuration wants it here.

const (
	// An answer within this time after the start is one to the question that
	// was asked as the address came, of a machine that had it before; the next
	// question comes after it.
	askedFirst = 150 * time.Millisecond
	// Between two announcements against another machine (DEFEND_INTERVAL).
	defendEvery = 10 * time.Second
	// Between two questions while another machine is known, and how long it
	// counts after its last word.
	askEvery     = 10 * time.Second
	duplicateFor = 3 * askEvery
)

// Duplicate is another machine that has a held address.
type Duplicate struct {
	Addr      netip.Addr
	Interface string
	MAC       net.HardwareAddr
	Before    bool // it was there before the address came to this node
	First     time.Time
	Last      time.Time // when it was heard last
}

// String says what is wrong and what to do.
func (d Duplicate) String() string {
	when := "claims it, too"
	if d.Before {
		when = "had it before this node took it, and has it still"
	}
	return fmt.Sprintf("address %s is on two machines: %v on %s %s; clients reach the one or the other: find that machine (ip neigh, the switch's table of addresses) and take the address from it, or let it not answer ARP (arp_ignore) if it is a real server",
		d.Addr, d.MAC, d.Interface, when)
}

// Duplicates are the other machines that have an address of this node now.
func (n *Network) Duplicates() []Duplicate {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []Duplicate
	for _, a := range n.held {
		if d := a.other; d != nil && time.Since(d.Last) < duplicateFor {
			all = append(all, *d)
		}
	}
	slices.SortFunc(all, func(a, b Duplicate) int { return a.Addr.Compare(b.Addr) })
	return all
}

// heard is a claim that came in on the interface of that number.
func (n *Network) heard(index int, c claim) {
	mac, addr := c.mac, c.addr
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.held[addr]
	if a == nil || a.place.index != index || !a.place.announces() || n.here.owns(mac) {
		return
	}
	d := a.other
	if d != nil && bytes.Equal(d.MAC, mac) && now.Sub(d.Last) < duplicateFor {
		d.Last = now
	} else {
		d = &Duplicate{Addr: addr, Interface: a.place.name, MAC: mac, Before: c.answers && now.Sub(a.since) < askedFirst, First: now, Last: now}
		a.other = d
		n.say(model.LevelError, "address-duplicate", addr, "%v", d)
		n.wait.Go(func() { n.askAgain(a, d) })
	}
	if now.Sub(a.defended) >= defendEvery {
		a.defended = now
		_ = n.wire.send(a.place, addr) // the next announcement, or the next claim, brings another
	}
}

// askAgain asks for another machine until it has been silent for long enough,
// or is no longer the question.
func (n *Network) askAgain(a *Address, d *Duplicate) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		n.mu.Lock()
		current, over := a.other == d, time.Since(d.Last) >= duplicateFor
		if current && over {
			a.other = nil
			n.say(model.LevelNotice, "address-alone", d.Addr, "address %s is on this machine only: %v has been silent for %v", d.Addr, d.MAC, duplicateFor)
		} else if current {
			_ = n.wire.ask(a.place, d.Addr)
		}
		n.mu.Unlock()
		if !current || over {
			return
		}
	}
}

// ears are the packet sockets that hear of addresses, one for each family.
type ears struct {
	files  map[bool]*os.File // by whether it is IPv6's
	known  map[netip.Addr]bool
	failed bool // was said
}

// listen opens the ears for the families that are needed. What cannot be heard
// is said once; addresses come and go all the same. n.mu is held.
func (n *Network) listen(six bool) {
	if n.ears.files[six] != nil || n.ctx.Err() != nil {
		return
	}
	f, err := openEar(six, n.ears.known)
	if err != nil {
		if !n.ears.failed {
			n.ears.failed = true
			n.say(model.LevelWarning, "duplicates-unheard", netip.Addr{}, "nobody will notice if another machine has a service address: %v", explain(err))
		}
		return
	}
	n.ears.files[six] = f
	n.wait.Go(func() { n.hear(f, six) })
}

// know has the ears hear of one more address. n.mu is held.
func (n *Network) know(addr netip.Addr) {
	if n.ears.known[addr] {
		return
	}
	n.ears.known[addr] = true
	if f := n.ears.files[addr.Is6()]; f != nil {
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = filter(int(fd), addr.Is6(), n.ears.known) })
		}
	}
}

// deafen closes the ears.
func (n *Network) deafen() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.ears.files {
		_ = f.Close() // nothing is written to it
	}
}

func openEar(six bool, known map[netip.Addr]bool) (*os.File, error) {
	kind := uint16(unix.ETH_P_ARP)
	if six {
		kind = unix.ETH_P_IPV6
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // hears nothing yet
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	err = filter(fd, six, known)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(kind)})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on a packet socket: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

// hear reads claims until the ear is closed.
func (n *Network) hear(f *os.File, six bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	var b [128]byte
	for {
		var size, index int
		err := raw.Read(func(fd uintptr) bool {
			got, from, err := unix.Recvfrom(int(fd), b[:], unix.MSG_TRUNC)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			size, index = 0, 0
			if l, ok := from.(*unix.SockaddrLinklayer); ok && err == nil {
				size, index = min(got, len(b)), l.Ifindex
			}
			return true
		})
		if err != nil {
			return
		}
		if c, ok := readClaim(b[:size], six); ok {
			n.heard(index, c)
		}
	}
}

// claim is a word of a machine that has an address.
type claim struct {
	mac     net.HardwareAddr
	addr    netip.Addr
	answers bool // it may be one to a question
}

// readClaim reads who says that it has which address: the sender of any ARP
// packet (RFC 5227 section 2.4), or of a neighbor advertisement.
func readClaim(f []byte, six bool) (claim, bool) {
	switch {
	case !six && len(f) >= 42 && f[18] == 6 && f[19] == 4:
		return claim{bytes.Clone(f[22:28]), netip.AddrFrom4([4]byte(f[28:32])), f[21] == 2}, true
	case six && len(f) >= 78 && f[20] == unix.IPPROTO_ICMPV6 && f[54] == 136:
		return claim{bytes.Clone(f[6:12]), netip.AddrFrom16([16]byte(f[62:78])), true}, true
	}
	return claim{}, false
}

// most is how many addresses a filter names; with more, all of their kind are heard.
const most = 250

// filter lets the kernel drop what is of no interest: on a large network each
// machine hears thousands of ARP packets a second.
func filter(fd int, six bool, known map[netip.Addr]bool) error {
	const whole = 128 // bytes, more than a claim has
	var p []bpf.Instruction
	for a := range known {
		switch {
		case a.Is6() != six || len(p) > most*9:
		case six:
			b := a.As16()
			p = append(p, bpf.LoadAbsolute{Off: 62, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[:]), SkipTrue: 7},
				bpf.LoadAbsolute{Off: 66, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[4:]), SkipTrue: 5},
				bpf.LoadAbsolute{Off: 70, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[8:]), SkipTrue: 3},
				bpf.LoadAbsolute{Off: 74, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[12:]), SkipTrue: 1},
				bpf.RetConstant{Val: whole})
		default:
			b := a.As4()
			p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[:]), SkipTrue: 1}, bpf.RetConstant{Val: whole})
		}
	}
	var head []bpf.Instruction
	if six {
		head = []bpf.Instruction{bpf.LoadAbsolute{Off: 20, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 1}, bpf.RetConstant{},
			bpf.LoadAbsolute{Off: 54, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136, SkipTrue: 1}, bpf.RetConstant{}}
	} else {
		head = []bpf.Instruction{bpf.LoadAbsolute{Off: 28, Size: 4}} // who sends
	}
	last := bpf.RetConstant{}
	if len(p) > most*9 {
		p, last.Val = nil, whole
	}
	program, err := bpf.Assemble(slices.Concat(head, p, []bpf.Instruction{last}))
	if err != nil {
		return fmt.Errorf("filter of addresses: %w", err)
	}
	list := make([]unix.SockFilter, len(program))
	for i, r := range program {
		list[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}); err != nil {
		return fmt.Errorf("attach a filter: %w", err)
	}
	return nil
}
