package responder

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// refresh looks at the interfaces of the media: the program is told the
// addresses that they have now, and then put on those that are there.
func (r *Responder) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.net == nil {
		return // closed
	}
	there, places := map[int]string{}, map[respondPlaceKey]respondPlace{}
	for name, ports := range ports(r.o.Media) {
		i, place, err := r.look(name)
		if err != nil {
			r.complain(name, err)
			if i == 0 && !errors.As(err, new(netlink.LinkNotFoundError)) {
				return // nothing is known: nothing changes
			}
			continue
		}
		there[i] = name
		for _, p := range ports {
			places[respondPlaceKey{Ifindex: uint32(i), Port: order(p)}] = place
		}
	}
	if err := r.tell(places); err != nil {
		r.say(model.LevelWarning, "kernel-answers-not", "", fmt.Sprintf("tell the program the addresses of this machine: %v", err))
		return
	}
	for i, name := range there {
		r.complain(name, r.attach(i))
	}
	for i := range r.attached {
		if there[i] == "" {
			r.detach(i)
		}
	}
	r.removeStale(there)
}

// tell gives the program the places as they are now.
func (r *Responder) tell(places map[respondPlaceKey]respondPlace) error {
	for k, p := range places {
		if old, ok := r.places[k]; ok && old == p {
			continue
		}
		if err := r.objects.Places.Put(k, p); err != nil {
			return err
		}
	}
	for k := range r.places {
		if _, ok := places[k]; !ok {
			_ = r.objects.Places.Delete(k)
		}
	}
	r.places = places
	return nil
}

// complain says once what is the matter with an interface, and once that it is mended.
func (r *Responder) complain(name string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == r.trouble[name]:
	case err != nil:
		r.say(model.LevelNotice, "kernel-answers-not", name, fmt.Sprintf("interface %s: %v: by it this machine's kernel does not answer when the daemon is silent", name, err))
	default:
		r.say(model.LevelInfo, "kernel-answers", name, fmt.Sprintf("interface %s: this machine's kernel answers by it when the daemon is silent", name))
	}
	r.trouble[name] = text
}

// look finds an interface and its addresses.
func (r *Responder) look(name string) (index int, p respondPlace, err error) {
	l, err := r.net.LinkByName(name)
	if err != nil {
		return 0, p, err
	}
	a := l.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != len(p.Mac) {
		return a.Index, p, errors.New("it is no Ethernet interface")
	}
	copy(p.Mac[:], a.HardwareAddr)
	addrs, err := r.net.AddrList(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // the change that did it brings us back
		return 0, p, fmt.Errorf("its addresses: %w", err)
	}
	var v4, local, global netip.Addr
	for _, x := range addrs {
		addr, _ := netip.AddrFromSlice(x.IP)
		addr = addr.Unmap()
		const unfit = unix.IFA_F_SECONDARY | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
		for _, first := range []struct {
			of bool
			at *netip.Addr
		}{{addr.Is4(), &v4}, {addr.Is6() && addr.IsLinkLocalUnicast(), &local}, {addr.Is6() && !addr.IsLinkLocalUnicast(), &global}} {
			if first.of && !first.at.IsValid() && x.Flags&unfit == 0 {
				*first.at = addr
			}
		}
	}
	copy(p.V4[:], v4.AsSlice())
	copy(p.Local[:], local.AsSlice())
	copy(p.Global[:], global.AsSlice())
	return a.Index, p, nil
}

// order is a number in network order, as the program sees it.
func order(n uint16) uint16 { return n<<8 | n>>8 }

// attach puts the program on an interface, unless it is there.
func (r *Responder) attach(index int) error {
	if l, ok := r.attached[index]; ok && (l == nil || onto(l, index)) {
		return nil
	}
	l, err := r.adopt(index)
	if err == nil && l == nil && !r.o.NoTCX {
		l, err = r.attachTCX(index)
	}
	if r.o.NoTCX || errors.Is(err, ebpf.ErrNotSupported) {
		l, err = nil, r.attachFilter(index)
	}
	if err != nil {
		return fmt.Errorf("attach the program: %w", err)
	}
	r.attached[index] = l
	return nil
}

func (r *Responder) pin(index int) string { return filepath.Join(r.dir, strconv.Itoa(index)) }

// adopt gives a pinned attachment the program of now, in one step that no
// packet sees. nil: there is none.
func (r *Responder) adopt(index int) (link.Link, error) {
	l, err := link.LoadPinnedLink(r.pin(index), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		if onto(l, index) && l.Update(r.objects.Respond) == nil {
			return l, nil
		}
		_ = l.Close()
	}
	return nil, os.Remove(r.pin(index)) // of an interface that is gone, or not ours
}

// onto tells whether a link is attached to that interface: not so when the
// interface was deleted.
func onto(l link.Link, index int) bool {
	info, err := l.Info()
	return err == nil && info.TCX() != nil && int(info.TCX().Ifindex) == index
}

// attachTCX puts the program before all others: those of the eBPF plane would
// let questions pass, others may drop them.
func (r *Responder) attachTCX(index int) (link.Link, error) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: r.objects.Respond, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(r.pin(index)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("pin: %w", err)
	}
	return l, nil
}

// Before Linux 6.6 the program is a filter of the clsact qdisc, which stays
// without a pin. Those of checks by the virtual address and of the eBPF plane
// are at 0xba79 and 0xba7a.
func filter(index int) *netlink.BpfFilter {
	return &netlink.BpfFilter{Name: "batuta_responder", DirectAction: true, FilterAttrs: netlink.FilterAttrs{
		LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 0xba78}}
}

func (r *Responder) attachFilter(index int) error {
	err := r.net.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)},
		QdiscType:  "clsact",
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	f := filter(index)
	f.Fd = r.objects.Respond.FD()
	return r.net.FilterReplace(f)
}

// detach takes the program off an interface.
func (r *Responder) detach(index int) {
	if l := r.attached[index]; l != nil {
		_ = l.Unpin()
		_ = l.Close()
	} else if r.net != nil {
		_ = r.net.FilterDel(filter(index)) // an interface that has gone took it along
	}
	delete(r.attached, index)
}

// removeStale removes pins of interfaces that are gone or no longer in ha.cf.
func (r *Responder) removeStale(there map[int]string) {
	pins, err := os.ReadDir(r.dir)
	if err != nil {
		return
	}
	for _, p := range pins {
		if i, err := strconv.Atoi(p.Name()); err == nil && there[i] == "" {
			_ = os.Remove(filepath.Join(r.dir, p.Name()))
		}
	}
}
